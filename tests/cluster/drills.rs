//! Drills: parts of Spillway and of the cluster restart while pods are created. No pod is lost. The only undecided pods are those
//! whose request was in flight to a killed replica.
//!
//! The replicas are behind a proxy that sends new connections to ready replicas, as a Service does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use serde_json::json;
use tokio::{task::JoinSet, time};

use crate::harness::{
    KeyPair, Namespace, Sandbox, Service, Webhook, eventually, install, register_spillway, sandbox,
    webhook_configuration,
};

/// The number of pods that each drill creates at least. A drill creates pods until its disruption is over.
const PODS: usize = 500;
/// The number of concurrent creators, and the pause of each after a pod: some hundred pods a second.
const CREATORS: usize = 8;
const PAUSE_AFTER_POD: Duration = Duration::from_millis(40);

/// Replicas of the webhook behind a service, in a sandbox.
struct Drill {
    sandbox: Sandbox,
    service: Service,
    pair: KeyPair,
    namespace: Namespace,
}

impl Drill {
    /// Starts two replicas and registers them.
    async fn start(name: &str) -> (Self, [Webhook; 2]) {
        let sandbox = sandbox();
        install(sandbox.plane);
        let service = Service::start().await;
        let pair = KeyPair::in_volume(&sandbox.plane.dir.join(name));
        let namespace = sandbox.plane.namespace(Some("enabled"));
        let drill = Self { sandbox, service, pair, namespace };
        let replicas = [drill.replica(&format!("{name}-a")), drill.replica(&format!("{name}-b"))];
        drill.register(&drill.pair.ca);
        (drill, replicas)
    }

    /// Registers the service with this certificate authority.
    fn register(&self, ca: &str) {
        let plane = self.sandbox.plane;
        register_spillway(plane, &webhook_configuration(plane, self.service.address), ca);
    }

    /// Starts a replica, and waits until it gets connections. It drains faster than in a cluster, because the proxy follows
    /// faster.
    fn replica(&self, name: &str) -> Webhook {
        let plane = self.sandbox.plane;
        let kubeconfig = plane.kubeconfig_for("spillway-system", "spillway-webhook");
        let arguments = ["--drain-grace", "5s", "--drain-deadline", "20s"];
        let replica = Webhook::start_replica(plane, name, &kubeconfig, &self.pair, &arguments);
        self.service.add(&replica);
        eventually("the service to send to the replica", || self.service.sends_to(replica.address).then_some(()));
        replica
    }

    /// Creates pods while `during` runs, which gets the number of pods so far.
    async fn create_during(&self, during: impl FnOnce(&AtomicUsize) + Send) -> Outcome {
        let client = self.sandbox.plane.client().await;
        let load = Arc::new(Load::default());
        let mut creators = JoinSet::new();
        for creator in 0..CREATORS {
            let pods = Api::namespaced(client.clone(), &self.namespace.name);
            creators.spawn(load.clone().create(pods, creator));
        }
        tokio::task::block_in_place(|| during(&load.created));
        load.is_over.store(true, Ordering::Relaxed);
        let mut outcome = Outcome { failed_open: 0, undecided: 0, refused: Vec::new(), pods: 0 };
        for (pods, refused) in creators.join_all().await {
            outcome.pods += pods.len();
            outcome.undecided += pods.iter().filter(|pod| !is_decided(pod)).count();
            outcome.refused.extend(refused);
        }
        outcome.failed_open = self.sandbox.plane.failed_open(&self.namespace.name);
        outcome
    }
}

#[derive(Default)]
struct Load {
    created: AtomicUsize,
    is_over: AtomicBool,
}

impl Load {
    async fn create(self: Arc<Self>, api: Api<Pod>, creator: usize) -> (Vec<Pod>, Vec<kube::Error>) {
        let (mut pods, mut refused) = (Vec::new(), Vec::new());
        while !self.is_over.load(Ordering::Relaxed) || self.created.load(Ordering::Relaxed) < PODS {
            let name = format!("drill-{creator}-{}", pods.len());
            match api.create(&PostParams::default(), &held_pod(&name)).await {
                Ok(pod) => {
                    pods.push(pod);
                    self.created.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if is_out_of_reach(&error) => {}
                // The pod exists, but the response was lost with the connection.
                Err(kube::Error::Api(status)) if status.is_already_exists() => {
                    pods.push(api.get(&name).await.unwrap());
                }
                Err(error) => refused.push(error),
            }
            time::sleep(PAUSE_AFTER_POD).await;
        }
        (pods, refused)
    }
}

/// The outcome of a drill.
#[derive(Debug)]
struct Outcome {
    pods: usize,
    refused: Vec<kube::Error>,
    undecided: usize,
    failed_open: usize,
}

impl Outcome {
    /// Asserts that every pod was created and decided.
    fn assert_nothing_lost(&self) {
        assert!(self.pods >= PODS, "{self:?}");
        assert!(self.refused.is_empty() && self.undecided == 0 && self.failed_open == 0, "{self:?}");
    }
}

/// Returns whether the API server is restarting, so that the creator must retry. A new API server may refuse requests until its
/// admission plugins have synced.
fn is_out_of_reach(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => {
            matches!(status.code, 429 | 503)
                || (status.code == 403 && status.message.contains("not yet ready to handle request"))
        }
        _ => true,
    }
}

