//! The toleration that lets a pod run on virtual nodes, and the affinity that avoids or requires them.

use std::collections::BTreeSet;

use super::{Added, AddedAffinity, Outcome, Part, Step, Why};
use crate::{
    config::{Mode, VirtualNodes},
    eligibility::V2_LABEL,
    pod::{NodeSelectorRequirement, NodeSelectorTerm, Pod, PreferredSchedulingTerm, Taint},
};

/// Default value of the taint of Azure's virtual nodes, in both generations (virtual-kubelet/azure-aci chart,
/// `taint.value`).
const TAINT_VALUE: &str = "azure";

/// Weight that counts beside other preferred terms. For a single term the weight is irrelevant, because the scheduler
/// normalizes it.
pub(super) const WEIGHT: u8 = 100;

/// Form of the node affinity from Spillway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// No affinity.
    None,
    /// A preferred term that avoids virtual nodes.
    Preferred,
    /// An expression in every required term that requires virtual nodes.
    Required,
}

impl Form {
    /// Returns the form for a mode. `pinned` means that the pod's own constraints allow only virtual nodes.
    pub(super) fn of(mode: Mode, pinned: bool) -> Self {
        match mode {
            Mode::Off => Self::None,
            _ if pinned => Self::None,
            Mode::Require => Self::Required,
            Mode::Prefer | Mode::Late | Mode::Bridge => Self::Preferred,
        }
    }
}

/// Returns the steps for a pod that may overflow.
pub(super) fn steps(pod: &Pod<'_>, nodes: &VirtualNodes, mode: Mode, pinned: bool, added: &Added) -> [Step; 2] {
    [
        Step { part: Part::Toleration, outcome: toleration(pod, nodes, mode, pinned, added) },
        Step { part: Part::Affinity, outcome: affinity(pod, nodes, Form::of(mode, pinned), Why::Pinned, added) },
    ]
}

/// Returns the steps for a pod that stays on VMs: Spillway adds nothing, and withdraws earlier additions.
pub(super) fn withdraw(pod: &Pod<'_>, nodes: &VirtualNodes, added: &Added) -> [Step; 2] {
    let is_added = added_toleration(pod, nodes, added).is_some();
    let toleration = if is_added { Outcome::Withdrawn } else { Outcome::Left(Why::NotBursting) };
    [
        Step { part: Part::Toleration, outcome: toleration },
        Step { part: Part::Affinity, outcome: affinity(pod, nodes, Form::None, Why::NotBursting, added) },
    ]
}

/// Returns whether a toleration of the pod covers the taint of virtual nodes.
pub(super) fn is_tolerated(pod: &Pod<'_>, nodes: &VirtualNodes) -> bool {
    let toleration = &nodes.toleration;
    let taint = Taint {
        key: &toleration.key,
        value: toleration.value.as_deref().unwrap_or(TAINT_VALUE),
        effect: toleration.effect.as_str(),
    };
    pod.tolerations().iter().any(|existing| existing.tolerates(taint))
}

fn toleration(pod: &Pod<'_>, nodes: &VirtualNodes, mode: Mode, pinned: bool, added: &Added) -> Outcome {
    // In the other modes, pods on VMs must not have it. A cluster autoscaler would drain their VM onto the virtual node.
    let is_wanted = pinned || matches!(mode, Mode::Prefer | Mode::Require);
    match (is_wanted, added_toleration(pod, nodes, added).is_some()) {
        (true, true) => Outcome::Kept,
        (false, true) => Outcome::Withdrawn,
        (_, false) if is_tolerated(pod, nodes) => Outcome::Left(Why::Tolerated),
        (true, false) => Outcome::Added,
        (false, false) => Outcome::Left(Why::NotAtAdmission),
    }
}

fn affinity(pod: &Pod<'_>, nodes: &VirtualNodes, form: Form, unwanted: Why, added: &Added) -> Outcome {
    let has_added_term = added_preferred_term(pod, nodes, added).is_some();
    let has_added_expressions = added_expressions(pod, nodes, added).next().is_some();
    let (exists, is_added) = match form {
        Form::None if has_added_term || has_added_expressions => return Outcome::Withdrawn,
        Form::None => return Outcome::Left(unwanted),
        Form::Preferred => (prefers_others(pod, nodes), has_added_term),
        Form::Required => {
            let exists = pod.required_node_affinity().is_some() && missing_terms(pod, nodes).next().is_none();
            (exists, has_added_expressions)
        }
    };
    match (exists, is_added) {
        (true, true) => Outcome::Kept,
        (true, false) => Outcome::Left(Why::SaysTheSame),
        (false, _) => Outcome::Added,
    }
}

fn prefers_others(pod: &Pod<'_>, nodes: &VirtualNodes) -> bool {
    let selector = &nodes.selector;
    let says_so = |term: &NodeSelectorTerm<'_>| term.is_exactly(&selector.key, "NotIn", &selector.value);
    pod.preferred_node_terms().iter().any(|term| term.preference.as_ref().is_some_and(says_so))
}

