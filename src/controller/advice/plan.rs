//! Plans the advice for a cluster, with the numbers for its metrics.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;

use super::super::{
    events::{EventKind, ObjectEvent},
    free_capacity::{FreeCapacity, hard_taints},
};
use crate::{
    burst::DECISION,
    cluster::{Node, PodStore, Snapshot, VirtualPod},
    config::{Configuration, Mode, Overrides, PREFIX, VirtualNodes},
    kubernetes::{Store, object_reference},
    pod::{Pod, Taint},
    telemetry::AdviceCounts,
};

const NOT_TOLERATED: EventKind = EventKind::problem("TaintNotTolerated");
const NEARLY_FULL: EventKind = EventKind::problem("VirtualNodeNearlyFull");
const PREFER_DRAINS: EventKind = EventKind::advice("PreferDrainsVMs");
const KUBE_PROXY: EventKind = EventKind::advice("KubeProxyOnVirtualNodes");

/// The most pods that a virtual node of the second generation runs. The node may advertise more
/// (microsoft/virtualnodesOnAzureContainerInstances README.md).
const MAX_PODS_PER_NODE: usize = 200;

/// From this number of pods a virtual node counts as nearly full.
const NEARLY_FULL_PODS: usize = MAX_PODS_PER_NODE * 9 / 10;

/// Above this number of kube-proxies, Spillway advises to opt out. Only the second generation adds them; each watches the API server
/// (microsoft/virtualnodesOnAzureContainerInstances Docs/HighScaleRecommendations.md).
const MANY_KUBE_PROXIES: usize = 1_000;

/// Inputs of a plan.
pub(super) struct Observation<'o> {
    pub(super) nodes: &'o Store<Node>,
    pub(super) pods: &'o PodStore,
    pub(super) snapshot: &'o Snapshot,
    pub(super) configuration: &'o Configuration,
    pub(super) autoscaler: Option<&'static str>,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) events: Vec<ObjectEvent>,
    pub(super) counts: AdviceCounts,
}

impl Plan {
    fn event(&mut self, about: ObjectReference, kind: EventKind, note: String) {
        self.events.push(ObjectEvent { about, kind, note });
    }
}

/// Plans a round. Returns `None` until all inputs have arrived.
pub(super) fn plan(observation: &Observation<'_>) -> Option<Plan> {
    let Observation { nodes, pods, configuration, .. } = *observation;
    let settings = &configuration.virtual_nodes;
    if !pods.has_synced_virtual_pods(nodes, &settings.selector) {
        return None;
    }
    let (virtual_nodes, vms): (Vec<_>, Vec<_>) = nodes.values().partition(|node| node.is_virtual(&settings.selector));
    let mut plan = Plan::default();
    for node in &virtual_nodes {
        advise_node(node, settings, pods, &mut plan);
    }
    plan.counts.while_vms_have_room = fitting_on_vms(&vms, pods);
    let second = virtual_nodes.iter().filter(|node| node.is_second_generation());
    advise_kube_proxy(second.flat_map(|node| pods_on(node, pods)), &mut plan);
    advise_prefer(observation, &mut plan);
    Some(plan)
}

fn advise_node(node: &Node, settings: &VirtualNodes, pods: &PodStore, plan: &mut Plan) {
    if let Some(taint) = untolerated_taint(node, settings) {
        plan.counts.not_tolerated += 1;
        let message = format!(
            "no pod overflows to this virtual node: virtualNodes.toleration does not tolerate its taint {taint}"
        );
        plan.event(node.reference(), NOT_TOLERATED, message);
    }
    let pods = pods_on(node, pods).count();
    if node.is_second_generation() && pods >= NEARLY_FULL_PODS {
        plan.counts.nearly_full += 1;
        let message = format!(
            "{pods} pods are bound to this virtual node, which runs at most {MAX_PODS_PER_NODE}: further pods hang"
        );
        plan.event(node.reference(), NEARLY_FULL, message);
    }
}

/// The pods that are bound to a virtual node and have not ended.
fn pods_on<'o>(node: &Node, pods: &'o PodStore) -> impl Iterator<Item = &'o VirtualPod> {
    let on_node = pods.on_virtual_nodes().filter(|(_, scheduled, pod)| *scheduled.node == *node.name && !pod.has_ended);
    on_node.map(|(_, _, pod)| pod)
}

