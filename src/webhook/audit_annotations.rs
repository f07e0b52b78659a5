//! The audit annotations of an admission response: the decision and its reasons, for the API server's audit log.

use std::fmt::Write;

use crate::{
    admission::Request,
    burst::{DECISION, Decision},
    config::{IgnoredOverride, Settings, Sourced},
    excerpt,
};

/// Maximum characters of a value. The API server writes it into the audit log for each creation of a pod.
const MAX_CHARS: usize = 4096;

/// Returns the audit annotations of one decision. Each value has at most 4,096 characters.
///
/// The API server keeps the first value of a name and drops later ones (k8s.io/apiserver
/// `pkg/admission/attributes.go`). A pod that already has a decision is in its second round, which therefore uses other
/// names.
pub(super) fn audit_annotations(
    request: &Request<'_>,
    settings: Option<&Settings<'_>>,
    decision: &Decision<'_>,
) -> Vec<(&'static str, String)> {
    let is_second_round = request.pod.annotation(DECISION).is_some();
    let name = |first, second| if is_second_round { second } else { first };
    let mut annotations = Vec::with_capacity(4);
    annotations.push((name("decision", "second-decision"), decision.verdict.to_string()));
    let reasons = format_reasons(decision);
    if !reasons.is_empty() {
        annotations.push((name("reasons", "second-reasons"), reasons));
    }
    if let Some(settings) = settings {
        annotations.push((name("settings", "second-settings"), format_settings(settings)));
        if !settings.ignored.is_empty() {
            let ignored: Vec<_> = settings.ignored.iter().map(format_ignored_override).collect();
            annotations.push((name("ignored", "second-ignored"), ignored.join("; ")));
        }
    }
    for (_, value) in &mut annotations {
        excerpt::shorten(value, MAX_CHARS);
    }
    annotations
}

fn format_reasons(decision: &Decision<'_>) -> String {
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

pub(super) fn format_ignored_override(ignored: &IgnoredOverride) -> String {
    format!("{} annotation {} ignored: {}", ignored.on.as_str(), ignored.key, ignored.message)
}

/// Returns each setting with its origin: `mode=prefer (profile), ...`.
fn format_settings(settings: &Settings<'_>) -> String {
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
