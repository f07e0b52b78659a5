//! Which nodes take a pod, and how much room they have left.
//!
//! Not the scheduler: what is asked here is whether a pod is *certain* to fit, by the filters that can be judged from a node and the
//! sums of what is on it (kubernetes `pkg/scheduler/framework/plugins`: nodeunschedulable, tainttoleration, nodeaffinity,
//! noderesources/fit). A pod whose other constraints depend on where other pods are fits nowhere, as far as this can tell; required
//! pod affinity is not in the view of a pod, so whoever asks leaves out pods that have it. What other pods have against this one, by
//! their anti-affinity, is not judged, nor are volumes, ports and images.

use std::collections::HashMap;

use crate::{
    cluster::{Node, Requests, ScheduledPod},
    pod::{Pod, Quantity, ResourceList, ResourceRequirements, Taint},
};

/// Whether the node takes such a pod, if it has room: it is Ready and not cordoned, the pod tolerates its taints, and it is one that
/// the pod selects.
pub(super) fn accepts(node: &Node, pod: &Pod<'_>) -> bool {
    let is_tolerated = |taint: Taint<'_>| pod.tolerations().iter().any(|toleration| toleration.tolerates(taint));
    let view = node.view();
    node.ready_since.is_some()
        && !node.is_cordoned
        && hard_taints(node).all(is_tolerated)
        && pod.spec.node_selector.as_ref().is_none_or(|selector| selector.unmet_by(view).is_none())
        && pod.required_node_affinity().is_none_or(|required| required.matches(view))
}

/// The taints that keep pods away: a preference does not.
pub(super) fn hard_taints(node: &Node) -> impl Iterator<Item = Taint<'_>> {
    let hard = node.taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    hard.map(|taint| {
        let value = taint.value.as_deref().unwrap_or_default();
        Taint { key: &taint.key, value, effect: &taint.effect }
    })
}

/// What some nodes have left.
#[derive(Debug)]
pub(super) struct Room<'n>(Vec<Taken<'n>>);

/// A node, and what is on it.
#[derive(Debug)]
struct Taken<'n> {
    node: &'n Node,
    requests: Requests,
    pods: i128,
}

impl<'n> Room<'n> {
    /// What these nodes have left beside the pods that are assigned.
    pub(super) fn of<'p>(nodes: impl Iterator<Item = &'n Node>, pods: impl Iterator<Item = &'p ScheduledPod>) -> Self {
        let taken = nodes.map(|node| Taken { node, requests: Requests::default(), pods: 0 });
        let mut taken: Vec<_> = taken.collect();
        let places: HashMap<&str, usize> = taken.iter().enumerate().map(|(i, t)| (t.node.name.as_str(), i)).collect();
        for pod in pods {
            let Some(taken) = places.get(&*pod.node).and_then(|place| taken.get_mut(*place)) else { continue };
            taken.add(pod.requests);
        }
        Self(taken)
    }

    /// Puts a pod on the first node that takes it and has room for it, so that what it needs is there for no other. Returns the
    /// node, or nothing if there is none, or none that is certain.
    pub(super) fn put(&mut self, pod: &Pod<'_>) -> Option<&'n Node> {
        if depends_on_others(pod) || asks_for_more_than_is_counted(pod) {
            return None;
        }
        let requests = Requests { cpu: pod.request("cpu"), memory: pod.request("memory") };
        let found = self.0.iter_mut().find(|taken| taken.has_room(requests) && accepts(taken.node, pod))?;
        found.add(requests);
        Some(found.node)
    }
}

impl Taken<'_> {
    fn add(&mut self, requests: Requests) {
        let Requests { cpu, memory } = self.requests;
        self.requests = Requests { cpu: cpu + requests.cpu, memory: memory + requests.memory };
        self.pods += 1;
    }

    /// A pod that asks for nothing of something fits where there is too little of it already, as for the scheduler.
    fn has_room(&self, requests: Requests) -> bool {
        let fits =
            |asked: Quantity, taken: Quantity, there: Quantity| asked == Quantity::ZERO || taken + asked <= there;
        let there = self.node.allocatable;
        self.pods < self.node.pods
            && fits(requests.cpu, self.requests.cpu, there.cpu)
            && fits(requests.memory, self.requests.memory, there.memory)
    }
}

/// Whether what the pod needs beside its node depends on where other pods are.
fn depends_on_others(pod: &Pod<'_>) -> bool {
    let is_hard = |kind: Option<&str>| kind.is_none_or(|kind| kind != "ScheduleAnyway");
    let mut spread = pod.spec.topology_spread_constraints.iter().flatten();
    let anti_affinity = pod.spec.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    spread.any(|constraint| is_hard(constraint.when_unsatisfiable.as_deref()))
        || anti_affinity.and_then(|terms| terms.required.as_ref()).is_some_and(|terms| !terms.is_empty())
}

/// Whether the pod asks for anything beside CPU and memory: devices, disk, claims.
fn asks_for_more_than_is_counted(pod: &Pod<'_>) -> bool {
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
    fn a_node_takes_a_pod_exactly_when_nothing_keeps_it_away() {
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
            assert_eq!(accepts(&node, &crate::pod::from_json(&text).unwrap()), expected, "{changes} {spec}");
        }
    }

    /// Onto which nodes as many pods of that kind go.
    fn put(nodes: &[Node], assigned: &[ScheduledPod], spec: &Value) -> Vec<String> {
        let text = pod(spec);
        let mut room = Room::of(nodes.iter(), assigned.iter());
        let pod: Pod<'_> = crate::pod::from_json(&text).unwrap();
        std::iter::from_fn(|| room.put(&pod)).take(20).map(|node| node.name.clone()).collect()
    }

    #[test]
    fn one_hole_is_room_for_one_pod() {
        let nodes = [node("a", &json!({})), node("b", &json!({}))];
        let spec = json!({});
        assert_eq!(put(&nodes, &assigned(&[]), &spec), ["a", "a", "a", "b", "b", "b"], "three pods, by their count");
        let nearly_full = assigned(&[("a", "2500m", "0"), ("b", "4", "0"), ("elsewhere", "1", "0")]);
        assert_eq!(put(&nodes, &nearly_full, &spec), ["a"]);
        let full = assigned(&[("a", "3500m", "0"), ("b", "3001m", "0")]);
        assert_eq!(put(&nodes, &full, &spec), Vec::<String>::new());
        let of_memory = assigned(&[("a", "0", "8Gi"), ("b", "0", "7Gi")]);
        let hungry = json!({"containers": [{"resources": {"requests": {"memory": "1Gi"}}}]});
        assert_eq!(put(&nodes, &of_memory, &hungry), ["b"]);
        let nothing = json!({"containers": [{}]});
        assert_eq!(put(&nodes, &assigned(&[("a", "9", "9Gi")]), &nothing).len(), 5, "nothing fits everywhere");
        assert_eq!(put(&[node("c", &json!({"spec": {"unschedulable": true}}))], &assigned(&[]), &spec).len(), 0);
    }

    #[test]
    fn what_cannot_be_judged_fits_nowhere() {
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
            assert_eq!(put(&nodes, &assigned(&[]), &spec).len(), expected, "{spec}");
        }
    }
}
