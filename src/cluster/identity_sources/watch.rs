//! A cluster as it changes, for the controller. Of each object, only what the checks read is kept from the moment that it arrives.

use std::collections::BTreeMap;

use futures_util::{StreamExt, future::join_all};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        watcher::{Config, Error as WatchError, Event, watcher},
    },
};
use tokio::{sync::watch, task::JoinSet};

use super::{
    ACCOUNTS, BINDINGS, Kind, Listed, NAMESPACES, NODES, Name, PODS, ROLES, WEBHOOKS,
    known::{Known, Listing},
    name, ready, refusal, slices_of,
};
use crate::{
    background::restart_on_panic,
    config,
    credentials::pages::PAGE,
    identity::{azure::Unread, seen::Cluster},
    telemetry::Causes,
};

/// A view of the cluster that follows it, until it is dropped.
#[derive(Debug)]
pub struct Following {
    known: watch::Receiver<Known>,
    _watches: JoinSet<()>,
}

impl Following {
    /// Starts to follow; returns at once. Of pods, those are kept that the settings cover. Service accounts are kept of all
    /// namespaces: whether a credential is for one that exists must be told in any case.
    ///
    /// Must be called within a tokio runtime.
    pub fn start(client: &Client, settings: &config::Identity) -> Self {
        let (publish, known) = watch::channel(Known::default());
        let keeper = Keeper { client: client.clone(), publish, settings: settings.clone() };
        let mut watches = JoinSet::new();
        watches.spawn(restart_on_panic(async move || {
            tokio::join!(
                keeper.keep(&ACCOUNTS),
                keeper.keep_pods(),
                keeper.keep(&NAMESPACES),
                keeper.keep(&NODES),
                keeper.keep(&WEBHOOKS),
                keeper.keep_endpoints(),
                keeper.keep_grants(),
            );
        }));
        Self { known, _watches: watches }
    }

    /// The kinds that have not arrived yet.
    pub fn pending(&self) -> Vec<&'static str> {
        self.known.borrow().pending()
    }

    /// What may not be read.
    pub fn refused(&self) -> Vec<Unread> {
        self.known.borrow().refused()
    }

    /// Whether it is known which virtual nodes there are.
    pub fn has_nodes(&self) -> bool {
        self.known.borrow().has_nodes()
    }

    /// What is known now.
    pub fn cluster(&self) -> Cluster {
        self.known.borrow().cluster()
    }

    /// Waits until something has changed that checks read, since the last call. Cancel safe.
    pub async fn changed(&mut self) {
        // The sender lives as long as the watches, and they as long as this.
        let _ = self.known.changed().await;
    }
}

/// What the watches share.
struct Keeper {
    client: Client,
    publish: watch::Sender<Known>,
    settings: config::Identity,
}

impl Keeper {
    /// Keeps all objects of a kind.
    async fn keep<O: Listed, V: PartialEq>(&self, kind: &Kind<O, V>) {
        let config = Config { label_selector: kind.labels.map(str::to_owned), ..pages() };
        let source = Source { plural: kind.plural, namespace: None, read: kind.read };
        self.follow(Api::all(self.client.clone()), config, source, |known| Some((kind.slot)(known))).await;
    }

    async fn keep_pods(&self) {
        let read = |pod: &_| (PODS.read)(pod).filter(|pod| self.settings.covers(&pod.namespace));
        let source = Source { plural: PODS.plural, namespace: None, read };
        self.follow(Api::all(self.client.clone()), pages(), source, |known| Some((PODS.slot)(known))).await;
    }

    /// Keeps the endpoints of the Services that the webhooks name, and of no other: a cluster has many, and they change all the time.
    async fn keep_endpoints(&self) {
        let mut known = self.publish.subscribe();
        loop {
            let services = known.borrow_and_update().services();
            self.publish.send_if_modified(|known| {
                known.endpoints.retain(|service, _| services.contains(service));
                for service in &services {
                    known.endpoints.entry(service.clone()).or_default();
                }
                false
            });
            let watches = async {
                join_all(services.iter().map(|service| self.keep_endpoints_of(service))).await;
                // Where there is no Service, nothing is to be followed.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = watches => {}
                _ = known.wait_for(|known| known.services() != services) => {}
            }
        }
    }

    async fn keep_endpoints_of(&self, service: &Name) {
        let (namespace, name) = service;
        let source = Source { plural: "endpointslices", namespace: Some(namespace), read: ready };
        let api = Api::namespaced(self.client.clone(), namespace);
        self.follow(api, pages().labels(&slices_of(name)), source, |known| known.endpoints.get_mut(service)).await;
    }

    /// Keeps who was granted what, from when it first matters.
    async fn keep_grants(&self) {
        let mut known = self.publish.subscribe();
        let _ = known.wait_for(Known::uses_bindings).await;
        drop(known);
        tokio::join!(self.keep(&ROLES), self.keep(&BINDINGS));
    }
}

fn pages() -> Config {
    Config::default().page_size(PAGE)
}

/// Where objects come from, and what is read of them.
struct Source<'s, R> {
    plural: &'static str,
    namespace: Option<&'s str>,
    read: R,
}

impl Keeper {
    /// Follows one kind for good.
    async fn follow<O: Listed, V: PartialEq>(
        &self,
        api: Api<O>,
        config: Config,
        Source { plural, namespace, read }: Source<'_, impl Fn(&O) -> Option<V>>,
        slot: impl Fn(&mut Known) -> Option<&mut Listing<V>>,
    ) {
        let change = |change: &mut dyn FnMut(&mut Listing<V>) -> bool| {
            self.publish.send_if_modified(|known| slot(known).is_some_and(&mut *change))
        };
        let mut events = std::pin::pin!(watcher(api, config).default_backoff());
        // What a list has brought so far. It replaces the old content only when it is complete.
        let mut listed = BTreeMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed = BTreeMap::new(),
                Ok(Event::InitApply(object)) => listed.extend(read(&object).map(|value| (name(&object), value))),
                Ok(Event::InitDone) => {
                    change(&mut |kept| kept.fill(std::mem::take(&mut listed)));
                }
                Ok(Event::Apply(object)) => {
                    change(&mut |kept| kept.put(name(&object), read(&object)));
                }
                Ok(Event::Delete(object)) => {
                    change(&mut |kept| kept.put(name(&object), None));
                }
                Err(error) => {
                    let refused = api_error(&error).and_then(|error| refusal(error, plural, namespace));
                    let is_news = refused.is_none_or(|unread| change(&mut |kept| kept.refuse(unread.clone())));
                    if is_news {
                        tracing::warn!(kind = plural, error = %Causes(&error), "watch interrupted, trying again");
                    }
                }
            }
        }
    }
}

/// The answer of the API server that is behind an interruption.
fn api_error(error: &WatchError) -> Option<&kube::Error> {
    match error {
        WatchError::InitialListFailed(error) | WatchError::WatchStartFailed(error) | WatchError::WatchFailed(error) => {
            Some(error)
        }
        WatchError::WatchError(_) | WatchError::NoResourceVersion => None,
    }
}
