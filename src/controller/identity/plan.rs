//! Plans a pass from the present findings and the findings that have Events: the Events to write, the metrics and the report. Pure.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use spillway_identity::{AccountName, Finding, Object, Severity, check_of};

use super::{
    coverage::{Coverage, Resolution, account_name},
    report::{self, FindingKey, InputSummary, ReportedFindings, ReportedState},
};
use crate::telemetry::FindingLabels;

/// The most Events of one pass. One further Event has the number of findings without an Event.
pub(super) const MAX_EVENTS: usize = 20;

/// How long a transient finding must be absent before it counts as resolved.
const MIN_ABSENCE: SignedDuration = SignedDuration::from_mins(1);

/// An Event to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedEvent {
    /// The service account; `None` for an Event about the whole cluster.
    pub(super) account: Option<AccountName>,
    /// The UID of the service account, if it exists: `kubectl describe` finds Events by UID.
    pub(super) uid: Option<String>,
    pub(super) is_warning: bool,
    pub(super) reason: String,
    pub(super) note: String,
}

/// The writes of a pass.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) events: Vec<PlannedEvent>,
    pub(super) reported: ReportedFindings,
    pub(super) counts: BTreeMap<FindingLabels, i64>,
    pub(super) report: String,
}

/// Returns the object of the Event about a finding: the service account, if there is one.
fn event_object(finding: &Finding) -> Object {
    match &finding.service_account {
        Some(AccountName { namespace, name }) => Object::namespaced("ServiceAccount", namespace, name),
        None => finding.object.clone(),
    }
}

/// Findings of one check about one object, which have one Event.
struct FindingGroup<'f> {
    /// The first finding of the highest severity.
    worst: &'f Finding,
    count: usize,
}

/// Returns when the next absent finding will count as resolved.
pub(super) fn next_resolution(reported: &ReportedFindings) -> Option<Timestamp> {
    reported.values().filter_map(|state| state.absent_since?.checked_add(MIN_ABSENCE).ok()).min()
}

/// Plans a pass.
pub(super) fn plan(
    before: &ReportedFindings,
    findings: &[Finding],
    coverage: &Coverage,
    inputs: &InputSummary,
) -> Plan {
    let groups = group(findings);
    let mut events = events_of_new_findings(before, &groups);
    let present = |severity| ReportedState { severity: Some(severity), absent_since: None };
    let mut reported: ReportedFindings =
        groups.into_iter().map(|(key, group)| (key, present(group.worst.severity))).collect();

    let unknown = findings.iter().filter(|finding| finding.severity == Severity::Unknown);
    let in_doubt: HashSet<_> = unknown.filter_map(|finding| finding.service_account.as_ref()).collect();
    for (absent, state) in before {
        if reported.contains_key(absent) {
            continue;
        }
        let keep = |absent_since| ReportedState { absent_since, ..state.clone() };
        match coverage.resolution(absent, &in_doubt) {
            Resolution::Resolved => {
                let since = state.absent_since.unwrap_or(coverage.at);
                if is_transient(absent) && coverage.at.duration_since(since) < MIN_ABSENCE {
                    reported.insert(absent.clone(), keep(Some(since)));
                } else {
                    events.push(resolved_event(absent));
                }
            }
            Resolution::Gone => {}
            Resolution::Unknown => {
                reported.insert(absent.clone(), keep(None));
            }
        }
    }
    for event in &mut events {
        event.uid = event.account.as_ref().and_then(|name| coverage.uid(name));
    }
    let report = report::report(findings, &reported, inputs);
    Plan { events: limit(events), reported, counts: counts(findings), report }
}

/// Groups the errors and warnings by check and object.
fn group(findings: &[Finding]) -> BTreeMap<FindingKey, FindingGroup<'_>> {
    let mut groups: BTreeMap<FindingKey, FindingGroup<'_>> = BTreeMap::new();
    for finding in findings.iter().filter(|one| matches!(one.severity, Severity::Error | Severity::Warning)) {
        let key = FindingKey { id: finding.check.id.to_owned(), object: event_object(finding) };
        let group = groups.entry(key).or_insert(FindingGroup { worst: finding, count: 0 });
        group.count += 1;
        if finding.severity < group.worst.severity {
            group.worst = finding;
        }
    }
    groups
}

