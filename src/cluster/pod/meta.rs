//! The metadata of a cached pod.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::OwnerReference, jiff::Timestamp};
use kube::api::ObjectMeta;

use crate::{
    config::{BURST_LABEL, MAX_OVERRIDE_BYTES},
    keys::PREFIX,
    kubernetes::{ObjectKey, object_reference},
};

/// The annotation of a mirror pod.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The identity of a pod, and its controller.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct PodMeta {
    /// `metadata.namespace`
    pub(crate) namespace: String,
    /// `metadata.name`
    pub(crate) name: String,
    /// `metadata.uid`
    pub(crate) uid: String,
    /// `metadata.creationTimestamp`
    pub(crate) created: Timestamp,
    /// The controller among `metadata.ownerReferences`.
    pub(crate) controller: Option<OwnerReference>,
}

impl PodMeta {
    pub(crate) fn read(meta: &ObjectMeta) -> Self {
        let mut owners = meta.owner_references.iter().flatten();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            created: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            controller: owners
                .find(|owner| owner.controller == Some(true))
                .filter(|owner| is_plausible(owner))
                .cloned(),
        }
    }

    pub(crate) fn key(&self) -> ObjectKey {
        ObjectKey::new(&self.namespace, &self.name)
    }

    /// Returns the object for Events about the pod: its controller, or the pod itself if it has no controller.
    pub(crate) fn owner(&self) -> ObjectReference {
        let (api_version, kind, name, uid) = match &self.controller {
            Some(owner) => (owner.api_version.as_str(), owner.kind.as_str(), &owner.name, &owner.uid),
            None => ("v1", "Pod", &self.name, &self.uid),
        };
        ObjectReference { uid: Some(uid.clone()), ..object_reference(api_version, kind, Some(&self.namespace), name) }
    }
}

/// Returns whether the parts of an owner reference have lengths that Kubernetes permits for objects. The API server does not
/// check a reference.
fn is_plausible(owner: &OwnerReference) -> bool {
    let parts = [&owner.api_version, &owner.kind, &owner.name, &owner.uid];
    parts.into_iter().all(|part| part.len() <= MAX_OWNER_PART_BYTES)
}

/// Maximum length of a part of an owner reference: a group of 253 characters, and a version of 63.
const MAX_OWNER_PART_BYTES: usize = 317;
/// Maximum number of annotations that are kept. Spillway has nine.
const MAX_ANNOTATIONS: usize = 32;
/// Maximum size of the labels that are kept.
const MAX_LABEL_BYTES: usize = 64 * 1024;

/// Returns the annotations that the cache keeps: those of Spillway and of mirror pods, up to 32 of at most 4,096 bytes.
pub(super) fn annotations(meta: &ObjectMeta) -> BTreeMap<String, String> {
    let all = meta.annotations.iter().flatten();
    let kept = all.filter(|(key, value)| {
        (key.starts_with(PREFIX) || key.as_str() == MIRROR) && value.len() <= MAX_OVERRIDE_BYTES
    });
    kept.take(MAX_ANNOTATIONS).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Returns the labels that the cache keeps: all, or only `spillway.dev/burst` if all together have more than 64 KiB.
pub(super) fn labels(meta: &ObjectMeta) -> BTreeMap<String, String> {
    let all = || meta.labels.iter().flatten();
    let is_small = all().map(|(key, value)| key.len() + value.len()).sum::<usize>() <= MAX_LABEL_BYTES;
    let kept = all().filter(|(key, _)| is_small || key.as_str() == BURST_LABEL);
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}
