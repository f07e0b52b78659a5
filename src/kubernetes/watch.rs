//! The watch loop: lists the objects of a kind, receives their changes, and publishes the reduced objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use kube::{
    Api, Client, Resource,
    core::NamespaceResourceScope,
    runtime::{
        utils::Backoff,
        watcher::{
            Config, DefaultBackoff, Error as WatchError, Event,
            InitialListStrategy::{ListWatch, StreamingList},
            watcher,
        },
    },
};
use tokio::{sync::watch, task::JoinSet, time};

use super::{
    decoded::Decoded,
    object::{Object, PAGE_SIZE},
    store::{ObjectKey, Refusal, Store},
    undecodable::Undecodable,
};
use crate::{
    background::restart_on_panic,
    telemetry::{CacheMetrics, Causes, UndecodableObjects, WatchMetrics},
};

/// Receives the objects of a watch.
pub(crate) trait Sink<V> {
    /// Replaces all objects with a complete list.
    fn replace(&self, all: BTreeMap<ObjectKey, V>);

    /// Stores a new or changed object. `None` means that the object was deleted or is no longer kept.
    fn apply(&self, key: ObjectKey, value: Option<V>);

    /// Reports that the API server forbids the list.
    fn refuse(&self, refusal: Refusal);
}

/// Publishes the store. Receivers see only actual changes.
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

/// Signals each list and each change, without a store.
impl<V> Sink<V> for Arc<watch::Sender<()>> {
    fn replace(&self, _: BTreeMap<ObjectKey, V>) {
        self.send_replace(());
    }

    fn apply(&self, _: ObjectKey, _: Option<V>) {
        self.send_replace(());
    }

    fn refuse(&self, _: Refusal) {}
}

/// Two sinks that each receive a part of the object.
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

/// A watch of objects of one kind. An object that cannot be decoded is skipped or replaced by a substitute.
#[derive(Debug, Clone)]
pub(crate) struct Watch<K> {
    api: Api<Decoded<K>>,
    config: Config,
    /// The plural name of the resource, as in RBAC rules.
    resource: &'static str,
    namespace: Option<String>,
    metrics: Option<WatchMetrics>,
    undecodable: UndecodableObjects,
    max_backoff: Option<Duration>,
}

impl<K: Object> Watch<K> {
    /// Creates a watch of all objects of the cluster.
    pub(crate) fn all(client: &Client, resource: &'static str) -> Self
    where
        K: Resource<DynamicType = ()>,
    {
        Self::of(Api::all(client.clone()), resource, None)
    }

    /// Creates a watch of the objects of one namespace.
    pub(crate) fn namespaced(client: &Client, resource: &'static str, namespace: &str) -> Self
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Self::of(Api::namespaced(client.clone(), namespace), resource, Some(namespace.to_owned()))
    }

    /// Creates a watch of the objects that `api` lists. `namespace` is `None` for the whole cluster.
    pub(crate) fn of(api: Api<Decoded<K>>, resource: &'static str, namespace: Option<String>) -> Self {
        let config = Config::default().page_size(PAGE_SIZE);
        Self {
            api,
            config,
            resource,
            namespace,
            metrics: None,
            undecodable: UndecodableObjects::default(),
            max_backoff: None,
        }
    }

    /// Sets the label selector.
    pub(crate) fn labels(mut self, selector: &str) -> Self {
        self.config = self.config.labels(selector);
        self
    }

    /// Sets the field selector.
    pub(crate) fn fields(mut self, selector: &str) -> Self {
        self.config = self.config.fields(selector);
        self
    }

    /// Selects one object by name.
    pub(crate) fn named(self, name: &str) -> Self {
        self.fields(&format!("metadata.name={name}"))
    }

    /// Sets the number of objects in one page of a list.
    pub(crate) fn page_size(mut self, objects: u32) -> Self {
        self.config = self.config.page_size(objects);
        self
    }

    /// Sets the metrics of the watch.
    pub(crate) fn metrics(mut self, metrics: WatchMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Counts the objects that cannot be decoded.
    pub(crate) fn count_undecodable(mut self, metrics: &CacheMetrics) -> Self {
        self.undecodable = metrics.undecodable(self.resource);
        self
    }

    /// Sets the maximum backoff.
    pub(crate) fn max_backoff(mut self, max: Duration) -> Self {
        self.max_backoff = Some(max);
        self
    }

    /// Runs the watch as a task, which restarts after a panic.
    pub(crate) fn spawn<V: Send + 'static>(
        self,
        tasks: &mut JoinSet<()>,
        reduce: impl Fn(K) -> Option<V> + Send + Sync + 'static,
        sink: impl Sink<V> + Send + Sync + 'static,
    ) {
        self.spawn_with_substitute(tasks, reduce, |_| None, sink);
    }

    /// Runs the watch as [`Watch::spawn`] does. Publishes `substitute` for an object that cannot be decoded.
    pub(crate) fn spawn_with_substitute<V: Send + 'static>(
        self,
        tasks: &mut JoinSet<()>,
        reduce: impl Fn(K) -> Option<V> + Send + Sync + 'static,
        substitute: impl Fn(&ObjectKey) -> Option<V> + Send + Sync + 'static,
        sink: impl Sink<V> + Send + Sync + 'static,
    ) {
        tasks.spawn(restart_on_panic(async move || self.run_with_substitute(&reduce, &substitute, &sink).await));
    }

