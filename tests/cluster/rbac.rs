//! Every permission of the accounts of Spillway is needed: a test shows what fails without it, except for permissions to list.
//!
//! The permissions come from the manifest, so that a new one needs a line in the table below.

use std::{collections::BTreeSet, path::PathBuf, thread, time::Duration};

use axum::http::Method;
use serde_json::{Value, json};

use crate::{
    admission::pod,
    harness::{
        AUTHORITY_SECRET, ConfigVolume, ControlPlane, Controller, InstalledSandbox, Namespace, Sandbox, Webhook,
        control_plane, eventually, sandbox, webhook_configuration,
    },
    identity_reconciler::{IdentitySandbox, azure_workload_identity},
    packaging::manifests,
    virtual_nodes::virtual_node,
};

/// One verb on one resource, as RBAC grants it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Permission {
    account: String,
    resource: String,
    verb: String,
    /// The rule with this verb only.
    rule: String,
}

/// What fails without a permission.
enum Effect {
    /// The webhook does not become ready, and names this cache.
    Readiness(&'static str),
    /// The webhook cannot look up an object that is not in its cache.
    Lookup,
    /// The webhook does not change a binding to a virtual node, and counts an error.
    Binding,
    /// The account cannot maintain certificates, and logs what is forbidden.
    Certificates,
    /// The controller cannot check identity completely, and logs what is forbidden.
    Identity,
    /// Nothing here. An API server without the feature gate `WatchList` streams no lists, so that Spillway lists pages.
    Fallback,
    /// The controller cannot manage overflow, and reports what is forbidden in its log or in a metric.
    Overflow,
}
use Effect::{Binding, Certificates, Fallback, Identity, Lookup, Overflow, Readiness};

/// The resources that are listed without a watch, or by other requests too.
const LISTED: [&str; 3] = ["nodepools", "userassignedidentities", "federatedidentitycredentials"];

/// Returns what fails without a permission.
fn effect_without(account: &str, resource: &str, verb: &str) -> Option<Effect> {
    Some(match (account, resource, verb) {
        (_, resource, "list") if !LISTED.contains(&resource) => Fallback,
        ("spillway-webhook", "namespaces", "watch") => Readiness("namespaces"),
        ("spillway-webhook", "serviceaccounts", "watch") => Readiness("service accounts"),
        ("spillway-webhook", "nodes", "watch") => Readiness("virtual nodes"),
        ("spillway-webhook", "networkpolicies", "watch") => Readiness("network policies"),
        ("spillway-webhook", "serviceaccounts", "get") => Lookup,
        ("spillway-webhook", "pods", "get") => Binding,
        // All of them are used: both accounts watch, and the controller reads and writes.
        ("spillway-webhook", "secrets" | "mutatingwebhookconfigurations", "watch")
        | ("spillway-controller", "secrets", "create" | "get" | "watch" | "update")
        | ("spillway-controller", "mutatingwebhookconfigurations", "get" | "watch" | "patch")
        | ("spillway-controller", "leases", "create" | "get" | "patch")
        | ("spillway-controller", "events", "create" | "patch") => Certificates,
        (
            "spillway-controller",
            "serviceaccounts"
            | "pods"
            | "namespaces"
            | "nodes"
            | "endpointslices"
            | "clusterroles"
            | "clusterrolebindings"
            | "userassignedidentities"
            | "federatedidentitycredentials",
            "list" | "watch",
        )
        | ("spillway-controller", "configmaps", "create" | "get" | "patch") => Identity,
        ("spillway-controller", "pods" | "nodes", "get" | "patch")
        | ("spillway-controller", "pods" | "pods/eviction", "create")
        | ("spillway-controller", "namespaces", "get")
        | ("spillway-controller", "networkpolicies" | "events", "watch")
        | ("spillway-controller", "nodepools", "list") => Overflow,
        _ => return None,
    })
}

fn permissions(plane: &ControlPlane) -> BTreeSet<Permission> {
    let rendered = plane.kubectl(&["kustomize", &manifests("base")]);
    let objects = rendered.split("\n---\n").map(|document| serde_saphyr::from_str::<Value>(document).unwrap());
    let mut permissions = BTreeSet::new();
    for role in objects.filter(|object| ["Role", "ClusterRole"].contains(&object["kind"].as_str().unwrap())) {
        let strings = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
        for rule in role["rules"].as_array().unwrap() {
            for (resource, verb) in strings(&rule["resources"])
                .iter()
                .flat_map(|resource| strings(&rule["verbs"]).into_iter().map(move |verb| (resource.clone(), verb)))
            {
                let mut alone = rule.clone();
                (alone["resources"], alone["verbs"]) = (json!([resource]), json!([verb]));
                let account = role["metadata"]["name"].as_str().unwrap().to_owned();
                permissions.insert(Permission { account, resource, verb, rule: alone.to_string() });
            }
        }
    }
    permissions
}

/// Reviews a pod with a reference to its own IP address, which the first generation of virtual nodes does not support.
fn answer(webhook: &Webhook, namespace: &Namespace, account: &str) -> Value {
    let address = json!([{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    let containers = json!([{"name": "c", "image": "registry.example/c", "env": address}]);
    let pod = pod("web", &json!({"spec": {"serviceAccountName": account, "containers": containers}}));
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "u-1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
            "namespace": namespace.name, "object": pod},
    });
    send(webhook, "/mutate-v1-pod", &review)
}

/// Sends a review and returns the response.
fn send(webhook: &Webhook, path: &str, review: &Value) -> Value {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let body = review.to_string().into();
    let answer = runtime.block_on(async { webhook.https().send(path, "application/json", body).await });
    let (status, body) = answer.unwrap();
    assert_eq!(status, 200);
    serde_json::from_slice(&body).unwrap()
}

fn decision(webhook: &Webhook, namespace: &Namespace) -> String {
    let answer = answer(webhook, namespace, "default");
    answer["response"]["auditAnnotations"]["decision"].as_str().unwrap_or_default().to_owned()
}

fn opt_in(namespace: &Namespace, _: &ControlPlane) {
    namespace.set_metadata(&json!({"labels": {"spillway.dev/burst": "enabled"}}));
}

fn is_decided(webhook: &Webhook, namespace: &Namespace) -> bool {
    !decision(webhook, namespace).is_empty()
}

fn add_first_generation(namespace: &Namespace, plane: &ControlPlane) {
    opt_in(namespace, plane);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "first-generation", "labels": {"type": "virtual-kubelet"}}});
    plane.create_or_replace(None, &node);
}

