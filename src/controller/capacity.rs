//! Closes virtual nodes to new pods while there are as many on them as there may be, or while too many of those fail to start.
//!
//! A virtual node never looks full: the first generation advertises thousands of CPUs, while the quota of a subscription is often a
//! hundred container groups (MicrosoftDocs/azure-compute-docs `container-instances-resource-and-quota-limits.md`), and pods beyond it
//! are bound and fail. The taint `spillway.dev/full:NoSchedule` makes them wait for a VM in place of that. It keeps away every pod
//! that does not tolerate it, whether or not it came through Spillway; nothing is refused, and what runs goes on. The scheduler does
//! not count: pods that it binds before it sees the taint go beyond the cap. A pod that is on its way out counts until it is gone, as
//! its container group does; one that is over does not.

use std::time::Duration;

use futures_util::stream;
use k8s_openapi::jiff::Timestamp;

use super::{
    Context, each,
    pauses::Pauses,
    reconcile::{Outcome, repeat},
    taints::{FULL, TaintError},
    tally::Happening,
};
use crate::{
    cluster::{Inventory, Node, PodStore, VirtualPod},
    config::{Breaker, Configuration},
    kubernetes::Store,
};

const RECONCILER: &str = "capacity";

const CAP_REACHED: Happening = Happening { is_warning: true, ..Happening::done("VirtualNodesFull") };
const BREAKER_OPEN: Happening = Happening { is_warning: true, ..Happening::done("BreakerOpen") };
const REOPENED: Happening = Happening::done("VirtualNodesReopened");

/// A pod that has not started by then has failed to.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Failures of pods that were bound longer ago say nothing of now: nobody might ever delete them, and the next pods are the ones to
/// tell whether it still is so.
const MEMORY: Duration = Duration::from_secs(30 * 60);

/// Rounds, for as long as it is asked to.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let changes =
        [each(inventory.nodes.clone()), each(inventory.pods.on_virtual_nodes()), each(context.configuration.clone())];
    // Until the first round, what another leader has closed is closed for either reason.
    let (mut closed, mut fights) = (None, Pauses::default());
    let round = async || round(context, inventory, &mut closed, &mut fights).await;
    Box::pin(repeat(RECONCILER, &context.metrics, stream::select_all(changes), round)).await;
}

async fn round(
    context: &Context,
    inventory: &Inventory,
    closed: &mut Option<Closed>,
    fights: &mut Pauses,
) -> Result<Outcome, TaintError> {
    let configuration = context.configuration.borrow().clone();
    let plan = {
        let (nodes, pods) = (inventory.nodes.borrow(), inventory.pods.borrow());
        fights.retain(nodes.values().map(|node| node.name.as_str()));
        plan(&nodes, &pods, &configuration, *closed, Timestamp::now())
    };
    let Some(Plan { before, now, load, write, virtual_nodes }) = plan else { return Ok(Outcome::Early) };
    context.metrics.overflow.closed(now.by_cap, now.by_breaker, load.failing);
    *closed = Some(now);
    for (happening, note) in told(before, now, load, &configuration) {
        tracing::warn!(reason = happening.reason, pods = load.total, failing = load.failing, "{note}");
        for node in &virtual_nodes {
            context.tally.note(node.reference(), happening, note.clone());
        }
    }
    context.write_taints(FULL, &write, fights).await
}

/// Why virtual nodes are closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Closed {
    by_cap: bool,
    by_breaker: bool,
}

impl Closed {
    fn is_closed(self) -> bool {
        self.by_cap || self.by_breaker
    }
}

/// The pods on virtual nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    total: usize,
    /// Those that were bound of late and have failed to start.
    failing: usize,
}

#[derive(Debug)]
struct Plan {
    before: Closed,
    now: Closed,
    load: Load,
    /// Nodes whose taint is to change, and whether they are to have it.
    write: Vec<(Node, bool)>,
    virtual_nodes: Vec<Node>,
}

