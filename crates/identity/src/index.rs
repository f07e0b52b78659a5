//! Everything that is seen, by the keys under which the checks look for it: built once, so that no check searches.

use std::collections::HashMap;

use super::{
    azure::{Credential, Identity},
    finding::Object,
    link::Link,
    seen::{Issuer, Namespace, Pod, Seen, ServiceAccount},
};

/// Namespace and name of a service account.
pub(super) type AccountKey<'s> = (&'s str, &'s str);

pub(super) struct Index<'s> {
    pub(super) seen: &'s Seen,
    accounts: HashMap<AccountKey<'s>, &'s ServiceAccount>,
    pods: HashMap<AccountKey<'s>, Vec<&'s Pod>>,
    templates: HashMap<&'s Object, &'s Pod>,
    /// By client id in small letters.
    identities: HashMap<String, &'s Identity>,
    /// By principal id in small letters.
    principals: HashMap<String, &'s Identity>,
    /// The service accounts that name an identity, by its client id in small letters.
    users: HashMap<String, Vec<&'s ServiceAccount>>,
    links: HashMap<AccountKey<'s>, Link<'s>>,
    /// Client id and name of the credentials that findings about service accounts speak of, and about how many.
    explained: HashMap<(&'s str, &'s str), usize>,
}

/// A service account with all that concerns it.
pub(super) struct AccountCase<'i> {
    pub(super) account: &'i ServiceAccount,
    pub(super) pods: &'i [&'i Pod],
    pub(super) link: &'i Link<'i>,
    pub(super) index: &'i Index<'i>,
}

/// A pod with all that concerns it.
pub(super) struct PodCase<'i> {
    pub(super) pod: &'i Pod,
    /// Its service account, if that is known.
    pub(super) account: Option<&'i ServiceAccount>,
    /// The template that its maker has now, if that is known.
    pub(super) template: Option<&'i Pod>,
    pub(super) index: &'i Index<'i>,
}

/// A managed identity with all that concerns it.
pub(super) struct IdentityCase<'i> {
    pub(super) identity: &'i Identity,
    /// Its credentials; none when they are not known.
    pub(super) credentials: &'i [Credential],
    /// The service accounts that name it.
    pub(super) users: &'i [&'i ServiceAccount],
    pub(super) index: &'i Index<'i>,
}

impl<'s> Index<'s> {
    pub(super) fn new(seen: &'s Seen) -> Self {
        let cluster = &seen.cluster;
        let mut index = Self {
            seen,
            accounts: cluster.service_accounts.iter().map(|account| (key(account), account)).collect(),
            pods: HashMap::with_capacity(cluster.service_accounts.len()),
            templates: HashMap::new(),
            identities: HashMap::new(),
            principals: HashMap::new(),
            users: HashMap::new(),
            links: HashMap::new(),
            explained: HashMap::new(),
        };
        for pod in &cluster.pods {
            index.pods.entry((&pod.namespace, &pod.service_account)).or_default().push(pod);
            if !pod.is_admitted {
                index.templates.insert(&pod.maker, pod);
            }
        }
        for account in &cluster.service_accounts {
            if let Some(client_id) = account.client_id() {
                index.users.entry(client_id.to_ascii_lowercase()).or_default().push(account);
            }
        }
        for identity in seen.azure.iter().flat_map(|azure| &azure.identities) {
            index.identities.insert(identity.client_id.to_ascii_lowercase(), identity);
            if let Some(principal) = &identity.principal_id {
                index.principals.insert(principal.to_ascii_lowercase(), identity);
            }
        }
        index.link();
        index
    }

    fn link(&mut self) {
        for account in &self.seen.cluster.service_accounts {
            let link = Link::of(account, self.pods_of(account), self);
            if let Some((identity, credential)) = link.explained() {
                *self.explained.entry((&identity.client_id, &credential.name)).or_default() += 1;
            }
            self.links.insert(key(account), link);
        }
    }

    fn pods_of<'a>(&'a self, account: &'a ServiceAccount) -> &'a [&'s Pod] {
        self.pods.get(&key(account)).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn account(&self, namespace: &str, name: &str) -> Option<&'s ServiceAccount> {
        self.accounts.get(&(namespace, name)).copied()
    }

    /// The identity with this client id.
    pub(super) fn identity(&self, client_id: &str) -> Option<&'s Identity> {
        self.identities.get(&client_id.to_ascii_lowercase()).copied()
    }

    /// The identity with this principal id.
    pub(super) fn principal(&self, principal_id: &str) -> Option<&'s Identity> {
        self.principals.get(&principal_id.to_ascii_lowercase()).copied()
    }

    pub(super) fn namespace(&self, name: &str) -> Option<&'s Namespace> {
        self.seen.cluster.namespaces.get(name)
    }

    /// The template that a workload has now, if that is known.
    pub(super) fn template(&self, maker: &Object) -> Option<&'s Pod> {
        self.templates.get(maker).copied()
    }

    /// What stands in tokens.
    pub(super) fn issuer(&self) -> Option<&'s Issuer> {
        self.seen.issuers.first()
    }

    pub(super) fn audience(&self) -> &'static str {
        self.seen.cloud.audience()
    }

    /// About how many service accounts a finding already speaks of this credential.
    pub(super) fn explained(&self, identity: &Identity, credential: &Credential) -> usize {
        self.explained.get(&(identity.client_id.as_str(), credential.name.as_str())).copied().unwrap_or_default()
    }

    pub(super) fn link_of<'a>(&'a self, account: &'a ServiceAccount) -> &'a Link<'s> {
        self.links.get(&key(account)).unwrap_or(&Link::Unasked)
    }

    pub(super) fn accounts(&self) -> impl Iterator<Item = AccountCase<'_>> {
        self.seen.cluster.service_accounts.iter().map(|account| AccountCase {
            account,
            pods: self.pods_of(account),
            link: self.link_of(account),
            index: self,
        })
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = PodCase<'_>> {
        self.seen.cluster.pods.iter().map(|pod| PodCase {
            pod,
            account: self.account(&pod.namespace, &pod.service_account),
            template: self.template(&pod.maker),
            index: self,
        })
    }

    pub(super) fn identities(&self) -> impl Iterator<Item = IdentityCase<'_>> {
        let identities = self.seen.azure.iter().flat_map(|azure| &azure.identities);
        identities.map(|identity| IdentityCase {
            identity,
            credentials: identity.credentials.as_deref().unwrap_or_default(),
            users: self.users.get(&identity.client_id.to_ascii_lowercase()).map(Vec::as_slice).unwrap_or_default(),
            index: self,
        })
    }

    /// Whether it is known that nobody injects identities.
    pub(super) fn lacks_injector(&self) -> bool {
        self.seen.cluster.is_whole && self.injectors().is_some_and(|mut injectors| injectors.next().is_none())
    }

    /// The webhooks that inject identities, with the names of their configurations; nothing when configurations are not known.
    pub(super) fn injectors(&self) -> Option<impl Iterator<Item = (&'s str, &'s super::seen::Webhook)>> {
        let configurations = self.seen.cluster.webhooks.as_deref()?;
        let webhooks = configurations.iter().flat_map(|configuration| {
            configuration.webhooks.iter().map(|webhook| (configuration.name.as_str(), webhook))
        });
        Some(webhooks.filter(|(_, webhook)| webhook.wants_label))
    }
}

fn key(account: &ServiceAccount) -> AccountKey<'_> {
    (&account.name.namespace, &account.name.name)
}
