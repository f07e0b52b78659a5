//! A node, as far as overflow is concerned.

use k8s_openapi::{api::core::v1 as core, jiff::Timestamp};

use super::Requests;
use crate::{
    config::Selector,
    pod::{NodeView, Quantity},
};

/// The label that only virtual nodes of the second generation carry (microsoft/virtualnodesOnAzureContainerInstances README.md).
const SECOND_GENERATION: (&str, &str) = ("virtualization", "virtualnode2");

/// A node.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::controller) struct Node {
    /// `metadata.name`
    pub(in crate::controller) name: String,
    /// `metadata.uid`
    pub(in crate::controller) uid: Option<String>,
    /// `metadata.labels`
    pub(in crate::controller) labels: Vec<(String, String)>,
    /// `spec.taints`
    pub(in crate::controller) taints: Vec<core::Taint>,
    /// `spec.unschedulable`
    pub(in crate::controller) is_cordoned: bool,
    /// Since when it has been Ready; nothing if it is not.
    pub(in crate::controller) ready_since: Option<Timestamp>,
    /// What of `status.allocatable` matters.
    pub(in crate::controller) allocatable: Requests,
    /// How many pods it takes.
    pub(in crate::controller) pods: i128,
}

impl Node {
    /// Nothing for one without a name.
    pub(in crate::controller) fn read(node: core::Node) -> Option<Self> {
        let (spec, status) = (node.spec.unwrap_or_default(), node.status.unwrap_or_default());
        let ready = status.conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
        let allocatable = status.allocatable.unwrap_or_default();
        let amount =
            |name: &str| allocatable.get(name).and_then(|amount| Quantity::parse(&amount.0).ok()).unwrap_or_default();
        Some(Self {
            name: node.metadata.name?,
            uid: node.metadata.uid,
            labels: node.metadata.labels.unwrap_or_default().into_iter().collect(),
            taints: spec.taints.unwrap_or_default(),
            is_cordoned: spec.unschedulable.unwrap_or_default(),
            ready_since: ready
                .filter(|condition| condition.status == "True")
                .map(|condition| condition.last_transition_time.map_or(Timestamp::UNIX_EPOCH, |time| time.0)),
            allocatable: Requests { cpu: amount("cpu"), memory: amount("memory") },
            pods: amount("pods").units(),
        })
    }

    /// Whether this selects it.
    pub(in crate::controller) fn is_virtual(&self, selector: &Selector) -> bool {
        self.label(&selector.key) == Some(&selector.value)
    }

    /// Whether it is a virtual node of the second generation, if it is one.
    pub(in crate::controller) fn is_second_generation(&self) -> bool {
        self.label(SECOND_GENERATION.0) == Some(SECOND_GENERATION.1)
    }

    /// The value of a label.
    pub(in crate::controller) fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Whether it has this taint, with whatever value.
    pub(in crate::controller) fn has_taint(&self, key: &str, effect: &str) -> bool {
        self.taints.iter().any(|taint| taint.key == key && taint.effect == effect)
    }

    /// For matching.
    pub(in crate::controller) fn view(&self) -> NodeView<'_> {
        NodeView { name: &self.name, labels: &self.labels }
    }

    /// For events.
    pub(in crate::controller) fn reference(&self) -> core::ObjectReference {
        core::ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(self.name.clone()),
            uid: self.uid.clone(),
            ..core::ObjectReference::default()
        }
    }
}
