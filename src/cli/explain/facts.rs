//! What a cluster would know: namespaces and service accounts, from flags and documents.

use std::collections::BTreeMap;

use crate::{
    burst::ServiceAccount,
    cli::manifest::Document,
    cluster::CLIENT_ID,
    config::{BURST_LABEL, DISABLED},
};

type Annotations = BTreeMap<String, String>;

/// Whether an object of this kind is a fact about the cluster and no workload.
pub(super) fn is_fact(kind: &str) -> bool {
    matches!(kind, "Namespace" | "ServiceAccount")
}

/// What is known.
pub(super) struct Facts {
    profile: String,
    annotations: Annotations,
    /// Name → the profile its label names, if any, and its annotations.
    namespaces: BTreeMap<String, (Option<String>, Annotations)>,
    /// Namespace (nothing: any) and name → whether it carries a client ID.
    service_accounts: BTreeMap<(Option<String>, String), bool>,
}

impl Facts {
    /// What the flags say of namespaces that no document describes.
    pub(super) fn new(profile: &str, annotations: &[(String, String)]) -> Self {
        Self {
            profile: profile.to_owned(),
            annotations: annotations.iter().cloned().collect(),
            namespaces: BTreeMap::new(),
            service_accounts: BTreeMap::new(),
        }
    }

    /// Takes in the Namespaces and ServiceAccounts among the documents; other kinds say nothing.
    pub(super) fn learn(&mut self, documents: &[Document]) {
        for document in documents {
            self.learn_one(document);
        }
    }

    fn learn_one(&mut self, document: &Document) {
        let Some(name) = document.name().map(str::to_owned) else { return };
        match document.kind() {
            "Namespace" => {
                let profile = document.labels().find(|(key, profile)| *key == BURST_LABEL && *profile != DISABLED);
                let annotations = document.annotations().map(|(key, value)| (key.to_owned(), value.to_owned()));
                let profile = profile.map(|(_, profile)| profile.to_owned());
                self.namespaces.insert(name, (profile, annotations.collect()));
            }
            "ServiceAccount" => {
                let namespace = document.namespace().map(str::to_owned);
                let has_client_id = document.annotations().any(|(key, id)| key == CLIENT_ID && !id.trim().is_empty());
                self.service_accounts.insert((namespace, name), has_client_id);
            }
            _ => {}
        }
    }

    /// The profile and the annotations of a namespace; no profile when it has not opted in.
    pub(super) fn namespace(&self, name: &str) -> (Option<String>, Annotations) {
        match self.namespaces.get(name) {
            None => (Some(self.profile.clone()).filter(|profile| profile != DISABLED), self.annotations.clone()),
            Some((profile, annotations)) => {
                let mut annotations = annotations.clone();
                annotations.extend(self.annotations.clone());
                (profile.clone(), annotations)
            }
        }
    }

    /// What is known of a service account.
    pub(super) fn service_account(&self, namespace: &str, name: &str) -> ServiceAccount {
        let of = |namespace: Option<&str>| self.service_accounts.get(&(namespace.map(str::to_owned), name.to_owned()));
        match of(Some(namespace)).or_else(|| of(None)) {
            Some(true) => ServiceAccount::WithClientId,
            Some(false) => ServiceAccount::WithoutClientId,
            None => ServiceAccount::Unknown,
        }
    }
}
