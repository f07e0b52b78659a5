//! The cached results of Azure Resource Manager, and the references that decide which results are refreshed.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    mem,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use spillway_core::azure::{ResourceId, is_guid};
use spillway_identity::{AccountName, managed_identity::FederatedCredential};
use tokio::time::Instant;

use super::{
    super::source::ClientIds,
    entry::{CacheEntry, CachePolicy},
    failure::Failure,
    model,
};

/// The cached results, and the references of service accounts.
pub(super) struct Cache {
    policy: CachePolicy,
    /// The identities of each subscription.
    pub(super) lists: HashMap<String, CacheEntry<Vec<ListedIdentity>>>,
    /// The identities that are configured by resource ID, by client ID. `None` if the identity does not exist.
    pub(super) configured: HashMap<String, CacheEntry<Option<ListedIdentity>>>,
    /// The credentials of identities, by resource ID.
    pub(super) credentials: HashMap<String, CacheEntry<Vec<FederatedCredential>>>,
    references: HashMap<String, Reference>,
    failures: FailureSummary,
}

/// The service accounts that name a client ID.
struct Reference {
    accounts: BTreeSet<AccountName>,
    /// The time since which all of them name it. An older result may be wrong for the newest one.
    since: Instant,
}

/// A managed identity in a list.
#[derive(Debug, Clone)]
pub(super) struct ListedIdentity {
    pub(super) id: ResourceId,
    pub(super) client_id: String,
    pub(super) principal_id: Option<String>,
    pub(super) tenant_id: Option<String>,
}

impl ListedIdentity {
    /// Reads an identity. Returns `None` if Azure is still creating it.
    pub(super) fn read(raw: model::Identity) -> Option<Self> {
        let properties = raw.properties?;
        Some(Self {
            id: ResourceId::parse(&raw.id)?,
            client_id: properties.client?,
            principal_id: properties.principal,
            tenant_id: properties.tenant,
        })
    }
}

impl Cache {
    /// Creates an empty cache with this refresh interval.
    pub(super) fn new(refresh_interval: Duration) -> Self {
        Self {
            policy: CachePolicy::new(refresh_interval),
            lists: HashMap::new(),
            configured: HashMap::new(),
            credentials: HashMap::new(),
            references: HashMap::new(),
            failures: FailureSummary::default(),
        }
    }

    /// Sets the client IDs that service accounts currently name.
    pub(super) fn set_references(&mut self, client_ids: &ClientIds) {
        let now = Instant::now();
        self.references.retain(|name, _| client_ids.contains_key(name));
        for (name, accounts) in client_ids {
            let new = || Reference { accounts: accounts.clone(), since: now };
            let reference = self.references.entry(name.clone()).or_insert_with(new);
            if reference.accounts != *accounts {
                if !reference.accounts.is_superset(accounts) {
                    reference.since = now;
                }
                reference.accounts.clone_from(accounts);
            }
        }
    }

    /// Returns the time since which service accounts name a client ID. Returns `None` if no service account names it.
    pub(super) fn named_since(&self, name: &str) -> Option<Instant> {
        self.references.get(name).map(|reference| reference.since)
    }

    /// Returns the time since which service accounts name an identity. They may name its client ID, principal ID, name or
    /// resource ID.
    pub(super) fn identity_named_since(&self, identity: &ListedIdentity) -> Option<Instant> {
        let names = [&identity.client_id, &identity.id.name].into_iter().chain(&identity.principal_id);
        let names = names.map(|name| name.to_ascii_lowercase()).chain([identity.id.key()]);
        names.filter_map(|name| self.named_since(&name)).max()
    }

