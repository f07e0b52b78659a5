//! The controller closes virtual nodes to new pods at the configured cap, and while pods fail to start.

use serde_json::{Value, json};

use crate::harness::{ConfigVolume, Controller, InstalledSandbox, Namespace, eventually};

const CLOSED_BY_CAP: &str = "spillway_virtual_nodes_closed{cause=\"cap\"}";
const CLOSED_BY_BREAKER: &str = "spillway_virtual_nodes_closed{cause=\"breaker\"}";

/// Creates pods that are too large for the VMs of the example.
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

/// Returns the names of the pods on the virtual node.
fn pods_on_virtual_node(namespace: &Namespace) -> Vec<String> {
    let pods = namespace.pods();
    let on_virtual = pods.iter().filter(|pod| pod["spec"]["nodeName"] == "virtualnode-0");
    on_virtual.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn is_closed(installed: &InstalledSandbox) -> bool {
    let node = installed.plane().get("/api/v1/nodes/virtualnode-0");
    node["spec"]["taints"].to_string().contains("spillway.dev/full")
}

fn reasons(installed: &InstalledSandbox) -> Vec<String> {
    let events = installed.plane().events("default");
    events.iter().map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
}

fn wait_for_event(installed: &InstalledSandbox, reason: &str) {
    eventually(reason, || reasons(installed).iter().any(|found| found == reason).then_some(()));
}

#[test]
fn virtual_nodes_close_at_max_pods_and_reopen() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let namespace = plane.namespace(None);
    let volume = ConfigVolume::new("capacity-volume", "virtualNodes: {maxPods: 4}");
    let controller = Controller::start(plane, "capacity", &["--config", &volume.file()]);
    deploy(&namespace, 4);
    let is = |closed| is_closed(&installed) == closed && controller.metric(CLOSED_BY_CAP) == u64::from(closed);
    eventually("the virtual node to be closed", || is(true).then_some(()));
    wait_for_event(&installed, "VirtualNodesFull");

    namespace.kubectl(&["scale", "deployment", "web", "--replicas=6"], "");
    eventually("two pods to wait", || {
        let is_waiting = |pod: &&Value| pod["status"]["conditions"].to_string().contains("Unschedulable");
        (namespace.pods().iter().filter(is_waiting).count() == 2).then_some(())
    });
    assert_eq!(pods_on_virtual_node(&namespace).len(), 4);

    let gone = pods_on_virtual_node(&namespace).swap_remove(0);
    namespace.delete_pod(&gone);
    // The scheduler may bind all pending pods at once: the controller adds the taint only after it sees them on the node.
    eventually("another pod to be bound to the virtual node", || {
        (pods_on_virtual_node(&namespace).len() >= 4).then_some(())
    });
    namespace.kubectl(&["scale", "deployment", "web", "--replicas=1"], "");
    eventually("the virtual node to be open", || is(false).then_some(()));
    wait_for_event(&installed, "VirtualNodesReopened");
}

#[test]
fn the_breaker_closes_virtual_nodes_if_azure_has_no_capacity() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let namespace = plane.namespace(None);
    let volume = ConfigVolume::new("breaker-volume", "breaker: {failures: 3}");
    let controller = Controller::start(plane, "breaker", &["--config", &volume.file()]);
    deploy(&namespace, 3);
    let pods = eventually("the pods to be on the virtual node", || {
        Some(pods_on_virtual_node(&namespace)).filter(|pods| pods.len() == 3)
    });
    assert!(!is_closed(&installed));
    for pod in &pods {
        let message = "ERROR CODE: ContainerGroupQuotaReached\n";
        let failed = json!({"status": {"phase": "Pending", "reason": "ProviderFailed", "message": message}});
        namespace.patch(&format!("pods/{pod}/status"), &failed);
    }
    eventually("the virtual node to be closed", || {
        (is_closed(&installed) && controller.metric(CLOSED_BY_BREAKER) == 1).then_some(())
    });
    wait_for_event(&installed, "BreakerOpen");
    namespace.kubectl(&["delete", "deployment", "web", "--wait=true"], "");
    eventually("the virtual node to be open", || (!is_closed(&installed)).then_some(()));
}
