//! The label without which Azure Workload Identity injects nothing.

use super::{Added, Outcome, Part, Step, Why};
use crate::{
    config::{IdentityLabel, Settings},
    eligibility,
    keys::{BURST_LABEL, DISABLED},
    pod::Pod,
    workload_identity::{EXPIRATION, PROXY, PROXY_PORT, ServiceAccount, USE, USE_VALUE, is_valid_expiration},
};

/// Whether the decision on this pod depends on its service account.
pub fn needs_service_account(pod: &Pod<'_>, settings: &Settings<'_>) -> bool {
    left_regardless(pod, settings).is_none()
}

/// The label is added when the service account carries a client ID and the pod's owner has not set the label. It does not
/// depend on whether the pod overflows, and it is never withdrawn: what came with it could not be taken back.
pub(super) fn step(pod: &Pod<'_>, settings: &Settings<'_>, service_account: ServiceAccount, added: &Added) -> Step {
    let outcome = match (left_regardless(pod, settings), service_account) {
        (Some(why), _) => Outcome::Left(why),
        (None, ServiceAccount::WithoutClientId) => Outcome::Left(Why::NoClientId),
        (None, ServiceAccount::Unknown) => Outcome::Left(Why::ServiceAccountUnknown),
        (None, account) if would_be_refused(pod, account) => Outcome::Left(Why::WouldBeRefused),
        (None, _) => Outcome::Added,
    };
    let was_added = pod.label(USE) == Some(USE_VALUE) && added.has(Part::IdentityLabel);
    Step { part: Part::IdentityLabel, outcome: if was_added { Outcome::Kept } else { outcome } }
}

/// Why the label is not added, whatever the service account.
fn left_regardless(pod: &Pod<'_>, settings: &Settings<'_>) -> Option<Why> {
    if settings.identity_label.value == IdentityLabel::Off {
        Some(Why::IdentityOff)
    } else if pod.label(USE).is_some() {
        Some(Why::LabelSetOnPod)
    } else if pod.label(BURST_LABEL) == Some(DISABLED) {
        Some(Why::OptedOut)
    } else if eligibility::is_mirror(pod) {
        Some(Why::MirrorPod)
    } else if eligibility::is_confidential(pod) {
        Some(Why::ConfidentialPod)
    } else {
        None
    }
}

/// Azure Workload Identity refuses a labelled pod, whatever its failurePolicy, for a token expiration that is no number from
/// 3600 to 86400 (the pod's beats its service account's), and for a proxy sidecar, whose annotation counts by its mere presence, on
/// the host's network or with a port that is no number. (Azure/azure-workload-identity `pkg/webhook/webhook.go`)
fn would_be_refused(pod: &Pod<'_>, account: ServiceAccount) -> bool {
    let bad_expiration = match pod.annotation(EXPIRATION) {
        Some(own) => !is_valid_expiration(own),
        None => account == ServiceAccount::WithBadExpiration,
    };
    let bad_proxy = pod.annotation(PROXY).is_some()
        && (pod.spec.host_network == Some(true)
            || pod.annotation(PROXY_PORT).is_some_and(|port| !port.is_empty() && port.parse::<i32>().is_err()));
    bad_expiration || bad_proxy
}
