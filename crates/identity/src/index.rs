//! The observation, indexed by the keys that the checks look up. It is built once, so that no check searches.

use std::collections::HashMap;

use super::{
    credential_match::CredentialMatch,
    finding::Object,
    managed_identity::{FederatedCredential, ManagedIdentity},
    observation::{Issuer, Namespace, Observation, Pod, ServiceAccount},
};

/// Namespace and name of a service account, borrowed.
pub(super) type AccountKey<'o> = (&'o str, &'o str);

pub(super) struct Index<'o> {
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
    matches: HashMap<AccountKey<'o>, CredentialMatch<'o>>,
    /// For how many service accounts a credential is a near miss, by client ID and name of the credential.
    near_misses: HashMap<(&'o str, &'o str), usize>,
}

/// A service account with everything that concerns it.
pub(super) struct AccountContext<'i> {
    pub(super) account: &'i ServiceAccount,
    pub(super) pods: &'i [&'i Pod],
    pub(super) credential_match: &'i CredentialMatch<'i>,
    pub(super) index: &'i Index<'i>,
}

/// A pod with everything that concerns it.
pub(super) struct PodContext<'i> {
    pub(super) pod: &'i Pod,
    /// The pod's service account, if it is known.
    pub(super) account: Option<&'i ServiceAccount>,
    /// The current template of the pod's owner, if it is known.
    pub(super) template: Option<&'i Pod>,
    pub(super) index: &'i Index<'i>,
}

/// A managed identity with everything that concerns it.
pub(super) struct IdentityContext<'i> {
    pub(super) identity: &'i ManagedIdentity,
    /// The credentials of the identity; empty if they are not known.
    pub(super) credentials: &'i [FederatedCredential],
    /// The service accounts that name the identity.
    pub(super) users: &'i [&'i ServiceAccount],
    pub(super) index: &'i Index<'i>,
}

impl<'o> Index<'o> {
    pub(super) fn new(observation: &'o Observation) -> Self {
        let cluster = &observation.cluster;
        let mut index = Self {
            observation,
            accounts: cluster.service_accounts.iter().map(|account| (key(account), account)).collect(),
            pods: HashMap::with_capacity(cluster.service_accounts.len()),
            templates: HashMap::new(),
            identities: HashMap::new(),
            principals: HashMap::new(),
            users: HashMap::new(),
            matches: HashMap::new(),
            near_misses: HashMap::new(),
        };
        for pod in &cluster.pods {
            index.pods.entry((&pod.namespace, &pod.service_account)).or_default().push(pod);
            if !pod.is_admitted {
                index.templates.insert(&pod.owner, pod);
            }
        }
        for account in &cluster.service_accounts {
            if let Some(client_id) = account.client_id() {
                index.users.entry(client_id.to_ascii_lowercase()).or_default().push(account);
            }
        }
        for identity in observation.managed_identities.iter().flat_map(|all| &all.identities) {
            index.identities.insert(identity.client_id.to_ascii_lowercase(), identity);
            if let Some(principal) = &identity.principal_id {
                index.principals.insert(principal.to_ascii_lowercase(), identity);
            }
        }
        index.match_credentials();
        index
    }

    fn match_credentials(&mut self) {
        for account in &self.observation.cluster.service_accounts {
            let result = CredentialMatch::of(account, self.pods_of(account), self);
            if let Some((identity, credential)) = result.near_miss() {
                *self.near_misses.entry((&identity.client_id, &credential.name)).or_default() += 1;
            }
            self.matches.insert(key(account), result);
        }
    }

    fn pods_of<'a>(&'a self, account: &'a ServiceAccount) -> &'a [&'o Pod] {
        self.pods.get(&key(account)).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn account(&self, namespace: &str, name: &str) -> Option<&'o ServiceAccount> {
        self.accounts.get(&(namespace, name)).copied()
    }

    /// Returns the identity with this client ID.
    pub(super) fn identity(&self, client_id: &str) -> Option<&'o ManagedIdentity> {
        self.identities.get(&client_id.to_ascii_lowercase()).copied()
    }

    /// Returns the identity with this principal ID.
    pub(super) fn principal(&self, principal_id: &str) -> Option<&'o ManagedIdentity> {
        self.principals.get(&principal_id.to_ascii_lowercase()).copied()
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

    /// Returns for how many service accounts this credential is a near miss.
    pub(super) fn near_misses(&self, identity: &ManagedIdentity, credential: &FederatedCredential) -> usize {
        self.near_misses.get(&(identity.client_id.as_str(), credential.name.as_str())).copied().unwrap_or_default()
    }

    pub(super) fn match_of<'a>(&'a self, account: &'a ServiceAccount) -> &'a CredentialMatch<'o> {
        self.matches.get(&key(account)).unwrap_or(&CredentialMatch::NotApplicable)
    }

    pub(super) fn accounts(&self) -> impl Iterator<Item = AccountContext<'_>> {
        self.observation.cluster.service_accounts.iter().map(|account| AccountContext {
            account,
            pods: self.pods_of(account),
            credential_match: self.match_of(account),
            index: self,
        })
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = PodContext<'_>> {
        self.observation.cluster.pods.iter().map(|pod| PodContext {
            pod,
            account: self.account(&pod.namespace, &pod.service_account),
            template: self.template(&pod.owner),
            index: self,
        })
    }

    pub(super) fn identities(&self) -> impl Iterator<Item = IdentityContext<'_>> {
        let identities = self.observation.managed_identities.iter().flat_map(|all| &all.identities);
        identities.map(|identity| IdentityContext {
            identity,
            credentials: identity.credentials.as_deref().unwrap_or_default(),
            users: self.users.get(&identity.client_id.to_ascii_lowercase()).map(Vec::as_slice).unwrap_or_default(),
            index: self,
        })
    }

    /// Returns whether it is certain that no webhook injects identities.
    pub(super) fn lacks_injector(&self) -> bool {
        self.observation.cluster.is_complete && self.injectors().is_some_and(|mut injectors| injectors.next().is_none())
    }

    /// Returns the webhooks that inject identities, with the names of their configurations; `None` if configurations are not known.
    pub(super) fn injectors(&self) -> Option<impl Iterator<Item = (&'o str, &'o super::observation::Webhook)>> {
        let configurations = self.observation.cluster.webhooks.as_deref()?;
        let webhooks = configurations.iter().flat_map(|configuration| {
            configuration.webhooks.iter().map(|webhook| (configuration.name.as_str(), webhook))
        });
        Some(webhooks.filter(|(_, webhook)| webhook.wants_label))
    }
}

fn key(account: &ServiceAccount) -> AccountKey<'_> {
    (&account.name.namespace, &account.name.name)
}
