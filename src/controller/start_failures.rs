//! Pods on virtual nodes that failed to start, and whose fault it is.
//!
//! A user can create pods that never start, for example with an image that does not exist. Such pods must close virtual nodes only to
//! their own namespace. So the failures of one namespace count for all at most half, unless Azure reports that it has no capacity.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::jiff::Timestamp;

use crate::{
    cluster::{FailureCause, PodStore, VirtualPod},
    config::Breaker,
};

/// The time in which a pod must start. A pod that takes longer counts as failed.
const START_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// How long a failure counts, from the binding of the pod. Failed pods may never be deleted, and newer pods show the present state.
const FAILURE_WINDOW: Duration = Duration::from_secs(30 * 60);

/// Numbers of pods that were bound within the failure window and failed to start.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct StartFailures {
    /// Pods for which Azure reports that it has no capacity or quota.
    without_capacity: usize,
    /// Other pods, by namespace.
    by_namespace: BTreeMap<String, usize>,
}

impl StartFailures {
    pub(super) fn of(pods: &PodStore, now: Timestamp) -> Self {
        let mut failures = Self::default();
        for (_, _, pod) in pods.on_virtual_nodes().filter(|(_, _, pod)| has_failed(pod, now)) {
            match pod.failure {
                FailureCause::NoCapacity => failures.without_capacity += 1,
                FailureCause::Unknown | FailureCause::Provider => {
                    *failures.by_namespace.entry(pod.meta.namespace.clone()).or_default() += 1;
                }
                FailureCause::Pod => {}
            }
        }
        failures
    }

    /// Returns the number that counts for all namespaces: each namespace counts for at most half of the threshold.
    pub(super) fn for_all(&self, Breaker { failures }: Breaker) -> usize {
        let max = (failures as usize).div_ceil(2);
        self.without_capacity + self.by_namespace.values().map(|count| (*count).min(max)).sum::<usize>()
    }

    /// Returns the number of a namespace if it alone reaches the threshold.
    pub(super) fn too_many(&self, namespace: &str, Breaker { failures }: Breaker) -> Option<usize> {
        let count = *self.by_namespace.get(namespace)?;
        (failures > 0 && count >= failures as usize).then_some(count)
    }
}

