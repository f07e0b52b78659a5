//! The watch loop: lists the objects of a kind, follows their changes, and publishes what is kept of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use kube::{
    Api, Client, Resource,
    core::NamespaceResourceScope,
    runtime::{
        utils::Backoff,
        watcher::{Config, DefaultBackoff, Error as WatchError, Event, watcher},
    },
};
use tokio::{sync::watch, task::JoinSet, time};

use super::{Object, ObjectKey, PAGE, Refusal, Store};
use crate::{
    background::restart_on_panic,
    telemetry::{CacheMetrics, Causes},
};

/// Takes what a watch brings.
pub(crate) trait Sink<V> {
    /// A complete list has arrived: it replaces everything.
    fn replace(&self, all: BTreeMap<ObjectKey, V>);

    /// An object came or changed, or, without a value, went or no longer counts.
    fn apply(&self, key: ObjectKey, value: Option<V>);

    /// The API server forbids the list.
    fn refuse(&self, refusal: Refusal);
}

/// Only news is published.
impl<V: PartialEq> Sink<V> for watch::Sender<Store<V>> {
    fn replace(&self, all: BTreeMap<ObjectKey, V>) {
        self.send_if_modified(|store| store.replace(all));
    }

    fn apply(&self, key: ObjectKey, value: Option<V>) {
        self.send_if_modified(|store| store.put(key, value));
    }

    fn refuse(&self, refusal: Refusal) {
        self.send_if_modified(|store| store.refuse(refusal));
    }
}

/// Nothing is kept: each list and each change is a signal.
impl<V> Sink<V> for Arc<watch::Sender<()>> {
    fn replace(&self, _: BTreeMap<ObjectKey, V>) {
        self.send_replace(());
    }

    fn apply(&self, _: ObjectKey, _: Option<V>) {
        self.send_replace(());
    }

    fn refuse(&self, _: Refusal) {}
}

/// Two sinks, each with its part of what is kept.
impl<A, B, SinkA: Sink<A>, SinkB: Sink<B>> Sink<(Option<A>, Option<B>)> for (SinkA, SinkB) {
    fn replace(&self, all: BTreeMap<ObjectKey, (Option<A>, Option<B>)>) {
        let (mut of_a, mut of_b) = (BTreeMap::new(), BTreeMap::new());
        for (key, (a, b)) in all {
            of_a.extend(a.map(|a| (key.clone(), a)));
            of_b.extend(b.map(|b| (key, b)));
        }
        self.0.replace(of_a);
        self.1.replace(of_b);
    }

    fn apply(&self, key: ObjectKey, value: Option<(Option<A>, Option<B>)>) {
        let (a, b) = value.unwrap_or_default();
        self.0.apply(key.clone(), a);
        self.1.apply(key, b);
    }

    fn refuse(&self, refusal: Refusal) {
        self.0.refuse(refusal.clone());
        self.1.refuse(refusal);
    }
}

/// A watch of the objects of one kind, or of a part of them.
#[derive(Debug, Clone)]
pub(crate) struct Watch<K> {
    api: Api<K>,
    config: Config,
    /// The resource in the plural, as RBAC spells it.
    resource: &'static str,
    namespace: Option<String>,
    metrics: Option<CacheMetrics>,
    max_backoff: Option<Duration>,
}

