//! Borrowed view of a `v1.Binding`, with which a scheduler assigns a pod to a node.

use serde::Deserialize;

use super::{Metadata, Text, from_map};

/// Fields of a `v1.Binding` that Spillway reads.
#[derive(Debug, Default, Deserialize)]
#[serde(remote = "Self")]
pub struct Binding<'a> {
    /// `metadata`: name and namespace of the pod, and annotations that the API server merges into the pod.
    #[serde(borrow)]
    pub metadata: Option<Metadata<'a>>,
    /// `target`
    #[serde(borrow)]
    pub target: Option<BindingTarget<'a>>,
}

/// `target` of a `v1.Binding`.
#[derive(Debug, Default, Deserialize)]
#[serde(remote = "Self")]
pub struct BindingTarget<'a> {
    /// `Node`, or empty, which means the same.
    #[serde(borrow)]
    pub kind: Option<Text<'a>>,
    /// Name of the node.
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
}

from_map!(Binding<'a>, BindingTarget<'a>);

impl Binding<'_> {
    /// Returns the name of the node, or `None` if the target is not a node.
    pub fn node(&self) -> Option<&str> {
        let target = self.target.as_ref()?;
        let is_node = matches!(target.kind.as_deref(), None | Some("" | "Node"));
        target.name.as_deref().filter(|_| is_node)
    }

    /// Returns the value of an annotation, or `None` if it is absent.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.as_ref()?.annotations.as_ref()?.get(key)
    }
}
