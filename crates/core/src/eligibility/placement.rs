//! Rules that compare the pod's scheduling constraints with the virtual nodes.

use std::sync::LazyLock;

use super::{Applies, Generation, Generations, Reason, Rule, Severity, Subject, V2_LABEL, VirtualNode, at_fault, join};
use crate::pod::{NodeSelectorTerm, NodeView, Pod};

pub(super) const RULES: &[&Rule] = &[
    &NO_MATCHING_VIRTUAL_NODE,
    &TOLERATION_NOT_WHITELISTED,
    &SPREAD_OVER_ABSENT_TOPOLOGY,
    &SPREAD_OVER_HOSTS,
    &APART_FROM_ITSELF,
];

const HOSTNAME: &str = "kubernetes.io/hostname";

static NO_MATCHING_VIRTUAL_NODE: Rule = Rule {
    reason: Reason {
        code: "NoMatchingVirtualNode",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "no virtual node has the labels that the pod requires",
        on_virtual_node: "the scheduler never considers virtual nodes for the pod",
        fix: "drop the requirement or make it a preference, or add the missing label to the virtual nodes (v2: chart value nodeLabels)",
        can_be_allowed: false,
        source: "kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node; labels: microsoft/virtualnodesOnAzureContainerInstances Docs, virtual-kubelet/azure-aci pkg/provider/vk_node.go",
    },
    reads: "spec.nodeSelector, spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution",
    check: |subject| {
        let accepted = nodes(subject).any(|node| accepts(subject.pod, node.view()));
        (!accepted).then(|| unmet(subject))
    },
};

static TOLERATION_NOT_WHITELISTED: Rule = Rule {
    reason: Reason {
        code: "TolerationNotWhitelisted",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "the namespace's toleration whitelist lacks the toleration of virtual nodes",
        on_virtual_node: "PodTolerationRestriction would refuse the pod with the toleration",
        fix: "add the toleration to the namespace's annotation scheduler.alpha.kubernetes.io/tolerationsWhitelist",
        can_be_allowed: false,
        source: "kubernetes/kubernetes plugin/pkg/admission/podtolerationrestriction/admission.go",
    },
    reads: "the namespace's annotation scheduler.alpha.kubernetes.io/tolerationsWhitelist",
    check: |subject| {
        let whitelist =
            subject.cluster.namespace_annotations.get("scheduler.alpha.kubernetes.io/tolerationsWhitelist")?;
        // The plugin refuses pods with an invalid list in any case. An empty list restricts nothing.
        let whitelist: Vec<crate::pod::Toleration<'_>> = serde_json::from_str(whitelist).ok()?;
        let ours = subject.overflow.toleration;
        let permitted = whitelist.is_empty() || whitelist.iter().any(|entry| entry.permits(ours));
        (!permitted).then(String::new)
    },
};

static SPREAD_OVER_ABSENT_TOPOLOGY: Rule = Rule {
    reason: Reason {
        code: "SpreadOverAbsentTopology",
        severity: Severity::Warning,
        applies: Applies::Any,
        meaning: "a hard topology spread uses a key that virtual nodes lack, so the pod never runs there",
        on_virtual_node: "the scheduler filters out nodes without the topology key",
        fix: "use whenUnsatisfiable: ScheduleAnyway for that key, or add it to the virtual nodes (v2: chart value nodeLabels)",
        can_be_allowed: false,
        source: "kubernetes/kubernetes pkg/scheduler/framework/plugins/podtopologyspread/filtering.go",
    },
    reads: "spec.topologySpreadConstraints[*].{topologyKey,whenUnsatisfiable}",
    check: |subject| {
        let absent = |key: &&str| nodes(subject).all(|node| node.view().label(key).is_none());
        at_fault("topology key", hard_spreads(subject.pod).map(|(key, _)| key).filter(absent))
    },
};

static SPREAD_OVER_HOSTS: Rule = Rule {
    reason: Reason {
        code: "SpreadOverHosts",
        severity: Severity::Warning,
        applies: Applies::Any,
        meaning: "a hard topology spread treats a virtual node as one host, which limits pods there and on VMs",
        on_virtual_node: "the node gets about as many pods as the emptiest VM, plus maxSkew; pods without the toleration wait although VMs have room",
        fix: "use ScheduleAnyway, or set nodeTaintsPolicy: Honor, so that a tainted node counts only for pods that tolerate it",
        can_be_allowed: false,
        source: "kubernetes/kubernetes pkg/scheduler/framework/plugins/podtopologyspread/common.go; kubernetes.io/docs/concepts/scheduling-eviction/topology-spread-constraints",
    },
    reads: "spec.topologySpreadConstraints[*].{topologyKey,whenUnsatisfiable,nodeTaintsPolicy}",
    check: |subject| {
        let caps = hard_spreads(subject.pod).any(|(key, honors_taints)| key == HOSTNAME && !honors_taints);
        caps.then(String::new)
    },
};

static APART_FROM_ITSELF: Rule = Rule {
    reason: Reason {
        code: "AntiAffinityOverHosts",
        severity: Severity::Warning,
        applies: Applies::Any,
        meaning: "required anti-affinity over hosts allows at most one such pod on each virtual node",
        on_virtual_node: "each virtual node runs one such pod, whatever its capacity",
        fix: "use preferredDuringSchedulingIgnoredDuringExecution instead",
        can_be_allowed: false,
        source: "kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#inter-pod-affinity-and-anti-affinity",
    },
    reads: "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[*].topologyKey",
    check: |subject| {
        let apart = subject.pod.spec.affinity.as_ref()?.pod_anti_affinity.as_ref()?.required.as_deref()?;
        apart.iter().any(|term| term.topology_key.as_deref() == Some(HOSTNAME)).then(String::new)
    },
};

