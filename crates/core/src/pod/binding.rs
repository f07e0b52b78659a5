//! A borrowed view of what is read of a `v1.Binding`, by which a scheduler gives a pod its node.

use serde::Deserialize;

use super::{Metadata, Text, from_map};

/// The parts of a `v1.Binding` that are read.
#[derive(Debug, Default, Deserialize)]
#[serde(remote = "Self")]
pub struct Binding<'a> {
    /// `metadata`: the pod's names, and annotations that are merged into the pod's.
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
    /// The node's name.
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
}

from_map!(Binding<'a>, BindingTarget<'a>);

impl Binding<'_> {
    /// The node that the pod is to run on.
    pub fn node(&self) -> Option<&str> {
        let target = self.target.as_ref()?;
        let is_node = matches!(target.kind.as_deref(), None | Some("" | "Node"));
        target.name.as_deref().filter(|_| is_node)
    }

    /// The value of an annotation, if the binding has it.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.as_ref()?.annotations.as_ref()?.get(key)
    }
}