/// Returns the Events of findings that are new or whose severity has risen, errors first.
fn events_of_new_findings(
    before: &ReportedFindings,
    groups: &BTreeMap<FindingKey, FindingGroup<'_>>,
) -> Vec<PlannedEvent> {
    let is_known = |key: &FindingKey, group: &FindingGroup<'_>| {
        before.get(key).is_some_and(|state| state.severity.is_none_or(|before| before <= group.worst.severity))
    };
    let mut new: Vec<_> = groups.iter().filter(|(key, group)| !is_known(key, group)).collect();
    new.sort_by_key(|(_, group)| group.worst.severity);
    new.into_iter().map(|(key, group)| finding_event(key, group)).collect()
}

fn is_transient(key: &FindingKey) -> bool {
    check_of(&key.id).is_some_and(|check| check.transient)
}

fn finding_event(key: &FindingKey, FindingGroup { worst, count }: &FindingGroup<'_>) -> PlannedEvent {
    // The Event is about the service account, so the note names any other object.
    let is_named = worst.object == key.object && key.object.kind == "ServiceAccount";
    let object = if is_named { String::new() } else { format!("{}: ", worst.object) };
    let more = if *count > 1 { format!(" (and {} more of this kind)", count - 1) } else { String::new() };
    let mut note = format!("{object}{}{more}", worst.message);
    let fix = format!(". Fix it with: {}", worst.fix);
    // The API server accepts 1,024 bytes.
    if !worst.fix.is_empty() && note.len() + fix.len() <= 1024 {
        note += &fix;
    }
    PlannedEvent {
        account: event_account(key),
        uid: None,
        is_warning: true,
        reason: format!("Identity{}", key.id),
        note,
    }
}

fn resolved_event(key: &FindingKey) -> PlannedEvent {
    let title = check_of(&key.id).map(|check| format!(", {}", check.title)).unwrap_or_default();
    let object = if key.object.kind == "ServiceAccount" { String::new() } else { format!("{}: ", key.object) };
    let note = format!("{object}{}{title}: resolved", key.id);
    PlannedEvent {
        account: event_account(key),
        uid: None,
        is_warning: false,
        reason: "IdentityHealed".to_owned(),
        note,
    }
}

fn event_account(key: &FindingKey) -> Option<AccountName> {
    account_name(&key.object).filter(|_| key.object.kind == "ServiceAccount")
}

/// Keeps the first Events, and adds one Event with the number of the others.
fn limit(mut events: Vec<PlannedEvent>) -> Vec<PlannedEvent> {
    let others = events.split_off(events.len().min(MAX_EVENTS));
    if !others.is_empty() {
        let warnings = others.iter().filter(|event| event.is_warning).count();
        let note = format!(
            "{warnings} more findings and {} more resolved findings have no event: see ConfigMap {}",
            others.len() - warnings,
            report::REPORT_NAME
        );
        events.push(PlannedEvent {
            account: None,
            uid: None,
            is_warning: warnings > 0,
            reason: "IdentityManyFindings".to_owned(),
            note,
        });
    }
    events
}

fn counts(findings: &[Finding]) -> BTreeMap<FindingLabels, i64> {
    let mut counts = BTreeMap::new();
    for finding in findings {
        let labels = FindingLabels {
            id: finding.check.id,
            severity: finding.severity.as_str(),
            namespace: namespace(finding).unwrap_or_default().to_owned(),
        };
        *counts.entry(labels).or_default() += 1;
    }
    counts
}

