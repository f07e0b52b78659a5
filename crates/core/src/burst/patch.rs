//! The JSON patch (RFC 6902) of a decision.
//!
//! `failurePolicy: Ignore` does not protect a pod from a patch that does not apply (kubernetes/kubernetes#129459,
//! decision 4). So each operation is an `add` below a parent in the view, or a `remove` of a value in the view:
//!
//! - Spillway adds a missing parent together with its content.
//! - Spillway appends to lists with `/-`.
//! - Spillway replaces existing values only in its own annotations.

mod operations;

use std::fmt::Write;

use json_patch::Patch as JsonPatch;
use serde::Serialize;

use self::operations::Field;
pub(super) use self::operations::{Escaped, PatchBuilder};
use super::{
    ADDED, Added, DECISION, Decision, Outcome, Part, Verdict, network,
    placement::{self, Form},
};
use crate::{
    config::VirtualNodes,
    pod::{NodeSelectorTerm, Pod},
    workload_identity::{USE, USE_VALUE},
};

pub(super) const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
pub(super) const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";

/// Returns the patch that carries out a decision on this same pod, or `None` if the pod needs no change.
pub fn json_patch(pod: &Pod<'_>, decision: &Decision<'_>) -> Option<JsonPatch> {
    if decision.verdict == Verdict::OptedOut {
        return None;
    }
    let (mut patch, record) = (PatchBuilder::new(), Added::read(pod));
    let is_labelled = decision.outcome(Part::IdentityLabel) == Outcome::Added;
    let label = is_labelled.then_some((USE, USE_VALUE));
    patch.set_entries("/metadata/labels", pod.metadata.labels.as_ref(), label.into_iter());
    set_annotations(&mut patch, pod, decision, &record);
    if let Some(nodes) = decision.virtual_nodes {
        change_toleration(&mut patch, pod, decision, nodes, &record);
        change_affinity(&mut patch, pod, decision, nodes, &record);
    }
    patch.finish()
}

pub(super) fn set_annotations(patch: &mut PatchBuilder, pod: &Pod<'_>, decision: &Decision<'_>, record: &Added) {
    const PATH: &str = "/metadata/annotations";
    let verdict = decision.verdict.to_string();
    let added = added_value(pod, decision, record);
    let opt_out = |part| (decision.outcome(part) == Outcome::Added).then_some((network::key(part), network::OPT_OUT));
    let entries = [
        opt_out(Part::KubeProxy),
        opt_out(Part::Dns),
        (!added.is_empty()).then_some((ADDED, added.as_str())),
        Some((DECISION, verdict.as_str())),
    ];
    patch.set_entries(PATH, pod.metadata.annotations.as_ref(), entries.into_iter().flatten());
    for part in [Part::KubeProxy, Part::Dns] {
        if decision.outcome(part) == Outcome::Withdrawn {
            patch.remove(format_args!("{PATH}/{}", Escaped(network::key(part))));
        }
    }
    if added.is_empty() && pod.annotation(ADDED).is_some() {
        patch.remove(format_args!("{PATH}/{}", Escaped(ADDED)));
    }
}

/// Returns the value of `spillway.dev/added` after this decision. Empty if no part is from Spillway.
fn added_value(pod: &Pod<'_>, decision: &Decision<'_>, record: &Added) -> String {
    let mut list = String::with_capacity(56); // all five names, and a term or two
    for step in decision.steps.iter().filter(|step| matches!(step.outcome, Outcome::Added | Outcome::Kept)) {
        if !list.is_empty() {
            list.push(',');
        }
        match (step.part, decision.virtual_nodes) {
            (Part::Affinity, Some(nodes)) => {
                let adds = step.outcome == Outcome::Added;
                let _ = write!(list, "{}", placement::record(pod, nodes, decision.form, adds, record));
            }
            (Part::Affinity, None) => {
                let _ = write!(list, "{}", record.affinity);
            }
            _ => list.push_str(step.part.as_str()),
        }
    }
    list
}

fn change_toleration(
    patch: &mut PatchBuilder,
    pod: &Pod<'_>,
    decision: &Decision<'_>,
    nodes: &VirtualNodes,
    record: &Added,
) {
    const PATH: &str = "/spec/tolerations";
    match decision.outcome(Part::Toleration) {
        Outcome::Added => patch.append(format_args!("{PATH}"), pod.spec.tolerations.is_some(), &nodes.toleration),
        Outcome::Withdrawn => {
            if let Some(i) = placement::added_toleration(pod, nodes, record) {
                patch.remove(format_args!("{PATH}/{i}"));
            }
        }
        Outcome::Kept | Outcome::Left(_) => {}
    }
}

