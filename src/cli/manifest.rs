//! Kubernetes manifests as a person writes them: YAML or JSON, several documents, lists; and the pods that come of them.

mod made;
mod read;
mod typed;

use anyhow::{anyhow, bail};
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) use self::read::read;
use self::typed::{typed, without_position};
use crate::{
    admission::{self, ReviewError},
    burst::DECISION,
    pod::{Metadata, Pod},
};

/// The kinds that make pods, each with its group and the way to its pod template.
const WORKLOADS: &[(&str, &str, &[&str])] = &[
    ("", "Pod", &[]),
    ("apps", "Deployment", &["spec", "template"]),
    ("apps", "StatefulSet", &["spec", "template"]),
    ("apps", "ReplicaSet", &["spec", "template"]),
    ("apps", "DaemonSet", &["spec", "template"]),
    ("batch", "Job", &["spec", "template"]),
    ("batch", "CronJob", &["spec", "jobTemplate", "spec", "template"]),
];

/// One document with where it came from.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) source: String,
    pub(super) value: Value,
}

/// A pod, or what a workload's pods will look like.
#[derive(Debug)]
pub(super) struct PodTemplate {
    /// Such as `Deployment`.
    pub(super) kind: String,
    pub(super) name: String,
    /// Nothing when the manifest leaves it to `kubectl -n`.
    pub(super) namespace: Option<String>,
    /// The pod as it is written, with `metadata` and `spec`.
    pub(super) pod: Value,
    /// The same with what the maker adds; never shown, and nothing of it is a parent of what a patch changes.
    made: Value,
    /// The whole object with its status, if it is a pod that lives in a cluster; `made` is then as it would be created anew.
    pub(super) living: Option<Value>,
    /// Whether the API server has already been over it.
    is_admitted: bool,
    /// File, kind and name, for errors.
    label: String,
    /// The way from the document to the pod, with a dot at its end.
    path: String,
}

impl PodTemplate {
    /// The pod as the webhook will be shown it: with what its controller and the API server add and the rules read.
    /// `mounts_token` says of a service account whether its pods get a token unless they say otherwise.
    pub(super) fn seen(&self, mounts_token: impl Fn(&str) -> bool) -> Value {
        let mut pod = self.made.clone();
        if let (false, Some(spec)) = (self.is_admitted, pod.get_mut("spec").and_then(Value::as_object_mut)) {
            made::mount_token(spec, mounts_token);
        }
        pod
    }

    /// The pod as it is written, as a type of the API.
    ///
    /// # Errors
    ///
    /// When a field that is read has a type that the API does not give it; named by file, object and path.
    pub(super) fn typed<'t, T: Deserialize<'t>>(&'t self) -> anyhow::Result<T> {
        typed(&self.pod, &self.path).map_err(|error| anyhow!("{}: {error}", self.label))
    }

    /// The view of [`PodTemplate::seen`] that a decision is made on.
    ///
    /// # Errors
    ///
    /// When a field that is read has a type that the API does not give it; named by file, object and path.
    pub(super) fn view<'s>(&self, seen: &'s Value) -> anyhow::Result<Pod<'s>> {
        typed(seen, &self.path).map_err(|error| anyhow!("{}: {error}", self.label))
    }
}

impl Document {
    /// The object's kind.
    pub(super) fn kind(&self) -> &str {
        self.text("/kind").unwrap_or_default()
    }

    /// Whether the object is of this group and kind. One without an apiVersion is taken for what its kind is best known as.
    pub(super) fn is(&self, group: &str, kind: &str) -> bool {
        let of_group = |version: &str| version.split_once('/').map_or("", |(group, _)| group) == group;
        self.kind() == kind && self.text("/apiVersion").is_none_or(of_group)
    }

    /// A string at a JSON pointer.
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

