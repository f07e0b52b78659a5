//! The fields of a Node that Spillway reads.

use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde::Deserialize;

use super::pod::Requests;
use crate::{
    config::Selector,
    eligibility::{Generation, V2_LABEL, VirtualNode},
    kubernetes::{PartialObject, object_reference},
    pod::{NodeView, Quantity},
};

/// The label of first-generation virtual nodes. Second-generation nodes may have it too.
const V1_LABEL: (&str, &str) = ("type", "virtual-kubelet");

/// A node.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Node {
    /// `metadata.name`
    pub(crate) name: String,
    /// `metadata.uid`
    pub(crate) uid: Option<String>,
    /// `metadata.labels`
    pub(crate) labels: Vec<(String, String)>,
    /// `spec.taints`
    pub(crate) taints: Vec<core::Taint>,
    /// `spec.unschedulable`
    pub(crate) is_cordoned: bool,
    /// The time since which the node is Ready. `None` if it is not.
    pub(crate) ready_since: Option<Timestamp>,
    /// CPU and memory of `status.allocatable`.
    pub(crate) allocatable: Requests,
    /// `status.allocatable.pods`
    pub(crate) pods: i128,
}

impl Node {
    /// Reads a node. Returns `None` if it has no name.
    pub(crate) fn read(NodeObject { metadata, spec, status, .. }: NodeObject) -> Option<Self> {
        let ready = status.conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
        let Allocatable { cpu, memory, pods } = status.allocatable;
        let amount = |amount: Option<String>| amount.and_then(|text| Quantity::parse(&text).ok()).unwrap_or_default();
        Some(Self {
            name: metadata.name?,
            uid: metadata.uid,
            labels: metadata.labels.unwrap_or_default().into_iter().collect(),
            taints: spec.taints.unwrap_or_default(),
            is_cordoned: spec.unschedulable.unwrap_or_default(),
            ready_since: ready
                .filter(|condition| condition.status == "True")
                .map(|condition| condition.last_transition_time.map_or(Timestamp::UNIX_EPOCH, |time| time.0)),
            allocatable: Requests { cpu: amount(cpu), memory: amount(memory) },
            pods: amount(pods).units(),
        })
    }

    /// Returns whether the selector matches the node.
    pub(crate) fn is_virtual(&self, selector: &Selector) -> bool {
        self.label(&selector.key) == Some(&selector.value)
    }

    /// Returns whether a virtual node is of the second generation.
    pub(crate) fn is_second_generation(&self) -> bool {
        self.label(V2_LABEL.0) == Some(V2_LABEL.1)
    }

    /// Returns the value of a label.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Returns whether the node has this taint, with any value.
    pub(crate) fn has_taint(&self, key: &str, effect: &str) -> bool {
        self.taints.iter().any(|taint| taint.key == key && taint.effect == effect)
    }

    /// Returns the view that node affinity and node selectors match.
    pub(crate) fn view(&self) -> NodeView<'_> {
        NodeView { name: &self.name, labels: &self.labels }
    }

    /// Returns whether the labels of the AKS add-on show a first-generation virtual node.
    pub(crate) fn is_first_generation(&self) -> bool {
        let is_virtual = self.label(V1_LABEL.0) == Some(V1_LABEL.1);
        is_virtual && VirtualNode::new(String::new(), self.labels.clone()).generation == Generation::V1
    }

    /// Returns a reference for Events.
    pub(crate) fn reference(&self) -> core::ObjectReference {
        core::ObjectReference { uid: self.uid.clone(), ..object_reference("v1", "Node", None, &self.name) }
    }
}

/// A Node of the API. Only the fields that Spillway reads are decoded: most of a Node is its list of images.
pub(crate) type NodeObject = PartialObject<core::Node, NodeSpec, NodeStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct NodeSpec {
    taints: Option<Vec<core::Taint>>,
    unschedulable: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct NodeStatus {
    conditions: Option<Vec<Condition>>,
    #[serde(default)]
    allocatable: Allocatable,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    last_transition_time: Option<Time>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Allocatable {
    cpu: Option<String>,
    memory: Option<String>,
    pods: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unused_fields_of_a_node_are_not_decoded() {
        let status = json!({
            "allocatable": {"cpu": "3860m", "memory": "12Gi", "pods": "110", "ephemeral-storage": "119703055367"},
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T12:00:00Z", "reason": 1}],
            "images": "not even a list",
        });
        let node = json!({"metadata": {"name": "vm", "labels": {"a": "b"}}, "spec": {"podCIDR": 1}, "status": status});
        let node = Node::read(serde_json::from_value(node).unwrap()).unwrap();
        assert_eq!((node.name.as_str(), node.label("a"), node.pods), ("vm", Some("b"), 110));
        assert_eq!(node.ready_since, Some("2026-01-01T12:00:00Z".parse().unwrap()));
        let amount = |text| Quantity::parse(text).unwrap();
        assert_eq!(node.allocatable, Requests { cpu: amount("3860m"), memory: amount("12Gi") });
    }
}
