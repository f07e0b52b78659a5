//! The watches of the webhook, and the sinks that put their objects into the snapshot.
//!
//! Selectors limit the watches of namespaces and nodes. Every watch decodes only the fields that Spillway reads.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{core::v1, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{Client, Resource};
use serde::{Deserialize, de::IgnoredAny};
use tokio::{sync::watch, task::JoinSet};

use super::snapshot::{
    Namespace, Snapshot, network_policy, put_namespace, put_network_policy, put_node, put_service_account,
    service_account, virtual_node,
};
use crate::{
    background::restart_on_panic,
    burst::ServiceAccount,
    config::{BURST_LABEL, DISABLED},
    eligibility::{NetworkPolicy, VirtualNode},
    kubernetes::{Object, ObjectKey, PartialObject, Refusal, Sink, Watch},
    reload::configuration::{ConfigReceiver, until},
    telemetry::CacheMetrics,
};

/// Number of objects in one page of a list. A whole page is in memory, and any user may create objects of 1.5 MB, the
/// maximum of etcd.
pub(super) const PAGE: u32 = 25;

/// Maximum backoff between two attempts to start a watch. During an interruption, the webhook does not know namespaces
/// that opt in, and misses their pods. kube's default of 30 s is too long for that. A few watches with a short backoff
/// do not load the API server.
pub(super) const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Publishes the snapshot.
#[derive(Debug, Clone, Default)]
pub(super) struct Publisher(Arc<watch::Sender<Arc<Snapshot>>>);

/// Puts the objects of one kind into the snapshot. If the API server forbids the list, the snapshot stays unchanged, and
/// decisions use the last known objects.
pub(super) struct SnapshotSink<C, V> {
    publisher: Publisher,
    cache: fn(&mut Snapshot) -> &mut Option<Arc<C>>,
    put: fn(&mut C, &ObjectKey, Option<V>),
}

impl Publisher {
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.subscribe()
    }

    pub(super) fn namespaces(&self) -> impl Sink<Arc<Namespace>> + Send + Sync + use<> {
        SnapshotSink { publisher: self.clone(), cache: |snapshot| &mut snapshot.namespaces, put: put_namespace }
    }

    pub(super) fn service_accounts(&self) -> impl Sink<ServiceAccount> + Send + Sync + use<> {
        SnapshotSink {
            publisher: self.clone(),
            cache: |snapshot| &mut snapshot.service_accounts,
            put: put_service_account,
        }
    }

    pub(super) fn virtual_nodes(&self) -> impl Sink<VirtualNode> + Send + Sync + use<> {
        SnapshotSink { publisher: self.clone(), cache: |snapshot| &mut snapshot.virtual_nodes, put: put_node }
    }

    pub(super) fn network_policies(&self) -> impl Sink<NetworkPolicy> + Send + Sync + use<> {
        SnapshotSink {
            publisher: self.clone(),
            cache: |snapshot| &mut snapshot.network_policies,
            put: put_network_policy,
        }
    }

    /// Replaces the virtual nodes if they differ.
    pub(super) fn set_virtual_nodes(&self, nodes: Vec<VirtualNode>) {
        self.0.send_if_modified(|snapshot| {
            let is_changed = snapshot.virtual_nodes.as_deref() != Some(&nodes);
            if is_changed {
                Arc::make_mut(snapshot).virtual_nodes = Some(Arc::new(nodes));
            }
            is_changed
        });
    }
}

impl<C: Default + Clone, V> Sink<V> for SnapshotSink<C, V> {
    fn replace(&self, all: BTreeMap<ObjectKey, V>) {
        let mut complete = C::default();
        for (key, value) in all {
            (self.put)(&mut complete, &key, Some(value));
        }
        let complete = Arc::new(complete);
        self.publisher.0.send_modify(|snapshot| *(self.cache)(Arc::make_mut(snapshot)) = Some(complete));
    }

    /// Changes the snapshot in place if no reader holds it, and otherwise a copy.
    fn apply(&self, key: ObjectKey, value: Option<V>) {
        self.publisher.0.send_modify(|snapshot| {
            let content = (self.cache)(Arc::make_mut(snapshot));
            (self.put)(Arc::make_mut(content.get_or_insert_default()), &key, value);
        });
    }

