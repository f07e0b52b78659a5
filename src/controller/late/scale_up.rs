//! VMs that are about to take pods.

use k8s_openapi::{api::core::v1::Taint, jiff::Timestamp};

use super::SETTLING;
use crate::{cluster::Node, config::Selector, kubernetes::Store};

/// Taints that keep pods from a node until it is set up (kubernetes `staging/src/k8s.io/api/core/v1/well_known_taints.go` and
/// `staging/src/k8s.io/cloud-provider/api/well_known_taints.go`, kubernetes-sigs/karpenter `pkg/apis/v1/taints.go`). Taints of pressure
/// and shutdown are not among them: they last for an unknown time.
const STARTUP_TAINTS: [&str; 5] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/network-unavailable",
    "node.cloudprovider.kubernetes.io/uninitialized",
    "karpenter.sh/unregistered",
];

/// The VMs that are about to take pods, as they will be then, without startup taints.
///
/// Such a VM became Ready so recently that pods may still be placed on it, or still has a startup taint.
pub(super) fn provisioning_nodes(nodes: &Store<Node>, selector: &Selector, now: Timestamp) -> Vec<Node> {
    let vms = nodes.values().filter(|node| !node.is_virtual(selector));
    vms.filter(|node| is_provisioning(node, now)).map(without_startup_taints).collect()
}

fn is_provisioning(node: &Node, now: Timestamp) -> bool {
    node.ready_since.is_some_and(|since| now < since + SETTLING || node.taints.iter().any(is_startup_taint))
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
    fn only_a_vm_that_is_being_set_up_is_on_its_way() {
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
