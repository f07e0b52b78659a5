//! A report as SARIF 2.1.0 (docs.oasis-open.org/sarif/sarif/v2.1.0), for code scanning.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::report::Report;
use crate::identity::{self, Check, Evidence, Finding, Object, Severity};

const PAGE: &str = "docs/identity.md";

pub(super) fn sarif(report: &Report<'_>) -> Vec<u8> {
    let rules: Vec<_> = identity::checks().map(rule).collect();
    // The fingerprint of a finding depends neither on its line nor on the number of pods.
    let mut numbers: HashMap<(&str, &Object), usize> = HashMap::new();
    let results = report.findings.iter().map(|finding| {
        let number = numbers.entry((finding.check.id, &finding.object)).and_modify(|number| *number += 1).or_default();
        let fingerprint = format!("{} {} {number}", finding.check.id, finding.object);
        result(finding, report.file(finding), &fingerprint)
    });
    let results: Vec<_> = results.collect();
    let driver = json!({"name": "spillway", "version": env!("CARGO_PKG_VERSION"), "rules": rules});
    let log = json!({
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
    });
    format!("{log:#}\n").into_bytes()
}

const fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info | Severity::Unknown => "note",
    }
}

fn rule(check: &Check) -> Value {
    json!({
        "id": check.id,
        "shortDescription": {"text": check.title},
        "fullDescription": {"text": check.meaning},
        "help": {"text": format!("{}. See {PAGE}#{}", check.fix, check.id.to_lowercase())},
        "defaultConfiguration": {"level": level(check.severity)},
    })
}

fn result(finding: &Finding, file: Option<&str>, fingerprint: &str) -> Value {
    let name = finding.object.to_string();
    let logical = json!([{"fullyQualifiedName": name, "kind": "object"}]);
    let location = match file.filter(|file| *file != "-") {
        // Code scanning requires a line, but objects are read without lines.
        Some(file) => {
            let physical = json!({"artifactLocation": {"uri": uri(file)}, "region": {"startLine": 1}});
            json!({"physicalLocation": physical, "logicalLocations": logical})
        }
        None => json!({"logicalLocations": logical}),
    };
    let facts = finding.evidence.iter().map(|evidence| match evidence {
        Evidence::Fact { name, value } => format!("{name}: {value}"),
        Evidence::Difference(difference) => {
            let (expected, found, _) = difference.shown();
            format!("{} expected: {expected}\n{} found: {found}", difference.what, difference.what)
        }
    });
    let lines: Vec<_> = std::iter::once(format!("{name}: {}", finding.message)).chain(facts).collect();
    json!({
        "ruleId": finding.check.id,
        "level": level(finding.severity),
        "message": {"text": format!("{}\nfix: {}", lines.join("\n"), finding.fix)},
        "locations": [location],
        "partialFingerprints": {"object/v1": fingerprint},
    })
}

/// Returns a path as a URI reference (RFC 3986).
fn uri(path: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let scheme = if path.starts_with('/') { "file://" } else { "" };
    let escaped =
        path.bytes().map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") });
    std::iter::once(scheme.to_owned()).chain(escaped).collect()
}
