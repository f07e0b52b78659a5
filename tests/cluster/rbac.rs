//! Every right of our accounts is needed: without it something breaks that has a name here.
//!
//! The rights are read from the manifest, so that one which is added there needs a line in the table below.

use std::{collections::BTreeSet, path::PathBuf, thread, time::Duration};

use axum::http::Method;
use serde_json::{Value, json};

use crate::{
    admission::pod,
    certificates::Installed,
    configuration::Volume,
    harness::{
        ControlPlane, Controller, Namespace, Sandbox, Webhook, control_plane, eventually, sandbox,
        webhook_configuration,
    },
    identity_checks::{Watched, azure_workload_identity},
    packaging::manifests,
    virtual_nodes::virtual_node,
};

/// One verb on one kind, as RBAC grants it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    account: String,
    resource: String,
    verb: String,
    /// The rule with this verb alone.
    rule: String,
}

/// What breaks without a right.
enum Breaks {
    /// The webhook never gets ready, and names this as missing.
    Readiness(&'static str),
    /// A change of the cluster goes unseen: made by the first, seen in the answer of the webhook by the second.
    Following(fn(&Namespace, &ControlPlane), fn(&Webhook, &Namespace) -> bool),
    /// What is not in the caches cannot be looked up.
    Lookup,
    /// A binding to a virtual node stays as it is, which is counted.
    Binding,
    /// The certificates are not kept, and the log says what is forbidden.
    Certificates,
    /// Identity is not checked in full, and the log says what is forbidden.
    Identity,
    /// The overflow is not kept in order, and the log or a metric says what is forbidden.
    Overflow,
}
use Breaks::{Binding, Certificates, Following, Identity, Lookup, Overflow, Readiness};

/// What each right is needed for.
fn needs(account: &str, resource: &str, verb: &str) -> Option<Breaks> {
    Some(match (account, resource, verb) {
        ("spillway-webhook", "namespaces", "list") => Readiness("namespaces"),
        ("spillway-webhook", "namespaces", "watch") => Following(opt_in, is_decided),
        ("spillway-webhook", "serviceaccounts", "list") => Readiness("service accounts"),
        ("spillway-webhook", "serviceaccounts", "watch") => Following(give_identity, is_labelled),
        ("spillway-webhook", "serviceaccounts", "get") => Lookup,
        ("spillway-webhook", "pods", "get") => Binding,
        ("spillway-webhook", "nodes", "list") => Readiness("virtual nodes"),
        ("spillway-webhook", "nodes", "watch") => Following(add_first_generation, stays_for_its_address),
        ("spillway-webhook", "networkpolicies", "list") => Readiness("network policies"),
        ("spillway-webhook", "networkpolicies", "watch") => Following(add_policy, stays_for_the_policy),
        // Each of them is used: listed and watched for changes, read and written by the controller.
        ("spillway-webhook", "secrets" | "mutatingwebhookconfigurations", "list" | "watch")
        | ("spillway-controller", "secrets", "create" | "get" | "list" | "watch" | "update")
        | ("spillway-controller", "mutatingwebhookconfigurations", "get" | "list" | "watch" | "patch")
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
        | ("spillway-controller", "networkpolicies" | "events", "list" | "watch")
        | ("spillway-controller", "nodepools", "list") => Overflow,
        _ => return None,
    })
}

fn rights(plane: &ControlPlane) -> BTreeSet<Right> {
    let rendered = plane.kubectl(&["kustomize", &manifests("base")]);
    let objects = rendered.split("\n---\n").map(|document| serde_saphyr::from_str::<Value>(document).unwrap());
    let mut rights = BTreeSet::new();
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
                rights.insert(Right { account, resource, verb, rule: alone.to_string() });
            }
        }
    }
    rights
}

/// A pod of an account and with an address in its environment, which the first generation cannot give it.
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

/// What a webhook answers to a review.
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

fn give_identity(namespace: &Namespace, plane: &ControlPlane) {
    opt_in(namespace, plane);
    let annotations = json!({"azure.workload.identity/client-id": "0"});
    namespace.patch("serviceaccounts/default", &json!({"metadata": {"annotations": annotations}}));
}

fn is_labelled(webhook: &Webhook, namespace: &Namespace) -> bool {
    let answer = answer(webhook, namespace, "default");
    answer["response"]["patch"].is_string()
        && crate::explain::sent_patch(&answer).contains("azure.workload.identity/use")
}

