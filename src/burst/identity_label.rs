//! The label without which Azure Workload Identity injects nothing.

use super::{Outcome, Part, ServiceAccount, Step, Why, eligibility};
use crate::{
    config::{BURST_LABEL, DISABLED, IdentityLabel, Settings},
    pod::Pod,
};

/// Azure Workload Identity's webhook selects pods by this label with exactly the value `"true"`.
pub(super) const KEY: &str = "azure.workload.identity/use";
pub(super) const VALUE: &str = "true";

/// Whether the decision on this pod depends on its service account.
pub fn needs_service_account(pod: &Pod<'_>, settings: &Settings<'_>) -> bool {
    left_regardless(pod, settings).is_none()
}

/// The label is added when the service account carries a client ID and the pod's owner has not set the label. It does not
/// depend on whether the pod overflows.
pub(super) fn step(pod: &Pod<'_>, settings: &Settings<'_>, service_account: ServiceAccount) -> Step {
    let outcome = match (left_regardless(pod, settings), service_account) {
        (Some(why), _) => Outcome::Left(why),
        (None, ServiceAccount::WithClientId) => Outcome::Added,
        (None, ServiceAccount::WithoutClientId) => Outcome::Left(Why::NoClientId),
        (None, ServiceAccount::Unknown) => Outcome::Left(Why::ServiceAccountUnknown),
    };
    Step { part: Part::IdentityLabel, outcome }
}

/// Why the label is not added, whatever the service account.
fn left_regardless(pod: &Pod<'_>, settings: &Settings<'_>) -> Option<Why> {
    if settings.identity_label.value == IdentityLabel::Off {
        Some(Why::IdentityOff)
    } else if pod.label(KEY).is_some() {
        Some(Why::LabelSetOnPod)
    } else if pod.label(BURST_LABEL) == Some(DISABLED) {
        Some(Why::OptedOut)
    } else if eligibility::mirror_pod(pod) {
        Some(Why::MirrorPod)
    } else {
        None
    }
}
