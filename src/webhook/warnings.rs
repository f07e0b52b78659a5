//! The warnings of an admission response, which kubectl shows to the user who created the pod.

use super::audit_annotations::format_ignored_override;
use crate::{
    admission::Request,
    burst::Decision,
    config::Settings,
    eligibility::{Finding, Severity},
};

/// Limits of warnings. kubectl shows a warning on one line. The API server truncates warnings at 256 bytes, and drops
/// all of them above 4 KiB in total.
const MAX_WARNING_CHARS: usize = 119;
const MAX_WARNINGS: usize = 3;

/// Returns whether a user sent the request. Controllers would repeat the warning for each replica, and nodes do not show
/// it. Some controllers run outside of kube-system, so a pod with a controller does not count as a user's.
fn is_user_request(request: &Request<'_>) -> bool {
    let machines = ["system:serviceaccount:kube-system:", "system:node:", "system:kube-controller-manager"];
    request.pod.controller_kind().is_none() && !machines.iter().any(|prefix| request.username.starts_with(prefix))
}

/// Returns warnings for ignored overrides, then refusals, then notes. Only problems that the user can fix are included.
pub(super) fn warnings(request: &Request<'_>, settings: Option<&Settings<'_>>, decision: &Decision<'_>) -> Vec<String> {
    if !is_user_request(request) {
        return Vec::new();
    }
    let ignored = settings.into_iter().flat_map(|settings| &settings.ignored);
    let ignored = ignored.map(|one| format!("spillway: {}", format_ignored_override(one)));
    let refusals = decision.verdict.refusals().iter().filter(|finding| is_actionable(finding));
    let refusals = refusals.map(|finding| format!("spillway: stays on VMs: {}: {finding}", finding.reason.code));
    let notes = decision.notes.iter().filter(|finding| finding.reason.severity == Severity::Warning);
    let notes = notes.map(|finding| format!("spillway: {}: {finding}", finding.reason.code));
    ignored.chain(refusals).chain(notes).take(MAX_WARNINGS).map(truncate).collect()
}

/// Returns whether the user can fix the pod or accept the consequences.
fn is_actionable(finding: &Finding) -> bool {
    finding.reason.can_be_allowed || finding.reason.has_fix()
}

fn truncate(mut text: String) -> String {
    if text.chars().count() > MAX_WARNING_CHARS {
        text = text.chars().take(MAX_WARNING_CHARS - 1).collect();
        text.push('…');
    }
    text
}