    /// Publishes each object after `reduce`, until the future is dropped. An object is not kept if `reduce` returns
    /// `None`, or if it cannot be decoded. A new list replaces the old one only when it is complete.
    pub(crate) async fn run<V>(&self, reduce: impl Fn(K) -> Option<V>, sink: &impl Sink<V>) {
        self.run_with_substitute(reduce, |_| None, sink).await;
    }

    async fn run_with_substitute<V>(
        &self,
        reduce: impl Fn(K) -> Option<V>,
        substitute: impl Fn(&ObjectKey) -> Option<V>,
        sink: &impl Sink<V>,
    ) {
        let mut backoff = WatchBackoff { inner: DefaultBackoff::default(), max: self.max_backoff };
        let mut last_error = LastError::default();
        let mut undecodable = Undecodable::new(self.resource, self.undecodable.clone());
        // Returns the value of an object, and whether the object could be decoded.
        let decode = |key: &ObjectKey, object: Decoded<K>, undecodable: &Undecodable| match object.result {
            Ok(object) => (reduce(object), true),
            Err(error) => {
                undecodable.log(key, &error);
                (substitute(key), false)
            }
        };
        // A streamed list needs memory for one object at a time, a paged list for a whole page.
        let mut config = self.config.clone().streaming_lists();
        loop {
            let mut events = std::pin::pin!(watcher(self.api.clone(), config.clone()));
            let mut list = List::default();
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        // A streamed list that ends early starts over without an error.
                        if matches!(event, Event::Init) && std::mem::replace(&mut list.has_started, true) {
                            time::sleep(backoff.next()).await;
                        }
                        if self.handle_event(event, &mut list, &mut undecodable, decode, sink) {
                            backoff.reset();
                            last_error.recovered();
                        }
                    }
                    Err(error) if config.initial_list_strategy == StreamingList && is_unsupported(&error) => {
                        tracing::debug!(resource = self.resource, "the API server streams no lists, listing pages");
                        config.initial_list_strategy = ListWatch;
                        break;
                    }
                    Err(error) => {
                        let refusal = self.handle_error(&error, &mut last_error);
                        let is_refused = refusal.is_some();
                        if let Some(refusal) = refusal {
                            sink.refuse(refusal);
                        }
                        time::sleep(backoff.next()).await;
                        if is_refused {
                            // The sink has removed all objects. Only a new list restores them.
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Passes an event to the sink. Returns whether the event shows that the watch works.
    fn handle_event<V>(
        &self,
        event: Event<Decoded<K>>,
        list: &mut List<V>,
        undecodable: &mut Undecodable,
        decode: impl Fn(&ObjectKey, Decoded<K>, &Undecodable) -> (Option<V>, bool),
        sink: &impl Sink<V>,
    ) -> bool {
        let metrics = self.metrics.as_ref();
        match event {
            Event::Init => *list = List { has_started: true, ..List::default() },
            Event::InitApply(object) => {
                let key = ObjectKey::of(&object);
                let (value, is_decoded) = decode(&key, object, undecodable);
                if !is_decoded {
                    list.undecodable.insert(key.clone());
                }
                list.objects.extend(value.map(|value| (key, value)));
            }
            Event::InitDone => {
                let List { objects, undecodable: names, .. } = std::mem::take(list);
                undecodable.replace(names);
                sink.replace(objects);
                metrics.inspect(|metrics| metrics.listed());
                tracing::debug!(resource = self.resource, "listed");
                return true;
            }
            Event::Apply(object) => {
                metrics.inspect(|metrics| metrics.event());
                let key = ObjectKey::of(&object);
                let (value, is_decoded) = decode(&key, object, undecodable);
                undecodable.set(&key, !is_decoded);
                sink.apply(key, value);
                return true;
            }
            Event::Delete(object) => {
                metrics.inspect(|metrics| metrics.event());
                let key = ObjectKey::of(&object);
                undecodable.set(&key, false);
                sink.apply(key, None);
                return true;
            }
        }
        false
    }

    /// Logs an interruption once. Returns the refusal if the API server forbids the list.
    fn handle_error(&self, error: &WatchError, last_error: &mut LastError) -> Option<Refusal> {
        if let Some(metrics) = &self.metrics {
            metrics.watch_failed();
        }
        let causes = Causes(error).to_string();
        if last_error.is_new(&causes) {
            tracing::warn!(resource = self.resource, error = causes, "watch interrupted, retrying");
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

/// Returns whether the API server does not support streamed lists: `sendInitialEvents` is an invalid option without the
/// feature gate `WatchList` (kubernetes `apimachinery/pkg/apis/meta/internalversion/validation`).
fn is_unsupported(error: &WatchError) -> bool {
    let (WatchError::WatchStartFailed(kube::Error::Api(status)) | WatchError::WatchError(status)) = error else {
        return false;
    };
    matches!(status.code, 400 | 422)
}

/// The objects of a list that is not complete.
struct List<V> {
    has_started: bool,
    objects: BTreeMap<ObjectKey, V>,
    undecodable: BTreeSet<ObjectKey>,
}

impl<V> Default for List<V> {
    fn default() -> Self {
        Self { has_started: false, objects: BTreeMap::new(), undecodable: BTreeSet::new() }
    }
}

/// kube's exponential backoff with jitter, and an optional lower maximum. A complete list or an event of an object resets it. The
/// events before a list do not, because the list may still fail.
struct WatchBackoff {
    inner: DefaultBackoff,
    max: Option<Duration>,
}

impl WatchBackoff {
    fn next(&mut self) -> Duration {
        // kube's backoff never ends.
        let backoff = self.inner.next().unwrap_or(Duration::from_secs(30));
        self.max.map_or(backoff, |max| backoff.min(max))
    }

    fn reset(&mut self) {
        self.inner.reset();
    }
}

/// The last logged interruption.
#[derive(Default)]
struct LastError(Option<String>);

impl LastError {
    /// Returns whether the error differs from the last one.
    fn is_new(&mut self, error: &str) -> bool {
        let is_new = self.0.as_deref() != Some(error);
        if is_new {
            self.0 = Some(error.to_owned());
        }
        is_new
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

    /// Watches the labels of nodes by name. Nodes without a label are not kept.
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
    async fn a_store_follows_added_changed_and_deleted_objects() {
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
    async fn an_object_that_cannot_be_decoded_is_skipped_alone_and_counted() {
        let api = FakeApi::default();
        let bad = || json!({"metadata": {"name": "bad", "labels": {"l": 5}}});
        api.apply(NODES, bad());
        api.apply(NODES, node("good", "1"));
        let mut registry = telemetry::registry();
        let metrics = telemetry::CacheMetrics::new(&mut registry);
        let count = || {
            let text = telemetry::encode(&registry);
            let line = text.lines().find(|line| line.contains(r#"undecodable_objects{kind="nodes"}"#)).unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let (mut store, tasks) = follow(&api, |watch| watch.count_undecodable(&metrics));
        until(&mut store, &[("good", "1")]).await;
        assert_eq!(count(), "1");
        // The object is repaired, breaks while the watch runs, and is deleted.
        api.apply(NODES, node("bad", "2"));
        until(&mut store, &[("bad", "2"), ("good", "1")]).await;
        assert_eq!(count(), "0");
        api.apply(NODES, bad());
        until(&mut store, &[("good", "1")]).await;
        assert_eq!(count(), "1");
        api.delete(NODES, bad());
        api.apply(NODES, node("good", "3"));
        until(&mut store, &[("good", "3")]).await;
        assert_eq!(count(), "0");
        api.apply(NODES, bad());
        api.apply(NODES, node("good", "4"));
        until(&mut store, &[("good", "4")]).await;
        drop((store, tasks));
        tokio::task::yield_now().await;
        assert_eq!(count(), "0", "the watch has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_cannot_be_decoded_has_its_substitute() {
        let (api, mut tasks) = (FakeApi::default(), JoinSet::new());
        api.apply(NODES, json!({"metadata": {"name": "bad", "labels": {"l": 5}}}));
        let (publish, mut store) = watch::channel(Store::default());
        let substitute = |key: &ObjectKey| Some(format!("unknown {}", key.name));
        let watch = Watch::<Node>::all(&api.client(), "nodes");
        watch.spawn_with_substitute(&mut tasks, |_| Some("known".to_owned()), substitute, publish);
        until(&mut store, &[("bad", "unknown bad")]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn each_list_and_each_change_is_signalled() {
        let (api, mut tasks) = (FakeApi::default(), JoinSet::new());
        let (signal, mut changes) = watch::channel(());
        Watch::<Node>::all(&api.client(), "nodes").spawn(&mut tasks, |_| Some(()), Arc::new(signal));
        let mut signalled = async || timeout(Duration::from_secs(60), changes.changed()).await.is_ok();
        assert!(signalled().await, "the list");
        assert!(!signalled().await);
        api.apply(NODES, node("a", "1"));
        assert!(signalled().await, "a node");
        api.delete(NODES, node("a", "1"));
        assert!(signalled().await, "a deleted node");
    }

    #[tokio::test(start_paused = true)]
    async fn a_forbidden_store_is_refused_until_the_next_list() {
        let api = FakeApi::default();
        api.apply(NODES, node("a", "1"));
        api.forbid(NODES, true);
        let mut registry = telemetry::registry();
        let metrics = telemetry::CacheMetrics::new(&mut registry).for_cache("namespaces");
        let (mut store, _tasks) = follow(&api, |watch| watch.metrics(metrics));
        let refusal = Refusal { status: "403 Forbidden".to_owned(), resource: "nodes", namespace: None };
        store.wait_for(|store| store.refusal() == Some(&refusal)).await.unwrap();
        api.forbid(NODES, false);
        until(&mut store, &[("a", "1")]).await;

        // The permission is removed while the watch runs. Later, a new list restores the store.
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

    #[tokio::test(start_paused = true)]
    async fn a_forbidden_list_is_retried_with_a_growing_backoff() {
        let api = FakeApi::default();
        api.forbid(NODES, true);
        let start = time::Instant::now();
        let (mut store, _tasks) = follow(&api, |watch| watch);
        store.wait_for(|store| store.refusal().is_some()).await.unwrap();
        time::sleep(Duration::from_secs(600)).await;
        let lists = api.requests(NODES).len();
        assert!((2..60).contains(&lists), "{lists} lists in {:?}", start.elapsed());
    }

    #[test]
    fn the_backoff_grows_up_to_its_maximum() {
        let longest = |max: Option<Duration>| {
            let mut backoff = WatchBackoff { inner: DefaultBackoff::default(), max };
            (0..20).map(|_| backoff.next()).max().unwrap()
        };
        let max = Duration::from_secs(5);
        assert_eq!(longest(Some(max)), max);
        assert!(longest(None) > max);
    }

    #[test]
    fn an_interruption_is_logged_once_until_the_watch_recovers() {
        let mut last_error = LastError::default();
        assert!(last_error.is_new("down") && !last_error.is_new("down") && last_error.is_new("forbidden"));
        last_error.recovered();
        assert!(last_error.is_new("forbidden"));
    }
}