/// Starts a webhook with these permissions.
fn webhook_with(sandbox: &Sandbox, name: &str, permissions: &[&Permission]) -> Webhook {
    Webhook::start_beside(sandbox.plane, name, &kubeconfig_with(sandbox.plane, name, permissions))
}

/// Creates an account with these permissions.
fn kubeconfig_with(plane: &ControlPlane, name: &str, permissions: &[&Permission]) -> PathBuf {
    // A ClusterRole also works for the permissions of Roles: only Spillway uses the names in them.
    let mut rules: Vec<Value> =
        permissions.iter().map(|permission| serde_json::from_str(&permission.rule).unwrap()).collect();
    // The authorizer learns of new roles with a delay. This path shows that it knows the role.
    rules.push(json!({"nonResourceURLs": ["/known"], "verbs": ["get"]}));
    let group = "rbac.authorization.k8s.io";
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    plane.create_in(Some("default"), &account);
    let role_and_binding = [
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}),
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}]}),
    ];
    for object in &role_and_binding {
        plane.create(object);
    }
    let user = format!("system:serviceaccount:default:{name}");
    eventually("the permissions to be known", || may(plane, &user, "/known").then_some(()));
    plane.kubeconfig_for("default", name)
}

/// Returns whether a user may get this path, which is no resource.
fn may(plane: &ControlPlane, user: &str, path: &str) -> bool {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": user, "nonResourceAttributes": {"path": path, "verb": "get"}},
    });
    plane.create(&review)["status"]["allowed"] == true
}

fn is_ready(webhook: &Webhook) -> bool {
    webhook.admin("/readyz").0 == 200
}

