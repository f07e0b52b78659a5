//! Finds the nodes that accept a pod, and their free capacity.
//!
//! This module does not simulate the whole scheduler. It applies only the filters that depend on the node and on the sums of its pods
//! (kubernetes `pkg/scheduler/framework/plugins`: nodeunschedulable, tainttoleration, nodeaffinity, noderesources/fit). A pod whose
//! constraints depend on the nodes of other pods fits nowhere. Callers must leave out pods with required pod affinity, which the view of
//! a pod lacks. Anti-affinity of other pods, volumes, ports and images are ignored.

use std::collections::HashMap;

use crate::{
    cluster::{Node, Requests, ScheduledPod},
    pod::{Pod, Quantity, ResourceList, ResourceRequirements, Taint},
};

/// Returns whether the node accepts the pod, apart from its capacity. The node must be Ready and not cordoned. The pod must tolerate its
/// taints, and the pod's selector and required affinity must match the node.
pub(super) fn accepts(node: &Node, pod: &Pod<'_>) -> bool {
    let is_tolerated = |taint: Taint<'_>| pod.tolerations().iter().any(|toleration| toleration.tolerates(taint));
    let view = node.view();
    node.ready_since.is_some()
        && !node.is_cordoned
        && hard_taints(node).all(is_tolerated)
        && pod.spec.node_selector.as_ref().is_none_or(|selector| selector.first_unmatched(view).is_none())
        && pod.required_node_affinity().is_none_or(|required| required.matches(view))
}

/// Returns the taints with the effect `NoSchedule` or `NoExecute`.
pub(super) fn hard_taints(node: &Node) -> impl Iterator<Item = Taint<'_>> {
    let hard = node.taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    hard.map(|taint| {
        let value = taint.value.as_deref().unwrap_or_default();
        Taint { key: &taint.key, value, effect: &taint.effect }
    })
}

/// The free capacity of some nodes.
#[derive(Debug)]
pub(super) struct FreeCapacity<'n>(Vec<NodeUsage<'n>>);

/// A node, and the sums of its pods.
#[derive(Debug)]
struct NodeUsage<'n> {
    node: &'n Node,
    requests: Requests,
    pods: i128,
}

impl<'n> FreeCapacity<'n> {
    /// Returns the capacity that the assigned pods leave on these nodes.
    pub(super) fn new<'p>(nodes: impl Iterator<Item = &'n Node>, pods: impl Iterator<Item = &'p ScheduledPod>) -> Self {
        let usage = nodes.map(|node| NodeUsage { node, requests: Requests::default(), pods: 0 });
        let mut usage: Vec<_> = usage.collect();
        let by_name: HashMap<&str, usize> =
            usage.iter().enumerate().map(|(index, usage)| (usage.node.name.as_str(), index)).collect();
        for pod in pods {
            if let Some(usage) = by_name.get(&*pod.node).and_then(|index| usage.get_mut(*index)) {
                usage.add(pod.requests);
            }
        }
        Self(usage)
    }

    /// Places a pod on the first node that accepts the pod and has enough capacity, and takes that capacity. Returns the node, or
    /// `None` if the pod does not fit.
    pub(super) fn place(&mut self, pod: &Pod<'_>) -> Option<&'n Node> {
        if depends_on_others(pod) || requests_other_resources(pod) {
            return None;
        }
        let requests = Requests { cpu: pod.request("cpu"), memory: pod.request("memory") };
        let usage = self.0.iter_mut().find(|usage| usage.fits(requests) && accepts(usage.node, pod))?;
        usage.add(requests);
        Some(usage.node)
    }
}

impl NodeUsage<'_> {
    fn add(&mut self, requests: Requests) {
        let Requests { cpu, memory } = self.requests;
        self.requests = Requests { cpu: cpu + requests.cpu, memory: memory + requests.memory };
        self.pods += 1;
    }

    /// Returns whether the requests fit. As in the scheduler, a request of zero fits even if the resource is exhausted.
    fn fits(&self, requests: Requests) -> bool {
        let fits = |requested: Quantity, used: Quantity, allocatable: Quantity| {
            requested == Quantity::ZERO || used + requested <= allocatable
        };
        let allocatable = self.node.allocatable;
        self.pods < self.node.pods
            && fits(requests.cpu, self.requests.cpu, allocatable.cpu)
            && fits(requests.memory, self.requests.memory, allocatable.memory)
    }
}

/// Returns whether the pod's constraints depend on the nodes of other pods.
fn depends_on_others(pod: &Pod<'_>) -> bool {
    let is_hard = |kind: Option<&str>| kind.is_none_or(|kind| kind != "ScheduleAnyway");
    let mut spread = pod.spec.topology_spread_constraints.iter().flatten();
    let anti_affinity = pod.spec.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    spread.any(|constraint| is_hard(constraint.when_unsatisfiable.as_deref()))
        || anti_affinity.and_then(|terms| terms.required.as_ref()).is_some_and(|terms| !terms.is_empty())
}

