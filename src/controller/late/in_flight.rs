//! Pods between two watches. They have the toleration and a node, but the watch of the virtual node has not reported them yet.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::{cluster::PodStore, kubernetes::ObjectKey};

/// How long a scheduled pod counts toward virtual nodes before the watch of a virtual node reports the pod.
pub(super) const IN_FLIGHT_GRACE: Duration = Duration::from_secs(5);

/// Pods that got the toleration and were not yet observed on a virtual node. The value is when the controller first saw them scheduled.
#[derive(Debug, Default)]
pub(super) struct InFlight(HashMap<ObjectKey, Option<Instant>>);

impl InFlight {
    /// Adds pods that get the toleration now.
    pub(super) fn extend(&mut self, pods: impl Iterator<Item = ObjectKey>) {
        self.0.extend(pods.map(|key| (key, None)));
    }

    /// Removes pods that were observed on a virtual node, and pods that were bound to other nodes.
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
        assert_eq!(
            due(Duration::from_secs(4), &["another"]),
            0,
            "the pod is scheduled, but not observed on a virtual node"
        );
        assert_eq!(due(Duration::from_secs(4), &["let"]), 1, "the watch of the virtual node reports the pod now");
        assert_eq!(due(IN_FLIGHT_GRACE, &[]), 1, "the pod was bound to another node");
        let mut in_flight = InFlight([(name.clone(), None)].into());
        in_flight.update(&there(&[]), start);
        assert_eq!(
            in_flight.scheduled().collect::<Vec<_>>(),
            [&name],
            "the waiting time before scheduling does not count"
        );
    }
}
