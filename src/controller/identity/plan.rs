//! What follows from what was found: pure. The findings that people were told of before, and those of now, make the events to write,
//! the metrics and the report.

use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::report::{self, Memory, Sources, State, Told};
use crate::{
    identity::{
        AccountName, Check, Finding, Input, Object, Seen, Severity, azure::Identity as Managed, check_of, seen::Pod,
    },
    telemetry::FindingLabels,
};

/// Events that one pass writes at the most; what there is beyond is said in one more.
pub(super) const MOST_EVENTS: usize = 20;

/// How long what comes and goes by itself must be absent before it is called mended.
const HEAL_AFTER: SignedDuration = SignedDuration::from_mins(1);

/// An event to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    /// The service account; nothing for what concerns the cluster as a whole.
    pub(super) about: Option<AccountName>,
    /// Of the service account, if it is there: `kubectl describe` finds events by it.
    pub(super) uid: Option<String>,
    pub(super) is_warning: bool,
    pub(super) reason: String,
    pub(super) note: String,
}

/// What is to be written.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) events: Vec<Planned>,
    pub(super) told: Memory,
    pub(super) counts: BTreeMap<FindingLabels, i64>,
    pub(super) report: String,
}

/// What is known of what was read, beside what it says.
#[derive(Debug, Clone, Default)]
pub(super) struct Basis {
    /// All sources of credentials have answered.
    pub(super) has_credentials: bool,
    /// The API server has said what it takes for its issuer.
    pub(super) has_discovery: bool,
    /// The virtual nodes are known.
    pub(super) has_nodes: bool,
    /// The service accounts whose client ids the sources have not been asked for yet: of their credentials nothing can be told.
    pub(super) unasked: HashSet<AccountName>,
}

/// What can be told from what was seen: where something could not be read, an absent finding is no mended one.
pub(super) struct Grounds {
    /// With their uids.
    accounts: HashMap<AccountName, Option<String>>,
    unasked: HashSet<AccountName>,
    /// The names of the identities whose credentials are known; of those that share a name, all must be.
    identities: HashSet<String>,
    known: HashSet<Input>,
    knows_all_identities: bool,
    /// Nobody has to be asked for credentials.
    has_no_sources: bool,
    at: Timestamp,
}

/// What has become of a finding that is there no more.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Mended,
    /// What it was about is gone, or is nobody's business any more.
    Gone,
    CannotTell,
}

impl Grounds {
    /// Those that checks were made on; `covers` says which namespaces are checked.
    pub(super) fn of(seen: &Seen, basis: Basis, covers: impl Fn(&str) -> bool) -> Self {
        let Basis { has_credentials, has_discovery, has_nodes, unasked } = basis;
        let cluster = &seen.cluster;
        let accounts = cluster.service_accounts.iter().filter(|account| covers(&account.name.namespace));
        let identities = || seen.azure.iter().flat_map(|azure| &azure.identities);
        let unread: HashSet<_> =
            identities().filter(|one| one.credentials.is_err()).map(Managed::display_name).collect();
        let read = identities().map(Managed::display_name).filter(|name| !unread.contains(name));
        let known = Input::ALL.into_iter().filter(|input| match input {
            Input::Cluster => cluster.is_whole,
            Input::Credentials => has_credentials && seen.azure.is_some(),
            Input::Webhooks => cluster.webhooks.is_some() && cluster.endpoints.is_some(),
            // They are read once something uses a binding.
            Input::Grants => cluster.grants.is_some() || !cluster.pods.iter().any(Pod::uses_binding),
            Input::Nodes => has_nodes,
            Input::Issuer => !seen.issuers.is_empty(),
            Input::Discovery => has_discovery,
        });
        Self {
            accounts: accounts.map(|account| (account.name.clone(), account.uid.clone())).collect(),
            unasked,
            identities: read.map(str::to_owned).collect(),
            known: known.collect(),
            knows_all_identities: seen.azure.as_ref().is_some_and(|azure| azure.unseen.is_none()),
            has_no_sources: has_credentials && seen.azure.is_none(),
            at: seen.at,
        }
    }