/// Returns a taint that the configured toleration does not tolerate, as kubectl writes it. Ignores the taints that Spillway or
/// Kubernetes adds and removes.
fn untolerated_taint(node: &Node, settings: &VirtualNodes) -> Option<String> {
    let is_ignored = |taint: &Taint<'_>| taint.key.starts_with("node.kubernetes.io/") || taint.key.starts_with(PREFIX);
    let toleration = settings.toleration_fields();
    let mut taints = hard_taints(node).filter(|taint| !is_ignored(taint) && !toleration.tolerates(*taint));
    taints.next().map(|Taint { key, value, effect }| format!("{key}={value}:{effect}"))
}

/// The number of pods that Spillway let overflow and that would fit on VMs now.
fn fitting_on_vms(vms: &[&Node], pods: &PodStore) -> u64 {
    let mut capacity = FreeCapacity::new(vms.iter().copied(), pods.scheduled());
    let pods = pods.on_virtual_nodes().map(|(_, _, pod)| pod);
    let is_placed_by_us =
        |view: &Pod<'_>| view.annotation(DECISION).is_some_and(|decision| !decision.starts_with("stay"));
    let fitting = pods
        .filter(|pod| !pod.is_terminating && !pod.has_ended && !pod.has_pod_affinity)
        .filter(|pod| pod.pod().is_some_and(|view| is_placed_by_us(view) && capacity.place(view).is_some()));
    fitting.count() as u64
}

fn advise_kube_proxy<'o>(pods: impl Iterator<Item = &'o VirtualPod>, plan: &mut Plan) {
    let mut namespaces = BTreeMap::<&str, usize>::new();
    for pod in pods.filter(|pod| pod.has_kube_proxy) {
        *namespaces.entry(&pod.meta.namespace).or_default() += 1;
    }
    let total: usize = namespaces.values().sum();
    plan.counts.with_kube_proxy = total as u64;
    if total <= MANY_KUBE_PROXIES {
        return;
    }
    for (namespace, count) in namespaces {
        let message = format!(
            "{total} pods on virtual nodes run a kube-proxy that watches the API server, {count} of them in this namespace. If they need no Services, annotate the namespace with spillway.dev/kube-proxy: opt-out"
        );
        plan.event(namespace_reference(namespace), KUBE_PROXY, message);
    }
}

/// In mode `prefer`, pods on VMs have the toleration. A node autoscaler that simulates a scale-down then counts virtual nodes as free
/// capacity, and drains VMs onto them.
fn advise_prefer(observation: &Observation<'_>, plan: &mut Plan) {
    let Some(autoscaler) = observation.autoscaler else { return };
    let configuration = observation.configuration;
    let prefer = observation.snapshot.namespaces().filter(|(_, namespace)| {
        let settings = configuration.settings(&namespace.profile, &namespace.overrides, &Overrides::default());
        settings.as_known().is_some_and(|settings| settings.mode.value == Mode::Prefer)
    });
    for (name, _) in prefer {
        plan.counts.prefer_drains += 1;
        let message = format!(
            "{autoscaler} may drain VMs onto virtual nodes, because pods of mode prefer tolerate virtual nodes even while they run on VMs. Mode late (profile autoscaled) avoids this"
        );
        plan.event(namespace_reference(name), PREFER_DRAINS, message);
    }
}

