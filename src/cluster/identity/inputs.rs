//! The inputs of the identity checks.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    discovery::v1::EndpointSlice,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::api::ObjectMeta;

use super::super::inventory::services;
use crate::{
    identity::{
        grants, grants_identities,
        managed_identity::ReadFailure,
        observation::{Cluster, Namespace, Pod, ServiceAccount, ServiceName, WebhookConfiguration},
        ready_endpoints,
    },
    kubernetes::{Listing, ObjectKey, Refusal, Store},
};

/// The number of ready endpoints in each EndpointSlice, by Service.
pub(super) type Endpoints = BTreeMap<ObjectKey, Store<usize>>;

/// The objects of each kind.
#[derive(Debug)]
pub(super) struct Inputs<'s> {
    pub(super) accounts: Listing<'s, ServiceAccount>,
    pub(super) pods: Listing<'s, Pod>,
    pub(super) namespaces: Listing<'s, Namespace>,
    pub(super) v1_virtual_nodes: Listing<'s, ()>,
    pub(super) webhooks: Listing<'s, WebhookConfiguration>,
    pub(super) endpoints: &'s Endpoints,
    /// Only the roles that grant identities.
    pub(super) roles: Listing<'s, ClusterRole>,
    pub(super) bindings: Listing<'s, ClusterRoleBinding>,
}

impl Inputs<'_> {
    /// Returns whether a pod uses an identity binding. Otherwise roles and role bindings are not needed.
    fn use_bindings(&self) -> bool {
        self.pods.values().any(Pod::uses_binding)
    }

    /// Returns the needed kinds whose initial list is not complete.
    pub(super) fn pending(&self) -> Vec<&'static str> {
        let Self { accounts, pods, namespaces, v1_virtual_nodes, webhooks, endpoints, roles, bindings } = self;
        let of_bindings = self.use_bindings();
        let is_pending = |service: &ObjectKey| endpoints.get(service).is_none_or(Store::is_pending);
        let kinds = [
            (accounts.is_pending(), "serviceaccounts"),
            (pods.is_pending(), "pods"),
            (namespaces.is_pending(), "namespaces"),
            (v1_virtual_nodes.is_pending(), "nodes"),
            (webhooks.is_pending(), "mutatingwebhookconfigurations"),
            (services(webhooks.values()).iter().any(is_pending), "endpointslices"),
            (of_bindings && roles.is_pending(), "clusterroles"),
            (of_bindings && bindings.is_pending(), "clusterrolebindings"),
        ];
        kinds.into_iter().filter_map(|(is_pending, kind)| is_pending.then_some(kind)).collect()
    }

    /// Returns whether the list of virtual nodes is complete.
    pub(super) fn has_nodes(&self) -> bool {
        self.v1_virtual_nodes.listed().is_some()
    }

    /// Returns the lists that the API server forbids.
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
        kinds.into_iter().chain(endpoints.values().map(Store::refusal)).flatten().map(read_failure).collect()
    }

    /// Returns the input of the checks. Pods that cannot concern identities are left out, which are most pods of most
    /// clusters.
    pub(super) fn cluster(&self) -> Cluster {
        let has_keys = |pod: &Pod| {
            let key = ObjectKey::new(pod.namespace.as_str(), pod.service_account.as_str());
            let account = self.accounts.get(&key);
            account.is_some_and(|account| !account.labels.is_empty() || !account.annotations.is_empty())
        };
        let listed =
            [self.accounts.listed().is_some(), self.pods.listed().is_some(), self.namespaces.listed().is_some()];
        Cluster {
            service_accounts: self.accounts.values().cloned().collect(),
            is_complete: listed.into_iter().all(|is_listed| is_listed),
            pods: self.pods.values().filter(|pod| pod.concerns_identities() || has_keys(pod)).cloned().collect(),
            annotated_objects: Vec::new(),
            namespaces: self.namespaces.iter().map(|(key, namespace)| (key.name.clone(), namespace.clone())).collect(),
            v1_virtual_nodes: self.v1_virtual_nodes.iter().map(|(key, ())| key.name.clone()).collect(),
            webhooks: self.webhooks.listed().map(|all| all.iter().map(|(_, webhook)| (*webhook).clone()).collect()),
            endpoints: self.ready(),
            grants: self.roles.listed().zip(self.bindings.listed()).map(|_| {
                let (roles, bindings): (Vec<_>, Vec<_>) =
                    (self.roles.values().cloned().collect(), self.bindings.values().cloned().collect());
                grants(&roles, &bindings)
            }),
        }
    }

    /// Returns the number of ready endpoints of each Service. Returns `None` while one Service is unknown.
    fn ready(&self) -> Option<BTreeMap<ServiceName, usize>> {
        let ready = |service: ObjectKey| {
            let count = self.endpoints.get(&service)?.listed()?.values().sum();
            Some((ServiceName { namespace: service.namespace, name: service.name }, count))
        };
        services(self.webhooks.values()).into_iter().map(ready).collect()
    }
}

