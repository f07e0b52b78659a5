//! VMs that will soon accept pods.

use std::time::Duration;

use k8s_openapi::{api::core::v1::Taint, jiff::Timestamp};

use crate::{cluster::Node, config::Selector, kubernetes::Store};

/// How long a VM still counts as provisioning after it became Ready. The scheduler needs this time to bind pods to the VM.
pub(super) const SETTLING: Duration = Duration::from_secs(15);

/// Taints that a node has until its setup is complete (kubernetes `staging/src/k8s.io/api/core/v1/well_known_taints.go` and
/// `staging/src/k8s.io/cloud-provider/api/well_known_taints.go`, kubernetes-sigs/karpenter `pkg/apis/v1/taints.go`). Taints of pressure
/// and shutdown are not included, because they last for an unknown time.
const STARTUP_TAINTS: [&str; 5] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/network-unavailable",
    "node.cloudprovider.kubernetes.io/uninitialized",
    "karpenter.sh/unregistered",
];

/// Returns the VMs that will soon accept pods, without their startup taints.
///
/// Such a VM became Ready within the settling time, or still has a startup taint.
pub(super) fn provisioning_nodes(nodes: &Store<Node>, selector: &Selector, now: Timestamp) -> Vec<Node> {
    let vms = nodes.values().filter(|node| !node.is_virtual(selector));
    vms.filter(|node| is_provisioning(node, now)).map(without_startup_taints).collect()
}

fn is_provisioning(node: &Node, now: Timestamp) -> bool {
    // The time of the condition can be any, so that a sum with it could overflow.
    node.ready_since.is_some_and(|since| since > now - SETTLING || node.taints.iter().any(is_startup_taint))
}

fn is_startup_taint(taint: &Taint) -> bool {
    STARTUP_TAINTS.contains(&taint.key.as_str())
}

fn without_startup_taints(node: &Node) -> Node {
    let mut node = node.clone();
    node.taints.retain(|taint| !is_startup_taint(taint));
    node
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{Cluster, node, unchanged};

    #[test]
    fn only_a_vm_in_setup_counts_as_provisioning() {
        for (key, cordoned, expected) in [
            ("node.cloudprovider.kubernetes.io/uninitialized", false, 1),
            ("node.kubernetes.io/not-ready", false, 1),
            ("node.kubernetes.io/not-ready", true, 0),
            ("node.kubernetes.io/disk-pressure", false, 0),
            ("gpu", false, 0),
        ] {
            let mut cluster = Cluster::new().pod("shop", "p", Some(300), unchanged);
            let mut vm = node("vm", &json!({}), 60);
            vm["spec"] = json!({"unschedulable": cordoned, "taints": [{"key": key, "effect": "NoSchedule"}]});
            cluster.nodes.push(vm);
            assert_eq!(cluster.plan().counts.coming, expected, "{key} {cordoned}");
        }
    }
}
