//! Decides whether virtual nodes must be closed, and which nodes get or lose the taint.

use k8s_openapi::jiff::Timestamp;

use super::super::{events::EventKind, start_failures::StartFailures, taints::FULL};
use crate::{
    cluster::{Node, PodStore},
    config::{Breaker, Configuration},
    kubernetes::Store,
};

const CAP_REACHED: EventKind = EventKind::warning("VirtualNodesFull");
const BREAKER_OPEN: EventKind = EventKind::warning("BreakerOpen");
const REOPENED: EventKind = EventKind::action("VirtualNodesReopened");

/// Why virtual nodes are closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) by_cap: bool,
    pub(super) by_breaker: bool,
}

impl Closed {
    fn is_closed(self) -> bool {
        self.by_cap || self.by_breaker
    }
}

/// Number of pods on virtual nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Pods that count toward the cap.
    pub(super) total: usize,
    /// Pods that failed to start. Each namespace counts for at most half of `breaker.failures`.
    pub(super) failing: usize,
}

/// Steps of a round.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) before: Closed,
    pub(super) now: Closed,
    pub(super) load: Load,
    /// Nodes whose taint must change, and whether they get it.
    pub(super) taint_changes: Vec<(Node, bool)>,
    pub(super) virtual_nodes: Vec<Node>,
}

/// Plans a round. Returns `None` until all inputs have arrived.
pub(super) fn plan(
    nodes: &Store<Node>,
    pods: &PodStore,
    configuration: &Configuration,
    before: Option<Closed>,
    now: Timestamp,
) -> Option<Plan> {
    let settings = &configuration.virtual_nodes;
    let is_virtual = |node: &&Node| node.is_virtual(&settings.selector);
    if !pods.has_synced_virtual_pods(nodes, &settings.selector) {
        return None;
    }
    let is_full = |node: &Node| FULL.is_on_observed(node);
    let before = before.unwrap_or_else(|| {
        let is_closed = nodes.values().filter(is_virtual).any(is_full);
        Closed { by_cap: is_closed, by_breaker: is_closed }
    });
    let load = Load {
        total: pods.on_virtual_nodes().filter(|(_, _, pod)| !pod.has_ended).count(),
        failing: StartFailures::of(pods, now).for_all(configuration.breaker),
    };
    let closed = Closed {
        by_cap: settings.max_pods.is_some_and(|cap| is_at_cap(load.total, cap as usize, before.by_cap)),
        by_breaker: is_tripped(load.failing, configuration.breaker, before.by_breaker),
    };
    let desired = |node: &Node| closed.is_closed() && node.is_virtual(&settings.selector);
    let wrong = nodes.values().filter(|node| is_full(node) != desired(node));
    Some(Plan {
        before,
        now: closed,
        load,
        taint_changes: wrong.map(|node| (node.clone(), desired(node))).collect(),
        virtual_nodes: nodes.values().filter(is_virtual).cloned().collect(),
    })
}

/// Returns whether the cap closes virtual nodes. They reopen when a tenth of the cap, and at least one pod, is free. Otherwise they would
/// open and close with each pod.
fn is_at_cap(total: usize, cap: usize, was_at_cap: bool) -> bool {
    let free = if was_at_cap { (cap / 10).max(1) } else { 0 };
    total >= cap || total + free > cap
}

/// Returns whether the breaker closes virtual nodes. They reopen when half of the failures no longer count.
fn is_tripped(failing: usize, Breaker { failures }: Breaker, was_tripped: bool) -> bool {
    let failures = failures as usize;
    failures > 0 && (failing >= failures || (was_tripped && failing * 2 > failures))
}