/// Nothing before everything has arrived.
fn plan(
    nodes: &Store<Node>,
    pods: &PodStore,
    configuration: &Configuration,
    before: Option<Closed>,
    now: Timestamp,
) -> Option<Plan> {
    let settings = &configuration.virtual_nodes;
    let is_virtual = |node: &&Node| node.is_virtual(&settings.selector);
    if !pods.knows_virtual(nodes, &settings.selector) {
        return None;
    }
    let is_full = |node: &Node| node.has_taint(FULL.key, FULL.effect);
    let before = before.unwrap_or_else(|| {
        let is_closed = nodes.values().filter(is_virtual).any(is_full);
        Closed { by_cap: is_closed, by_breaker: is_closed }
    });
    let pods = || pods.on_virtual_nodes().map(|(_, _, pod)| pod);
    let load = Load {
        total: pods().filter(|pod| !pod.is_over).count(),
        failing: pods().filter(|pod| has_failed(pod, now)).count(),
    };
    let closed = Closed {
        by_cap: settings.max_pods.is_some_and(|cap| is_at_cap(load.total, cap as usize, before.by_cap)),
        by_breaker: is_open(load.failing, configuration.breaker, before.by_breaker),
    };
    let wanted = |node: &Node| closed.is_closed() && node.is_virtual(&settings.selector);
    let wrong = nodes.values().filter(|node| is_full(node) != wanted(node));
    Some(Plan {
        before,
        now: closed,
        load,
        write: wrong.map(|node| (node.clone(), wanted(node))).collect(),
        virtual_nodes: nodes.values().filter(is_virtual).cloned().collect(),
    })
}

/// Opened again when a tenth of the cap, and one pod at the least, is free: not for each pod that comes and goes.
fn is_at_cap(total: usize, cap: usize, was: bool) -> bool {
    let free = if was { (cap / 10).max(1) } else { 0 };
    total >= cap || total + free > cap
}

/// Closed again when half of the failures are gone.
fn is_open(failing: usize, Breaker { failures }: Breaker, was: bool) -> bool {
    let failures = failures as usize;
    failures > 0 && (failing >= failures || (was && failing * 2 > failures))
}

/// Pods of DaemonSets do not count: nobody lets them onto virtual nodes, which run none (learn.microsoft.com/azure/aks/virtual-nodes,
/// limitations); those that tolerate every taint come there whether or not these are closed, and would keep them so.
fn has_failed(pod: &VirtualPod, now: Timestamp) -> bool {
    if pod.meta.controller.as_ref().is_some_and(|owner| owner.kind == "DaemonSet") {
        return false;
    }
    let since = Duration::try_from(now.duration_since(pod.bound)).unwrap_or_default();
    !pod.is_going && since < MEMORY && (pod.is_failed || (!pod.has_started && since >= PATIENCE))
}