    fn knows(&self, inputs: &[Input]) -> bool {
        inputs.iter().all(|input| self.known.contains(input))
    }

    fn fate(&self, told: &Told, in_doubt: &HashSet<&AccountName>) -> Fate {
        // Another version of Spillway made it: this one cannot say whether it is mended.
        let Some(check) = check_of(&told.id) else { return Fate::Gone };
        match told.object.kind.as_str() {
            "ServiceAccount" => self.fate_of_account(check, &told.object, in_doubt),
            "ManagedIdentity" if !self.identities.contains(&told.object.name) => {
                let is_gone = self.knows(&[Input::Credentials]) && self.knows_all_identities;
                if is_gone { Fate::Gone } else { Fate::CannotTell }
            }
            _ => self.if_known(check.needs),
        }
    }

    fn fate_of_account(&self, check: &Check, object: &Object, in_doubt: &HashSet<&AccountName>) -> Fate {
        let Some(name) = account(object).filter(|name| self.accounts.contains_key(name)) else {
            return if self.knows(&[Input::Cluster]) { Fate::Gone } else { Fate::CannotTell };
        };
        if check.reads_input(Input::Credentials) && (in_doubt.contains(&name) || self.unasked.contains(&name)) {
            return Fate::CannotTell;
        }
        // It may have rested on them or not: without them, nobody can say whether it is mended.
        if check.optional.contains(&Input::Credentials) && self.has_no_sources {
            return Fate::Gone;
        }
        match self.if_known(check.optional) {
            Fate::Mended => self.if_known(check.needs),
            other => other,
        }
    }

    fn if_known(&self, inputs: &[Input]) -> Fate {
        if self.knows(inputs) { Fate::Mended } else { Fate::CannotTell }
    }
}

/// Whether a finding says something of credentials that were not asked for yet.
pub(super) fn is_premature(finding: &Finding, basis: &Basis) -> bool {
    finding.check.needs.contains(&Input::Credentials)
        && finding.service_account.as_ref().is_some_and(|name| basis.unasked.contains(name))
}

fn account(object: &Object) -> Option<AccountName> {
    Some(AccountName { namespace: object.namespace.clone()?, name: object.name.clone() })
}

/// What an event is about: the service account, if there is one.
fn subject(finding: &Finding) -> Object {
    match &finding.service_account {
        Some(AccountName { namespace, name }) => Object::namespaced("ServiceAccount", namespace, name),
        None => finding.object.clone(),
    }
}

/// Findings that are told as one.
struct Same<'f> {
    /// The first of the gravest.
    worst: &'f Finding,
    count: usize,
}

/// When the next of what is absent will have stayed so for long enough to be called mended.
pub(super) fn next_mended(told: &Memory) -> Option<Timestamp> {
    told.values().filter_map(|state| state.absent_since?.checked_add(HEAL_AFTER).ok()).min()
}

