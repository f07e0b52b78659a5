//! The taints that Spillway keeps on virtual nodes: one is put on or taken off at a time, and nothing else of a node is touched.

use json_patch::{
    AddOperation, Patch as JsonPatch, PatchOperation, RemoveOperation, TestOperation, jsonptr::PointerBuf,
};
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{FIELD_MANAGER, is_conflict};
use crate::config::{FULL_TAINT, LAST_RESORT_TAINT};

/// Keeps pods that prefer VMs on VMs while these have room: the scheduler avoids a node with it, and no toleration of ours covers it.
pub(super) const LAST_RESORT: Kept = Kept { key: LAST_RESORT_TAINT, effect: "PreferNoSchedule" };

/// Closes virtual nodes to every pod that does not tolerate it.
pub(super) const FULL: Kept = Kept { key: FULL_TAINT, effect: "NoSchedule" };

/// Says of a virtual node that nobody runs that its cordon is ours.
pub(super) const GHOST: Kept = Kept { key: "spillway.dev/ghost", effect: "NoSchedule" };

/// A taint of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) key: &'static str,
    pub(super) effect: &'static str,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// The node is as it should be, without us, or is no more.
    Right,
    /// We have written it.
    Changed,
    /// Somebody else writes to the node all the time.
    Conflict,
    /// The API server's answer lacks what we wrote: another webhook takes it away.
    Stripped,
}

/// How often a conflict is met with another look at the node.
const ATTEMPTS: usize = 5;

/// Puts the taint on a node, or takes it off. Everything that others write meanwhile stays.
///
/// # Errors
///
/// What the API server answers, but for conflicts.
pub(super) async fn write(nodes: &Api<Node>, name: &str, taint: Kept, wanted: bool) -> Result<Written, kube::Error> {
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    for _ in 0..ATTEMPTS {
        let Some(node) = nodes.get_opt(name).await? else { return Ok(Written::Right) };
        let Some(patch) = taint.plan(&node, wanted) else { return Ok(Written::Right) };
        match nodes.patch(name, &params, &Patch::Json::<()>(patch)).await {
            Ok(node) if taint.is_on(&node) == wanted => return Ok(Written::Changed),
            Ok(_) => return Ok(Written::Stripped),
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Written::Conflict)
}

impl Kept {
    fn is_ours(self, taint: &Taint) -> bool {
        taint.key == self.key && taint.effect == self.effect
    }

    fn is_on(self, node: &Node) -> bool {
        taints(node).is_some_and(|taints| taints.iter().any(|taint| self.is_ours(taint)))
    }

    /// What is to be written to this version of the node; nothing if it is as wanted.
    fn plan(self, node: &Node, wanted: bool) -> Option<JsonPatch> {
        let place = taints(node).and_then(|taints| taints.iter().position(|taint| self.is_ours(taint)));
        let change = match (place, wanted) {
            (Some(_), true) | (None, false) => return None,
            (Some(place), false) => {
                let path = PointerBuf::from_tokens(["spec", "taints", &place.to_string()]);
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
        // The list is patched by index: it has to be the one that was seen.
        let version = TestOperation {
            path: PointerBuf::from_tokens(["metadata", "resourceVersion"]),
            value: json!(node.metadata.resource_version),
        };
        Some(JsonPatch(vec![PatchOperation::Test(version), change]))
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

    fn after(node: &Node, wanted: bool) -> Option<Value> {
        let mut value = serde_json::to_value(node).unwrap();
        json_patch::patch(&mut value, &LAST_RESORT.plan(node, wanted)?).unwrap();
        Some(value["spec"]["taints"].clone())
    }

    #[test]
    fn every_other_taint_stays_as_it_is() {
        let azure = json!({"key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule"});
        // The same key with another effect is another taint, and not ours.
        let alike = json!({"key": "spillway.dev/last-resort", "effect": "NoSchedule"});
        let ours = json!({"key": "spillway.dev/last-resort", "effect": "PreferNoSchedule"});
        let valued = json!({"key": "spillway.dev/last-resort", "value": "x", "effect": "PreferNoSchedule"});
        assert_eq!(after(&node(None), true), Some(json!([ours])));
        assert_eq!(after(&node(Some(json!([azure, alike]))), true), Some(json!([azure, alike, ours])));
        assert_eq!(after(&node(Some(json!([azure, ours, alike]))), false), Some(json!([azure, alike])));
        assert_eq!(after(&node(Some(json!([ours]))), true), None);
        assert_eq!(after(&node(Some(json!([valued]))), true), None, "the scheduler does not look at the value");
        assert_eq!(after(&node(Some(json!([azure]))), false), None);
        assert_eq!(after(&node(None), false), None);
    }

    #[test]
    fn a_node_that_has_changed_since_is_not_written() {
        let patch = LAST_RESORT.plan(&node(None), true).unwrap();
        let mut newer = json!({"metadata": {"resourceVersion": "8"}, "spec": {}});
        assert!(json_patch::patch(&mut newer, &patch).is_err());
    }
}
