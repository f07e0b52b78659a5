//! A ReplicaSet that scales in removes its pods on virtual nodes first, by annotations that the webhook adds to their bindings.

use serde_json::{Value, json};

use crate::harness::{Namespace, control_plane, eventually, spillway};

const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Creates three VMs of four CPUs and a virtual node with the last-resort taint, for the pods of one test.
fn nodes(test: &str) {
    let node = |name: String, labels: Value, taints: Value, cpu: &str| {
        let capacity = json!({"cpu": cpu, "memory": "160Gi", "pods": "110"});
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {"taints": taints},
            "status": {"allocatable": capacity, "capacity": capacity}})
    };
    let guard = json!({"key": "test", "value": test, "effect": "NoSchedule"});
    let vm = |i| node(format!("{test}-vm-{i}"), json!({"test": test}), json!([guard]), "4");
    let mut items: Vec<_> = (1..=3).map(vm).collect();
    // The controller writes the second taint.
    let taints = json!([
        {"key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule"},
        {"key": "spillway.dev/last-resort", "effect": "PreferNoSchedule"},
    ]);
    let labels = json!({"test": test, "type": "virtual-kubelet", "virtualization": "virtualnode2"});
    items.push(node(format!("{test}-virtual"), labels, taints, "1000"));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    control_plane().create_or_replace(None, &list);
    control_plane().nodes_are_ready(&format!("test={test}"));
}

fn deploy(namespace: &Namespace, test: &str, replicas: u32, annotations: &Value) {
    namespace.create(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}, "annotations": annotations},
            "spec": {
                "nodeSelector": {"test": test}, "terminationGracePeriodSeconds": 1,
                "tolerations": [{"key": "test", "operator": "Exists", "effect": "NoSchedule"}],
                "containers": [{"name": "c", "image": "registry.example/c", "resources": {"requests": {"cpu": "500m"}}}],
            }}},
    }));
}

/// Waits until this many pods run, and returns them.
fn running(namespace: &Namespace, count: usize) -> Vec<Value> {
    eventually("the pods to run", || {
        let pods = namespace.pods();
        let is_there = pods.len() == count && pods.iter().all(|pod| pod["status"]["phase"] == "Running");
        is_there.then_some(pods)
    })
}

/// Returns the number of pods on the virtual node and on each VM.
fn placed(pods: &[Value], test: &str) -> [usize; 4] {
    ["virtual", "vm-1", "vm-2", "vm-3"]
        .map(|node| pods.iter().filter(|pod| pod["spec"]["nodeName"] == format!("{test}-{node}")).count())
}

/// Returns a pod's deletion cost and the kind of node that it is placed on.
fn marks(pod: &Value) -> (Option<&str>, Option<&str>) {
    let annotations = &pod["metadata"]["annotations"];
    (annotations[COST].as_str(), annotations["spillway.dev/placed-on"].as_str())
}

fn is_on_virtual(pod: &Value) -> bool {
    pod["spec"]["nodeName"].as_str().is_some_and(|node| node.ends_with("-virtual"))
}

#[test]
fn scale_in_removes_pods_on_virtual_nodes_first() {
    const TEST: &str = "scale-in";
    spillway();
    nodes(TEST);
    let namespace = control_plane().namespace(Some("enabled"));
    deploy(&namespace, TEST, 30, &json!({}));
    // The webhook does not delay a binding when it cannot read the pod in time, as on a busy machine: the test recreates such
    // pods.
    let pods = eventually("all pods on the virtual node to be marked", || {
        let pods = running(&namespace, 30);
        let mut unmarked = pods.iter().filter(|pod| is_on_virtual(pod) && marks(pod) == (None, None)).peekable();
        if unmarked.peek().is_none() {
            return Some(pods);
        }
        let names: Vec<_> = unmarked.map(|pod| pod["metadata"]["name"].as_str().unwrap()).collect();
        namespace.kubectl(&[&["delete", "pod"], &names[..]].concat(), "");
        None
    });
    assert_eq!(placed(&pods, TEST), [6, 8, 8, 8]);
    for pod in &pods {
        let expected = if is_on_virtual(pod) { (Some("-100"), Some("virtual")) } else { (None, None) };
        assert_eq!(marks(pod), expected, "{pod:#}");
    }
    namespace.kubectl(&["scale", "deployment", "web", "--replicas=24"], "");
    assert_eq!(placed(&running(&namespace, 24), TEST), [0, 8, 8, 8]);
}

#[test]
fn bindings_keep_a_pods_own_deletion_cost_and_opt_outs() {
    const TEST: &str = "scale-in-own";
    spillway();
    nodes(TEST);
    let namespace = control_plane().namespace(Some("enabled"));
    let selector = json!({"test": TEST, "type": "virtual-kubelet"});
    let pod = |name: &str, metadata: Value| {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"nodeSelector": selector, "containers": [{"name": "c", "image": "registry.example/c"}],
                "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists", "effect": "NoSchedule"}]},
        });
        pod["metadata"]["name"] = name.into();
        namespace.create(&pod);
    };
    pod("out", json!({"labels": {"spillway.dev/burst": "disabled"}}));
    assert_eq!(marks(&running(&namespace, 1)[0]), (None, None));
    eventually("a pod to be read in time at its binding", || {
        pod("own", json!({"annotations": {COST: "7"}}));
        let pods = running(&namespace, 2);
        let own = marks(pods.iter().find(|pod| pod["metadata"]["name"] == "own").unwrap());
        if own == (Some("7"), Some("virtual")) {
            return Some(());
        }
        assert_eq!(own, (Some("7"), None));
        namespace.kubectl(&["delete", "pod", "own"], "");
        None
    });
}
