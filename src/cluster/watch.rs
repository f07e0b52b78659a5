//! The watches that feed the snapshot: metadata only where that is enough, and of namespaces and nodes only those that matter.

use std::{fmt::Debug, sync::Arc};

use futures_util::StreamExt;
use k8s_openapi::api::{core::v1, networking::v1 as networking};
use kube::{
    Api, Client, Resource,
    api::{ObjectMeta, PartialObjectMeta},
    runtime::{
        WatchStreamExt,
        watcher::{Config, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::snapshot::{
    Snapshot, put_namespace, put_network_policy, put_node, put_service_account, remove_namespace,
    remove_network_policy, remove_node, remove_service_account,
};
use crate::config::{BURST_LABEL, DISABLED, Selector};

/// Objects in one page of a list. Small pages keep the peak of memory small.
const PAGE: u32 = 100;

type Publish = Arc<watch::Sender<Arc<Snapshot>>>;

/// Starts the watches; they end when the receiver is gone.
pub(super) fn follow(client: &Client, virtual_nodes: &Selector) -> watch::Receiver<Arc<Snapshot>> {
    let (publish, snapshot) = watch::channel(Arc::default());
    let publish = Arc::new(publish);
    let all = || Config::default().page_size(PAGE);
    let opted_in = all().labels(&format!("{BURST_LABEL},{BURST_LABEL}!={DISABLED}"));
    let virtual_only = all().labels(&String::from(virtual_nodes.clone()));

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
    tokio::spawn(namespaces.follow(Api::all(client.clone()), opted_in, publish.clone()));
    tokio::spawn(accounts.follow(Api::all(client.clone()), all(), publish.clone()));
    tokio::spawn(nodes.follow(Api::all(client.clone()), virtual_only, publish.clone()));
    tokio::spawn(policies.follow(Api::all(client.clone()), all(), publish));
    snapshot
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

impl<M: Default + Clone, K> Cache<M, K> {
    async fn follow(self, api: Api<K>, config: Config, publish: Publish)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let cache = self.name;
        let mut events = watcher(api, config).default_backoff().boxed();
        // What a list has brought so far. It replaces the old content only when it is complete.
        let mut listed = M::default();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = publish.closed() => return,
            };
            match event {
                None => return,
                Some(Err(error)) => {
                    tracing::warn!(cache, error = &error as &dyn std::error::Error, "watch interrupted, trying again");
                }
                Some(Ok(Event::Init)) => listed = M::default(),
                Some(Ok(Event::InitApply(object))) => (self.put)(&mut listed, object),
                Some(Ok(Event::InitDone)) => {
                    let complete = Arc::new(std::mem::take(&mut listed));
                    publish.send_modify(|snapshot| *(self.slot)(Arc::make_mut(snapshot)) = Some(complete));
                    tracing::debug!(cache, "cache filled");
                }
                Some(Ok(Event::Apply(object))) => self.change(&publish, |content| (self.put)(content, object)),
                Some(Ok(Event::Delete(object))) => self.change(&publish, |content| (self.remove)(content, &object)),
            }
        }
    }

    /// Changes the published content: in place while nobody else holds it, else a copy.
    fn change(&self, publish: &watch::Sender<Arc<Snapshot>>, change: impl FnOnce(&mut M)) {
        publish.send_modify(|snapshot| {
            let content = (self.slot)(Arc::make_mut(snapshot));
            change(Arc::make_mut(content.get_or_insert_default()));
        });
    }
}
