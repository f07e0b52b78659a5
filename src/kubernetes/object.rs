//! Helpers for objects of any kind.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Resource, api::ObjectMeta};
use serde::de::DeserializeOwned;

/// Number of objects in one page of a list. Each page is reduced before the next page arrives.
pub(crate) const PAGE_SIZE: u32 = 250;

/// A kind that can be listed and watched.
pub(crate) trait Object: Resource + Clone + Debug + DeserializeOwned + Send + 'static {}

impl<K: Resource + Clone + Debug + DeserializeOwned + Send + 'static> Object for K {}

/// Returns a reference for Events about an object, without reading the object.
pub(crate) fn object_reference(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: namespace.map(str::to_owned),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

/// Returns the value of an annotation.
pub(crate) fn annotation<'m>(meta: &'m ObjectMeta, key: &str) -> Option<&'m str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Implements `Resource` for an object of kind `K` with a field `metadata`.
macro_rules! resource_of {
    ($object:ident<K $(, $other:ident)*>) => {
        impl<K: ::kube::Resource $(, $other)*> ::kube::Resource for $object<K $(, $other)*> {
            type DynamicType = K::DynamicType;
            type Scope = K::Scope;

            fn kind(kind: &Self::DynamicType) -> ::std::borrow::Cow<'_, str> {
                K::kind(kind)
            }

            fn group(kind: &Self::DynamicType) -> ::std::borrow::Cow<'_, str> {
                K::group(kind)
            }

            fn version(kind: &Self::DynamicType) -> ::std::borrow::Cow<'_, str> {
                K::version(kind)
            }

            fn plural(kind: &Self::DynamicType) -> ::std::borrow::Cow<'_, str> {
                K::plural(kind)
            }

            fn meta(&self) -> &::kube::api::ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ::kube::api::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
pub(super) use resource_of;
