//! Pods between two watches: they got the toleration, left the unscheduled pods, and no watch of a virtual node has shown them yet.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::{cluster::PodStore, kubernetes::ObjectKey};

/// How long a pod that is no longer unscheduled counts as on its way to a virtual node.
pub(super) const IN_FLIGHT_GRACE: Duration = Duration::from_secs(5);

/// Pods that got the toleration and were not yet seen on a virtual node. The value is when they were first seen to be scheduled.
#[derive(Debug, Default)]
pub(super) struct InFlight(HashMap<ObjectKey, Option<Instant>>);

impl InFlight {
    /// Adds pods that get the toleration now.
    pub(super) fn extend(&mut self, pods: impl Iterator<Item = ObjectKey>) {
        self.0.extend(pods.map(|key| (key, None)));
    }

    /// Removes pods that arrived on a virtual node, and those that went elsewhere.
    pub(super) fn update(&mut self, pods: &PodStore, now: Instant) {
        self.0.retain(|key, scheduled| {
            if pods.unscheduled_pod(key).is_some() {
                *scheduled = None;
                return true;
            }
            let scheduled = *scheduled.get_or_insert(now);
            now.duration_since(scheduled) < IN_FLIGHT_GRACE && pods.virtual_pod(key).is_none()
        });
    }

    /// Pods that are no longer unscheduled.
    pub(super) fn scheduled(&self) -> impl Iterator<Item = &ObjectKey> {
        self.0.iter().filter(|(_, scheduled)| scheduled.is_some()).map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::testing::{Cluster, unchanged},
        *,
    };

    #[test]
    fn a_pod_between_two_watches_counts_toward_the_cap() {
        let mut cluster =
            Cluster::configured("profiles: {autoscaled: {maxPods: 1}}").pod("shop", "a", Some(900), unchanged);
        let (name, start) = (ObjectKey::new("shop", "let"), Instant::now());
        let there = |names: &[&str]| {
            let pod = |name: &&str| json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"nodeName": "virtual", "containers": []}});
            PodStore::of(&names.iter().map(pod).collect::<Vec<_>>(), &["virtual"])
        };
        let mut due = |after: Duration, names: &[&str]| {
            let mut in_flight = InFlight([(name.clone(), Some(start))].into());
            in_flight.update(&there(names), start + after);
            cluster.in_flight = in_flight;
            cluster.due().len()
        };
        assert_eq!(due(Duration::from_secs(4), &["another"]), 0, "it has left and not been seen to arrive");
        assert_eq!(due(Duration::from_secs(4), &["let"]), 1, "the watch of the virtual node counts it from now on");
        assert_eq!(due(IN_FLIGHT_GRACE, &[]), 1, "it has gone elsewhere");
        let mut in_flight = InFlight([(name.clone(), None)].into());
        in_flight.update(&there(&[]), start);
        assert_eq!(in_flight.scheduled().collect::<Vec<_>>(), [&name], "however long it had waited before it left");
    }
}