    /// Labels and annotations, and all else that is read of `metadata`.
    ///
    /// # Errors
    ///
    /// When one is of a type that the API does not give it, such as an annotation that is a number.
    pub(super) fn metadata(&self) -> anyhow::Result<Metadata<'_>> {
        let metadata = self.value.get("metadata").filter(|metadata| !metadata.is_null());
        let metadata = metadata.ok_or_else(|| anyhow!("{}: expected metadata", self.label()))?;
        typed(metadata, "metadata.").map_err(|error| anyhow!("{}: {error}", self.label()))
    }

    /// The object as a type of the API.
    ///
    /// # Errors
    ///
    /// When a field is of a type that the API does not give it.
    pub(super) fn typed<'d, T: Deserialize<'d>>(&'d self) -> anyhow::Result<T> {
        typed(&self.value, "").map_err(|error| anyhow!("{}: {error}", self.label()))
    }

    /// Whether this Service is reached by a ClusterIP.
    pub(super) fn has_cluster_ip(&self) -> bool {
        let kind = self.text("/spec/type").unwrap_or("ClusterIP");
        kind != "ExternalName" && self.text("/spec/clusterIP") != Some("None")
    }

    /// Whether a controller has made it.
    pub(super) fn has_controller(&self) -> bool {
        let owners = self.value.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        owners.into_iter().flatten().any(|owner| owner.get("controller") == Some(&Value::Bool(true)))
    }

    /// Kind and name, for people.
    pub(super) fn title(&self) -> String {
        format!("{} {}", self.kind(), name_of(&self.value)).trim_end().to_owned()
    }

    /// The same with the file, for errors.
    fn label(&self) -> String {
        format!("{}: {}", self.source, self.title())
    }

    /// The pods that come of this object; nothing if it is of a kind that makes none.
    ///
    /// # Errors
    ///
    /// When the object's kind makes pods but it has no pod template, or when it is a review that the webhook could not use.
    pub(super) fn pod_template(&self) -> anyhow::Result<Option<PodTemplate>> {
        if self.kind() == "AdmissionReview" {
            return self.reviewed().map(Some);
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
        // What `kubectl get` prints has a uid, and what the API server was to add.
        let is_admitted = metadata.get("uid").is_some_and(|uid| *kind == "Pod" && !uid.is_null());
        let living = is_admitted.then(|| self.value.clone());
        let mut made = made::pod_of(self, pod.clone());
        if is_admitted && !stays_for_its_node(&self.value) {
            // The scheduler's, not its author's.
            made.get_mut("spec").and_then(Value::as_object_mut).and_then(|spec| spec.remove("nodeName"));
        }
        Ok(Some(PodTemplate {
            kind: (*kind).to_owned(),
            living,
            name: name_of(&self.value),
            namespace: self.namespace().map(str::to_owned),
            made,
            pod: Value::Object(pod),
            is_admitted,
            label,
            path,
        }))
    }

    /// The pod of an AdmissionReview, read as the webhook reads it.
    fn reviewed(&self) -> anyhow::Result<PodTemplate> {
        const PATH: &str = "request.object.";
        let (source, text) = (&self.source, self.value.to_string());
        let object = self.value.pointer("/request/object").unwrap_or(&Value::Null);
        let label = format!("{source}: AdmissionReview {}", name_of(object)).trim_end().to_owned();
        let request = match admission::parse(text.as_bytes()) {
            Ok(request) => request,
            Err(ReviewError::Json(error)) => match typed::<Pod<'_>>(object, PATH) {
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
            made: object.clone(),
            living: None,
            is_admitted: true,
            label,
            path: PATH.to_owned(),
        })
    }
}

/// Whether this pod was created with a node: the webhook has then said so.
fn stays_for_its_node(pod: &Value) -> bool {
    let annotations = pod.pointer("/metadata/annotations");
    let decision = annotations.and_then(|annotations| annotations.get(DECISION)).and_then(Value::as_str);
    decision.is_some_and(|decision| decision.contains("NodeName"))
}

/// The object's name; `web-*` for one whose name the API server makes up.
fn name_of(object: &Value) -> String {
    let text = |field: &str| object.get("metadata")?.get(field)?.as_str().filter(|text| !text.is_empty());
    let generated = || text("generateName").map(|prefix| format!("{prefix}*"));
    text("name").map(str::to_owned).or_else(generated).unwrap_or_default()
}
