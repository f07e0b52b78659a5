//! Documentation of the reasons: one as text, or all as `docs/reasons.md`.

use std::fmt::Write;

use anyhow::anyhow;

use crate::{
    burst::reasons,
    config::did_you_mean,
    eligibility::{self, Reason},
};

/// Returns one reason as text.
pub(super) fn entry(code: &str) -> anyhow::Result<String> {
    let Some(reason) = reasons::all().find(|reason| reason.code.eq_ignore_ascii_case(code)) else {
        let codes: Vec<_> = reasons::all().map(|reason| reason.code).collect();
        let hint = did_you_mean(code, &codes);
        return Err(anyhow!("--reason: unknown reason \"{code}\"{hint}"));
    };
    let mut out = format!("{}: {}\n", reason.code, reason.meaning);
    for (name, text) in fields(reason) {
        writeln!(out, "  {name:<19} {text}")?;
    }
    Ok(out)
}

/// Returns all reasons as Markdown.
pub(super) fn markdown() -> String {
    let mut out = String::from(
        "# Reasons\n\n<!-- Generated: spillway explain --reasons >docs/reasons.md -->\n\n\
         Why a pod stays on VMs, or what its owner should know. The names stand in the annotation `spillway.dev/decision`, in the metrics,\n\
         and in `spillway explain`, which explains one by `--reason CODE`. `v1` is the AKS add-on and virtual-kubelet/azure-aci, `v2` is\n\
         microsoft/virtualnodesOnAzureContainerInstances and the AKS extension.\n",
    );
    for reason in reasons::all() {
        let mut meaning = reason.meaning.to_owned();
        if let Some(first) = meaning.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        // Writing to a string cannot fail.
        let _ = write!(out, "\n## {}\n\n{meaning}.\n\n| | |\n| --- | --- |\n", reason.code);
        for (name, text) in fields(reason) {
            let _ = writeln!(out, "| {name} | {} |", text.replace('|', "\\|"));
        }
    }
    out
}

fn fields(reason: &Reason) -> impl Iterator<Item = (&'static str, &'static str)> {
    let reads = eligibility::rule(reason.code).map(|rule| ("pod fields", rule.reads));
    let can_be_allowed = if reason.can_be_allowed { "yes, by spillway.dev/allow or eligibility.allow" } else { "no" };
    [("severity", reason.severity.as_str()), ("virtual nodes", reason.applies.as_str())].into_iter().chain(reads).chain(
        [
            ("on a virtual node", reason.on_virtual_node),
            ("how to fix it", reason.fix),
            ("can be allowed", can_be_allowed),
            ("source", reason.source),
        ],
    )
}
