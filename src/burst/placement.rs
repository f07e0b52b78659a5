//! The toleration that lets a pod onto virtual nodes, and the affinity that says how much it wants to be there.

use super::{Added, Outcome, Part, Step, Why};
use crate::{
    config::{Mode, VirtualNodes},
    pod::{NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint},
};

/// The value that Azure's virtual nodes give their taint, in both generations, unless they are told otherwise
/// (virtual-kubelet/azure-aci chart, `taint.value`).
const TAINT_VALUE: &str = "azure";

/// The weight that survives beside other preferred terms. Alone, every weight is the same: the scheduler normalises it away.
pub(super) const WEIGHT: u8 = 100;

/// For a pod that may overflow. `pinned` is a pod whose own constraints leave it no other place than virtual nodes.
pub(super) fn steps(pod: &Pod<'_>, nodes: &VirtualNodes, mode: Mode, pinned: bool, added: &Added) -> [Step; 2] {
    [
        Step { part: Part::Toleration, outcome: toleration(pod, nodes, mode, pinned, added) },
        Step { part: Part::Affinity, outcome: affinity(pod, nodes, mode, pinned, added) },
    ]
}

/// For a pod that stays: nothing is added, and what was added earlier is withdrawn.
pub(super) fn none(pod: &Pod<'_>, nodes: &VirtualNodes, added: &Added) -> [Step; 2] {
    let unless = |ours: bool| if ours { Outcome::Withdrawn } else { Outcome::Left(Why::NotBursting) };
    let toleration = our_toleration(pod, nodes, added).is_some();
    let affinity =
        our_preferred_term(pod, nodes, added).is_some() || our_expressions(pod, nodes, added).next().is_some();
    [
        Step { part: Part::Toleration, outcome: unless(toleration) },
        Step { part: Part::Affinity, outcome: unless(affinity) },
    ]
}

fn toleration(pod: &Pod<'_>, nodes: &VirtualNodes, mode: Mode, pinned: bool, added: &Added) -> Outcome {
    let toleration = &nodes.toleration;
    let taint = Taint {
        key: &toleration.key,
        value: toleration.value.as_deref().unwrap_or(TAINT_VALUE),
        effect: toleration.effect.as_str(),
    };
    if our_toleration(pod, nodes, added).is_some() {
        Outcome::Kept
    } else if pod.tolerations().iter().any(|existing| existing.tolerates(taint)) {
        Outcome::Left(Why::Tolerated)
    } else if pinned || matches!(mode, Mode::Prefer | Mode::Require) {
        Outcome::Added
    } else {
        // A pod that gets a VM must never carry it: a cluster autoscaler would drain the VM onto the virtual node.
        Outcome::Left(Why::NotAtAdmission)
    }
}

fn affinity(pod: &Pod<'_>, nodes: &VirtualNodes, mode: Mode, pinned: bool, added: &Added) -> Outcome {
    if pinned {
        return Outcome::Left(Why::Pinned);
    }
    let (is_there, is_ours) = if mode == Mode::Require {
        let is_there = pod.required_node_affinity().is_some() && missing_terms(pod, nodes).next().is_none();
        (is_there, our_expressions(pod, nodes, added).next().is_some())
    } else {
        let is_there = pod.preferred_node_terms().iter().any(|term| {
            let selector = &nodes.selector;
            term.preference.as_ref().is_some_and(|p| p.is_only(&selector.key, "NotIn", &selector.value))
        });
        (is_there, our_preferred_term(pod, nodes, added).is_some())
    };
    match (is_there, is_ours) {
        (true, true) => Outcome::Kept,
        (true, false) => Outcome::Left(Why::SaysTheSame),
        (false, _) => Outcome::Added,
    }
}

/// Whether the pod's owner has left it no other place than virtual nodes. What Spillway required itself does not count.
pub(super) fn is_pinned(pod: &Pod<'_>, nodes: &VirtualNodes) -> bool {
    let selector = &nodes.selector;
    let chosen = |key, value| pod.spec.node_selector.as_ref().is_some_and(|s| s.get(key) == Some(value));
    if chosen(&selector.key, &selector.value) || chosen("virtualization", "virtualnode2") {
        return true;
    }
    let added = Added::read(pod);
    if our_expressions(pod, nodes, &added).next().is_some() {
        return false;
    }
    let forces = |e: &NodeSelectorRequirement<'_>| {
        e.says(&selector.key, "In", &selector.value) || e.says("virtualization", "In", "virtualnode2")
    };
    let terms = pod.required_node_affinity().map(|required| required.terms()).unwrap_or_default();
    !terms.is_empty() && terms.iter().all(|term| term.expressions().iter().any(forces))
}

/// The index of the toleration that Spillway added: the last one that says exactly this.
pub(super) fn our_toleration(pod: &Pod<'_>, nodes: &VirtualNodes, added: &Added) -> Option<usize> {
    let ours = nodes.toleration_fields();
    added.has(Part::Toleration).then(|| pod.tolerations().iter().rposition(|t| t.says(ours)))?
}

/// The index of the preferred term that Spillway added: the last one that says exactly this.
pub(super) fn our_preferred_term(pod: &Pod<'_>, nodes: &VirtualNodes, added: &Added) -> Option<usize> {
    let selector = &nodes.selector;
    let is_ours = |term: &crate::pod::PreferredSchedulingTerm<'_>| {
        term.weight == Some(i64::from(WEIGHT))
            && term.preference.as_ref().is_some_and(|p| p.is_only(&selector.key, "NotIn", &selector.value))
    };
    added.has(Part::Affinity).then(|| pod.preferred_node_terms().iter().rposition(is_ours))?
}

/// The expressions that Spillway added to required terms, as index of the term and of the expression in it.
pub(super) fn our_expressions<'p>(
    pod: &'p Pod<'_>,
    nodes: &'p VirtualNodes,
    added: &'p Added,
) -> impl Iterator<Item = (usize, usize)> + 'p {
    let required = pod.required_node_affinity().filter(|_| added.has(Part::Affinity));
    let terms = required.map(|required| required.terms()).unwrap_or_default();
    terms.iter().enumerate().filter_map(|(i, term)| {
        let is_listed = added.terms.as_ref().is_none_or(|terms| terms.contains(&i));
        let position = term.expressions().iter().rposition(|e| requires_virtual(e, nodes));
        is_listed.then_some(position?).map(|position| (i, position))
    })
}

/// The required terms that do not ask for a virtual node yet. One that matches no node at all is left so.
pub(super) fn missing_terms<'p>(
    pod: &'p Pod<'_>,
    nodes: &'p VirtualNodes,
) -> impl Iterator<Item = (usize, &'p NodeSelectorTerm<'p>)> {
    let terms = pod.required_node_affinity().map(|required| required.terms()).unwrap_or_default();
    let is_missing = move |term: &NodeSelectorTerm<'_>| {
        !term.is_empty() && !term.expressions().iter().any(|e| requires_virtual(e, nodes))
    };
    terms.iter().enumerate().filter(move |(_, term)| is_missing(term))
}

fn requires_virtual(expression: &NodeSelectorRequirement<'_>, nodes: &VirtualNodes) -> bool {
    expression.says(&nodes.selector.key, "In", &nodes.selector.value)
}
