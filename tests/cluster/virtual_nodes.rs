//! Virtual nodes without a running provider, or with unexpected taints.

use axum::http::Method;
use serde_json::{Value, json};

use crate::harness::{ConfigVolume, ControlPlane, Controller, InstalledSandbox, eventually};

/// Creates a virtual node of the second generation that a pod of the same name runs.
pub(crate) fn virtual_node(plane: &ControlPlane, name: &str, taint: &str) {
    let labels = json!({
        "type": "virtual-kubelet", "virtualization": "virtualnode2",
        "microsoft.containerinstance.virtualnode.podname": name,
        "microsoft.containerinstance.virtualnode.podns": "default",
    });
    let taints = json!([{"key": taint, "value": "azure", "effect": "NoSchedule"}]);
    let capacity = json!({"cpu": "100", "memory": "1Ti", "pods": "200"});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints}, "status": {"allocatable": capacity, "capacity": capacity}});
    plane.create(&node);
}

fn infrastructure(plane: &ControlPlane, name: &str) {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": "vm-1", "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "registry.example/c"}]}});
    eventually("the service account of the namespace", || {
        plane.send(Method::POST, "/api/v1/namespaces/default/pods", &pod).ok().map(drop)
    });
}

/// Removes a virtual node and its pod.
fn remove(plane: &ControlPlane, name: &str) {
    plane.delete_node(name);
    plane.delete(&format!("/api/v1/namespaces/default/pods/{name}?gracePeriodSeconds=0"));
}

fn node(plane: &ControlPlane, name: &str) -> Value {
    plane.get(&format!("/api/v1/nodes/{name}"))
}

fn objects_of_events(plane: &ControlPlane, reason: &str) -> Vec<String> {
    let events = plane.list("/apis/events.k8s.io/v1/events");
    let events = events.iter().filter(|event| event["reason"] == reason);
    events.map(|event| event["regarding"]["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn ghost_nodes_are_reported_and_cordoned_until_they_run_again() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    virtual_node(plane, "ghost-0", "virtual-kubelet.io/provider");
    virtual_node(plane, "ghost-1", "virtual-kubelet.io/provider");
    infrastructure(plane, "ghost-1");
    let volume = ConfigVolume::new("ghost-volume", "virtualNodes: {cordonGhosts: true}");
    let controller = Controller::start(plane, "ghosts", &["--config", &volume.file()]);
    eventually("the cordon", || (node(plane, "ghost-0")["spec"]["unschedulable"] == true).then_some(()));
    assert_eq!(controller.metric("spillway_virtual_node_problems{problem=\"ghost\"}"), 1);
    eventually("the event", || {
        // Earlier tests leave events about other nodes.
        let nodes = objects_of_events(plane, "GhostNode");
        let nodes: Vec<_> = nodes.iter().filter(|name| name.starts_with("ghost-")).collect();
        (nodes == ["ghost-0"]).then_some(())
    });
    for name in ["ghost-1", "virtualnode-0"] {
        assert_eq!(node(plane, name)["spec"]["unschedulable"], Value::Null, "{name}");
    }
    infrastructure(plane, "ghost-0");
    let is_back = |node: &Value| {
        node["spec"]["unschedulable"].is_null() && !node["spec"]["taints"].to_string().contains("spillway.dev/ghost")
    };
    eventually("the node to be open", || is_back(&node(plane, "ghost-0")).then_some(()));
    for name in ["ghost-0", "ghost-1"] {
        remove(plane, name);
    }
}

#[test]
fn untolerated_taints_and_prefer_with_autoscaler_are_reported() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    virtual_node(plane, "untolerated-0", "azure.com/aci");
    infrastructure(plane, "untolerated-0");
    let status = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cluster-autoscaler-status"}});
    plane.create_in(Some("kube-system"), &status);
    let (prefer, late) = (plane.namespace(Some("enabled")), plane.namespace(Some("autoscaled")));
    let controller = Controller::start(plane, "advice", &[]);
    eventually("the untolerated taint to be reported", || {
        objects_of_events(plane, "TaintNotTolerated").iter().any(|name| name == "untolerated-0").then_some(())
    });
    eventually("the autoscaler to be reported", || {
        objects_of_events(plane, "PreferDrainsVMs").contains(&prefer.name).then_some(())
    });
    assert!(!objects_of_events(plane, "PreferDrainsVMs").contains(&late.name));
    assert_eq!(controller.metric("spillway_virtual_node_problems{problem=\"taint_not_tolerated\"}"), 1);
    plane.delete("/api/v1/namespaces/kube-system/configmaps/cluster-autoscaler-status");
    remove(plane, "untolerated-0");
}

#[test]
fn pods_on_virtual_nodes_that_fit_on_vms_are_counted() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let namespace = plane.namespace(None);
    let pod = |name: &str, node: &str, decision: Value| {
        namespace.create(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "annotations": {"spillway.dev/decision": decision}},
            "spec": {"nodeName": node, "containers": [
                {"name": "c", "image": "registry.example/c", "resources": {"requests": {"cpu": "3"}}}]},
        }));
    };
    // Three VMs of four CPUs; one of them is full.
    pod("taken", "vm-1", json!("prefer"));
    for i in 0..4 {
        pod(&format!("web-{i}"), "virtualnode-0", json!("prefer"));
    }
    let controller = Controller::start(plane, "room", &[]);
    eventually("the pods to be counted", || {
        (controller.metric("spillway_virtual_pods_while_vms_have_room") == 2).then_some(())
    });
}
