//! An object of the API, decoded as far as it is read.

use std::{borrow::Cow, marker::PhantomData};

use kube::{Resource, api::ObjectMeta};
use serde::Deserialize;

/// An object of kind `K`. What `Spec` and `Status` do not name is skipped as it comes.
#[derive(Debug, Clone, Deserialize)]
#[serde(bound(deserialize = "Spec: Default + Deserialize<'de>, Status: Default + Deserialize<'de>"))]
pub(in crate::controller) struct Lean<K, Spec, Status> {
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: Spec,
    #[serde(default)]
    pub(super) status: Status,
    #[serde(skip)]
    pub(super) kind: PhantomData<K>,
}

impl<K: Resource<DynamicType = ()>, Spec, Status> Resource for Lean<K, Spec, Status> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind(kind: &()) -> Cow<'_, str> {
        K::kind(kind)
    }

    fn group(kind: &()) -> Cow<'_, str> {
        K::group(kind)
    }

    fn version(kind: &()) -> Cow<'_, str> {
        K::version(kind)
    }

    fn plural(kind: &()) -> Cow<'_, str> {
        K::plural(kind)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
