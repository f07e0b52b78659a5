//! Plans a round of late burst: the pods whose clocks start, the pods that get the toleration, and the pods that must wait.

use std::{cell::LazyCell, collections::BTreeMap, time::Duration};

use json_patch::Patch as JsonPatch;
use k8s_openapi::{api::core::v1::ObjectReference, jiff::Timestamp};

use super::{
    super::start_failures::StartFailures,
    in_flight::IN_FLIGHT_GRACE,
    observation::{Observation, overrides},
    scale_up::provisioning_nodes,
    state::LateState,
};
use crate::{
    burst,
    cluster::UnscheduledPod,
    config::{Overrides, VirtualNodes},
    kubernetes::ObjectKey,
    telemetry::LatePodCounts,
};

/// The least time between two rounds that give the toleration. `lateRate` counts pods per second, so one round may use the whole rate.
pub(super) const MIN_ROUND_INTERVAL: Duration = Duration::from_secs(1);

/// The most clocks that are started in one round.
const MAX_STARTS: usize = 200;

/// Steps of a round.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Pods that are unschedulable for the first time.
    pub(super) clock_starts: Vec<ClockStart>,
    /// Pods that get the toleration.
    pub(super) due: Vec<DuePod>,
    /// Due pods that do not get the toleration, with the cause: one pod for each owner, by the owner's uid.
    pub(super) withheld: BTreeMap<String, Withheld>,
    pub(super) counts: LatePodCounts,
    /// The time until the next round, if nothing changes before.
    pub(super) requeue_after: Option<Duration>,
}

/// A pod whose clock starts.
#[derive(Debug, PartialEq)]
pub(super) struct ClockStart {
    pub(super) key: ObjectKey,
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) since: Timestamp,
}

/// A pod whose waiting time is over.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DuePod {
    pub(super) key: ObjectKey,
    pub(super) uid: String,
    pub(super) waited: Duration,
    pub(super) resource_version: String,
    pub(super) owner: ObjectReference,
    pub(super) overrides: Overrides,
    pub(super) patch: JsonPatch,
}

/// An Event for the owner of a pod that is due and does not get the toleration.
#[derive(Debug, PartialEq)]
pub(super) struct Withheld {
    pub(super) owner: ObjectReference,
    pub(super) note: String,
}

impl Plan {
    fn withhold(&mut self, key: &ObjectKey, pod: &UnscheduledPod, why: &str) {
        let owner = pod.meta.owner();
        self.withheld.entry(owner.uid.clone().unwrap_or_default()).or_insert_with(|| {
            let note = format!("pod {} stays unschedulable: {why}", key.name);
            Withheld { owner, note }
        });
    }

    fn requeue(&mut self, after: Duration) {
        self.requeue_after = Some(self.requeue_after.map_or(after, |next| next.min(after)));
    }
}

/// Plans a round. Returns `None` until all inputs have arrived.
pub(super) fn plan(observation: &Observation<'_>) -> Option<Plan> {
    if !observation.is_complete() {
        return None;
    }
    let mut plan = Plan::default();
    let selector = &observation.configuration.virtual_nodes.selector;
    let provisioning = provisioning_nodes(observation.nodes, selector, observation.now);
    let mut due = Vec::new();
    for (key, pod) in observation.pods.unscheduled() {
        let state = LateState::of(key, pod, &provisioning, observation);
        // This check precedes the limits: pods that back off must not delay other pods.
        let is_backing_off = observation.backoff.remaining(&pod.meta.uid, observation.instant).is_some();
        match state {
            LateState::NotLate => {}
            LateState::Waiting { remaining, is_scaling_up } => {
                plan.counts.waiting += u64::from(!is_scaling_up);
                plan.counts.coming += u64::from(is_scaling_up);
                plan.requeue(remaining);
            }
            LateState::New if is_backing_off => {}
            LateState::New => plan.clock_starts.push(ClockStart::of(key, pod, observation.now)),
            LateState::Due { .. } if is_backing_off => {
                plan.counts.refused += 1;
                plan.withhold(key, pod, "the write of the toleration failed, see the controller's log");
            }
            LateState::Due { waited } => due.push(Candidate { waited, key, pod }),
        }
    }
    plan.clock_starts = in_turn(plan.clock_starts, |start| &start.key.namespace);
    plan.clock_starts.truncate(MAX_STARTS);
    // In each turn, the pods that have waited longest come first.
    due.sort_by(|one, other| other.waited.cmp(&one.waited).then_with(|| one.key.cmp(other.key)));
    select(in_turn(due, |candidate| &candidate.key.namespace), observation, &mut plan);
    Some(plan)
}

