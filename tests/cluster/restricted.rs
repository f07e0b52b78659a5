//! The pods of the manifests, created in a namespace that enforces the level `restricted` of Pod Security, and placed by the real
//! scheduler.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    harness::{ControlPlane, eventually, sandbox},
    packaging::{NAMESPACE, manifests, remove_everything},
};

/// Returns the nodes of a component's running pods.
fn nodes_of(plane: &ControlPlane, component: &str) -> Vec<String> {
    let selector = format!("app.kubernetes.io/name%3Dspillway,app.kubernetes.io/component%3D{component}");
    let pods = plane.list(&format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={selector}"));
    let living =
        pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running");
    living.map(|pod| pod["spec"]["nodeName"].as_str().unwrap().to_owned()).collect()
}

fn rolled_out(plane: &ControlPlane) {
    for deployment in ["deployment/spillway-webhook", "deployment/spillway-controller"] {
        plane.kubectl(&["-n", NAMESPACE, "rollout", "status", deployment, "--timeout=60s"]);
    }
}

/// Creates a virtual node without taints, so that only its label keeps pods away.
fn open_virtual_node(plane: &ControlPlane) {
    let capacity = json!({"cpu": "10000", "memory": "40Ti", "pods": "200"});
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "virtual-open", "labels": {
            "kubernetes.io/hostname": "virtual-open", "kubernetes.io/os": "linux", "type": "virtual-kubelet"}},
        "status": {"capacity": capacity, "allocatable": capacity},
    });
    plane.create_or_replace(None, &node);
    eventually("the virtual node to be ready", || {
        plane.get("/api/v1/nodes/virtual-open")["spec"]["taints"].is_null().then_some(())
    });
}

#[test]
fn spillways_pods_run_on_vms_under_restricted_pod_security() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    remove_everything(plane);
    open_virtual_node(plane);
    plane.kubectl(&["apply", "-k", &manifests("base")]);
    let level = "jsonpath={.metadata.labels.pod-security\\.kubernetes\\.io/enforce}";
    assert_eq!(plane.kubectl(&["get", "namespace", NAMESPACE, "-o", level]), "restricted");
    let loose = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "loose"},
        "spec": {"containers": [{"name": "c", "image": "registry.example/c"}]}});
    let refused = plane.try_kubectl(&["-n", NAMESPACE, "create", "-f", "-"], &loose.to_string());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("violates PodSecurity \"restricted"), "{refused:?}");

    rolled_out(plane);
    let (webhook, controller) = (nodes_of(plane, "webhook"), nodes_of(plane, "controller"));
    assert_eq!((webhook.len(), controller.len()), (2, 1));
    assert!(webhook.iter().chain(&controller).all(|node| node.starts_with("vm-")), "{webhook:?} {controller:?}");
    let pods = plane.kubectl(&["-n", NAMESPACE, "get", "pods", "-o", "json"]);
    for pod in serde_json::from_str::<Value>(&pods).unwrap()["items"].as_array().unwrap() {
        for container in pod["spec"]["containers"].as_array().unwrap() {
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        }
    }
    eventually("the disruption budget to allow one eviction at a time", || {
        let budget =
            plane.get(&format!("/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets/spillway-webhook"));
        (budget["status"]["disruptionsAllowed"] == 1 && budget["status"]["expectedPods"] == 2).then_some(())
    });
    remove_everything(plane);
    plane.delete_node("virtual-open");
}

#[test]
fn high_availability_spreads_replicas_during_rollouts() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    remove_everything(plane);
    open_virtual_node(plane);
    plane.kubectl(&["apply", "-k", &manifests("overlays/high-availability")]);
    for round in 0..2 {
        if round > 0 {
            plane.kubectl(&["-n", NAMESPACE, "rollout", "restart", "deployment"]);
        }
        rolled_out(plane);
        for (component, replicas) in [("webhook", 3), ("controller", 2)] {
            // Old replicas may still terminate when the rollout is complete.
            let nodes = eventually("only the new replicas to be left", || {
                Some(nodes_of(plane, component)).filter(|nodes| nodes.len() == replicas)
            });
            let distinct: BTreeSet<_> = nodes.iter().filter(|node| node.starts_with("vm-")).collect();
            assert_eq!(distinct.len(), replicas, "{component}: {nodes:?}");
        }
    }
    let classes = plane.kubectl(&["-n", NAMESPACE, "get", "pods", "-o", "jsonpath={.items[*].spec.priorityClassName}"]);
    assert!(classes.split(' ').all(|class| class == "system-cluster-critical"), "{classes}");
    remove_everything(plane);
    plane.delete_node("virtual-open");
}
