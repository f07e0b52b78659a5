//! The cache of the controller: one watch for each kind, and a store for each reader.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1};
use kube::{
    Client,
    api::{ObjectMeta, PartialObjectMeta},
};
use tokio::{sync::watch, task::JoinSet};

use super::{
    node::{Node, NodeObject},
    pod_store::Pods,
    scale_up::{self, ScaleUps},
    scope::{OptedIn, Scope},
    snapshot::{Namespace, Snapshot, service_account},
    watch as admission_watch,
};
use crate::{
    background::restart_on_panic,
    burst::ServiceAccount,
    certs::self_managed::{CA_SECRET_NAME, WEBHOOK_CONFIGURATION_NAME},
    eligibility::VirtualNode,
    identity::observation,
    kubernetes::{ManagedObject, ObjectKey, Store, Watch},
    reload::configuration::{ConfigReceiver, until},
    telemetry::CacheMetrics,
};

/// The cache of the controller. Its watches run until it is dropped.
pub(crate) struct Inventory {
    pub(super) client: Client,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    /// All nodes.
    pub(crate) nodes: watch::Receiver<Store<Node>>,
    /// All pods.
    pub(crate) pods: Arc<Pods>,
    /// Opted-in namespaces.
    pub(crate) opted_in: watch::Receiver<Store<Arc<OptedIn>>>,
    /// The pods for which the API server calls Spillway, according to the live webhook configuration.
    pub(crate) scope: watch::Receiver<Store<Scope>>,
    /// The resource version of the live webhook configuration.
    pub(crate) webhook_version: watch::Receiver<Store<String>>,
    /// The resource version of the CA Secret.
    pub(crate) secret_version: watch::Receiver<Store<String>>,
    /// Pods for which an autoscaler has announced a VM.
    pub(crate) scale_ups: watch::Receiver<ScaleUps>,
    /// For the identity checks.
    pub(super) service_accounts: watch::Receiver<Store<observation::ServiceAccount>>,
    pub(super) namespaces: watch::Receiver<Store<observation::Namespace>>,
    pub(super) webhooks: watch::Receiver<Store<observation::WebhookConfiguration>>,
    pub(super) v1_virtual_nodes: watch::Receiver<Store<()>>,
    _watches: JoinSet<()>,
}

impl Inventory {
    /// Starts the watches and returns immediately. `namespace` is the namespace of Spillway. Must be called within a
    /// tokio runtime.
    pub(crate) fn start(
        client: &Client,
        namespace: &str,
        configuration: &ConfigReceiver,
        metrics: &CacheMetrics,
    ) -> Self {
        let (publisher, mut tasks) = (admission_watch::Publisher::default(), JoinSet::new());
        let snapshot = publisher.subscribe();

        let (sink, nodes, v1_virtual_nodes) = pair();
        let watch: Watch<NodeObject> = admission_watch::watch(client, "nodes", "virtual nodes", metrics);
        watch.spawn(&mut tasks, node, sink);

        let (sink, opted_in, namespaces) = pair();
        let watch: Watch<ManagedObject<v1::Namespace>> =
            admission_watch::watch(client, "namespaces", "namespaces", metrics);
        watch.spawn(&mut tasks, |object| Some(namespace_parts(&object.metadata)), (publisher.namespaces(), sink));

        let (accounts, service_accounts) = watch::channel(Store::default());
        admission_watch::service_accounts(client, metrics).spawn_with_substitute(
            &mut tasks,
            |account| {
                let meta = &account.metadata;
                Some((Some(service_account(meta)), Some(observation::ServiceAccount::from(meta))))
            },
            |_| Some((Some(ServiceAccount::Unknown), None)),
            (publisher.service_accounts(), accounts),
        );

        admission_watch::follow_network_policies(client, metrics, &publisher, &mut tasks);

        let (sink, scope, webhook_version) = pair();
        let (configurations, webhooks) = watch::channel(Store::default());
        Watch::all(client, "mutatingwebhookconfigurations").spawn(
            &mut tasks,
            |object| Some(webhook_parts(object)),
            (configurations, sink),
        );

        let (versions, secret_version) = watch::channel(Store::default());
        let watch: Watch<PartialObjectMeta<v1::Secret>> = Watch::namespaced(client, "secrets", namespace);
        watch.named(CA_SECRET_NAME).spawn(&mut tasks, |secret| secret.metadata.resource_version, versions);

        let scale_ups = scale_up::start(client, metrics, &mut tasks);
        let pods = Arc::<Pods>::default();
        follow_pods(client, metrics, configuration, &nodes, &pods, &mut tasks);
        follow_virtual_nodes(configuration, &nodes, publisher, &mut tasks);
        Self {
            client: client.clone(),
            snapshot,
            nodes,
            pods,
            opted_in,
            scope,
            webhook_version,
            secret_version,
            scale_ups,
            service_accounts,
            namespaces,
            webhooks,
            v1_virtual_nodes,
            _watches: tasks,
        }
    }

