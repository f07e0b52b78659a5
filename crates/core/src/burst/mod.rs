//! The decision: may this pod overflow to virtual nodes, and what has to change for it?
//!
//! Pure: no clock, no files, no network. The webhook, the controller and `spillway explain` call the same [`decide`], so
//! what a person sees offline is what the cluster does.

mod binding;
mod decision;
mod identity_label;
mod late;
mod living;
mod network;
mod patch;
mod placement;
pub mod reasons;
mod restore;

use std::collections::BTreeMap;

pub use binding::{DELETION_COST, binding_patch};
pub use decision::{Added, Decision, Outcome, Part, Step, Verdict, Why};
pub use identity_label::{is_valid_expiration, needs_service_account};
pub use late::late_toleration;
pub use living::living_patch;
pub use patch::json_patch;
pub use restore::restore;

use self::placement::Form;
use crate::{
    config::{BURST_LABEL, DISABLED, Mode, Settings},
    eligibility::{self, Finding, NetworkPolicy, Severity, Surroundings, VirtualNode},
    pod::Pod,
};

pub use crate::keys::{ADDED, DECISION, PLACED_ON, UNSCHEDULABLE_SINCE};

/// What is known of the service account that a pod runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceAccount {
    /// It carries the annotation `azure.workload.identity/client-id` with a value.
    WithClientId,
    /// It does, but also a token expiration that Azure Workload Identity refuses.
    WithBadExpiration,
    /// It does not.
    WithoutClientId,
    /// It could not be looked up.
    Unknown,
}

impl ServiceAccount {
    /// What the annotations of a service account say.
    pub fn of_annotations<'k>(annotations: impl Iterator<Item = (&'k str, &'k str)>) -> Self {
        let (mut has_client_id, mut bad_expiration) = (false, false);
        for (key, value) in annotations {
            has_client_id |= key == "azure.workload.identity/client-id" && !value.trim().is_empty();
            bad_expiration |= key == identity_label::EXPIRATION && !identity_label::is_valid_expiration(value);
        }
        match (has_client_id, bad_expiration) {
            (false, _) => Self::WithoutClientId,
            (true, true) => Self::WithBadExpiration,
            (true, false) => Self::WithClientId,
        }
    }
}

/// What is known of the cluster when a pod is decided on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'f> {
    /// The service account that the pod runs as.
    pub service_account: ServiceAccount,
    /// The pod's namespace; empty when it is not known.
    pub namespace: &'f str,
    /// The virtual nodes; none when none is known.
    pub virtual_nodes: &'f [VirtualNode],
    /// Labels of the pod's namespace.
    pub namespace_labels: &'f BTreeMap<String, String>,
    /// Annotations of the pod's namespace.
    pub namespace_annotations: &'f BTreeMap<String, String>,
    /// The NetworkPolicies of the pod's namespace.
    pub network_policies: &'f [NetworkPolicy],
}

impl Facts<'_> {
    /// When nothing is known but the service account.
    pub const fn only(service_account: ServiceAccount) -> Facts<'static> {
        static NOTHING: BTreeMap<String, String> = BTreeMap::new();
        Facts {
            service_account,
            namespace: "",
            virtual_nodes: &[],
            namespace_labels: &NOTHING,
            namespace_annotations: &NOTHING,
            network_policies: &[],
        }
    }
}

/// Decides on a pod.
///
/// `settings` is nothing when the pod's namespace names a profile that does not exist: such a pod stays, and nothing is added
/// but the decision. Deciding on a pod that already carries the result changes nothing; deciding on one that has changed since
/// withdraws what no longer fits.
pub fn decide<'a>(pod: &Pod<'_>, settings: Option<&Settings<'a>>, facts: &Facts<'_>) -> Decision<'a> {
    if pod.label(BURST_LABEL) == Some(DISABLED) {
        return Decision::opted_out();
    }
    let added = Added::read(pod);
    let Some(settings) = settings else {
        return Decision::unknown_profile(&added);
    };
    let identity = identity_label::step(pod, settings, facts.service_account, &added);
    let (refusals, mut notes, accepted) = judge(pod, settings, facts, identity.outcome == Outcome::Added);
    if identity.outcome == Outcome::Left(Why::WouldBeRefused) {
        notes.push(Finding::plain(&reasons::IDENTITY_WOULD_BE_REFUSED));
    }
    let virtual_nodes = settings.virtual_nodes;
    if !refusals.is_empty() {
        let is_ours = added.has(Part::Toleration);
        if settings.mode.value != Mode::Off && !is_ours && placement::is_tolerated(pod, virtual_nodes) {
            notes.push(Finding::plain(&reasons::TOLERATES_BY_ITSELF));
        }
        let [toleration, affinity] = placement::none(pod, virtual_nodes, &added);
        let [kube_proxy, dns] = network::none(pod, &added);
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

/// What keeps the pod on VMs, what its owner should know, and what its owner has accepted.
fn judge(
    pod: &Pod<'_>,
    settings: &Settings<'_>,
    facts: &Facts<'_>,
    gets_identity_label: bool,
) -> (Vec<Finding>, Vec<Finding>, Vec<Finding>) {
    if settings.mode.value == Mode::Off {
        return (vec![Finding::plain(&reasons::MODE_OFF)], Vec::new(), Vec::new());
    }
    let Facts {
        service_account: _,
        namespace,
        virtual_nodes,
        namespace_labels,
        namespace_annotations,
        network_policies,
    } = *facts;
    let surroundings = Surroundings {
        namespace,
        gets_identity_label,
        virtual_nodes,
        generations: settings.virtual_nodes.generations(),
        toleration: settings.virtual_nodes.toleration_fields(),
        namespace_labels,
        namespace_annotations,
        network_policies,
    };
    let (mut refusals, mut notes, mut accepted) = (Vec::new(), Vec::new(), Vec::new());
    for finding in eligibility::findings(pod, &surroundings) {
        match finding.reason.severity {
            Severity::Refusal if settings.allows(finding.reason) => accepted.push(finding),
            Severity::Refusal => refusals.push(finding),
            Severity::Warning | Severity::Note => notes.push(finding),
        }
    }
    (refusals, notes, accepted)
}
