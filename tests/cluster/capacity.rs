//! Virtual nodes take no more pods than they may, and none while pods fail to start there.

use serde_json::{Value, json};

use crate::{
    certificates::Installed,
    configuration::Volume,
    harness::{Controller, Namespace, eventually},
};

const CLOSED_BY_CAP: &str = "spillway_virtual_nodes_closed{cause=\"cap\"}";
const CLOSED_BY_BREAKER: &str = "spillway_virtual_nodes_closed{cause=\"breaker\"}";

/// Pods that no VM of the example is large enough for.
fn deploy(namespace: &Namespace, replicas: u32) {
    namespace.create(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists", "effect": "NoSchedule"}],
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "c", "image": "registry.example/c", "resources": {"requests": {"cpu": "20"}}}],
            }}},
    }));
}

/// The names of the pods on the virtual node.
fn there(namespace: &Namespace) -> Vec<String> {
    let pods = namespace.pods();
    let on_virtual = pods.iter().filter(|pod| pod["spec"]["nodeName"] == "virtualnode-0");
    on_virtual.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn is_closed(installed: &Installed) -> bool {
    let node = installed.plane().get("/api/v1/nodes/virtualnode-0");
    node["spec"]["taints"].to_string().contains("spillway.dev/full")
}

fn reasons(installed: &Installed) -> Vec<String> {
    let events = installed.plane().events("default");
    events.iter().map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
}

fn told(installed: &Installed, reason: &str) {
    eventually(reason, || reasons(installed).iter().any(|told| told == reason).then_some(()));
}

#[test]
fn at_max_pods_virtual_nodes_are_closed_and_open_again_when_there_is_room() {
    let installed = Installed::new();
    let plane = installed.plane();
    let namespace = plane.namespace(None);
    let volume = Volume::new("capacity-volume", "virtualNodes: {maxPods: 4}");
    let controller = Controller::start(plane, "capacity", &["--config", &volume.file()]);
    deploy(&namespace, 4);
    let is = |closed| is_closed(&installed) == closed && controller.metric(CLOSED_BY_CAP) == u64::from(closed);
    eventually("the virtual node to be closed", || is(true).then_some(()));
    told(&installed, "VirtualNodesFull");

    namespace.kubectl(&["scale", "deployment", "web", "--replicas=6"], "");
    eventually("two pods to wait", || {
        let is_waiting = |pod: &&Value| pod["status"]["conditions"].to_string().contains("Unschedulable");
        (namespace.pods().iter().filter(is_waiting).count() == 2).then_some(())
    });
    assert_eq!(there(&namespace).len(), 4);

    let gone = there(&namespace).swap_remove(0);
    namespace.delete_pod(&gone);
    // All that wait may go at once: the taint is back only when they are seen there.
    eventually("another pod to go there", || (there(&namespace).len() >= 4).then_some(()));
    namespace.kubectl(&["scale", "deployment", "web", "--replicas=1"], "");
    eventually("the virtual node to be open", || is(false).then_some(()));
    told(&installed, "VirtualNodesReopened");
}

#[test]
fn pods_that_the_provider_fails_to_run_close_virtual_nodes() {
    let installed = Installed::new();
    let plane = installed.plane();
    let namespace = plane.namespace(None);
    let volume = Volume::new("breaker-volume", "breaker: {failures: 3}");
    let controller = Controller::start(plane, "breaker", &["--config", &volume.file()]);
    deploy(&namespace, 3);
    let pods =
        eventually("the pods to be on the virtual node", || Some(there(&namespace)).filter(|there| there.len() == 3));
    assert!(!is_closed(&installed));
    for pod in &pods {
        let failed = json!({"status": {"phase": "Pending", "reason": "ProviderFailed"}});
        namespace.patch(&format!("pods/{pod}/status"), &failed);
    }
    eventually("the virtual node to be closed", || {
        (is_closed(&installed) && controller.metric(CLOSED_BY_BREAKER) == 1).then_some(())
    });
    told(&installed, "BreakerOpen");
    namespace.kubectl(&["delete", "deployment", "web", "--wait=true"], "");
    eventually("the virtual node to be open", || (!is_closed(&installed)).then_some(()));
}
