//! Documentation of the checks and error codes, for `docs/identity.md` and for `--explain`.

use std::fmt::Write;

use super::{check::Check, entra, registry::checks};

const HEAD: &str = include_str!("catalogue.md");

/// Returns `docs/identity.md`.
pub fn markdown() -> String {
    let mut out = HEAD.to_owned();
    out.push_str("\n## Findings\n\n| id | severity | finding |\n| --- | --- | --- |\n");
    for check in checks() {
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "| [{id}](#{}) | {} | {} |",
            check.id.to_lowercase(),
            check.severity.as_str(),
            check.title,
            id = check.id
        );
    }
    for check in checks() {
        let _ = write!(out, "\n### {}\n\n{}.\n\n| | |\n| --- | --- |\n", check.id, capitalize(check.title));
        for (name, text) in fields(check) {
            let _ = writeln!(out, "| {name} | {} |", text.replace('|', "\\|"));
        }
    }
    out.push_str("\n## Error codes of Entra\n\n`spillway identity check --explain CODE` prints this table, also for a pasted message.\n\n| code | meaning | findings that lead to it |\n| --- | --- | --- |\n");
    for code in entra::codes() {
        let ids: Vec<_> =
            entra::causes(code).map(|check| format!("[{}](#{})", check.id, check.id.to_lowercase())).collect();
        let _ = writeln!(out, "| {} | {} | {} |", code.code, code.meaning, ids.join(", "));
    }
    out
}

/// Returns the documentation of a check, by field.
pub fn fields(check: &Check) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("severity", check.severity.as_str().to_owned()),
        ("reads", check.reads.to_owned()),
        ("meaning", check.meaning.to_owned()),
        ("fix", check.fix.to_owned()),
    ];
    if !check.leads_to.is_empty() {
        fields.push(("leads to", check.leads_to.join(", ")));
    }
    fields.push(("source", check.source.to_owned()));
    fields
}

/// Returns the text with its first letter in upper case.
fn capitalize(text: &str) -> String {
    let mut text = text.to_owned();
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text
}
