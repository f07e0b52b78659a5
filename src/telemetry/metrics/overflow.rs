//! Metrics of the overflow to virtual nodes, which the controller sets.

use std::collections::BTreeMap;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::labels::labels;

labels!(ActionLabels { action, result });
labels!(StateLabels { state });
labels!(CauseLabels { cause });
labels!(DecisionLabels { decision });
labels!(ProblemLabels { problem });

/// The actions of the controller, and their results.
const ACTIONS: [(&[&str], &[&str]); 4] = [
    (&["add_taint", "remove_taint"], &["success", "conflict", "stripped", "failure"]),
    (&["cordon", "uncordon"], &["success", "conflict", "failure"]),
    (&["start_clock", "burst", "heal"], &["success", "conflict", "failure"]),
    (&["evict"], &["success", "gone", "protected", "recent", "refused", "unproven", "blocked", "failed"]),
];

/// The decisions on missed pods.
const DECISIONS: [&str; 7] = ["prefer", "late", "bridge", "require", "stay", "opted_out", "unknown"];

/// Number of unschedulable pods in mode `late`, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LatePodCounts {
    /// `late-after` has not passed yet.
    pub waiting: u64,
    /// `late-after` has passed, but the node autoscaler seems to add a VM.
    pub coming: u64,
    /// `late-after` has passed, but virtual nodes are closed.
    pub closed: u64,
    /// `late-after` has passed, but the namespace has reached its maximum of pods on virtual nodes.
    pub capped: u64,
    /// `late-after` has passed, and the pods overflow next.
    pub paced: u64,
    /// `late-after` has passed, but the API server refused the toleration. The controller retries with backoff.
    pub refused: u64,
}

/// Metrics of the overflow.
#[derive(Debug, Clone, Default)]
pub struct OverflowMetrics {
    actions: Family<ActionLabels, Counter>,
    late: Family<StateLabels, Gauge>,
    closed: Family<CauseLabels, Gauge>,
    failing: Gauge,
    missed: Family<DecisionLabels, Gauge>,
    problems: Family<ProblemLabels, Gauge>,
    with_kube_proxy: Gauge,
    prefer_drains: Gauge,
    while_vms_have_room: Gauge,
}

/// Counts of conditions that need attention.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AdviceCounts {
    /// Virtual nodes with a taint that Spillway's toleration does not match.
    pub not_tolerated: u64,
    /// Virtual nodes that are close to their maximum number of pods.
    pub nearly_full: u64,
    /// Pods on virtual nodes with a kube-proxy.
    pub with_kube_proxy: u64,
    /// Namespaces in mode `prefer` in a cluster with a node autoscaler.
    pub prefer_drains: u64,
    /// Pods on virtual nodes that would fit on VMs.
    pub while_vms_have_room: u64,
}

impl OverflowMetrics {
    /// Registers the metrics, all at zero.
    pub fn new(r: &mut Registry) -> Self {
        let metrics = Self::default();
        r.register("actions", "Actions of the controller on nodes and pods, by result", metrics.actions.clone());
        r.register(
            "late_pods",
            "Unschedulable pods of mode late, by state: waiting, coming (the node autoscaler adds a VM), closed, capped, paced, refused",
            metrics.late.clone(),
        );
        r.register(
            "virtual_nodes_closed",
            "1 if virtual nodes are closed to new pods, by cause: cap, breaker",
            metrics.closed.clone(),
        );
        r.register(
            "virtual_pods_failing",
            "Pods that were recently bound to virtual nodes and failed to start",
            metrics.failing.clone(),
        );
        r.register(
            "missed_pods",
            "Scheduled pods that the webhook missed, by the decision that it would make",
            metrics.missed.clone(),
        );
        r.register(
            "virtual_node_problems",
            "Virtual nodes with a problem, by problem: ghost, taint_not_tolerated, nearly_full",
            metrics.problems.clone(),
        );
        r.register(
            "virtual_pods_with_kube_proxy",
            "Pods on virtual nodes that run a kube-proxy",
            metrics.with_kube_proxy.clone(),
        );
        r.register(
            "namespaces_prefer_with_autoscaler",
            "Namespaces in mode prefer in a cluster with a node autoscaler, which may drain VMs onto virtual nodes",
            metrics.prefer_drains.clone(),
        );
        r.register(
            "virtual_pods_while_vms_have_room",
            "Pods of Spillway on virtual nodes that would fit on the current VMs",
            metrics.while_vms_have_room.clone(),
        );
        for (actions, results) in ACTIONS {
            for &action in actions {
                for &result in results {
                    metrics.actions.get_or_create_owned(&ActionLabels { action, result });
                }
            }
        }
        metrics.reset();
        metrics
    }

