//! The pod's own constraints on where it goes, held against the virtual nodes.

use std::sync::LazyLock;

use super::{Applies, Generation, Generations, Reason, Rule, Severity, Subject, V2_LABEL, VirtualNode};
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
        on_virtual_node: "the scheduler never considers a virtual node for the pod",
        fix: "drop the requirement that forbids virtual nodes, or say it as a preference; where it wants a label that they lack, give it to them (v2: chart value nodeLabels)",
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
        meaning: "the namespace's toleration whitelist does not hold the toleration of virtual nodes",
        on_virtual_node: "PodTolerationRestriction would refuse the pod as soon as the toleration is added",
        fix: "add the toleration to the namespace's annotation scheduler.alpha.kubernetes.io/tolerationsWhitelist",
        can_be_allowed: false,
        source: "kubernetes/kubernetes plugin/pkg/admission/podtolerationrestriction/admission.go",
    },
    reads: "the namespace's annotation scheduler.alpha.kubernetes.io/tolerationsWhitelist",
    check: |subject| {
        let whitelist =
            subject.cluster.namespace_annotations.get("scheduler.alpha.kubernetes.io/tolerationsWhitelist")?;
        // What cannot be read, the plugin refuses whatever we do; an empty list restricts nothing.
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
        meaning: "a hard topology spread uses a key that virtual nodes do not carry, so the pod never goes there",
        on_virtual_node: "the scheduler filters nodes without the topology key",
        fix: "use whenUnsatisfiable: ScheduleAnyway for that key, or give it to the virtual nodes (v2: chart value nodeLabels)",
        can_be_allowed: false,
        source: "kubernetes/kubernetes pkg/scheduler/framework/plugins/podtopologyspread/filtering.go",
    },
    reads: "spec.topologySpreadConstraints[*].{topologyKey,whenUnsatisfiable}",
    check: |subject| {
        let absent = |key: &&str| nodes(subject).all(|node| node.view().label(key).is_none());
        super::at_fault("topology key", hard_spreads(subject.pod).map(|(key, _)| key).filter(absent))
    },
};

static SPREAD_OVER_HOSTS: Rule = Rule {
    reason: Reason {
        code: "SpreadOverHosts",
        severity: Severity::Warning,
        applies: Applies::Any,
        meaning: "a hard spread over hosts counts a virtual node as one host: it caps the overflow, and an empty virtual node caps the VMs",
        on_virtual_node: "about as many pods as on the emptiest VM, plus maxSkew; and without the toleration pods wait although VMs have room",
        fix: "set nodeTaintsPolicy: Honor on the constraint, so that a tainted node counts only for pods that tolerate it; or ScheduleAnyway",
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
        meaning: "required anti-affinity over hosts lets a virtual node, which is one host, take at most one such pod",
        on_virtual_node: "one pod for each virtual node, however much room it has",
        fix: "say it as a preference (preferredDuringSchedulingIgnoredDuringExecution)",
        can_be_allowed: false,
        source: "kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#inter-pod-affinity-and-anti-affinity",
    },
    reads: "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[*].topologyKey",
    check: |subject| {
        let apart = subject.pod.spec.affinity.as_ref()?.pod_anti_affinity.as_ref()?.required.as_deref()?;
        apart.iter().any(|term| term.topology_key.as_deref() == Some(HOSTNAME)).then(String::new)
    },
};

/// The generations that this pod could land on. Only nodes that were seen leave one out: what is documented may be out of date, and
/// where none is known any may come. One toleration opens both generations, so a node of the generation that the configuration
/// does not name counts as well if it is there. Where the pod's constraints accept none, all that exist, so that every reason is
/// listed.
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

/// Whether the pod requires the label by which the second generation is told from the first.
fn asks_for_v2(pod: &Pod<'_>) -> bool {
    let (key, value) = V2_LABEL;
    let by_selector = pod.spec.node_selector.as_ref().is_some_and(|selector| selector.get(key) == Some(value));
    let by_affinity = pod.required_node_affinity().is_some_and(|required| {
        let asks = |term: &NodeSelectorTerm<'_>| term.expressions().iter().any(|e| e.equals(key, "In", value));
        !required.terms().is_empty() && required.terms().iter().all(|term| term.is_empty() || asks(term))
    });
    by_selector || by_affinity
}

/// The virtual nodes of the generations that the configuration speaks of, or the documented ones where none is known.
fn nodes<'s>(subject: &Subject<'s>) -> impl Iterator<Item = &'s VirtualNode> + use<'s> {
    let (virtual_nodes, generations) = (subject.cluster.virtual_nodes, subject.overflow.generations);
    let is_meant = move |node: &&VirtualNode| generations.has(node.generation);
    let known = virtual_nodes.iter().any(|node| is_meant(&node));
    let nodes: &'s [VirtualNode] = if known { virtual_nodes } else { &*DOCUMENTED };
    nodes.iter().filter(is_meant)
}

/// One virtual node of each generation with the labels that are documented or published for it: node dump in
/// xfsnow/container VirtualNodeScaling/node.json and virtual-kubelet/azure-aci pkg/provider/vk_node.go for the first,
/// microsoft/virtualnodesOnAzureContainerInstances Docs for the second.
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

/// Whether the pod's node selector and required node affinity accept the node.
fn accepts(pod: &Pod<'_>, node: NodeView<'_>) -> bool {
    pod.spec.node_selector.as_ref().is_none_or(|selector| selector.first_unmatched(node).is_none())
        && pod.required_node_affinity().is_none_or(|required| required.matches(node))
}

/// What keeps the pod off the virtual nodes, in the words of its manifest.
fn unmet(subject: &Subject<'_>) -> String {
    if let Some(selector) = &subject.pod.spec.node_selector {
        // The entry that keeps it off the last one; where a node meets them all, the affinity is at fault.
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
            let requirements: Vec<_> = requirements.map(ToString::to_string).collect();
            if requirements.is_empty() { "(an empty term)".to_owned() } else { requirements.join(" and ") }
        })
        .collect();
    format!(
        "required node affinity {}",
        if terms.is_empty() { "without a term".to_owned() } else { terms.join(", or ") }
    )
}

/// The topology keys of constraints that can keep a pod unscheduled, and whether each honours taints.
fn hard_spreads<'p>(pod: &'p Pod<'_>) -> impl Iterator<Item = (&'p str, bool)> {
    let constraints = pod.spec.topology_spread_constraints.as_deref().unwrap_or_default();
    let hard = constraints.iter().filter(|c| c.when_unsatisfiable.as_deref() != Some("ScheduleAnyway"));
    hard.filter_map(|c| Some((c.topology_key.as_deref()?, c.node_taints_policy.as_deref() == Some("Honor"))))
}
