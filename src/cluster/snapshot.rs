//! The immutable picture that decisions are made on.
//!
//! Only what a decision needs is kept: an own map of names costs a sixth of a reflector store of service accounts.

use std::{collections::HashMap, sync::Arc};

use kube::api::ObjectMeta;

use super::CLIENT_ID;
use crate::config::{BURST_LABEL, Overrides};

/// A namespace that has opted in.
#[derive(Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The profile that its label names; it need not exist.
    pub profile: String,
    /// What its annotations override.
    pub overrides: Overrides,
}

pub(super) type Namespaces = HashMap<String, Arc<Namespace>>;
/// Namespace → name → whether it carries a client ID. The inner maps are shared, so that a change copies one of them.
pub(super) type ServiceAccounts = HashMap<String, Arc<HashMap<Box<str>, bool>>>;

/// What is known of the cluster. A cache that has not been filled yet is absent, not empty.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(super) namespaces: Option<Arc<Namespaces>>,
    pub(super) service_accounts: Option<Arc<ServiceAccounts>>,
}

impl Snapshot {
    /// A namespace that has opted in.
    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.namespaces.as_ref()?.get(name).cloned()
    }

    /// Whether a service account carries a client ID; nothing if it is not known.
    pub fn has_client_id(&self, namespace: &str, name: &str) -> Option<bool> {
        self.service_accounts.as_ref()?.get(namespace)?.get(name).copied()
    }

    pub(super) fn unsynced(&self) -> Vec<&'static str> {
        [("namespaces", self.namespaces.is_none()), ("service accounts", self.service_accounts.is_none())]
            .into_iter()
            .filter_map(|(name, missing)| missing.then_some(name))
            .collect()
    }
}

pub(super) fn put_namespace(namespaces: &mut Namespaces, meta: ObjectMeta) {
    let Some(name) = meta.name else { return };
    let Some(profile) = meta.labels.and_then(|mut labels| labels.remove(BURST_LABEL)) else { return };
    let annotations = meta.annotations.unwrap_or_default();
    let overrides = Overrides::read(annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    namespaces.insert(name, Arc::new(Namespace { profile, overrides }));
}

pub(super) fn remove_namespace(namespaces: &mut Namespaces, meta: &ObjectMeta) {
    if let Some(name) = &meta.name {
        namespaces.remove(name);
    }
}

pub(super) fn put_service_account(accounts: &mut ServiceAccounts, meta: ObjectMeta) {
    let has_client_id = has_client_id(&meta);
    let (Some(namespace), Some(name)) = (meta.namespace, meta.name) else { return };
    Arc::make_mut(accounts.entry(namespace).or_default()).insert(name.into(), has_client_id);
}

pub(super) fn remove_service_account(accounts: &mut ServiceAccounts, meta: &ObjectMeta) {
    let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else { return };
    let Some(names) = accounts.get_mut(namespace) else { return };
    Arc::make_mut(names).remove(name.as_str());
    if names.is_empty() {
        accounts.remove(namespace);
    }
}

pub(super) fn has_client_id(meta: &ObjectMeta) -> bool {
    meta.annotations.as_ref().and_then(|a| a.get(CLIENT_ID)).is_some_and(|id| !id.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(name: &str, key: &str, value: &str) -> ObjectMeta {
        let pairs = || Some([(key.to_owned(), value.to_owned())].into());
        ObjectMeta {
            name: Some(name.into()),
            namespace: Some("shop".into()),
            labels: pairs(),
            annotations: pairs(),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn an_empty_cache_is_not_an_unfilled_one() {
        let mut snapshot = Snapshot::default();
        assert_eq!(snapshot.unsynced(), ["namespaces", "service accounts"]);
        snapshot.namespaces = Some(Arc::default());
        assert_eq!(snapshot.unsynced(), ["service accounts"]);
    }

    #[test]
    fn a_service_account_without_a_client_id_is_known_all_the_same() {
        let mut accounts = ServiceAccounts::new();
        put_service_account(&mut accounts, meta("web", CLIENT_ID, "0000"));
        put_service_account(&mut accounts, meta("blank", CLIENT_ID, " "));
        put_service_account(&mut accounts, meta("batch", "other", "x"));
        let snapshot = Snapshot { service_accounts: Some(Arc::new(accounts.clone())), ..Snapshot::default() };
        assert_eq!(snapshot.has_client_id("shop", "web"), Some(true));
        assert_eq!(snapshot.has_client_id("shop", "blank"), Some(false));
        assert_eq!(snapshot.has_client_id("shop", "batch"), Some(false));
        assert_eq!(snapshot.has_client_id("shop", "none"), None);
        for name in ["web", "blank", "batch"] {
            remove_service_account(&mut accounts, &meta(name, "", ""));
        }
        assert!(accounts.is_empty(), "a namespace that is gone leaves nothing behind");
    }

    #[test]
    fn only_namespaces_with_the_label_are_kept() {
        let mut namespaces = Namespaces::new();
        put_namespace(&mut namespaces, meta("shop", BURST_LABEL, "enabled"));
        put_namespace(&mut namespaces, meta("plain", "team", "x"));
        assert_eq!(namespaces.keys().collect::<Vec<_>>(), ["shop"]);
    }
}