/// Returns whether a webhook looks up a service account that does not exist.
fn looks_up(webhook: &Webhook, namespace: &Namespace) -> bool {
    answer(webhook, namespace, "absent");
    webhook.metric(r#"spillway_service_account_lookups_total{result="not_found"}"#) > 0
}

/// Returns whether a webhook looks up a pod that does not exist, when it is bound to a virtual node.
fn looks_up_pod(webhook: &Webhook, namespace: &Namespace) -> bool {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "u-1", "kind": {"group": "", "version": "v1", "kind": "Binding"}, "subResource": "binding",
            "operation": "CREATE", "name": "absent", "namespace": namespace.name,
            "object": {"metadata": {"name": "absent"}, "target": {"kind": "Node", "name": "first-generation"}}},
    });
    send(webhook, "/mutate-v1-binding", &review);
    webhook.metric(r#"spillway_pod_lookups_total{result="not_found"}"#) > 0
}

#[test]
fn every_permission_has_a_test() {
    let permissions = permissions(control_plane());
    let unknown = permissions
        .iter()
        .filter(|permission| effect_without(&permission.account, &permission.resource, &permission.verb).is_none());
    let unknown: Vec<_> = unknown
        .map(|permission| format!("{} {} {}", permission.account, permission.verb, permission.resource))
        .collect();
    assert_eq!(unknown, <[&str; 0]>::default(), "what breaks without it?");
}

#[test]
fn every_webhook_permission_is_needed() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    let permissions = permissions(plane);
    let of_webhook: Vec<_> = permissions.iter().filter(|permission| permission.account == "spillway-webhook").collect();
    let whole = webhook_with(&sandbox, "permissions-all", &of_webhook);
    eventually("the webhook with all permissions to be ready", || is_ready(&whole).then_some(()));
    for (i, permission) in of_webhook.iter().enumerate() {
        let what = format!("{} {}", permission.verb, permission.resource);
        let less: Vec<_> = of_webhook.iter().filter(|other| other != &permission).copied().collect();
        let namespace = plane.namespace(None);
        let less = webhook_with(&sandbox, &format!("permissions-{i}"), &less);
        match effect_without(&permission.account, &permission.resource, &permission.verb) {
            Some(Readiness(missing)) => {
                let expected = (503, format!("not ready: {missing}\n"));
                eventually(&format!("{what} to be the only thing missing"), || {
                    (less.admin("/readyz") == expected).then_some(())
                });
            }
            Some(Lookup) => {
                opt_in(&namespace, plane);
                eventually("the webhook to be ready", || is_ready(&less).then_some(()));
                eventually("the namespace", || is_decided(&less, &namespace).then_some(()));
                eventually("the lookup", || looks_up(&whole, &namespace).then_some(()));
                assert!(!looks_up(&less, &namespace), "{what} is not needed");
            }
            Some(Binding) => {
                add_first_generation(&namespace, plane);
                eventually("the pod to be looked up", || looks_up_pod(&whole, &namespace).then_some(()));
                eventually("the lookup to fail", || {
                    assert!(!looks_up_pod(&less, &namespace), "{what} is not needed");
                    (less.metric(r#"spillway_pod_lookups_total{result="error"}"#) > 0).then_some(())
                });
            }
            // The tests below cover these.
            Some(Certificates | Fallback | Identity | Overflow) | None => {}
        }
    }
    plane.delete_node("first-generation");
}

/// Returns the forbidden requests in a log, as the API server names them.
fn complaints(log: &[Value]) -> BTreeSet<String> {
    let errors = log.iter().filter_map(|line| line["error"].as_str());
    let complaints = errors.filter_map(|error| {
        let (_, what) = error.split_once(" cannot ")?;
        let (verb, rest) = what.split_once(" resource \"")?;
        Some(format!("{verb} {}", rest.split_once('"')?.0))
    });
    complaints.collect()
}

/// Breaks the certificate authority, so that the controller replaces it and emits an event.
fn break_authority(plane: &ControlPlane) {
    let garbage = json!({"data": {"tls.key": "Z2FyYmFnZQ=="}});
    let _ = plane.send(Method::PATCH, AUTHORITY_SECRET, &garbage);
}

#[test]
fn every_certificate_permission_is_needed() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    plane.apply(&webhook_configuration(plane, "127.0.0.1:9".parse().unwrap()));
    let permissions = permissions(plane);
    let of = |account: &str| permissions.iter().filter(|permission| permission.account == account).collect::<Vec<_>>();
    let (of_webhook, of_controller) = (of("spillway-webhook"), of("spillway-controller"));

    let controller = |name: &str, permissions: &[&Permission]| {
        Controller::start_as(plane, name, &kubeconfig_with(plane, name, permissions), &[])
    };
    let whole = controller("certificate-rights-all", &of_controller);
    let written = || whole.log().iter().filter(|line| line["message"] == "wrote the certificate authority").count();
    // Counted from the start: the controller may write before the request that causes it returns.
    for n in 1..=3 {
        eventually("the authority to be replaced", || (written() >= n).then_some(()));
        break_authority(plane);
    }
    let webhook = kubeconfig_with(plane, "certificate-rights-webhook", &of_webhook);
    let webhook = Webhook::start_self_managed_as(plane, "certificate-rights-webhook", &webhook, &[]).ready();
    assert_eq!(complaints(&webhook.log()), BTreeSet::new());
    assert_eq!(complaints(&whole.log()), BTreeSet::new(), "every permission that is used is there");
    drop(whole);

    for (i, permission) in of_webhook.iter().chain(&of_controller).enumerate() {
        if !matches!(effect_without(&permission.account, &permission.resource, &permission.verb), Some(Certificates)) {
            continue;
        }
        let name = format!("certificate-rights-{i}");
        let less: Vec<_> =
            permissions.iter().filter(|other| other.account == permission.account && other != permission).collect();
        let kubeconfig = kubeconfig_with(plane, &name, &less);
        let log: Box<dyn Fn() -> Vec<Value>> = if permission.account == "spillway-webhook" {
            let webhook = Webhook::start_self_managed_as(plane, &name, &kubeconfig, &[]);
            Box::new(move || webhook.log())
        } else {
            installed.delete_authority();
            let controller = Controller::start_as(plane, &name, &kubeconfig, &[]);
            Box::new(move || controller.log())
        };
        let expected = BTreeSet::from([format!("{} {}", permission.verb, permission.resource)]);
        eventually(&format!("{expected:?} to be missed by {}", permission.account), || {
            break_authority(plane);
            (complaints(&log()) == expected).then_some(())
        });
    }
}

