//! The inputs of a round of late burst.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::{super::taints::FULL, in_flight::InFlight};
use crate::{
    burst::{self, DECISION},
    cluster::{Node, PodStore, ScaleUps, Snapshot, UnscheduledPod},
    config::{Configuration, Mode, Overrides, Settings},
    kubernetes::{Backoff, ObjectKey, Store},
};

/// Inputs of a plan.
pub(super) struct Observation<'o> {
    pub(super) now: Timestamp,
    /// The same time on the monotonic clock.
    pub(super) instant: Instant,
    pub(super) configuration: &'o Configuration,
    pub(super) snapshot: &'o Snapshot,
    pub(super) pods: &'o PodStore,
    pub(super) nodes: &'o Store<Node>,
    pub(super) in_flight: &'o InFlight,
    /// Pods for which an autoscaler announced a VM, with the time of the announcement.
    pub(super) scale_up_signals: &'o ScaleUps,
    /// Pods whose last write failed.
    pub(super) backoff: &'o Backoff,
    /// `true` if this round may give the toleration.
    pub(super) may_apply: bool,
}

impl Observation<'_> {
    /// Returns whether all inputs have arrived. The plan needs all nodes and signals to find VMs that are being added, and all pods on
    /// virtual nodes to apply the caps.
    pub(super) fn is_complete(&self) -> bool {
        let selector = &self.configuration.virtual_nodes.selector;
        self.scale_up_signals.is_listed() && self.pods.has_synced_virtual_pods(self.nodes, selector)
    }

    /// Returns the settings of a pod, or `None` if its namespace has not opted in.
    pub(super) fn settings(&self, key: &ObjectKey, pod: &UnscheduledPod) -> Option<Settings<'_>> {
        let namespace = self.snapshot.namespace(&key.namespace)?;
        self.configuration.settings(&namespace.profile, &namespace.overrides, &overrides(pod)).known()
    }

    /// Returns whether no virtual node accepts pods that have the toleration.
    pub(super) fn is_closed(&self) -> bool {
        let selector = &self.configuration.virtual_nodes.selector;
        let is_open = |node: &Node| node.ready_since.is_some() && !node.is_cordoned && !FULL.is_on_observed(node);
        !self.nodes.values().filter(|node| node.is_virtual(selector)).any(is_open)
    }

    /// Returns the number of pods by namespace that are on virtual nodes, or may be bound to one at any moment.
    pub(super) fn overflowing(&self) -> BTreeMap<&str, u64> {
        // A pod that has ended does not count toward the cap, although its failure counts for the breaker.
        let there = self.pods.on_virtual_nodes().filter(|(_, _, pod)| !pod.has_ended);
        let there = there.map(|(key, _, _)| key.namespace.as_str());
        let nodes = &self.configuration.virtual_nodes;
        let is_tolerating = |pod: &UnscheduledPod| {
            pod.annotation(DECISION) == Some(Mode::Late.as_str())
                && pod.pod().is_none_or(|view| burst::late_toleration(view, nodes).is_none())
        };
        let tolerating = self.pods.unscheduled().filter(|(_, pod)| is_tolerating(pod));
        let tolerating = tolerating.map(|(key, _)| key.namespace.as_str());
        let in_flight = self.in_flight.scheduled().map(|key| key.namespace.as_str());
        let mut counts = BTreeMap::<&str, u64>::new();
        for namespace in there.chain(tolerating).chain(in_flight) {
            *counts.entry(namespace).or_default() += 1;
        }
        counts
    }
}

pub(super) fn overrides(pod: &UnscheduledPod) -> Overrides {
    Overrides::read(pod.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())))
}
