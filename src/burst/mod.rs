//! The decision: may this pod overflow to virtual nodes, and what has to change for it?
//!
//! Pure: no clock, no files, no network. The webhook, the controller and `spillway explain` call the same [`decide`], so
//! what a person sees offline is what the cluster does.

mod decision;
pub mod eligibility;
mod identity_label;
mod network;
mod patch;
mod placement;

pub use decision::{Decision, Outcome, Part, Reason, Step, Verdict, Why};
pub use identity_label::needs_service_account;
pub use patch::json_patch;

use crate::{
    config::{BURST_LABEL, DISABLED, Mode, Settings},
    pod::Pod,
};

/// Annotation: what was decided, such as `prefer` or `stay: DaemonSet`.
pub const DECISION: &str = "spillway.dev/decision";
/// Annotation: the names of what Spillway added, so that exactly this can be withdrawn.
pub const ADDED: &str = "spillway.dev/added";

/// What is known of the service account that a pod runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceAccount {
    /// It carries the annotation `azure.workload.identity/client-id` with a value.
    WithClientId,
    /// It does not.
    WithoutClientId,
    /// It could not be looked up.
    Unknown,
}

/// Decides on a pod.
///
/// `settings` is nothing when the pod's namespace names a profile that does not exist: such a pod stays, and nothing is added
/// but the decision. Deciding on a pod that already carries the result changes nothing.
pub fn decide<'a>(pod: &Pod<'_>, settings: Option<&Settings<'a>>, service_account: ServiceAccount) -> Decision<'a> {
    if pod.label(BURST_LABEL) == Some(DISABLED) {
        return Decision::opted_out();
    }
    let Some(settings) = settings else {
        return Decision::stay(vec![Reason::UnknownProfile]);
    };
    let reasons = match settings.mode.value {
        Mode::Off => vec![Reason::ModeOff],
        Mode::Prefer => eligibility::refusals(pod),
    };
    let identity = identity_label::step(pod, settings, service_account);
    if !reasons.is_empty() {
        return Decision::stay(reasons).with(identity);
    }
    let [kube_proxy, dns] = network::steps(pod, settings);
    let [toleration, affinity] = placement::steps(pod, settings.virtual_nodes);
    Decision::burst(settings, [toleration, affinity, kube_proxy, dns, identity])
}