/// Converts a forbidden list to the type that the checks report.
fn read_failure(refusal: &Refusal) -> ReadFailure {
    ReadFailure {
        reason: refusal.status.clone(),
        action: format!("list {}", refusal.resource),
        scope: match &refusal.namespace {
            None => "the cluster".to_owned(),
            Some(namespace) => format!("namespace {namespace}"),
        },
    }
}

/// Returns a role with its name and rules. Returns `None` if it grants no identity.
pub(super) fn role(role: ClusterRole) -> Option<ClusterRole> {
    grants_identities(&role).then(|| ClusterRole { metadata: named(role.metadata), ..role })
}

/// Returns a binding with its name, subjects and role.
pub(super) fn binding(binding: ClusterRoleBinding) -> ClusterRoleBinding {
    ClusterRoleBinding { metadata: named(binding.metadata), ..binding }
}

/// Removes all metadata except the name.
fn named(meta: ObjectMeta) -> ObjectMeta {
    ObjectMeta { name: meta.name, ..ObjectMeta::default() }
}

/// Returns the number of ready endpoints of an EndpointSlice.
pub(super) fn ready(slice: &EndpointSlice) -> Option<usize> {
    ready_endpoints(slice).map(|(_service, count)| count)
}

/// Returns the label selector for the EndpointSlices of a Service.
pub(super) fn slices_of(service: &ObjectKey) -> String {
    format!("kubernetes.io/service-name={}", service.name)
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

    fn listed<V>(all: impl IntoIterator<Item = (&'static str, V)>) -> Store<V> {
        all.into_iter().map(|(name, value)| (ObjectKey::cluster_scoped(name), value)).collect()
    }

    #[derive(Default)]
    struct Stores {
        accounts: Store<ServiceAccount>,
        pods: Store<Pod>,
        namespaces: Store<Namespace>,
        v1_virtual_nodes: Store<()>,
        webhooks: Store<WebhookConfiguration>,
        endpoints: Endpoints,
    }

    impl Stores {
        fn inputs(&self) -> Inputs<'_> {
            Inputs {
                accounts: self.accounts.listing(),
                pods: self.pods.listing(),
                namespaces: self.namespaces.listing(),
                v1_virtual_nodes: self.v1_virtual_nodes.listing(),
                webhooks: self.webhooks.listing(),
                endpoints: &self.endpoints,
                roles: Listing::Pending,
                bindings: Listing::Pending,
            }
        }
    }

    #[test]
    fn pending_or_forbidden_kinds_are_absent_and_not_empty() {
        let nothing = Stores::default();
        let cluster = nothing.inputs().cluster();
        assert!(!cluster.is_complete && cluster.webhooks.is_none() && cluster.grants.is_none());
        assert_eq!(nothing.inputs().pending().len(), 5);

        let mut stores = Stores {
            accounts: listed([]),
            pods: listed([]),
            namespaces: listed([]),
            v1_virtual_nodes: listed([]),
            webhooks: listed([("azure-wi", injector("wi"))]),
            ..Stores::default()
        };
        assert_eq!(stores.inputs().pending(), ["endpointslices"]);
        assert!(stores.inputs().has_nodes() && !nothing.inputs().has_nodes());
        assert_eq!(stores.inputs().cluster().endpoints, None, "pending endpoints are not zero");
        stores.endpoints.insert(ObjectKey::new("kube-system", "wi"), listed([("a", 1), ("b", 1)]));
        assert!(stores.inputs().pending().is_empty());
        let cluster = stores.inputs().cluster();
        assert!(cluster.is_complete);
        assert_eq!(cluster.endpoints.unwrap().into_values().collect::<Vec<_>>(), [2]);

        let refusal = Refusal { status: "403 Forbidden".to_owned(), resource: "pods", namespace: None };
        stores.pods.refuse(refusal);
        assert!(stores.inputs().pending().is_empty(), "a forbidden list is not pending");
        assert!(!stores.inputs().cluster().is_complete);
        let unread = ReadFailure {
            reason: "403 Forbidden".to_owned(),
            action: "list pods".to_owned(),
            scope: "the cluster".to_owned(),
        };
        assert_eq!(stores.inputs().refused(), [unread]);
    }
}
