//! Explanations as text, JSON, YAML or bare patches.

use std::{fmt::Write, io::IsTerminal};

use anstyle::{AnsiColor, Style};
use serde_json::{Value, json};
use similar::{ChangeTag, TextDiff};

use super::Explained;
use crate::{
    burst::{Outcome, Verdict, Why},
    config::{Settings, Sourced},
};

/// Colours for a terminal, none elsewhere.
struct Colours {
    good: Style,
    bad: Style,
    bold: Style,
    dim: Style,
}

impl Colours {
    fn of_stdout() -> Self {
        if !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some() {
            let plain = Style::new();
            return Self { good: plain, bad: plain, bold: plain, dim: plain };
        }
        Self {
            good: AnsiColor::Green.on_default(),
            bad: AnsiColor::Red.on_default(),
            bold: Style::new().bold(),
            dim: Style::new().dimmed(),
        }
    }
}

pub(super) fn text(explained: &[Explained<'_>]) -> anyhow::Result<Vec<u8>> {
    let colours = Colours::of_stdout();
    let mut out = String::new();
    for (i, one) in explained.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        headline(&mut out, one, &colours)?;
        reasons(&mut out, one)?;
        steps(&mut out, one, &colours)?;
        settings(&mut out, one, &colours)?;
        for rejected in &one.rejected {
            writeln!(out, "  ignored {}: {}", rejected.key, rejected.message)?;
        }
        diff(&mut out, one, &colours)?;
    }
    Ok(out.into_bytes())
}

fn headline(out: &mut String, one: &Explained<'_>, colours: &Colours) -> std::fmt::Result {
    let Colours { good, bad, bold, .. } = colours;
    let colour = if one.is_refused() { bad } else { good };
    let name = if one.template.name.is_empty() { "(no name)" } else { &one.template.name };
    writeln!(
        out,
        "{bold}{} {}/{name}{bold:#}: {colour}{}{colour:#}",
        one.template.kind,
        one.namespace,
        one.decision_text()
    )
}

fn reasons(out: &mut String, one: &Explained<'_>) -> std::fmt::Result {
    match (&one.profile, &one.decision.verdict) {
        (None, _) => writeln!(
            out,
            "  the namespace has no label spillway.dev/burst that names a profile: Spillway is not called"
        ),
        (_, Verdict::OptedOut) => {
            writeln!(out, "  the label spillway.dev/burst: disabled opts the pod out: Spillway is not called")
        }
        (_, Verdict::Stay(reasons)) => {
            reasons.iter().try_for_each(|reason| writeln!(out, "  {}: {}", reason.as_str(), reason.meaning()))
        }
        (_, Verdict::Burst(_)) => Ok(()),
    }
}

fn steps(out: &mut String, one: &Explained<'_>, colours: &Colours) -> std::fmt::Result {
    if one.decision.verdict == Verdict::OptedOut {
        return Ok(());
    }
    for step in &one.decision.steps {
        let part = step.part.as_str();
        match step.outcome {
            Outcome::Added => writeln!(out, "  {part:<15} {0}added{0:#}", colours.good)?,
            Outcome::Left(why) => writeln!(out, "  {part:<15} {0}not added: {1}{0:#}", colours.dim, left(why, one))?,
        }
    }
    Ok(())
}

/// Why a part is left, with the way out where it is only a matter of telling.
fn left(why: Why, one: &Explained<'_>) -> String {
    match why {
        Why::ServiceAccountUnknown => {
            let name =
                one.template.pod.pointer("/spec/serviceAccountName").and_then(Value::as_str).unwrap_or("default");
            format!("service account \"{name}\" is not known here (--service-account FILE)")
        }
        why => why.as_str().to_owned(),
    }
}

