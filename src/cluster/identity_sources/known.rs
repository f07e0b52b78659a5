//! What is kept of the objects of a cluster, and what the checks get of it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};

use super::Name;
use crate::identity::{
    grants,
    managed_identity::ReadFailure,
    observation::{Cluster, Namespace, Pod, ServiceAccount, ServiceName, WebhookConfiguration},
};

/// What is known of a kind.
#[derive(Debug, Default)]
pub(super) enum Listing<V> {
    /// Not yet anything.
    #[default]
    Pending,
    /// It may not be read.
    Refused(ReadFailure),
    /// All that there is.
    Listed(BTreeMap<Name, V>),
}

impl<V: PartialEq> Listing<V> {
    fn all(&self) -> Option<&BTreeMap<Name, V>> {
        match self {
            Self::Listed(all) => Some(all),
            Self::Pending | Self::Refused(_) => None,
        }
    }

    fn values(&self) -> impl Iterator<Item = &V> {
        self.all().into_iter().flat_map(BTreeMap::values)
    }

    fn is_pending(&self) -> bool {
        matches!(self, Self::Pending)
    }

    fn refusal(&self) -> Option<&ReadFailure> {
        match self {
            Self::Refused(unread) => Some(unread),
            Self::Pending | Self::Listed(_) => None,
        }
    }

    /// Replaces everything; says whether that changed anything.
    pub(super) fn fill(&mut self, complete: BTreeMap<Name, V>) -> bool {
        let is_new = self.all() != Some(&complete);
        *self = Self::Listed(complete);
        is_new
    }

    /// Says whether that changed anything.
    pub(super) fn refuse(&mut self, unread: ReadFailure) -> bool {
        let is_new = self.refusal() != Some(&unread);
        *self = Self::Refused(unread);
        is_new
    }

    /// An object came or changed, or, without a value, went; says whether that changed anything.
    pub(super) fn put(&mut self, name: Name, value: Option<V>) -> bool {
        let Self::Listed(all) = self else { return false };
        match value {
            Some(value) if all.get(&name) == Some(&value) => false,
            Some(value) => {
                all.insert(name, value);
                true
            }
            None => all.remove(&name).is_some(),
        }
    }
}

/// Everything that is kept.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) accounts: Listing<ServiceAccount>,
    pub(super) pods: Listing<Pod>,
    pub(super) namespaces: Listing<Namespace>,
    pub(super) v1_virtual_nodes: Listing<()>,
    pub(super) webhooks: Listing<WebhookConfiguration>,
    /// By Service: how many endpoints of each slice are ready.
    pub(super) endpoints: BTreeMap<Name, Listing<usize>>,
    /// Those that grant identities.
    pub(super) roles: Listing<ClusterRole>,
    pub(super) bindings: Listing<ClusterRoleBinding>,
}

impl Known {
    /// The Services of the webhooks that inject identities.
    pub(super) fn services(&self) -> BTreeSet<Name> {
        let webhooks = self.webhooks.values().flat_map(|configuration| &configuration.webhooks);
        let services = webhooks.filter(|webhook| webhook.wants_label).filter_map(|webhook| webhook.service.as_ref());
        services.map(|service| (service.namespace.clone(), service.name.clone())).collect()
    }

    /// Whether anything uses an identity binding, so that it matters who was granted what.
    pub(super) fn uses_bindings(&self) -> bool {
        self.pods.values().any(Pod::uses_binding)
    }

