//! What is counted of the overflow to virtual nodes, by the controller.

use std::collections::BTreeMap;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::labels;

labels!(ActionLabels { action, result });
labels!(StateLabels { state });
labels!(CauseLabels { cause });
labels!(DecisionLabels { decision });

/// How many pods marked `late` are unschedulable, by what becomes of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Late {
    /// Their time has not come.
    pub waiting: u64,
    /// It has, but a VM seems to be on its way.
    pub coming: u64,
    /// It has, but virtual nodes take nobody.
    pub closed: u64,
    /// It has, but their namespace has as many on virtual nodes as it may.
    pub capped: u64,
    /// It has, and they are next.
    pub paced: u64,
}

/// Metrics of the overflow.
#[derive(Debug, Clone, Default)]
pub struct OverflowMetrics {
    actions: Family<ActionLabels, Counter>,
    late: Family<StateLabels, Gauge>,
    closed: Family<CauseLabels, Gauge>,
    failing: Gauge,
    missed: Family<DecisionLabels, Gauge>,
}

impl OverflowMetrics {
    /// Registered, and all at zero.
    pub fn new(r: &mut Registry) -> Self {
        let metrics = Self::default();
        r.register("actions", "What the controller has done to nodes and pods, by result", metrics.actions.clone());
        r.register(
            "late_pods",
            "Unschedulable pods of mode late, by state: waiting, coming (a VM is on its way), closed, capped, paced",
            metrics.late.clone(),
        );
        r.register(
            "virtual_nodes_closed",
            "Whether virtual nodes are closed to new pods, by cause: cap, breaker",
            metrics.closed.clone(),
        );
        r.register(
            "virtual_pods_failing",
            "Pods bound to virtual nodes of late that have failed to start",
            metrics.failing.clone(),
        );
        r.register(
            "missed_pods",
            "Scheduled pods that the webhook should have seen and has not, by what would be decided on them",
            metrics.missed.clone(),
        );
        metrics
    }

    /// What only a leader knows is not known here.
    pub fn forget(&self) {
        self.late.clear();
        self.closed.clear();
        self.failing.set(0);
        self.missed.clear();
    }

    /// Scheduled pods that the webhook has missed, by what would be decided on them; the words are of a closed set.
    pub fn missed(&self, counts: BTreeMap<&'static str, u64>) {
        self.missed.clear();
        for (decision, count) in counts {
            self.missed.get_or_create(&DecisionLabels { decision }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Whether virtual nodes are closed, and how many pods fail to start there.
    pub fn closed(&self, by_cap: bool, by_breaker: bool, failing: usize) {
        for (cause, is_closed) in [("cap", by_cap), ("breaker", by_breaker)] {
            self.closed.get_or_create(&CauseLabels { cause }).set(is_closed.into());
        }
        self.failing.set(i64::try_from(failing).unwrap_or(i64::MAX));
    }

    /// Pods of mode `late`, as they are now.
    pub fn late(&self, Late { waiting, coming, closed, capped, paced }: Late) {
        let states =
            [("waiting", waiting), ("coming", coming), ("closed", closed), ("capped", capped), ("paced", paced)];
        for (state, count) in states {
            self.late.get_or_create(&StateLabels { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Something was done to a node or a pod, or could not be; both words are of closed sets.
    pub fn acted(&self, action: &'static str, result: &'static str) {
        self.actions.get_or_create(&ActionLabels { action, result }).inc();
    }
}
