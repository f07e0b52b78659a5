//! The cache of cluster objects. Watches fill it, and each object is reduced to the fields that Spillway reads.
//!
//! The webhook uses a [`Cluster`], the controller an `Inventory`. Decisions read an immutable [`Snapshot`], which is
//! replaced atomically.

pub mod identity;
mod inventory;
mod node;
mod pod;
mod pod_store;
mod scale_up;
mod scope;
mod snapshot;
mod watch;

use std::{fmt::Debug, sync::Arc, time::Duration};

pub(crate) use inventory::Inventory;
use k8s_openapi::api::core::v1;
use kube::{Api, Client, Resource, api::ObjectMeta, core::NamespaceResourceScope};
pub(crate) use node::{Node, NodeObject};
pub(crate) use pod::{FailureCause, PodMeta, Requests, ScheduledPod, UndecidedPod, UnscheduledPod, VirtualPod};
pub(crate) use pod_store::PodStore;
pub(crate) use scale_up::ScaleUps;
pub(crate) use scope::OptedIn;
pub use scope::{GRACE, Reach, Scope, opted_in_since};
use serde::de::DeserializeOwned;
pub use snapshot::{Namespace, Snapshot, network_policy};
use tokio::{sync, task::JoinSet, time};

use crate::{burst::ServiceAccount, reload::configuration::ConfigReceiver, telemetry::CacheMetrics};

/// Maximum time that an admission request waits for the pod's namespace to appear in the cache. The namespace watch
/// delivers it, so no request to the API server is needed.
const NAMESPACE_WAIT: Duration = Duration::from_millis(100);

/// Maximum time that an admission request waits for a read of the pod's service account.
const SERVICE_ACCOUNT_WAIT: Duration = Duration::from_millis(100);

/// The cache of the webhook. Its watches run until it is dropped.
pub struct Cluster {
    client: Client,
    snapshot: sync::watch::Receiver<Arc<Snapshot>>,
    _watches: JoinSet<()>,
}

/// Maximum time that the Binding of a pod to a virtual node waits for a read of the pod.
const POD_WAIT: Duration = Duration::from_millis(500);

/// Error of a lookup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// The API server did not respond in time.
    #[error("no response from the API server within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The object does not exist.
    #[error("not found")]
    NotFound,
    /// The request failed, or the API server rejected it.
    #[error("the request to the API server failed")]
    Api(#[source] kube::Error),
}

impl LookupError {
    /// Returns the value of a metric label, from a closed set.
    pub fn result(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::NotFound => "not_found",
            Self::Api(_) => "error",
        }
    }
}

/// A service account, and its origin.
#[derive(Debug)]
pub enum Lookup {
    /// From the cache.
    Cached(ServiceAccount),
    /// From the API server.
    Read(Result<ServiceAccount, LookupError>),
}

impl Cluster {
    /// Starts the watches and returns immediately. [`Cluster::unsynced`] names the caches without an initial list.
    ///
    /// The configuration selects the virtual nodes, also after a reload. Must be called within a tokio runtime.
    pub fn follow(client: Client, configuration: ConfigReceiver, metrics: &CacheMetrics) -> Self {
        let (snapshot, watches) = watch::start(&client, configuration, metrics);
        Self { client, snapshot, _watches: watches }
    }