impl ClockStart {
    fn of(key: &ObjectKey, pod: &UnscheduledPod, now: Timestamp) -> Self {
        Self {
            key: key.clone(),
            uid: pod.meta.uid.clone(),
            resource_version: pod.resource_version.clone(),
            // The API server's clock may be ahead of the controller's.
            since: now.max(pod.meta.created),
        }
    }
}

/// A pod that is due, before caps and rates apply.
struct Candidate<'o> {
    waited: Duration,
    key: &'o ObjectKey,
    pod: &'o UnscheduledPod,
}

impl Candidate<'_> {
    /// Returns a message if the pod's namespace has reached its cap of pods on virtual nodes.
    fn at_cap(
        &self,
        observation: &Observation<'_>,
        selected: u32,
        overflowing: impl Fn(&str) -> u64,
    ) -> Option<String> {
        let namespace = &self.key.namespace;
        let cap = observation.settings(self.key, self.pod)?.max_pods?;
        let count = overflowing(namespace) + u64::from(selected);
        let is_at_cap = count >= u64::from(cap);
        is_at_cap.then(|| format!("namespace {namespace} has {count} pods on virtual nodes, and maxPods is {cap}"))
    }

    /// Returns `None` if the pod already tolerates virtual nodes.
    fn accept(&self, nodes: &VirtualNodes) -> Option<DuePod> {
        let patch = burst::late_toleration(self.pod.pod()?, nodes)?;
        Some(DuePod {
            key: self.key.clone(),
            uid: self.pod.meta.uid.clone(),
            waited: self.waited,
            resource_version: self.pod.resource_version.clone(),
            owner: self.pod.meta.owner(),
            overrides: overrides(self.pod),
            patch,
        })
    }
}

/// Sorts pods so that namespaces take turns, and one namespace with many pods does not delay the others. Each namespace keeps the
/// order of its pods.
fn in_turn<T>(pods: Vec<T>, namespace: impl Fn(&T) -> &str) -> Vec<T> {
    let mut counts = BTreeMap::<String, usize>::new();
    let turn = |pod: &T| {
        let count = counts.entry(namespace(pod).to_owned()).or_default();
        *count += 1;
        *count
    };
    let turns: Vec<_> = pods.iter().map(turn).collect();
    let mut with_turn: Vec<_> = turns.into_iter().zip(pods).collect();
    // The sort is stable.
    with_turn.sort_by_key(|(turn, _)| *turn);
    with_turn.into_iter().map(|(_, pod)| pod).collect()
}