    fn refuse(&self, _: Refusal) {}
}

/// The metadata of an object of kind `K`.
type MetadataOf<K> = PartialObject<K, IgnoredAny, IgnoredAny>;

/// Returns a watch of the metadata of all service accounts.
pub(super) fn service_accounts(client: &Client, metrics: &CacheMetrics) -> Watch<MetadataOf<v1::ServiceAccount>> {
    watch(client, "serviceaccounts", "service accounts", metrics)
}

/// A NetworkPolicy of the API.
type NetworkPolicyObject = PartialObject<networking::NetworkPolicy, NetworkPolicySpec, IgnoredAny>;

/// The field of a NetworkPolicy's `spec` that Spillway reads.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetworkPolicySpec {
    pod_selector: Option<LabelSelector>,
}

/// Returns a watch that decisions need. `cache` is its name in metrics.
pub(super) fn watch<K: Object + Resource<DynamicType = ()>>(
    client: &Client,
    resource: &'static str,
    cache: &'static str,
    metrics: &CacheMetrics,
) -> Watch<K> {
    let watch = Watch::all(client, resource).page_size(PAGE).max_backoff(MAX_BACKOFF);
    watch.metrics(metrics.for_cache(cache)).count_undecodable(metrics)
}

/// Starts the watch of NetworkPolicies. A policy that cannot be decoded counts as one that selects every pod.
pub(super) fn follow_network_policies(
    client: &Client,
    metrics: &CacheMetrics,
    publisher: &Publisher,
    tasks: &mut JoinSet<()>,
) {
    let policies: Watch<NetworkPolicyObject> = watch(client, "networkpolicies", "network policies", metrics);
    policies.spawn_with_substitute(
        tasks,
        |object| Some(network_policy(object.metadata.name?, object.spec.pod_selector.unwrap_or_default())),
        |key| Some(network_policy(key.name.clone(), LabelSelector::default())),
        publisher.network_policies(),
    );
}

/// Starts the watches of the webhook.
pub(super) fn start(
    client: &Client,
    configuration: ConfigReceiver,
    metrics: &CacheMetrics,
) -> (watch::Receiver<Arc<Snapshot>>, JoinSet<()>) {
    let (publisher, mut tasks) = (Publisher::default(), JoinSet::new());
    let namespaces: Watch<MetadataOf<v1::Namespace>> = watch(client, "namespaces", "namespaces", metrics);
    namespaces.labels(&format!("{BURST_LABEL},{BURST_LABEL}!={DISABLED}")).spawn(
        &mut tasks,
        |object| Namespace::opted_in(&object.metadata),
        publisher.namespaces(),
    );
    service_accounts(client, metrics).spawn_with_substitute(
        &mut tasks,
        |object| Some(service_account(&object.metadata)),
        |_| Some(ServiceAccount::Unknown),
        publisher.service_accounts(),
    );
    follow_network_policies(client, metrics, &publisher, &mut tasks);
    let nodes: Watch<MetadataOf<v1::Node>> = watch(client, "nodes", "virtual nodes", metrics);
    let sink = publisher.virtual_nodes();
    tasks.spawn(restart_on_panic(async move || follow_virtual_nodes(&nodes, &configuration, &sink).await));
    (publisher.subscribe(), tasks)
}

/// Watches the nodes that the current configuration selects. After a change of the selector, the snapshot keeps the old
/// nodes until the new list is complete.
async fn follow_virtual_nodes(
    nodes: &Watch<MetadataOf<v1::Node>>,
    configuration: &ConfigReceiver,
    sink: &impl Sink<VirtualNode>,
) {
    loop {
        let selector = configuration.borrow().virtual_nodes.selector.clone();
        let selected = nodes.clone().labels(&String::from(selector.clone()));
        tokio::select! {
            () = selected.run(|node| virtual_node(node.metadata), sink) => {}
            () = until(configuration, |now| now.virtual_nodes.selector != selector) => {
                tracing::info!("virtualNodes.selector changed, listing virtual nodes again");
            }
        }
    }
}