/// Returns whether any required term of the pod itself excludes virtual nodes.
pub(super) fn forbids_in_a_term(pod: &Pod<'_>, nodes: &VirtualNodes) -> bool {
    let selector = &nodes.selector;
    let terms = pod.required_node_affinity().map(|required| required.terms()).unwrap_or_default();
    terms.iter().any(|term| term.expressions().iter().any(|e| e.equals(&selector.key, "NotIn", &selector.value)))
}

/// Returns whether the pod's own constraints allow only virtual nodes. Constraints from Spillway do not count.
pub(super) fn is_pinned(pod: &Pod<'_>, nodes: &VirtualNodes, added: &Added) -> bool {
    let selector = &nodes.selector;
    let chosen = |key, value| pod.spec.node_selector.as_ref().is_some_and(|s| s.get(key) == Some(value));
    if chosen(&selector.key, &selector.value) || chosen(V2_LABEL.0, V2_LABEL.1) {
        return true;
    }
    if added_expressions(pod, nodes, added).next().is_some() {
        return false;
    }
    let forces = |e: &NodeSelectorRequirement<'_>| {
        e.equals(&selector.key, "In", &selector.value) || e.equals(V2_LABEL.0, "In", V2_LABEL.1)
    };
    let terms = pod.required_node_affinity().map(|required| required.terms()).unwrap_or_default();
    !terms.is_empty() && terms.iter().all(|term| term.expressions().iter().any(forces))
}

/// Returns the index of the toleration that Spillway added: the last one with exactly these fields.
pub(super) fn added_toleration(pod: &Pod<'_>, nodes: &VirtualNodes, added: &Added) -> Option<usize> {
    let from_spillway = nodes.toleration_fields();
    added.has(Part::Toleration).then(|| pod.tolerations().iter().rposition(|t| t.equals(from_spillway)))?
}

/// Returns the record of the affinity after a decision with this form and outcome `Added` or `Kept`.
pub(super) fn record(pod: &Pod<'_>, nodes: &VirtualNodes, form: Form, adds: bool, added: &Added) -> AddedAffinity {
    let is_added = added_preferred_term(pod, nodes, added).is_some();
    let of_user =
        pod.preferred_node_terms().iter().filter(|term| equals_added_term(term, nodes)).count() > usize::from(is_added);
    let mut from_spillway: BTreeSet<_> = added_expressions(pod, nodes, added).map(|(i, _)| i).collect();
    let terms = pod.required_node_affinity().map(|required| required.terms()).unwrap_or_default();
    match form {
        // Spillway changes no affinity.
        Form::None => added.affinity.clone(),
        Form::Preferred => {
            let expressions = terms.iter().flat_map(NodeSelectorTerm::expressions);
            let equal = expressions.filter(|expression| requires_virtual(expression, nodes)).count();
            if equal > from_spillway.len() { AddedAffinity::Preferred } else { AddedAffinity::Any }
        }
        Form::Required => {
            if adds {
                from_spillway.extend(missing_terms(pod, nodes).map(|(i, _)| i));
            }
            // Without required terms, Spillway adds one.
            if pod.required_node_affinity().is_none() {
                from_spillway.insert(0);
            }
            if of_user || from_spillway.len() < terms.len() {
                AddedAffinity::Terms(from_spillway)
            } else {
                AddedAffinity::Any
            }
        }
    }
}

/// Returns the index of the preferred term that Spillway added: the last one with exactly this content.
pub(super) fn added_preferred_term(pod: &Pod<'_>, nodes: &VirtualNodes, added: &Added) -> Option<usize> {
    let may_be_added = added.has(Part::Affinity) && !matches!(added.affinity, AddedAffinity::Terms(_));
    may_be_added.then(|| pod.preferred_node_terms().iter().rposition(|term| equals_added_term(term, nodes)))?
}

fn equals_added_term(term: &PreferredSchedulingTerm<'_>, nodes: &VirtualNodes) -> bool {
    let selector = &nodes.selector;
    term.weight == Some(i64::from(WEIGHT))
        && term.preference.as_ref().is_some_and(|p| p.is_exactly(&selector.key, "NotIn", &selector.value))
}

/// Returns the expressions that Spillway added to required terms, as indexes of the term and of its expression.
pub(super) fn added_expressions<'p>(
    pod: &'p Pod<'_>,
    nodes: &'p VirtualNodes,
    added: &'p Added,
) -> impl Iterator<Item = (usize, usize)> + 'p {
    let required = pod.required_node_affinity().filter(|_| added.has(Part::Affinity));
    let terms = required.map(|required| required.terms()).unwrap_or_default();
    terms.iter().enumerate().filter_map(|(i, term)| {
        let is_listed = match &added.affinity {
            AddedAffinity::Any => true,
            AddedAffinity::Preferred => false,
            AddedAffinity::Terms(terms) => terms.contains(&i),
        };
        let position = term.expressions().iter().rposition(|e| requires_virtual(e, nodes));
        is_listed.then_some(position?).map(|position| (i, position))
    })
}

/// Returns the required terms that do not require a virtual node yet. Skips empty terms, which match no node.
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
    expression.equals(&nodes.selector.key, "In", &nodes.selector.value)
}
