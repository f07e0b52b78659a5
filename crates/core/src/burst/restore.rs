//! Restores the additions that a reapplied pod lacks.
//!
//! `kubectl apply` sends a manifest's tolerations and preferred terms as whole lists. If a user applies a manifest
//! again, Spillway's additions are missing. The API server then refuses the update, because a pod's tolerations can
//! only grow and its affinity cannot change (decision 13).

use json_patch::Patch as JsonPatch;

use super::{
    ADDED, Added, DECISION, Part, network,
    patch::{
        Expression, PREFERRED, PatchBuilder, REQUIRED, add_node_affinity_field, add_required_term, preferred_term,
    },
    placement, size,
};
use crate::{
    config::VirtualNodes,
    pod::Pod,
    workload_identity::{USE, USE_VALUE},
};

/// Returns the patch that restores in `new` the parts that `spillway.dev/added` names and `old` has, or `None` if `new`
/// lacks none. A pod that is too large to evaluate gets no patch.
pub fn restore(new: &Pod<'_>, old: &Pod<'_>, nodes: &VirtualNodes) -> Option<JsonPatch> {
    if size::excess(new).or_else(|| size::excess(old)).is_some() {
        return None;
    }
    let added = Added::read(old);
    let mut patch = PatchBuilder::new();
    let label = added.has(Part::IdentityLabel) && old.label(USE) == Some(USE_VALUE);
    let label = (label && new.label(USE).is_none()).then_some((USE, USE_VALUE));
    patch.set_entries("/metadata/labels", new.metadata.labels.as_ref(), label.into_iter());

    let lost =
        |key: &'static str| old.annotation(key).filter(|_| new.annotation(key).is_none()).map(|value| (key, value));
    let network = [Part::KubeProxy, Part::Dns].into_iter().filter(|part| added.has(*part)).map(network::key);
    let lost = [ADDED, DECISION].into_iter().chain(network).filter_map(lost);
    patch.set_entries("/metadata/annotations", new.metadata.annotations.as_ref(), lost);

    // Only the old pod's annotation decides which parts are from Spillway.
    let is_gone = placement::added_toleration(new, nodes, &added).is_none();
    if placement::added_toleration(old, nodes, &added).is_some() && is_gone {
        patch.append(format_args!("/spec/tolerations"), new.spec.tolerations.is_some(), &nodes.toleration);
    }
    restore_preferred_term(&mut patch, new, old, nodes, &added);
    restore_expressions(&mut patch, new, old, nodes, &added);
    patch.finish()
}

/// Restores the term at its old index, because a different order also counts as a change of the affinity.
fn restore_preferred_term(patch: &mut PatchBuilder, new: &Pod<'_>, old: &Pod<'_>, nodes: &VirtualNodes, added: &Added) {
    let Some(place) = placement::added_preferred_term(old, nodes, added) else { return };
    if placement::added_preferred_term(new, nodes, added).is_some() {
        return;
    }
    let term = preferred_term(nodes);
    match new.preferred_node_affinity() {
        None => add_node_affinity_field(patch, new, PREFERRED, &[term]),
        Some(terms) => {
            let place = place.min(terms.len());
            patch.add(format_args!("/spec/affinity/nodeAffinity/{PREFERRED}/{place}"), &term);
        }
    }
}

fn restore_expressions(patch: &mut PatchBuilder, new: &Pod<'_>, old: &Pod<'_>, nodes: &VirtualNodes, added: &Added) {
    let Some(required) = new.required_node_affinity() else {
        // The whole affinity was from Spillway.
        if placement::added_expressions(old, nodes, added).next().is_some() {
            add_required_term(patch, new, nodes);
        }
        return;
    };
    let terms = required.terms();
    for (i, place) in placement::added_expressions(old, nodes, added) {
        let Some(expressions) = terms.get(i).and_then(|term| term.match_expressions.as_ref()) else { continue };
        if !placement::added_expressions(new, nodes, added).any(|(there, _)| there == i) {
            let place = place.min(expressions.len());
            patch.add(
                format_args!("/spec/affinity/nodeAffinity/{REQUIRED}/nodeSelectorTerms/{i}/matchExpressions/{place}"),
                &Expression::new(nodes, "In"),
            );
        }
    }
}
