//! Rules about pods that do not belong on virtual nodes, or that run there without Spillway.

use super::{Applies, Reason, Rule, Severity};
use crate::pod::Pod;

pub(super) const RULES: &[&Rule] = &[&DAEMON_SET, &MIRROR_POD, &NODE_NAME, &CONFIDENTIAL, &IMAGE_CACHE, &COMPANION];

/// DaemonSets of other operators, such as OpenKruise, have the same kind and behavior.
static DAEMON_SET: Rule = Rule {
    reason: Reason {
        code: "DaemonSet",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "virtual nodes do not support DaemonSets, which run one pod on each node",
        on_virtual_node: "the controller of the DaemonSet creates the pod for one node, so it runs on no other node",
        fix: "no fix is needed; to add a companion to each pod on v2, use its VirtualDaemonSet",
        can_be_allowed: false,
        source: "microsoft/virtualnodesOnAzureContainerInstances README.md; MicrosoftDocs/azure-aks-docs articles/aks/virtual-nodes.md",
    },
    reads: "metadata.ownerReferences[*].kind",
    check: |subject| {
        let owners = subject.pod.metadata.owner_references.as_deref().unwrap_or_default();
        owners.iter().any(|owner| owner.kind.as_deref() == Some("DaemonSet")).then(String::new)
    },
};

static MIRROR_POD: Rule = Rule {
    reason: Reason {
        code: "MirrorPod",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "the pod mirrors a static pod, which already runs on its node",
        on_virtual_node: "no effect: the pod is bound to the node that runs it",
        fix: "no fix is needed",
        can_be_allowed: false,
        source: "kubernetes.io/docs/reference/labels-annotations-taints/#kubernetes-io-config-mirror",
    },
    reads: "metadata.annotations[kubernetes.io/config.mirror]",
    check: |subject| is_mirror(subject.pod).then(String::new),
};

static NODE_NAME: Rule = Rule {
    reason: Reason {
        code: "NodeName",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "spec.nodeName is set, so the scheduler does not place the pod",
        on_virtual_node: "the pod runs on the named node, without regard to tolerations and affinity",
        fix: "replace spec.nodeName by a nodeSelector or affinity",
        can_be_allowed: false,
        source: "kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#nodename",
    },
    reads: "spec.nodeName",
    check: |subject| {
        let name = subject.pod.spec.node_name.as_deref().filter(|name| !name.is_empty())?;
        Some(format!("node {name}"))
    },
};

static CONFIDENTIAL: Rule = Rule {
    reason: Reason {
        code: "ConfidentialPod",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "Spillway does not change confidential pods, because their policy covers the spec",
        on_virtual_node: "the policy denies a spec that changed after the policy was generated",
        fix: "no fix by Spillway; add toleration and placement to the manifest before you generate the policy",
        can_be_allowed: false,
        source: "microsoft/virtualnodesOnAzureContainerInstances Docs/PodCustomizations.md (ccepolicy); virtual-kubelet/azure-aci pkg/provider/aci.go (container-sku)",
    },
    reads: "metadata.annotations[microsoft.containerinstance.virtualnode.ccepolicy, virtual-kubelet.io/container-sku, virtual-kubelet.io/confidential-compute-cce-policy]",
    check: |subject| is_confidential(subject.pod).then(String::new),
};

static IMAGE_CACHE: Rule = Rule {
    reason: Reason {
        code: "ImageCachePod",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "an image cache pod does not run; the standby pool caches its images",
        on_virtual_node: "the pod is part of the virtual node's own infrastructure",
        fix: "no fix is needed",
        can_be_allowed: false,
        source: "microsoft/virtualnodesOnAzureContainerInstances Docs/PodCustomizations.md (imagecachepod)",
    },
    reads: "metadata.annotations[microsoft.containerinstance.virtualnode.imagecachepod]",
    check: |subject| is_image_cache(subject.pod).then(String::new),
};

static COMPANION: Rule = Rule {
    reason: Reason {
        code: "VirtualDaemonSetPod",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "a VirtualDaemonSet creates the pod as a companion of another pod",
        on_virtual_node: "the pod is part of the virtual node's own infrastructure",
        fix: "no fix is needed",
        can_be_allowed: false,
        source: "microsoft/virtualnodesOnAzureContainerInstances Docs/PodCustomizations.md (VirtualDaemonSet)",
    },
    reads: "metadata.labels[virtualdaemonset.kubernetes.io/virtualdaemonset]",
    check: |subject| is_companion(subject.pod).then(String::new),
};

/// Returns whether the pod mirrors a static pod.
pub fn is_mirror(pod: &Pod<'_>) -> bool {
    pod.annotation("kubernetes.io/config.mirror").is_some()
}

/// Returns whether the pod has a confidential computing policy, by the annotations of either generation.
pub fn is_confidential(pod: &Pod<'_>) -> bool {
    pod.annotation("microsoft.containerinstance.virtualnode.ccepolicy").is_some()
        || pod.annotation("virtual-kubelet.io/confidential-compute-cce-policy").is_some()
        || pod
            .annotation("virtual-kubelet.io/container-sku")
            .is_some_and(|sku| sku.eq_ignore_ascii_case("confidential"))
}

/// Returns whether the pod only lists images for a standby pool.
pub fn is_image_cache(pod: &Pod<'_>) -> bool {
    pod.annotation("microsoft.containerinstance.virtualnode.imagecachepod").is_some_and(|value| value == "true")
}

/// Returns whether the pod is a companion of a VirtualDaemonSet.
pub fn is_companion(pod: &Pod<'_>) -> bool {
    pod.label("virtualdaemonset.kubernetes.io/virtualdaemonset").is_some()
}
