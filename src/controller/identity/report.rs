//! ConfigMap `spillway-identity-report`. Other tools read its findings; the next leader reads which findings have Events.
//!
//! `docs/identity.md` describes its schema.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use spillway_identity::{Finding, Object, Severity, managed_identity::ReadFailure};

/// The name of the ConfigMap.
pub(super) const REPORT_NAME: &str = "spillway-identity-report";

/// The key of the ConfigMap.
pub(super) const KEY: &str = "report.json";

/// The size of the report. A ConfigMap holds 1 MiB (kubernetes.io/docs/concepts/configuration/configmap) with its metadata.
const MAX_REPORT_BYTES: usize = 900_000;

/// The part of the report for findings that have Events.
const MAX_REPORTED_BYTES: usize = 300_000;

/// The part of the report for read failures.
const MAX_FAILURES_BYTES: usize = 50_000;

/// Identifies a finding that has an Event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct FindingKey {
    /// The ID of the check.
    pub(super) id: String,
    /// The service account, or another object that the finding is about.
    #[serde(flatten)]
    pub(super) object: Object,
}

/// The state of a finding that has an Event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ReportedState {
    /// The severity in the Event.
    pub(super) severity: Option<Severity>,
    /// The time since which the finding is absent, until Spillway writes an Event about the resolution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) absent_since: Option<Timestamp>,
}

/// The findings that have Events.
pub(super) type ReportedFindings = BTreeMap<FindingKey, ReportedState>;

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    key: FindingKey,
    #[serde(flatten)]
    state: ReportedState,
}

/// Returns the findings in a report that have Events. Returns an empty map if the report is malformed.
pub(super) fn reported_findings(report: &str) -> ReportedFindings {
    #[derive(Deserialize)]
    struct OwnReport {
        told: Vec<Entry>,
    }
    let entries = serde_json::from_str(report).map(|OwnReport { told }| told).unwrap_or_default();
    entries.into_iter().map(|Entry { key, state }| (key, state)).collect()
}

/// The part of a report about the inputs of the checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct InputSummary {
    /// Inputs that could not be read, by source.
    pub(super) failures: Vec<(&'static str, ReadFailure)>,
    /// The issuer of the cluster's tokens.
    pub(super) issuer: Option<String>,
}

/// Returns the report, with the findings of the highest severity first. The report has the number of findings that do not fit.
pub(super) fn report(findings: &[Finding], reported: &ReportedFindings, inputs: &InputSummary) -> String {
    let mut summary: BTreeMap<&'static str, usize> = BTreeMap::new();
    for finding in findings {
        *summary.entry(finding.severity.as_str()).or_default() += 1;
    }
    let failures = inputs.failures.iter().map(|(source, ReadFailure { reason, action, scope })| {
        json!({"source": source, "because": reason, "missingPermission": action, "scope": scope})
    });
    let mut report = Report {
        api_version: "spillway.dev/v1alpha1",
        kind: "IdentityReport",
        issuer: inputs.issuer.as_deref(),
        summary,
        failures: fitting(failures, MAX_FAILURES_BYTES),
        findings: Vec::new(),
        omitted: findings.len(),
        reported: fitting(reported.iter().map(entry), MAX_REPORTED_BYTES),
    };
    let mut by_severity: Vec<_> = findings.iter().collect();
    by_severity.sort_by_key(|finding| finding.severity);
    let titled = |finding| json!(Titled { finding, title: finding.check.title });
    let left = MAX_REPORT_BYTES.saturating_sub(json!(report).to_string().len());
    report.findings = fitting(by_severity.into_iter().map(titled), left);
    report.omitted -= report.findings.len();
    json!(report).to_string()
}

fn entry((key, state): (&FindingKey, &ReportedState)) -> Value {
    json!(Entry { key: key.clone(), state: state.clone() })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'r> {
    api_version: &'static str,
    kind: &'static str,
    issuer: Option<&'r str>,
    /// The number of findings by severity.
    summary: BTreeMap<&'static str, usize>,
    #[serde(rename = "unread")]
    failures: Vec<Value>,
    findings: Vec<Value>,
    omitted: usize,
    #[serde(rename = "told")]
    reported: Vec<Value>,
}

#[derive(Serialize)]
struct Titled<'f> {
    #[serde(flatten)]
    finding: &'f Finding,
    title: &'static str,
}

/// Returns the first values that fit into this number of bytes.
fn fitting(values: impl Iterator<Item = Value>, max_bytes: usize) -> Vec<Value> {
    let mut used = 0;
    let fits = |value: &Value| {
        used += value.to_string().len() + 1;
        used <= max_bytes
    };
    values.take_while(fits).collect()
}
