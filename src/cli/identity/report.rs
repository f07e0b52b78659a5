//! The content of a report: findings and service accounts in its scope.

use std::collections::{BTreeSet, HashMap, HashSet};

use anyhow::bail;

use super::documents::Documents;
use crate::{
    config::did_you_mean,
    identity::{self, AccountName, Finding, Object, Observation, Severity, observation::ServiceAccount},
};

pub(super) struct Report<'r> {
    pub(super) findings: Vec<Finding>,
    pub(super) accounts: Vec<Account<'r>>,
    files: HashMap<Object, String>,
}

/// A service account with an identity or a finding.
pub(super) struct Account<'r> {
    pub(super) name: &'r AccountName,
    pub(super) client_id: Option<&'r str>,
    /// The name of its identity, if known.
    pub(super) identity: Option<&'r str>,
    /// Number of workloads that use the service account.
    pub(super) workloads: usize,
    /// The ids of its findings, worst first.
    pub(super) ids: Vec<&'static str>,
    pub(super) worst: Option<Severity>,
}

/// The scope of a report.
pub(super) struct Scope<'s> {
    pub(super) namespace: Option<&'s str>,
    pub(super) account: Option<&'s str>,
    /// The source of service accounts, for messages.
    pub(super) place: &'static str,
    /// The files of credentials.
    pub(super) files: HashSet<String>,
}

impl<'r> Report<'r> {
    /// # Errors
    ///
    /// When the chosen service account does not exist.
    pub(super) fn new(
        seen: &'r Observation,
        documents: &Documents,
        Scope { namespace, account, place, files: known }: &Scope<'_>,
    ) -> anyhow::Result<Self> {
        let (namespace, account) = (*namespace, *account);
        let is_chosen = |name: &AccountName| {
            namespace.is_none_or(|namespace| namespace == name.namespace) && account.is_none_or(|own| own == name.name)
        };
        let chosen: Vec<_> = seen.cluster.service_accounts.iter().filter(|one| is_chosen(&one.name)).collect();
        if let (Some(wanted), true) = (account, chosen.is_empty()) {
            let names: Vec<_> = seen.cluster.service_accounts.iter().map(|one| one.name.name.as_str()).collect();
            let hint = did_you_mean(wanted, &names);
            bail!("--service-account: no service account \"{wanted}\" {place}{hint}");
        }
        let is_narrow = namespace.is_some() || account.is_some();
        let used = identities_of(seen, &chosen);
        let is_in_scope = |finding: &Finding| match (&finding.service_account, &finding.object) {
            (Some(name), _) => is_chosen(name),
            (None, object) if object.kind == "ManagedIdentity" => !is_narrow || used.contains(object.name.as_str()),
            (None, Object { namespace: Some(own), .. }) => namespace.is_none_or(|n| n == own) && account.is_none(),
            (None, _) => true,
        };
        let findings: Vec<_> = identity::check(seen).into_iter().filter(is_in_scope).collect();
        let accounts = accounts(seen, &chosen, &findings);
        let files = findings.iter().filter_map(|finding| {
            let object = &finding.object;
            let of_azure = || source_of(seen, object).filter(|source| known.contains(source));
            let file = documents.file(object).map(str::to_owned).or_else(of_azure)?;
            Some((object.clone(), file))
        });
        let files = files.collect();
        Ok(Self { findings, accounts, files })
    }

    /// Returns the file of a finding's object.
    pub(super) fn file(&self, finding: &Finding) -> Option<&str> {
        self.files.get(&finding.object).map(String::as_str)
    }

    /// Returns the number of findings by severity, worst first, without zeros.
    pub(super) fn counts(&self) -> Vec<(Severity, usize)> {
        let all = [Severity::Error, Severity::Warning, Severity::Info, Severity::Unknown];
        let count = |severity| self.findings.iter().filter(|finding| finding.severity == severity).count();
        all.into_iter().map(|severity| (severity, count(severity))).filter(|(_, count)| *count > 0).collect()
    }
}

fn source_of(seen: &Observation, object: &Object) -> Option<String> {
    let mut identities = seen.managed_identities.iter().flat_map(|azure| &azure.identities);
    let own = identities.find(|one| object.kind == "ManagedIdentity" && one.display_name() == object.name)?;
    Some(own.source.clone())
}

/// Returns the names of the identities of these service accounts.
fn identities_of<'r>(seen: &'r Observation, accounts: &[&ServiceAccount]) -> HashSet<&'r str> {
    let client_ids: HashSet<_> =
        accounts.iter().filter_map(|one| one.client_id()).map(str::to_ascii_lowercase).collect();
    let identities = seen.managed_identities.iter().flat_map(|azure| &azure.identities);
    let used = identities.filter(|identity| client_ids.contains(&identity.client_id.to_ascii_lowercase()));
    used.map(identity::managed_identity::ManagedIdentity::display_name).collect()
}

fn accounts<'r>(seen: &'r Observation, chosen: &[&'r ServiceAccount], findings: &[Finding]) -> Vec<Account<'r>> {
    let mut found: HashMap<&AccountName, Vec<&Finding>> = HashMap::new();
    for finding in findings {
        if let Some(name) = &finding.service_account {
            found.entry(name).or_default().push(finding);
        }
    }
    let mut owners: HashMap<(&str, &str), BTreeSet<&Object>> = HashMap::new();
    for pod in &seen.cluster.pods {
        owners.entry((&pod.namespace, &pod.service_account)).or_default().insert(&pod.owner);
    }
    let identities = seen.managed_identities.iter().flat_map(|azure| &azure.identities);
    let identities: HashMap<_, _> =
        identities.map(|one| (one.client_id.to_ascii_lowercase(), one.display_name())).collect();
    let mut accounts: Vec<_> = chosen
        .iter()
        .map(|account| {
            let own = found.get(&account.name).map(Vec::as_slice).unwrap_or_default();
            let mut ids: Vec<_> = own.iter().map(|finding| finding.check.id).collect();
            let mut once = HashSet::new();
            ids.retain(|id| once.insert(*id));
            let client_id = account.client_id();
            Account {
                name: &account.name,
                client_id,
                identity: client_id.and_then(|id| identities.get(&id.to_ascii_lowercase()).copied()),
                workloads: owners.get(&(&*account.name.namespace, &*account.name.name)).map_or(0, BTreeSet::len),
                ids,
                worst: own.iter().map(|finding| finding.severity).min(),
            }
        })
        .filter(|account| account.client_id.is_some() || account.worst.is_some())
        .collect();
    accounts.sort_by_key(|account| account.name);
    accounts
}
