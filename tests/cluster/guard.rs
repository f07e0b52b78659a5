//! The ValidatingAdmissionPolicies restrict the accounts of Spillway, whatever RBAC allows.

use std::{collections::BTreeSet, time::Duration};

use axum::http::{Request, header};
use kube::Client;
use serde_json::{Value, json};

use crate::{
    admission::pod,
    harness::{AUTHORITY_SECRET, ControlPlane, Namespace, install, sandbox},
    packaging::shipped_configuration,
};

const CONTROLLER: &str = "system:serviceaccount:spillway-system:spillway-controller";
const WEBHOOK: &str = "system:serviceaccount:spillway-system:spillway-webhook";

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// Registers the webhook as it is shipped, by its Service.
fn register_with_a_service(plane: &ControlPlane) {
    plane.delete(&format!("{CONFIGURATIONS}/aci-spillway"));
    plane.apply(&shipped_configuration());
}

/// An account of Spillway to which RBAC allows everything during a test.
struct Account {
    plane: &'static ControlPlane,
    client: Client,
}

impl Account {
    async fn with_all_permissions(plane: &'static ControlPlane, user: &str) -> Self {
        install(plane);
        register_with_a_service(plane);
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "unleashed"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [
                {"kind": "ServiceAccount", "name": "spillway-controller", "namespace": "spillway-system"},
                {"kind": "ServiceAccount", "name": "spillway-webhook", "namespace": "spillway-system"},
            ],
        });
        plane.create_or_replace(None, &binding);
        // A policy takes effect some time after its creation. The webhook may write nothing.
        let mut account = Self { plane, client: plane.client_as(WEBHOOK).await };
        let forbidden = [
            ("/api/v1/namespaces/default/pods", pod("probe", &json!({}))),
            ("/api/v1/nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "probe"}})),
            ("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "probe"}})),
            (
                "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
                json!({"metadata": {"name": "probe"}}),
            ),
        ];
        for (path, object) in forbidden {
            let path = format!("{path}?dryRun=All");
            for attempt in 0.. {
                let answer = account.send("POST", &path, &object).await;
                if answer.is_err_and(|message| message.contains("ValidatingAdmissionPolicy")) {
                    break;
                }
                assert!(attempt < 600, "the policy on {path} does not take effect");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        account.client = plane.client_as(user).await;
        account
    }

    /// Sends a request, and returns the object or the error message.
    async fn send(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let kind = match (method, body) {
            ("PATCH", Value::Array(_)) => "application/json-patch+json",
            ("PATCH", _) => "application/merge-patch+json",
            _ => "application/json",
        };
        let request =
            Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, kind).body(body.to_string());
        match self.client.request_text(request.unwrap().map(String::into_bytes)).await {
            Ok(text) => Ok(serde_json::from_str(&text).unwrap_or(Value::String(text))),
            Err(kube::Error::Api(status)) => Err(status.message.clone()),
            Err(other) => Err(format!("{other:?}")),
        }
    }

    async fn allows(&self, method: &str, path: &str, body: Value) -> Value {
        self.send(method, path, &body).await.unwrap_or_else(|message| panic!("{method} {path} {body}: {message}"))
    }

    /// Asserts that the policy refuses a request with this message.
    async fn refuses(&self, method: &str, path: &str, body: Value, words: &str) {
        let message = match self.send(method, path, &body).await {
            Ok(done) => panic!("{method} {path} {body} was not refused: {done:#}"),
            Err(message) => message,
        };
        assert!(
            message.contains("ValidatingAdmissionPolicy 'spillway-") && message.contains(words),
            "{method} {path} {body}: {message}"
        );
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.plane.delete("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/unleashed");
    }
}

/// Returns changes of metadata that only the owner of an object may make.
fn metadata_changes() -> Vec<Value> {
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "vm-1", "uid": "0"});
    vec![
        json!({"metadata": {"labels": {"azure.workload.identity/use": "true"}}}),
        json!({"metadata": {"labels": {"owned": null}}}),
        json!({"metadata": {"labels": null}}),
        json!({"metadata": {"finalizers": ["example.com/hold"]}}),
        json!({"metadata": {"ownerReferences": [owner]}}),
    ]
}

fn path(namespace: &Namespace, name: &str) -> String {
    format!("/api/v1/namespaces/{}/pods/{name}", namespace.name)
}