/// Returns whether a pod failed to start.
///
/// Pods of DaemonSets do not count. Virtual nodes run none (learn.microsoft.com/azure/aks/virtual-nodes, limitations), and Spillway does
/// not change them. A DaemonSet that tolerates every taint has pods on closed virtual nodes too, and these would keep the nodes closed.
fn has_failed(pod: &VirtualPod, now: Timestamp) -> bool {
    if pod.meta.controller.as_ref().is_some_and(|owner| owner.kind == "DaemonSet") {
        return false;
    }
    let since = Duration::try_from(now.duration_since(pod.bound)).unwrap_or_default();
    let is_late = !pod.has_started && since >= START_TIMEOUT;
    !pod.is_terminating && since < FAILURE_WINDOW && (pod.failure.is_of_provider() || is_late)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-01-01T12:00:00Z";

    fn pod(namespace: &str, name: &str, bound: u64, status: &Value) -> Value {
        let bound = (NOW.parse::<Timestamp>().unwrap() - Duration::from_secs(bound)).to_string();
        let mut status = status.clone();
        status["conditions"] = json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": bound}]);
        json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"nodeName": "v", "containers": []}, "status": status})
    }

    fn failed(bound: u64, status: &Value) -> bool {
        has_failed(&VirtualPod::of(&pod("shop", "p", bound, status)).unwrap(), NOW.parse().unwrap())
    }

    /// Returns the failures of so many pods of each namespace.
    fn failures(pods: &[(&str, usize, Value)]) -> StartFailures {
        let pods = pods.iter().flat_map(|(namespace, count, status)| {
            (0..*count).map(move |i| pod(namespace, &i.to_string(), 400, status))
        });
        StartFailures::of(&PodStore::of(&pods.collect::<Vec<_>>(), &["v"]), NOW.parse().unwrap())
    }

    fn waiting(reason: &str) -> Value {
        json!({"phase": "Pending", "containerStatuses": [{"name": "c", "state": {"waiting": {"reason": reason}}}]})
    }

    #[test]
    fn one_namespace_alone_closes_only_itself() {
        let breaker = Breaker { failures: 10 };
        let hanging = json!({"phase": "Pending"});
        let of_one = failures(&[("shop", 50, hanging.clone()), ("other", 4, hanging.clone())]);
        assert_eq!(of_one.for_all(breaker), 9);
        assert_eq!((of_one.too_many("shop", breaker), of_one.too_many("other", breaker)), (Some(50), None));
        let of_two = failures(&[("shop", 5, hanging.clone()), ("other", 5, hanging)]);
        assert_eq!(of_two.for_all(breaker), 10);
        assert_eq!(of_two.too_many("shop", Breaker { failures: 0 }), None, "the breaker is off");
    }

    #[test]
    fn a_lack_of_capacity_counts_in_full() {
        for message in [
            "{\"code\":\"x\"} ERROR CODE: ContainerGroupQuotaReached\n---",
            "Code=\"ServiceUnavailable\" Message=\"m\"",
        ] {
            let status = json!({"phase": "Pending", "reason": "ProviderFailed", "message": message});
            assert_eq!(failures(&[("shop", 12, status)]).for_all(Breaker { failures: 10 }), 12, "{message}");
        }
        let forged = "cannot pull example.com/quota:ContainerGroupQuotaReached";
        let status = json!({"phase": "Pending", "reason": "ProviderFailed", "message": forged});
        assert_eq!(failures(&[("shop", 12, status)]).for_all(Breaker { failures: 10 }), 5);
    }

    #[test]
    fn pods_that_cannot_start_anywhere_do_not_count() {
        for reason in ["ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError"] {
            let found = failures(&[("shop", 12, waiting(reason)), ("other", 12, waiting(reason))]);
            assert_eq!(found, StartFailures::default(), "{reason}");
        }
        let found = failures(&[("shop", 1, waiting("ContainerCreating"))]);
        assert_eq!(found.for_all(Breaker { failures: 10 }), 1);
    }

    #[test]
    fn a_pod_fails_by_start_timeout_or_by_provider() {
        assert!(!failed(299, &json!({"phase": "Pending"})) && failed(300, &json!({"phase": "Pending"})));
        assert!(!failed(900, &json!({"phase": "Running"})));
        assert!(failed(1, &json!({"phase": "Pending", "reason": "ProviderFailed"})));
        assert!(failed(1, &json!({"phase": "Failed", "reason": "ProviderFailed"})));
        assert!(!failed(1800, &json!({"phase": "Pending", "reason": "ProviderFailed"})), "too old");
        let mut of_a_daemon_set = VirtualPod::of(&pod("shop", "p", 300, &json!({"phase": "Pending"}))).unwrap();
        let owner = |kind: &str| Some(OwnerReference { kind: kind.to_owned(), ..OwnerReference::default() });
        of_a_daemon_set.meta.controller = owner("ReplicaSet");
        assert!(has_failed(&of_a_daemon_set, NOW.parse().unwrap()));
        of_a_daemon_set.meta.controller = owner("DaemonSet");
        assert!(!has_failed(&of_a_daemon_set, NOW.parse().unwrap()), "Spillway did not place it");
    }

    #[test]
    fn a_pod_has_started_with_its_first_init_or_app_container() {
        let failed = |statuses: &str, state: &str| {
            let mut status = json!({"phase": "Pending"});
            let image = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0});
            status[statuses] = json!([image]);
            let details = if state == "terminated" { json!({"exitCode": 0}) } else { json!({}) };
            status[statuses][0]["state"] = json!({state: details});
            failed(900, &status)
        };
        assert!(failed("initContainerStatuses", "waiting") && failed("containerStatuses", "waiting"));
        for statuses in ["initContainerStatuses", "containerStatuses"] {
            assert!(!failed(statuses, "running") && !failed(statuses, "terminated"), "{statuses}");
        }
    }
}
