//! Where it is read what managed identities and federated credentials there are. Unlike the checks, this does I/O.
//!
//! A source never fails: what it could not read it says, with the permission that is missing and where, and the checks report it as
//! unknown (`F0`).

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
pub use merge::merged;

use self::resource_manager::{ResourceManager, Settings};
use crate::{
    config,
    identity::{AccountName, azure::Azure, seen::ServiceAccount},
    telemetry::Causes,
};

/// What stands in `azure.workload.identity/client-id` annotations, in small letters, and in whose. It need not be a client id.
pub type Wanted = BTreeMap<String, BTreeSet<AccountName>>;

/// What these service accounts name.
pub fn wanted<'a>(accounts: impl Iterator<Item = &'a ServiceAccount>) -> Wanted {
    let mut wanted = Wanted::new();
    for account in accounts {
        if let Some(client_id) = account.client_id() {
            wanted.entry(client_id.to_ascii_lowercase()).or_default().insert(account.name.clone());
        }
    }
    wanted
}

/// A source of managed identities and their credentials.
pub trait Source: Send + Sync {
    /// For people.
    fn name(&self) -> &'static str;

    /// What it knows of the identities that are wanted; of others it may say less.
    fn read<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Azure>;
}

/// All sources. Those named first are the better witnesses of what there is, and of why something could not be read.
#[derive(Default)]
pub struct Sources(Vec<Box<dyn Source>>);

impl Sources {
    /// These.
    pub fn new(sources: Vec<Box<dyn Source>>) -> Self {
        Self(sources)
    }

    /// Asks all at once; nothing if there are none.
    pub async fn read(&self, wanted: &Wanted) -> Option<Azure> {
        let answers = join_all(self.0.iter().map(|source| source.read(wanted))).await;
        (!answers.is_empty()).then(|| merged(answers))
    }
}

/// The sources outside of the cluster that a configuration names.
pub fn configured(identity: &config::Identity) -> Sources {
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    if let Some(settings) = Settings::of(identity) {
        match ResourceManager::new(settings) {
            Ok(source) => sources.push(Box::new(source)),
            Err(error) => tracing::error!(error = %Causes(&error), "Azure Resource Manager is not asked"),
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