/// Returns a gated pod with many fields set. The API server itself permits most changes of this pod.
fn rich() -> Value {
    pod(
        "rich",
        &json!({
            "metadata": {"labels": {"owned": "by-its-owner"}, "annotations": {"example.com/a": "b", "spillway.dev/mode": "late"}},
            "spec": {
                "containers": [{"name": "c", "image": "registry.example/c", "resources": {"requests": {"cpu": "1"}}}],
                "schedulingGates": [{"name": "example.com/gate"}],
                "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}],
            },
        }),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_writes_pod_tolerations_and_its_annotations() {
    let sandbox = sandbox();
    let controller = Account::with_all_permissions(sandbox.plane, CONTROLLER).await;
    let namespace = sandbox.plane.namespace(Some("enabled"));
    namespace.create(&rich());
    let bare = namespace.create(&pod("bare", &json!({})));
    assert!(bare["metadata"]["annotations"].is_null() && bare["metadata"]["labels"].is_null(), "{bare:#}");
    let toleration = json!({"key": "virtual-kubelet.io/provider", "operator": "Exists", "effect": "NoSchedule"});
    for name in ["rich", "bare"] {
        let pod = path(&namespace, name);
        let added = json!([{"op": "add", "path": "/spec/tolerations/-", "value": toleration}]);
        let changed = controller.allows("PATCH", &pod, added).await;
        assert!(changed["spec"]["tolerations"].as_array().unwrap().contains(&toleration), "{changed:#}");
        for (key, value) in [
            ("spillway.dev/decision", json!("late")),
            ("spillway.dev/decision", json!("prefer")),
            ("spillway.dev/decision", Value::Null),
            ("microsoft.containerinstance.virtualnode.injectkubeproxy", json!("false")),
            ("microsoft.containerinstance.virtualnode.injectkubeproxy", Value::Null),
        ] {
            controller.allows("PATCH", &pod, json!({"metadata": {"annotations": {key: value}}})).await;
        }
        controller
            .allows("PATCH", &pod, json!({"metadata": {"annotations": {"spillway.dev/added": "toleration"}}}))
            .await;
        controller.allows("PATCH", &pod, json!({})).await;
    }
    controller
        .allows(
            "PATCH",
            &path(&namespace, "rich"),
            json!([{"op": "remove", "path": "/metadata/annotations/spillway.dev~1mode"}]),
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_writes_nothing_else_of_pods() {
    let sandbox = sandbox();
    let controller = Account::with_all_permissions(sandbox.plane, CONTROLLER).await;
    let namespace = sandbox.plane.namespace(Some("enabled"));
    let rich = namespace.create(&rich());
    let pod_path = path(&namespace, "rich");
    let spec = "Spillway may change only the tolerations of a pod's spec";
    for (patch, words) in [
        (json!([{"op": "replace", "path": "/spec/containers/0/image", "value": "evil"}]), spec),
        (json!({"spec": {"activeDeadlineSeconds": 1}}), spec),
        (json!({"spec": {"schedulingGates": null}}), spec),
        (json!({"spec": {"nodeSelector": {"type": "virtual-kubelet"}}}), spec),
        (
            json!([{"op": "add", "path": "/spec/tolerations/-", "value": {"operator": "Exists"}}]),
            "tolerations with a key and an effect",
        ),
        (
            json!([{"op": "add", "path": "/spec/tolerations/-", "value": {"operator": "Exists", "effect": "NoSchedule"}}]),
            "tolerations with a key and an effect",
        ),
        (
            json!([{"op": "add", "path": "/spec/tolerations/-", "value": {"key": "gpu", "operator": "Exists"}}]),
            "tolerations with a key and an effect",
        ),
        // The API server itself allows this change.
        (
            json!([{"op": "replace", "path": "/spec/tolerations/0/tolerationSeconds", "value": 9}]),
            "may not change tolerations",
        ),
        (json!({"metadata": {"annotations": {"example.com/a": "c"}}}), "annotations spillway.dev/*"),
        (json!({"metadata": {"annotations": {"example.com/a": null}}}), "annotations spillway.dev/*"),
        (json!({"metadata": {"annotations": {"example.com/new": ""}}}), "annotations spillway.dev/*"),
        (json!({"metadata": {"annotations": null}}), "annotations spillway.dev/*"),
        (
            json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-100"}}}),
            "annotations spillway.dev/*",
        ),
        (json!({"metadata": {"annotations": {"spillway.dev.example.com/a": "b"}}}), "annotations spillway.dev/*"),
    ] {
        controller.refuses("PATCH", &pod_path, patch, words).await;
    }
    for patch in metadata_changes() {
        controller
            .refuses("PATCH", &pod_path, patch, "Spillway may change only the annotations of a pod's metadata")
            .await;
    }
    let mut replaced = rich.clone();
    replaced["spec"]["containers"][0]["image"] = "evil".into();
    controller.refuses("PUT", &pod_path, replaced, spec).await;

    let pods = format!("/api/v1/namespaces/{}/pods", namespace.name);
    controller.allows("POST", &format!("{pods}?dryRun=All"), pod("trial", &json!({}))).await;
    let other = "may not create or delete pods, nor use other subresources";
    controller.refuses("POST", &pods, pod("new", &json!({})), other).await;
    controller.refuses("DELETE", &pod_path, json!({}), other).await;
    controller.refuses("DELETE", &pods, json!({}), other).await;
    let binding = json!({"metadata": {"name": "rich"}, "target": {"kind": "Node", "name": "vm-1"}});
    controller.refuses("POST", &format!("{pod_path}/binding"), binding, other).await;
    controller.refuses("PATCH", &format!("{pod_path}/status"), json!({"status": {"phase": "Failed"}}), other).await;
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "evil"}]}});
    controller.refuses("PATCH", &format!("{pod_path}/ephemeralcontainers"), debug, other).await;
    let resize = json!([{"op": "replace", "path": "/spec/containers/0/resources/requests/cpu", "value": "2"}]);
    controller.refuses("PATCH", &format!("{pod_path}/resize"), resize, other).await;
    controller.refuses("POST", &format!("{pod_path}/exec?command=sh"), Value::Null, other).await;
    let now = namespace.pod("rich");
    assert_eq!(now["metadata"]["resourceVersion"], rich["metadata"]["resourceVersion"], "nothing was written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_writes_pods_only_in_opted_in_namespaces() {
    let sandbox = sandbox();
    let controller = Account::with_all_permissions(sandbox.plane, CONTROLLER).await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "web"}});
    for (profile, allowed) in [(Some("enabled"), true), (Some("mine"), true), (Some("disabled"), false), (None, false)]
    {
        let namespace = sandbox.plane.namespace(profile);
        namespace.create(&pod("web", &json!({})));
        let web = path(&namespace, "web");
        let toleration = json!({"key": "virtual-kubelet.io/provider", "operator": "Exists", "effect": "NoSchedule"});
        let add = json!([{"op": "add", "path": "/spec/tolerations/-", "value": toleration}]);
        for (method, path, body) in [("PATCH", web.clone(), &add), ("POST", format!("{web}/eviction"), &eviction)] {
            if allowed {
                controller.allows(method, &path, body.clone()).await;
            } else {
                controller.refuses(method, &path, body.clone(), "namespaces that have opted in").await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_writes_its_own_taints_and_unschedulable() {
    let sandbox = sandbox();
    let controller = Account::with_all_permissions(sandbox.plane, CONTROLLER).await;
    let foreign = json!({"key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule"});
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "guarded", "labels": {"owned": "x"}, "annotations": {"a": "b"}},
        "spec": {"taints": [foreign], "providerID": "azure://1"},
    });
    sandbox.plane.create(&node);
    sandbox.plane.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bare"}}));
    let path = "/api/v1/nodes/guarded";
    let own = json!({"key": "spillway.dev/full", "effect": "NoSchedule"});
    let add = json!([{"op": "add", "path": "/spec/taints/-", "value": own}]);
    controller.allows("PATCH", path, add).await;
    controller.allows("PATCH", path, json!({"spec": {"unschedulable": true}})).await;
    controller.allows("PATCH", path, json!({"spec": {"unschedulable": null}})).await;
    controller.allows("PATCH", "/api/v1/nodes/bare", json!({"spec": {"unschedulable": true}})).await;
    let only = "Spillway may change only taints and unschedulable of a node";
    let taints = "Spillway may write only the taints spillway.dev/*";
    for (patch, words) in [
        (json!({"spec": {"taints": null}}), taints),
        (json!({"spec": {"taints": [own]}}), taints),
        (json!([{"op": "add", "path": "/spec/taints/-", "value": {"key": "x", "effect": "NoExecute"}}]), taints),
        (json!([{"op": "replace", "path": "/spec/taints/0/effect", "value": "NoExecute"}]), taints),
        (json!({"spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]}}), only),
        (json!({"metadata": {"annotations": {"spillway.dev/x": "y"}}}), only),
    ] {
        controller.refuses("PATCH", path, patch, words).await;
    }
    for patch in metadata_changes() {
        controller.refuses("PATCH", path, patch, only).await;
    }
    let other = "may not create or delete nodes, nor use subresources";
    controller.refuses("DELETE", path, json!({}), other).await;
    controller.refuses("PATCH", &format!("{path}/status"), json!({"status": {"capacity": {"cpu": "9"}}}), other).await;
    controller.refuses("POST", "/api/v1/nodes", json!({"metadata": {"name": "new"}}), other).await;
    controller.refuses("GET", &format!("{path}/proxy/logs"), Value::Null, other).await;
    sandbox.plane.delete_node("guarded");
    sandbox.plane.delete_node("bare");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_writes_only_the_secret_of_its_authority() {
    let sandbox = sandbox();
    let controller = Account::with_all_permissions(sandbox.plane, CONTROLLER).await;
    let secrets = "/api/v1/namespaces/spillway-system/secrets";
    let secret = |name: &str, kind: &str| {
        let data = json!({"tls.crt": "", "tls.key": ""});
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": kind, "data": data})
    };
    for kind in ["Opaque", "kubernetes.io/tls"] {
        controller.allows("POST", secrets, secret("spillway-ca", kind)).await;
        controller
            .allows(
                "PATCH",
                &format!("{secrets}/spillway-ca"),
                json!({"data": {"tls.crt": "YQ=="}, "metadata": {"labels": {"a": "b"}}}),
            )
            .await;
        let only = "Spillway may create and change only the Secret spillway-ca";
        controller.refuses("DELETE", &format!("{secrets}/spillway-ca"), json!({}), only).await;
        sandbox.plane.delete(AUTHORITY_SECRET);
        controller.refuses("POST", secrets, secret("other", kind), only).await;
        let mut secret_named_by_the_server = secret("", kind);
        secret_named_by_the_server["metadata"] = json!({"generateName": "spillway-ca"});
        controller.refuses("POST", secrets, secret_named_by_the_server, only).await;
        let elsewhere = "/api/v1/namespaces/default/secrets";
        controller.refuses("POST", elsewhere, secret("spillway-ca", kind), only).await;
        let mut token = secret("spillway-ca", "kubernetes.io/service-account-token");
        token["metadata"]["annotations"] = json!({"kubernetes.io/service-account.name": "default"});
        controller.refuses("POST", secrets, token, only).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_writes_only_its_own_config_map_and_events() {
    let sandbox = sandbox();
    let controller = Account::with_all_permissions(sandbox.plane, CONTROLLER).await;
    sandbox.plane.delete("/api/v1/namespaces/spillway-system/configmaps/spillway-identity-report");
    let maps = |namespace: &str| format!("/api/v1/namespaces/{namespace}/configmaps");
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    let report = format!("{}/spillway-identity-report", maps("spillway-system"));
    let only = "Spillway may create and change only the ConfigMap spillway-identity-report";
    controller.allows("POST", &maps("spillway-system"), map("spillway-identity-report")).await;
    controller.allows("PATCH", &report, json!({"data": {"report.json": "{}"}})).await;
    controller.refuses("DELETE", &report, json!({}), only).await;
    controller.refuses("POST", &maps("spillway-system"), map("other"), only).await;
    controller.refuses("POST", &maps("default"), map("spillway-identity-report"), only).await;
    sandbox.plane.delete("/api/v1/namespaces/spillway-system/configmaps/spillway-identity-report");

    let events = |namespace: &str| format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    let event = |name: &str, namespace: &str, kind: &str, by: &str| {
        json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": name},
            "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": by, "reportingInstance": "x",
            "action": "Reconcile", "reason": "IdentityF3", "type": "Warning",
            "regarding": {"kind": kind, "namespace": namespace, "name": "default"}})
    };
    let only = "Spillway may write only events in its own name";
    let ours = "spillway-controller";
    controller.allows("POST", &events("default"), event("guard-a", "default", "ServiceAccount", ours)).await;
    controller.allows("POST", &events("spillway-system"), event("guard-b", "spillway-system", "Secret", ours)).await;
    controller.allows("POST", &events("default"), event("guard-c", "default", "Pod", ours)).await;
    controller
        .refuses("POST", &events("default"), event("guard-d", "default", "ServiceAccount", "kubelet"), only)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_writes_only_the_ca_bundle_of_its_webhooks() {
    let sandbox = sandbox();
    let controller = Account::with_all_permissions(sandbox.plane, CONTROLLER).await;
    let ours = format!("{CONFIGURATIONS}/aci-spillway");
    for (round, bundle) in ["YQ==", "YQo="].into_iter().enumerate() {
        for webhook in 0..2 {
            let path = format!("/webhooks/{webhook}/clientConfig/caBundle");
            let op = if round == 0 { "add" } else { "replace" };
            controller.allows("PATCH", &ours, json!([{"op": op, "path": path, "value": bundle}])).await;
        }
    }
    let only = "only the caBundle of the webhooks of aci-spillway";
    for patch in [
        json!([{"op": "replace", "path": "/webhooks/0/clientConfig", "value": {"url": "https://evil.example", "caBundle": "YQo="}}]),
        json!([{"op": "replace", "path": "/webhooks/0/clientConfig/service/name", "value": "evil"}]),
        json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"}]),
        json!([{"op": "remove", "path": "/webhooks/0/matchConditions"}]),
        json!([{"op": "replace", "path": "/webhooks/0/name", "value": "evil.example.com"}]),
        json!([{"op": "replace", "path": "/webhooks/0/rules/0/resources", "value": ["secrets"]}]),
        json!([{"op": "remove", "path": "/webhooks/1"}]),
        json!({"metadata": {"labels": {"a": "b"}}}),
        json!({"metadata": {"annotations": {"a": "b"}}}),
        json!({"webhooks": []}),
    ] {
        controller.refuses("PATCH", &ours, patch, only).await;
    }
    let name = "Spillway may change only the MutatingWebhookConfiguration aci-spillway";
    controller.refuses("DELETE", &ours, json!({}), name).await;
    controller.refuses("POST", CONFIGURATIONS, json!({"metadata": {"name": "other"}}), name).await;
    sandbox.plane.create(&json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "other"},
    }));
    controller.refuses("PATCH", &format!("{CONFIGURATIONS}/other"), json!({"webhooks": []}), name).await;
    sandbox.plane.delete(&format!("{CONFIGURATIONS}/other"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_webhook_writes_nothing() {
    let sandbox = sandbox();
    let webhook = Account::with_all_permissions(sandbox.plane, WEBHOOK).await;
    let namespace = sandbox.plane.namespace(None);
    namespace.create(&pod("web", &json!({})));
    let own = json!({"metadata": {"annotations": {"spillway.dev/decision": "prefer"}}});
    let bundle = json!([{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "YQ=="}]);
    let configuration = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/aci-spillway";
    for (method, path, body) in [
        ("PATCH", path(&namespace, "web"), own),
        ("PATCH", "/api/v1/nodes/vm-1".to_owned(), json!({"spec": {"unschedulable": true}})),
        ("POST", "/api/v1/namespaces/spillway-system/secrets".to_owned(), json!({"metadata": {"name": "spillway-ca"}})),
        ("PATCH", configuration.to_owned(), bundle),
    ] {
        webhook.refuses(method, &path, body, "the webhook writes nothing").await;
    }
}

/// The evaluation of a policy has a cost budget, which the largest pods must not exceed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policies_stay_within_budget_for_the_largest_pods() {
    let sandbox = sandbox();
    let controller = Account::with_all_permissions(sandbox.plane, CONTROLLER).await;
    let namespace = sandbox.plane.namespace(Some("enabled"));
    let annotations: serde_json::Map<_, _> =
        (0..2000).map(|i| (format!("example.com/annotation-{i}"), json!("x".repeat(90)))).collect();
    let labels: serde_json::Map<_, _> = (0..500).map(|i| (format!("example.com/label-{i}"), json!("x"))).collect();
    let environment: Vec<_> =
        (0..150).map(|i| json!({"name": format!("VARIABLE_{i}"), "value": "x".repeat(100)})).collect();
    let containers: Vec<_> = (0..50)
        .map(|i| json!({"name": format!("c-{i}"), "image": "registry.example/c", "env": environment, "args": ["x".repeat(2000)]}))
        .collect();
    let tolerations: Vec<_> =
        (0..200).map(|i| json!({"key": format!("key-{i}"), "operator": "Exists", "effect": "NoSchedule"})).collect();
    let great = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "great", "labels": labels, "annotations": annotations},
        "spec": {"containers": containers, "tolerations": tolerations},
    });
    assert!(great.to_string().len() > 1_300_000, "{}", great.to_string().len());
    namespace.create(&great);
    let great = path(&namespace, "great");
    let patch = json!([
        {"op": "add", "path": "/spec/tolerations/-", "value": {"key": "a", "operator": "Exists", "effect": "NoSchedule"}},
        {"op": "add", "path": "/metadata/annotations/spillway.dev~1decision", "value": "late"},
    ]);
    controller.allows("PATCH", &great, patch).await;
    let image = json!([{"op": "replace", "path": "/spec/containers/49/image", "value": "evil"}]);
    controller.refuses("PATCH", &great, image, "of a pod's spec").await;
}

/// `failurePolicy: Fail` affects only the accounts of Spillway, even if every expression of the policy fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_policy_affects_only_spillway() {
    let sandbox = sandbox();
    let controller = Account::with_all_permissions(sandbox.plane, CONTROLLER).await;
    let namespace = sandbox.plane.namespace(Some("enabled"));
    let mut policy =
        sandbox.plane.get("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/spillway-pods");
    let expression = "dyn(object).there.is.no.such.field == dyn(oldObject).nor.this";
    policy["metadata"] = json!({"name": "broken"});
    policy["spec"]["validations"] = json!([{"expression": expression, "message": "not reached"}]);
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "broken"}, "spec": {"policyName": "broken", "validationActions": ["Deny"]},
    });
    let broken = Broken(sandbox.plane);
    sandbox.plane.create(&policy);
    sandbox.plane.create(&binding);
    namespace.create(&pod("web", &json!({})));
    let own = json!({"metadata": {"annotations": {"spillway.dev/decision": "prefer"}}});
    let path = path(&namespace, "web");
    for attempt in 0.. {
        let answer = controller.send("PATCH", &path, &own).await;
        if answer.is_err_and(|message| message.contains("'broken'") && message.contains("no such key")) {
            break;
        }
        assert!(attempt < 600, "the broken policy does not take effect");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    namespace.kubectl(&["label", "pod", "web", "a=b"], "");
    namespace.create(&pod("another", &json!({})));
    namespace.kubectl(&["delete", "pod", "another", "--now"], "");
    drop(broken);
    // The API server observes the deletion a moment later. The policy must not affect the next test.
    for attempt in 0.. {
        if controller.send("PATCH", &path, &own).await.is_ok() {
            break;
        }
        assert!(attempt < 600, "the broken policy stays in effect");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The policy of the test above. Dropping it removes the policy.
struct Broken(&'static ControlPlane);

impl Drop for Broken {
    fn drop(&mut self) {
        for kind in ["validatingadmissionpolicybindings", "validatingadmissionpolicies"] {
            self.0.delete(&format!("/apis/admissionregistration.k8s.io/v1/{kind}/broken"));
        }
    }
}

#[test]
fn policies_restrict_writes_that_rbac_cannot_name() {
    let sandbox = sandbox();
    install(sandbox.plane);
    let policies = sandbox.plane.list("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies");
    let held: BTreeSet<&str> = policies
        .iter()
        .flat_map(|policy| policy["spec"]["matchConstraints"]["resourceRules"].as_array().unwrap())
        .flat_map(|rule| rule["resources"].as_array().unwrap())
        .map(|resource| resource.as_str().unwrap())
        .collect();
    let mut loose = BTreeSet::new();
    for (kind, path) in [("role", "namespaces/spillway-system/roles"), ("clusterrole", "clusterroles")] {
        for account in ["spillway-controller", "spillway-webhook"] {
            let role = sandbox.plane.get(&format!("/apis/rbac.authorization.k8s.io/v1/{path}/{account}"));
            for rule in role["rules"].as_array().unwrap().iter().filter(|rule| rule["resourceNames"].is_null()) {
                let resource = rule["resources"][0].as_str().unwrap();
                let verbs = rule["verbs"].as_array().unwrap().iter().map(|verb| verb.as_str().unwrap());
                let writes = verbs.filter(|verb| !["get", "list", "watch"].contains(verb));
                let is_held = |resource: &str| match resource.split_once('/') {
                    Some((kind, _)) => held.contains(format!("{kind}/*").as_str()),
                    None => held.contains(resource),
                };
                loose.extend(writes.filter(|_| !is_held(resource)).map(|verb| format!("{kind} {verb} {resource}")));
            }
        }
    }
    // This permission is harmless, because it applies only in Spillway's namespace.
    assert_eq!(Vec::from_iter(loose), ["role create leases"]);
}
