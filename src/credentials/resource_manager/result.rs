//! Converts the cache after a pass to the input of the checks.

use std::collections::{BTreeMap, BTreeSet};

use spillway_core::azure::ResourceId;
use spillway_identity::managed_identity::{
    Completeness, FederatedCredential, ManagedIdentities, ManagedIdentity, ReadFailure,
};

use super::{
    cache::{Cache, ListedIdentity},
    failure::Failure,
    model::SOURCE_NAME,
};

pub(super) const READ_IDENTITIES: &str = "Microsoft.ManagedIdentity/userAssignedIdentities/read";
pub(super) const READ_CREDENTIALS: &str =
    "Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials/read";

/// The cache after a pass, and the configured subscriptions and identities.
pub(super) struct PassResult<'p> {
    pub(super) cache: &'p Cache,
    pub(super) subscriptions: &'p BTreeSet<String>,
    /// Resource IDs by client ID in lower case.
    pub(super) configured: &'p BTreeMap<String, ResourceId>,
}

impl PassResult<'_> {
    /// Returns these identities with their credentials, and the failed reads.
    pub(super) fn managed_identities(&self, identities: Vec<ListedIdentity>) -> ManagedIdentities {
        let cache = self.cache;
        let mut result = ManagedIdentities { incomplete: self.unread_list(), ..ManagedIdentities::default() };
        if result.incomplete.is_none() {
            (result.absent, result.incomplete) = absent(cache, &identities);
        }
        self.add_unread_identities(&mut result);
        for one in identities {
            let is_needed = cache.identity_named_since(&one).is_some();
            let credentials = match cache.credentials.get(&one.id.key()).map(|entry| &entry.result) {
                _ if !is_needed => Err(not_needed(&one.id)),
                Some(Ok(credentials)) => Ok(credentials.clone()),
                Some(Err(failure)) => Err(failure.to_read_failure(READ_CREDENTIALS, one.id.to_string())),
                None => Err(Failure::DeadlineExceeded.to_read_failure(READ_CREDENTIALS, one.id.to_string())),
            };
            let ListedIdentity { id, client_id, principal_id, tenant_id } = one;
            result.absent.remove(&client_id.to_ascii_lowercase());
            let identity = managed_identity(client_id, id, credentials);
            result.identities.push(ManagedIdentity { principal_id, tenant_id, ..identity });
        }
        result
    }

    /// Adds identities that are configured by resource ID and could not be read, and client IDs that do not exist.
    fn add_unread_identities(&self, result: &mut ManagedIdentities) {
        for (client_id, id) in self.configured {
            let Some(since) = self.cache.named_since(client_id) else { continue };
            let failure = match self.cache.configured.get(client_id).map(|entry| (&entry.result, entry.read_at)) {
                Some((Ok(Some(one)), _)) if one.client_id.eq_ignore_ascii_case(client_id) => continue,
                Some((Ok(_), read_at)) if read_at >= since => {
                    result.absent.insert(client_id.clone());
                    continue;
                }
                Some((Ok(_), _)) => &Failure::Outdated,
                Some((Err(failure), _)) => failure,
                None => &Failure::DeadlineExceeded,
            };
            let failure = failure.to_read_failure(READ_IDENTITIES, id.to_string());
            result.identities.push(managed_identity(client_id.clone(), id.clone(), Err(failure)));
        }
    }

    /// Returns the reason why identities may exist that are not in the lists.
    fn unread_list(&self) -> Option<ReadFailure> {
        if self.subscriptions.is_empty() {
            return Some(ReadFailure {
                reason: "no subscription is configured, so Spillway lists no identities".to_owned(),
                action: String::new(),
                scope: "the identities that are configured by resource ID".to_owned(),
            });
        }
        self.subscriptions.iter().find_map(|subscription| {
            let failure = match self.cache.lists.get(subscription).map(|entry| &entry.result) {
                Some(Ok(_)) => return None,
                Some(Err(failure)) => failure,
                None => &Failure::DeadlineExceeded,
            };
            Some(failure.to_read_failure(READ_IDENTITIES, format!("/subscriptions/{subscription}")))
        })
    }
}

/// Returns the client IDs that do not exist. Service accounts named them before Spillway read the lists, and the lists do
/// not contain them. Also returns a failure if service accounts have named other client IDs since then.
fn absent(cache: &Cache, identities: &[ListedIdentity]) -> (BTreeSet<String>, Option<ReadFailure>) {
    let oldest = cache.lists.iter().min_by_key(|(_, entry)| entry.read_at);
    let Some((subscription, read_at)) = oldest.map(|(name, entry)| (name, entry.read_at)) else {
        return Default::default();
    };
    let (certain, newer): (Vec<_>, Vec<_>) = cache.missing(identities).partition(|(_, since)| *since <= read_at);
    if newer.is_empty() {
        return Default::default();
    }
    let failure = Failure::Outdated.to_read_failure(READ_IDENTITIES, format!("/subscriptions/{subscription}"));
    (certain.into_iter().map(|(name, _)| name.clone()).collect(), Some(failure))
}

fn not_needed(id: &ResourceId) -> ReadFailure {
    let reason = "no service account names it".to_owned();
    ReadFailure { reason, action: String::new(), scope: id.to_string() }
}

fn managed_identity(
    client_id: String,
    id: ResourceId,
    credentials: Result<Vec<FederatedCredential>, ReadFailure>,
) -> ManagedIdentity {
    ManagedIdentity {
        client_id,
        principal_id: None,
        tenant_id: None,
        id: Some(id),
        credentials,
        completeness: Completeness::Complete,
        source: SOURCE_NAME.to_owned(),
    }
}
