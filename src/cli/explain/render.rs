//! Explanations as text, JSON, YAML or patches.

use std::fmt::Write;

use serde_json::{Value, json};
use similar::{ChangeTag, TextDiff};

use super::{explained::Explained, placement::Placement};
use crate::{
    admission,
    burst::{Outcome, Verdict, Why},
    cli::colors::Colors,
    config::{FULL_TAINT, Mode, Settings, Sourced},
    eligibility::{Applies, Finding, Reason},
};

pub(super) fn text(explained: &[Explained<'_>]) -> anyhow::Result<Vec<u8>> {
    let colors = Colors::of_stdout();
    let mut out = String::new();
    for (i, one) in explained.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        headline(&mut out, one, &colors)?;
        placement(&mut out, one)?;
        reasons(&mut out, one)?;
        notes(&mut out, one)?;
        steps(&mut out, one, &colors)?;
        settings(&mut out, one, &colors)?;
        diff(&mut out, one, &colors)?;
    }
    Ok(out.into_bytes())
}

fn headline(out: &mut String, one: &Explained<'_>, colors: &Colors) -> std::fmt::Result {
    let Colors { success, error, bold, .. } = colors;
    let color = if one.is_refused() { error } else { success };
    let name = if one.template.name.is_empty() { "(no name)" } else { &one.template.name };
    writeln!(
        out,
        "{bold}{} {}/{name}{bold:#}: {color}{}{color:#}",
        one.template.kind,
        one.namespace,
        one.decision_text()
    )
}

/// Writes the node of an existing pod, and the reason for this node.
fn placement(out: &mut String, one: &Explained<'_>) -> std::fmt::Result {
    let Some(Placement { node, is_virtual, why }) = &one.placement else { return Ok(()) };
    match (node, is_virtual) {
        (None, _) => writeln!(out, "  waits for a node: {why}"),
        (Some(node), Some(true)) => writeln!(out, "  on virtual node {node}: {why}"),
        (Some(node), Some(false)) => writeln!(out, "  on VM {node}: {why}"),
        (Some(node), None) => writeln!(out, "  on node {node}: {why}"),
    }
}

/// Returns a table with one row per pod.
pub(super) fn table(explained: &[Explained<'_>]) -> anyhow::Result<Vec<u8>> {
    if explained.is_empty() {
        return Ok(b"no pod was missed\n".to_vec());
    }
    let mut rows = vec![["NAMESPACE", "POD", "OWNER", "NODE", "CREATED", "DECISION"].map(str::to_owned)];
    rows.extend(explained.iter().map(|one| {
        let text = |pointer: &str| one.template.pod.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let missing = || "-".to_owned();
        [
            one.namespace.clone(),
            one.template.name.clone(),
            owner(&one.template.pod).unwrap_or_else(missing),
            one.placement.as_ref().and_then(|placement| placement.node.clone()).unwrap_or_else(missing),
            text("/metadata/creationTimestamp").unwrap_or_else(missing),
            one.decision_text(),
        ]
    }));
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.len())).max().unwrap_or_default();
    let widths: Vec<_> = (0..6).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("   ").trim_end())?;
    }
    Ok(out.into_bytes())
}

/// Returns the controller of a pod, such as `ReplicaSet/web-5d4f`.
fn owner(pod: &Value) -> Option<String> {
    let owners = pod.pointer("/metadata/ownerReferences")?.as_array()?;
    let owner = owners.iter().find(|owner| owner.get("controller") == Some(&Value::Bool(true)))?;
    Some(format!("{}/{}", owner.get("kind")?.as_str()?, owner.get("name")?.as_str()?))
}

fn reasons(out: &mut String, one: &Explained<'_>) -> std::fmt::Result {
    match (&one.profile, &one.decision.verdict) {
        (Err(why), _) => writeln!(out, "  {why}, so the API server does not call Spillway"),
        (_, Verdict::OptedOut) => {
            writeln!(
                out,
                "  the label spillway.dev/burst: disabled opts the pod out, so the API server does not call Spillway"
            )
        }
        (_, Verdict::Stay(findings)) => findings.iter().try_for_each(|finding| {
            let reason = finding.reason;
            writeln!(out, "  {}{}: {finding}", reason.code, generation(reason))?;
            writeln!(out, "    on a virtual node: {}", reason.on_virtual_node)?;
            writeln!(out, "    how to fix it: {}", reason.fix)
        }),
        (_, Verdict::Burst(_)) => Ok(()),
    }
}

/// Returns the generation that a reason applies to, unless it applies to both.
fn generation(reason: &Reason) -> String {
    if reason.applies == Applies::Any { String::new() } else { format!(" ({})", reason.applies.as_str()) }
}