fn add_first_generation(namespace: &Namespace, plane: &ControlPlane) {
    opt_in(namespace, plane);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "first-generation", "labels": {"type": "virtual-kubelet"}}});
    plane.create_or_replace(None, &node);
}

fn stays_for_its_address(webhook: &Webhook, namespace: &Namespace) -> bool {
    decision(webhook, namespace).contains("PodIPFieldRef")
}

fn add_policy(namespace: &Namespace, plane: &ControlPlane) {
    opt_in(namespace, plane);
    namespace
        .create(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "all"},
        "spec": {"podSelector": {}}}));
}

fn stays_for_the_policy(webhook: &Webhook, namespace: &Namespace) -> bool {
    decision(webhook, namespace).contains("NetworkPolicy")
}

/// A webhook whose account has these rights.
fn webhook_with(turn: &Sandbox, name: &str, rights: &[&Right]) -> Webhook {
    Webhook::start_beside(turn.plane, name, &kubeconfig_with(turn.plane, name, rights))
}

/// An account with these rights.
fn kubeconfig_with(plane: &ControlPlane, name: &str, rights: &[&Right]) -> PathBuf {
    // Roles of one namespace do as well in the whole cluster: the names in them are ours alone.
    let mut rules: Vec<Value> = rights.iter().map(|right| serde_json::from_str(&right.rule).unwrap()).collect();
    // Whoever may ask for this has all the others, too: the authorizer hears of a role after it was made.
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
    eventually("the rights to be known", || may(plane, &user, "/known").then_some(()));
    plane.kubeconfig_for("default", name)
}

/// Returns whether the authorizer lets a user get a path that is no resource.
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

/// Whether a webhook looks up a service account that does not exist, and learns that.
fn looks_up(webhook: &Webhook, namespace: &Namespace) -> bool {
    answer(webhook, namespace, "nobody");
    webhook.metric(r#"spillway_service_account_lookups_total{result="not_found"}"#) > 0
}

/// Whether a webhook looks up a pod that does not exist and is bound to a virtual node, and learns that.
fn looks_up_pod(webhook: &Webhook, namespace: &Namespace) -> bool {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "u-1", "kind": {"group": "", "version": "v1", "kind": "Binding"}, "subResource": "binding",
            "operation": "CREATE", "name": "nobody", "namespace": namespace.name,
            "object": {"metadata": {"name": "nobody"}, "target": {"kind": "Node", "name": "first-generation"}}},
    });
    send(webhook, "/mutate-v1-binding", &review);
    webhook.metric(r#"spillway_pod_lookups_total{result="not_found"}"#) > 0
}

#[test]
fn every_right_is_known_to_be_needed() {
    let rights = rights(control_plane());
    let unknown = rights.iter().filter(|right| needs(&right.account, &right.resource, &right.verb).is_none());
    let unknown: Vec<_> = unknown.map(|right| format!("{} {} {}", right.account, right.verb, right.resource)).collect();
    assert_eq!(unknown, <[&str; 0]>::default(), "what breaks without it?");
}

