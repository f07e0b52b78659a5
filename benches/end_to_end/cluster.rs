//! The real control plane: the objects that the webhook watches, and the rate at which the control plane creates pods.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::{
    Api,
    api::{ListParams, ObjectMeta, PostParams},
};
use serde_json::{Value, json};

use crate::{
    REVIEW,
    harness::{ControlPlane, Webhook, control_plane, install, installed_configuration, register_spillway},
    report::{Admission, Creation},
};

const SERVICE_ACCOUNTS: usize = 5000;
const CLIENT_ID: &str = "azure.workload.identity/client-id";
const DEPLOYMENTS: u32 = 20;
const REPLICAS: u32 = 100;
const PODS: u32 = DEPLOYMENTS * REPLICAS;

/// Starts two webhooks with one thread each in a large cluster. The second logs no line for each pod.
pub(crate) fn webhooks() -> anyhow::Result<[Webhook; 2]> {
    let plane = control_plane();
    plane.kubectl_with(&["apply", "-f", "-"], &nodes().to_string());
    // The namespace of the review, so that the webhook decides as in the recorded cluster.
    let shop = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"spillway.dev/burst": "high-scale"}},
    });
    let web = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "web", "namespace": "shop", "annotations": {CLIENT_ID: "00000000-0000-0000-0000-000000000000"}},
    });
    plane.kubectl_with(
        &["apply", "-f", "-"],
        &json!({"apiVersion": "v1", "kind": "List", "items": [shop, web]}).to_string(),
    );
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(service_accounts(plane))?;
    install(plane);
    let kubeconfig = plane.kubeconfig_for("spillway-system", "spillway-webhook");
    let start = |name, level| Webhook::start_with(name, &kubeconfig, &["--worker-threads=1", level]).ready();
    Ok([start("spillway", "--log-level=info"), start("quiet", "--log-level=warn,spillway::cli=info")])
}

/// Returns ten virtual nodes, and VMs with room for all pods, which need VMs without the webhook.
fn nodes() -> Value {
    let room = |pods: &str| json!({"cpu": "1000", "memory": "4Ti", "pods": pods});
    let node = |name: String, labels: Value, taints: Value, pods: &str| {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {"taints": taints},
            "status": {"capacity": room(pods), "allocatable": room(pods)},
        })
    };
    let taint = json!([{"key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule"}]);
    let labels = json!({"type": "virtual-kubelet", "virtualization": "virtualnode2", "kubernetes.io/os": "linux"});
    let virtual_nodes = (1..10).map(|i| node(format!("virtualnode-{i}"), labels.clone(), taint.clone(), "200"));
    let vms = (4..14).map(|i| node(format!("vm-{i}"), json!({"kubernetes.io/os": "linux"}), json!([]), "250"));
    json!({"apiVersion": "v1", "kind": "List", "items": virtual_nodes.chain(vms).collect::<Vec<_>>()})
}

