//! What people should know of their virtual nodes and namespaces, and what no writing of ours could mend.

use std::{collections::BTreeMap, time::Duration};

use futures_util::stream;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
};
use tokio::time::Instant;

use super::{
    Context, each,
    events::reference,
    observed::{Assigned, Kept, Node, Observed, OnVirtual, VirtualPod, are_known},
    reconcile::{Outcome, repeat},
    room::{Room, hard_taints},
    tally::Happening,
};
use crate::{
    burst::DECISION,
    cluster::{Cluster, Snapshot},
    config::{Configuration, Mode, Overrides, PREFIX, VirtualNodes},
    pod::{Pod, Taint},
    telemetry::Advice,
};

const RECONCILER: &str = "advice";

const NOT_TOLERATED: Happening = Happening::wrong("TaintNotTolerated");
const NEARLY_FULL: Happening = Happening::wrong("VirtualNodeNearlyFull");
const PREFER_DRAINS: Happening = Happening::advice("PreferDrainsVMs");
const KUBE_PROXY: Happening = Happening::advice("KubeProxyOnVirtualNodes");

/// The most pods that one virtual node of the second generation runs, whatever it advertises
/// (microsoft/virtualnodesOnAzureContainerInstances README.md), and how many are nearly that.
const MOST_PODS: usize = 200;
const NEARLY: usize = MOST_PODS * 9 / 10;

/// Each kube-proxy, which the second generation alone puts into pods, watches the API server; with this many pods it is time to do without
/// (microsoft/virtualnodesOnAzureContainerInstances Docs/HighScaleRecommendations.md).
const MANY_KUBE_PROXIES: usize = 1_000;

/// How often it is asked whether there is a node autoscaler.
const AUTOSCALER_EVERY: Duration = Duration::from_secs(300);

/// Where cluster-autoscaler writes its state (kubernetes/autoscaler `clusterstate/utils/status.go`).
const STATUS: (&str, &str) = ("kube-system", "cluster-autoscaler-status");

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot tell whether there is a node autoscaler")]
struct AutoscalerError(#[source] kube::Error);

/// Rounds, for as long as it is asked to. Which pods there are is looked at in each, and brings none: it may change all the time.
pub(super) async fn run(context: &Context, observed: &Observed, cluster: &Cluster) {
    let changes = stream::select(each(observed.nodes.clone()), each(context.configuration.clone()));
    let mut known = None;
    let round = async || round(context, observed, cluster, &mut known).await;
    Box::pin(repeat(RECONCILER, &context.metrics, changes, round)).await;
}

async fn round(
    context: &Context,
    observed: &Observed,
    cluster: &Cluster,
    known: &mut Option<(Instant, Option<&'static str>)>,
) -> Result<Outcome, AutoscalerError> {
    let autoscaler = match *known {
        Some((asked, autoscaler)) if asked.elapsed() < AUTOSCALER_EVERY => autoscaler,
        _ => {
            let autoscaler = autoscaler(&context.client).await.map_err(AutoscalerError)?;
            known.insert((Instant::now(), autoscaler)).1
        }
    };
    let configuration = context.configuration.borrow().clone();
    let plan = {
        let (nodes, assigned) = (observed.nodes.borrow(), observed.assigned.borrow());
        let seen = Seen {
            nodes: &nodes,
            assigned: &assigned,
            on_virtual: &observed.on_virtual.borrow(),
            snapshot: &cluster.snapshot(),
            configuration: &configuration,
            autoscaler,
        };
        plan(&seen)
    };
    let Some(Plan { told, counts }) = plan else { return Ok(Outcome::Early) };
    context.metrics.overflow.advice(counts);
    for (about, happening, note) in told {
        context.tally.note(about, happening, note);
    }
    Ok(Outcome::Right)
}

/// The node autoscaler of the cluster, if there is one.
async fn autoscaler(client: &Client) -> Result<Option<&'static str>, kube::Error> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), STATUS.0);
    if maps.get_metadata_opt(STATUS.1).await?.is_some() {
        return Ok(Some("cluster-autoscaler"));
    }
    let pools =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("karpenter.sh", "v1", "NodePool"), "nodepools");
    let pools: Api<DynamicObject> = Api::all_with(client.clone(), &pools);
    match pools.list_metadata(&ListParams::default().limit(1)).await {
        Ok(found) => Ok((!found.items.is_empty()).then_some("Karpenter")),
        // Karpenter is not installed.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a plan rests on.
struct Seen<'s> {
    nodes: &'s Kept<Node>,
    assigned: &'s Kept<Assigned>,
    on_virtual: &'s OnVirtual,
    snapshot: &'s Snapshot,
    configuration: &'s Configuration,
    autoscaler: Option<&'static str>,
}

#[derive(Debug)]
struct Plan {
    told: Vec<(ObjectReference, Happening, String)>,
    counts: Advice,
}

/// Nothing before everything has arrived.
fn plan(seen: &Seen<'_>) -> Option<Plan> {
    let Seen { nodes, assigned, on_virtual, configuration, .. } = *seen;
    let settings = &configuration.virtual_nodes;
    let (virtual_nodes, vms): (Vec<_>, Vec<_>) = nodes.values().partition(|node| node.is_virtual(&settings.selector));
    if !assigned.is_complete() || !are_known(nodes, on_virtual, &settings.selector) {
        return None;
    }
    let (mut told, mut counts) = (Vec::new(), Advice::default());
    for node in &virtual_nodes {
        if let Some(taint) = untolerated(node, settings) {
            counts.not_tolerated += 1;
            let note = format!(
                "the toleration of virtualNodes.toleration does not cover the taint {taint} of this virtual node: no pod overflows to it"
            );
            told.push((node.reference(), NOT_TOLERATED, note));
        }
        let pods = there(node, on_virtual).count();
        if node.is_second_generation() && pods >= NEARLY {
            counts.nearly_full += 1;
            let note = format!(
                "{pods} pods are on this virtual node, which runs {MOST_PODS} at the most: more than that hang"
            );
            told.push((node.reference(), NEARLY_FULL, note));
        }
    }
    counts.while_vms_have_room = while_vms_have_room(&vms, assigned, on_virtual);
    let second = virtual_nodes.iter().filter(|node| node.is_second_generation());
    about_kube_proxy(second.flat_map(|node| there(node, on_virtual)), &mut told, &mut counts);
    about_prefer(seen, &mut told, &mut counts);
    Some(Plan { told, counts })
}

/// The pods that have a place on a virtual node.
fn there<'s>(node: &Node, on_virtual: &'s OnVirtual) -> impl Iterator<Item = &'s VirtualPod> {
    on_virtual.get(&node.name).into_iter().flat_map(Kept::values).filter(|pod| !pod.is_over)
}