/// The settings by name, each as value and origin.
fn list(settings: &Settings<'_>) -> [(&'static str, &'static str, &'static str); 4] {
    fn entry<T>(
        name: &'static str,
        from: Sourced<T>,
        word: fn(T) -> &'static str,
    ) -> (&'static str, &'static str, &'static str) {
        (name, word(from.value), from.origin.as_str())
    }
    use crate::config::{Dns, IdentityLabel, KubeProxy, Mode};
    [
        entry("mode", settings.mode, Mode::as_str),
        entry("network.kubeProxy", settings.kube_proxy, KubeProxy::as_str),
        entry("network.dns", settings.dns, Dns::as_str),
        entry("identity.label", settings.identity_label, IdentityLabel::as_str),
    ]
}

fn settings(out: &mut String, one: &Explained<'_>, colours: &Colours) -> std::fmt::Result {
    let (Some(settings), Some(profile)) = (&one.settings, &one.profile) else { return Ok(()) };
    let Colours { dim, .. } = colours;
    let values: Vec<_> =
        list(settings).iter().map(|(name, value, origin)| format!("{name}={value} ({origin})")).collect();
    writeln!(out, "  {dim}profile {profile}: {}{dim:#}", values.join(", "))
}

fn diff(out: &mut String, one: &Explained<'_>, colours: &Colours) -> anyhow::Result<()> {
    let (before, after) = (yaml_text(&one.template.pod)?, yaml_text(&one.admitted()?)?);
    let diff = TextDiff::from_lines(&before, &after);
    for (i, group) in diff.grouped_ops(3).iter().enumerate() {
        writeln!(out, "{}", if i == 0 { "  --- submitted\n  +++ admitted" } else { "  ..." })?;
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let (sign, style) = match change.tag() {
                ChangeTag::Delete => ('-', colours.bad),
                ChangeTag::Insert => ('+', colours.good),
                ChangeTag::Equal => (' ', colours.dim),
            };
            writeln!(out, "  {style}{sign} {}{style:#}", change.value().trim_end_matches('\n'))?;
        }
    }
    Ok(())
}

fn yaml_text(value: &Value) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(value)?)
}

fn value(one: &Explained<'_>) -> anyhow::Result<Value> {
    let reasons: Vec<_> = match &one.decision.verdict {
        Verdict::Stay(reasons) => reasons.iter().map(|r| json!({"code": r.as_str(), "meaning": r.meaning()})).collect(),
        Verdict::Burst(_) | Verdict::OptedOut => Vec::new(),
    };
    let steps = one.decision.steps.iter().map(|step| match step.outcome {
        Outcome::Added => json!({"part": step.part.as_str(), "added": true}),
        Outcome::Left(why) => json!({"part": step.part.as_str(), "added": false, "why": left(why, one)}),
    });
    let settings: serde_json::Map<_, _> = one
        .settings
        .iter()
        .flat_map(list)
        .map(|(name, value, origin)| (name.to_owned(), json!({"value": value, "origin": origin})))
        .collect();
    let ignored: Vec<_> = one.rejected.iter().map(|r| json!({"annotation": r.key, "message": r.message})).collect();
    Ok(json!({
        "kind": one.template.kind,
        "namespace": one.namespace,
        "name": one.template.name,
        "profile": one.profile,
        "decision": one.decision_text(),
        "refused": one.is_refused(),
        "reasons": reasons,
        "parts": steps.collect::<Vec<_>>(),
        "settings": settings,
        "ignored": ignored,
        "patch": one.operations()?,
    }))
}

fn values(explained: &[Explained<'_>]) -> anyhow::Result<Value> {
    explained.iter().map(value).collect::<anyhow::Result<Vec<_>>>().map(Value::Array)
}

pub(super) fn json(explained: &[Explained<'_>]) -> anyhow::Result<Vec<u8>> {
    Ok(format!("{:#}\n", values(explained)?).into_bytes())
}

pub(super) fn yaml(explained: &[Explained<'_>]) -> anyhow::Result<Vec<u8>> {
    Ok(yaml_text(&values(explained)?)?.into_bytes())
}

pub(super) fn patches(explained: &[Explained<'_>]) -> Vec<u8> {
    let lines = explained.iter().map(|one| one.patch.as_deref().unwrap_or(b"[]"));
    lines.flat_map(|patch| [patch, b"\n"].concat()).collect()
}
