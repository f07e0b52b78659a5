//! The sources of managed identities and their federated credentials. Unlike the checks, this module does I/O.
//!
//! A source never fails as a whole. It reports what it could not read, with the missing permission and its scope, and the checks report
//! that as unknown (`F0`).

pub mod custom_resources;
mod file;
pub mod issuer;
mod merge;
pub mod resource_manager;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

pub use file::Files;
use futures_util::future::{BoxFuture, join_all};
pub use merge::merge;
use spillway_core::config;
use spillway_identity::{AccountName, managed_identity::ManagedIdentities, observation::ServiceAccount};

use self::resource_manager::{ResourceManager, Settings};
use crate::telemetry::Causes;

/// The values of the annotation `azure.workload.identity/client-id` in lower case, with the service accounts that have them. Values need
/// not be valid client IDs.
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
    /// Name for output.
    fn name(&self) -> &'static str;

    /// Reads the identities with these client IDs. A source may return less about other identities.
    fn read<'a>(&'a self, client_ids: &'a ClientIds) -> BoxFuture<'a, ManagedIdentities>;
}

/// All sources, the most trustworthy first: it decides whether the list of identities is complete.
#[derive(Default)]
pub struct Sources(Vec<Box<dyn Source>>);

impl Sources {
    /// These sources.
    pub fn new(sources: Vec<Box<dyn Source>>) -> Self {
        Self(sources)
    }

    /// Reads all sources concurrently; `None` if there are none.
    pub async fn read(&self, client_ids: &ClientIds) -> Option<ManagedIdentities> {
        let results = join_all(self.0.iter().map(|source| source.read(client_ids))).await;
        (!results.is_empty()).then(|| merge(results))
    }
}

/// Returns the sources outside of the cluster that a configuration names.
pub fn configured(identity: &config::Identity) -> Sources {
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    if let Some(settings) = Settings::of(identity) {
        match ResourceManager::new(settings) {
            Ok(source) => sources.push(Box::new(source)),
            Err(error) => tracing::error!(error = %Causes(&error), "cannot use Azure Resource Manager as a source"),
        }
    }
    if !identity.credential_files.is_empty() {
        sources.push(Box::new(Files::new(identity.credential_files.clone())));
    }
    Sources::new(sources)
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|source| source.name())).finish()
    }
}
