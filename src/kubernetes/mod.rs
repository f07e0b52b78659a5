//! What every part that talks to an API server needs: stores, the watch loop that fills them, paged lists, partial objects, conditional
//! writes, backoff and leader election.

mod backoff;
mod conditional;
mod election;
mod list;
mod partial;
mod store;
#[cfg(test)]
pub(crate) mod testing;
mod watch;

use std::fmt::Debug;

pub(crate) use backoff::Backoff;
pub(crate) use conditional::{conditional_patch, is_conflict, is_unanswered};
pub(crate) use election::LeaderElector;
pub use election::Leadership;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Resource, api::ObjectMeta};
pub(crate) use list::{list, list_metadata};
pub(crate) use partial::PartialObject;
use serde::de::DeserializeOwned;

pub(crate) use store::{Listing, ObjectKey, Refusal, Store};
pub(crate) use watch::{Sink, Watch};

/// Objects in one page of a list. What is not kept of them is gone before the next page comes.
pub(crate) const PAGE: u32 = 250;

/// A kind that can be listed and watched.
pub(crate) trait Object: Resource + Clone + Debug + DeserializeOwned + Send + 'static {}

impl<K: Resource + Clone + Debug + DeserializeOwned + Send + 'static> Object for K {}

/// A reference to an object, for events about it, as far as it is known without reading the object.
pub(crate) fn object_reference(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: namespace.map(str::to_owned),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

/// The value of an annotation.
pub(crate) fn annotation<'m>(meta: &'m ObjectMeta, key: &str) -> Option<&'m str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}