/// Returns the consequence of objects that could not be read.
fn unread(plural: &str) -> String {
    let (what, consequence) = match plural {
        "networkpolicies" => ("network policies", "isolation not checked"),
        "nodes" => ("nodes", "decided as if no virtual node were known"),
        "pods" => ("pods on virtual nodes", "maxPods ignored"),
        "serviceaccounts" => ("service accounts", "identity not checked, and a mounted token assumed"),
        "services" => ("services", "unreachable Services not listed"),
        other => (other, "ignored"),
    };
    format!("{what} could not be read: {consequence}")
}

/// Writes unread objects, closed nodes, accepted reasons, notes for the owner, and ignored overrides.
fn notes(out: &mut String, one: &Explained<'_>) -> std::fmt::Result {
    let is_of_one = |finding: &Finding| finding.reason.applies != Applies::Any;
    if one.generations_unknown && one.refusals().iter().any(is_of_one) {
        writeln!(out, "  no virtual node is known, so the pod must support both generations:")?;
        writeln!(out, "    add Node objects with -f, or set virtualNodes.generation in the configuration")?;
    }
    if one.profile.is_ok() {
        one.unread.iter().try_for_each(|plural| writeln!(out, "  {}", unread(plural)))?;
    }
    if let Verdict::Burst(mode) = one.decision.verdict {
        if one.is_closed {
            writeln!(
                out,
                "  all virtual nodes are closed (taint {FULL_TAINT}, by maxPods or the circuit breaker), cordoned or not Ready"
            )?;
        }
        if let (Mode::Late, Some(count)) = (mode, one.at_cap) {
            writeln!(out, "  the namespace has {count} pods on virtual nodes, so maxPods stops late overflow")?;
        }
    }
    for finding in &one.decision.accepted {
        writeln!(out, "  accepted {}{}: {finding}", finding.reason.code, generation(finding.reason))?;
    }
    for finding in &one.decision.notes {
        let reason = finding.reason;
        writeln!(out, "  {} {}{}: {finding}", reason.severity.as_str(), reason.code, generation(reason))?;
    }
    for ignored in one.settings.iter().flat_map(|settings| &settings.ignored) {
        writeln!(out, "  ignored {} annotation {}: {}", ignored.on.as_str(), ignored.key, ignored.message)?;
    }
    if !one.unreachable_services.is_empty() {
        writeln!(
            out,
            "  the pod cannot reach these Services without kube-proxy: {}",
            one.unreachable_services.join(", ")
        )?;
    }
    Ok(())
}

fn steps(out: &mut String, one: &Explained<'_>, colors: &Colors) -> std::fmt::Result {
    if one.decision.verdict == Verdict::OptedOut {
        return Ok(());
    }
    for step in &one.decision.steps {
        let part = step.part.as_str();
        match step.outcome {
            Outcome::Added => writeln!(out, "  {part:<15} {0}added{0:#}", colors.success)?,
            Outcome::Kept => writeln!(out, "  {part:<15} {0}added earlier{0:#}", colors.success)?,
            Outcome::Withdrawn => writeln!(out, "  {part:<15} {0}withdrawn{0:#}", colors.error)?,
            Outcome::Left(why) => {
                writeln!(out, "  {part:<15} {0}not added: {1}{0:#}", colors.dim, left_reason(why, one))?;
            }
        }
    }
    Ok(())
}

/// Returns the reason why a part is not added, and the flag that changes this, if any.
fn left_reason(why: Why, one: &Explained<'_>) -> String {
    match why {
        Why::ServiceAccountUnknown => {
            let name =
                one.template.pod.pointer("/spec/serviceAccountName").and_then(Value::as_str).unwrap_or("default");
            format!("service account \"{name}\" is not known here (--service-account FILE)")
        }
        why => why.as_str().to_owned(),
    }
}

/// Returns the settings as name, value and origin.
fn list(settings: &Settings<'_>) -> Vec<(&'static str, String, &'static str)> {
    fn entry<T>(
        name: &'static str,
        from: Sourced<T>,
        word: fn(T) -> &'static str,
    ) -> (&'static str, String, &'static str) {
        (name, word(from.value).to_owned(), from.origin.as_str())
    }
    use crate::config::{Dns, IdentityLabel, KubeProxy};
    let late_after = format!("{}s", settings.late_after.value.as_secs());
    let mut list = vec![
        entry("mode", settings.mode, Mode::as_str),
        ("late.after", late_after, settings.late_after.origin.as_str()),
        entry("network.kubeProxy", settings.kube_proxy, KubeProxy::as_str),
        entry("network.dns", settings.dns, Dns::as_str),
        entry("identity.label", settings.identity_label, IdentityLabel::as_str),
    ];
    for allowed in &settings.allowed {
        list.push(("eligibility.allow", allowed.value.code.to_owned(), allowed.origin.as_str()));
    }
    list
}