    /// Returns the client IDs that service accounts name but no identity has, with the time since which they are named.
    pub(super) fn missing<'k>(&'k self, identities: &[ListedIdentity]) -> impl Iterator<Item = (&'k String, Instant)> {
        let listed: HashSet<_> = identities.iter().map(|one| one.client_id.to_ascii_lowercase()).collect();
        let is_missing = move |(name, _): &(&String, &Reference)| is_guid(name) && !listed.contains(*name);
        self.references.iter().filter(is_missing).map(|(name, reference)| (name, reference.since))
    }

    /// Returns all known identities without duplicates.
    pub(super) fn identities(&self) -> Vec<ListedIdentity> {
        let listed = self.lists.values().filter_map(|entry| entry.result.as_ref().ok()).flatten();
        let configured = self.configured.values().filter_map(|entry| entry.result.as_ref().ok()).flatten();
        let mut ids = HashSet::new();
        listed.chain(configured).filter(|one| ids.insert(one.id.key())).cloned().collect()
    }

    /// Removes expired configured identities that service accounts no longer name.
    pub(super) fn remove_unused_identities(&mut self, now: Instant) {
        let references = &self.references;
        self.configured.retain(|client_id, entry| references.contains_key(client_id) || entry.refresh_at > now);
    }

    /// Returns whether a read of a configured identity is due.
    pub(super) fn needs_identity(&self, client_id: &str, now: Instant) -> bool {
        let since = self.named_since(client_id);
        since.is_some() && self.configured.get(client_id).is_none_or(|entry| entry.needs_refresh(now, since))
    }

    /// Stores the result for a configured identity.
    pub(super) fn store_identity(&mut self, client_id: &str, result: Result<Option<ListedIdentity>, Failure>) {
        store(&mut self.configured, client_id, result, &self.policy, &mut self.failures);
    }

    /// Stores the identities of a subscription.
    pub(super) fn store_list(&mut self, subscription: &str, result: Result<Vec<ListedIdentity>, Failure>) {
        store(&mut self.lists, subscription, result, &self.policy, &mut self.failures);
    }

    /// Stores the credentials of an identity. Azure may not return the creation time of a credential. A credential that
    /// is not in the previous result counts as new.
    pub(super) fn store_credentials(&mut self, key: &str, result: Result<Vec<FederatedCredential>, Failure>) {
        let before = self.credentials.get(key).and_then(|entry| entry.result.as_ref().ok());
        let result = result.map(|new| match before {
            Some(before) => with_change_times(new, before),
            None => new,
        });
        store(&mut self.credentials, key, result, &self.policy, &mut self.failures);
    }

    /// Logs the failures of a pass on one line, and not one line for each of many identities.
    pub(super) fn log_failures(&mut self) {
        let FailureSummary { first, others } = mem::take(&mut self.failures);
        if let Some((scope, failure)) = first {
            tracing::warn!(scope, %failure, others, "cannot read everything from Azure Resource Manager");
        }
    }
}

/// The failures of a pass.
#[derive(Default)]
struct FailureSummary {
    first: Option<(String, Failure)>,
    others: usize,
}

impl FailureSummary {
    fn add(&mut self, scope: &str, failure: &Failure) {
        match self.first {
            Some(_) => self.others += 1,
            None => self.first = Some((scope.to_owned(), failure.clone())),
        }
    }
}

/// Stores a result, unless the deadline prevented the read.
fn store<T>(
    entries: &mut HashMap<String, CacheEntry<T>>,
    key: &str,
    result: Result<T, Failure>,
    policy: &CachePolicy,
    failures: &mut FailureSummary,
) {
    if let Err(failure) = &result {
        failures.add(key, failure);
        if *failure == Failure::DeadlineExceeded {
            return;
        }
    }
    let newer = CacheEntry::new(result, key, policy);
    match entries.get_mut(key) {
        Some(entry) => entry.update(newer),
        None => drop(entries.insert(key.to_owned(), newer)),
    }
}

/// Returns the credentials with the time of their last change.
fn with_change_times(new: Vec<FederatedCredential>, before: &[FederatedCredential]) -> Vec<FederatedCredential> {
    let now = Timestamp::now();
    let date = |mut credential: FederatedCredential| {
        let old = before.iter().find(|old| old.name == credential.name);
        let is_same = |old: &&FederatedCredential| {
            FederatedCredential { since: None, ..(*old).clone() }
                == FederatedCredential { since: None, ..credential.clone() }
        };
        let same = old.filter(is_same).map(|old| old.since);
        credential.since = credential.since.or(same.unwrap_or(Some(now)));
        credential
    };
    new.into_iter().map(date).collect()
}