/// Returns whether the pod requests resources other than CPU and memory: devices, disk, claims.
fn requests_other_resources(pod: &Pod<'_>) -> bool {
    let of_containers = pod.all_containers().filter_map(|container| container.resources.as_ref());
    let mut all = of_containers.chain(&pod.spec.resources);
    let has_others = |resources: &ResourceRequirements<'_>| resources.others().next().is_some();
    all.any(has_others)
        || pod.spec.overhead.as_ref().is_some_and(|overhead: &ResourceList<'_>| overhead.others().next().is_some())
        || pod.spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, changes: &Value) -> Node {
        let room = json!({"cpu": "4", "memory": "8Gi", "pods": "3"});
        let mut node = json!({
            "metadata": {"name": name, "labels": {"disk": "ssd"}},
            "status": {"allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]},
        });
        json_patch::merge(&mut node, changes);
        Node::read(serde_json::from_value(node).unwrap()).unwrap()
    }

    fn pod(spec: &Value) -> String {
        let mut pod = json!({"metadata": {}, "spec": {"containers": [{"resources": {"requests": {"cpu": "1"}}}]}});
        json_patch::merge(&mut pod, &json!({"spec": spec}));
        pod.to_string()
    }

    fn assigned(pods: &[(&str, &str, &str)]) -> Vec<ScheduledPod> {
        let amount = |text: &str| Quantity::parse(text).unwrap();
        let pods = pods.iter().map(|(node, cpu, memory)| {
            let requests = Requests { cpu: amount(cpu), memory: amount(memory) };
            ScheduledPod { node: (*node).into(), requests, ..ScheduledPod::default() }
        });
        pods.collect()
    }

    #[test]
    fn a_node_accepts_a_pod_unless_a_constraint_keeps_it_away() {
        let taint = |effect: &str| json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}});
        let tolerating = json!({"tolerations": [{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]});
        let required = |value: &str| {
            let expression = json!({"key": "disk", "operator": "In", "values": [value]});
            let terms = json!({"nodeSelectorTerms": [{"matchExpressions": [expression]}]});
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}})
        };
        let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
        for (changes, spec, expected) in [
            (json!({}), json!({}), true),
            (not_ready, json!({}), false),
            (json!({"status": {"conditions": null}}), json!({}), false),
            (json!({"spec": {"unschedulable": true}}), json!({}), false),
            (taint("NoSchedule"), json!({}), false),
            (taint("NoExecute"), json!({}), false),
            (taint("PreferNoSchedule"), json!({}), true),
            (taint("NoSchedule"), tolerating.clone(), true),
            (taint("NoExecute"), tolerating, false),
            (json!({}), json!({"nodeSelector": {"disk": "ssd"}}), true),
            (json!({}), json!({"nodeSelector": {"disk": "hdd"}}), false),
            (json!({}), required("ssd"), true),
            (json!({}), required("hdd"), false),
        ] {
            let (node, text) = (node("vm", &changes), pod(&spec));
            assert_eq!(accepts(&node, &serde_json::from_str(&text).unwrap()), expected, "{changes} {spec}");
        }
    }

    /// Places pods until no more fit, and returns their nodes.
    fn place(nodes: &[Node], assigned: &[ScheduledPod], spec: &Value) -> Vec<String> {
        let text = pod(spec);
        let mut capacity = FreeCapacity::new(nodes.iter(), assigned.iter());
        let pod: Pod<'_> = serde_json::from_str(&text).unwrap();
        std::iter::from_fn(|| capacity.place(&pod)).take(20).map(|node| node.name.clone()).collect()
    }

    #[test]
    fn free_capacity_is_used_once() {
        let nodes = [node("a", &json!({})), node("b", &json!({}))];
        let spec = json!({});
        assert_eq!(place(&nodes, &assigned(&[]), &spec), ["a", "a", "a", "b", "b", "b"], "three pods, by their count");
        let nearly_full = assigned(&[("a", "2500m", "0"), ("b", "4", "0"), ("elsewhere", "1", "0")]);
        assert_eq!(place(&nodes, &nearly_full, &spec), ["a"]);
        let full = assigned(&[("a", "3500m", "0"), ("b", "3001m", "0")]);
        assert_eq!(place(&nodes, &full, &spec), Vec::<String>::new());
        let of_memory = assigned(&[("a", "0", "8Gi"), ("b", "0", "7Gi")]);
        let hungry = json!({"containers": [{"resources": {"requests": {"memory": "1Gi"}}}]});
        assert_eq!(place(&nodes, &of_memory, &hungry), ["b"]);
        let nothing = json!({"containers": [{}]});
        assert_eq!(place(&nodes, &assigned(&[("a", "9", "9Gi")]), &nothing).len(), 5, "nothing fits everywhere");
        assert_eq!(place(&[node("c", &json!({"spec": {"unschedulable": true}}))], &assigned(&[]), &spec).len(), 0);
    }

    #[test]
    fn a_pod_with_unknown_constraints_fits_nowhere() {
        let nodes = [node("a", &json!({}))];
        let apart = json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}]);
        let gpu = json!({"requests": {"nvidia.com/gpu": "1"}});
        let spread =
            |kind: &str| json!({"topologySpreadConstraints": [{"topologyKey": "zone", "whenUnsatisfiable": kind}]});
        for (spec, expected) in [
            (json!({"containers": [{"resources": gpu}]}), 0),
            (json!({"overhead": {"example.com/slot": "1"}}), 0),
            (json!({"resourceClaims": [{"name": "device"}]}), 0),
            (spread("DoNotSchedule"), 0),
            (spread("ScheduleAnyway"), 3),
            (json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": apart}}}), 0),
        ] {
            assert_eq!(place(&nodes, &assigned(&[]), &spec).len(), expected, "{spec}");
        }
    }
}