fn settings(out: &mut String, one: &Explained<'_>, colors: &Colors) -> std::fmt::Result {
    let (Some(settings), Ok(profile)) = (&one.settings, &one.profile) else { return Ok(()) };
    let Colors { dim, .. } = colors;
    let values: Vec<_> =
        list(settings).iter().map(|(name, value, origin)| format!("{name}={value} ({origin})")).collect();
    writeln!(out, "  {dim}profile {profile}: {}{dim:#}", values.join(", "))
}

fn diff(out: &mut String, one: &Explained<'_>, colors: &Colors) -> anyhow::Result<()> {
    let (before, after) = (yaml_text(&one.template.pod)?, yaml_text(&one.admitted()?)?);
    let diff = TextDiff::from_lines(&before, &after);
    for (i, group) in diff.grouped_ops(3).iter().enumerate() {
        writeln!(out, "{}", if i == 0 { "  --- submitted\n  +++ admitted" } else { "  ..." })?;
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let (sign, style) = match change.tag() {
                ChangeTag::Delete => ('-', colors.error),
                ChangeTag::Insert => ('+', colors.success),
                ChangeTag::Equal => (' ', colors.dim),
            };
            writeln!(out, "  {style}{sign} {}{style:#}", change.value().trim_end_matches('\n'))?;
        }
    }
    Ok(())
}

fn yaml_text(value: &Value) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(value)?)
}

fn value(one: &Explained<'_>) -> Value {
    let steps = one.decision.steps.iter().map(|step| {
        let (outcome, why) = match step.outcome {
            Outcome::Added => ("added", None),
            Outcome::Kept => ("kept", None),
            Outcome::Withdrawn => ("withdrawn", None),
            Outcome::Left(why) => ("left", Some(left_reason(why, one))),
        };
        json!({"part": step.part.as_str(), "outcome": outcome, "why": why})
    });
    let settings = one.settings.iter().flat_map(list);
    let settings = settings.map(|(name, value, origin)| json!({"name": name, "value": value, "origin": origin}));
    let ignored = one.settings.iter().flat_map(|settings| &settings.ignored);
    let ignored = ignored.map(|i| json!({"on": i.on.as_str(), "annotation": i.key, "message": i.message}));
    json!({
        "kind": one.template.kind,
        "namespace": one.namespace,
        "name": one.template.name,
        "profile": one.profile.as_ref().ok(),
        "notCalled": one.profile.as_ref().err().map(ToString::to_string),
        "decision": one.decision_text(),
        "placement": one.placement.as_ref().map(|placement| json!({
            "node": placement.node, "isVirtual": placement.is_virtual, "why": placement.why,
        })),
        "virtualNodesClosed": one.is_closed,
        "atMaxPods": one.at_cap.is_some(),
        "refused": one.is_refused(),
        "reasons": findings(one.refusals()),
        "accepted": findings(&one.decision.accepted),
        "notes": findings(&one.decision.notes),
        "parts": steps.collect::<Vec<_>>(),
        "settings": settings.collect::<Vec<_>>(),
        "ignored": ignored.collect::<Vec<_>>(),
        "unreachableServices": one.unreachable_services,
        "notTakenIntoAccount": one.unread,
        "patch": one.patch,
    })
}

fn findings(findings: &[Finding]) -> Vec<Value> {
    let one = |finding: &Finding| {
        json!({"code": finding.reason.code, "severity": finding.reason.severity.as_str(), "virtualNodes": finding.reason.applies.as_str(),
            "meaning": finding.reason.meaning, "detail": finding.detail, "fix": finding.reason.fix})
    };
    findings.iter().map(one).collect()
}

fn values(explained: &[Explained<'_>]) -> Value {
    explained.iter().map(value).collect()
}

pub(super) fn json(explained: &[Explained<'_>]) -> Vec<u8> {
    format!("{:#}\n", values(explained)).into_bytes()
}

pub(super) fn yaml(explained: &[Explained<'_>]) -> anyhow::Result<Vec<u8>> {
    Ok(yaml_text(&values(explained))?.into_bytes())
}

pub(super) fn patches(explained: &[Explained<'_>]) -> Vec<u8> {
    let lines = explained.iter().map(|one| admission::encode(&one.patch));
    lines
        .flat_map(|mut patch| {
            patch.push(b'\n');
            patch
        })
        .collect()
}
