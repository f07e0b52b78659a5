//! Decides which pods may overflow to virtual nodes, and which changes they need.
//!
//! The module is pure: it uses no clock, files or network. The webhook, the controller and `spillway explain` call the
//! same [`decide`]. So an offline decision is the same as in the cluster.

mod binding;
mod decision;
mod existing_pod;
mod identity_label;
mod late;
mod network;
mod patch;
mod placement;
pub mod reasons;
mod restore;
mod size;

pub use binding::{DELETION_COST, binding_patch};
use decision::AddedAffinity;
pub use decision::{Added, Decision, Outcome, Part, Step, Verdict, Why};
pub use existing_pod::existing_pod_patch;
pub use identity_label::needs_service_account;
pub use late::late_toleration;
pub use patch::json_patch;
pub use restore::restore;

use self::placement::Form;
use crate::{
    config::{Mode, PodSettings, Settings},
    eligibility::{self, Finding, Overflow, Severity},
    keys::{BURST_LABEL, DISABLED},
    pod::Pod,
};

pub use crate::keys::{ADDED, DECISION, PLACED_ON, UNSCHEDULABLE_SINCE};
pub use crate::{eligibility::ClusterContext, workload_identity::ServiceAccount};

/// Decides on a pod.
///
/// - If the namespace names an unknown profile, or a list of the pod is too long, the pod stays on VMs and gets only the
///   decision.
/// - If the pod already has the result, another decision changes nothing.
/// - If the pod has changed since, another decision withdraws the additions that no longer fit.
pub fn decide<'a>(pod: &Pod<'_>, settings: &PodSettings<'a>, cluster: &ClusterContext<'_>) -> Decision<'a> {
    if pod.label(BURST_LABEL) == Some(DISABLED) {
        return Decision::opted_out();
    }
    if let Some(detail) = size::excess(pod) {
        return Decision::too_large(detail);
    }
    let added = Added::read(pod);
    let PodSettings::Known(settings) = settings else {
        return Decision::unknown_profile(&added);
    };
    let identity = identity_label::step(pod, settings, cluster.service_account, &added);
    let (refusals, mut notes, accepted) = judge(pod, settings, cluster, identity.outcome == Outcome::Added);
    if identity.outcome == Outcome::Left(Why::WouldBeRefused) {
        notes.push(Finding::plain(&reasons::IDENTITY_WOULD_BE_REFUSED));
    }
    let virtual_nodes = settings.virtual_nodes;
    if !refusals.is_empty() {
        let is_added = added.has(Part::Toleration);
        if settings.mode.value != Mode::Off && !is_added && placement::is_tolerated(pod, virtual_nodes) {
            notes.push(Finding::plain(&reasons::TOLERATES_BY_ITSELF));
        }
        let [toleration, affinity] = placement::withdraw(pod, virtual_nodes, &added);
        let [kube_proxy, dns] = network::withdraw(pod, &added);
        let steps = [toleration, affinity, kube_proxy, dns, identity];
        let verdict = Verdict::Stay(refusals);
        return Decision { verdict, steps, notes, accepted, virtual_nodes: Some(virtual_nodes), form: Form::None };
    }
    let mode = settings.mode.value;
    let pinned = placement::is_pinned(pod, virtual_nodes, &added);
    if pinned {
        notes.push(Finding::plain(&reasons::ALREADY_PINNED));
    }
    if mode == Mode::Require && placement::forbids_in_a_term(pod, virtual_nodes) {
        notes.push(Finding::plain(&reasons::TERM_NEVER_MET));
    }
    let [toleration, affinity] = placement::steps(pod, virtual_nodes, mode, pinned, &added);
    let [kube_proxy, dns] = network::steps(pod, settings, &added);
    let steps = [toleration, affinity, kube_proxy, dns, identity];
    let (verdict, form) = (Verdict::Burst(mode), Form::of(mode, pinned));
    Decision { verdict, steps, notes, accepted, virtual_nodes: Some(virtual_nodes), form }
}

/// Returns the refusals, the notes, and the refusals that the owner has accepted.
fn judge(
    pod: &Pod<'_>,
    settings: &Settings<'_>,
    cluster: &ClusterContext<'_>,
    gets_identity_label: bool,
) -> (Vec<Finding>, Vec<Finding>, Vec<Finding>) {
    if settings.mode.value == Mode::Off {
        return (vec![Finding::plain(&reasons::MODE_OFF)], Vec::new(), Vec::new());
    }
    let overflow = Overflow {
        generations: settings.virtual_nodes.generations(),
        toleration: settings.virtual_nodes.toleration_fields(),
        gets_identity_label,
    };
    let (mut refusals, mut notes, mut accepted) = (Vec::new(), Vec::new(), Vec::new());
    for finding in eligibility::findings(pod, cluster, overflow) {
        match finding.reason.severity {
            Severity::Refusal if settings.allows(finding.reason) => accepted.push(finding),
            Severity::Refusal => refusals.push(finding),
            Severity::Warning | Severity::Note => notes.push(finding),
        }
    }
    (refusals, notes, accepted)
}
