//! Measures the memory of the controller in a large cluster: 500 nodes and 10,000 pods on a real API server, simulated by KWOK.
//!
//! `make bench-controller` runs this benchmark. 9,000 pods are on VMs, half of them in namespaces that have not opted in. 500 pods are on
//! virtual nodes, and 500 wait in mode `late`. Pods have the size of the recorded `review.json`. Nodes have as many images as a kubelet
//! reports. The benchmark fails above the goal.

#![allow(clippy::print_stdout)]

// The harness is written for tests, where a panic is a failure. This benchmark uses a part of it.
#[allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#[path = "../tests/cluster/harness/mod.rs"]
mod harness;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use harness::{Controller, control_plane, eventually, install};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};

const REVIEW: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/review.json");

const VMS: usize = 490;
const VIRTUAL_NODES: usize = 10;
/// Every second namespace has opted in.
const NAMESPACES: usize = 20;
const ON_VMS: usize = 9_000;
const ON_VIRTUAL_NODES: usize = 500;
const WAITING: usize = 500;
const GOAL_MIB: f64 = 60.0;
/// The timeout for the scheduler's verdict on the waiting pods.
const SCHEDULING_TIMEOUT: Duration = Duration::from_secs(300);

fn main() -> anyhow::Result<()> {
    let plane = control_plane();
    install(plane);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let profile = |place: usize| is_opted_in(place).then_some("autoscaled");
    let namespaces: Vec<_> = (0..NAMESPACES).map(|place| plane.namespace(profile(place)).name).collect();
    runtime.block_on(async {
        let client = plane.client().await;
        println!("creating {} nodes", VMS + VIRTUAL_NODES);
        create(&Api::<Node>::all(client.clone()), (0..VMS + VIRTUAL_NODES).map(node)).await?;
        println!("creating {} pods", ON_VMS + ON_VIRTUAL_NODES + WAITING);
        pods(&client, &namespaces).await?;
        wait_until_unschedulable(&client).await
    })?;

    let kubeconfig = plane.kubeconfig_for("spillway-system", "spillway-controller");
    let env = environment()?;
    let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let controller = Controller::start_with(plane, "controller", &kubeconfig, &[], &env);
    let began = Instant::now();
    // The controller starts a clock only after all lists have arrived.
    let started = || controller.metric("spillway_actions_total{action=\"start_clock\",result=\"success\"}");
    eventually("the clocks of the waiting pods to start", || (started() == WAITING as u64).then_some(()));
    println!("all objects listed and {WAITING} clocks started after {:.1} s", began.elapsed().as_secs_f64());
    eventually("a round of the advice reconciler", || {
        (controller.metric("spillway_reconciles_total{reconciler=\"advice\",result=\"success\"}") > 0).then_some(())
    });
    let [resident, peak] = ["VmRSS:", "VmHWM:"].map(|field| mib(&controller.pid(), field));
    let (resident, peak) = (resident?, peak?);
    println!("RSS {resident:.1} MiB, peak {peak:.1} MiB; goal {GOAL_MIB} MiB");
    ensure!(peak < GOAL_MIB, "the controller used {peak:.1} MiB, expected less than {GOAL_MIB} MiB");
    Ok(())
}

fn is_opted_in(place: usize) -> bool {
    place.is_multiple_of(2)
}