impl<K: Object> Watch<K> {
    /// A watch of all objects of the cluster.
    pub(crate) fn all(client: &Client, resource: &'static str) -> Self
    where
        K: Resource<DynamicType = ()>,
    {
        Self::of(Api::all(client.clone()), resource, None)
    }

    /// A watch of the objects of one namespace.
    pub(crate) fn namespaced(client: &Client, resource: &'static str, namespace: &str) -> Self
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Self::of(Api::namespaced(client.clone(), namespace), resource, Some(namespace.to_owned()))
    }

    /// A watch of what `api` lists, in this namespace if there is one.
    pub(crate) fn of(api: Api<K>, resource: &'static str, namespace: Option<String>) -> Self {
        let config = Config::default().page_size(PAGE);
        Self { api, config, resource, namespace, metrics: None, max_backoff: None }
    }

    /// Restricts it to objects with these labels.
    pub(crate) fn labels(mut self, selector: &str) -> Self {
        self.config = self.config.labels(selector);
        self
    }

    /// Restricts it to objects with these fields.
    pub(crate) fn fields(mut self, selector: &str) -> Self {
        self.config = self.config.fields(selector);
        self
    }

    /// Restricts it to one object.
    pub(crate) fn named(self, name: &str) -> Self {
        self.fields(&format!("metadata.name={name}"))
    }

    /// Sets how many objects are in one page of a list.
    pub(crate) fn page_size(mut self, objects: u32) -> Self {
        self.config = self.config.page_size(objects);
        self
    }

    /// Counts what happens to it.
    pub(crate) fn metrics(mut self, metrics: CacheMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Bounds the time between two attempts at the watch.
    pub(crate) fn max_backoff(mut self, longest: Duration) -> Self {
        self.max_backoff = Some(longest);
        self
    }

    /// Runs as a task. Starts over after a panic: a store without its watch would grow old in silence.
    pub(crate) fn spawn<V: Send + 'static>(
        self,
        tasks: &mut JoinSet<()>,
        reduce: impl Fn(K) -> Option<V> + Send + Sync + 'static,
        sink: impl Sink<V> + Send + Sync + 'static,
    ) {
        tasks.spawn(restart_on_panic(async move || self.run(&reduce, &sink).await));
    }

    /// Publishes what `reduce` leaves of each object, as long as it is polled. Objects of which nothing is left do not count. A new list
    /// replaces the old one only when it is complete.
    pub(crate) async fn run<V>(&self, reduce: impl Fn(K) -> Option<V>, sink: &impl Sink<V>) {
        let mut backoff = WatchBackoff { inner: DefaultBackoff::default(), longest: self.max_backoff };
        let mut reported = Reported::default();
        loop {
            let mut events = std::pin::pin!(watcher(self.api.clone(), self.config.clone()));
            let mut listed = BTreeMap::new();
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        backoff.reset();
                        if self.take(event, &mut listed, &reduce, sink) {
                            reported.recovered();
                        }
                    }
                    Err(error) => {
                        let refusal = self.interrupted(&error, &mut reported);
                        let is_refused = refusal.is_some();
                        if let Some(refusal) = refusal {
                            sink.refuse(refusal);
                        }
                        time::sleep(backoff.next()).await;
                        if is_refused {
                            // What was kept is given up: only another list brings it back.
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Returns whether the watch works again.
    fn take<V>(
        &self,
        event: Event<K>,
        listed: &mut BTreeMap<ObjectKey, V>,
        reduce: impl Fn(K) -> Option<V>,
        sink: &impl Sink<V>,
    ) -> bool {
        let metrics = self.metrics.as_ref();
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => {
                let key = ObjectKey::of(&object);
                listed.extend(reduce(object).map(|value| (key, value)));
            }
            Event::InitDone => {
                sink.replace(std::mem::take(listed));
                metrics.inspect(|metrics| metrics.filled());
                tracing::debug!(resource = self.resource, "listed");
                return true;
            }
            Event::Apply(object) => {
                metrics.inspect(|metrics| metrics.heard());
                sink.apply(ObjectKey::of(&object), reduce(object));
                return true;
            }
            Event::Delete(object) => {
                metrics.inspect(|metrics| metrics.heard());
                sink.apply(ObjectKey::of(&object), None);
                return true;
            }
        }
        false
    }

    /// Reports an interruption once, and returns the refusal that it stands for.
    fn interrupted(&self, error: &WatchError, reported: &mut Reported) -> Option<Refusal> {
        if let Some(metrics) = &self.metrics {
            metrics.interrupted();
        }
        let causes = Causes(error).to_string();
        if reported.is_news(&causes) {
            tracing::warn!(resource = self.resource, error = causes, "watch interrupted, trying again");
        }
        let error = match error {
            WatchError::InitialListFailed(error)
            | WatchError::WatchStartFailed(error)
            | WatchError::WatchFailed(error) => error,
            WatchError::WatchError(_) | WatchError::NoResourceVersion => return None,
        };
        Refusal::of(error, self.resource, self.namespace.as_deref())
    }
}

/// kube's backoff, which grows and is not the same for all, up to a time that may be shorter than kube's own. As in kube's streams, each
/// event resets it, and one comes before each list: a list that fails is tried again after the shortest time.
struct WatchBackoff {
    inner: DefaultBackoff,
    longest: Option<Duration>,
}

impl WatchBackoff {
    fn next(&mut self) -> Duration {
        // kube's never gives up.
        let pause = self.inner.next().unwrap_or(Duration::from_secs(30));
        self.longest.map_or(pause, |longest| pause.min(longest))
    }

    fn reset(&mut self) {
        self.inner.reset();
    }
}

/// The interruption that was reported last.
#[derive(Default)]
struct Reported(Option<String>);

impl Reported {
    fn is_news(&mut self, error: &str) -> bool {
        let is_news = self.0.as_deref() != Some(error);
        if is_news {
            self.0 = Some(error.to_owned());
        }
        is_news
    }

    fn recovered(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use serde_json::{Value, json};
    use tokio::time::timeout;

    use super::{super::testing::FakeApi, *};
    use crate::telemetry;

    const NODES: &str = "/api/v1/nodes";

    fn node(name: &str, label: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {"l": label}}})
    }

    /// The labels of nodes by name, as a watch keeps them. Nodes without a label do not count.
    fn follow(
        api: &FakeApi,
        change: impl FnOnce(Watch<Node>) -> Watch<Node>,
    ) -> (watch::Receiver<Store<String>>, JoinSet<()>) {
        let (publish, store) = watch::channel(Store::default());
        let mut tasks = JoinSet::new();
        let label = |node: Node| node.metadata.labels?.remove("l").filter(|label| !label.is_empty());
        change(Watch::all(&api.client(), "nodes")).spawn(&mut tasks, label, publish);
        (store, tasks)
    }

    async fn until(store: &mut watch::Receiver<Store<String>>, expected: &[(&str, &str)]) {
        let is_met = |store: &Store<String>| {
            store.is_listed() && store.iter().map(|(key, label)| (&*key.name, &**label)).eq(expected.iter().copied())
        };
        let met = timeout(Duration::from_secs(600), store.wait_for(is_met)).await;
        assert!(met.is_ok(), "{expected:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_follows_what_comes_changes_and_goes() {
        let api = FakeApi::default();
        api.apply(NODES, node("a", "1"));
        api.apply(NODES, node("b", ""));
        let (mut store, _tasks) = follow(&api, |watch| watch);
        assert!(store.borrow().is_pending());
        until(&mut store, &[("a", "1")]).await;
        api.apply(NODES, node("b", "2"));
        until(&mut store, &[("a", "1"), ("b", "2")]).await;
        api.apply(NODES, node("a", ""));
        until(&mut store, &[("b", "2")]).await;
        api.delete(NODES, node("b", "2"));
        until(&mut store, &[]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_comes_with_each_list_and_each_change() {
        let (api, mut tasks) = (FakeApi::default(), JoinSet::new());
        let (signal, mut changes) = watch::channel(());
        Watch::<Node>::all(&api.client(), "nodes").spawn(&mut tasks, |_| Some(()), Arc::new(signal));
        let mut signalled = async || timeout(Duration::from_secs(60), changes.changed()).await.is_ok();
        assert!(signalled().await, "the list");
        assert!(!signalled().await);
        api.apply(NODES, node("a", "1"));
        assert!(signalled().await, "a node");
        api.delete(NODES, node("a", "1"));
        assert!(signalled().await, "no node");
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_api_server_forbids_is_refused_until_it_can_be_listed_again() {
        let api = FakeApi::default();
        api.apply(NODES, node("a", "1"));
        api.forbid(NODES, true);
        let mut registry = telemetry::registry();
        let metrics = telemetry::Caches::new(&mut registry).of("namespaces");
        let (mut store, _tasks) = follow(&api, |watch| watch.metrics(metrics));
        let refusal = Refusal { status: "403 Forbidden".to_owned(), resource: "nodes", namespace: None };
        store.wait_for(|store| store.refusal() == Some(&refusal)).await.unwrap();
        api.forbid(NODES, false);
        until(&mut store, &[("a", "1")]).await;

        // The right is lost while the watch runs: what comes back is a list, not what was missed.
        api.forbid(NODES, true);
        api.end_watches(NODES);
        store.wait_for(|store| store.refusal().is_some()).await.unwrap();
        api.apply(NODES, node("a", "2"));
        api.forbid(NODES, false);
        until(&mut store, &[("a", "2")]).await;
        let text = telemetry::encode(&registry);
        assert!(text.contains(r#"spillway_cache_synced{cache="namespaces"} 1"#), "{text}");
        assert!(!text.contains(r#"watch_errors_total{cache="namespaces"} 0"#), "{text}");
    }

    #[test]
    fn the_backoff_grows_up_to_its_bound() {
        let longest = |longest: Option<Duration>| {
            let mut backoff = WatchBackoff { inner: DefaultBackoff::default(), longest };
            (0..20).map(|_| backoff.next()).max().unwrap()
        };
        let bound = Duration::from_secs(5);
        assert_eq!(longest(Some(bound)), bound);
        assert!(longest(None) > bound);
    }

    #[test]
    fn an_interruption_is_reported_once_until_the_watch_works_again() {
        let mut reported = Reported::default();
        assert!(reported.is_news("down") && !reported.is_news("down") && reported.is_news("forbidden"));
        reported.recovered();
        assert!(reported.is_news("forbidden"));
    }
}
