//! The pod of a manifest, or the pod template of a workload.

use anyhow::{anyhow, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    decode::{decode, without_position},
    document::{Document, name_of},
    pod_from_template::{self, pod_from_template},
};
use crate::{
    admission::{self, ReviewError},
    burst::DECISION,
    pod::Pod,
};

/// The kinds with pods: group, kind, and path of the pod template.
const WORKLOADS: &[(&str, &str, &[&str])] = &[
    ("", "Pod", &[]),
    ("apps", "Deployment", &["spec", "template"]),
    ("apps", "StatefulSet", &["spec", "template"]),
    ("apps", "ReplicaSet", &["spec", "template"]),
    ("apps", "DaemonSet", &["spec", "template"]),
    ("batch", "Job", &["spec", "template"]),
    ("batch", "CronJob", &["spec", "jobTemplate", "spec", "template"]),
];

/// A pod, or the pod template of a workload.
#[derive(Debug)]
pub(in crate::cli) struct PodTemplate {
    /// The kind, such as `Deployment`.
    pub(in crate::cli) kind: String,
    pub(in crate::cli) name: String,
    /// `None` if the manifest has no namespace, as with `kubectl -n`.
    pub(in crate::cli) namespace: Option<String>,
    /// The pod as written, with `metadata` and `spec`.
    pub(in crate::cli) pod: Value,
    /// The pod with the fields that its controller and the API server add. Spillway never shows it. A patch changes
    /// nothing below an added field.
    expanded: Value,
    /// The whole object with its status, for an existing pod. `expanded` is then the pod at its creation.
    pub(in crate::cli) live_object: Option<Value>,
    /// `true` if the API server has already admitted the pod.
    is_admitted: bool,
    /// File, kind and name, for errors.
    label: String,
    /// The path from the document to the pod, with a trailing dot.
    path: String,
}

impl PodTemplate {
    /// Returns the pod as the webhook receives it, with the fields that its controller and the API server add and
    /// the rules read. `mounts_token` returns whether pods of a service account mount its token by default.
    pub(in crate::cli) fn as_admitted(&self, mounts_token: impl Fn(&str) -> bool) -> Value {
        let mut pod = self.expanded.clone();
        if let (false, Some(spec)) = (self.is_admitted, pod.get_mut("spec").and_then(Value::as_object_mut)) {
            pod_from_template::mount_token(spec, mounts_token);
        }
        pod
    }

    /// Decodes the pod as written.
    ///
    /// # Errors
    ///
    /// When a field has a type that differs from the API's. The error names file, object and path.
    pub(in crate::cli) fn typed<'t, T: Deserialize<'t>>(&'t self) -> anyhow::Result<T> {
        decode(&self.pod, &self.path).map_err(|error| anyhow!("{}: {error}", self.label))
    }

    /// Decodes the view of [`PodTemplate::as_admitted`] for the decision.
    ///
    /// # Errors
    ///
    /// When a field has a type that differs from the API's. The error names file, object and path.
    pub(in crate::cli) fn view<'s>(&self, seen: &'s Value) -> anyhow::Result<Pod<'s>> {
        decode(seen, &self.path).map_err(|error| anyhow!("{}: {error}", self.label))
    }
}

impl Document {
    /// Returns the pod template of the object, if its kind has one.
    ///
    /// # Errors
    ///
    /// When a workload has no pod template, or when the webhook could not use a review.
    pub(in crate::cli) fn pod_template(&self) -> anyhow::Result<Option<PodTemplate>> {
        if self.kind() == "AdmissionReview" {
            return self.pod_of_review().map(Some);
        }
        let Some((_, kind, path)) = WORKLOADS.iter().find(|(group, kind, _)| self.is(group, kind)) else {
            return Ok(None);
        };
        let label = self.label();
        let mut pod = &self.value;
        for (depth, field) in path.iter().enumerate() {
            let Some(below) = pod.get(field).filter(|below| !below.is_null()) else {
                bail!("{label}: expected {}", path.get(..=depth).unwrap_or_default().join("."));
            };
            pod = below;
        }
        let path: String = path.iter().flat_map(|field| [field, "."]).collect();
        let Some(map) = pod.as_object().filter(|pod| pod.get("spec").is_some_and(|spec| !spec.is_null())) else {
            bail!("{label}: expected {path}spec");
        };
        let mut pod = map.clone();
        let metadata = pod.entry("metadata").or_insert(Value::Null);
        if metadata.is_null() {
            *metadata = json!({});
        }
        // An object from `kubectl get` has a uid, and the fields that the API server adds.
        let is_admitted = metadata.get("uid").is_some_and(|uid| *kind == "Pod" && !uid.is_null());
        let live_object = is_admitted.then(|| self.value.clone());
        let mut expanded = pod_from_template(self, pod.clone());
        if is_admitted && !was_created_with_node(&self.value) {
            // The scheduler set the node, not the user.
            expanded.get_mut("spec").and_then(Value::as_object_mut).and_then(|spec| spec.remove("nodeName"));
        }
        Ok(Some(PodTemplate {
            kind: (*kind).to_owned(),
            live_object,
            name: name_of(&self.value),
            namespace: self.namespace().map(str::to_owned),
            expanded,
            pod: Value::Object(pod),
            is_admitted,
            label,
            path,
        }))
    }

    /// Returns the pod of an AdmissionReview, parsed as the webhook does.
    fn pod_of_review(&self) -> anyhow::Result<PodTemplate> {
        const PATH: &str = "request.object.";
        let (source, text) = (&self.source, self.value.to_string());
        let object = self.value.pointer("/request/object").unwrap_or(&Value::Null);
        let label = format!("{source}: AdmissionReview {}", name_of(object)).trim_end().to_owned();
        let request = match admission::parse(text.as_bytes()) {
            Ok(request) => request,
            Err(ReviewError::Json(error)) => match decode::<Pod<'_>>(object, PATH) {
                Err(error) => bail!("{label}: {error}"),
                Ok(_) => bail!("{label}: {}", without_position(&error)),
            },
            Err(error) => bail!("{label}: {error}"),
        };
        if request.old.is_some() {
            bail!("{label}: the request is an update; spillway explain supports only creations");
        }
        let namespace = Some(request.namespace.to_string());
        Ok(PodTemplate {
            kind: "Pod".to_owned(),
            name: name_of(object),
            namespace,
            pod: object.clone(),
            expanded: object.clone(),
            live_object: None,
            is_admitted: true,
            label,
            path: PATH.to_owned(),
        })
    }
}

/// Returns whether the pod was created with a node, according to the webhook's decision.
fn was_created_with_node(pod: &Value) -> bool {
    let annotations = pod.pointer("/metadata/annotations");
    let decision = annotations.and_then(|annotations| annotations.get(DECISION)).and_then(Value::as_str);
    decision.is_some_and(|decision| decision.contains("NodeName"))
}
