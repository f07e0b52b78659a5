//! A source of managed identities, and the client IDs that it looks up.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::BoxFuture;
use spillway_identity::{AccountName, managed_identity::ManagedIdentities, observation::ServiceAccount};

/// The values of the annotation `azure.workload.identity/client-id` in lower case, with their service accounts. Values
/// need not be valid client IDs.
pub type ClientIds = BTreeMap<String, BTreeSet<AccountName>>;

/// Returns the client IDs that these service accounts name.
pub fn client_ids<'a>(accounts: impl Iterator<Item = &'a ServiceAccount>) -> ClientIds {
    let mut client_ids = ClientIds::new();
    for account in accounts {
        if let Some(client_id) = account.client_id() {
            client_ids.entry(client_id.to_ascii_lowercase()).or_default().insert(account.name.clone());
        }
    }
    client_ids
}

/// A source of managed identities and their credentials.
pub trait Source: Send + Sync {
    /// Returns the name of the source for output.
    fn name(&self) -> &'static str;

    /// Reads the identities with these client IDs. A source may return other identities without their credentials.
    fn read<'a>(&'a self, client_ids: &'a ClientIds) -> BoxFuture<'a, ManagedIdentities>;
}
