//! An object that may fail to decode. One bad object in a list must not lose the others.
//!
//! Go accepts values that Rust types refuse. For example, the API server stores the time 9999-12-31T23:59:59Z, and the
//! greatest time of jiff is earlier. A user can write such a time into an object of his namespace.

use kube::{Resource, api::ObjectMeta};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::object::resource_of;
use crate::excerpt::{self, excerpt};

/// An object, or the reason why it could not be decoded. Its name, namespace and resource version are always known.
#[derive(Debug, Clone)]
pub(crate) struct Decoded<K> {
    metadata: ObjectMeta,
    pub(crate) result: Result<K, Box<str>>,
}

/// The fields of `metadata` that a watch needs.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

#[derive(Default, Deserialize)]
struct Named {
    #[serde(default)]
    metadata: Identity,
}

impl From<Identity> for ObjectMeta {
    fn from(Identity { name, namespace, resource_version }: Identity) -> Self {
        Self { name, namespace, resource_version, ..Self::default() }
    }
}

impl<'de, K: Resource + DeserializeOwned> Deserialize<'de> for Decoded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(deserializer)?;
        match serde_json::from_str::<K>(json.get()) {
            Ok(object) => {
                let ObjectMeta { name, namespace, resource_version, .. } = object.meta();
                let [name, namespace, resource_version] = [name, namespace, resource_version].map(Clone::clone);
                let identity = Identity { name, namespace, resource_version };
                Ok(Self { metadata: identity.into(), result: Ok(object) })
            }
            Err(error) => {
                let Named { metadata: identity } = serde_json::from_str(json.get()).unwrap_or_default();
                let message = excerpt(&error.to_string(), excerpt::MESSAGE).into();
                Ok(Self { metadata: identity.into(), result: Err(message) })
            }
        }
    }
}

resource_of!(Decoded<K>);

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectList;

    use super::*;

    #[test]
    fn an_object_that_cannot_be_decoded_does_not_lose_its_list() {
        let list = r#"{"apiVersion":"v1","kind":"ConfigMapList","metadata":{},"items":[
            {"metadata":{"name":"bad","namespace":"shop","resourceVersion":"7",
                         "managedFields":[{"manager":"m","time":"9999-12-31T23:59:59Z"}]}},
            {"metadata":{"name":"good"}}, {"metadata":5}]}"#;
        let list: ObjectList<Decoded<ConfigMap>> = serde_json::from_str(list).unwrap();
        let [bad, good, worse] = list.items.as_slice() else { panic!("{list:?}") };
        let meta = bad.meta();
        let identity = [&meta.name, &meta.namespace, &meta.resource_version].map(|text| text.as_deref().unwrap());
        assert_eq!(identity, ["bad", "shop", "7"]);
        assert!(bad.result.is_err() && worse.result.is_err());
        assert_eq!(good.result.as_ref().unwrap().metadata.name.as_deref(), Some("good"));
    }
}
