//! Plans the change of one taint of a node as a JSON patch.

use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, RemoveOperation, jsonptr::PointerBuf};
use k8s_openapi::api::core::v1::{Node, Taint};
use serde_json::{Value, json};

use crate::{
    cluster,
    config::{FULL_TAINT, LAST_RESORT_TAINT},
    kubernetes::conditional_patch,
};

/// Keeps pods that prefer VMs on VMs that have room. The scheduler avoids nodes with this taint, because Spillway's toleration does not
/// tolerate the taint.
pub(in crate::controller) const LAST_RESORT: ManagedTaint =
    ManagedTaint { key: LAST_RESORT_TAINT, effect: "PreferNoSchedule" };

/// Closes virtual nodes to all pods that do not tolerate this taint.
pub(in crate::controller) const FULL: ManagedTaint = ManagedTaint { key: FULL_TAINT, effect: "NoSchedule" };

/// Marks a ghost that Spillway cordoned.
pub(in crate::controller) const GHOST: ManagedTaint = ManagedTaint { key: "spillway.dev/ghost", effect: "NoSchedule" };

/// A taint that the controller adds and removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::controller) struct ManagedTaint {
    pub(in crate::controller) key: &'static str,
    pub(in crate::controller) effect: &'static str,
}

impl ManagedTaint {
    /// Returns whether a node of the cache has this taint, with any value.
    pub(in crate::controller) fn is_on_observed(self, node: &cluster::Node) -> bool {
        node.has_taint(self.key, self.effect)
    }

    /// Returns whether a node has this taint, with any value.
    pub(super) fn is_on(self, node: &Node) -> bool {
        taints(node).is_some_and(|taints| taints.iter().any(|taint| self.matches(taint)))
    }

    fn matches(self, taint: &Taint) -> bool {
        taint.key == self.key && taint.effect == self.effect
    }

    /// Returns the patch that adds the taint to this version of the node, or removes the taint. Returns `None` if no change is necessary.
    pub(super) fn plan(self, node: &Node, desired: bool) -> Option<JsonPatch> {
        let index = taints(node).and_then(|taints| taints.iter().position(|taint| self.matches(taint)));
        let change = match (index, desired) {
            (Some(_), true) | (None, false) => return None,
            (Some(index), false) => {
                let path = PointerBuf::from_tokens(["spec", "taints", &index.to_string()]);
                PatchOperation::Remove(RemoveOperation { path })
            }
            (None, true) => {
                let taint = json!({"key": self.key, "effect": self.effect});
                let (path, value) = match taints(node) {
                    Some(_) => (PointerBuf::from_tokens(["spec", "taints", "-"]), taint),
                    None => (PointerBuf::from_tokens(["spec", "taints"]), Value::Array(vec![taint])),
                };
                PatchOperation::Add(AddOperation { path, value })
            }
        };
        // The index is valid for the observed version only.
        Some(conditional_patch(node.metadata.resource_version.as_deref()?, JsonPatch(vec![change])))
    }
}

fn taints(node: &Node) -> Option<&[Taint]> {
    node.spec.as_ref()?.taints.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(taints: Option<Value>) -> Node {
        let mut node = json!({"metadata": {"name": "n", "resourceVersion": "7"}, "spec": {}});
        if let Some(taints) = taints {
            node["spec"]["taints"] = taints;
        }
        serde_json::from_value(node).unwrap()
    }

    fn after(node: &Node, desired: bool) -> Option<Value> {
        let mut value = serde_json::to_value(node).unwrap();
        json_patch::patch(&mut value, &LAST_RESORT.plan(node, desired)?).unwrap();
        Some(value["spec"]["taints"].clone())
    }

    #[test]
    fn other_taints_do_not_change() {
        let azure = json!({"key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule"});
        // The same key with another effect is another taint.
        let alike = json!({"key": "spillway.dev/last-resort", "effect": "NoSchedule"});
        let ours = json!({"key": "spillway.dev/last-resort", "effect": "PreferNoSchedule"});
        let valued = json!({"key": "spillway.dev/last-resort", "value": "x", "effect": "PreferNoSchedule"});
        assert_eq!(after(&node(None), true), Some(json!([ours])));
        assert_eq!(after(&node(Some(json!([azure, alike]))), true), Some(json!([azure, alike, ours])));
        assert_eq!(after(&node(Some(json!([azure, ours, alike]))), false), Some(json!([azure, alike])));
        assert_eq!(after(&node(Some(json!([ours]))), true), None);
        assert_eq!(after(&node(Some(json!([valued]))), true), None, "the scheduler ignores the value");
        assert_eq!(after(&node(Some(json!([azure]))), false), None);
        assert_eq!(after(&node(None), false), None);
    }

    #[test]
    fn a_node_that_has_changed_is_not_written() {
        let patch = LAST_RESORT.plan(&node(None), true).unwrap();
        let mut newer = json!({"metadata": {"resourceVersion": "8"}, "spec": {}});
        json_patch::patch(&mut newer, &patch).unwrap();
        assert_eq!(newer["metadata"]["resourceVersion"], "7", "the API server refuses the older version");
    }
}