#[test]
fn every_identity_permission_is_needed() {
    let identity_sandbox = IdentitySandbox::new();
    let plane = identity_sandbox.0.plane();
    let namespace = plane.namespace(None);
    // The controller reads everything for a webhook with a Service and a pod with an identity binding.
    plane.create_or_replace(None, &azure_workload_identity());
    namespace.identity("bound");
    let annotations = json!({"azure.workload.identity/use-identity-binding": "true"});
    namespace.create(&pod(
        "bound",
        &json!({"metadata": {"annotations": annotations}, "spec": {"serviceAccountName": "bound", "schedulingGates": [{"name": "test/held"}]}}),
    ));
    let permissions = permissions(plane);
    let of_controller: Vec<_> =
        permissions.iter().filter(|permission| permission.account == "spillway-controller").collect();
    for (i, permission) in of_controller.iter().enumerate() {
        if !matches!(effect_without(&permission.account, &permission.resource, &permission.verb), Some(Identity)) {
            continue;
        }
        identity_sandbox.forget();
        let name = format!("identity-rights-{i}");
        let less: Vec<_> = of_controller.iter().filter(|other| *other != permission).copied().collect();
        let controller = Controller::start_as(plane, &name, &kubeconfig_with(plane, &name, &less), &[]);
        let expected = BTreeSet::from([format!("{} {}", permission.verb, permission.resource)]);
        eventually(&format!("{expected:?} to be missed"), || {
            // The controller writes another report for another finding.
            for client_id in [json!("1"), Value::Null] {
                let path = format!("/api/v1/namespaces/{}/serviceaccounts/default", namespace.name);
                let annotations = json!({"azure.workload.identity/client-id": client_id});
                let _ = plane.send(Method::PATCH, &path, &json!({"metadata": {"annotations": annotations}}));
            }
            (complaints(&controller.log()) == expected).then_some(())
        });
    }
}

