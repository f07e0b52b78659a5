//! What an answer says beside yes: warnings to a person who can act, and the reasons to the audit log.

use std::fmt::Write;

use crate::{
    admission::{Remarks, Request},
    burst::{DECISION, Decision},
    config::{IgnoredOverride, Settings, Sourced},
    eligibility::{Finding, Severity},
};

/// kubectl shows a warning on one line; the API server cuts at 256 bytes and drops all when they are 4 KiB together.
const LONGEST: usize = 119;
const MOST: usize = 3;

/// The warnings and the audit annotations that go with a decision.
pub fn remarks(request: &Request<'_>, settings: Option<&Settings<'_>>, decision: &Decision<'_>) -> Remarks {
    let warnings = if is_a_person(request) { warnings(settings, decision) } else { Vec::new() };
    Remarks { warnings, audit: audit(request, settings, decision) }
}

/// Whether somebody reads the answer who wrote the pod: no controller, which would only repeat the warning for each replica, and
/// no node. Decided by the user in the request, and by the pod's owner, since not every controller lives in kube-system.
fn is_a_person(request: &Request<'_>) -> bool {
    let machines = ["system:serviceaccount:kube-system:", "system:node:", "system:kube-controller-manager"];
    request.pod.controller_kind().is_none() && !machines.iter().any(|prefix| request.username.starts_with(prefix))
}

/// Overrides without effect, then what keeps the pod on VMs, then the rest; only what can be mended.
fn warnings(settings: Option<&Settings<'_>>, decision: &Decision<'_>) -> Vec<String> {
    let ignored = settings.into_iter().flat_map(|settings| &settings.ignored);
    let ignored = ignored.map(|one| format!("spillway: {}", ignored_text(one)));
    let refusals = decision.verdict.refusals().iter().filter(|finding| can_act(finding));
    let refusals = refusals.map(|finding| format!("spillway: stays on VMs: {}: {finding}", finding.reason.code));
    let notes = decision.notes.iter().filter(|finding| finding.reason.severity == Severity::Warning);
    let notes = notes.map(|finding| format!("spillway: {}: {finding}", finding.reason.code));
    ignored.chain(refusals).chain(notes).take(MOST).map(shorten).collect()
}

/// Whether the owner has a way out: by mending the pod, or by accepting what would happen.
fn can_act(finding: &Finding) -> bool {
    finding.reason.can_be_allowed || !finding.reason.fix.starts_with("nothing to mend")
}

fn shorten(mut text: String) -> String {
    if text.chars().count() > LONGEST {
        text = text.chars().take(LONGEST - 1).collect();
        text.push('…');
    }
    text
}

/// The API server keeps the first value of a name and drops a second one (k8s.io/apiserver `pkg/admission/attributes.go`). A pod
/// that carries a decision is seen in the second round, so what is said then has names of its own.
fn audit(
    request: &Request<'_>,
    settings: Option<&Settings<'_>>,
    decision: &Decision<'_>,
) -> Vec<(&'static str, String)> {
    let is_second_round = request.pod.annotation(DECISION).is_some();
    let name = |first, second| if is_second_round { second } else { first };
    let mut audit = Vec::with_capacity(4);
    audit.push((name("decision", "second-decision"), decision.verdict.to_string()));
    let reasons = reasons(decision);
    if !reasons.is_empty() {
        audit.push((name("reasons", "second-reasons"), reasons));
    }
    if let Some(settings) = settings {
        audit.push((name("settings", "second-settings"), settings_text(settings)));
        if !settings.ignored.is_empty() {
            let ignored: Vec<_> = settings.ignored.iter().map(ignored_text).collect();
            audit.push((name("ignored", "second-ignored"), ignored.join("; ")));
        }
    }
    audit
}

fn reasons(decision: &Decision<'_>) -> String {
    let mut reasons = String::new();
    for (how, findings) in [("", decision.verdict.refusals()), ("accepted ", &decision.accepted), ("", &decision.notes)]
    {
        for finding in findings {
            let separator = if reasons.is_empty() { "" } else { "; " };
            // Writing to a string cannot fail.
            let _ = write!(reasons, "{separator}{how}{}: {finding}", finding.reason.code);
        }
    }
    reasons
}

fn ignored_text(ignored: &IgnoredOverride) -> String {
    format!("{} annotation {} ignored: {}", ignored.on.as_str(), ignored.key, ignored.message)
}

/// `mode=prefer (profile), ...`: each value with its origin.
fn settings_text(settings: &Settings<'_>) -> String {
    fn push<T>(out: &mut String, name: &str, from: Sourced<T>, word: fn(T) -> &'static str) {
        let separator = if out.is_empty() { "" } else { ", " };
        let _ = write!(out, "{separator}{name}={} ({})", word(from.value), from.origin.as_str());
    }
    use crate::config::{Dns, IdentityLabel, KubeProxy, Mode};
    let mut out = String::with_capacity(128);
    push(&mut out, "mode", settings.mode, Mode::as_str);
    if settings.mode.value == Mode::Late {
        let Sourced { value, origin } = settings.late_after;
        let _ = write!(out, ", late-after={}s ({})", value.as_secs(), origin.as_str());
    }
    push(&mut out, "kube-proxy", settings.kube_proxy, KubeProxy::as_str);
    push(&mut out, "dns", settings.dns, Dns::as_str);
    push(&mut out, "identity-label", settings.identity_label, IdentityLabel::as_str);
    for allowed in &settings.allowed {
        let _ = write!(out, ", allow={} ({})", allowed.value.code, allowed.origin.as_str());
    }
    out
}
