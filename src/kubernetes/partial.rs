//! An object of the API with only the fields that Spillway reads. Other fields are skipped during decoding.
//!
//! `kube::api::PartialObjectMeta` is enough if Spillway reads only metadata. It has no `spec`, and it decodes the
//! `managedFields` of every object. `kube::core::DeserializeGuard` decodes each object twice.

use std::{collections::BTreeMap, marker::PhantomData};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::ObjectMeta;
use serde::{Deserialize, Deserializer};

use super::object::resource_of;

/// An object of kind `K`. Decoding skips the fields that `Spec` and `Status` do not name. It also skips
/// `managedFields`, which is often the largest part of an object.
#[derive(Debug, Clone, Deserialize)]
#[serde(bound(deserialize = "Spec: Default + Deserialize<'de>, Status: Default + Deserialize<'de>"))]
pub(crate) struct PartialObject<K, Spec, Status> {
    /// `metadata`
    #[serde(default, deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
    /// `spec`
    #[serde(default)]
    pub(crate) spec: Spec,
    /// `status`
    #[serde(default)]
    pub(crate) status: Status,
    #[serde(skip)]
    kind: PhantomData<K>,
}

/// The fields of `metadata` that Spillway reads.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let read = Option::<Metadata>::deserialize(deserializer)?.unwrap_or_default();
    Ok(ObjectMeta {
        name: read.name,
        namespace: read.namespace,
        uid: read.uid,
        resource_version: read.resource_version,
        creation_timestamp: read.creation_timestamp,
        deletion_timestamp: read.deletion_timestamp,
        labels: read.labels,
        annotations: read.annotations,
        owner_references: read.owner_references,
        ..ObjectMeta::default()
    })
}

resource_of!(PartialObject<K, Spec, Status>);

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde::de::IgnoredAny;
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_is_decoded_without_managed_fields() {
        let meta = json!({
            "name": "web-1", "namespace": "shop", "uid": "u", "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T12:00:00Z", "deletionTimestamp": "2026-01-01T12:00:30Z",
            "labels": {"a": "b"}, "annotations": {"c": "d"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "r", "controller": true}],
        });
        let typed: ObjectMeta = serde_json::from_value(meta.clone()).unwrap();
        let mut pod = json!({"metadata": meta, "spec": {"a": 1}, "status": [2]});
        pod["metadata"]["managedFields"] = json!("not even a list");
        let partial: PartialObject<Pod, IgnoredAny, IgnoredAny> = serde_json::from_value(pod).unwrap();
        assert_eq!(partial.metadata, typed);
    }

    #[test]
    fn an_object_without_metadata_has_no_name() {
        for bare in [json!({}), json!({"metadata": null})] {
            let partial: PartialObject<Pod, (), ()> = serde_json::from_value(bare).unwrap();
            assert_eq!(partial.metadata, ObjectMeta::default());
        }
    }
}
