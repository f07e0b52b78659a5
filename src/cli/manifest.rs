//! Manifests: YAML or JSON, several documents, lists. Also the pods of the workloads in them.

mod decode;
mod pod_from_template;
mod read;

use anyhow::{anyhow, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use self::decode::{decode, without_position};
pub(super) use self::read::read;
use crate::{
    admission::{self, ReviewError},
    burst::DECISION,
    pod::{Metadata, Pod},
};

/// The kinds with pods: group, kind, and the path of the pod template.
const WORKLOADS: &[(&str, &str, &[&str])] = &[
    ("", "Pod", &[]),
    ("apps", "Deployment", &["spec", "template"]),
    ("apps", "StatefulSet", &["spec", "template"]),
    ("apps", "ReplicaSet", &["spec", "template"]),
    ("apps", "DaemonSet", &["spec", "template"]),
    ("batch", "Job", &["spec", "template"]),
    ("batch", "CronJob", &["spec", "jobTemplate", "spec", "template"]),
];

/// One document and its source.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) source: String,
    pub(super) value: Value,
}

/// A pod, or the pod template of a workload.
#[derive(Debug)]
pub(super) struct PodTemplate {
    /// The kind, such as `Deployment`.
    pub(super) kind: String,
    pub(super) name: String,
    /// None if the manifest has no namespace, as with `kubectl -n`.
    pub(super) namespace: Option<String>,
    /// The pod as written, with `metadata` and `spec`.
    pub(super) pod: Value,
    /// The same with what its controller and the API server add. It is never shown. A patch changes nothing below
    /// an added field.
    expanded: Value,
    /// The whole object with its status, for a pod that exists in a cluster. `expanded` is then the pod at its
    /// creation.
    pub(super) live_object: Option<Value>,
    /// Whether the API server has already admitted it.
    is_admitted: bool,
    /// File, kind and name, for errors.
    label: String,
    /// The path from the document to the pod, with a trailing dot.
    path: String,
}

impl PodTemplate {
    /// Returns the pod as the webhook receives it, with the fields that its controller and the API server add and
    /// the rules read. `mounts_token` returns whether pods of a service account mount its token by default.
    pub(super) fn as_admitted(&self, mounts_token: impl Fn(&str) -> bool) -> Value {
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
    pub(super) fn typed<'t, T: Deserialize<'t>>(&'t self) -> anyhow::Result<T> {
        decode(&self.pod, &self.path).map_err(|error| anyhow!("{}: {error}", self.label))
    }

    /// Decodes the view of [`PodTemplate::as_admitted`] for the decision.
    ///
    /// # Errors
    ///
    /// When a field has a type that differs from the API's. The error names file, object and path.
    pub(super) fn view<'s>(&self, seen: &'s Value) -> anyhow::Result<Pod<'s>> {
        decode(seen, &self.path).map_err(|error| anyhow!("{}: {error}", self.label))
    }
}

impl Document {
    /// Returns the kind.
    pub(super) fn kind(&self) -> &str {
        self.text("/kind").unwrap_or_default()
    }

    /// Returns whether the object has this group and kind. Without an apiVersion, only the kind counts.
    pub(super) fn is(&self, group: &str, kind: &str) -> bool {
        let of_group = |version: &str| version.split_once('/').map_or("", |(group, _)| group) == group;
        self.kind() == kind && self.text("/apiVersion").is_none_or(of_group)
    }

    /// Returns the string at a JSON pointer.
    fn text(&self, pointer: &str) -> Option<&str> {
        self.value.pointer(pointer)?.as_str()
    }

    /// `metadata.name`
    pub(super) fn name(&self) -> Option<&str> {
        self.text("/metadata/name")
    }

    /// `metadata.namespace`
    pub(super) fn namespace(&self) -> Option<&str> {
        self.text("/metadata/namespace")
    }

    /// Decodes the metadata.
    ///
    /// # Errors
    ///
    /// When a field has a type that differs from the API's, such as an annotation with a number.
    pub(super) fn metadata(&self) -> anyhow::Result<Metadata<'_>> {
        let metadata = self.value.get("metadata").filter(|metadata| !metadata.is_null());
        let metadata = metadata.ok_or_else(|| anyhow!("{}: expected metadata", self.label()))?;
        decode(metadata, "metadata.").map_err(|error| anyhow!("{}: {error}", self.label()))
    }

    /// Decodes the object.
    ///
    /// # Errors
    ///
    /// When a field has a type that differs from the API's.
    pub(super) fn typed<'d, T: Deserialize<'d>>(&'d self) -> anyhow::Result<T> {
        decode(&self.value, "").map_err(|error| anyhow!("{}: {error}", self.label()))
    }

    /// Returns whether this Service has a ClusterIP.
    pub(super) fn has_cluster_ip(&self) -> bool {
        let kind = self.text("/spec/type").unwrap_or("ClusterIP");
        kind != "ExternalName" && self.text("/spec/clusterIP") != Some("None")
    }

    /// Returns whether a controller owns the object.
    pub(super) fn has_controller(&self) -> bool {
        let owners = self.value.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        owners.into_iter().flatten().any(|owner| owner.get("controller") == Some(&Value::Bool(true)))
    }

    /// Returns kind and name.
    pub(super) fn title(&self) -> String {
        format!("{} {}", self.kind(), name_of(&self.value)).trim_end().to_owned()
    }

    /// Returns file, kind and name, for errors.
    fn label(&self) -> String {
        format!("{}: {}", self.source, self.title())
    }

    /// Returns the pod template of the object, if its kind has one.
    ///
    /// # Errors
    ///
    /// When a workload has no pod template, or when a review is unusable for the webhook.
    pub(super) fn pod_template(&self) -> anyhow::Result<Option<PodTemplate>> {
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
        let mut expanded = pod_from_template::pod_from_template(self, pod.clone());
        if is_admitted && !was_created_with_node(&self.value) {
            // The scheduler set the node, not the author.
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

    /// Returns the pod of an AdmissionReview, which is parsed as the webhook does.
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
            Err(unusable) => bail!("{label}: {unusable}"),
        };
        if request.old.is_some() {
            bail!("{label}: this is an update, only creations are explained");
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

/// Returns whether this pod was created with a node. The webhook's decision says so.
fn was_created_with_node(pod: &Value) -> bool {
    let annotations = pod.pointer("/metadata/annotations");
    let decision = annotations.and_then(|annotations| annotations.get(DECISION)).and_then(Value::as_str);
    decision.is_some_and(|decision| decision.contains("NodeName"))
}

/// Returns the object's name, or `web-*` for a generated name.
fn name_of(object: &Value) -> String {
    let text = |field: &str| object.get("metadata")?.get(field)?.as_str().filter(|text| !text.is_empty());
    let generated = || text("generateName").map(|prefix| format!("{prefix}*"));
    text("name").map(str::to_owned).or_else(generated).unwrap_or_default()
}
