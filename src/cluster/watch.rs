//! The watches that feed the snapshot: metadata only, and of namespaces only those that opted in.

use std::{fmt::Debug, sync::Arc};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1;
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

use super::snapshot::{Snapshot, put_namespace, put_service_account, remove_namespace, remove_service_account};
use crate::config::{BURST_LABEL, DISABLED};

/// Objects in one page of a list. Small pages keep the peak of memory small.
const PAGE: u32 = 100;

/// Starts the watches; they end when the receiver is gone.
pub(super) fn follow(client: &Client) -> watch::Receiver<Arc<Snapshot>> {
    let (publish, snapshot) = watch::channel(Arc::default());
    let publish = Arc::new(publish);
    let opted_in = Config::default().labels(&format!("{BURST_LABEL},{BURST_LABEL}!={DISABLED}")).page_size(PAGE);
    let namespaces: Api<PartialObjectMeta<v1::Namespace>> = Api::all(client.clone());
    tokio::spawn(run(
        namespaces,
        opted_in,
        publish.clone(),
        Cache { name: "namespaces", put: put_namespace, remove: remove_namespace, slot: |s| &mut s.namespaces },
    ));
    let accounts: Api<PartialObjectMeta<v1::ServiceAccount>> = Api::all(client.clone());
    tokio::spawn(run(
        accounts,
        Config::default().page_size(PAGE),
        publish,
        Cache {
            name: "service accounts",
            put: put_service_account,
            remove: remove_service_account,
            slot: |s| &mut s.service_accounts,
        },
    ));
    snapshot
}

/// How one kind of object is kept in the snapshot.
struct Cache<M> {
    name: &'static str,
    put: fn(&mut M, ObjectMeta),
    remove: fn(&mut M, &ObjectMeta),
    slot: fn(&mut Snapshot) -> &mut Option<Arc<M>>,
}

async fn run<K, M>(
    api: Api<PartialObjectMeta<K>>,
    config: Config,
    publish: Arc<watch::Sender<Arc<Snapshot>>>,
    cache: Cache<M>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    M: Default + Clone,
{
    let mut events = watcher(api, config).default_backoff().boxed();
    // What a list has brought so far. It replaces the old map only when it is complete.
    let mut listed = M::default();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = publish.closed() => return,
        };
        match event {
            None => return,
            Some(Err(error)) => {
                tracing::warn!(
                    cache = cache.name,
                    error = &error as &dyn std::error::Error,
                    "watch interrupted, trying again"
                );
            }
            Some(Ok(Event::Init)) => listed = M::default(),
            Some(Ok(Event::InitApply(object))) => (cache.put)(&mut listed, object.metadata),
            Some(Ok(Event::InitDone)) => {
                let complete = Arc::new(std::mem::take(&mut listed));
                publish.send_modify(|snapshot| *(cache.slot)(Arc::make_mut(snapshot)) = Some(complete));
                tracing::debug!(cache = cache.name, "cache filled");
            }
            Some(Ok(Event::Apply(object))) => cache.change(&publish, |map| (cache.put)(map, object.metadata)),
            Some(Ok(Event::Delete(object))) => cache.change(&publish, |map| (cache.remove)(map, &object.metadata)),
        }
    }
}

impl<M: Default + Clone> Cache<M> {
    /// Changes the published map: in place while nobody else holds it, else a copy.
    fn change(&self, publish: &watch::Sender<Arc<Snapshot>>, change: impl FnOnce(&mut M)) {
        publish.send_modify(|snapshot| {
            let map = (self.slot)(Arc::make_mut(snapshot));
            change(Arc::make_mut(map.get_or_insert_default()));
        });
    }
}