/// Returns a pod with a scheduling gate, so that only its creation is tested.
pub(crate) fn held_pod(name: &str) -> Pod {
    let spec = json!({
        "schedulingGates": [{"name": "drill.example/hold"}], "containers": [{"name": "c", "image": "registry.example/c"}],
    });
    Pod {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: Some(serde_json::from_value(spec).unwrap()),
        ..Pod::default()
    }
}

fn is_decided(pod: &Pod) -> bool {
    let decision = pod.metadata.annotations.as_ref().and_then(|all| all.get("spillway.dev/decision"));
    decision.is_some_and(|decision| decision == "prefer")
}

fn wait_for_more(pods: usize, created: &AtomicUsize) {
    let goal = created.load(Ordering::Relaxed) + pods;
    eventually("pods to be created", || (created.load(Ordering::Relaxed) >= goal).then_some(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_no_pod() {
    let (drill, old) = Drill::start("rolling-restart").await;
    let mut new = Vec::new();
    let created = drill.create_during(|created| {
        wait_for_more(PODS / 4, created);
        for (index, mut old) in old.into_iter().enumerate() {
            // As in a rollout of the Deployment, the new replica is ready before an old one stops.
            new.push(drill.replica(&format!("rolling-restart-new-{index}")));
            old.signal("TERM");
            eventually("the old replica to end by itself", || (!old.is_alive()).then_some(()));
            wait_for_more(PODS / 4, created);
        }
    });
    created.await.assert_nothing_lost();
}

/// Requests in flight to a killed process are lost: the API server creates their pods undecided, and records each failed call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_refuses_no_pod_and_lost_calls_are_audited() {
    let (drill, [killed, _other]) = Drill::start("killed").await;
    let created = drill.create_during(|created| {
        wait_for_more(PODS / 4, created);
        killed.signal("KILL");
        eventually("the service to follow", || (!drill.service.sends_to(killed.address)).then_some(()));
        wait_for_more(PODS / 4, created);
    });
    let created = created.await;
    assert!(created.pods >= PODS && created.refused.is_empty(), "{created:?}");
    assert_eq!(created.undecided, created.failed_open, "{created:?}");
    println!("lost with the replica: {} decisions of {} pods, no pod", created.undecided, created.pods);
    // Requests in flight, and those before the service has followed.
    assert!(created.undecided <= PODS / 10, "{created:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_api_server_loses_no_pod() {
    let (drill, _replicas) = Drill::start("api-server-restart").await;
    let created = drill.create_during(|created| {
        wait_for_more(PODS / 4, created);
        drill.sandbox.plane.restart_api_server();
        wait_for_more(PODS / 4, created);
    });
    created.await.assert_nothing_lost();
    // The watches recover too: the webhook observes a new opted-in namespace.
    let late = drill.sandbox.plane.namespace(Some("enabled"));
    let pod = serde_json::to_value(held_pod("late")).unwrap();
    eventually("the new namespace to be known", || {
        (late.dry_run(&pod)["metadata"]["annotations"]["spillway.dev/decision"] == "prefer").then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_pod_is_lost_when_a_certificate_is_replaced_or_malformed() {
    let (drill, replicas) = Drill::start("swapped-pair").await;
    let reloads = |result: &str, count: u64| {
        let metric = format!("spillway_certificate_reloads_total{{result=\"{result}\"}}");
        eventually("both replicas to read the pair", || {
            replicas.iter().all(|replica| replica.metric(&metric) >= count).then_some(())
        });
    };
    let created = drill.create_during(|created| {
        wait_for_more(PODS / 4, created);
        drill.pair.replace(|dir| std::fs::write(dir.join("tls.crt"), "garbage").unwrap());
        reloads("failure", 1);
        wait_for_more(PODS / 4, created);

        // The API server trusts both authorities before the first replica changes.
        let before = replicas[0].metric("spillway_certificate_expiry_timestamp_seconds");
        let next = KeyPair::generate(&drill.pair.dir.with_file_name("swapped-pair-next"));
        drill.register(&format!("{}{}", drill.pair.ca, next.ca));
        drill.pair.replace(|dir| {
            for file in ["tls.crt", "tls.key"] {
                std::fs::copy(next.dir.join(file), dir.join(file)).unwrap();
            }
        });
        reloads("success", 2);
        assert_ne!(replicas[0].metric("spillway_certificate_expiry_timestamp_seconds"), before);
        wait_for_more(PODS / 4, created);
    });
    created.await.assert_nothing_lost();
}
