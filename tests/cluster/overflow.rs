//! Overflow: pods that fit on no VM run on the virtual node, and stay pending without Spillway.

use serde_json::{Value, json};

use crate::harness::{Namespace, control_plane, eventually, spillway};

/// Creates three VMs of four CPUs for one test, and a virtual node.
fn nodes() {
    let node = |name: &str, labels: Value, taint: Value, cpu: &str| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {"taints": [taint]},
            "status": {"allocatable": {"cpu": cpu, "memory": "16Gi", "pods": "110"}, "capacity": {"cpu": cpu, "memory": "16Gi", "pods": "110"}}})
    };
    let mut items: Vec<_> = (1..=3)
        .map(|i| {
            let taint = json!({"key": "test", "value": "overflow", "effect": "NoSchedule"});
            node(&format!("overflow-vm-{i}"), json!({"test": "overflow"}), taint, "4")
        })
        .collect();
    let taint = json!({"key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule"});
    items.push(node(
        "overflow-virtual",
        json!({"test": "overflow", "type": "virtual-kubelet", "virtualization": "virtualnode2"}),
        taint,
        "1000",
    ));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    control_plane().create_or_replace(None, &list);
    control_plane().nodes_are_ready("test=overflow");
}

fn deploy(namespace: &Namespace) {
    namespace.create(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 30, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "nodeSelector": {"test": "overflow"},
                "tolerations": [{"key": "test", "operator": "Exists", "effect": "NoSchedule"}],
                "containers": [{"name": "c", "image": "registry.example/c", "resources": {"requests": {"cpu": "500m"}}}],
            }}},
    }));
}

/// Waits until every pod is placed or unschedulable, and returns the numbers on VMs, on the virtual node, and unschedulable.
fn placed(namespace: &Namespace) -> (usize, usize, usize) {
    eventually("30 pods to be placed or found unschedulable", || {
        let pods = namespace.pods();
        let on = |kind: &str| {
            pods.iter().filter(|pod| pod["spec"]["nodeName"].as_str().is_some_and(|node| node.contains(kind))).count()
        };
        let unschedulable = |pod: &&Value| pod["status"]["conditions"].to_string().contains("\"Unschedulable\"");
        let waiting = pods.iter().filter(|pod| pod["spec"]["nodeName"].is_null()).filter(unschedulable).count();
        let counts = (on("-vm-"), on("-virtual"), waiting);
        (counts.0 + counts.1 + counts.2 == 30).then_some(counts)
    })
}

#[test]
fn pods_that_fit_on_no_vm_run_on_the_virtual_node() {
    spillway();
    nodes();
    let without = control_plane().namespace(None);
    deploy(&without);
    assert_eq!(placed(&without), (24, 0, 6), "(VMs, virtual, waiting) without Spillway");
    without.kubectl(&["delete", "deployment", "web", "--cascade=foreground"], "");

    let with = control_plane().namespace(Some("enabled"));
    deploy(&with);
    let (vms, virtual_node, waiting) = placed(&with);
    assert_eq!(waiting, 0, "all 30 run");
    // The preference alone may move some pods while VMs have room: the scheduler weighs it against spreading.
    assert!(virtual_node >= 6 && vms >= 15, "{vms} on VMs, {virtual_node} on the virtual node");
}