    /// Returns the current snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// Returns the names of the caches whose initial list is not complete.
    pub fn unsynced(&self) -> Vec<&'static str> {
        self.snapshot.borrow().unsynced()
    }

    /// Returns an opted-in namespace once all caches that a decision needs are filled. An empty cache would look like a
    /// namespace without policies.
    ///
    /// Waits up to 100 ms for a namespace that is not in the cache. The API server already knows the namespace, because
    /// its `namespaceSelector` matched.
    pub async fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        if let Some(namespace) = self.snapshot.borrow().decidable_namespace(name) {
            return Some(namespace);
        }
        let mut snapshot = self.snapshot.clone();
        let appears = snapshot.wait_for(|snapshot| snapshot.decidable_namespace(name).is_some());
        let seen = time::timeout(NAMESPACE_WAIT, appears).await.ok()?.ok()?;
        seen.decidable_namespace(name)
    }

    /// Returns a service account from the cache, or reads it with a timeout.
    pub async fn service_account(&self, namespace: &str, name: &str) -> Lookup {
        if let Some(known) = self.snapshot.borrow().service_account(namespace, name) {
            return Lookup::Cached(known);
        }
        let read = self.metadata::<v1::ServiceAccount>(namespace, name, SERVICE_ACCOUNT_WAIT).await;
        Lookup::Read(read.map(|metadata| snapshot::service_account(&metadata)))
    }

    /// Reads the metadata of a pod with a timeout.
    ///
    /// # Errors
    ///
    /// [`LookupError`]
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<ObjectMeta, LookupError> {
        self.metadata::<v1::Pod>(namespace, name, POD_WAIT).await
    }

    async fn metadata<K>(&self, namespace: &str, name: &str, wait: Duration) -> Result<ObjectMeta, LookupError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        match time::timeout(wait, api.get_metadata(name)).await {
            Err(_elapsed) => Err(LookupError::Timeout(wait)),
            Ok(Ok(found)) => Ok(found.metadata),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(LookupError::NotFound),
            Ok(Err(error)) => Err(LookupError::Api(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::http;
    use kube::client::Body;
    use tokio::time::Instant;

    use super::*;
    use crate::kubernetes::testing::NO_STREAMED_LISTS;

    /// A cluster behind an API server that never responds.
    fn unresponsive() -> (sync::watch::Sender<Arc<Snapshot>>, Cluster) {
        let never = tower::service_fn(|_: http::Request<Body>| {
            std::future::pending::<Result<http::Response<Body>, Infallible>>()
        });
        let (publish, snapshot) = sync::watch::channel(Arc::default());
        (publish, Cluster { client: Client::new(never, "default"), snapshot, _watches: JoinSet::new() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_waits_at_most_100_ms_for_its_service_account() {
        let (_publish, cluster) = unresponsive();
        let start = Instant::now();
        let lookup = cluster.service_account("shop", "web").await;
        assert!(matches!(lookup, Lookup::Read(Err(LookupError::Timeout(_)))), "{lookup:?}");
        assert_eq!(start.elapsed().as_millis(), 100);
    }

    #[tokio::test]
    async fn a_service_account_that_is_not_in_the_cache_is_read_once() {
        for (status, body, expected) in [
            (
                200,
                r#"{"metadata":{"annotations":{"azure.workload.identity/client-id":"x"}}}"#,
                "Read(Ok(WithClientId))",
            ),
            (200, r#"{"metadata":{}}"#, "Read(Ok(WithoutClientId))"),
            (404, r#"{"code":404,"message":"","reason":"NotFound","status":"Failure"}"#, "Read(Err(NotFound))"),
            (403, r#"{"code":403,"message":"","reason":"Forbidden","status":"Failure"}"#, "Read(Err(Api("),
        ] {
            let response = tower::service_fn(move |request: http::Request<Body>| async move {
                assert_eq!(request.uri().path(), "/api/v1/namespaces/shop/serviceaccounts/web");
                let response = http::Response::builder().status(status).body(Body::from(body.as_bytes().to_vec()));
                Ok::<_, Infallible>(response.unwrap())
            });
            let (_publish, snapshot) = sync::watch::channel(Arc::default());
            let cluster = Cluster { client: Client::new(response, "default"), snapshot, _watches: JoinSet::new() };
            let lookup = format!("{:?}", cluster.service_account("shop", "web").await);
            assert!(lookup.starts_with(expected), "{lookup}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_waits_at_most_100_ms_for_its_namespace() {
        let (_publish, cluster) = unresponsive();
        let start = Instant::now();
        assert_eq!(cluster.namespace("shop").await, None);
        assert_eq!(start.elapsed().as_millis(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_that_arrives_during_the_wait_is_found() {
        let (publish, cluster) = unresponsive();
        let arrival = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            let labels = [(crate::config::BURST_LABEL.to_owned(), "enabled".to_owned())].into();
            let namespace = Namespace::read(labels, std::collections::BTreeMap::new()).unwrap();
            let namespaces = Arc::new([("shop".to_owned(), Arc::new(namespace))].into());
            publish.send_modify(|snapshot| {
                let snapshot = Arc::make_mut(snapshot);
                snapshot.namespaces = Some(namespaces);
                snapshot.virtual_nodes = Some(Arc::default());
                snapshot.network_policies = Some(Arc::default());
            });
        };
        let start = Instant::now();
        let (seen, ()) = tokio::join!(cluster.namespace("shop"), arrival);
        assert_eq!(seen.unwrap().profile, "enabled");
        assert!(start.elapsed() < NAMESPACE_WAIT);
    }

    /// An API server that lists one node for each label selector. Its watches never send an event.
    async fn one_node_each(request: http::Request<Body>) -> Result<http::Response<Body>, Infallible> {
        let query = request.uri().query().unwrap_or_default();
        if query.contains("sendInitialEvents=true") {
            let status = Body::from(NO_STREAMED_LISTS.to_string().into_bytes());
            return Ok(http::Response::builder().status(422).body(status).unwrap());
        }
        if query.contains("watch=true") {
            return std::future::pending().await;
        }
        let selector = query.split('&').find_map(|pair| pair.strip_prefix("labelSelector="));
        let items = match selector.filter(|_| request.uri().path() == "/api/v1/nodes") {
            Some(selector) => format!(r#"{{"metadata":{{"name":"{selector}"}}}}"#),
            None => String::new(),
        };
        // The new list takes a second.
        time::sleep(Duration::from_secs(1)).await;
        Ok(http::Response::new(Body::from(
            format!(r#"{{"metadata":{{"resourceVersion":"1"}},"items":[{items}]}}"#).into_bytes(),
        )))
    }

    #[tokio::test(start_paused = true)]
    async fn the_webhook_opens_one_selective_watch_for_each_kind() {
        let api = crate::kubernetes::testing::FakeApi::default();
        let (_keep, configuration) = sync::watch::channel(Arc::default());
        let caches = CacheMetrics::new(&mut crate::telemetry::registry());
        let mut cluster = Cluster::follow(api.client(), configuration, &caches);
        cluster.snapshot.wait_for(|snapshot| snapshot.unsynced().is_empty()).await.unwrap();
        time::sleep(Duration::from_secs(60)).await;
        let watches = api.watches();
        let watches: Vec<_> = watches.iter().map(|(watch, count)| (watch.as_str(), *count)).collect();
        assert_eq!(
            watches,
            [
                ("/api/v1/namespaces labelSelector=spillway.dev%2Fburst%2Cspillway.dev%2Fburst%21%3Ddisabled", 1),
                ("/api/v1/nodes labelSelector=type%3Dvirtual-kubelet", 1),
                ("/api/v1/serviceaccounts", 1),
                ("/apis/networking.k8s.io/v1/networkpolicies", 1),
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_selector_replaces_the_virtual_nodes_after_the_list() {
        let of = |selector: &str| {
            let file = format!(
                "apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\nvirtualNodes: {{selector: {selector}}}"
            );
            Arc::new(crate::config::parse(&file).unwrap())
        };
        let (change, configuration) = sync::watch::channel(of("type=one"));
        let client = Client::new(tower::service_fn(one_node_each), "default");
        let mut registry = crate::telemetry::registry();
        let mut cluster = Cluster::follow(client, configuration, &CacheMetrics::new(&mut registry));
        let text = crate::telemetry::encode(&registry);
        assert!(text.contains(r#"spillway_cache_synced{cache="virtual nodes"} 0"#), "{text}");

        let names =
            |snapshot: &Snapshot| snapshot.virtual_nodes().iter().map(|node| node.name.clone()).collect::<Vec<_>>();
        cluster.snapshot.wait_for(|snapshot| snapshot.unsynced().is_empty()).await.unwrap();
        assert_eq!(names(&cluster.snapshot()), ["type%3Done"]);
        let text = crate::telemetry::encode(&registry);
        assert!(text.contains(r#"spillway_cache_synced{cache="virtual nodes"} 1"#), "{text}");

        change.send_replace(of("type=two"));
        let start = Instant::now();
        loop {
            time::timeout(Duration::from_secs(60), cluster.snapshot.changed()).await.expect("a new list").unwrap();
            assert_eq!(cluster.unsynced(), <[&str; 0]>::default(), "readiness does not flap");
            match names(&cluster.snapshot()).as_slice() {
                [node] if node == "type%3Dtwo" => break,
                nodes => assert_eq!(nodes, ["type%3Done"]),
            }
        }
        assert_eq!(start.elapsed().as_secs(), 1);
        // A change that does not concern nodes causes no new list.
        change.send_replace(of("type=two}\nlogging: {level: debug"));
        assert!(time::timeout(Duration::from_secs(60), cluster.snapshot.changed()).await.is_err());
    }
}