    /// The kinds of which nothing is known yet, and which matter.
    pub(super) fn pending(&self) -> Vec<&'static str> {
        let Self { accounts, pods, namespaces, v1_virtual_nodes, webhooks, endpoints: _, roles, bindings } = self;
        let of_bindings = self.uses_bindings();
        let kinds = [
            (accounts.is_pending(), "serviceaccounts"),
            (pods.is_pending(), "pods"),
            (namespaces.is_pending(), "namespaces"),
            (v1_virtual_nodes.is_pending(), "nodes"),
            (webhooks.is_pending(), "mutatingwebhookconfigurations"),
            (
                self.services().iter().any(|service| self.slices(service).is_none_or(Listing::is_pending)),
                "endpointslices",
            ),
            (of_bindings && roles.is_pending(), "clusterroles"),
            (of_bindings && bindings.is_pending(), "clusterrolebindings"),
        ];
        kinds.into_iter().filter_map(|(is_pending, kind)| is_pending.then_some(kind)).collect()
    }

    /// Whether it is known which virtual nodes there are.
    pub(super) fn has_nodes(&self) -> bool {
        self.v1_virtual_nodes.all().is_some()
    }

    /// What may not be read.
    pub(super) fn refused(&self) -> Vec<ReadFailure> {
        let Self { accounts, pods, namespaces, v1_virtual_nodes, webhooks, endpoints, roles, bindings } = self;
        let kinds = [
            accounts.refusal(),
            pods.refusal(),
            namespaces.refusal(),
            v1_virtual_nodes.refusal(),
            webhooks.refusal(),
            roles.refusal(),
            bindings.refusal(),
        ];
        kinds.into_iter().chain(endpoints.values().map(Listing::refusal)).flatten().cloned().collect()
    }

    fn slices(&self, service: &Name) -> Option<&Listing<usize>> {
        self.endpoints.get(service)
    }

    /// What the checks get. Of pods, those that could have to do with identities: in most clusters a small part of all.
    pub(super) fn cluster(&self) -> Cluster {
        let accounts = self.accounts.all();
        let has_keys = |pod: &Pod| {
            let name = (pod.namespace.clone(), pod.service_account.clone());
            let account = accounts.and_then(|all| all.get(&name));
            account.is_some_and(|account| !account.labels.is_empty() || !account.annotations.is_empty())
        };
        Cluster {
            service_accounts: self.accounts.values().cloned().collect(),
            is_complete: accounts.is_some() && self.pods.all().is_some() && self.namespaces.all().is_some(),
            pods: self.pods.values().filter(|pod| pod.concerns_identities() || has_keys(pod)).cloned().collect(),
            annotated_objects: Vec::new(),
            namespaces: self
                .namespaces
                .all()
                .into_iter()
                .flatten()
                .map(|((_, name), one)| (name.clone(), one.clone()))
                .collect(),
            v1_virtual_nodes: self
                .v1_virtual_nodes
                .all()
                .into_iter()
                .flatten()
                .map(|((_, name), ())| name.clone())
                .collect(),
            webhooks: self.webhooks.all().map(|all| all.values().cloned().collect()),
            endpoints: self.ready(),
            grants: self.roles.all().zip(self.bindings.all()).map(|(roles, bindings)| {
                let (roles, bindings): (Vec<_>, Vec<_>) =
                    (roles.values().cloned().collect(), bindings.values().cloned().collect());
                grants(&roles, &bindings)
            }),
        }
    }

    /// How many endpoints of each Service are ready; nothing as long as that is not known of one.
    fn ready(&self) -> Option<BTreeMap<ServiceName, usize>> {
        let ready = |service: Name| {
            let count = self.slices(&service)?.all()?.values().sum();
            let (namespace, name) = service;
            Some((ServiceName { namespace, name }, count))
        };
        self.services().into_iter().map(ready).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::observation::Webhook;

    fn injector(service: &str) -> WebhookConfiguration {
        let webhook = Webhook {
            name: "mutation.azure-workload-identity.io".to_owned(),
            wants_label: true,
            service: Some(ServiceName { namespace: "kube-system".to_owned(), name: service.to_owned() }),
            has_ca_bundle: true,
        };
        WebhookConfiguration { name: "azure-wi".to_owned(), webhooks: vec![webhook] }
    }

    fn listed<V>(all: impl IntoIterator<Item = (&'static str, V)>) -> Listing<V> {
        Listing::Listed(all.into_iter().map(|(name, value)| ((String::new(), name.to_owned()), value)).collect())
    }

    #[test]
    fn what_is_not_yet_known_or_forbidden_is_absent_and_not_empty() {
        let nothing = Known::default();
        let cluster = nothing.cluster();
        assert!(!cluster.is_complete && cluster.webhooks.is_none() && cluster.grants.is_none());
        assert_eq!(nothing.pending().len(), 5);

        let mut known = Known {
            accounts: listed([]),
            pods: listed([]),
            namespaces: listed([]),
            v1_virtual_nodes: listed([]),
            webhooks: listed([("azure-wi", injector("wi"))]),
            ..Known::default()
        };
        assert_eq!(known.pending(), ["endpointslices"]);
        assert!(known.has_nodes() && !nothing.has_nodes());
        assert_eq!(known.cluster().endpoints, None, "endpoints that are still to come are not zero");
        known.endpoints.insert(("kube-system".to_owned(), "wi".to_owned()), listed([("a", 1), ("b", 1)]));
        assert!(known.pending().is_empty());
        let cluster = known.cluster();
        assert!(cluster.is_complete);
        assert_eq!(cluster.endpoints.unwrap().into_values().collect::<Vec<_>>(), [2]);

        let unread = ReadFailure {
            reason: "403 Forbidden".to_owned(),
            action: "list pods".to_owned(),
            scope: "the cluster".to_owned(),
        };
        assert!(known.pods.refuse(unread.clone()) && !known.pods.refuse(unread.clone()), "said once");
        assert!(known.pending().is_empty(), "nothing will come");
        assert!(!known.cluster().is_complete);
        assert_eq!(known.refused(), [unread]);
    }

    #[test]
    fn only_a_change_of_what_is_kept_is_a_change() {
        let mut nodes = listed([("v1", 1)]);
        let name = |name: &str| (String::new(), name.to_owned());
        assert!(!nodes.put(name("v1"), Some(1)) && !nodes.put(name("other"), None));
        assert!(nodes.put(name("v1"), Some(2)) && nodes.put(name("v1"), None));
        assert!(!nodes.fill(BTreeMap::new()), "the same list again");
        assert!(!Listing::Pending.put(name("v1"), Some(1)), "before the list there is nothing to add to");
    }
}
