//! Annotations on the binding of a pod to a virtual node. They make a ReplicaSet that scales in remove that pod first.
//!
//! The API server merges a Binding's annotations into the pod in the write that binds it, and overwrites existing ones
//! (kubernetes `pkg/registry/core/pod/storage/storage.go`, `setPodNodeAndMetadata`). So Spillway needs no second write,
//! and a pod on a virtual node never lacks them. Only ReplicaSets use the deletion cost (decision 36).

use json_patch::Patch as JsonPatch;

use super::patch::PatchBuilder;
use crate::{keys::PLACED_ON, pod::Binding};

/// Annotation with the deletion cost. A ReplicaSet removes pods with the lowest cost first (Kubernetes, "ReplicaSet",
/// pod deletion cost).
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Returns the JSON patch of a Binding to a virtual node, or `None` if it already has all annotations.
///
/// A cost of 0 sets no deletion cost. Spillway keeps the deletion cost that a pod or a Binding already has.
pub fn binding_patch(binding: &Binding<'_>, pod_has_cost: bool, cost: i32) -> Option<JsonPatch> {
    let sets_cost = cost != 0 && !pod_has_cost && binding.annotation(DELETION_COST).is_none();
    let text = cost.to_string();
    let entries = [sets_cost.then_some((DELETION_COST, text.as_str())), Some((PLACED_ON, "virtual"))];
    let mut patch = PatchBuilder::new();
    // A binding without metadata names no pod. The API server sends no such binding.
    let annotations = binding.metadata.as_ref()?.annotations.as_ref();
    patch.set_entries("/metadata/annotations", annotations, entries.into_iter().flatten());
    patch.finish()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*, sample::select};
    use serde_json::{Value, json};

    use super::*;

    fn after(binding: &Value, pod_has_cost: bool, cost: i32) -> Value {
        let text = binding.to_string();
        let view: Binding<'_> = serde_json::from_str(&text).unwrap();
        let mut after = binding.clone();
        if let Some(patch) = binding_patch(&view, pod_has_cost, cost) {
            json_patch::patch(&mut after, &patch).unwrap();
        }
        after
    }

    #[test]
    fn bound_pods_get_the_deletion_cost_unless_they_have_one() {
        let bare = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "v"}});
        let annotations = |binding: Value| binding["metadata"]["annotations"].clone();
        assert_eq!(annotations(after(&bare, false, -100)), json!({DELETION_COST: "-100", PLACED_ON: "virtual"}));
        assert_eq!(annotations(after(&bare, true, -100)), json!({PLACED_ON: "virtual"}));
        assert_eq!(annotations(after(&bare, false, 0)), json!({PLACED_ON: "virtual"}));
        let own = json!({"metadata": {"annotations": {DELETION_COST: "7"}}, "target": {"name": "v"}});
        assert_eq!(annotations(after(&own, false, -100)), json!({DELETION_COST: "7", PLACED_ON: "virtual"}));
    }

    proptest! {
        #[test]
        fn every_binding_keeps_its_own_annotations(
            own in proptest::option::of(btree_map(select(vec![DELETION_COST, PLACED_ON, "a/b", "~", "x"]), "[a-z\"\\\\]{0,4}", 0..4)),
            pod_has_cost: bool, cost: i32,
        ) {
            let mut binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "v"}});
            if let Some(own) = &own {
                binding["metadata"]["annotations"] = json!(own);
            }
            let once = after(&binding, pod_has_cost, cost);
            prop_assert_eq!(&once["metadata"]["annotations"][PLACED_ON], "virtual");
            for (key, value) in own.iter().flatten().filter(|(key, _)| **key != PLACED_ON) {
                prop_assert_eq!(&once["metadata"]["annotations"][key], value);
            }
            prop_assert_eq!(&after(&once, pod_has_cost, cost), &once);
        }
    }
}