/// Returns the events about a change.
pub(super) fn events(
    before: Closed,
    now: Closed,
    load: Load,
    configuration: &Configuration,
) -> Vec<(EventKind, String)> {
    let mut events = Vec::new();
    if now.by_cap && !before.by_cap {
        let cap = configuration.virtual_nodes.max_pods.unwrap_or_default();
        let note =
            format!("closed to new pods: {} pods are on virtual nodes, and virtualNodes.maxPods is {cap}", load.total);
        events.push((CAP_REACHED, note));
    }
    if now.by_breaker && !before.by_breaker {
        let note = format!(
            "closed to new pods: {} pods on virtual nodes failed to start, and breaker.failures is {}",
            load.failing, configuration.breaker.failures
        );
        events.push((BREAKER_OPEN, note));
    }
    if before.is_closed() && !now.is_closed() {
        events.push((REOPENED, format!("open to new pods again: {} pods are on virtual nodes", load.total)));
    }
    events
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::{config::parse, kubernetes::ObjectKey};

    fn now() -> Timestamp {
        "2026-01-01T12:00:00Z".parse().unwrap()
    }

    fn node(name: &str, is_virtual: bool, is_full: bool) -> Node {
        let kind = if is_virtual { "virtual-kubelet" } else { "vm" };
        let taints = if is_full { json!([{"key": FULL.key, "effect": FULL.effect}]) } else { json!([]) };
        let node = json!({"metadata": {"name": name, "labels": {"type": kind}}, "spec": {"taints": taints}});
        Node::read(serde_json::from_value(node).unwrap()).unwrap()
    }

    fn pod(name: &str, bound: u64, status: &Value) -> Value {
        let bound = (now() - Duration::from_secs(bound)).to_string();
        let mut status = status.clone();
        status["conditions"] = json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": bound}]);
        let spec = json!({"nodeName": "v", "containers": []});
        json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec, "status": status})
    }

    fn planned(file: &str, nodes: &[Node], pods: &[Value], before: Option<Closed>) -> Option<Plan> {
        let file = format!("apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n{file}");
        let nodes = nodes.iter().map(|node| (ObjectKey::cluster_scoped(&node.name), node.clone())).collect();
        plan(&nodes, &PodStore::of(pods, &["v"]), &parse(&file).unwrap(), before, now())
    }

    fn running(count: usize) -> Vec<Value> {
        (0..count).map(|i| pod(&i.to_string(), 60, &json!({"phase": "Running"}))).collect()
    }

    #[test]
    fn at_the_cap_all_virtual_nodes_and_no_others_are_closed() {
        let nodes = [node("v", true, false), node("vm", false, false), node("was-virtual", false, true)];
        let writes = |count| {
            let plan = planned("virtualNodes: {maxPods: 20}", &nodes, &running(count), None).unwrap();
            plan.taint_changes.into_iter().map(|(node, wanted)| (node.name, wanted)).collect::<Vec<_>>()
        };
        let not_ours = ("was-virtual".to_owned(), false);
        assert_eq!(writes(19), std::slice::from_ref(&not_ours));
        assert_eq!(writes(20), [("v".to_owned(), true), not_ours]);
    }

    #[test]
    fn virtual_nodes_reopen_only_below_the_cap_by_a_margin() {
        let closed = Some(Closed { by_cap: true, by_breaker: false });
        let is_closed = |count| {
            let nodes = [node("v", true, true)];
            planned("virtualNodes: {maxPods: 20}", &nodes, &running(count), closed).unwrap().now.by_cap
        };
        assert_eq!([18, 19, 20, 30].map(is_closed), [false, true, true, true]);
        for (total, was, expected) in [(0, false, false), (1, false, true), (1, true, true), (0, true, false)] {
            assert_eq!(is_at_cap(total, 1, was), expected, "{total} of 1, {was}");
        }
        assert!(is_at_cap(0, 0, false) && is_at_cap(0, 0, true), "a cap of zero permits no pod");
    }

    #[test]
    fn failing_pods_open_the_breaker_until_half_are_gone() {
        let hanging = |count: usize| -> Vec<_> {
            let pod = |i: usize| {
                let mut pod = pod(&i.to_string(), 301, &json!({"phase": "Pending"}));
                pod["metadata"]["namespace"] = format!("namespace-{}", i % 3).into();
                pod
            };
            (0..count).map(pod).collect()
        };
        let is_tripped = |count, was| {
            let before = Some(Closed { by_cap: false, by_breaker: was });
            planned("", &[node("v", true, was)], &hanging(count), before).unwrap().now.by_breaker
        };
        assert_eq!(
            [(9, false), (10, false), (6, true), (5, true)].map(|(n, was)| is_tripped(n, was)),
            [false, true, true, false]
        );
        let off = planned("breaker: {failures: 0}", &[node("v", true, false)], &hanging(50), None).unwrap();
        assert!(!off.now.is_closed());
    }

    #[test]
    fn a_new_leader_keeps_virtual_nodes_closed_at_the_cap() {
        let nodes = [node("v", true, true)];
        assert!(planned("virtualNodes: {maxPods: 20}", &nodes, &running(19), None).unwrap().now.by_cap);
        let open = planned("virtualNodes: {maxPods: 20}", &nodes, &running(18), None).unwrap();
        assert_eq!((open.now.is_closed(), open.taint_changes.len()), (false, 1));
    }

    #[test]
    fn a_new_leader_reports_only_its_own_closing() {
        let reasons = |is_full| {
            let file = "virtualNodes: {maxPods: 20}";
            let plan = planned(file, &[node("v", true, is_full)], &running(20), None).unwrap();
            events(plan.before, plan.now, plan.load, &Configuration::default()).len()
        };
        assert_eq!((reasons(true), reasons(false)), (0, 1));
    }

    #[test]
    fn a_terminating_pod_counts_toward_the_cap_not_the_breaker() {
        let load = |change: Value| {
            let mut pod = json!({"metadata": {"namespace": "shop", "name": "p", "creationTimestamp": "2026-01-01T11:45:00Z"},
                "spec": {"nodeName": "v", "containers": []}, "status": {"phase": "Pending"}});
            json_patch::merge(&mut pod, &change);
            let Load { total, failing } = planned("", &[node("v", true, false)], &[pod], None).unwrap().load;
            (total, failing)
        };
        assert_eq!(load(json!({})), (1, 1));
        assert_eq!(load(json!({"metadata": {"deletionTimestamp": "2026-01-01T11:59:00Z"}})), (1, 0));
        assert_eq!(load(json!({"status": {"phase": "Succeeded"}})), (0, 0));
        assert_eq!(load(json!({"status": {"phase": "Failed", "reason": "Evicted"}})), (0, 0));
        assert_eq!(load(json!({"status": {"phase": "Failed", "reason": "ProviderFailed"}})), (0, 1));
    }

    #[test]
    fn nothing_is_planned_before_all_pods_have_arrived() {
        let nodes = [node("v", true, true), node("w", true, false)];
        assert!(planned("", &nodes, &[], None).is_none(), "the pods of node w have not been listed");
    }

    #[test]
    fn each_change_is_one_event() {
        let configuration = Configuration::default();
        let reasons = |before: Closed, now: Closed| {
            let events = events(before, now, Load::default(), &configuration);
            events.into_iter().map(|(kind, _)| kind.reason).collect::<Vec<_>>()
        };
        let (open, cap, breaker) =
            (Closed::default(), Closed { by_cap: true, by_breaker: false }, Closed { by_cap: false, by_breaker: true });
        assert_eq!(reasons(open, cap), ["VirtualNodesFull"]);
        assert_eq!(reasons(open, breaker), ["BreakerOpen"]);
        assert_eq!(reasons(cap, open), ["VirtualNodesReopened"]);
        assert_eq!(reasons(cap, cap), <[&str; 0]>::default());
    }
}