#[test]
fn without_any_one_of_its_rights_the_webhook_lacks_something() {
    let turn = sandbox();
    let plane = turn.plane;
    let rights = rights(plane);
    let of_webhook: Vec<_> = rights.iter().filter(|right| right.account == "spillway-webhook").collect();
    let whole = webhook_with(&turn, "rights-all", &of_webhook);
    eventually("the webhook with all rights to be ready", || is_ready(&whole).then_some(()));
    for (i, right) in of_webhook.iter().enumerate() {
        let what = format!("{} {}", right.verb, right.resource);
        let less: Vec<_> = of_webhook.iter().filter(|other| other != &right).copied().collect();
        let namespace = plane.namespace(None);
        let less = webhook_with(&turn, &format!("rights-{i}"), &less);
        match needs(&right.account, &right.resource, &right.verb) {
            Some(Readiness(missing)) => {
                let expected = (503, format!("not ready: {missing}\n"));
                eventually(&format!("{what} to be the only thing missing"), || {
                    (less.admin("/readyz") == expected).then_some(())
                });
            }
            Some(Following(change, is_seen)) => {
                eventually("the webhook to be ready", || is_ready(&less).then_some(()));
                assert!(!is_seen(&whole, &namespace) && !is_seen(&less, &namespace), "{what}: seen too early");
                change(&namespace, plane);
                eventually(&format!("{what}: the webhook with all rights to see the change"), || {
                    is_seen(&whole, &namespace).then_some(())
                });
                assert!(!is_seen(&less, &namespace), "{what} is not needed");
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
            // These are tried below.
            Some(Certificates | Identity | Overflow) | None => {}
        }
    }
    plane.delete_node("first-generation");
}

/// What a log says is forbidden, in the words of the API server.
fn complaints(log: &[Value]) -> BTreeSet<String> {
    let errors = log.iter().filter_map(|line| line["error"].as_str());
    let complaints = errors.filter_map(|error| {
        let (_, what) = error.split_once(" cannot ")?;
        let (verb, rest) = what.split_once(" resource \"")?;
        Some(format!("{verb} {}", rest.split_once('"')?.0))
    });
    complaints.collect()
}

/// Breaks the authority, so that it is replaced and told of: each time another event of the same kind.
fn break_authority(plane: &ControlPlane) {
    let garbage = json!({"data": {"tls.key": "Z2FyYmFnZQ=="}});
    let _ = plane.send(Method::PATCH, "/api/v1/namespaces/spillway-system/secrets/spillway-ca", &garbage);
}

#[test]
fn without_any_one_of_its_rights_an_account_cannot_do_its_part_for_the_certificates() {
    let installed = Installed::new();
    let plane = installed.plane();
    plane.apply(&webhook_configuration(plane, "127.0.0.1:9".parse().unwrap()));
    let rights = rights(plane);
    let of = |account: &str| rights.iter().filter(|right| right.account == account).collect::<Vec<_>>();
    let (of_webhook, of_controller) = (of("spillway-webhook"), of("spillway-controller"));

    let controller =
        |name: &str, rights: &[&Right]| Controller::start_as(plane, name, &kubeconfig_with(plane, name, rights), &[]);
    let whole = controller("certificate-rights-all", &of_controller);
    let written = || whole.log().iter().filter(|line| line["message"] == "wrote the certificate authority").count();
    // Counted from the start: a replacement may be written before the command that causes it has returned.
    for n in 1..=3 {
        eventually("the authority to be replaced", || (written() >= n).then_some(()));
        break_authority(plane);
    }
    let webhook = kubeconfig_with(plane, "certificate-rights-webhook", &of_webhook);
    let webhook = Webhook::start_self_managed_as(plane, "certificate-rights-webhook", &webhook, &[]).ready();
    assert_eq!(complaints(&webhook.log()), BTreeSet::new());
    assert_eq!(complaints(&whole.log()), BTreeSet::new(), "every right that is used is there");
    drop(whole);

    for (i, right) in of_webhook.iter().chain(&of_controller).enumerate() {
        if !matches!(needs(&right.account, &right.resource, &right.verb), Some(Certificates)) {
            continue;
        }
        let name = format!("certificate-rights-{i}");
        let less: Vec<_> = rights.iter().filter(|other| other.account == right.account && other != right).collect();
        let kubeconfig = kubeconfig_with(plane, &name, &less);
        let log: Box<dyn Fn() -> Vec<Value>> = if right.account == "spillway-webhook" {
            let webhook = Webhook::start_self_managed_as(plane, &name, &kubeconfig, &[]);
            Box::new(move || webhook.log())
        } else {
            installed.clear_authority();
            let controller = Controller::start_as(plane, &name, &kubeconfig, &[]);
            Box::new(move || controller.log())
        };
        let expected = BTreeSet::from([format!("{} {}", right.verb, right.resource)]);
        eventually(&format!("{expected:?} to be missed by {}", right.account), || {
            break_authority(plane);
            (complaints(&log()) == expected).then_some(())
        });
    }
}

#[test]
fn without_any_one_of_its_rights_the_controller_cannot_check_identity_in_full() {
    let watched = Watched::new();
    let plane = watched.0.plane();
    let namespace = plane.namespace(None);
    // What makes it read everything: a webhook with a Service, and a pod with an identity binding.
    plane.create_or_replace(None, &azure_workload_identity());
    namespace.identity("bound");
    let annotations = json!({"azure.workload.identity/use-identity-binding": "true"});
    namespace.create(&pod(
        "bound",
        &json!({"metadata": {"annotations": annotations}, "spec": {"serviceAccountName": "bound", "schedulingGates": [{"name": "test/held"}]}}),
    ));
    let rights = rights(plane);
    let of_controller: Vec<_> = rights.iter().filter(|right| right.account == "spillway-controller").collect();
    for (i, right) in of_controller.iter().enumerate() {
        if !matches!(needs(&right.account, &right.resource, &right.verb), Some(Identity)) {
            continue;
        }
        watched.forget();
        let name = format!("identity-rights-{i}");
        let less: Vec<_> = of_controller.iter().filter(|other| *other != right).copied().collect();
        let controller = Controller::start_as(plane, &name, &kubeconfig_with(plane, &name, &less), &[]);
        let expected = BTreeSet::from([format!("{} {}", right.verb, right.resource)]);
        eventually(&format!("{expected:?} to be missed"), || {
            // Another finding makes another report.
            for client_id in [json!("1"), Value::Null] {
                let path = format!("/api/v1/namespaces/{}/serviceaccounts/default", namespace.name);
                let annotations = json!({"azure.workload.identity/client-id": client_id});
                let _ = plane.send(Method::PATCH, &path, &json!({"metadata": {"annotations": annotations}}));
            }
            (complaints(&controller.log()) == expected).then_some(())
        });
    }
}

/// A pod that the webhook has missed and that a budget keeps where it is, so that every controller tries to evict it; and, from then
/// on, a webhook that answers.
fn missed_and_held(plane: &ControlPlane, namespace: &Namespace) -> Webhook {
    // What is created at the same time as its namespace opts in was not missed.
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
fn without_any_one_of_its_rights_the_controller_cannot_keep_overflow_in_order() {
    const TRIED: &str = "spillway_actions_total{action=\"evict\",result=";
    const STRANGE: &str = "overflow-rights";
    let installed = Installed::new();
    let plane = installed.plane();
    plane.apply(&webhook_configuration(plane, "127.0.0.1:9".parse().unwrap()));
    let (missed, late) = (plane.namespace(Some("enabled")), {
        plane.annotated_namespace(Some("autoscaled"), &json!({"spillway.dev/late-after": "0s"}))
    });
    let _webhook = missed_and_held(plane, &missed);
    // A virtual node that no pod goes to, and whose own pod is looked for.
    virtual_node(plane, STRANGE, "example.com/strange");
    let volume = Volume::new("overflow-rights-volume", "missed: {evict: true}");
    let rights = rights(plane);
    let of_controller: Vec<_> = rights.iter().filter(|right| right.account == "spillway-controller").collect();
    // Each finds a taint to write, a pod to let onto virtual nodes, one to evict, and a node whose pod is gone.
    let controller = |name: &str, rights: &[&Right]| {
        installed.clear_lease();
        plane.try_kubectl(&["taint", "node", STRANGE, "spillway.dev/last-resort-"], "");
        let large = json!([{"name": "c", "image": "registry.example/c", "resources": {"requests": {"cpu": "20"}}}]);
        late.create(&pod(name, &json!({"spec": {"containers": large}})));
        let kubeconfig = kubeconfig_with(plane, name, rights);
        Controller::start_as(plane, name, &kubeconfig, &["--config", &volume.file()])
    };
    let whole = controller("overflow-rights-all", &of_controller);
    eventually("everything to be done", || {
        let node = late.pod("overflow-rights-all")["spec"]["nodeName"].clone();
        let taints = plane.get(&format!("/api/v1/nodes/{STRANGE}"))["spec"]["taints"].to_string();
        let is_blocked = whole.metric(&format!("{TRIED}\"blocked\"}}")) > 0;
        (node == "virtualnode-0" && taints.contains("last-resort") && is_blocked).then_some(())
    });
    assert_eq!(complaints(&whole.log()), BTreeSet::new(), "every right that is used is there");
    drop(whole);

    for (i, right) in of_controller.iter().enumerate() {
        if !matches!(needs(&right.account, &right.resource, &right.verb), Some(Overflow)) {
            continue;
        }
        let less: Vec<_> = of_controller.iter().filter(|other| *other != right).copied().collect();
        let controller = controller(&format!("overflow-rights-{i}"), &less);
        let expected = BTreeSet::from([format!("{} {}", right.verb, right.resource)]);
        eventually(&format!("{expected:?} to be missed"), || {
            let is_missed = match (right.resource.as_str(), right.verb.as_str()) {
                // Whatever refuses a dry run would refuse the pod: that is counted, and no failure.
                ("pods", "create") => controller.metric(&format!("{TRIED}\"refused\"}}")) > 0,
                _ => complaints(&controller.log()) == expected,
            };
            is_missed.then_some(())
        });
    }
    plane.delete_node(STRANGE);
}
