//! From a pod to the federated credential that lets it sign in: every link checked, every break named with its cure.
//!
//! ```text
//! pod ── label ──▶ azure-workload-identity ── token ──▶ issuer, subject, audience ══ federated credential ── managed identity
//!  └── service account ── client id ─────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Pure: no network, no files, no clock; the manifest of this crate holds that. What is known comes in as [`Seen`], what was found goes out as a list of
//! [`Finding`]s.
//! One check, one function, one file for each family. Texts are compared byte for byte, as Entra compares them; a difference is then
//! explained. What cannot be told is said to be unknown and never wrong. `docs/identity.md` is generated from the checks.

pub mod azure;
mod bindings;
pub mod catalogue;
mod command;
mod credentials;
pub mod difference;
pub mod entra;
pub mod file;
mod finding;
mod index;
mod issuer;
mod keys;
mod link;
mod pods;
pub mod preflight;
mod read;
pub mod seen;
mod service_account;
mod webhooks;

use std::collections::HashMap;

pub use command::quoted;
pub use finding::{AccountName, Evidence, Finding, Object, Severity};
pub use read::{PodSpec, grants, grants_identities, is_v1_virtual_node, ready_endpoints};
pub use seen::Seen;

use self::{
    finding::Found,
    index::{AccountCase, IdentityCase, Index, PodCase},
};

/// A check.
#[derive(Debug)]
pub struct Check {
    /// Such as `F3`. It is what stands in Events, metrics and output.
    pub id: &'static str,
    /// How bad it is when it finds something, as a rule.
    pub severity: Severity,
    /// What it finds, in a few words.
    pub title: &'static str,
    /// What it reads.
    pub reads: &'static str,
    /// What a finding means for the pods.
    pub meaning: &'static str,
    /// How it is mended, where the finding itself has no command.
    pub cure: &'static str,
    /// The Entra error codes that it can end in.
    pub leads_to: &'static [&'static str],
    /// Where that is written: `owner/repo path`, or a page of documentation.
    pub source: &'static str,
    run: &'static [Run],
}

