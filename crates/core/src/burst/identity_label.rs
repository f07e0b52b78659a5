//! The label that makes Azure Workload Identity inject a token.

use super::{Added, Outcome, Part, Step, Why};
use crate::{
    config::{IdentityLabel, Settings},
    eligibility,
    keys::{BURST_LABEL, DISABLED},
    pod::Pod,
    workload_identity::{EXPIRATION, PROXY, PROXY_PORT, ServiceAccount, USE, USE_VALUE, is_valid_expiration},
};

/// Returns whether the decision on this pod depends on its service account.
pub fn needs_service_account(pod: &Pod<'_>, settings: &Settings<'_>) -> bool {
    reason_against_label(pod, settings).is_none()
}

/// Decides on the identity label.
///
/// Spillway adds the label if the service account has a client ID and the pod does not set the label. This does not
/// depend on overflow. Spillway never withdraws the label, because it cannot withdraw the injected parts.
pub(super) fn step(pod: &Pod<'_>, settings: &Settings<'_>, service_account: ServiceAccount, added: &Added) -> Step {
    let outcome = match (reason_against_label(pod, settings), service_account) {
        (Some(why), _) => Outcome::Left(why),
        (None, ServiceAccount::WithoutClientId) => Outcome::Left(Why::NoClientId),
        (None, ServiceAccount::Unknown) => Outcome::Left(Why::ServiceAccountUnknown),
        (None, account) if would_be_refused(pod, account) => Outcome::Left(Why::WouldBeRefused),
        (None, _) => Outcome::Added,
    };
    let was_added = pod.label(USE) == Some(USE_VALUE) && added.has(Part::IdentityLabel);
    Step { part: Part::IdentityLabel, outcome: if was_added { Outcome::Kept } else { outcome } }
}

/// Returns the reason against the label that holds for every service account, or `None`.
fn reason_against_label(pod: &Pod<'_>, settings: &Settings<'_>) -> Option<Why> {
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

/// Returns whether Azure Workload Identity would refuse the labeled pod, regardless of its `failurePolicy`.
///
/// It refuses a token expiration that is not a number from 3600 to 86400. The pod's value takes precedence over the
/// service account's. It also refuses a proxy sidecar on the host network or with an invalid port. The annotation of
/// the sidecar counts with any value. (Azure/azure-workload-identity `pkg/webhook/webhook.go`)
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
