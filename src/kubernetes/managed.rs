//! The metadata of an object, with the managers of its fields.

use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::ObjectMeta;
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny},
};
use serde_json::value::RawValue;

use super::{object::resource_of, partial::PartialObject};

/// The metadata of an object of kind `K` with its `managedFields`. An entry that cannot be decoded is skipped.
#[derive(Debug, Clone)]
pub(crate) struct ManagedObject<K> {
    /// `metadata`
    pub(crate) metadata: ObjectMeta,
    kind: PhantomData<K>,
}

impl<'de, K> Deserialize<'de> for ManagedObject<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Managed {
            metadata: Entries,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Entries {
            managed_fields: Option<Vec<Box<RawValue>>>,
        }
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let object: PartialObject<K, IgnoredAny, IgnoredAny> =
            serde_json::from_str(json.get()).map_err(D::Error::custom)?;
        let managed: Option<Managed> = serde_json::from_str(json.get()).ok();
        let entries = managed.and_then(|managed| managed.metadata.managed_fields).unwrap_or_default();
        let entries = entries.iter().filter_map(|entry| serde_json::from_str::<ManagedFieldsEntry>(entry.get()).ok());
        let metadata = ObjectMeta { managed_fields: Some(entries.collect()), ..object.metadata };
        Ok(Self { metadata, kind: PhantomData })
    }
}

resource_of!(ManagedObject<K>);

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;

    use super::*;

    #[test]
    fn a_manager_that_cannot_be_decoded_does_not_lose_its_object() {
        let object = r#"{"metadata":{"name":"shop","managedFields":[
            {"manager":"bad","time":"9999-12-31T23:59:59Z"},{"manager":"good","time":"2026-01-01T00:00:00Z"}]}}"#;
        let object: ManagedObject<Namespace> = serde_json::from_str(object).unwrap();
        let managers = object.metadata.managed_fields.iter().flatten().map(|entry| entry.manager.as_deref().unwrap());
        assert_eq!(managers.collect::<Vec<_>>(), ["good"]);
        assert_eq!(object.metadata.name.as_deref(), Some("shop"));
    }
}