/// Makes the plan.
pub(super) fn plan(before: &Memory, findings: &[Finding], grounds: &Grounds, sources: &Sources) -> Plan {
    let mut now: BTreeMap<Told, Same<'_>> = BTreeMap::new();
    for finding in findings.iter().filter(|one| matches!(one.severity, Severity::Error | Severity::Warning)) {
        let told = Told { id: finding.check.id.to_owned(), object: subject(finding) };
        let same = now.entry(told).or_insert(Same { worst: finding, count: 0 });
        same.count += 1;
        if finding.severity < same.worst.severity {
            same.worst = finding;
        }
    }
    // What has become worse is news.
    let is_known = |told: &Told, same: &Same<'_>| {
        before.get(told).is_some_and(|state| state.severity.is_none_or(|before| before <= same.worst.severity))
    };
    let mut new: Vec<_> = now.iter().filter(|(told, same)| !is_known(told, same)).collect();
    new.sort_by_key(|(_, same)| same.worst.severity);
    let mut events: Vec<_> = new.into_iter().map(|(told, same)| broken(told, same)).collect();

    let unknown = findings.iter().filter(|finding| finding.severity == Severity::Unknown);
    let in_doubt: HashSet<_> = unknown.filter_map(|finding| finding.service_account.as_ref()).collect();
    let present = |severity| State { severity: Some(severity), absent_since: None };
    let mut told: Memory = now.into_iter().map(|(told, same)| (told, present(same.worst.severity))).collect();
    for (gone, state) in before {
        if told.contains_key(gone) {
            continue;
        }
        let remembered = |absent_since| State { absent_since, ..state.clone() };
        match grounds.fate(gone, &in_doubt) {
            Fate::Mended => {
                let since = state.absent_since.unwrap_or(grounds.at);
                if check_of(&gone.id).is_some_and(|check| check.transient)
                    && grounds.at.duration_since(since) < HEAL_AFTER
                {
                    told.insert(gone.clone(), remembered(Some(since)));
                } else {
                    events.push(mended(gone));
                }
            }
            Fate::Gone => {}
            Fate::CannotTell => {
                told.insert(gone.clone(), remembered(None));
            }
        }
    }
    for event in &mut events {
        event.uid = event.about.as_ref().and_then(|name| grounds.accounts.get(name).cloned().flatten());
    }
    let report = report::report(findings, &told, sources);
    Plan { events: bounded(events), told, counts: counts(findings), report }
}

fn broken(told: &Told, Same { worst, count }: &Same<'_>) -> Planned {
    // Of a pod, it must be said whose it is; of the service account, it is clear.
    let is_clear = worst.object == told.object && told.object.kind == "ServiceAccount";
    let of = if is_clear { String::new() } else { format!("{}: ", worst.object) };
    let more = if *count > 1 { format!(" (and {} more of this kind)", count - 1) } else { String::new() };
    let mut note = format!("{of}{}{more}", worst.message);
    let fix = format!(". Mend it with: {}", worst.fix);
    // The API server takes 1,024 bytes.
    if !worst.fix.is_empty() && note.len() + fix.len() <= 1024 {
        note += &fix;
    }
    Planned { about: about(told), uid: None, is_warning: true, reason: format!("Identity{}", told.id), note }
}

fn mended(told: &Told) -> Planned {
    let check = check_of(&told.id);
    let title = check.map(|check| format!(", {}", check.title)).unwrap_or_default();
    let of = if told.object.kind == "ServiceAccount" { String::new() } else { format!("{}: ", told.object) };
    let note = format!("{of}{}{title}: not so any more", told.id);
    Planned { about: about(told), uid: None, is_warning: false, reason: "IdentityHealed".to_owned(), note }
}

fn about(told: &Told) -> Option<AccountName> {
    account(&told.object).filter(|_| told.object.kind == "ServiceAccount")
}