/// A taint that keeps pods with our toleration away, in the words of kubectl. Taints that come and go, and ours, are none of those.
fn untolerated(node: &Node, settings: &VirtualNodes) -> Option<String> {
    let passing = |taint: &Taint<'_>| taint.key.starts_with("node.kubernetes.io/") || taint.key.starts_with(PREFIX);
    let ours = settings.toleration_fields();
    let mut taints = hard_taints(node).filter(|taint| !passing(taint) && !ours.tolerates(*taint));
    taints.next().map(|Taint { key, value, effect }| format!("{key}={value}:{effect}"))
}

/// How many pods on virtual nodes VMs would have room for, as they are now: how far "VMs first" has come undone since. Only pods that
/// Spillway lets there count.
fn while_vms_have_room(vms: &[&Node], assigned: &Kept<Assigned>, on_virtual: &OnVirtual) -> u64 {
    let mut room = Room::of(vms.iter().copied(), assigned);
    let pods = on_virtual.values().flat_map(Kept::values);
    let is_let = |view: &Pod<'_>| view.annotation(DECISION).is_some_and(|decision| !decision.starts_with("stay"));
    let fits = pods
        .filter(|pod| !pod.is_going && !pod.is_over && !pod.has_pod_affinity)
        .filter(|pod| pod.pod().is_some_and(|view| is_let(&view) && room.put(&view).is_some()));
    fits.count() as u64
}

fn about_kube_proxy<'s>(
    pods: impl Iterator<Item = &'s VirtualPod>,
    told: &mut Vec<(ObjectReference, Happening, String)>,
    counts: &mut Advice,
) {
    let mut namespaces = BTreeMap::<&str, usize>::new();
    for pod in pods.filter(|pod| pod.has_kube_proxy) {
        *namespaces.entry(&pod.owned.namespace).or_default() += 1;
    }
    let total: usize = namespaces.values().sum();
    counts.with_kube_proxy = total as u64;
    if total <= MANY_KUBE_PROXIES {
        return;
    }
    for (namespace, count) in namespaces {
        let note = format!(
            "{total} pods on virtual nodes run a kube-proxy each, {count} of them of this namespace, and every one watches the API server: if they need no Services, annotate the namespace with spillway.dev/kube-proxy: opt-out"
        );
        told.push((about_namespace(namespace), KUBE_PROXY, note));
    }
}

