//! The watches that feed the snapshot: metadata only where that is enough, and of namespaces and nodes only those that matter.

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::api::{core::v1, networking::v1 as networking};
use kube::{
    Api, Client, Resource,
    api::{ObjectMeta, PartialObjectMeta},
    runtime::{
        WatchStreamExt,
        utils::Backoff,
        watcher::{Config, DefaultBackoff, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::snapshot::{
    Snapshot, put_namespace, put_network_policy, put_node, put_service_account, remove_namespace,
    remove_network_policy, remove_node, remove_service_account,
};
use crate::{
    background::again_after_panic,
    config::{BURST_LABEL, DISABLED},
    eligibility::VirtualNode,
    reload::configuration::ConfigReceiver,
    telemetry::{CacheMetrics, Caches},
};

/// Objects in one page of a list. Small pages keep the peak of memory small.
const PAGE: u32 = 100;

/// The most time between two attempts at a watch. Until it is back, namespaces that opt in are not known and their pods are missed:
/// kube's own 30 s are long for that, and four watches of a few replicas are nothing to an API server.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// kube's pauses, which grow and are not the same for all, up to [`LONGEST_PAUSE`].
#[derive(Default)]
struct Pauses(DefaultBackoff);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause.min(LONGEST_PAUSE))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0.reset();
    }
}

type Publish = Arc<watch::Sender<Arc<Snapshot>>>;

/// Starts the watches; they end when the receiver is gone.
pub(super) fn follow(
    client: &Client,
    configuration: ConfigReceiver,
    metrics: &Caches,
) -> watch::Receiver<Arc<Snapshot>> {
    let (publish, snapshot) = watch::channel(Arc::default());
    let publish = Arc::new(publish);
    let all = || Config::default().page_size(PAGE);
    let opted_in = all().labels(&format!("{BURST_LABEL},{BURST_LABEL}!={DISABLED}"));

    let namespaces = Cache {
        name: "namespaces",
        put: |all, object| put_namespace(all, metadata::<v1::Namespace>(object)),
        remove: |all, object| remove_namespace(all, &object.metadata),
        slot: |snapshot| &mut snapshot.namespaces,
    };
    let accounts = Cache {
        name: "service accounts",
        put: |all, object| put_service_account(all, metadata::<v1::ServiceAccount>(object)),
        remove: |all, object| remove_service_account(all, &object.metadata),
        slot: |snapshot| &mut snapshot.service_accounts,
    };
    let nodes = Cache {
        name: "virtual nodes",
        put: |all, object| put_node(all, metadata::<v1::Node>(object)),
        remove: |all, object| remove_node(all, &object.metadata),
        slot: |snapshot| &mut snapshot.virtual_nodes,
    };
    let policies = Cache::<_, networking::NetworkPolicy> {
        name: "network policies",
        put: put_network_policy,
        remove: remove_network_policy,
        slot: |snapshot| &mut snapshot.network_policies,
    };
    let (namespaces, accounts) = (namespaces.with(client, &publish, metrics), accounts.with(client, &publish, metrics));
    let (nodes, policies) = (nodes.with(client, &publish, metrics), policies.with(client, &publish, metrics));
    tokio::spawn(again_after_panic(async move || namespaces.follow(opted_in.clone()).await));
    tokio::spawn(again_after_panic(async move || accounts.follow(all()).await));
    tokio::spawn(again_after_panic(async move || policies.follow(all()).await));
    tokio::spawn(again_after_panic(async move || follow_virtual_nodes(&nodes, configuration.clone()).await));
    snapshot
}

/// Follows the nodes that the configuration in force selects. What is known of the others stays until the new list is complete.
async fn follow_virtual_nodes(
    nodes: &Following<Vec<VirtualNode>, PartialObjectMeta<v1::Node>>,
    mut configuration: ConfigReceiver,
) {
    loop {
        let selector = configuration.borrow_and_update().virtual_nodes.selector.clone();
        let selected = Config::default().page_size(PAGE).labels(&String::from(selector.clone()));
        let another = async {
            // Without anyone who could change the configuration, it stays as it is.
            if configuration.wait_for(|now| now.virtual_nodes.selector != selector).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = nodes.follow(selected) => return,
            () = another => tracing::info!("virtual nodes are selected by another label now, listing them anew"),
        }
    }
}

fn metadata<K>(object: PartialObjectMeta<K>) -> ObjectMeta {
    object.metadata
}

/// How one kind of object is kept in the snapshot.
struct Cache<M, K> {
    name: &'static str,
    put: fn(&mut M, K),
    remove: fn(&mut M, &K),
    slot: fn(&mut Snapshot) -> &mut Option<Arc<M>>,
}

/// The same with where it comes from and goes to.
struct Following<M, K> {
    cache: Cache<M, K>,
    api: Api<K>,
    publish: Publish,
    metrics: CacheMetrics,
}

impl<M, K: Resource<DynamicType = ()>> Cache<M, K> {
    fn with(self, client: &Client, publish: &Publish, metrics: &Caches) -> Following<M, K> {
        let metrics = metrics.of(self.name);
        Following { cache: self, api: Api::all(client.clone()), publish: publish.clone(), metrics }
    }
}

impl<M, K> Following<M, K>
where
    M: Default + Clone,
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    /// Follows what this selects, until nobody wants the snapshot any more.
    async fn follow(&self, config: Config) {
        let Cache { name, put, remove, .. } = &self.cache;
        let mut events = watcher(self.api.clone(), config).backoff(Pauses::default()).boxed();
        // What a list has brought so far. It replaces the old content only when it is complete.
        let mut listed = M::default();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = self.publish.closed() => return,
            };
            match event {
                None => return,
                Some(Err(error)) => {
                    self.metrics.interrupted();
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(cache = name, error, "watch interrupted, trying again");
                }
                Some(Ok(Event::Init)) => listed = M::default(),
                Some(Ok(Event::InitApply(object))) => put(&mut listed, object),
                Some(Ok(Event::InitDone)) => {
                    self.fill(Arc::new(std::mem::take(&mut listed)));
                    self.metrics.filled();
                    tracing::debug!(cache = name, "cache filled");
                }
                Some(Ok(Event::Apply(object))) => self.change(|content| put(content, object)),
                Some(Ok(Event::Delete(object))) => self.change(|content| remove(content, &object)),
            }
        }
    }

    fn fill(&self, complete: Arc<M>) {
        self.publish.send_modify(|snapshot| *(self.cache.slot)(Arc::make_mut(snapshot)) = Some(complete));
    }

    /// Changes the published content: in place while nobody else holds it, else a copy.
    fn change(&self, change: impl FnOnce(&mut M)) {
        self.metrics.heard();
        self.publish.send_modify(|snapshot| {
            let content = (self.cache.slot)(Arc::make_mut(snapshot));
            change(Arc::make_mut(content.get_or_insert_default()));
        });
    }
}