/// Returns the generations that the pod could run on.
///
/// Only existing nodes can exclude a generation, because documented labels may be out of date. If no node is known,
/// nodes of any generation may appear. One toleration opens both generations, so existing nodes of a generation count
/// even if the configuration does not name it. If the pod's constraints accept no node, all existing generations count,
/// so that the list of reasons is complete.
pub(super) fn candidates(pod: &Pod<'_>, virtual_nodes: &[VirtualNode], configured: Generations) -> Generations {
    let add = |all: Generations, node: &VirtualNode| all.with(node.generation);
    let accepting = virtual_nodes.iter().filter(|node| accepts(pod, node.view()));
    if configured != Generations::BOTH {
        return accepting.fold(configured, add);
    }
    let accepting = accepting.fold(Generations::default(), add);
    if !accepting.is_empty() {
        return accepting;
    }
    let seen = virtual_nodes.iter().fold(Generations::default(), add);
    match (seen.is_empty(), asks_for_v2(pod)) {
        (false, _) => seen,
        (true, true) => Generations::only(Generation::V2),
        (true, false) => configured,
    }
}

/// Returns whether the pod requires the label that distinguishes the second generation from the first.
fn asks_for_v2(pod: &Pod<'_>) -> bool {
    let (key, value) = V2_LABEL;
    let by_selector = pod.spec.node_selector.as_ref().is_some_and(|selector| selector.get(key) == Some(value));
    let by_affinity = pod.required_node_affinity().is_some_and(|required| {
        let asks = |term: &NodeSelectorTerm<'_>| term.expressions().iter().any(|e| e.equals(key, "In", value));
        !required.terms().is_empty() && required.terms().iter().all(|term| term.is_empty() || asks(term))
    });
    by_selector || by_affinity
}

/// Returns the virtual nodes of the configured generations, or the documented ones if none is known.
fn nodes<'s>(subject: &Subject<'s>) -> impl Iterator<Item = &'s VirtualNode> + use<'s> {
    let (virtual_nodes, generations) = (subject.cluster.virtual_nodes, subject.overflow.generations);
    let is_configured = move |node: &&VirtualNode| generations.has(node.generation);
    let known = virtual_nodes.iter().any(|node| is_configured(&node));
    let nodes: &'s [VirtualNode] = if known { virtual_nodes } else { &*DOCUMENTED };
    nodes.iter().filter(is_configured)
}

/// One virtual node of each generation, with its documented or published labels.
///
/// Sources: a node dump in xfsnow/container VirtualNodeScaling/node.json and virtual-kubelet/azure-aci
/// pkg/provider/vk_node.go for the first generation, and microsoft/virtualnodesOnAzureContainerInstances Docs for the
/// second.
static DOCUMENTED: LazyLock<[VirtualNode; 2]> = LazyLock::new(|| {
    let node = |name: &str, labels: &[(&str, &str)]| {
        VirtualNode::new(name.to_owned(), labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    };
    let v1 = node(
        "virtual-node-aci-linux",
        &[
            ("type", "virtual-kubelet"),
            ("kubernetes.azure.com/managed", "false"),
            ("kubernetes.io/role", "agent"),
            ("kubernetes.azure.com/role", "agent"),
            ("node-role.kubernetes.io/agent", ""),
            (HOSTNAME, "virtual-node-aci-linux"),
            ("kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/os", "linux"),
            ("node.kubernetes.io/exclude-from-external-load-balancers", "true"),
            ("alpha.service-controller.kubernetes.io/exclude-balancer", "true"),
        ],
    );
    let v2 = node(
        "virtualnode-0",
        &[
            ("type", "virtual-kubelet"),
            ("virtualization", "virtualnode2"),
            ("kubernetes.azure.com/managed", "false"),
            (HOSTNAME, "virtualnode-0"),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", "amd64"),
        ],
    );
    [v1, v2]
});

/// Returns whether the pod's node selector and required node affinity accept the node.
fn accepts(pod: &Pod<'_>, node: NodeView<'_>) -> bool {
    pod.spec.node_selector.as_ref().is_none_or(|selector| selector.first_unmatched(node).is_none())
        && pod.required_node_affinity().is_none_or(|required| required.matches(node))
}

/// Returns the constraint that excludes all virtual nodes, as the manifest spells it.
fn unmet(subject: &Subject<'_>) -> String {
    if let Some(selector) = &subject.pod.spec.node_selector {
        // The entry that the last node does not meet. If a node meets all entries, the affinity is the cause.
        let unmet = nodes(subject).map(|node| selector.first_unmatched(node.view()));
        if let Some((key, value)) = unmet.reduce(Option::and).flatten() {
            return format!("nodeSelector {key}={value}");
        }
    }
    let terms = subject.pod.required_node_affinity().map(|required| required.terms()).unwrap_or_default();
    let terms: Vec<_> = terms
        .iter()
        .map(|term| {
            let requirements = term.expressions().iter().chain(term.fields());
            join(" and ", requirements.map(ToString::to_string)).unwrap_or_else(|| "(an empty term)".to_owned())
        })
        .collect();
    format!("required node affinity {}", join(", or ", terms).unwrap_or_else(|| "without a term".to_owned()))
}

/// Returns the topology keys of constraints that can keep a pod unscheduled, and whether each constraint honors taints.
fn hard_spreads<'p>(pod: &'p Pod<'_>) -> impl Iterator<Item = (&'p str, bool)> {
    let constraints = pod.spec.topology_spread_constraints.as_deref().unwrap_or_default();
    let hard = constraints.iter().filter(|c| c.when_unsatisfiable.as_deref() != Some("ScheduleAnyway"));
    hard.filter_map(|c| Some((c.topology_key.as_deref()?, c.node_taints_policy.as_deref() == Some("Honor"))))
}
