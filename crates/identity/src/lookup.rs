//! Indexes of the observation. They are built once, so that no check searches.

use std::collections::HashMap;

use super::{
    managed_identity::ManagedIdentity,
    object::Object,
    observation::{Issuer, Namespace, Observation, Pod, ServiceAccount, Webhook},
};

/// Namespace and name of a service account, borrowed.
pub(super) type AccountKey<'o> = (&'o str, &'o str);

pub(super) struct Lookup<'o> {
    pub(super) observation: &'o Observation,
    accounts: HashMap<AccountKey<'o>, &'o ServiceAccount>,
    pods: HashMap<AccountKey<'o>, Vec<&'o Pod>>,
    templates: HashMap<&'o Object, &'o Pod>,
    /// By client ID in lower case.
    identities: HashMap<String, &'o ManagedIdentity>,
    /// By principal ID in lower case.
    principals: HashMap<String, &'o ManagedIdentity>,
    /// The service accounts that name an identity, by its client ID in lower case.
    users: HashMap<String, Vec<&'o ServiceAccount>>,
}

impl<'o> Lookup<'o> {
    pub(super) fn new(observation: &'o Observation) -> Self {
        let cluster = &observation.cluster;
        let mut lookup = Self {
            observation,
            accounts: cluster.service_accounts.iter().map(|account| (account_key(account), account)).collect(),
            pods: HashMap::with_capacity(cluster.service_accounts.len()),
            templates: HashMap::new(),
            identities: HashMap::new(),
            principals: HashMap::new(),
            users: HashMap::new(),
        };
        for pod in &cluster.pods {
            lookup.pods.entry((&pod.namespace, &pod.service_account)).or_default().push(pod);
            if !pod.is_admitted {
                lookup.templates.insert(&pod.owner, pod);
            }
        }
        for account in &cluster.service_accounts {
            if let Some(client_id) = account.client_id() {
                lookup.users.entry(client_id.to_ascii_lowercase()).or_default().push(account);
            }
        }
        for identity in observation.managed_identities.iter().flat_map(|all| &all.identities) {
            lookup.identities.insert(identity.client_id.to_ascii_lowercase(), identity);
            if let Some(principal) = &identity.principal_id {
                lookup.principals.insert(principal.to_ascii_lowercase(), identity);
            }
        }
        lookup
    }

    pub(super) fn account(&self, namespace: &str, name: &str) -> Option<&'o ServiceAccount> {
        self.accounts.get(&(namespace, name)).copied()
    }

    /// Returns the pods of a service account.
    pub(super) fn pods_of<'a>(&'a self, account: &'a ServiceAccount) -> &'a [&'o Pod] {
        self.pods.get(&account_key(account)).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the identity with this client ID.
    pub(super) fn identity(&self, client_id: &str) -> Option<&'o ManagedIdentity> {
        self.identities.get(&client_id.to_ascii_lowercase()).copied()
    }

    /// Returns the identity with this principal ID.
    pub(super) fn principal(&self, principal_id: &str) -> Option<&'o ManagedIdentity> {
        self.principals.get(&principal_id.to_ascii_lowercase()).copied()
    }

    /// Returns the service accounts that name an identity.
    pub(super) fn users_of(&self, identity: &ManagedIdentity) -> &[&'o ServiceAccount] {
        self.users.get(&identity.client_id.to_ascii_lowercase()).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn namespace(&self, name: &str) -> Option<&'o Namespace> {
        self.observation.cluster.namespaces.get(name)
    }

    /// Returns the current template of a workload, if it is known.
    pub(super) fn template(&self, owner: &Object) -> Option<&'o Pod> {
        self.templates.get(owner).copied()
    }

    /// Returns the issuer that tokens name.
    pub(super) fn issuer(&self) -> Option<&'o Issuer> {
        self.observation.issuers.first()
    }

    pub(super) fn audience(&self) -> &'static str {
        self.observation.cloud.audience()
    }

    /// Returns `true` if certainly no webhook injects identities.
    pub(super) fn lacks_injector(&self) -> bool {
        self.observation.cluster.is_complete && self.injectors().is_some_and(|mut injectors| injectors.next().is_none())
    }

    /// Returns the webhooks that inject identities, with the names of their configurations. `None` if configurations are not known.
    pub(super) fn injectors(&self) -> Option<impl Iterator<Item = (&'o str, &'o Webhook)>> {
        let configurations = self.observation.cluster.webhooks.as_deref()?;
        let webhooks = configurations.iter().flat_map(|configuration| {
            configuration.webhooks.iter().map(|webhook| (configuration.name.as_str(), webhook))
        });
        Some(webhooks.filter(|(_, webhook)| webhook.wants_label))
    }
}

pub(super) fn account_key(account: &ServiceAccount) -> AccountKey<'_> {
    (&account.name.namespace, &account.name.name)
}
