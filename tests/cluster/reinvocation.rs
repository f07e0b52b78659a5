//! Reinvocation: Spillway decides again after other webhooks, and restores the pod if it is no longer eligible.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    admission::pod,
    harness::{Namespace, Stub, control_plane, eventually, in_namespace, spillway},
};

/// Returns a response with a JSON patch.
fn patched(body: &Bytes, patch: &Value) -> Response {
    let review: Value = serde_json::from_slice(body).unwrap();
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": {"uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch",
            "patch": STANDARD.encode(patch.to_string())},
    });
    Response::builder().header("content-type", "application/json").body(Body::from(answer.to_string())).unwrap()
}

/// Starts a webhook that applies the same patch at each call, and counts its calls.
async fn injector(patch: Value) -> (Stub, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let stub = Stub::start(move |body| {
        counter.fetch_add(1, Ordering::Relaxed);
        std::future::ready(patched(&body, &patch))
    })
    .await;
    (stub, calls)
}

/// Returns the settings of a webhook for one namespace. With `IfNeeded`, the API server calls it again when a later webhook
/// changes the pod.
fn settings(namespace: &Namespace, reinvocation_policy: &str) -> Value {
    let mut webhook = in_namespace(&namespace.name);
    webhook["reinvocationPolicy"] = reinvocation_policy.into();
    webhook
}

/// Creates a pod by dry runs until the API server calls the other webhook.
fn admitted(namespace: &Namespace, pod: &Value, calls: &AtomicUsize) -> Value {
    eventually("the other webhook to be called", || {
        calls.store(0, Ordering::Relaxed);
        let admitted = namespace.dry_run(pod);
        (calls.load(Ordering::Relaxed) > 0).then_some(admitted)
    })
}

fn ours(pod: &Value) -> (usize, usize) {
    let count = |pointer: &str, what: &str| {
        let list = pod.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().filter(|entry| entry.to_string().contains(what)).count()
    };
    (
        count("/spec/tolerations", "virtual-kubelet.io/provider"),
        count("/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution", "virtual-kubelet"),
    )
}

