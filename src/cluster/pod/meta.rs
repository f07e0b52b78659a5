//! The metadata of a cached pod.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::OwnerReference, jiff::Timestamp};
use kube::api::ObjectMeta;

use crate::kubernetes::{ObjectKey, object_reference};

/// The prefix of the annotations that are kept.
const OURS: &str = "spillway.dev/";
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
            controller: owners.find(|owner| owner.controller == Some(true)).cloned(),
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

/// Returns the annotations that the cache keeps: those of Spillway and of mirror pods.
pub(super) fn annotations(meta: &ObjectMeta) -> BTreeMap<String, String> {
    let all = meta.annotations.iter().flatten();
    let kept = all.filter(|(key, _)| key.starts_with(OURS) || key.as_str() == MIRROR);
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}
