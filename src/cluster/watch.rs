//! The watches of a process that serves admission, and how watches feed the snapshot: of namespaces and nodes only those that matter, and
//! metadata only where that is enough.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::{core::v1, networking::v1 as networking};
use kube::{Client, Resource, api::PartialObjectMeta};
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
    kubernetes::{Object, ObjectKey, Refusal, Sink, Watch},
    reload::configuration::{ConfigReceiver, until},
    telemetry::Caches,
};

/// Objects in one page of a list. Small pages keep the peak of memory small.
const PAGE: u32 = 100;

/// The most time between two attempts at a watch. Until it is back, namespaces that opt in are not known and their pods are missed:
/// kube's own 30 s are long for that, and a few watches of a few replicas are nothing to an API server.
pub(super) const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Publishes the snapshot.
#[derive(Debug, Clone, Default)]
pub(super) struct Publisher(Arc<watch::Sender<Arc<Snapshot>>>);

/// Puts the objects of one kind into the snapshot. What the API server refuses changes nothing: decisions go on with what is known.
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

    /// Replaces the virtual nodes, if they are others than before.
    pub(super) fn set_virtual_nodes(&self, nodes: Vec<VirtualNode>) {
        self.0.send_if_modified(|snapshot| {
            let is_news = snapshot.virtual_nodes.as_deref() != Some(&nodes);
            if is_news {
                Arc::make_mut(snapshot).virtual_nodes = Some(Arc::new(nodes));
            }
            is_news
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

    /// Changes the published content: in place while nothing else holds it, else a copy.
    fn apply(&self, key: ObjectKey, value: Option<V>) {
        self.publisher.0.send_modify(|snapshot| {
            let content = (self.cache)(Arc::make_mut(snapshot));
            (self.put)(Arc::make_mut(content.get_or_insert_default()), &key, value);
        });
    }

    fn refuse(&self, _: Refusal) {}
}

/// The watch of all service accounts, of which metadata is decoded.
pub(super) fn service_accounts(client: &Client, metrics: &Caches) -> Watch<PartialObjectMeta<v1::ServiceAccount>> {
    watch(client, "serviceaccounts", "service accounts", metrics)
}

/// The watch of all network policies.
pub(super) fn network_policies(client: &Client, metrics: &Caches) -> Watch<networking::NetworkPolicy> {
    watch(client, "networkpolicies", "network policies", metrics)
}

/// A watch that decisions rest on. `cache` is its name in metrics.
pub(super) fn watch<K: Object + Resource<DynamicType = ()>>(
    client: &Client,
    resource: &'static str,
    cache: &'static str,
    metrics: &Caches,
) -> Watch<K> {
    Watch::all(client, resource).page_size(PAGE).max_backoff(MAX_BACKOFF).metrics(metrics.of(cache))
}

/// Starts the watches of a process that serves admission.
pub(super) fn start(
    client: &Client,
    configuration: ConfigReceiver,
    metrics: &Caches,
) -> (watch::Receiver<Arc<Snapshot>>, JoinSet<()>) {
    let (publisher, mut tasks) = (Publisher::default(), JoinSet::new());
    let namespaces: Watch<PartialObjectMeta<v1::Namespace>> = watch(client, "namespaces", "namespaces", metrics);
    namespaces.labels(&format!("{BURST_LABEL},{BURST_LABEL}!={DISABLED}")).spawn(
        &mut tasks,
        |object| Namespace::opted_in(&object.metadata),
        publisher.namespaces(),
    );
    service_accounts(client, metrics).spawn(
        &mut tasks,
        |object| Some(service_account(&object.metadata)),
        publisher.service_accounts(),
    );
    network_policies(client, metrics).spawn(&mut tasks, network_policy, publisher.network_policies());
    let nodes: Watch<PartialObjectMeta<v1::Node>> = watch(client, "nodes", "virtual nodes", metrics);
    let sink = publisher.virtual_nodes();
    tasks.spawn(restart_on_panic(async move || follow_virtual_nodes(&nodes, &configuration, &sink).await));
    (publisher.subscribe(), tasks)
}

/// Follows the nodes that the configuration in force selects. The others stay in the snapshot until the new list is complete.
async fn follow_virtual_nodes(
    nodes: &Watch<PartialObjectMeta<v1::Node>>,
    configuration: &ConfigReceiver,
    sink: &impl Sink<VirtualNode>,
) {
    loop {
        let selector = configuration.borrow().virtual_nodes.selector.clone();
        let selected = nodes.clone().labels(&String::from(selector.clone()));
        tokio::select! {
            () = selected.run(|node| virtual_node(node.metadata), sink) => {}
            () = until(configuration, |now| now.virtual_nodes.selector != selector) => {
                tracing::info!("virtual nodes have another label now, listing them again");
            }
        }
    }
}