fn namespace_reference(name: &str) -> ObjectReference {
    object_reference("v1", "Namespace", Some(name), name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{config::parse, kubernetes::ObjectKey};

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

    fn pod(namespace: &str, changes: &Value) -> Value {
        let requests = json!({"requests": {"cpu": "1"}});
        let mut pod = json!({
            "metadata": {"namespace": namespace, "name": "p", "annotations": {DECISION: "prefer"}},
            "spec": {"containers": [{"name": "c", "resources": requests}]},
        });
        json_patch::merge(&mut pod, changes);
        pod
    }

    fn planned(
        nodes: Vec<Node>,
        mut pods: Vec<Value>,
        autoscaler: Option<&'static str>,
    ) -> (Vec<(&'static str, String)>, AdviceCounts) {
        let file = "apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n";
        let virtual_node = nodes.iter().map(|node| node.name.clone()).find(|name| !name.starts_with("vm"));
        let virtual_node = virtual_node.unwrap_or_default();
        let nodes = nodes.into_iter().map(|node| (ObjectKey::cluster_scoped(&node.name), node)).collect();
        for (number, pod) in pods.iter_mut().enumerate() {
            pod["metadata"]["name"] = number.to_string().into();
            pod["spec"]["nodeName"] = virtual_node.as_str().into();
        }
        let observation = Observation {
            nodes: &nodes,
            pods: &PodStore::of(&pods, &[&virtual_node]),
            snapshot: &Snapshot::of_namespaces(&[("shop", "enabled"), ("calm", "autoscaled")]),
            configuration: &parse(file).unwrap(),
            autoscaler,
        };
        let plan = plan(&observation).unwrap();
        let events = plan.events.into_iter().map(|event| (event.kind.reason, event.about.name.unwrap()));
        (events.collect(), plan.counts)
    }

    fn azure() -> Value {
        json!({"key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule"})
    }

    #[test]
    fn a_taint_that_the_toleration_does_not_cover_is_reported() {
        let other = json!({"key": "azure.com/aci", "effect": "NoSchedule"});
        let passing = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let ours = json!({"key": "spillway.dev/full", "effect": "NoSchedule"});
        let soft = json!({"key": "x", "effect": "PreferNoSchedule"});
        let reported = |taints: &Value| planned(vec![node("v", taints)], Vec::new(), None).0;
        assert_eq!(reported(&json!([azure(), passing, ours, soft])), []);
        assert_eq!(reported(&json!([azure(), other])), [("TaintNotTolerated", "v".to_owned())]);
    }

    #[test]
    fn a_nearly_full_virtual_node_is_reported() {
        let reported = |name, count, last: Value| {
            let pods = (1..count).map(|_| pod("shop", &json!({}))).chain([pod("shop", &last)]).collect();
            planned(vec![node(name, &json!([azure()]))], pods, None).0
        };
        let nearly_full = [("VirtualNodeNearlyFull", "v".to_owned())];
        assert_eq!(reported("v", 179, json!({})), []);
        assert_eq!(reported("v", 180, json!({})), nearly_full);
        assert_eq!(reported("v", 180, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})), nearly_full);
        assert_eq!(reported("v", 180, json!({"status": {"phase": "Failed", "reason": "ProviderFailed"}})), []);
        assert_eq!(reported("first-generation", 180, json!({})), [], "the first generation has no such limit");
    }

    #[test]
    fn mode_prefer_beside_an_autoscaler_is_reported() {
        let (events, counts) = planned(Vec::new(), Vec::new(), Some("Karpenter"));
        assert_eq!((events, counts.prefer_drains), (vec![("PreferDrainsVMs", "shop".to_owned())], 1));
        assert_eq!(planned(Vec::new(), Vec::new(), None).0, []);
    }

    #[test]
    fn more_than_a_thousand_kube_proxies_are_reported() {
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
            let (events, counts) = planned(vec![node("v", &json!([azure()]))], pods(with), None);
            assert_eq!(counts.with_kube_proxy, with as u64);
            events
                .into_iter()
                .filter(|(reason, _)| *reason == "KubeProxyOnVirtualNodes")
                .map(|(_, name)| name)
                .collect::<Vec<_>>()
        };
        assert_eq!(reasons(1_000), Vec::<String>::new());
        assert_eq!(reasons(1_001), ["calm", "shop"]);
        let (_, counts) = planned(vec![node("first-generation", &json!([azure()]))], pods(9), None);
        assert_eq!(counts.with_kube_proxy, 0, "pods of the first generation have no kube-proxy");
    }

    #[test]
    fn pods_of_spillway_that_would_fit_on_vms_are_counted() {
        let nodes = || vec![node("v", &json!([azure()])), node("vm-1", &json!([]))];
        let count = |pods| planned(nodes(), pods, None).1.while_vms_have_room;
        let pods = |count: usize, changes: &Value| (0..count).map(|_| pod("shop", changes)).collect::<Vec<_>>();
        assert_eq!(count(pods(3, &json!({}))), 3);
        assert_eq!(count(pods(6, &json!({}))), 4, "a VM of four CPUs");
        assert_eq!(count(pods(3, &json!({"metadata": {"annotations": null}}))), 0, "not ours");
        let stays = json!({"metadata": {"annotations": {DECISION: "stay: HostPath"}}});
        assert_eq!(count(pods(3, &stays)), 0, "Spillway did not let these pods overflow");
        assert_eq!(
            count(pods(3, &json!({"spec": {"nodeSelector": {"type": "virtual-kubelet"}}}))),
            0,
            "these pods do not accept VMs"
        );
        let near = json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}]);
        let near = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": near}});
        assert_eq!(
            count(pods(3, &json!({"spec": {"affinity": near}}))),
            0,
            "Spillway does not know the nodes of the other pods"
        );
        assert_eq!(
            count(pods(3, &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}))),
            0,
            "terminating pods"
        );
    }
}
