//! The inputs of the controller's identity checks, from its cache and from watches that only the checks need.

use std::sync::Arc;

use futures_util::future::join_all;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Client;
use tokio::{sync::watch, task::JoinSet};

use super::{
    super::{
        inventory::{Inventory, services},
        pod_store::Pods,
    },
    inputs::{Endpoints, Inputs, binding, ready, role, slices_of},
};
use crate::{
    background::restart_on_panic,
    config,
    identity::{
        managed_identity::ReadFailure,
        observation::{self, Cluster},
    },
    kubernetes::{ObjectKey, Refusal, Sink, Store, Watch},
};

/// The current inputs of the checks. The settings select the pods. The service accounts of all namespaces are included,
/// because the checks report credentials for service accounts that do not exist.
pub(crate) struct IdentityInputs<'i> {
    inventory: &'i Inventory,
    settings: config::Identity,
    endpoints: watch::Receiver<Endpoints>,
    roles: watch::Receiver<Store<ClusterRole>>,
    bindings: watch::Receiver<Store<ClusterRoleBinding>>,
    changes: Changes,
    _watches: JoinSet<()>,
}

#[expect(clippy::redundant_closure_for_method_calls, reason = "the methods are not general enough")]
impl<'i> IdentityInputs<'i> {
    /// Starts the watches that only the checks need. Must be called within a tokio runtime.
    pub(crate) fn start(inventory: &'i Inventory, settings: &config::Identity) -> Self {
        let mut tasks = JoinSet::new();
        let endpoints = follow_endpoints(&inventory.client, &inventory.webhooks, &mut tasks);
        let (roles, bindings) = follow_grants(&inventory.client, &inventory.pods, settings, &mut tasks);
        let changes = Changes {
            pods: inventory.pods.identity(),
            service_accounts: inventory.service_accounts.clone(),
            namespaces: inventory.namespaces.clone(),
            v1_virtual_nodes: inventory.v1_virtual_nodes.clone(),
            webhooks: inventory.webhooks.clone(),
            endpoints: endpoints.clone(),
            roles: roles.clone(),
            bindings: bindings.clone(),
        };
        Self { inventory, settings: settings.clone(), endpoints, roles, bindings, changes, _watches: tasks }
    }

    /// Returns the needed kinds whose initial list is not complete.
    pub(crate) fn pending(&self) -> Vec<&'static str> {
        self.with(|inputs| inputs.pending())
    }

    /// Returns the lists that the API server forbids.
    pub(crate) fn refused(&self) -> Vec<ReadFailure> {
        self.with(|inputs| inputs.refused())
    }

    /// Returns whether the list of virtual nodes is complete.
    pub(crate) fn has_nodes(&self) -> bool {
        self.with(|inputs| inputs.has_nodes())
    }

    /// Returns the current input of the checks.
    pub(crate) fn cluster(&self) -> Cluster {
        self.with(|inputs| inputs.cluster())
    }

    /// Waits until an input of the checks changes after the last call. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        self.changes.next().await;
    }

    fn with<T>(&self, read: impl FnOnce(&Inputs<'_>) -> T) -> T {
        let inventory = self.inventory;
        let (accounts, pods) = (inventory.service_accounts.borrow(), inventory.pods.borrow());
        let (namespaces, nodes) = (inventory.namespaces.borrow(), inventory.v1_virtual_nodes.borrow());
        let (webhooks, endpoints) = (inventory.webhooks.borrow(), self.endpoints.borrow());
        let (roles, bindings) = (self.roles.borrow(), self.bindings.borrow());
        read(&Inputs {
            accounts: accounts.listing(),
            pods: pods.identity(&self.settings),
            namespaces: namespaces.listing(),
            v1_virtual_nodes: nodes.listing(),
            webhooks: webhooks.listing(),
            endpoints: &endpoints,
            roles: roles.listing(),
            bindings: bindings.listing(),
        })
    }
}

/// A receiver for each input.
#[derive(Debug)]
struct Changes {
    pods: watch::Receiver<()>,
    service_accounts: watch::Receiver<Store<observation::ServiceAccount>>,
    namespaces: watch::Receiver<Store<observation::Namespace>>,
    v1_virtual_nodes: watch::Receiver<Store<()>>,
    webhooks: watch::Receiver<Store<observation::WebhookConfiguration>>,
    endpoints: watch::Receiver<Endpoints>,
    roles: watch::Receiver<Store<ClusterRole>>,
    bindings: watch::Receiver<Store<ClusterRoleBinding>>,
}