/// Returns the namespace of a finding; `None` for the whole cluster.
pub(super) fn namespace(finding: &Finding) -> Option<&str> {
    let of_account = finding.service_account.as_ref().map(|account| account.namespace.as_str());
    of_account.or(finding.object.namespace.as_deref())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use spillway_identity::{
        Observation,
        managed_identity::{ManagedIdentities, ReadFailure},
        observation::{Cluster, Issuer, Pod, ServiceAccount},
    };

    use super::*;
    use crate::controller::identity::coverage::{InputStatus, is_premature};

    fn finding(id: &str, severity: Severity, name: &str) -> Finding {
        Finding {
            check: check_of(id).unwrap(),
            severity,
            object: Object::namespaced("ServiceAccount", "shop", name),
            service_account: Some(AccountName { namespace: "shop".to_owned(), name: name.to_owned() }),
            message: format!("{name} is wrong"),
            evidence: Vec::new(),
            fix: "az fix".to_owned(),
        }
    }

    const NOW: &str = "2026-01-01T12:00:00Z";

    /// A complete observation with these service accounts.
    fn observation(names: &[&str]) -> Observation {
        let account = |name: &&str| ServiceAccount {
            name: AccountName { namespace: "shop".to_owned(), name: (*name).to_owned() },
            uid: Some(format!("uid of {name}")),
            ..ServiceAccount::default()
        };
        Observation {
            cluster: Cluster {
                service_accounts: names.iter().map(account).collect(),
                is_complete: true,
                webhooks: Some(Vec::new()),
                endpoints: Some(BTreeMap::new()),
                ..Cluster::default()
            },
            issuers: vec![Issuer { url: "https://issuer".to_owned(), source: String::new(), algorithms: None }],
            managed_identities: Some(ManagedIdentities::default()),
            at: NOW.parse().unwrap(),
            ..Observation::default()
        }
    }

    fn status() -> InputStatus {
        InputStatus { has_credentials: true, has_discovery: true, has_nodes: true, pending_accounts: HashSet::new() }
    }

    fn coverage(observation: &Observation) -> Coverage {
        Coverage::of(observation, status(), |_| true)
    }

    fn pass(before: &ReportedFindings, findings: &[Finding], coverage: &Coverage) -> (Vec<String>, ReportedFindings) {
        let Plan { events, reported, report, .. } = plan(before, findings, coverage, &InputSummary::default());
        assert_eq!(report::reported_findings(&report), reported, "the next leader reads the same findings");
        let events = events.into_iter().map(|event| {
            let name = event.account.map(|account| account.name).unwrap_or_default();
            format!("{} {name}", event.reason)
        });
        (events.collect(), reported)
    }

    /// Reported as errors, and absent for a long time.
    fn reported<const N: usize>(keys: [FindingKey; N]) -> ReportedFindings {
        let state = ReportedState { severity: Some(Severity::Error), absent_since: Some(Timestamp::UNIX_EPOCH) };
        keys.into_iter().map(|key| (key, state.clone())).collect()
    }

    fn key(id: &str, object: Object) -> FindingKey {
        FindingKey { id: id.to_owned(), object }
    }

    fn account_key(id: &str) -> FindingKey {
        key(id, Object::namespaced("ServiceAccount", "shop", "web"))
    }

    /// Returns the absent findings that the report still has, and the Events.
    fn left<const N: usize>(ids: [&str; N], coverage: &Coverage) -> (Vec<String>, Vec<String>) {
        let (events, rest) = pass(&reported(ids.map(account_key)), &[], coverage);
        (rest.into_keys().map(|key| key.id).collect(), events)
    }

    #[test]
    fn a_finding_and_its_resolution_have_one_event_each() {
        let coverage = coverage(&observation(&["web"]));
        let wrong = [finding("F3", Severity::Error, "web"), finding("F3", Severity::Error, "web")];
        let (events, reported) = pass(&ReportedFindings::new(), &wrong, &coverage);
        assert_eq!(events, ["IdentityF3 web"]);
        let (events, reported) = pass(&reported, &wrong, &coverage);
        assert!(events.is_empty(), "{events:?}");
        let (events, reported) = pass(&reported, &[], &coverage);
        assert_eq!(events, ["IdentityHealed web"]);
        assert!(reported.is_empty() && pass(&reported, &[], &coverage).0.is_empty());
    }

    #[test]
    fn only_a_risen_severity_has_an_event() {
        let coverage = coverage(&observation(&["web"]));
        let [warning, error] = [Severity::Warning, Severity::Error].map(|severity| [finding("F3", severity, "web")]);
        let (_, reported) = pass(&ReportedFindings::new(), &warning, &coverage);
        let (events, reported) = pass(&reported, &error, &coverage);
        assert_eq!(events, ["IdentityF3 web"]);
        let (events, reported) = pass(&reported, &warning, &coverage);
        assert!(events.is_empty(), "{events:?}");
        assert_eq!(pass(&reported, &error, &coverage).0, ["IdentityF3 web"]);
    }

    #[test]
    fn a_transient_finding_is_resolved_after_a_minute_of_absence() {
        let now = observation(&["web"]);
        let at = |seconds: i64| Observation { at: now.at + SignedDuration::from_secs(seconds), ..now.clone() };
        let wrong = [finding("S1", Severity::Warning, "web")];
        let (_, mut reported) = pass(&ReportedFindings::new(), &wrong, &coverage(&now));
        for seconds in [0, 59, 100, 159] {
            let is_there = seconds == 100;
            let findings: &[Finding] = if is_there { &wrong } else { &[] };
            let (events, rest) = pass(&reported, findings, &coverage(&at(seconds)));
            assert!(events.is_empty() && rest.len() == 1, "{seconds}: {events:?}");
            assert_eq!(rest[&account_key("S1")].absent_since.is_none(), is_there, "{seconds}");
            reported = rest;
        }
        assert!(pass(&reported, &[], &coverage(&at(218))).0.is_empty());
        let (events, reported) = pass(&reported, &[], &coverage(&at(219)));
        assert_eq!(events, ["IdentityHealed web"]);
        assert!(reported.is_empty());
    }

    #[test]
    fn an_event_has_the_uid_of_its_account_and_names_the_finding() {
        let before = reported(["F3", "F5"].map(account_key));
        let plan = plan(&before, &[], &coverage(&observation(&["web"])), &InputSummary::default());
        let [one, other] = plan.events.as_slice() else { panic!("{:?}", plan.events) };
        assert_eq!(one.uid.as_deref(), Some("uid of web"));
        assert!(one.note.starts_with("F3, ") && other.note.starts_with("F5, "), "{one:?} {other:?}");
    }

    #[test]
    fn info_and_unknown_have_no_events() {
        let findings = [finding("F10", Severity::Info, "web"), finding("F0", Severity::Unknown, "web")];
        let (events, reported) = pass(&ReportedFindings::new(), &findings, &coverage(&observation(&["web"])));
        assert!(events.is_empty() && reported.is_empty(), "{events:?}");
    }

    #[test]
    fn an_unread_input_resolves_nothing_and_a_deleted_object_is_removed() {
        let of_identity = key("F7", Object::global("ManagedIdentity", "id"));
        let of_webhook = key("W3", Object::global("MutatingWebhookConfiguration", "azure-wi"));
        let before = reported([account_key("F3"), account_key("P1"), of_identity.clone(), of_webhook.clone()]);
        let keys = |reported: ReportedFindings| reported.into_keys().collect::<Vec<_>>();

        let all = observation(&["web"]);
        let (events, rest) = pass(&before, &[finding("F0", Severity::Unknown, "web")], &coverage(&all));
        assert_eq!(events, ["IdentityHealed web", "IdentityHealed "], "the findings about the pods and the webhook");
        assert_eq!(keys(rest), [account_key("F3")]);

        let failure = ReadFailure { reason: String::new(), action: String::new(), scope: String::new() };
        let managed_identities = Some(ManagedIdentities { incomplete: Some(failure), ..ManagedIdentities::default() });
        let cluster = Cluster { webhooks: None, ..all.cluster.clone() };
        let partly = Observation { cluster, managed_identities, ..all.clone() };
        let (_, rest) = pass(&before, &[], &coverage(&partly));
        assert_eq!(keys(rest), [of_identity, of_webhook]);
        let unanswered = InputStatus { has_credentials: false, ..status() };
        let (events, rest) = pass(&before, &[], &Coverage::of(&all, unanswered, |_| true));
        assert!(rest.contains_key(&account_key("F3")), "the sources have not been read yet");
        assert_eq!(events.len(), 2, "{events:?}");

        let (events, rest) = pass(&reported([account_key("F3")]), &[], &coverage(&observation(&[])));
        assert!(events.is_empty() && rest.is_empty(), "a deleted service account has no resolution");
    }

    #[test]
    fn a_finding_of_an_unknown_check_is_removed_without_an_event() {
        let (rest, events) = left(["X1"], &coverage(&observation(&["web"])));
        assert!(rest.is_empty() && events.is_empty(), "{rest:?} {events:?}");
    }

    #[test]
    fn without_sources_no_finding_about_credentials_is_resolved() {
        let all = observation(&["web"]);
        let without = Observation { managed_identities: None, ..all.clone() };
        let (rest, events) = left(["F3", "S1", "S5"], &coverage(&without));
        assert_eq!((rest, events), (vec!["F3".to_owned()], vec!["IdentityHealed web".to_owned()]), "S1 alone");
        let of_identity = key("F7", Object::global("ManagedIdentity", "id"));
        let (events, rest) = pass(&reported([of_identity]), &[], &coverage(&without));
        assert!(events.is_empty() && rest.len() == 1, "{events:?}");
        let (rest, events) = left(["F3", "S1", "S5"], &coverage(&all));
        assert!(rest.is_empty() && events.len() == 3, "{rest:?} {events:?}");
    }

    #[test]
    fn a_finding_is_resolved_only_if_its_inputs_were_read() {
        let all = observation(&["web"]);
        let no_nodes = InputStatus { has_nodes: false, ..status() };
        assert_eq!(left(["P1", "P6"], &Coverage::of(&all, no_nodes, |_| true)).0, ["P6"]);
        let cluster = Cluster { webhooks: None, ..all.cluster.clone() };
        assert_eq!(left(["P1", "W2"], &coverage(&Observation { cluster, ..all.clone() })).0, ["W2"]);
        assert!(left(["B1"], &coverage(&all)).0.is_empty(), "no pod uses a binding");
        let bound = Pod {
            annotations: [("azure.workload.identity/use-identity-binding".to_owned(), "true".to_owned())].into(),
            ..Pod::default()
        };
        assert!(bound.uses_binding());
        let cluster = Cluster { pods: vec![bound], ..all.cluster.clone() };
        assert_eq!(left(["B1"], &coverage(&Observation { cluster, ..all.clone() })).0, ["B1"]);
        let of_issuer = || reported([key("I1", Object::global("Issuer", "https://issuer"))]);
        let undiscovered = InputStatus { has_discovery: false, ..status() };
        assert_eq!(pass(&of_issuer(), &[], &Coverage::of(&all, undiscovered, |_| true)).1.len(), 1);
        assert!(pass(&of_issuer(), &[], &coverage(&all)).1.is_empty());
    }

    #[test]
    fn a_pending_client_id_has_no_events_and_no_resolutions() {
        let name = AccountName { namespace: "shop".to_owned(), name: "web".to_owned() };
        let pending = || InputStatus { pending_accounts: [name.clone()].into(), ..status() };
        for (id, expected) in [("F1", true), ("F0", true), ("S1", false)] {
            assert_eq!(is_premature(&finding(id, Severity::Warning, "web"), &pending()), expected, "{id}");
            assert!(!is_premature(&finding(id, Severity::Warning, "other"), &pending()), "{id}");
        }
        let (rest, events) = left(["F1", "S1", "S5"], &Coverage::of(&observation(&["web"]), pending(), |_| true));
        assert_eq!((rest.concat().as_str(), events.len()), ("F1S5", 1), "{events:?}");
    }

    #[test]
    fn a_pass_writes_a_bounded_number_of_events_errors_first() {
        let names: Vec<_> = (0..100).map(|number| format!("sa-{number:03}")).collect();
        let of = |severity| names.iter().map(move |name| finding("F3", severity, name));
        let worst = finding("F2", Severity::Error, "sa-099");
        let findings: Vec<_> = of(Severity::Warning).chain([worst]).collect();
        let coverage = coverage(&observation(&names.iter().map(String::as_str).collect::<Vec<_>>()));
        let (events, reported) = pass(&ReportedFindings::new(), &findings, &coverage);
        assert_eq!((events.len(), events[0].as_str()), (MAX_EVENTS + 1, "IdentityF2 sa-099"));
        assert_eq!(events.last().unwrap(), "IdentityManyFindings ");
        assert_eq!(reported.len(), 101);
        let (events, _) = pass(&reported, &findings, &coverage);
        assert!(events.is_empty(), "one event reports the number of the others");
        assert_eq!(pass(&reported, &[], &coverage).0.len(), MAX_EVENTS + 1);
    }

    #[test]
    fn an_event_has_the_fix_if_it_fits() {
        let note = |fix: String, message: String| {
            let finding = Finding { message, fix, ..finding("F3", Severity::Error, "web") };
            let plan =
                plan(&ReportedFindings::new(), &[finding], &coverage(&observation(&["web"])), &InputSummary::default());
            plan.events.into_iter().next().unwrap().note
        };
        assert_eq!(note("az fix".to_owned(), "it is wrong".to_owned()), "it is wrong. Fix it with: az fix");
        assert_eq!(note("x".repeat(1024), "it is wrong".to_owned()), "it is wrong");
    }

    #[test]
    fn the_report_fits_into_a_config_map_and_counts_omitted_findings() {
        let long = "m".repeat(2_000);
        let of = |number: usize| Finding {
            message: long.clone(),
            ..finding("F3", Severity::Warning, &format!("sa-{number}"))
        };
        let mut findings: Vec<_> = (0..1_000).map(of).collect();
        findings.push(finding("F2", Severity::Error, "worst"));
        let plan = plan(&ReportedFindings::new(), &findings, &coverage(&observation(&[])), &InputSummary::default());
        assert!(plan.report.len() <= 900_000 && plan.report.len() > 800_000, "{}", plan.report.len());
        let report: Value = serde_json::from_str(&plan.report).unwrap();
        let shown = report["findings"].as_array().unwrap();
        assert_eq!(shown[0]["id"], "F2");
        assert_eq!(shown.len() + usize::try_from(report["omitted"].as_u64().unwrap()).unwrap(), 1_001);
        assert_eq!(report["summary"], serde_json::json!({"error": 1, "warning": 1_000}));
        assert_eq!(report::reported_findings(&plan.report).len(), 1_001);
        assert_eq!(report::reported_findings("{}").len() + report::reported_findings("broken").len(), 0);
        let labels = FindingLabels { id: "F3", severity: "warning", namespace: "shop".to_owned() };
        assert_eq!(plan.counts[&labels], 1_000);
    }
}