    /// Returns the current snapshot.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// Returns the names of the caches that decisions need and whose initial list is not complete.
    pub(crate) fn unsynced(&self) -> Vec<&'static str> {
        self.snapshot.borrow().unsynced()
    }

    /// Returns the scope of the live webhook configuration. Returns `None` if it does not exist or is not in the cache.
    pub(crate) fn live_scope(&self) -> Option<Scope> {
        self.scope.borrow().get(&ObjectKey::cluster_scoped(WEBHOOK_CONFIGURATION_NAME)).cloned()
    }
}

type Pair<A, B> =
    ((watch::Sender<Store<A>>, watch::Sender<Store<B>>), watch::Receiver<Store<A>>, watch::Receiver<Store<B>>);

/// Creates two stores that one watch fills.
fn pair<A, B>() -> Pair<A, B> {
    let (a, b) = (watch::channel(Store::default()), watch::channel(Store::default()));
    ((a.0, b.0), a.1, b.1)
}

fn node(object: NodeObject) -> Option<(Option<Node>, Option<()>)> {
    let node = Node::read(object)?;
    let is_first_generation = node.is_first_generation();
    Some((Some(node), is_first_generation.then_some(())))
}

type NamespaceParts = (Option<Arc<Namespace>>, Option<(Option<Arc<OptedIn>>, Option<observation::Namespace>)>);

fn namespace_parts(meta: &ObjectMeta) -> NamespaceParts {
    let namespace = Namespace::opted_in(meta);
    let opted_in = namespace.as_ref().map(|namespace| Arc::new(OptedIn::read(namespace, meta)));
    (namespace, Some((opted_in, Some(observation::Namespace::from(meta)))))
}

type WebhookParts = (Option<observation::WebhookConfiguration>, Option<(Option<Scope>, Option<String>)>);

fn webhook_parts(configuration: MutatingWebhookConfiguration) -> WebhookParts {
    let seen = observation::WebhookConfiguration::from(&configuration);
    let own = (configuration.metadata.name.as_deref() == Some(WEBHOOK_CONFIGURATION_NAME)).then(|| {
        let version = configuration.metadata.resource_version.clone();
        (Some(Scope::read(configuration)), version)
    });
    (Some(seen), own)
}

fn follow_pods(
    client: &Client,
    metrics: &CacheMetrics,
    configuration: &ConfigReceiver,
    nodes: &watch::Receiver<Store<Node>>,
    pods: &Arc<Pods>,
    tasks: &mut JoinSet<()>,
) {
    let (client, configuration, nodes, pods) = (client.clone(), configuration.clone(), nodes.clone(), pods.clone());
    let metrics = metrics.clone();
    tasks.spawn(restart_on_panic(async move || pods.run(&client, &metrics, &configuration, nodes.clone()).await));
}

/// Publishes the nodes that the current configuration selects as the snapshot's virtual nodes.
fn follow_virtual_nodes(
    configuration: &ConfigReceiver,
    nodes: &watch::Receiver<Store<Node>>,
    publisher: admission_watch::Publisher,
    tasks: &mut JoinSet<()>,
) {
    let (configuration, nodes) = (configuration.clone(), nodes.clone());
    tasks.spawn(restart_on_panic(async move || {
        let mut nodes = nodes.clone();
        loop {
            let selector = configuration.borrow().virtual_nodes.selector.clone();
            let selected: Option<Vec<_>> = {
                let nodes = nodes.borrow_and_update();
                let all = nodes.values().filter(|node| node.is_virtual(&selector));
                let all = all.map(|node| VirtualNode::new(node.name.clone(), node.labels.clone())).collect();
                nodes.is_listed().then_some(all)
            };
            if let Some(selected) = selected {
                publisher.set_virtual_nodes(selected);
            }
            tokio::select! {
                changed = nodes.changed() => if changed.is_err() { return },
                () = until(&configuration, |now| now.virtual_nodes.selector != selector) => {}
            }
        }
    }));
}

/// Returns the Services of the webhooks that inject workload identity.
pub(super) fn services<'w>(
    webhooks: impl Iterator<Item = &'w observation::WebhookConfiguration>,
) -> BTreeSet<ObjectKey> {
    let webhooks = webhooks.flat_map(|configuration| &configuration.webhooks).filter(|webhook| webhook.wants_label);
    webhooks
        .filter_map(|webhook| webhook.service.as_ref().map(|service| ObjectKey::new(&service.namespace, &service.name)))
        .collect()
}
