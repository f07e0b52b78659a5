//! The inputs of check functions: a service account, a pod or a managed identity, with related objects.

use std::{collections::HashMap, ops::Deref};

use super::{
    credential_match::CredentialMatch,
    lookup::{AccountKey, Lookup, account_key},
    managed_identity::{FederatedCredential, ManagedIdentity},
    observation::{Observation, Pod, ServiceAccount},
};

/// The observation by keys, with the credential of each service account.
pub(super) struct Index<'o> {
    lookup: Lookup<'o>,
    matches: HashMap<AccountKey<'o>, CredentialMatch<'o>>,
    /// The number of service accounts for which a credential is a near miss, by client ID and credential name.
    near_misses: HashMap<(&'o str, &'o str), usize>,
}

/// A service account with related objects.
pub(super) struct AccountContext<'i> {
    pub(super) account: &'i ServiceAccount,
    pub(super) pods: &'i [&'i Pod],
    pub(super) credential_match: &'i CredentialMatch<'i>,
    pub(super) index: &'i Index<'i>,
}

/// A pod with related objects.
pub(super) struct PodContext<'i> {
    pub(super) pod: &'i Pod,
    /// The pod's service account, if it is known.
    pub(super) account: Option<&'i ServiceAccount>,
    /// The current template of the pod's owner, if it is known.
    pub(super) template: Option<&'i Pod>,
    pub(super) index: &'i Index<'i>,
}

/// A managed identity with related objects.
pub(super) struct IdentityContext<'i> {
    pub(super) identity: &'i ManagedIdentity,
    /// The credentials of the identity. Empty if they are not known.
    pub(super) credentials: &'i [FederatedCredential],
    /// The service accounts that name the identity.
    pub(super) users: &'i [&'i ServiceAccount],
    pub(super) index: &'i Index<'i>,
}

impl<'o> Deref for Index<'o> {
    type Target = Lookup<'o>;

    fn deref(&self) -> &Lookup<'o> {
        &self.lookup
    }
}

impl<'o> Index<'o> {
    pub(super) fn new(observation: &'o Observation) -> Self {
        let lookup = Lookup::new(observation);
        let (mut matches, mut near_misses) = (HashMap::new(), HashMap::new());
        for account in &observation.cluster.service_accounts {
            let result = CredentialMatch::of(account, &lookup);
            if let Some((identity, credential)) = result.near_miss() {
                *near_misses.entry((identity.client_id.as_str(), credential.name.as_str())).or_default() += 1;
            }
            matches.insert(account_key(account), result);
        }
        Self { lookup, matches, near_misses }
    }

    /// Returns the number of service accounts for which this credential is a near miss.
    pub(super) fn near_misses(&self, identity: &ManagedIdentity, credential: &FederatedCredential) -> usize {
        self.near_misses.get(&(identity.client_id.as_str(), credential.name.as_str())).copied().unwrap_or_default()
    }

    pub(super) fn match_of<'a>(&'a self, account: &'a ServiceAccount) -> &'a CredentialMatch<'o> {
        self.matches.get(&account_key(account)).unwrap_or(&CredentialMatch::NotApplicable)
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
            users: self.users_of(identity),
            index: self,
        })
    }
}
