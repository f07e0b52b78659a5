//! Lists and runs all checks.

use std::collections::HashMap;

use super::{
    bindings,
    check::{Check, CheckFn},
    credentials,
    draft::{DraftFinding, Severity, abbreviate},
    finding::Finding,
    index::{Index, PodContext},
    issuer,
    object::{AccountName, Object},
    observation::{Observation, Pod},
    pods, service_account, webhooks,
};

/// The families of checks, in the order of the documentation.
const FAMILIES: &[&[&Check]] =
    &[service_account::CHECKS, pods::CHECKS, webhooks::CHECKS, issuer::CHECKS, credentials::CHECKS, bindings::CHECKS];

/// Returns all checks, in the order of the documentation.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    FAMILIES.iter().flat_map(|family| family.iter().copied())
}

/// Returns the check with this ID, whatever its case.
pub fn check_of(id: &str) -> Option<&'static Check> {
    checks().find(|check| check.id.eq_ignore_ascii_case(id))
}

/// Runs all checks, in linear time. Sorts findings by namespace, service account and severity. Findings of the whole cluster and of Azure
/// are first.
pub fn check(observation: &Observation) -> Vec<Finding> {
    let index = Index::new(observation);
    let runs = checks().flat_map(|check| check.run.iter().map(move |run| (check, run)));
    let mut findings: Vec<_> = runs.flat_map(|(check, run)| findings_of(check, run, &index)).collect();
    sort(&mut findings);
    findings
}

fn findings_of(check: &'static Check, run: &CheckFn, index: &Index<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    match run {
        CheckFn::Account(run) => {
            for context in index.accounts() {
                let (object, name) = (context.account.object(), Some(&context.account.name));
                findings.extend(run(&context).into_iter().map(|found| finish(check, found, &object, name)));
            }
        }
        CheckFn::Pod(run) => findings = findings_of_pods(check, *run, index),
        CheckFn::Identity(run) => {
            for context in index.identities() {
                let object = Object::global("ManagedIdentity", context.identity.display_name());
                findings.extend(run(&context).into_iter().map(|found| finish(check, found, &object, None)));
            }
        }
        CheckFn::Cluster(run) => {
            let object = Object::global("Cluster", "cluster");
            findings.extend(run(index).into_iter().map(|found| finish(check, found, &object, None)));
        }
    }
    findings
}

fn finish(check: &'static Check, found: DraftFinding, object: &Object, account: Option<&AccountName>) -> Finding {
    let DraftFinding { severity, object: other, message, evidence, fix } = found;
    Finding {
        check,
        severity: severity.unwrap_or(check.severity),
        object: other.unwrap_or_else(|| object.clone()),
        service_account: account.cloned(),
        message,
        evidence,
        fix: if fix.is_empty() { check.fix.to_owned() } else { fix },
    }
}

