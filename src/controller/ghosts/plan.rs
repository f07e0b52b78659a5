//! Finds the virtual nodes that are ghosts, and plans the next step for a node.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::super::taints::GHOST;
use crate::cluster::Node;

/// How long a pod must be missing before its node counts as a ghost. A StatefulSet replaces a pod of the same name within seconds.
const GHOST_AFTER: Duration = Duration::from_secs(25);

/// Since when the pods of nodes have been missing, by node name.
#[derive(Debug, Default)]
pub(super) struct MissingPods(HashMap<String, Instant>);

impl MissingPods {
    /// Records whether the pod of a node exists. Returns whether the node is a ghost: the pod was missing in each round for that time.
    pub(super) fn update(&mut self, node: &str, is_there: bool, now: Instant) -> bool {
        if is_there {
            self.0.remove(node);
            return false;
        }
        let since = *self.0.entry(node.to_owned()).or_insert(now);
        now.duration_since(since) >= GHOST_AFTER
    }

    /// Number of ghosts.
    pub(super) fn ghosts(&self, now: Instant) -> usize {
        self.0.values().filter(|since| now.duration_since(**since) >= GHOST_AFTER).count()
    }

    /// Returns when the next node becomes a ghost, if its pod stays missing.
    pub(super) fn next_ghost(&self, now: Instant) -> Option<Duration> {
        let remaining = self.0.values().map(|since| (*since + GHOST_AFTER).saturating_duration_since(now));
        remaining.filter(|remaining| !remaining.is_zero()).min()
    }

    /// Removes nodes that no longer exist.
    pub(super) fn retain(&mut self, nodes: &[Node]) {
        self.0.retain(|name, _| nodes.iter().any(|node| node.name == *name));
    }
}

/// The next step for a node. The taint marks a cordon as Spillway's, so that Spillway never undoes the cordon of another client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    AddTaint,
    Cordon,
    Uncordon,
    RemoveTaint,
}

impl Step {
    pub(super) fn next(node: &Node, should_be_cordoned: bool) -> Option<Self> {
        match (should_be_cordoned, GHOST.is_on_observed(node), node.is_cordoned) {
            // Another client's cordon stays, and a cordoned node needs no second cordon.
            (true, _, true) | (false, false, _) => None,
            (true, false, false) => Some(Self::AddTaint),
            (true, true, false) => Some(Self::Cordon),
            (false, true, true) => Some(Self::Uncordon),
            (false, true, false) => Some(Self::RemoveTaint),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(is_marked: bool, is_cordoned: bool) -> Node {
        let taints = if is_marked { json!([{"key": GHOST.key, "effect": GHOST.effect}]) } else { json!([]) };
        let spec = json!({"taints": taints, "unschedulable": is_cordoned});
        Node::read(serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": spec})).unwrap()).unwrap()
    }

    #[test]
    fn a_node_is_a_ghost_once_its_pod_is_missing_for_a_while() {
        let (mut missing, start) = (MissingPods::default(), Instant::now());
        assert!(!missing.update("v", false, start) && !missing.update("v", false, start + GHOST_AFTER / 2));
        assert_eq!(missing.ghosts(start + GHOST_AFTER / 2), 0);
        assert_eq!(
            (missing.next_ghost(start + GHOST_AFTER / 2), missing.next_ghost(start + GHOST_AFTER)),
            (Some(GHOST_AFTER / 2), None)
        );
        assert!(missing.update("v", false, start + GHOST_AFTER));
        assert_eq!(missing.ghosts(start + GHOST_AFTER), 1);
        assert!(
            !missing.update("v", true, start + GHOST_AFTER) && !missing.update("v", false, start + GHOST_AFTER),
            "the pod existed in between"
        );
        missing.retain(&[]);
        assert!(missing.0.is_empty());
    }

    #[test]
    fn only_cordons_of_spillway_are_undone() {
        for (desired, is_marked, is_cordoned, expected) in [
            (true, false, false, Some(Step::AddTaint)),
            (true, true, false, Some(Step::Cordon)),
            (true, true, true, None),
            (true, false, true, None),
            (false, true, true, Some(Step::Uncordon)),
            (false, true, false, Some(Step::RemoveTaint)),
            (false, false, true, None),
            (false, false, false, None),
        ] {
            assert_eq!(
                Step::next(&node(is_marked, is_cordoned), desired),
                expected,
                "{desired} {is_marked} {is_cordoned}"
            );
        }
    }
}