/// Waits for the scheduler, which is slow with many nodes, so that the benchmark measures only the controller.
async fn wait_until_unschedulable(client: &Client) -> anyhow::Result<()> {
    let began = Instant::now();
    let waiting = ListParams::default().fields("spec.nodeName=");
    let is_so = |pod: &Pod| {
        let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
        conditions.into_iter().any(|condition| condition.reason.as_deref() == Some("Unschedulable"))
    };
    loop {
        let pods = Api::<Pod>::all(client.clone()).list(&waiting).await?;
        if pods.iter().filter(|pod| is_so(pod)).count() >= WAITING {
            return Ok(());
        }
        ensure!(
            began.elapsed() < SCHEDULING_TIMEOUT,
            "the scheduler has not tried all pods within {SCHEDULING_TIMEOUT:?}"
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn create<K>(api: &Api<K>, objects: impl Iterator<Item = Value>) -> anyhow::Result<()>
where
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    const CONCURRENCY: usize = 32;
    let create = |object| async move {
        let object = serde_json::from_value(object)?;
        api.create(&PostParams::default(), &object).await.map(drop).context("create an object")
    };
    stream::iter(objects).map(create).buffer_unordered(CONCURRENCY).try_collect::<()>().await
}

/// Returns a node. The first nodes are virtual.
fn node(place: usize) -> Value {
    let is_virtual = place < VIRTUAL_NODES;
    let labels = if is_virtual {
        json!({"type": "virtual-kubelet", "virtualization": "virtualnode2", "kubernetes.io/os": "linux"})
    } else {
        json!({"kubernetes.io/os": "linux", "kubernetes.azure.com/agentpool": "userpool", "kubernetes.io/hostname": format!("vm{place}")})
    };
    let taints = if is_virtual {
        json!([{"key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule"}])
    } else {
        json!([])
    };
    // A kubelet reports its 50 largest images (kubernetes `pkg/kubelet/apis/config/v1beta1/defaults.go`, nodeStatusMaxImages).
    let image = |i: usize| {
        let digest = format!("{i:064x}");
        json!({"names": [format!("registry.example/team/service-{i}@sha256:{digest}"), format!("registry.example/team/service-{i}:v1")], "sizeBytes": 123_456_789})
    };
    let images: Vec<_> = if is_virtual { Vec::new() } else { (0..50).map(image).collect() };
    let room = json!({"cpu": "8", "memory": "32Gi", "pods": "250"});
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name_of(place), "labels": labels}, "spec": {"taints": taints},
        "status": {"capacity": room, "allocatable": room, "images": images},
    })
}

fn name_of(place: usize) -> String {
    format!("node-{place}")
}

async fn pods(client: &Client, namespaces: &[String]) -> anyhow::Result<()> {
    let review: Value = serde_json::from_slice(&fs::read(REVIEW)?)?;
    let recorded = review.pointer("/request/object").context("a pod in review.json")?;
    for (place, namespace) in namespaces.iter().enumerate() {
        let is_opted_in = is_opted_in(place);
        let share = |all: usize| all / NAMESPACES;
        let opted_in = |all: usize| if is_opted_in { 2 * share(all) } else { 0 };
        let on_vms = (0..share(ON_VMS)).map(|i| Some(VIRTUAL_NODES + (place * share(ON_VMS) + i) % VMS));
        let on_virtual = (0..opted_in(ON_VIRTUAL_NODES)).map(|i| Some(i % VIRTUAL_NODES));
        let waiting = (0..opted_in(WAITING)).map(|_| None);
        let all = on_vms.chain(on_virtual).chain(waiting).enumerate();
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        create(&pods, all.map(|(i, node)| pod(recorded, &format!("web-{i}"), node, is_opted_in))).await?;
    }
    Ok(())
}

/// Returns the recorded pod on this node, or a pod that no node matches.
fn pod(recorded: &Value, name: &str, node: Option<usize>, is_decided: bool) -> Value {
    let mut spec = recorded.get("spec").cloned().unwrap_or_default();
    let annotations = is_decided.then(|| json!({"spillway.dev/decision": "late", "spillway.dev/added": "affinity"}));
    let labels = recorded.pointer("/metadata/labels").cloned().unwrap_or_default();
    if let Some(spec) = spec.as_object_mut() {
        spec.insert("serviceAccountName".to_owned(), "default".into());
        match node {
            Some(place) => spec.insert("nodeName".to_owned(), name_of(place).into()),
            None => spec.insert("nodeSelector".to_owned(), json!({"no-node": "has-this-label"})),
        };
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels, "annotations": annotations}, "spec": spec})
}

/// Returns the environment variables that the Deployment sets for the allocator.
fn environment() -> anyhow::Result<Vec<(String, String)>> {
    let deployment: Value = serde_saphyr::from_str(include_str!("../manifests/base/controller-deployment.yaml"))?;
    let env = deployment.pointer("/spec/template/spec/containers/0/env").and_then(Value::as_array).context("no env")?;
    let plain = env.iter().filter_map(|one| Some((one.get("name")?.as_str()?, one.get("value")?.as_str()?)));
    Ok(plain.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// Returns a field of `/proc/PID/status` in MiB.
fn mib(pid: &str, field: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