/// What has changed, for people.
fn told(before: Closed, now: Closed, load: Load, configuration: &Configuration) -> Vec<(Happening, String)> {
    let mut told = Vec::new();
    if now.by_cap && !before.by_cap {
        let cap = configuration.virtual_nodes.max_pods.unwrap_or_default();
        let note =
            format!("{} pods are on virtual nodes, and virtualNodes.maxPods is {cap}: no more go there", load.total);
        told.push((CAP_REACHED, note));
    }
    if now.by_breaker && !before.by_breaker {
        let note = format!(
            "{} pods on virtual nodes have failed to start, and breaker.failures is {}: no more go there",
            load.failing, configuration.breaker.failures
        );
        told.push((BREAKER_OPEN, note));
    }
    if before.is_closed() && !now.is_closed() {
        told.push((REOPENED, format!("virtual nodes take pods again; {} are there", load.total)));
    }
    told
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
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
    fn at_the_cap_every_virtual_node_is_closed_and_no_other() {
        let nodes = [node("v", true, false), node("vm", false, false), node("was-virtual", false, true)];
        let writes = |count| {
            let plan = planned("virtualNodes: {maxPods: 20}", &nodes, &running(count), None).unwrap();
            plan.write.into_iter().map(|(node, wanted)| (node.name, wanted)).collect::<Vec<_>>()
        };
        let not_ours = ("was-virtual".to_owned(), false);
        assert_eq!(writes(19), std::slice::from_ref(&not_ours));
        assert_eq!(writes(20), [("v".to_owned(), true), not_ours]);
    }

    #[test]
    fn what_is_closed_opens_again_only_when_there_is_some_room() {
        let closed = Some(Closed { by_cap: true, by_breaker: false });
        let is_closed = |count| {
            let nodes = [node("v", true, true)];
            planned("virtualNodes: {maxPods: 20}", &nodes, &running(count), closed).unwrap().now.by_cap
        };
        assert_eq!([18, 19, 20, 30].map(is_closed), [false, true, true, true]);
        for (total, was, expected) in [(0, false, false), (1, false, true), (1, true, true), (0, true, false)] {
            assert_eq!(is_at_cap(total, 1, was), expected, "{total} of 1, {was}");
        }
        assert!(is_at_cap(0, 0, false) && is_at_cap(0, 0, true), "none may be there");
    }

    #[test]
    fn pods_that_fail_to_start_in_numbers_close_virtual_nodes_until_half_of_them_are_gone() {
        let hanging = |count: usize| -> Vec<_> {
            (0..count).map(|i| pod(&i.to_string(), 301, &json!({"phase": "Pending"}))).collect()
        };
        let is_open = |count, was| {
            let before = Some(Closed { by_cap: false, by_breaker: was });
            planned("", &[node("v", true, was)], &hanging(count), before).unwrap().now.by_breaker
        };
        assert_eq!(
            [(9, false), (10, false), (6, true), (5, true)].map(|(n, was)| is_open(n, was)),
            [false, true, true, false]
        );
        let off = planned("breaker: {failures: 0}", &[node("v", true, false)], &hanging(50), None).unwrap();
        assert!(!off.now.is_closed());
    }

    #[test]
    fn a_pod_has_failed_that_has_not_started_for_five_minutes_or_that_the_provider_gave_up() {
        let failed = |bound, status: Value| has_failed(&VirtualPod::of(&pod("p", bound, &status)).unwrap(), now());
        assert!(!failed(299, json!({"phase": "Pending"})) && failed(300, json!({"phase": "Pending"})));
        assert!(!failed(900, json!({"phase": "Running"})));
        assert!(failed(1, json!({"phase": "Pending", "reason": "ProviderFailed"})));
        assert!(failed(1, json!({"phase": "Failed", "reason": "ProviderFailed"})));
        assert!(
            !failed(1800, json!({"phase": "Pending", "reason": "ProviderFailed"})),
            "the next pods tell how it is now"
        );
        let mut of_a_daemon_set = VirtualPod::of(&pod("p", 300, &json!({"phase": "Pending"}))).unwrap();
        let owner = |kind: &str| Some(OwnerReference { kind: kind.to_owned(), ..OwnerReference::default() });
        of_a_daemon_set.meta.controller = owner("ReplicaSet");
        assert!(has_failed(&of_a_daemon_set, now()));
        of_a_daemon_set.meta.controller = owner("DaemonSet");
        assert!(!has_failed(&of_a_daemon_set, now()), "nobody has let it there");
    }

    #[test]
    fn what_another_leader_has_closed_stays_closed_until_there_is_room() {
        let nodes = [node("v", true, true)];
        assert!(planned("virtualNodes: {maxPods: 20}", &nodes, &running(19), None).unwrap().now.by_cap);
        let open = planned("virtualNodes: {maxPods: 20}", &nodes, &running(18), None).unwrap();
        assert_eq!((open.now.is_closed(), open.write.len()), (false, 1));
    }

    #[test]
    fn what_a_leader_before_has_closed_it_has_told_and_what_this_one_closes_first_is_told_by_this_one() {
        let reasons = |is_full| {
            let file = "virtualNodes: {maxPods: 20}";
            let plan = planned(file, &[node("v", true, is_full)], &running(20), None).unwrap();
            told(plan.before, plan.now, plan.load, &Configuration::default()).len()
        };
        assert_eq!((reasons(true), reasons(false)), (0, 1));
    }

    #[test]
    fn a_pod_holds_its_place_until_it_is_gone_or_over_and_one_that_is_going_says_nothing_of_the_provider() {
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
    fn a_pod_has_started_when_its_first_container_has_be_it_an_init_container() {
        let failed = |statuses: &str, state: &str| {
            let mut status = json!({"phase": "Pending"});
            let image = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0});
            status[statuses] = json!([image]);
            let details = if state == "terminated" { json!({"exitCode": 0}) } else { json!({}) };
            status[statuses][0]["state"] = json!({state: details});
            has_failed(&VirtualPod::of(&pod("p", 900, &status)).unwrap(), now())
        };
        assert!(failed("initContainerStatuses", "waiting") && failed("containerStatuses", "waiting"));
        for statuses in ["initContainerStatuses", "containerStatuses"] {
            assert!(!failed(statuses, "running") && !failed(statuses, "terminated"), "{statuses}");
        }
    }

    #[test]
    fn nothing_is_opened_or_closed_before_all_pods_are_known() {
        let nodes = [node("v", true, true), node("w", true, false)];
        assert!(planned("", &nodes, &[], None).is_none(), "the pods of w have not arrived");
    }

    #[test]
    fn each_change_is_told_once() {
        let configuration = Configuration::default();
        let reasons = |before: Closed, now: Closed| {
            let told = told(before, now, Load::default(), &configuration);
            told.into_iter().map(|(happening, _)| happening.reason).collect::<Vec<_>>()
        };
        let (open, cap, breaker) =
            (Closed::default(), Closed { by_cap: true, by_breaker: false }, Closed { by_cap: false, by_breaker: true });
        assert_eq!(reasons(open, cap), ["VirtualNodesFull"]);
        assert_eq!(reasons(open, breaker), ["BreakerOpen"]);
        assert_eq!(reasons(cap, open), ["VirtualNodesReopened"]);
        assert_eq!(reasons(cap, cap), <[&str; 0]>::default());
    }
}