    /// Sets the metrics of the leader to zero.
    pub fn reset(&self) {
        self.late(LatePodCounts::default());
        self.closed(false, false, 0);
        self.missed(BTreeMap::new());
        self.ghosts(0);
        self.advice(AdviceCounts::default());
    }

    /// Sets the number of ghosts: virtual nodes without a virtual kubelet.
    pub fn ghosts(&self, count: usize) {
        self.problem("ghost", count as u64);
    }

    /// Sets the counts of conditions that need attention.
    pub fn advice(&self, advice: AdviceCounts) {
        let AdviceCounts { not_tolerated, nearly_full, with_kube_proxy, prefer_drains, while_vms_have_room } = advice;
        self.problem("taint_not_tolerated", not_tolerated);
        self.problem("nearly_full", nearly_full);
        let set = |gauge: &Gauge, count| {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set(&self.with_kube_proxy, with_kube_proxy);
        set(&self.prefer_drains, prefer_drains);
        set(&self.while_vms_have_room, while_vms_have_room);
    }

    fn problem(&self, problem: &'static str, count: u64) {
        self.problems.get_or_create(&ProblemLabels { problem }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets the number of scheduled pods that the webhook has missed, by decision. The decisions come from a closed
    /// set.
    pub fn missed(&self, mut counts: BTreeMap<&'static str, u64>) {
        for decision in DECISIONS {
            let count = counts.remove(decision).unwrap_or_default();
            self.missed.get_or_create(&DecisionLabels { decision }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Sets whether virtual nodes are closed, and how many pods fail to start there.
    pub fn closed(&self, by_cap: bool, by_breaker: bool, failing: usize) {
        for (cause, is_closed) in [("cap", by_cap), ("breaker", by_breaker)] {
            self.closed.get_or_create(&CauseLabels { cause }).set(is_closed.into());
        }
        self.failing.set(i64::try_from(failing).unwrap_or(i64::MAX));
    }

    /// Sets the number of unschedulable pods in mode `late`.
    pub fn late(&self, LatePodCounts { waiting, coming, closed, capped, paced, refused }: LatePodCounts) {
        let states = [
            ("waiting", waiting),
            ("coming", coming),
            ("closed", closed),
            ("capped", capped),
            ("paced", paced),
            ("refused", refused),
        ];
        for (state, count) in states {
            self.late.get_or_create(&StateLabels { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Counts an action on a node or a pod. Both labels come from closed sets.
    pub fn acted(&self, action: &'static str, result: &'static str) {
        self.actions.get_or_create(&ActionLabels { action, result }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_exists_from_the_start_and_after_a_reset() {
        let mut registry = crate::telemetry::registry();
        let metrics = OverflowMetrics::new(&mut registry);
        let fresh = crate::telemetry::encode(&registry);
        for line in [
            r#"spillway_actions_total{action="add_taint",result="stripped"} 0"#,
            r#"spillway_actions_total{action="evict",result="unproven"} 0"#,
            r#"spillway_late_pods{state="closed"} 0"#,
            r#"spillway_virtual_nodes_closed{cause="breaker"} 0"#,
            r#"spillway_missed_pods{decision="unknown"} 0"#,
            r#"spillway_virtual_node_problems{problem="nearly_full"} 0"#,
        ] {
            assert!(fresh.contains(line), "{line}\n{fresh}");
        }
        metrics.late(LatePodCounts { closed: 1, ..LatePodCounts::default() });
        metrics.closed(true, true, 1);
        metrics.missed([("prefer", 1), ("stay", 2)].into());
        metrics.ghosts(1);
        metrics.advice(AdviceCounts { nearly_full: 1, with_kube_proxy: 1, ..AdviceCounts::default() });
        assert!(crate::telemetry::encode(&registry).contains(r#"spillway_missed_pods{decision="stay"} 2"#));
        metrics.reset();
        let samples = |text: &str| text.lines().map(ToOwned::to_owned).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(samples(&crate::telemetry::encode(&registry)), samples(&fresh));
    }
}
