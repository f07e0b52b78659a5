//! Kinds of pods that have no business on a virtual node, or that are there already by another way.

use super::{Applies, Reason, Rule, Severity};
use crate::pod::Pod;

pub(super) const RULES: &[&Rule] = &[&DAEMON_SET, &MIRROR_POD, &NODE_NAME, &CONFIDENTIAL, &IMAGE_CACHE, &COMPANION];

/// Other operators' DaemonSets, such as OpenKruise's, carry the same kind and the same meaning.
static DAEMON_SET: Rule = Rule {
    reason: Reason {
        code: "DaemonSet",
        severity: Severity::Refusal,
        applies: Applies::Any,
        meaning: "a DaemonSet runs one pod on each node, and virtual nodes do not support them",
        on_virtual_node: "the pod is made for one node and never runs on another; on virtual nodes DaemonSets are not supported",
        fix: "nothing to mend; for a companion of every pod on a virtual node there is the VirtualDaemonSet of virtual nodes v2",
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
        meaning: "the pod only shows a static pod, which its node runs already",
        on_virtual_node: "nothing: the pod is bound to the node that runs it",
        fix: "nothing to mend",
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
        meaning: "spec.nodeName is set, so the scheduler has no say",
        on_virtual_node: "the pod runs on the node it names; neither toleration nor affinity is looked at",
        fix: "remove spec.nodeName, and say where the pod belongs by nodeSelector or affinity",
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
        meaning: "a confidential pod is left as its policy was made for",
        on_virtual_node: "a spec that changed after the policy was made is denied by it",
        fix: "nothing to mend; write toleration and placement in the manifest before making the policy",
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
        meaning: "an image cache pod is not run; its images are cached on the standby pool",
        on_virtual_node: "it belongs to the virtual node's own machinery",
        fix: "nothing to mend",
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
        meaning: "a companion pod of a VirtualDaemonSet belongs to the pod it accompanies",
        on_virtual_node: "it belongs to the virtual node's own machinery",
        fix: "nothing to mend",
        can_be_allowed: false,
        source: "microsoft/virtualnodesOnAzureContainerInstances Docs/PodCustomizations.md (VirtualDaemonSet)",
    },
    reads: "metadata.labels[virtualdaemonset.kubernetes.io/virtualdaemonset]",
    check: |subject| is_companion(subject.pod).then(String::new),
};

/// Whether the pod is the mirror of a static pod.
pub fn is_mirror(pod: &Pod<'_>) -> bool {
    pod.annotation("kubernetes.io/config.mirror").is_some()
}

/// Whether the pod runs under a confidential computing policy, in either generation's words.
pub fn is_confidential(pod: &Pod<'_>) -> bool {
    pod.annotation("microsoft.containerinstance.virtualnode.ccepolicy").is_some()
        || pod.annotation("virtual-kubelet.io/confidential-compute-cce-policy").is_some()
        || pod
            .annotation("virtual-kubelet.io/container-sku")
            .is_some_and(|sku| sku.eq_ignore_ascii_case("confidential"))
}

/// Whether the pod only names images for a standby pool.
pub fn is_image_cache(pod: &Pod<'_>) -> bool {
    pod.annotation("microsoft.containerinstance.virtualnode.imagecachepod").is_some_and(|value| value == "true")
}

/// Whether the pod is a companion of a VirtualDaemonSet.
pub fn is_companion(pod: &Pod<'_>) -> bool {
    pod.label("virtualdaemonset.kubernetes.io/virtualdaemonset").is_some()
}
