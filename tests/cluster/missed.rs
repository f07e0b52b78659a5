//! Missed pods: the webhook did not respond at their creation.

use std::{net::SocketAddr, thread, time::Duration};

use serde_json::{Value, json};

use crate::harness::{
    ConfigVolume, ControlPlane, Controller, InstalledSandbox, Namespace, Webhook, eventually, spillway_command,
    webhook_configuration,
};

/// Pods of younger namespaces do not count as missed, because API servers may not have seen the opt-in.
const AGE_OF_NAMESPACE: Duration = Duration::from_secs(3);

/// Registers a webhook that does not respond, because no process listens on its port.
fn register_unreachable_webhook(plane: &ControlPlane) {
    let unused = SocketAddr::from(([127, 0, 0, 1], 1));
    plane.apply(&webhook_configuration(plane, unused));
}

fn deploy(namespace: &Namespace, name: &str, replicas: u32, cpu: &str, changes: &Value) {
    let mut template = json!({
        "metadata": {"labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "c", "image": "registry.example/c", "resources": {"requests": {"cpu": cpu}}}]}});
    json_patch::merge(&mut template, changes);
    namespace.create(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
    }));
}

fn pods(namespace: &Namespace, app: &str) -> Vec<Value> {
    let mut pods = namespace.pods();
    pods.retain(|pod| pod["metadata"]["labels"]["app"] == app);
    pods
}

fn decision(pod: &Value) -> Option<&str> {
    pod["metadata"]["annotations"]["spillway.dev/decision"].as_str()
}

fn wait_for_all(
    namespace: &Namespace,
    app: &str,
    count: usize,
    what: &str,
    is_so: impl Fn(&Value) -> bool,
) -> Vec<Value> {
    eventually(what, || Some(pods(namespace, app)).filter(|pods| pods.len() == count && pods.iter().all(&is_so)))
}

fn has_node(pod: &Value) -> bool {
    pod["spec"]["nodeName"].is_string()
}

/// Returns the exit code and the output of `spillway explain --missed`.
fn explain_missed(plane: &ControlPlane) -> (i32, String) {
    let kubeconfig = plane.dir.join("admin.kubeconfig");
    let output = spillway_command().args(["explain", "--missed"]).env("KUBECONFIG", kubeconfig).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn missed_pending_pods_are_repaired_by_the_controller() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    register_unreachable_webhook(plane);
    let (shop, late) = (plane.namespace(Some("enabled")), plane.namespace(None));
    // Created before the namespace opts in, so not missed.
    deploy(&late, "early", 1, "20", &json!({}));
    wait_for_all(&late, "early", 1, "the pod to wait", |pod| !has_node(pod));
    late.set_metadata(&json!({"labels": {"spillway.dev/burst": "enabled"}}));
    thread::sleep(AGE_OF_NAMESPACE);
    deploy(&shop, "web", 5, "20", &json!({}));
    deploy(&shop, "stays", 1, "20", &json!({"spec": {"hostNetwork": true}}));
    deploy(&shop, "out", 1, "20", &json!({"metadata": {"labels": {"spillway.dev/burst": "disabled"}}}));
    for (app, count) in [("web", 5), ("stays", 1), ("out", 1)] {
        wait_for_all(&shop, app, count, "the pods to be created", |pod| decision(pod).is_none());
    }
    let controller = Controller::start(plane, "missed", &[]);
    let healed = wait_for_all(&shop, "web", 5, "the pods to be bound to the virtual node", |pod| {
        pod["spec"]["nodeName"] == "virtualnode-0"
    });
    for pod in &healed {
        assert_eq!(decision(pod), Some("prefer"), "{pod:#}");
        assert_eq!(pod["metadata"]["annotations"]["spillway.dev/added"], "toleration");
    }
    wait_for_all(&shop, "stays", 1, "the decision to stay", |pod| {
        decision(pod).is_some_and(|decision| decision.contains("HostNetwork"))
    });
    let event = eventually("the event", || {
        shop.events("MissedPodHealed").into_iter().find(|event| {
            event["regarding"]["kind"] == "ReplicaSet" && event["note"].as_str().unwrap().contains("prefer")
        })
    });
    assert_eq!(event["type"], "Normal");
    let healed = "spillway_actions_total{action=\"heal\",result=\"success\"}";
    assert_eq!(controller.metric(healed), 6, "no other pod was changed");
    assert_eq!(decision(&pods(&shop, "out")[0]), None);
    assert_eq!(decision(&pods(&late, "early")[0]), None);
}

#[test]
fn missed_running_pods_are_reported_and_not_evicted_by_default() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    register_unreachable_webhook(plane);
    let shop = plane.namespace(Some("enabled"));
    thread::sleep(AGE_OF_NAMESPACE);
    deploy(&shop, "web", 2, "10m", &json!({}));
    deploy(&shop, "stays", 1, "10m", &json!({"spec": {"hostNetwork": true}}));
    let before = wait_for_all(&shop, "web", 2, "the pods to run", has_node);
    wait_for_all(&shop, "stays", 1, "the pod to run", has_node);
    let controller = Controller::start(plane, "missed-running", &[]);
    eventually("the pods to be counted", || {
        let count = |decision| controller.metric(&format!("spillway_missed_pods{{decision=\"{decision}\"}}"));
        (count("prefer") == 2 && count("stay") == 1).then_some(())
    });
    let event = eventually("the events", || Some(shop.events("PodMissed")).filter(|events| events.len() == 2));
    assert!(event.iter().all(|event| event["regarding"]["kind"] == "ReplicaSet"), "{event:#?}");
    let names = |pods: &[Value]| pods.iter().map(|pod| pod["metadata"]["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&pods(&shop, "web")), names(&before));
    let (code, table) = explain_missed(plane);
    assert_eq!((code, table.lines().count()), (1, 4), "{table}");
    let head: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["NAMESPACE", "POD", "OWNER", "NODE", "CREATED", "DECISION"]);
    for (app, decision) in [("web", "prefer"), ("stays", "stay: HostNetwork")] {
        let is_of = |line: &&str| {
            line.contains(&format!(" {app}-")) && line.contains(" ReplicaSet/") && line.ends_with(decision)
        };
        assert!(table.lines().any(|line| is_of(&line)), "{app}\n{table}");
    }
    assert_eq!(controller.metric("spillway_actions_total{action=\"evict\",result=\"success\"}"), 0);
}

#[test]
fn with_missed_evict_one_pod_of_an_owner_is_evicted_per_hour() {
    const RESULT: &str = "spillway_actions_total{action=\"evict\",result=";
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    register_unreachable_webhook(plane);
    let shop = plane.namespace(Some("enabled"));
    thread::sleep(AGE_OF_NAMESPACE);
    deploy(&shop, "web", 2, "10m", &json!({}));
    deploy(&shop, "held", 2, "10m", &json!({}));
    shop.create(&json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "held"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "held"}}},
    }));
    for app in ["web", "held"] {
        wait_for_all(&shop, app, 2, "the pods to run", |pod| pod["status"]["phase"] == "Running");
    }
    let volume = ConfigVolume::new("missed-volume", "missed: {evict: true}");
    let first = Controller::start(plane, "missed-unproven", &["--config", &volume.file()]);
    eventually("a dry run without a response", || {
        (first.metric(&format!("{RESULT}\"unproven\"}}")) >= 2).then_some(())
    });
    assert_eq!(first.metric(&format!("{RESULT}\"success\"}}")), 0);
    drop(first);
    installed.delete_lease();

    // Another controller signs the certificate and stops before the webhook responds, so that the next controller need not wait.
    let signer = Controller::start(plane, "missed-signer", &[]);
    let webhook = Webhook::start_self_managed(plane, "missed-evict-webhook", &[]).ready();
    plane.apply(&webhook_configuration(plane, webhook.address));
    let trial = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "trial"},
        "spec": {"containers": [{"name": "c", "image": "registry.example/c"}]}});
    eventually("the webhook to respond", || decision(&shop.dry_run(&trial)).map(drop));
    drop(signer);
    // The controller tries a blocked eviction again after a minute, so it must lead at once.
    installed.delete_lease();
    let controller = Controller::start(plane, "missed-evict", &["--config", &volume.file()]);
    let replaced = eventually("a pod to be recreated", || {
        let pods = pods(&shop, "web");
        let decided = pods.iter().filter(|pod| decision(pod) == Some("prefer")).count();
        (pods.len() == 2 && decided > 0).then_some(decided)
    });
    assert_eq!(replaced, 1, "one of an owner in an hour");
    assert!(controller.metric(&format!("{RESULT}\"success\"}}")) >= 1, "in other namespaces too");
    eventually("the budget to be met", || (controller.metric(&format!("{RESULT}\"blocked\"}}")) >= 1).then_some(()));
    assert!(pods(&shop, "held").iter().all(|pod| decision(pod).is_none()));
    eventually("the event", || shop.events("MissedPodEvicted").pop());
    let rounds = || controller.metric("spillway_reconciles_total{reconciler=\"missed\",result=\"success\"}");
    let (before, mut changes) = (rounds(), 0);
    eventually("more rounds", || {
        changes += 1;
        shop.kubectl(&["label", "pods", "--all", "--overwrite", &format!("change={changes}")], "");
        (rounds() >= before + 3).then_some(())
    });
    let of_web = || pods(&shop, "web").iter().filter(|pod| decision(pod) == Some("prefer")).count();
    assert_eq!(of_web(), 1, "one pod of an owner per hour, in any round");
    drop(controller);
    installed.delete_lease();
    let next = Controller::start(plane, "missed-evict-next", &["--config", &volume.file()]);
    eventually("a new leader to see that", || (next.metric(&format!("{RESULT}\"recent\"}}")) >= 1).then_some(()));
    assert_eq!(of_web(), 1, "one pod of an owner per hour, with any leader");
}
