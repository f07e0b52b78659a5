//! A node, as far as overflow is concerned.

use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde::Deserialize;

use super::{super::events::reference, Requests};
use crate::{
    config::Selector,
    eligibility::V2_LABEL,
    lean,
    pod::{NodeView, Quantity},
};

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
    pub(in crate::controller) fn read(Lean { metadata, spec, status, .. }: Lean) -> Option<Self> {
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

    /// Whether this selects it.
    pub(in crate::controller) fn is_virtual(&self, selector: &Selector) -> bool {
        self.label(&selector.key) == Some(&selector.value)
    }

    /// Whether it is a virtual node of the second generation, if it is one.
    pub(in crate::controller) fn is_second_generation(&self) -> bool {
        self.label(V2_LABEL.0) == Some(V2_LABEL.1)
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
        core::ObjectReference { uid: self.uid.clone(), ..reference("v1", "Node", None, &self.name) }
    }
}

/// A node, decoded as far as it is read: most of one is the list of its images.
pub(in crate::controller) type Lean = lean::Lean<core::Node, LeanSpec, LeanStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
pub(in crate::controller) struct LeanSpec {
    taints: Option<Vec<core::Taint>>,
    unschedulable: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(in crate::controller) struct LeanStatus {
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
    fn what_is_not_read_of_a_node_is_not_decoded() {
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