async fn service_accounts(plane: &ControlPlane) -> anyhow::Result<()> {
    const CONCURRENCY: usize = 32;
    let accounts: Api<ServiceAccount> = Api::namespaced(plane.client().await, "default");
    let account = |i: usize| ServiceAccount {
        metadata: ObjectMeta {
            name: Some(format!("account-{i}")),
            annotations: Some([(CLIENT_ID.to_owned(), format!("00000000-0000-0000-0000-{i:012}"))].into()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    let create = |i| {
        let (accounts, account) = (accounts.clone(), account(i));
        async move { accounts.create(&PostParams::default(), &account).await.map(drop) }
    };
    println!("creating {SERVICE_ACCOUNTS} service accounts");
    stream::iter(0..SERVICE_ACCOUNTS).map(create).buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
    Ok(())
}

/// Writes the webhook's response to the review to a file. The response must have all five parts, because fewer parts cost less.
pub(crate) fn answer(webhook: &Webhook) -> anyhow::Result<PathBuf> {
    let review = fs::read(REVIEW)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (status, answer) = runtime.block_on(webhook.https().review(review));
    let parsed: Value = serde_json::from_slice(&answer)?;
    let decision = parsed.pointer("/response/auditAnnotations/decision");
    ensure!(status == 200 && decision == Some(&json!("prefer")), "unexpected response: {status} {parsed}");
    let patch = parsed.pointer("/response/patch").and_then(Value::as_str).context("no patch")?;
    let patch: Vec<Value> = serde_json::from_slice(&STANDARD.decode(patch)?)?;
    ensure!(patch.len() == 7, "expected seven operations: {patch:?}");
    let file = control_plane().dir.join("answer.json");
    fs::write(&file, answer)?;
    Ok(file)
}

/// Measures how fast the controller-manager creates the pods of some Deployments, with and without the webhook.
pub(crate) fn creation(webhook: &Webhook) -> anyhow::Result<Creation> {
    let plane = control_plane();
    let (mut with, mut without) = (0.0, 0.0);
    let mut admission = Admission::default();
    // The turns alternate, because the API server becomes slower with each stored object.
    const TURNS: u32 = 2;
    for _ in 0..TURNS {
        println!("creating {PODS} pods with the webhook");
        register_spillway(plane, &installed_configuration(plane, webhook.address), &webhook.ca);
        let before = Admission::of_api_server(plane)?;
        with += in_a_namespace(plane, |namespace| {
            let per_minute = pods_per_minute(plane, namespace)?;
            admission.failed_open += plane.failed_open(namespace);
            Ok(per_minute)
        })?;
        admission = admission.plus(&Admission::of_api_server(plane)?.minus(&before));
        plane.kubectl(&["delete", "mutatingwebhookconfiguration", "aci-spillway"]);
        println!("creating {PODS} pods without the webhook");
        without += in_a_namespace(plane, |namespace| pods_per_minute(plane, namespace))?;
    }
    let turns = f64::from(TURNS);
    Ok(Creation { pods: PODS, per_minute_without: without / turns, per_minute_with: with / turns, admission })
}

/// Runs `work` in a new namespace that has opted in, and deletes the namespace.
fn in_a_namespace(plane: &'static ControlPlane, work: impl FnOnce(&str) -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    let namespace = plane.namespace(Some("high-scale"));
    let done = work(&namespace.name);
    plane.kubectl(&["delete", "namespace", &namespace.name, "--timeout=600s"]);
    done
}

fn pods_per_minute(plane: &ControlPlane, namespace: &str) -> anyhow::Result<f64> {
    let deployment = |i: u32| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": format!("web-{i}"), "namespace": namespace},
            "spec": {
                "replicas": REPLICAS,
                "selector": {"matchLabels": {"app": format!("web-{i}")}},
                "template": {
                    "metadata": {"labels": {"app": format!("web-{i}")}},
                    "spec": {"containers": [{
                        "name": "web", "image": "registry.example/web",
                        "ports": [{"containerPort": 8080}],
                        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "16Mi"}},
                    }]},
                },
            },
        })
    };
    let deployments: Vec<_> = (0..DEPLOYMENTS).map(deployment).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": deployments});
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let pods: Api<Pod> = Api::namespaced(plane.client().await, namespace);
        let started = Instant::now();
        plane.kubectl_with(&["create", "-f", "-"], &list.to_string());
        loop {
            // The API server counts the remaining items without sending them.
            let one = pods.list_metadata(&ListParams::default().limit(1)).await?;
            let rest = one.metadata.remaining_item_count.unwrap_or(0);
            if rest + 1 >= i64::from(PODS) {
                return Ok(f64::from(PODS) / started.elapsed().as_secs_f64() * 60.0);
            }
            ensure!(started.elapsed() < Duration::from_secs(600), "only {rest} pods after ten minutes");
            thread::sleep(Duration::from_millis(50));
        }
    })
}

impl Admission {
    /// Reads the API server's metrics of calls to Spillway's webhook.
    fn of_api_server(plane: &ControlPlane) -> anyhow::Result<Self> {
        let text = plane.kubectl(&["get", "--raw", "/metrics"]);
        let mut measured = Self::default();
        for line in text.lines().filter(|line| line.contains(r#"name="pods.spillway.dev""#)) {
            let (series, value) = line.rsplit_once(' ').context("no value")?;
            let value: f64 = value.parse()?;
            let (name, labels) = series.split_once('{').context("no labels")?;
            match name.trim_start_matches("apiserver_admission_webhook_") {
                "admission_duration_seconds_bucket" => {
                    let limit =
                        labels.split(r#"le=""#).nth(1).and_then(|rest| rest.split('"').next()).context("no le")?;
                    let limit = if limit == "+Inf" { f64::INFINITY } else { limit.parse()? };
                    *measured.buckets.entry(limit.to_bits()).or_default() += value;
                }
                "admission_duration_seconds_sum" => measured.seconds += value,
                "admission_duration_seconds_count" => measured.calls += value,
                "fail_open_count" | "rejection_count" => measured.failures += value,
                _ => {}
            }
        }
        Ok(measured)
    }
}
