//! A report as JUnit XML, for CI servers: a suite per namespace, and a case per finding and per service account without
//! a finding.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use super::{args::FailOn, report::Report};
use crate::identity::{Evidence, Finding, Severity};

/// A test case: its XML element, and its outcome.
struct Case {
    text: String,
    outcome: Outcome,
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

pub(super) fn junit(report: &Report<'_>, fail_on: FailOn) -> String {
    let mut suites: BTreeMap<&str, Vec<Case>> = BTreeMap::new();
    for account in report.accounts.iter().filter(|account| account.worst.is_none()) {
        let name = format!("ServiceAccount {}", account.name.name);
        let text =
            format!("    <testcase classname={} name={}/>\n", attribute(&account.name.namespace), attribute(&name));
        suites.entry(&account.name.namespace).or_default().push(Case { text, outcome: Outcome::Passed });
    }
    for finding in &report.findings {
        let account = finding.service_account.as_ref().map(|account| account.namespace.as_str());
        let suite = account.or(finding.object.namespace.as_deref()).unwrap_or("cluster");
        suites.entry(suite).or_default().push(case(suite, finding, fail_on));
    }
    let count = |cases: &[Case], outcome| cases.iter().filter(|case| case.outcome == outcome).count();
    let mut out =
        String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"spillway identity check\">\n");
    for (name, cases) in &suites {
        let (failed, skipped) = (count(cases, Outcome::Failed), count(cases, Outcome::Skipped));
        let _ = writeln!(
            out,
            "  <testsuite name={} tests=\"{}\" failures=\"{failed}\" errors=\"0\" skipped=\"{skipped}\">",
            attribute(name),
            cases.len()
        );
        out.extend(cases.iter().map(|case| case.text.as_str()));
        out.push_str("  </testsuite>\n");
    }
    out.push_str("</testsuites>\n");
    out
}

fn case(suite: &str, finding: &Finding, fail_on: FailOn) -> Case {
    let name = format!("{} {} {}", finding.check.id, finding.object.kind, finding.object.name);
    let mut text = String::new();
    let (element, outcome) = if fail_on.is_reached_by(finding.severity) {
        ("failure", Outcome::Failed)
    } else if finding.severity == Severity::Unknown {
        ("skipped", Outcome::Skipped)
    } else {
        ("system-out", Outcome::Passed)
    };
    let _ = element_of(&mut text, suite, &name, element, finding);
    Case { text, outcome }
}

fn element_of(out: &mut String, suite: &str, name: &str, element: &str, finding: &Finding) -> fmt::Result {
    writeln!(out, "    <testcase classname={} name={}>", attribute(suite), attribute(name))?;
    let details = escaped(&details(finding));
    match element {
        "failure" => {
            let (message, kind) = (attribute(&finding.message), attribute(finding.check.id));
            writeln!(out, "      <failure message={message} type={kind}>{details}</failure>")?;
        }
        "skipped" => writeln!(out, "      <skipped message={}/>", attribute(&finding.message))?,
        _ => writeln!(out, "      <system-out>{}\n{details}</system-out>", escaped(&finding.message))?,
    }
    writeln!(out, "    </testcase>")
}

fn details(finding: &Finding) -> String {
    let facts = finding.evidence.iter().map(|evidence| match evidence {
        Evidence::Fact { name, value } => format!("{name}: {value}\n"),
        Evidence::Difference(difference) => {
            let (expected, found, column) = difference.shown();
            let what = difference.what;
            format!("{what} expected:\n{expected}\n{found}\n{}^ found\n", " ".repeat(column))
        }
    });
    facts.chain([format!("fix: {}", finding.fix)]).collect()
}

fn attribute(text: &str) -> String {
    format!("\"{}\"", escaped(text).replace('\n', "&#10;").replace('\t', "&#9;").replace('\r', "&#13;"))
}

/// Escapes a text for XML 1.0. Writes characters that XML does not allow as Rust escapes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' | '\r' => out.push(character),
            '\u{fffe}' | '\u{ffff}' => out.extend(character.escape_default()),
            _ if character.is_control() => out.extend(character.escape_default()),
            _ => out.push(character),
        }
    }
    out
}