/// Removes an affinity of the wrong form, then adds one of the right form.
fn change_affinity(
    patch: &mut PatchBuilder,
    pod: &Pod<'_>,
    decision: &Decision<'_>,
    nodes: &VirtualNodes,
    record: &Added,
) {
    if decision.form != Form::Preferred {
        withdraw_preferred_term(patch, pod, nodes, record);
    }
    if decision.form != Form::Required {
        withdraw_expressions(patch, pod, nodes, record);
    }
    match (decision.outcome(Part::Affinity), decision.form) {
        (Outcome::Added, Form::Required) => require_virtual_nodes(patch, pod, nodes),
        (Outcome::Added, _) => {
            let exists = pod.preferred_node_affinity().is_some();
            add_node_affinity(patch, pod, PREFERRED, exists, &preferred_term(nodes));
        }
        (Outcome::Kept | Outcome::Withdrawn | Outcome::Left(_), _) => {}
    }
}

fn require_virtual_nodes(patch: &mut PatchBuilder, pod: &Pod<'_>, nodes: &VirtualNodes) {
    if pod.required_node_affinity().is_none() {
        return add_required_term(patch, pod, nodes);
    }
    let expression = Expression::new(nodes, "In");
    for (i, term) in placement::missing_terms(pod, nodes) {
        let expressions = format_args!("/spec/affinity/nodeAffinity/{REQUIRED}/nodeSelectorTerms/{i}/matchExpressions");
        patch.append(expressions, term.match_expressions.is_some(), &expression);
    }
}

/// Adds a required node affinity to a pod without one.
pub(super) fn add_required_term(patch: &mut PatchBuilder, pod: &Pod<'_>, nodes: &VirtualNodes) {
    let term = Preference { match_expressions: [Expression::new(nodes, "In")] };
    add_node_affinity_field(patch, pod, REQUIRED, &NodeSelector { node_selector_terms: [term] });
}

fn withdraw_preferred_term(patch: &mut PatchBuilder, pod: &Pod<'_>, nodes: &VirtualNodes, added: &Added) {
    if let Some(i) = placement::added_preferred_term(pod, nodes, added) {
        patch.remove(format_args!("/spec/affinity/nodeAffinity/{PREFERRED}/{i}"));
    }
}

/// Removes Spillway's expressions. If the only term would become empty, the whole affinity is removed, because an empty
/// term matches no node.
fn withdraw_expressions(patch: &mut PatchBuilder, pod: &Pod<'_>, nodes: &VirtualNodes, added: &Added) {
    const PATH: &str = "/spec/affinity/nodeAffinity";
    let is_ours_alone = |term: &NodeSelectorTerm<'_>| term.is_exactly(&nodes.selector.key, "In", &nodes.selector.value);
    for (i, position) in placement::added_expressions(pod, nodes, added) {
        match pod.required_node_affinity().map(|required| required.terms()) {
            Some([only]) if is_ours_alone(only) => patch.remove(format_args!("{PATH}/{REQUIRED}")),
            _ => patch.remove(format_args!("{PATH}/{REQUIRED}/nodeSelectorTerms/{i}/matchExpressions/{position}")),
        }
    }
}

/// Appends to a list of the node affinity. Adds missing parents.
fn add_node_affinity(patch: &mut PatchBuilder, pod: &Pod<'_>, field: &str, exists: bool, entry: &impl Serialize) {
    if exists {
        patch.append(format_args!("/spec/affinity/nodeAffinity/{field}"), true, entry);
    } else {
        add_node_affinity_field(patch, pod, field, &[entry]);
    }
}

/// Adds a field of the node affinity. Adds missing parents.
pub(super) fn add_node_affinity_field(patch: &mut PatchBuilder, pod: &Pod<'_>, field: &str, value: &impl Serialize) {
    let affinity = pod.spec.affinity.as_ref();
    let field_only = Field::of(field, value);
    match (affinity, affinity.and_then(|affinity| affinity.node_affinity.as_ref())) {
        (None, _) => patch.add(format_args!("/spec/affinity"), &Field::of("nodeAffinity", &field_only)),
        (Some(_), None) => patch.add(format_args!("/spec/affinity/nodeAffinity"), &field_only),
        (Some(_), Some(_)) => patch.add(format_args!("/spec/affinity/nodeAffinity/{field}"), value),
    }
}

#[derive(Serialize)]
pub(super) struct Term<'t> {
    weight: u8,
    preference: Preference<'t>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeSelector<'t> {
    node_selector_terms: [Preference<'t>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Preference<'t> {
    match_expressions: [Expression<'t>; 1],
}

#[derive(Serialize)]
pub(super) struct Expression<'t> {
    key: &'t str,
    operator: &'static str,
    values: [&'t str; 1],
}

impl<'t> Expression<'t> {
    pub(super) fn new(nodes: &'t VirtualNodes, operator: &'static str) -> Self {
        Self { key: &nodes.selector.key, operator, values: [&nodes.selector.value] }
    }
}

/// Returns the preferred term for nodes that are not virtual.
pub(super) fn preferred_term(nodes: &VirtualNodes) -> Term<'_> {
    let preference = Preference { match_expressions: [Expression::new(nodes, "NotIn")] };
    Term { weight: placement::WEIGHT, preference }
}