impl PartialEq for Check {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Check {}

/// The function of a check, by what it is asked about.
#[derive(Debug)]
enum Run {
    Account(fn(&AccountCase<'_>) -> Vec<Found>),
    /// Equal findings of pods with the same maker become one.
    Pod(fn(&PodCase<'_>) -> Vec<Found>),
    Identity(fn(&IdentityCase<'_>) -> Vec<Found>),
    Cluster(fn(&Index<'_>) -> Vec<Found>),
}

/// The families of checks, in the order of the documentation.
const FAMILIES: &[&[&Check]] =
    &[service_account::CHECKS, pods::CHECKS, webhooks::CHECKS, issuer::CHECKS, credentials::CHECKS, bindings::CHECKS];

/// Every check, in the order of the documentation.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    FAMILIES.iter().flat_map(|family| family.iter().copied())
}

/// The check with this id.
pub fn check_of(id: &str) -> Option<&'static Check> {
    checks().find(|check| check.id.eq_ignore_ascii_case(id))
}

/// Runs every check, in time linear in what is seen. Findings are sorted by namespace and service account, those of the whole
/// cluster and of Azure first; within one, the worst first.
pub fn check(seen: &Seen) -> Vec<Finding> {
    let index = Index::new(seen);
    let runs = checks().flat_map(|check| check.run.iter().map(move |run| (check, run)));
    let mut findings: Vec<_> = runs.flat_map(|(check, run)| findings_of(check, run, &index)).collect();
    sort(&mut findings);
    findings
}

fn findings_of(check: &'static Check, run: &Run, index: &Index<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    match run {
        Run::Account(run) => {
            for case in index.accounts() {
                let (object, name) = (case.account.object(), Some(&case.account.name));
                findings.extend(run(&case).into_iter().map(|found| finish(check, found, &object, name)));
            }
        }
        Run::Pod(run) => findings = of_pods(check, *run, index),
        Run::Identity(run) => {
            for case in index.identities() {
                let object = Object::global("ManagedIdentity", case.identity.display_name());
                findings.extend(run(&case).into_iter().map(|found| finish(check, found, &object, None)));
            }
        }
        Run::Cluster(run) => {
            let object = Object::global("Cluster", "cluster");
            findings.extend(run(index).into_iter().map(|found| finish(check, found, &object, None)));
        }
    }
    findings
}

fn finish(check: &'static Check, found: Found, object: &Object, account: Option<&AccountName>) -> Finding {
    let Found { severity, object: other, message, evidence, fix } = found;
    Finding {
        check,
        severity: severity.unwrap_or(check.severity),
        object: other.unwrap_or_else(|| object.clone()),
        service_account: account.cloned(),
        message,
        evidence,
        fix: if fix.is_empty() { check.cure.to_owned() } else { fix },
    }
}

/// The findings of all pods, one for those that say the same of pods with the same maker and service account.
fn of_pods(check: &'static Check, run: fn(&PodCase<'_>) -> Vec<Found>, index: &Index<'_>) -> Vec<Finding> {
    let mut places: HashMap<(&Object, &str, Found), usize> = HashMap::new();
    let mut groups: Vec<(&seen::Pod, Found, Vec<&str>)> = Vec::new();
    for case in index.pods() {
        for found in run(&case) {
            let pod = case.pod;
            let key = (&pod.maker, pod.service_account.as_str(), found.clone());
            let place = *places.entry(key).or_insert_with(|| {
                groups.push((pod, found, Vec::new()));
                groups.len() - 1
            });
            if let Some((_, _, names)) = groups.get_mut(place).filter(|_| pod.is_admitted && pod.maker.kind != "Pod") {
                names.push(&pod.name);
            }
        }
    }
    let one = |(pod, found, names): (&seen::Pod, Found, Vec<&str>)| {
        let account = AccountName { namespace: pod.namespace.clone(), name: pod.service_account.clone() };
        let found = if names.is_empty() { found } else { found.fact("pods", some_of(&names)) };
        finish(check, found, &pod.maker, Some(&account))
    };
    groups.into_iter().map(one).collect()
}

/// The first names of a list, and how many more there are.
fn some_of(names: &[&str]) -> String {
    const SHOWN: usize = 3;
    let shown = names.get(..SHOWN).unwrap_or(names).join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn sort(findings: &mut [Finding]) {
    let order: HashMap<&str, usize> = checks().map(|check| check.id).zip(0..).collect();
    findings.sort_by(|one, other| key(one, &order).cmp(&key(other, &order)));
}

type SortKey<'f> = (Option<&'f str>, Option<&'f str>, Severity, Option<&'f usize>, &'f Object, &'f str);

fn key<'f>(finding: &'f Finding, order: &'f HashMap<&str, usize>) -> SortKey<'f> {
    let account = finding.service_account.as_ref();
    let namespace = account.map(|account| account.namespace.as_str()).or(finding.object.namespace.as_deref());
    let name = account.map(|account| account.name.as_str());
    (namespace, name, finding.severity, order.get(finding.check.id), &finding.object, &finding.message)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_check_says_all_it_has_to_say_under_an_id_of_its_own() {
        let mut ids = BTreeSet::new();
        for Check { id, severity: _, title, reads, meaning, cure, leads_to, source, run: _ } in checks() {
            assert!(ids.insert(id), "{id} stands for two checks");
            for text in [title, reads, meaning, cure, source] {
                assert!(!text.trim().is_empty() && text.trim() == *text, "{id}: {text:?}");
                assert!(!text.ends_with('.') && !text.contains(['\n', '\t']), "{id}: {text:?} is one clause");
            }
            assert!(source.contains(['/', '#']), "{id}: {source:?} is neither owner/repo nor a page");
            for code in *leads_to {
                assert!(entra::codes().any(|known| known.code == *code), "{id}: nothing is known of {code}");
            }
        }
        for id in ["S1", "S12", "P1", "P6", "W1", "W3", "I1", "F0", "F11", "B1", "B3"] {
            assert!(ids.contains(&id), "{id}");
        }
    }

    const CLUSTER: &str = "https://westeurope.oic.prod-aks.azure.com/t/c/";

    /// A cluster of this size in which everything is somewhat wrong; each identity has ten service accounts, and credentials for
    /// eight of them.
    fn large(accounts: usize, pods: usize) -> Seen {
        let client_id = |number: usize| format!("00000000-0000-4000-8000-{:012}", number / 10);
        let name =
            |number: usize| AccountName { namespace: format!("ns-{}", number % 100), name: format!("sa-{number}") };
        let account = |number: usize| seen::ServiceAccount {
            name: name(number),
            annotations: [(keys::CLIENT_ID.to_owned(), client_id(number))].into(),
            ..seen::ServiceAccount::default()
        };
        let pod = |number: usize| {
            let AccountName { namespace, name } = name(number % accounts);
            seen::Pod {
                maker: Object::namespaced("Deployment", &namespace, &name),
                name: format!("{name}-{number}"),
                namespace,
                service_account: name,
                is_admitted: true,
                containers: vec![seen::Container { name: "web".to_owned(), ..seen::Container::default() }],
                labels: if number.is_multiple_of(3) {
                    seen::Keys::new()
                } else {
                    [(keys::USE.to_owned(), "true".to_owned())].into()
                },
                ..seen::Pod::default()
            }
        };
        let credential = |number: usize| azure::Credential {
            name: format!("c-{number}"),
            issuer: CLUSTER.to_owned(),
            subject: Some(format!("system:serviceaccount:ns-{}:sb-{number}", number % 100)),
            audiences: vec![spillway_core::azure::Cloud::Public.audience().to_owned()],
            expression: None,
            since: None,
            source: String::new(),
        };
        let identity = |number: usize| azure::Identity {
            client_id: client_id(number),
            principal_id: None,
            tenant_id: None,
            id: None,
            credentials: Ok((number..number + 8).map(credential).collect()),
            extent: azure::Extent::Whole,
            source: String::new(),
        };
        Seen {
            cluster: seen::Cluster {
                service_accounts: (0..accounts).map(account).collect(),
                is_whole: true,
                pods: (0..pods).map(pod).collect(),
                ..seen::Cluster::default()
            },
            issuers: vec![seen::Issuer { url: CLUSTER.to_owned(), source: String::new(), algorithms: None }],
            azure: Some(azure::Azure {
                identities: (0..accounts).step_by(10).map(identity).collect(),
                ..azure::Azure::default()
            }),
            ..Seen::default()
        }
    }

    /// Without optimisation on a busy machine it takes some tenths of a second; anything quadratic takes minutes.
    #[test]
    fn a_large_cluster_is_checked_in_time_linear_in_its_size() {
        let seen = large(5_000, 20_000);
        let start = std::time::Instant::now();
        let findings = check(&seen);
        let took = start.elapsed();
        let count = |id: &str| findings.iter().filter(|finding| finding.check.id == id).count();
        assert_eq!((count("F2"), count("F4"), count("F11")), (1_000, 4_000, 500));
        assert!(count("S1") > 1_000 && count("P1") > 1_000, "{} {}", count("S1"), count("P1"));
        assert!(took.as_secs() < 60, "{took:?}");
        println!("{} findings in {took:?}", findings.len());
    }

    #[test]
    fn where_only_custom_resources_are_seen_a_missing_credential_is_no_error() {
        let severities = |extent: azure::Extent| {
            let mut seen = large(10, 0);
            for identity in seen.azure.iter_mut().flat_map(|azure| &mut azure.identities) {
                identity.extent = extent;
                let credentials = identity.credentials.as_mut().unwrap();
                credentials.retain(|one| one.name == "c-0");
                for one in credentials {
                    one.issuer = "https://westeurope.oic.prod-aks.azure.com/t/other/".to_owned();
                    one.subject = Some("system:serviceaccount:ns-0:sa-0".to_owned());
                }
            }
            let of = |id: &str, findings: &[Finding]| {
                let severities = findings.iter().filter(|finding| finding.check.id == id).map(|one| one.severity);
                severities.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
            };
            let findings = check(&seen);
            (of("F2", &findings), of("F3", &findings))
        };
        let (error, unknown, warning) = (vec![Severity::Error], vec![Severity::Unknown], vec![Severity::Warning]);
        assert_eq!(severities(azure::Extent::Whole), (error.clone(), error.clone()));
        assert_eq!(severities(azure::Extent::Listed), (error.clone(), error));
        assert_eq!(severities(azure::Extent::Part), (unknown, warning));
    }

    #[test]
    fn equal_findings_of_pods_with_one_maker_are_one_and_its_order_does_not_depend_on_that_of_the_pods() {
        let mut seen = large(10, 200);
        let findings = check(&seen);
        let of_pods = findings.iter().filter(|finding| finding.check.id == "P1").collect::<Vec<_>>();
        assert!(of_pods.len() <= 10, "{}", of_pods.len());
        let Some(Evidence::Fact { name: "pods", value }) = of_pods[0].evidence.last() else { panic!("{of_pods:?}") };
        assert!(value.contains(" and ") && value.ends_with("more"), "{value}");
        seen.cluster.service_accounts.reverse();
        let ids = |findings: &[Finding]| findings.iter().map(|f| (f.check.id, f.object.clone())).collect::<Vec<_>>();
        assert_eq!(ids(&findings), ids(&check(&seen)));
    }
}
