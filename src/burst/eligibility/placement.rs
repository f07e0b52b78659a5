//! Pods whose node is chosen already, or chosen by somebody else.

use crate::pod::Pod;

/// A DaemonSet's pods are tied to one node each, and virtual nodes do not run them.
/// (microsoft/virtualnodesOnAzureContainerInstances README, "not supported".)
/// Other operators' DaemonSets, such as OpenKruise's, carry the same kind and the same meaning.
///
/// Reads `metadata.ownerReferences[*].kind`.
pub(super) fn daemon_set(pod: &Pod<'_>) -> bool {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|owner| owner.kind.as_deref() == Some("DaemonSet"))
}

/// A mirror pod only shows a static pod that its node's kubelet runs already.
/// (Kubernetes, "Create static Pods"; the webhook's matchCondition leaves them out as well.)
///
/// Reads the annotation `kubernetes.io/config.mirror`.
pub(crate) fn mirror_pod(pod: &Pod<'_>) -> bool {
    pod.annotation("kubernetes.io/config.mirror").is_some()
}

/// A pod that names its node never meets the scheduler, so neither toleration nor affinity has a meaning.
///
/// Reads `spec.nodeName`.
pub(super) fn node_name(pod: &Pod<'_>) -> bool {
    pod.spec.node_name.as_deref().is_some_and(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_tied_to_its_node_never_overflows() {
        for (pod, tied) in [
            (r#"{"metadata":{"ownerReferences":[{"kind":"DaemonSet"}]},"spec":{}}"#, true),
            (r#"{"metadata":{"annotations":{"kubernetes.io/config.mirror":""}},"spec":{}}"#, true),
            (r#"{"metadata":{},"spec":{"nodeName":"vm-1"}}"#, true),
            (r#"{"metadata":{"ownerReferences":[{"kind":"ReplicaSet"}]},"spec":{"nodeName":""}}"#, false),
            (r#"{"metadata":{"ownerReferences":null,"annotations":{}},"spec":{"nodeName":null}}"#, false),
        ] {
            let view: Pod<'_> = serde_json::from_str(pod).unwrap();
            assert_eq!(daemon_set(&view) || mirror_pod(&view) || node_name(&view), tied, "{pod}");
        }
    }
}
