//! The state of one late pod, from its waiting time and the VMs that an autoscaler adds.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;

use super::{super::free_capacity::accepts, observation::Observation, scale_up::SETTLING};
use crate::{
    burst::{self, DECISION, UNSCHEDULABLE_SINCE},
    cluster::{Node, UnscheduledPod},
    config::Mode,
    kubernetes::ObjectKey,
    pod::Pod,
};

/// The least time until the next round for a pod.
const MIN_REMAINING: Duration = Duration::from_millis(100);

/// The most time that jitter adds.
const MAX_JITTER: Duration = Duration::from_secs(30);

/// The state of an unscheduled pod in late burst.
#[derive(Debug, PartialEq)]
pub(super) enum LateState {
    /// Late burst does not apply to the pod, or no longer applies.
    NotLate,
    /// The pod is unschedulable for the first time, and its clock has not started.
    New,
    /// The pod may still be scheduled to a VM.
    Waiting { remaining: Duration, is_scaling_up: bool },
    /// The waiting time of the pod is over.
    Due { waited: Duration },
}

impl LateState {
    /// Reads tolerations only if the result depends on them, because each round calls this function for all unscheduled pods.
    pub(super) fn of(
        key: &ObjectKey,
        pod: &UnscheduledPod,
        provisioning: &[Node],
        observation: &Observation<'_>,
    ) -> Self {
        if pod.annotation(DECISION) != Some(Mode::Late.as_str()) || !pod.is_unschedulable {
            return Self::NotLate;
        }
        let settings = observation.settings(key, pod).filter(|settings| settings.mode.value == Mode::Late);
        let Some(settings) = settings else { return Self::NotLate };
        let since = unschedulable_since(pod, observation.now);
        let waited = since.and_then(|since| Duration::try_from(observation.now.duration_since(since)).ok());
        let waited = waited.unwrap_or_default();
        let after = settings.late_after.value;
        let due = after + jitter(&pod.meta.uid, after);
        let remaining = |until: Duration| until.saturating_sub(waited).max(MIN_REMAINING);
        if since.is_some() && waited < due {
            return Self::Waiting { remaining: remaining(due), is_scaling_up: false };
        }
        let Some(view) = pod.pod() else { return Self::NotLate };
        if burst::late_toleration(view, &observation.configuration.virtual_nodes).is_none() {
            return Self::NotLate;
        }
        if since.is_none() {
            return Self::New;
        }
        if waited < settings.late_max && is_scaling_up(key, pod, view, provisioning, observation) {
            // The VM may fail to arrive long before `late.max`, so the next round must follow soon.
            return Self::Waiting { remaining: remaining(settings.late_max).min(SETTLING), is_scaling_up: true };
        }
        Self::Due { waited }
    }
}

/// Returns whether an autoscaler seems to add a VM for the pod.
fn is_scaling_up(
    key: &ObjectKey,
    pod: &UnscheduledPod,
    view: &Pod<'_>,
    provisioning: &[Node],
    observation: &Observation<'_>,
) -> bool {
    // Both times come from the API server's clock. A signal for an earlier pod of that name is older than this pod.
    let has_signal = observation.scale_up_signals.announced(key).is_some_and(|at| at >= pod.meta.created);
    pod.is_nominated || has_signal || provisioning.iter().any(|node| accepts(node, view))
}

/// Returns since when the pod has been unschedulable, as the controller recorded it.
///
/// Returns `None` if the record is missing, malformed, in the future, or older than the pod. An older record belongs to the pod from
/// which this pod was restored.
fn unschedulable_since(pod: &UnscheduledPod, now: Timestamp) -> Option<Timestamp> {
    let since: Timestamp = pod.annotation(UNSCHEDULABLE_SINCE)?.parse().ok()?;
    let created = pod.meta.created;
    (since >= created && since <= created.max(now + SETTLING)).then_some(since)
}