/// Returns the findings of all pods. Equal findings of pods with the same owner and service account become one.
fn findings_of_pods(
    check: &'static Check,
    run: fn(&PodContext<'_>) -> Vec<DraftFinding>,
    index: &Index<'_>,
) -> Vec<Finding> {
    let mut places: HashMap<(&Object, &str, DraftFinding), usize> = HashMap::new();
    let mut groups: Vec<(&Pod, DraftFinding, Vec<&str>)> = Vec::new();
    for context in index.pods() {
        for found in run(&context) {
            let pod = context.pod;
            let key = (&pod.owner, pod.service_account.as_str(), found.clone());
            let place = *places.entry(key).or_insert_with(|| {
                groups.push((pod, found, Vec::new()));
                groups.len() - 1
            });
            if let Some((_, _, names)) = groups.get_mut(place).filter(|_| pod.is_admitted && pod.owner.kind != "Pod") {
                names.push(&pod.name);
            }
        }
    }
    let one = |(pod, found, names): (&Pod, DraftFinding, Vec<&str>)| {
        let account = AccountName { namespace: pod.namespace.clone(), name: pod.service_account.clone() };
        let found = if names.is_empty() { found } else { found.fact("pods", abbreviate(&names)) };
        finish(check, found, &pod.owner, Some(&account))
    };
    groups.into_iter().map(one).collect()
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
    use std::collections::{BTreeSet, HashSet};

    use super::*;
    use crate::{
        check::Input,
        draft::{Evidence, Severity},
        entra, keys, managed_identity, observation,
    };

    #[test]
    fn every_check_is_documented_under_a_unique_id() {
        let mut ids = BTreeSet::new();
        for check in checks() {
            let Check { id, severity: _, title, reads, meaning, fix, leads_to, source, .. } = check;
            assert!(ids.insert(id), "two checks have the id {id}");
            for text in [title, reads, meaning, fix, source] {
                assert!(!text.trim().is_empty() && text.trim() == *text, "{id}: {text:?}");
                assert!(!text.ends_with('.') && !text.contains(['\n', '\t']), "{id}: {text:?} is one clause");
            }
            assert!(source.contains(['/', '#']), "{id}: {source:?} is neither owner/repo nor a page");
            for code in *leads_to {
                assert!(entra::codes().any(|known| known.code == *code), "{id}: {code} is not a known code");
            }
        }
        for id in ["S1", "S12", "P1", "P6", "W1", "W3", "I1", "F0", "F11", "B1", "B3"] {
            assert!(ids.contains(&id), "{id}");
        }
    }

    #[test]
    fn every_check_has_inputs_and_every_input_is_used() {
        let is_unique = |inputs: &[Input]| inputs.iter().collect::<HashSet<_>>().len() == inputs.len();
        for Check { id, needs, optional, .. } in checks() {
            assert!(!needs.is_empty() && is_unique(&[*needs, *optional].concat()), "{id}: {needs:?} {optional:?}");
        }
        for input in Input::ALL {
            assert!(checks().any(|check| check.needs.contains(&input)), "no check needs {input:?}");
        }
    }

    /// A new check needs a row here.
    #[test]
    fn checks_have_the_listed_inputs() {
        use Input::{Cluster, Credentials, Discovery, Grants, Issuer, Nodes, Webhooks};
        type Row = (&'static [&'static str], &'static [Input], &'static [Input], bool);
        const ROWS: &[Row] = &[
            (&["S1", "S2", "S3", "S4", "S7", "S8", "S9", "S10", "S11", "S12"], &[Cluster], &[], true),
            (&["S5", "S6"], &[Cluster], &[Credentials], true),
            (&["P1", "P2", "P3", "P4", "P5"], &[Cluster], &[], true),
            (&["P6"], &[Cluster, Nodes], &[], true),
            (&["W1", "W2", "W3"], &[Cluster, Webhooks], &[], true),
            (&["I1"], &[Issuer, Discovery], &[], false),
            (
                &["F0", "F1", "F2", "F3", "F4", "F5", "F6", "F7", "F8", "F9", "F10", "F11"],
                &[Cluster, Credentials, Issuer],
                &[],
                false,
            ),
            (&["B1", "B2", "B3", "B4"], &[Cluster, Grants], &[], true),
        ];
        let mut listed = 0;
        for (ids, needs, optional, transient) in ROWS {
            for id in *ids {
                let check = check_of(id).unwrap();
                assert_eq!((check.needs, check.optional, check.transient), (*needs, *optional, *transient), "{id}");
                listed += 1;
            }
        }
        assert_eq!(listed, checks().count());
    }

    const CLUSTER: &str = "https://westeurope.oic.prod-aks.azure.com/t/c/";

    /// A cluster of this size with many findings. Each identity has ten service accounts and eight credentials.
    fn large(accounts: usize, pods: usize) -> Observation {
        let client_id = |number: usize| format!("00000000-0000-4000-8000-{:012}", number / 10);
        let name =
            |number: usize| AccountName { namespace: format!("ns-{}", number % 100), name: format!("sa-{number}") };
        let account = |number: usize| observation::ServiceAccount {
            name: name(number),
            annotations: [(keys::CLIENT_ID.to_owned(), client_id(number))].into(),
            ..observation::ServiceAccount::default()
        };
        let pod = |number: usize| {
            let AccountName { namespace, name } = name(number % accounts);
            observation::Pod {
                owner: Object::namespaced("Deployment", &namespace, &name),
                name: format!("{name}-{number}"),
                namespace,
                service_account: name,
                is_admitted: true,
                containers: vec![observation::Container {
                    name: "web".to_owned(),
                    ..observation::Container::default()
                }],
                labels: if number.is_multiple_of(3) {
                    observation::KeyValues::new()
                } else {
                    [(keys::USE.to_owned(), "true".to_owned())].into()
                },
                ..observation::Pod::default()
            }
        };
        let credential = |number: usize| managed_identity::FederatedCredential {
            name: format!("c-{number}"),
            issuer: CLUSTER.to_owned(),
            subject: Some(format!("system:serviceaccount:ns-{}:sb-{number}", number % 100)),
            audiences: vec![spillway_core::azure::Cloud::Public.audience().to_owned()],
            expression: None,
            since: None,
            source: String::new(),
        };
        let identity = |number: usize| managed_identity::ManagedIdentity {
            client_id: client_id(number),
            principal_id: None,
            tenant_id: None,
            id: None,
            credentials: Ok((number..number + 8).map(credential).collect()),
            completeness: managed_identity::Completeness::Complete,
            source: String::new(),
        };
        Observation {
            cluster: observation::Cluster {
                service_accounts: (0..accounts).map(account).collect(),
                is_complete: true,
                pods: (0..pods).map(pod).collect(),
                ..observation::Cluster::default()
            },
            issuers: vec![observation::Issuer { url: CLUSTER.to_owned(), source: String::new(), algorithms: None }],
            managed_identities: Some(managed_identity::ManagedIdentities {
                identities: (0..accounts).step_by(10).map(identity).collect(),
                ..managed_identity::ManagedIdentities::default()
            }),
            ..Observation::default()
        }
    }

    /// A debug build takes a second on a busy machine. A quadratic algorithm takes minutes.
    #[test]
    fn a_large_cluster_is_checked_in_linear_time() {
        let observation = large(5_000, 20_000);
        let start = std::time::Instant::now();
        let findings = check(&observation);
        let took = start.elapsed();
        let count = |id: &str| findings.iter().filter(|finding| finding.check.id == id).count();
        assert_eq!((count("F2"), count("F4"), count("F11")), (1_000, 4_000, 500));
        assert!(count("S1") > 1_000 && count("P1") > 1_000, "{} {}", count("S1"), count("P1"));
        assert!(took.as_secs() < 60, "{took:?}");
        println!("{} findings in {took:?}", findings.len());
    }

    #[test]
    fn a_credential_missing_from_a_partial_list_is_not_an_error() {
        let severities = |completeness: managed_identity::Completeness| {
            let mut observation = large(10, 0);
            for identity in observation.managed_identities.iter_mut().flat_map(|all| &mut all.identities) {
                identity.completeness = completeness;
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
            let findings = check(&observation);
            (of("F2", &findings), of("F3", &findings))
        };
        let (error, unknown, warning) = (vec![Severity::Error], vec![Severity::Unknown], vec![Severity::Warning]);
        assert_eq!(severities(managed_identity::Completeness::Complete), (error.clone(), error.clone()));
        assert_eq!(severities(managed_identity::Completeness::Snapshot), (error.clone(), error));
        assert_eq!(severities(managed_identity::Completeness::Partial), (unknown, warning));
    }

    #[test]
    fn findings_of_one_owner_are_merged_in_a_stable_order() {
        let mut observation = large(10, 200);
        let findings = check(&observation);
        let of_pods = findings.iter().filter(|finding| finding.check.id == "P1").collect::<Vec<_>>();
        assert!(of_pods.len() <= 10, "{}", of_pods.len());
        let Some(Evidence::Fact { name: "pods", value }) = of_pods[0].evidence.last() else { panic!("{of_pods:?}") };
        assert!(value.contains(" and ") && value.ends_with("more"), "{value}");
        observation.cluster.service_accounts.reverse();
        let ids = |findings: &[Finding]| findings.iter().map(|f| (f.check.id, f.object.clone())).collect::<Vec<_>>();
        assert_eq!(ids(&findings), ids(&check(&observation)));
    }
}