/// Returns a patch that adds a sidecar with a host port, which no virtual node supports.
fn sidecar() -> Value {
    let container =
        json!({"name": "sidecar", "image": "registry.example/s", "ports": [{"containerPort": 80, "hostPort": 8080}]});
    json!([{"op": "add", "path": "/spec/containers/-", "value": container}])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_workload_identity_is_called_for_the_identity_label() {
    spillway();
    let namespace = control_plane().namespace(Some("enabled"));
    namespace.known_identity("web");
    let token = json!({"name": "azure-identity-token", "projected": {"sources": [{"serviceAccountToken": {
        "audience": "api://AzureADTokenExchange", "expirationSeconds": 3600, "path": "azure-identity-token"}}]}});
    let (stub, calls) = injector(json!([
        {"op": "add", "path": "/spec/volumes/-", "value": token},
        {"op": "add", "path": "/spec/containers/0/env", "value": [{"name": "AZURE_CLIENT_ID", "value": "x"}]},
    ]))
    .await;
    let mut webhook = settings(&namespace, "IfNeeded");
    webhook["objectSelector"] = json!({"matchLabels": {"azure.workload.identity/use": "true"}});
    let _registered = stub.register_like("azure-wi-webhook-mutating-webhook-configuration", &webhook);

    let as_web = pod("web", &json!({"spec": {"serviceAccountName": "web"}}));
    let created = admitted(&namespace, &as_web, &calls);
    assert_eq!(created["metadata"]["labels"]["azure.workload.identity/use"], "true");
    assert_eq!(created["spec"]["containers"][0]["env"][0]["name"], "AZURE_CLIENT_ID");
    assert_eq!(ours(&created), (1, 1));

    calls.store(0, Ordering::Relaxed);
    namespace.dry_run(&pod("other", &json!({})));
    assert_eq!(calls.load(Ordering::Relaxed), 0, "azure-workload-identity ignores a pod without an identity");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_made_ineligible_by_a_later_webhook_is_restored() {
    spillway();
    let namespace = control_plane().namespace(Some("high-scale"));
    namespace.known_identity("web");
    let (stub, calls) = injector(sidecar()).await;
    let _registered = stub.register_like("zz-injector", &settings(&namespace, "Never"));

    let as_web = pod("web", &json!({"spec": {"serviceAccountName": "web"}}));
    let created = admitted(&namespace, &as_web, &calls);
    assert_eq!(ours(&created), (0, 0), "{created:#}");
    let annotations = created["metadata"]["annotations"].as_object().unwrap();
    assert_eq!(annotations["spillway.dev/decision"], "stay: HostPort");
    assert_eq!(annotations["spillway.dev/added"], "identity-label", "the label is never withdrawn");
    assert!(!annotations.keys().any(|key| key.starts_with("microsoft.containerinstance")), "{annotations:?}");
    assert_eq!(created["metadata"]["labels"]["azure.workload.identity/use"], "true");

    // The user's own fields stay, although they have the same values.
    let own = json!({"spec": {
        "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": {
            "matchExpressions": [{"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]}]}}]}},
    }});
    assert_eq!(ours(&admitted(&namespace, &pod("own", &own), &calls)), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_made_ineligible_by_an_earlier_webhook_stays() {
    spillway();
    let namespace = control_plane().namespace(Some("enabled"));
    let (stub, calls) = injector(sidecar()).await;
    let _registered = stub.register_like("aaa-injector", &settings(&namespace, "Never"));
    let created = admitted(&namespace, &pod("web", &json!({})), &calls);
    assert_eq!(ours(&created), (0, 0), "{created:#}");
    assert_eq!(created["metadata"]["annotations"]["spillway.dev/decision"], "stay: HostPort");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reinvocations_by_other_webhooks_keep_the_changes() {
    spillway();
    let namespace = control_plane().namespace(Some("enabled"));
    let toleration = json!({"key": "restless", "operator": "Exists"});
    let (stub, calls) = injector(json!([{"op": "add", "path": "/spec/tolerations/-", "value": toleration}])).await;
    // Two webhooks, each called again because of the other.
    let _one = stub.register_like("zz-restless-one", &settings(&namespace, "IfNeeded"));
    let _other = stub.register_like("zz-restless-other", &settings(&namespace, "IfNeeded"));
    let created = eventually("both to be called in both rounds", || {
        let created = admitted(&namespace, &pod("web", &json!({})), &calls);
        (calls.load(Ordering::Relaxed) == 4).then_some(created)
    });
    assert_eq!(ours(&created), (1, 1), "{created:#}");
    assert_eq!(created["metadata"]["annotations"]["spillway.dev/decision"], "prefer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn withdrawals_apply_to_mode_require_and_are_audited() {
    spillway();
    let namespace = control_plane().annotated_namespace(Some("enabled"), &json!({"spillway.dev/mode": "require"}));
    let (stub, calls) = injector(sidecar()).await;
    let _registered = stub.register_like("zz-injector-require", &settings(&namespace, "Never"));
    let created = admitted(&namespace, &pod("web", &json!({})), &calls);
    assert!(!created["spec"].to_string().contains("virtual-kubelet"), "{created:#}");
    assert_eq!(created["metadata"]["annotations"]["spillway.dev/decision"], "stay: HostPort");

    namespace.create(&pod("web", &json!({})));
    let annotations = eventually("the audit event", || {
        let log = std::fs::read_to_string(control_plane().dir.join("audit.log")).unwrap();
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let of_ours = events.filter(|event| event["objectRef"]["namespace"] == namespace.name.as_str());
        of_ours.map(|event| event["annotations"].clone()).find(|a| a["pods.spillway.dev/second-decision"].is_string())
    });
    assert_eq!(annotations["pods.spillway.dev/decision"], "require");
    assert_eq!(annotations["pods.spillway.dev/second-decision"], "stay: HostPort");
}

#[test]
fn a_forged_added_annotation_gains_nothing() {
    spillway();
    let namespace = control_plane().namespace(Some("enabled"));
    let forged = |os: &str| {
        json!({
            "metadata": {"annotations": {"spillway.dev/added": "toleration,affinity,dns,nonsense"}},
            "spec": {"os": {"name": os}, "tolerations": [
                {"key": "virtual-kubelet.io/provider", "operator": "Exists", "effect": "NoSchedule"},
                {"key": "virtual-kubelet.io/provider", "operator": "Exists"},
            ]},
        })
    };
    let stays = namespace.dry_run(&pod("windows", &forged("windows")));
    assert_eq!(ours(&stays), (1, 0), "{stays:#}");
    assert_eq!(stays["metadata"]["annotations"].get("spillway.dev/added"), None);
    let bursts = namespace.dry_run(&pod("linux", &forged("linux")));
    assert_eq!(ours(&bursts), (2, 1));
    assert_eq!(bursts["metadata"]["annotations"]["spillway.dev/added"], "toleration,affinity");
}

#[test]
fn each_mode_adds_what_it_says() {
    spillway();
    let plane = control_plane();
    let mode = |mode: &str, more: &Value| {
        let namespace = plane.annotated_namespace(Some("enabled"), &json!({"spillway.dev/mode": mode}));
        namespace.dry_run(&pod("web", more))
    };
    for late in ["late", "bridge"] {
        let admitted = mode(late, &json!({}));
        assert_eq!(ours(&admitted), (0, 1), "{late}: a pod that may get a VM carries no toleration");
        assert_eq!(admitted["metadata"]["annotations"]["spillway.dev/decision"], late);
    }
    let required = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let virtual_only = json!({"key": "type", "operator": "In", "values": ["virtual-kubelet"]});
    let admitted = mode("require", &json!({}));
    assert_eq!(ours(&admitted), (1, 0));
    assert_eq!(admitted.pointer(required), Some(&json!([{"matchExpressions": [virtual_only]}])));

    let linux = json!({"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]});
    let terms = json!([{"matchExpressions": [linux]}, {"matchExpressions": [virtual_only]}]);
    let own = json!({"spec": {"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}});
    let admitted = mode("require", &own);
    let expected = json!([{"matchExpressions": [linux, virtual_only]}, {"matchExpressions": [virtual_only]}]);
    assert_eq!(admitted.pointer(required), Some(&expected), "every term, and none twice");
    assert_eq!(admitted["metadata"]["annotations"]["spillway.dev/added"], "toleration,affinity:0");
}