/// Spreads pods over up to a tenth of the waiting time. Always the same for the same pod.
fn jitter(uid: &str, after: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    let permille = u32::try_from(hasher.finish() % 1000).unwrap_or_default();
    MAX_JITTER.min(after / 10) * permille / 1000
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::{
        super::testing::{Cluster, before, node, now, unchanged},
        *,
    };
    use crate::telemetry::LatePodCounts;

    #[test]
    fn the_clock_starts_when_a_pod_is_first_unschedulable() {
        let plan = Cluster::new().pod("shop", "new", None, unchanged).plan();
        let clocks: Vec<_> = plan.clock_starts.iter().map(|clock| (clock.key.name.as_str(), clock.since)).collect();
        assert_eq!(clocks, [("new", now())]);
        assert_eq!(plan.due, []);
        for (condition, value) in [("reason", "SchedulingGated"), ("status", "True")] {
            let gated = |pod: &mut Value| pod["status"]["conditions"][0][condition] = value.into();
            let plan = Cluster::new().pod("shop", "held", None, gated).plan();
            assert_eq!((plan.clock_starts.len(), plan.counts), (0, LatePodCounts::default()), "{value}");
        }
        // A value that the controller cannot have written starts the clock again.
        for wrong in ["soon", "2026-01-01T13:00:00Z"] {
            let forged = |pod: &mut Value| pod["metadata"]["annotations"][UNSCHEDULABLE_SINCE] = wrong.into();
            assert_eq!(Cluster::new().pod("shop", "p", None, forged).plan().clock_starts.len(), 1, "{wrong}");
        }
    }

    #[test]
    fn a_clock_that_is_older_than_its_pod_starts_again() {
        let created =
            |at: Timestamp| move |pod: &mut Value| pod["metadata"]["creationTimestamp"] = json!(at.to_string());
        let restored = Cluster::new().pod("shop", "p", Some(900), created(before(899))).plan();
        assert_eq!((restored.due.len(), restored.clock_starts.len()), (0, 1));
        // The time that the controller writes is valid even if its clock is behind the API server's.
        let ahead = now() + Duration::from_secs(60);
        let cluster = Cluster::new().pod("shop", "p", None, created(ahead));
        let clock = cluster.plan().clock_starts.swap_remove(0);
        assert_eq!(clock.since, ahead);
        let started = |pod: &mut Value| {
            created(ahead)(pod);
            pod["metadata"]["annotations"][UNSCHEDULABLE_SINCE] = clock.since.to_string().into();
        };
        assert_eq!(Cluster::new().pod("shop", "p", None, started).plan().clock_starts, []);
    }

    #[test]
    fn a_pod_is_due_after_late_after_and_its_jitter() {
        let cluster = |waited| Cluster::new().pod("shop", "p", Some(waited), unchanged);
        let (early, late) = (cluster(179), cluster(200));
        assert_eq!(early.due(), <[&str; 0]>::default());
        let next = early.plan().requeue_after.unwrap();
        assert!((1..20).contains(&next.as_secs()), "{next:?}");
        assert_eq!(late.due(), ["p"]);
        let pod = &late.plan().due[0];
        assert_eq!((pod.waited.as_secs(), pod.owner.kind.as_deref()), (200, Some("ReplicaSet")));
        let jitters: BTreeSet<_> = (0..100).map(|uid| jitter(&uid.to_string(), Duration::from_secs(180))).collect();
        assert!(jitters.len() > 50 && jitters.iter().all(|jitter| jitter.as_secs() < 18), "{jitters:?}");
        assert_eq!(jitter("uid", Duration::from_secs(180)), jitter("uid", Duration::from_secs(180)));
    }

    #[test]
    fn only_late_pods_in_a_late_namespace_are_due() {
        let decided =
            |decision: &'static str| move |pod: &mut Value| pod["metadata"]["annotations"][DECISION] = decision.into();
        let tolerates = |pod: &mut Value| {
            pod["spec"]["tolerations"] = json!([{"key": "virtual-kubelet.io/provider", "operator": "Exists"}]);
        };
        let cluster = Cluster::new()
            .pod("shop", "stays", Some(900), decided("stay: HostPathVolume"))
            .pod("shop", "prefers", Some(900), decided("prefer"))
            .pod("shop", "tolerates", Some(900), tolerates)
            .pod("plain", "was-late", Some(900), unchanged)
            .pod("gone", "is-out", Some(900), unchanged);
        assert_eq!(cluster.due(), <[&str; 0]>::default());
        let by_itself = |pod: &mut Value| pod["metadata"]["annotations"]["spillway.dev/mode"] = "late".into();
        assert_eq!(Cluster::new().pod("plain", "p", Some(900), by_itself).due(), ["p"]);
    }

    #[test]
    fn a_pod_waits_for_a_provisioning_vm_up_to_late_max() {
        type Made = fn(u64) -> Cluster;
        let cases: [(&str, Made); 3] = [
            ("nominated", |waited| {
                Cluster::new().pod("shop", "p", Some(waited), |pod| pod["status"]["nominatedNodeName"] = "vm".into())
            }),
            ("announced", |waited| Cluster {
                scale_up_signals: vec![(ObjectKey::new("shop", "p"), before(waited - 30))],
                ..Cluster::new().pod("shop", "p", Some(waited), unchanged)
            }),
            ("just ready", |waited| {
                let mut cluster = Cluster::new().pod("shop", "p", Some(waited), unchanged);
                cluster.nodes.push(node("vm", &json!({}), 14));
                cluster
            }),
        ];
        for (case, cluster) in cases {
            let plan = cluster(599).plan();
            assert_eq!((plan.due.len(), plan.counts.coming), (0, 1), "{case}");
            assert!(plan.requeue_after.unwrap() <= Duration::from_secs(1), "{case}");
            assert_eq!(cluster(600).due(), ["p"], "{case}");
        }
        // These do not count: a signal for an earlier pod of that name, a VM that settled long ago, a VM that does not accept the pod.
        let mut cluster = Cluster::new().pod("shop", "p", Some(300), unchanged);
        cluster.scale_up_signals = vec![(ObjectKey::new("shop", "p"), before(301))];
        cluster.nodes.push(node("old", &json!({}), 15));
        let mut tainted = node("tainted", &json!({}), 1);
        tainted["spec"] = json!({"taints": [{"key": "gpu", "effect": "NoSchedule"}]});
        cluster.nodes.push(tainted);
        assert_eq!(cluster.due(), ["p"]);
    }

    #[test]
    fn a_scale_up_signal_counts_from_the_creation_of_the_pod() {
        let old = |pod: &mut Value| pod["metadata"]["creationTimestamp"] = json!(before(310).to_string());
        let mut cluster = Cluster::new().pod("shop", "p", Some(300), old);
        cluster.scale_up_signals = vec![(ObjectKey::new("shop", "p"), before(305))];
        assert_eq!(cluster.plan().counts.coming, 1);
        cluster.scale_up_signals[0].1 = before(311);
        assert_eq!(cluster.due(), ["p"]);
    }
}