/// In mode `prefer` pods on VMs carry the toleration, and the scale-down simulation of an autoscaler takes virtual nodes for room: it
/// drains VMs onto them.
fn about_prefer(seen: &Seen<'_>, told: &mut Vec<(ObjectReference, Happening, String)>, counts: &mut Advice) {
    let Some(autoscaler) = seen.autoscaler else { return };
    let prefer = seen.snapshot.namespaces().filter(|(_, namespace)| {
        let settings = seen.configuration.settings(&namespace.profile, &namespace.overrides, &Overrides::default());
        settings.as_known().is_some_and(|settings| settings.mode.value == Mode::Prefer)
    });
    for (name, _) in prefer {
        counts.prefer_drains += 1;
        let note = format!(
            "{autoscaler} runs here, and pods of mode prefer tolerate virtual nodes on VMs too: it may drain VMs onto virtual nodes. Mode late (profile autoscaled) does not have that"
        );
        told.push((about_namespace(name), PREFER_DRAINS, note));
    }
}

fn about_namespace(name: &str) -> ObjectReference {
    reference("v1", "Namespace", Some(name), name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::parse;

    fn named<V>(values: Vec<(&str, V)>) -> Kept<V> {
        values.into_iter().map(|(name, value)| ((String::new(), name.to_owned()), value)).collect()
    }

    fn node(name: &str, taints: &Value) -> Node {
        let kind = if name.starts_with("vm") { "vm" } else { "virtual-kubelet" };
        let generation = if name == "first-generation" { "" } else { "virtualnode2" };
        let labels = json!({"type": kind, "virtualization": generation});
        let node = json!({
            "metadata": {"name": name, "labels": labels}, "spec": {"taints": taints},
            "status": {"allocatable": {"cpu": "4", "memory": "16Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True"}]},
        });
        Node::read(serde_json::from_value(node).unwrap()).unwrap()
    }

    fn pod(namespace: &str, changes: &Value) -> VirtualPod {
        let requests = json!({"requests": {"cpu": "1"}});
        let mut pod = json!({
            "metadata": {"namespace": namespace, "name": "p", "annotations": {DECISION: "prefer"}},
            "spec": {"containers": [{"name": "c", "resources": requests}]},
        });
        json_patch::merge(&mut pod, changes);
        VirtualPod::read(serde_json::from_value(pod).unwrap()).unwrap()
    }

    fn planned(
        nodes: Vec<Node>,
        pods: Vec<VirtualPod>,
        autoscaler: Option<&'static str>,
    ) -> (Vec<(&'static str, String)>, Advice) {
        let file = "apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n";
        let virtual_node = nodes.iter().map(|node| node.name.clone()).find(|name| !name.starts_with("vm"));
        let nodes = nodes.into_iter().map(|node| ((String::new(), node.name.clone()), node)).collect();
        let pods = pods.into_iter().enumerate().map(|(i, pod)| ((String::new(), i.to_string()), pod)).collect();
        let seen = Seen {
            nodes: &nodes,
            assigned: &named(Vec::new()),
            on_virtual: &[(virtual_node.unwrap_or_default(), pods)].into(),
            snapshot: &Snapshot::of_namespaces(&[("shop", "enabled"), ("calm", "autoscaled")]),
            configuration: &parse(file).unwrap(),
            autoscaler,
        };
        let plan = plan(&seen).unwrap();
        let told = plan.told.into_iter().map(|(about, happening, _)| (happening.reason, about.name.unwrap()));
        (told.collect(), plan.counts)
    }

    fn azure() -> Value {
        json!({"key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule"})
    }

    #[test]
    fn a_taint_that_our_toleration_does_not_cover_is_told_of() {
        let other = json!({"key": "azure.com/aci", "effect": "NoSchedule"});
        let passing = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let ours = json!({"key": "spillway.dev/full", "effect": "NoSchedule"});
        let soft = json!({"key": "x", "effect": "PreferNoSchedule"});
        let told = |taints: &Value| planned(vec![node("v", taints)], Vec::new(), None).0;
        assert_eq!(told(&json!([azure(), passing, ours, soft])), []);
        assert_eq!(told(&json!([azure(), other])), [("TaintNotTolerated", "v".to_owned())]);
    }

    #[test]
    fn a_virtual_node_that_nearly_runs_all_it_can_is_told_of() {
        let told = |name, count, last: Value| {
            let pods = (1..count).map(|_| pod("shop", &json!({}))).chain([pod("shop", &last)]).collect();
            planned(vec![node(name, &json!([azure()]))], pods, None).0
        };
        let nearly_full = [("VirtualNodeNearlyFull", "v".to_owned())];
        assert_eq!(told("v", 179, json!({})), []);
        assert_eq!(told("v", 180, json!({})), nearly_full);
        assert_eq!(told("v", 180, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})), nearly_full);
        assert_eq!(told("v", 180, json!({"status": {"phase": "Failed", "reason": "ProviderFailed"}})), []);
        assert_eq!(told("first-generation", 180, json!({})), [], "it has no such limit");
    }

    #[test]
    fn namespaces_whose_pods_tolerate_virtual_nodes_on_vms_are_told_where_an_autoscaler_drains_vms() {
        let (told, counts) = planned(Vec::new(), Vec::new(), Some("Karpenter"));
        assert_eq!((told, counts.prefer_drains), (vec![("PreferDrainsVMs", "shop".to_owned())], 1));
        assert_eq!(planned(Vec::new(), Vec::new(), None).0, []);
    }

    #[test]
    fn more_than_a_thousand_kube_proxies_are_advised_against_and_those_that_opted_out_do_not_count() {
        let out =
            json!({"metadata": {"annotations": {"microsoft.containerinstance.virtualnode.injectkubeproxy": "false"}}});
        let confidential =
            json!({"metadata": {"annotations": {"microsoft.containerinstance.virtualnode.ccepolicy": "cGFja2FnZQ=="}}});
        let over = json!({"status": {"phase": "Failed", "reason": "ProviderFailed"}});
        let pods = |with: usize| {
            let with = (0..with).map(|i| pod(if i == 0 { "calm" } else { "shop" }, &json!({})));
            with.chain([&out, &confidential, &over].map(|without| pod("peak", without))).collect::<Vec<_>>()
        };
        let reasons = |with| {
            let (told, counts) = planned(vec![node("v", &json!([azure()]))], pods(with), None);
            assert_eq!(counts.with_kube_proxy, with as u64);
            told.into_iter()
                .filter(|(reason, _)| *reason == "KubeProxyOnVirtualNodes")
                .map(|(_, name)| name)
                .collect::<Vec<_>>()
        };
        assert_eq!(reasons(1_000), Vec::<String>::new());
        assert_eq!(reasons(1_001), ["calm", "shop"]);
        let (_, counts) = planned(vec![node("first-generation", &json!([azure()]))], pods(9), None);
        assert_eq!(counts.with_kube_proxy, 0, "its pods have none");
    }

    #[test]
    fn pods_of_spillway_that_vms_would_have_room_for_are_counted_as_far_as_the_room_goes() {
        let nodes = || vec![node("v", &json!([azure()])), node("vm-1", &json!([]))];
        let count = |pods| planned(nodes(), pods, None).1.while_vms_have_room;
        let pods = |count: usize, changes: &Value| (0..count).map(|_| pod("shop", changes)).collect::<Vec<_>>();
        assert_eq!(count(pods(3, &json!({}))), 3);
        assert_eq!(count(pods(6, &json!({}))), 4, "a VM of four CPUs");
        assert_eq!(count(pods(3, &json!({"metadata": {"annotations": null}}))), 0, "not ours");
        let stays = json!({"metadata": {"annotations": {DECISION: "stay: HostPath"}}});
        assert_eq!(count(pods(3, &stays)), 0, "not let there by us");
        assert_eq!(
            count(pods(3, &json!({"spec": {"nodeSelector": {"type": "virtual-kubelet"}}}))),
            0,
            "they want to be there"
        );
        let near = json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}]);
        let near = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": near}});
        assert_eq!(count(pods(3, &json!({"spec": {"affinity": near}}))), 0, "where others are is not known");
        assert_eq!(
            count(pods(3, &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}))),
            0,
            "on their way out"
        );
    }
}
