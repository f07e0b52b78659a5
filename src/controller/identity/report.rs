//! ConfigMap `spillway-identity-report`: what was found, for other tools, and which findings were told of, for the next leader.
//!
//! Its schema stands in `docs/identity.md`.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::identity::{Finding, Object, Severity, azure::Unread};

/// The key of the ConfigMap.
pub(super) const KEY: &str = "report.json";

/// A ConfigMap holds 1 MiB (kubernetes.io/docs/concepts/configuration/configmap); this leaves room for its metadata.
const LARGEST: usize = 900_000;

/// The part of it for what was told.
const LARGEST_TOLD: usize = 300_000;

/// The part of it for what could not be read.
const LARGEST_UNREAD: usize = 50_000;

/// A finding that people were told of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Told {
    /// The check.
    pub(super) id: String,
    /// The service account, or what else it is about.
    #[serde(flatten)]
    pub(super) object: Object,
}

/// How it was told, and what has become of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct State {
    /// How bad it was.
    pub(super) severity: Option<Severity>,
    /// Since when it is there no more, if nobody was told of that yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) absent_since: Option<Timestamp>,
}

/// All that people were told of.
pub(super) type Memory = BTreeMap<Told, State>;

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    told: Told,
    #[serde(flatten)]
    state: State,
}

/// What was told, by a report. What cannot be read says nothing.
pub(super) fn told(report: &str) -> Memory {
    #[derive(Deserialize)]
    struct Known {
        told: Vec<Entry>,
    }
    let known = serde_json::from_str(report).map(|Known { told }| told).unwrap_or_default();
    known.into_iter().map(|Entry { told, state }| (told, state)).collect()
}

/// What a report says beside its findings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sources {
    /// What could not be read, by source.
    pub(super) unread: Vec<(&'static str, Unread)>,
    /// The issuer of the cluster's tokens.
    pub(super) issuer: Option<String>,
}

/// The report, the worst findings first. Of those that do not fit in, it says how many there are.
pub(super) fn report(findings: &[Finding], told: &Memory, sources: &Sources) -> String {
    let mut summary: BTreeMap<&'static str, usize> = BTreeMap::new();
    for finding in findings {
        *summary.entry(finding.severity.as_str()).or_default() += 1;
    }
    let unread = sources.unread.iter().map(|(source, Unread { because, action, scope })| {
        json!({"source": source, "because": because, "missingPermission": action, "scope": scope})
    });
    let mut report = Report {
        api_version: "spillway.dev/v1alpha1",
        kind: "IdentityReport",
        issuer: sources.issuer.as_deref(),
        summary,
        unread: fitting(unread, LARGEST_UNREAD),
        findings: Vec::new(),
        omitted: findings.len(),
        told: fitting(told.iter().map(entry), LARGEST_TOLD),
    };
    let mut worst_first: Vec<_> = findings.iter().collect();
    worst_first.sort_by_key(|finding| finding.severity);
    let titled = |finding| json!(Titled { finding, title: finding.check.title });
    let room = LARGEST.saturating_sub(json!(report).to_string().len());
    report.findings = fitting(worst_first.into_iter().map(titled), room);
    report.omitted -= report.findings.len();
    json!(report).to_string()
}

fn entry((told, state): (&Told, &State)) -> Value {
    json!(Entry { told: told.clone(), state: state.clone() })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'r> {
    api_version: &'static str,
    kind: &'static str,
    issuer: Option<&'r str>,
    /// How many findings there are, by severity.
    summary: BTreeMap<&'static str, usize>,
    unread: Vec<Value>,
    findings: Vec<Value>,
    omitted: usize,
    told: Vec<Value>,
}

#[derive(Serialize)]
struct Titled<'f> {
    #[serde(flatten)]
    finding: &'f Finding,
    title: &'static str,
}

/// The first of these, as many as fit into so many bytes.
fn fitting(values: impl Iterator<Item = Value>, room: usize) -> Vec<Value> {
    let mut used = 0;
    let fits = |value: &Value| {
        used += value.to_string().len() + 1;
        used <= room
    };
    values.take_while(fits).collect()
}
