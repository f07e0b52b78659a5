//! The objects of a watch that cannot be decoded.

use std::collections::BTreeSet;

use super::store::ObjectKey;
use crate::telemetry::UndecodableObjects;

/// The objects of a watch that cannot be decoded. They count until they change, are deleted, or the watch ends.
pub(super) struct Undecodable {
    resource: &'static str,
    names: BTreeSet<ObjectKey>,
    count: UndecodableObjects,
}

impl Undecodable {
    /// Starts without objects. `resource` is the plural name of the resource.
    pub(super) fn new(resource: &'static str, count: UndecodableObjects) -> Self {
        Self { resource, names: BTreeSet::new(), count }
    }

    /// Logs an object that cannot be decoded, unless it already counts.
    pub(super) fn log(&self, key: &ObjectKey, error: &str) {
        if !self.names.contains(key) {
            let (resource, namespace, name) = (self.resource, key.namespace.as_str(), key.name.as_str());
            tracing::warn!(resource, namespace, name, error, "object cannot be decoded, skipping it");
        }
    }

    /// Records whether an object can be decoded now.
    pub(super) fn set(&mut self, key: &ObjectKey, is_undecodable: bool) {
        if is_undecodable && self.names.insert(key.clone()) {
            self.count.add(1);
        } else if !is_undecodable && self.names.remove(key) {
            self.count.remove(1);
        }
    }

    /// Replaces the objects by those of a complete list.
    pub(super) fn replace(&mut self, names: BTreeSet<ObjectKey>) {
        self.count.remove(self.names.len());
        self.count.add(names.len());
        self.names = names;
    }
}

impl Drop for Undecodable {
    fn drop(&mut self) {
        self.count.remove(self.names.len());
    }
}