/// Selects as many pods as caps and rates permit.
fn select(due: Vec<Candidate<'_>>, observation: &Observation<'_>, plan: &mut Plan) {
    if due.is_empty() {
        return;
    }
    let is_closed = observation.is_closed();
    // Pods are counted only in namespaces with a cap.
    let overflowing = LazyCell::new(|| observation.overflowing());
    let overflowing = |namespace: &str| overflowing.get(namespace).copied().unwrap_or_default();
    let failures = LazyCell::new(|| StartFailures::of(observation.pods, observation.now));
    let (rate, breaker) = (observation.configuration.late_rate, observation.configuration.breaker);
    let mut selected = BTreeMap::<&str, u32>::new();
    for candidate in due {
        let Candidate { key, pod, .. } = candidate;
        let selected = selected.entry(&key.namespace).or_default();
        if is_closed {
            plan.counts.closed += 1;
            plan.withhold(key, pod, "virtual nodes are closed, or no virtual node is ready");
        } else if let Some(count) = failures.too_many(&key.namespace, breaker) {
            plan.counts.closed += 1;
            let why = format!(
                "{count} pods of namespace {} failed to start on virtual nodes, and breaker.failures is {}",
                key.namespace, breaker.failures
            );
            plan.withhold(key, pod, &why);
        } else if let Some(why) = candidate.at_cap(observation, *selected, overflowing) {
            plan.counts.capped += 1;
            plan.withhold(key, pod, &why);
            if observation.in_flight.scheduled().next().is_some() {
                plan.requeue(IN_FLIGHT_GRACE);
            }
        } else if !observation.may_apply
            || plan.due.len() >= rate.total.get() as usize
            || *selected >= rate.per_namespace.get()
        {
            plan.counts.paced += 1;
            plan.requeue(MIN_ROUND_INTERVAL);
        } else if let Some(accepted) = candidate.accept(&observation.configuration.virtual_nodes) {
            *selected += 1;
            plan.due.push(accepted);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::{
        super::testing::{Cluster, before, unchanged},
        *,
    };

    #[test]
    fn an_owner_of_withheld_pods_gets_one_note_a_round() {
        let mut cluster = Cluster::new();
        cluster.nodes.clear();
        for name in ["a", "b", "c"] {
            cluster = cluster.pod("shop", name, Some(900), unchanged);
        }
        let plan = cluster.plan();
        assert_eq!((plan.counts.closed, plan.withheld.len()), (3, 1));
    }

    #[test]
    fn pods_that_waited_longest_overflow_first_within_the_rate() {
        let mut cluster = Cluster::configured("lateRate: {total: 3, perNamespace: 2}");
        for (name, waited) in [("a", 210), ("b", 240), ("c", 270), ("d", 300)] {
            cluster = cluster.pod("shop", name, Some(waited), unchanged).pod(
                "other",
                &format!("{name}-too"),
                Some(waited - 1),
                unchanged,
            );
        }
        let plan = cluster.plan();
        let due: Vec<_> = plan.due.iter().map(|pod| pod.key.name.as_str()).collect();
        assert_eq!(due, ["d", "d-too", "c"]);
        assert_eq!((plan.counts.paced, plan.requeue_after), (5, Some(MIN_ROUND_INTERVAL)));
        cluster.may_apply = false;
        assert_eq!(cluster.due(), <[&str; 0]>::default(), "one round per interval");
    }

    #[test]
    fn a_namespace_with_many_pods_does_not_delay_others() {
        let mut cluster = Cluster::configured("lateRate: {total: 2, perNamespace: 2}");
        for number in 0..MAX_STARTS + 10 {
            cluster = cluster.pod("other", &format!("new-{number:03}"), None, unchanged);
        }
        cluster = cluster.pod("shop", "new", None, unchanged).pod("shop", "late", Some(200), unchanged);
        for name in ["a", "b", "c"] {
            cluster = cluster.pod("other", name, Some(900), unchanged);
        }
        assert_eq!(cluster.due(), ["a", "late"]);
        let plan = cluster.plan();
        assert_eq!(plan.clock_starts.len(), MAX_STARTS);
        assert!(plan.clock_starts.iter().any(|start| start.key.name == "new"));
    }

    #[test]
    fn pods_whose_writes_fail_do_not_delay_others() {
        let mut cluster = Cluster::configured("lateRate: {total: 1, perNamespace: 1}")
            .pod("shop", "refused", Some(900), unchanged)
            .pod("shop", "next", Some(300), unchanged);
        assert_eq!(cluster.due(), ["refused"]);
        cluster.backoff.start("refused", Instant::now());
        let plan = cluster.plan();
        assert_eq!(plan.due[0].key.name, "next");
        assert_eq!((plan.counts.refused, plan.counts.paced), (1, 0));
        assert!(plan.withheld["rs"].note.starts_with("pod refused stays"), "{:?}", plan.withheld);
        assert_eq!(plan.requeue_after, None, "the end of the backoff starts the next round");
        for number in 0..=MAX_STARTS {
            let name = format!("a{number:03}");
            cluster = cluster.pod("shop", &name, None, unchanged);
            if number < MAX_STARTS {
                cluster.backoff.start(&name, Instant::now());
            }
        }
        assert_eq!(cluster.plan().clock_starts.len(), 1);
    }

    #[test]
    fn closed_virtual_nodes_withhold_the_toleration() {
        let taints: [fn(&mut Value); 4] = [
            |node| node["spec"] = json!({"taints": [{"key": "spillway.dev/full", "effect": "NoSchedule"}]}),
            |node| node["spec"] = json!({"unschedulable": true}),
            |node| node["status"] = json!({"conditions": [{"type": "Ready", "status": "Unknown"}]}),
            |node| node["metadata"]["labels"] = json!({}),
        ];
        for change in taints {
            let mut cluster = Cluster::new().pod("shop", "p", Some(900), unchanged);
            change(&mut cluster.nodes[0]);
            let plan = cluster.plan();
            assert_eq!((plan.due.len(), plan.counts.closed), (0, 1));
            assert!(plan.withheld["rs"].note.contains("closed"), "{:?}", plan.withheld);
        }
    }

    #[test]
    fn pods_that_do_not_start_withhold_pods_of_their_namespace_only() {
        let mut cluster = Cluster::configured("breaker: {failures: 2}").pod("shop", "a", Some(900), unchanged).pod(
            "other",
            "b",
            Some(900),
            unchanged,
        );
        cluster.on_virtual = (0..2)
            .map(|i| {
                json!({"metadata": {"namespace": "shop", "name": format!("f{i}"), "creationTimestamp": before(600)},
                    "spec": {"containers": []}, "status": {"phase": "Pending", "reason": "ProviderFailed"}})
            })
            .collect();
        let plan = cluster.plan();
        assert_eq!(plan.due.iter().map(|pod| pod.key.name.as_str()).collect::<Vec<_>>(), ["b"]);
        assert!(plan.withheld["rs"].note.contains("2 pods of namespace shop failed to start"), "{:?}", plan.withheld);
    }

    #[test]
    fn a_cap_withholds_pods_of_its_namespace_only() {
        let mut cluster = Cluster::configured("profiles: {autoscaled: {maxPods: 3}}");
        let tolerating = |pod: &mut Value| {
            pod["spec"]["tolerations"] = json!([{"key": "virtual-kubelet.io/provider", "operator": "Exists"}]);
        };
        cluster = cluster.pod("shop", "let", Some(900), tolerating);
        cluster.on_virtual =
            vec![json!({"metadata": {"namespace": "shop", "name": "there"}, "spec": {"containers": []}})];
        cluster.on_virtual.push(json!({
            "metadata": {"namespace": "shop", "name": "over"}, "spec": {"containers": []},
            "status": {"phase": "Failed", "reason": "ProviderFailed"},
        }));
        for name in ["a", "b"] {
            cluster = cluster.pod("shop", name, Some(900), unchanged).pod(
                "other",
                &format!("{name}-too"),
                Some(900),
                unchanged,
            );
        }
        let plan = cluster.plan();
        let mut due: Vec<_> = plan.due.iter().map(|pod| pod.key.name.as_str()).collect();
        due.sort_unstable();
        assert_eq!(due, ["a", "a-too", "b-too"]);
        assert_eq!(plan.counts.capped, 1);
        assert!(plan.withheld["rs"].note.contains("maxPods is 3"), "{:?}", plan.withheld);
    }

    #[test]
    fn nothing_is_planned_before_all_inputs_have_arrived() {
        let cluster = Cluster::new().pod("shop", "p", Some(900), unchanged);
        for unknown in
            ["waiting", "nodes", "the pods of a virtual node", "all pods of a virtual node", "scale-up signals"]
        {
            assert!(cluster.plan_without(unknown).is_none(), "{unknown}");
        }
        assert!(cluster.plan_without("").is_some());
    }
}
