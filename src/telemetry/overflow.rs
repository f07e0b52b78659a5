//! What is counted of the overflow to virtual nodes, by the controller.

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::labels;

labels!(ActionLabels { action, result });

/// Metrics of the overflow.
#[derive(Debug, Clone, Default)]
pub struct OverflowMetrics {
    actions: Family<ActionLabels, Counter>,
}

impl OverflowMetrics {
    /// Registered, and all at zero.
    pub fn new(r: &mut Registry) -> Self {
        let metrics = Self::default();
        r.register("actions", "What the controller has done to nodes and pods, by result", metrics.actions.clone());
        metrics
    }

    /// What only a leader knows is not known here.
    pub fn forget(&self) {}

    /// Something was done to a node or a pod, or could not be; both words are of closed sets.
    pub fn acted(&self, action: &'static str, result: &'static str) {
        self.actions.get_or_create(&ActionLabels { action, result }).inc();
    }
}