impl Changes {
    async fn next(&mut self) {
        let Self { pods, service_accounts, namespaces, v1_virtual_nodes, webhooks, endpoints, roles, bindings } = self;
        // The senders live as long as the inventory does.
        tokio::select! {
            _ = pods.changed() => {}
            _ = service_accounts.changed() => {}
            _ = namespaces.changed() => {}
            _ = v1_virtual_nodes.changed() => {}
            _ = webhooks.changed() => {}
            _ = endpoints.changed() => {}
            _ = roles.changed() => {}
            _ = bindings.changed() => {}
        }
    }
}

/// Watches the EndpointSlices of the Services that webhooks name. All EndpointSlices of a cluster would be too many, and
/// change too often.
fn follow_endpoints(
    client: &Client,
    webhooks: &watch::Receiver<Store<observation::WebhookConfiguration>>,
    tasks: &mut JoinSet<()>,
) -> watch::Receiver<Endpoints> {
    let (publish, endpoints) = watch::channel(Endpoints::new());
    let (client, webhooks) = (client.clone(), webhooks.clone());
    tasks.spawn(restart_on_panic(async move || {
        let mut webhooks = webhooks.clone();
        loop {
            let services = services(webhooks.borrow_and_update().values());
            publish.send_if_modified(|endpoints| {
                endpoints.retain(|service, _| services.contains(service));
                for service in &services {
                    endpoints.entry(service.clone()).or_default();
                }
                false
            });
            let watches = services.iter().map(async |service| {
                let slices =
                    Watch::namespaced(&client, "endpointslices", &service.namespace).labels(&slices_of(service));
                slices.run(|slice| ready(&slice), &EndpointSink { publish: &publish, service }).await;
            });
            let watches = async {
                join_all(watches).await;
                // Reached without a Service to watch.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = watches => {}
                _ = webhooks.wait_for(|webhooks| self::services(webhooks.values()) != services) => {}
            }
        }
    }));
    endpoints
}

/// Receives the EndpointSlices of one Service.
struct EndpointSink<'s> {
    publish: &'s watch::Sender<Endpoints>,
    service: &'s ObjectKey,
}

impl EndpointSink<'_> {
    fn change(&self, change: impl FnOnce(&mut Store<usize>) -> bool) {
        self.publish.send_if_modified(|endpoints| endpoints.get_mut(self.service).is_some_and(change));
    }
}

impl Sink<usize> for EndpointSink<'_> {
    fn replace(&self, all: std::collections::BTreeMap<ObjectKey, usize>) {
        self.change(|store| store.replace(all));
    }

    fn apply(&self, key: ObjectKey, value: Option<usize>) {
        self.change(|store| store.put(key, value));
    }

    fn refuse(&self, refusal: Refusal) {
        self.change(|store| store.refuse(refusal));
    }
}

/// Watches ClusterRoles and ClusterRoleBindings, once a pod uses an identity binding.
fn follow_grants(
    client: &Client,
    pods: &Arc<Pods>,
    settings: &config::Identity,
    tasks: &mut JoinSet<()>,
) -> (watch::Receiver<Store<ClusterRole>>, watch::Receiver<Store<ClusterRoleBinding>>) {
    let ((publish_roles, roles), (publish_bindings, bindings)) =
        (watch::channel(Store::default()), watch::channel(Store::default()));
    let (client, pods, settings) = (client.clone(), pods.clone(), settings.clone());
    tasks.spawn(restart_on_panic(async move || {
        let mut changes = pods.identity();
        while !pods.borrow().identity(&settings).values().any(observation::Pod::uses_binding) {
            if changes.changed().await.is_err() {
                return;
            }
        }
        let (roles, bindings) = (Watch::all(&client, "clusterroles"), Watch::all(&client, "clusterrolebindings"));
        let bindings = bindings.run(|one| Some(binding(one)), &publish_bindings);
        tokio::join!(roles.run(role, &publish_roles), bindings);
    }));
    (roles, bindings)
}