/// Creates a missed pod that a disruption budget protects, so that every controller tries to evict it, and starts a webhook that
/// answers.
fn missed_and_held(plane: &ControlPlane, namespace: &Namespace) -> Webhook {
    // A pod that is created together with the opt-in of its namespace was not missed.
    thread::sleep(Duration::from_secs(3));
    let labels = json!({"app": "held"});
    let containers = json!([{"name": "c", "image": "registry.example/c"}]);
    namespace.create(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "held"},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}}},
    }));
    namespace.create(&json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "held"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": labels}},
    }));
    namespace.kubectl(&["rollout", "status", "deployment/held", "--timeout=60s"], "");
    let signer = Controller::start(plane, "overflow-rights-signer", &[]);
    let webhook = Webhook::start_self_managed(plane, "overflow-rights-webhook", &[]).ready();
    plane.apply(&webhook_configuration(plane, webhook.address));
    eventually("the webhook to answer", || {
        namespace.dry_run(&pod("trial", &json!({})))["metadata"]["annotations"]["spillway.dev/decision"]
            .as_str()
            .map(drop)
    });
    drop(signer);
    webhook
}

#[test]
fn every_overflow_permission_is_needed() {
    const TRIED: &str = "spillway_actions_total{action=\"evict\",result=";
    const UNTOLERATED: &str = "overflow-permissions";
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    plane.apply(&webhook_configuration(plane, "127.0.0.1:9".parse().unwrap()));
    let (missed, late) = (plane.namespace(Some("enabled")), {
        plane.annotated_namespace(Some("autoscaled"), &json!({"spillway.dev/late-after": "0s"}))
    });
    let _webhook = missed_and_held(plane, &missed);
    // A virtual node without pods, whose own pod the controller looks up.
    virtual_node(plane, UNTOLERATED, "example.com/untolerated");
    let volume = ConfigVolume::new("overflow-rights-volume", "missed: {evict: true}");
    let permissions = permissions(plane);
    let of_controller: Vec<_> =
        permissions.iter().filter(|permission| permission.account == "spillway-controller").collect();
    // Each controller finds a taint to write, a pod to let onto virtual nodes, a pod to evict, and a node without its pod.
    let controller = |name: &str, permissions: &[&Permission]| {
        installed.delete_lease();
        plane.try_kubectl(&["taint", "node", UNTOLERATED, "spillway.dev/last-resort-"], "");
        let large = json!([{"name": "c", "image": "registry.example/c", "resources": {"requests": {"cpu": "20"}}}]);
        late.create(&pod(name, &json!({"spec": {"containers": large}})));
        let kubeconfig = kubeconfig_with(plane, name, permissions);
        Controller::start_as(plane, name, &kubeconfig, &["--config", &volume.file()])
    };
    let whole = controller("overflow-rights-all", &of_controller);
    eventually("everything to be done", || {
        let node = late.pod("overflow-rights-all")["spec"]["nodeName"].clone();
        let taints = plane.get(&format!("/api/v1/nodes/{UNTOLERATED}"))["spec"]["taints"].to_string();
        let is_blocked = whole.metric(&format!("{TRIED}\"blocked\"}}")) > 0;
        (node == "virtualnode-0" && taints.contains("last-resort") && is_blocked).then_some(())
    });
    assert_eq!(complaints(&whole.log()), BTreeSet::new(), "every permission that is used is there");
    drop(whole);

    for (i, permission) in of_controller.iter().enumerate() {
        if !matches!(effect_without(&permission.account, &permission.resource, &permission.verb), Some(Overflow)) {
            continue;
        }
        let less: Vec<_> = of_controller.iter().filter(|other| *other != permission).copied().collect();
        let controller = controller(&format!("overflow-rights-{i}"), &less);
        let expected = BTreeSet::from([format!("{} {}", permission.verb, permission.resource)]);
        eventually(&format!("{expected:?} to be missed"), || {
            let is_missed = match (permission.resource.as_str(), permission.verb.as_str()) {
                // The API server would also refuse the pod: the controller counts that, and it is no failure.
                ("pods", "create") => controller.metric(&format!("{TRIED}\"refused\"}}")) > 0,
                _ => complaints(&controller.log()) == expected,
            };
            is_missed.then_some(())
        });
    }
    plane.delete_node(UNTOLERATED);
}