/// The first of these, and one that says how many there are beyond.
fn bounded(mut events: Vec<Planned>) -> Vec<Planned> {
    let more = events.split_off(events.len().min(MOST_EVENTS));
    if !more.is_empty() {
        let broken = more.iter().filter(|event| event.is_warning).count();
        let note = format!(
            "{broken} more findings and {} more that are mended, without an event of their own: see ConfigMap {}",
            more.len() - broken,
            super::REPORT
        );
        events.push(Planned {
            about: None,
            uid: None,
            is_warning: broken > 0,
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

/// Where a finding belongs; nothing for the cluster as a whole.
pub(super) fn namespace(finding: &Finding) -> Option<&str> {
    let of_account = finding.service_account.as_ref().map(|account| account.namespace.as_str());
    of_account.or(finding.object.namespace.as_deref())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::identity::{
        azure::{Azure, Unread},
        seen::{Cluster, Issuer, ServiceAccount},
    };

    fn finding(id: &str, severity: Severity, name: &str) -> Finding {
        Finding {
            check: check_of(id).unwrap(),
            severity,
            object: Object::namespaced("ServiceAccount", "shop", name),
            service_account: Some(AccountName { namespace: "shop".to_owned(), name: name.to_owned() }),
            message: format!("{name} is wrong"),
            evidence: Vec::new(),
            fix: "az mend".to_owned(),
        }
    }

    const NOW: &str = "2026-01-01T12:00:00Z";

    /// Everything was read, and these service accounts are there.
    fn seen(names: &[&str]) -> Seen {
        let account = |name: &&str| ServiceAccount {
            name: AccountName { namespace: "shop".to_owned(), name: (*name).to_owned() },
            uid: Some(format!("uid of {name}")),
            ..ServiceAccount::default()
        };
        Seen {
            cluster: Cluster {
                service_accounts: names.iter().map(account).collect(),
                is_whole: true,
                webhooks: Some(Vec::new()),
                endpoints: Some(BTreeMap::new()),
                ..Cluster::default()
            },
            issuers: vec![Issuer { url: "https://issuer".to_owned(), source: String::new(), algorithms: None }],
            azure: Some(Azure::default()),
            at: NOW.parse().unwrap(),
            ..Seen::default()
        }
    }

    fn basis() -> Basis {
        Basis { has_credentials: true, has_discovery: true, has_nodes: true, unasked: HashSet::new() }
    }

    fn grounds(seen: &Seen) -> Grounds {
        Grounds::of(seen, basis(), |_| true)
    }

    fn pass(before: &Memory, findings: &[Finding], grounds: &Grounds) -> (Vec<String>, Memory) {
        let Plan { events, told, report, .. } = plan(before, findings, grounds, &Sources::default());
        assert_eq!(report::told(&report), told, "the next leader knows the same");
        let said = events.into_iter().map(|event| {
            let name = event.about.map(|about| about.name).unwrap_or_default();
            format!("{} {name}", event.reason)
        });
        (said.collect(), told)
    }

    /// Told of as errors, and absent for long.
    fn remembered<const N: usize>(told: [Told; N]) -> Memory {
        let state = State { severity: Some(Severity::Error), absent_since: Some(Timestamp::UNIX_EPOCH) };
        told.into_iter().map(|told| (told, state.clone())).collect()
    }

    fn told(id: &str, object: Object) -> Told {
        Told { id: id.to_owned(), object }
    }

    fn of_account(id: &str) -> Told {
        told(id, Object::namespaced("ServiceAccount", "shop", "web"))
    }

    /// Those of these that are still remembered once none of them is found, and what is said.
    fn left<const N: usize>(ids: [&str; N], grounds: &Grounds) -> (Vec<String>, Vec<String>) {
        let (events, rest) = pass(&remembered(ids.map(of_account)), &[], grounds);
        (rest.into_keys().map(|told| told.id).collect(), events)
    }

    #[test]
    fn a_finding_is_told_once_and_so_is_that_it_is_mended() {
        let grounds = grounds(&seen(&["web"]));
        let wrong = [finding("F3", Severity::Error, "web"), finding("F3", Severity::Error, "web")];
        let (events, told) = pass(&Memory::new(), &wrong, &grounds);
        assert_eq!(events, ["IdentityF3 web"]);
        let (events, told) = pass(&told, &wrong, &grounds);
        assert!(events.is_empty(), "{events:?}");
        let (events, told) = pass(&told, &[], &grounds);
        assert_eq!(events, ["IdentityHealed web"]);
        assert!(told.is_empty() && pass(&told, &[], &grounds).0.is_empty());
    }

    #[test]
    fn what_becomes_worse_is_told_again_and_what_becomes_better_is_not() {
        let grounds = grounds(&seen(&["web"]));
        let [warning, error] = [Severity::Warning, Severity::Error].map(|severity| [finding("F3", severity, "web")]);
        let (_, told) = pass(&Memory::new(), &warning, &grounds);
        let (events, told) = pass(&told, &error, &grounds);
        assert_eq!(events, ["IdentityF3 web"]);
        let (events, told) = pass(&told, &warning, &grounds);
        assert!(events.is_empty(), "{events:?}");
        assert_eq!(pass(&told, &error, &grounds).0, ["IdentityF3 web"]);
    }

    #[test]
    fn pods_that_come_and_go_are_told_of_once_and_are_mended_when_they_stay_away() {
        let now = seen(&["web"]);
        let at = |seconds: i64| Seen { at: now.at + SignedDuration::from_secs(seconds), ..now.clone() };
        let wrong = [finding("S1", Severity::Warning, "web")];
        let (_, mut told) = pass(&Memory::new(), &wrong, &grounds(&now));
        for seconds in [0, 59, 100, 159] {
            let is_there = seconds == 100;
            let findings: &[Finding] = if is_there { &wrong } else { &[] };
            let (events, rest) = pass(&told, findings, &grounds(&at(seconds)));
            assert!(events.is_empty() && rest.len() == 1, "{seconds}: {events:?}");
            assert_eq!(rest[&of_account("S1")].absent_since.is_none(), is_there, "{seconds}");
            told = rest;
        }
        assert!(pass(&told, &[], &grounds(&at(218))).0.is_empty());
        let (events, told) = pass(&told, &[], &grounds(&at(219)));
        assert_eq!(events, ["IdentityHealed web"]);
        assert!(told.is_empty());
    }

    #[test]
    fn an_event_carries_the_uid_of_its_service_account_and_a_healed_one_says_what_is_mended() {
        let before = remembered(["F3", "F5"].map(of_account));
        let plan = plan(&before, &[], &grounds(&seen(&["web"])), &Sources::default());
        let [one, other] = plan.events.as_slice() else { panic!("{:?}", plan.events) };
        assert_eq!(one.uid.as_deref(), Some("uid of web"));
        assert!(one.note.starts_with("F3, ") && other.note.starts_with("F5, "), "{one:?} {other:?}");
    }

    #[test]
    fn what_is_good_to_know_or_cannot_be_told_is_no_event() {
        let findings = [finding("F10", Severity::Info, "web"), finding("F0", Severity::Unknown, "web")];
        let (events, told) = pass(&Memory::new(), &findings, &grounds(&seen(&["web"])));
        assert!(events.is_empty() && told.is_empty(), "{events:?}");
    }

    #[test]
    fn what_cannot_be_seen_any_more_is_not_mended_and_what_is_gone_is_forgotten() {
        let of_identity = told("F7", Object::global("ManagedIdentity", "id"));
        let of_webhook = told("W3", Object::global("MutatingWebhookConfiguration", "azure-wi"));
        let before = remembered([of_account("F3"), of_account("P1"), of_identity.clone(), of_webhook.clone()]);
        let keys = |memory: Memory| memory.into_keys().collect::<Vec<_>>();

        let all = seen(&["web"]);
        let (events, rest) = pass(&before, &[finding("F0", Severity::Unknown, "web")], &grounds(&all));
        assert_eq!(events, ["IdentityHealed web", "IdentityHealed "], "of the pods and of the webhook");
        assert_eq!(keys(rest), [of_account("F3")]);

        let unseen = Unread { because: String::new(), action: String::new(), scope: String::new() };
        let azure = Some(Azure { unseen: Some(unseen), ..Azure::default() });
        let cluster = Cluster { webhooks: None, ..all.cluster.clone() };
        let partly = Seen { cluster, azure, ..all.clone() };
        let (_, rest) = pass(&before, &[], &grounds(&partly));
        assert_eq!(keys(rest), [of_identity, of_webhook]);
        let unanswered = Basis { has_credentials: false, ..basis() };
        let (events, rest) = pass(&before, &[], &Grounds::of(&all, unanswered, |_| true));
        assert!(rest.contains_key(&of_account("F3")), "the sources have not answered yet");
        assert_eq!(events.len(), 2, "{events:?}");

        let (events, rest) = pass(&remembered([of_account("F3")]), &[], &grounds(&seen(&[])));
        assert!(events.is_empty() && rest.is_empty(), "a service account that is gone is not mended");
    }

    #[test]
    fn a_finding_of_a_check_that_is_not_there_is_forgotten_without_an_event() {
        let (rest, events) = left(["X1"], &grounds(&seen(&["web"])));
        assert!(rest.is_empty() && events.is_empty(), "{rest:?} {events:?}");
    }

    #[test]
    fn without_sources_of_credentials_nothing_is_called_mended_that_rests_on_them() {
        let all = seen(&["web"]);
        let without = Seen { azure: None, ..all.clone() };
        let (rest, events) = left(["F3", "S1", "S5"], &grounds(&without));
        assert_eq!((rest, events), (vec!["F3".to_owned()], vec!["IdentityHealed web".to_owned()]), "S1 alone");
        let of_identity = told("F7", Object::global("ManagedIdentity", "id"));
        let (events, rest) = pass(&remembered([of_identity]), &[], &grounds(&without));
        assert!(events.is_empty() && rest.len() == 1, "{events:?}");
        let (rest, events) = left(["F3", "S1", "S5"], &grounds(&all));
        assert!(rest.is_empty() && events.len() == 3, "{rest:?} {events:?}");
    }

    #[test]
    fn each_finding_is_mended_only_on_what_it_rests_on() {
        let all = seen(&["web"]);
        let no_nodes = Basis { has_nodes: false, ..basis() };
        assert_eq!(left(["P1", "P6"], &Grounds::of(&all, no_nodes, |_| true)).0, ["P6"]);
        let cluster = Cluster { webhooks: None, ..all.cluster.clone() };
        assert_eq!(left(["P1", "W2"], &grounds(&Seen { cluster, ..all.clone() })).0, ["W2"]);
        assert!(left(["B1"], &grounds(&all)).0.is_empty(), "nothing uses a binding");
        let bound = Pod {
            annotations: [("azure.workload.identity/use-identity-binding".to_owned(), "true".to_owned())].into(),
            ..Pod::default()
        };
        assert!(bound.uses_binding());
        let cluster = Cluster { pods: vec![bound], ..all.cluster.clone() };
        assert_eq!(left(["B1"], &grounds(&Seen { cluster, ..all.clone() })).0, ["B1"]);
        let of_issuer = || remembered([told("I1", Object::global("Issuer", "https://issuer"))]);
        let undiscovered = Basis { has_discovery: false, ..basis() };
        assert_eq!(pass(&of_issuer(), &[], &Grounds::of(&all, undiscovered, |_| true)).1.len(), 1);
        assert!(pass(&of_issuer(), &[], &grounds(&all)).1.is_empty());
    }

    /// The decision by the letters of ids, to compare the facts of the checks with.
    fn fate_by_id(grounds: &Grounds, told: &Told, in_doubt: &HashSet<&AccountName>) -> Fate {
        let can_tell = match (told.object.kind.as_str(), told.id.as_str(), told.id.get(..1)) {
            ("ServiceAccount", id, family) => {
                let Some(name) = account(&told.object).filter(|name| grounds.accounts.contains_key(name)) else {
                    return if grounds.knows(&[Input::Cluster]) { Fate::Gone } else { Fate::CannotTell };
                };
                let is_in_doubt = in_doubt.contains(&name) || grounds.unasked.contains(&name);
                let needed: &[Input] = match (id, family) {
                    (_, Some("F")) | ("S5" | "S6", _) if is_in_doubt => return Fate::CannotTell,
                    (_, Some("F")) => &[Input::Cluster, Input::Credentials, Input::Issuer],
                    ("S5" | "S6", _) if grounds.has_no_sources => return Fate::Gone,
                    ("S5" | "S6", _) => &[Input::Cluster, Input::Credentials],
                    (_, Some("B")) => &[Input::Cluster, Input::Grants],
                    (_, Some("W")) => &[Input::Cluster, Input::Webhooks],
                    ("P6", _) => &[Input::Cluster, Input::Nodes],
                    ("S1" | "S2" | "S3" | "S4" | "S7" | "S8" | "S9" | "S10" | "S11" | "S12", _) => &[Input::Cluster],
                    ("P1" | "P2" | "P3" | "P4" | "P5", _) => &[Input::Cluster],
                    (id, _) => panic!("{id} is of no family that concerns service accounts"),
                };
                grounds.knows(needed)
            }
            ("ManagedIdentity", ..) if !grounds.identities.contains(&told.object.name) => {
                let is_gone = grounds.knows(&[Input::Credentials]) && grounds.knows_all_identities;
                return if is_gone { Fate::Gone } else { Fate::CannotTell };
            }
            ("ManagedIdentity", ..) => grounds.knows(&[Input::Cluster, Input::Credentials, Input::Issuer]),
            (_, _, Some("I")) => grounds.knows(&[Input::Issuer, Input::Discovery]),
            _ => grounds.knows(&[Input::Cluster, Input::Webhooks]),
        };
        if can_tell { Fate::Mended } else { Fate::CannotTell }
    }

    #[test]
    fn each_check_is_mended_on_the_same_grounds_as_by_its_id() {
        const ALL: [Input; 7] = Input::ALL;
        let name = |name: &str| AccountName { namespace: "shop".to_owned(), name: name.to_owned() };
        let (web, other) = (name("web"), name("other"));
        for check in crate::identity::checks() {
            // What its findings can be about: of a cluster, the bearers of keys are looked at by the command line alone.
            let kinds: &[&str] = match check.id.get(..1) {
                Some("F") => &["ServiceAccount", "ManagedIdentity"],
                Some("W") => &["ServiceAccount", "MutatingWebhookConfiguration"],
                Some("I") => &["Issuer"],
                _ => &["ServiceAccount"],
            };
            let is_of_family = |families: &[&str]| families.iter().any(|family| check.id.starts_with(family));
            for kind in kinds {
                let object = match *kind {
                    "ServiceAccount" => Object::namespaced(kind, "shop", "web"),
                    kind => Object::global(kind, "web"),
                };
                let told = told(check.id, object);
                assert_eq!(check.transient, !is_of_family(&["F", "I"]), "{}", check.id);
                for bits in 0..1_u32 << (ALL.len() + 6) {
                    let bit = |at: usize| bits & 1 << at != 0;
                    let flag = |at: usize| bit(ALL.len() + at);
                    let known = ALL.into_iter().enumerate().filter(|(at, _)| bit(*at)).map(|(_, ground)| ground);
                    let grounds = Grounds {
                        accounts: [(if flag(0) { &web } else { &other }.clone(), None)].into(),
                        unasked: flag(1).then(|| web.clone()).into_iter().collect(),
                        identities: flag(2).then(|| "web".to_owned()).into_iter().collect(),
                        known: known.collect(),
                        knows_all_identities: flag(5),
                        has_no_sources: flag(3),
                        at: Timestamp::UNIX_EPOCH,
                    };
                    let in_doubt: HashSet<_> = flag(4).then_some(&web).into_iter().collect();
                    let expected = fate_by_id(&grounds, &told, &in_doubt);
                    assert_eq!(grounds.fate(&told, &in_doubt), expected, "{} {kind} {bits:b}", check.id);
                }
            }
            let unasked = Basis { unasked: [web.clone()].into(), ..basis() };
            let finding = finding(check.id, Severity::Warning, "web");
            assert_eq!(is_premature(&finding, &unasked), is_of_family(&["F"]), "{}", check.id);
        }
    }

    #[test]
    fn of_a_client_id_that_was_not_asked_for_yet_nothing_is_told_and_nothing_is_mended() {
        let name = AccountName { namespace: "shop".to_owned(), name: "web".to_owned() };
        let unasked = || Basis { unasked: [name.clone()].into(), ..basis() };
        for (id, is_premature) in [("F1", true), ("F0", true), ("S1", false)] {
            assert_eq!(super::is_premature(&finding(id, Severity::Warning, "web"), &unasked()), is_premature, "{id}");
            assert!(!super::is_premature(&finding(id, Severity::Warning, "other"), &unasked()), "{id}");
        }
        let (rest, events) = left(["F1", "S1", "S5"], &Grounds::of(&seen(&["web"]), unasked(), |_| true));
        assert_eq!((rest.concat().as_str(), events.len()), ("F1S5", 1), "{events:?}");
    }

    #[test]
    fn a_pass_writes_a_bounded_number_of_events_the_worst_first_and_says_how_many_more_there_are() {
        let names: Vec<_> = (0..100).map(|number| format!("sa-{number:03}")).collect();
        let of = |severity| names.iter().map(move |name| finding("F3", severity, name));
        let worst = finding("F2", Severity::Error, "sa-099");
        let findings: Vec<_> = of(Severity::Warning).chain([worst]).collect();
        let grounds = grounds(&seen(&names.iter().map(String::as_str).collect::<Vec<_>>()));
        let (events, told) = pass(&Memory::new(), &findings, &grounds);
        assert_eq!((events.len(), events[0].as_str()), (MOST_EVENTS + 1, "IdentityF2 sa-099"));
        assert_eq!(events.last().unwrap(), "IdentityManyFindings ");
        assert_eq!(told.len(), 101);
        let (events, _) = pass(&told, &findings, &grounds);
        assert!(events.is_empty(), "told all together");
        assert_eq!(pass(&told, &[], &grounds).0.len(), MOST_EVENTS + 1);
    }

    #[test]
    fn an_event_has_the_command_that_mends_it_if_the_api_server_takes_so_much() {
        let note = |fix: String, message: String| {
            let finding = Finding { message, fix, ..finding("F3", Severity::Error, "web") };
            let plan = plan(&Memory::new(), &[finding], &grounds(&seen(&["web"])), &Sources::default());
            plan.events.into_iter().next().unwrap().note
        };
        assert_eq!(note("az mend".to_owned(), "it is wrong".to_owned()), "it is wrong. Mend it with: az mend");
        assert_eq!(note("x".repeat(1024), "it is wrong".to_owned()), "it is wrong");
    }

    #[test]
    fn the_report_fits_into_a_config_map_and_says_what_it_leaves_out() {
        let long = "m".repeat(2_000);
        let of = |number: usize| Finding {
            message: long.clone(),
            ..finding("F3", Severity::Warning, &format!("sa-{number}"))
        };
        let mut findings: Vec<_> = (0..1_000).map(of).collect();
        findings.push(finding("F2", Severity::Error, "worst"));
        let plan = plan(&Memory::new(), &findings, &grounds(&seen(&[])), &Sources::default());
        assert!(plan.report.len() <= 900_000 && plan.report.len() > 800_000, "{}", plan.report.len());
        let report: Value = serde_json::from_str(&plan.report).unwrap();
        let shown = report["findings"].as_array().unwrap();
        assert_eq!(shown[0]["id"], "F2");
        assert_eq!(shown.len() + usize::try_from(report["omitted"].as_u64().unwrap()).unwrap(), 1_001);
        assert_eq!(report["summary"], serde_json::json!({"error": 1, "warning": 1_000}));
        assert_eq!(report::told(&plan.report).len(), 1_001);
        assert_eq!(report::told("{}").len() + report::told("broken").len(), 0);
        let labels = FindingLabels { id: "F3", severity: "warning", namespace: "shop".to_owned() };
        assert_eq!(plan.counts[&labels], 1_000);
    }
}
