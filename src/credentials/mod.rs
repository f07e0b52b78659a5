//! The sources of managed identities and their federated credentials. Unlike the checks, this module does I/O.
//!
//! A source never fails as a whole. It returns each failed read with the missing permission and its scope. The checks
//! report a failed read as unknown (`F0`).

pub mod custom_resources;
mod file;
pub mod issuer;
mod merge;
pub mod resource_manager;
mod source;

use std::fmt;

pub use file::Files;
use futures_util::future::join_all;
pub use merge::merge;
pub use source::{ClientIds, Source, client_ids};
use spillway_core::config;
use spillway_identity::managed_identity::ManagedIdentities;

use self::resource_manager::{ResourceManager, Settings};
use crate::telemetry::Causes;

/// All sources, the most trustworthy first. The first source decides whether the list of identities is complete.
#[derive(Default)]
pub struct Sources(Vec<Box<dyn Source>>);

impl Sources {
    /// Creates a set of sources, the most trustworthy first.
    pub fn new(sources: Vec<Box<dyn Source>>) -> Self {
        Self(sources)
    }

    /// Reads all sources concurrently. Returns `None` without sources.
    pub async fn read(&self, client_ids: &ClientIds) -> Option<ManagedIdentities> {
        let results = join_all(self.0.iter().map(|source| source.read(client_ids))).await;
        (!results.is_empty()).then(|| merge(results))
    }
}

/// Returns the configured sources outside of the cluster.
pub fn configured(identity: &config::Identity) -> Sources {
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    if let Some(settings) = Settings::of(identity) {
        match ResourceManager::new(settings) {
            Ok(source) => sources.push(Box::new(source)),
            Err(error) => {
                tracing::error!(error = %Causes(&error), "cannot read credentials from Azure Resource Manager");
            }
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
