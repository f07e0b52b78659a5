//! Patch for a pod of mode `late` that stays unschedulable for too long.

use json_patch::Patch as JsonPatch;

use super::{ADDED, Added, Part, patch::PatchBuilder, placement};
use crate::{config::VirtualNodes, pod::Pod};

/// Returns the JSON patch that lets an existing pod run on virtual nodes, or `None` if it already tolerates them.
///
/// Tolerations are the only constraint that clients can loosen on an existing pod (kubernetes
/// `pkg/apis/core/validation/validation.go`, `ValidatePodUpdate`). After the change, the scheduler tries the pod again.
pub fn late_toleration(pod: &Pod<'_>, nodes: &VirtualNodes) -> Option<JsonPatch> {
    if placement::is_tolerated(pod, nodes) {
        return None;
    }
    let toleration = Part::Toleration.as_str();
    let added = match Added::text(pod) {
        "" => toleration.to_owned(),
        others => format!("{toleration},{others}"),
    };
    let mut patch = PatchBuilder::new();
    let annotations = pod.metadata.annotations.as_ref();
    patch.set_entries("/metadata/annotations", annotations, [(ADDED, added.as_str())].into_iter());
    patch.append(format_args!("/spec/tolerations"), pod.spec.tolerations.is_some(), &nodes.toleration);
    patch.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Configuration;

    fn after(pod: &Value) -> Option<Value> {
        let (text, configuration) = (pod.to_string(), Configuration::default());
        let view: Pod<'_> = serde_json::from_str(&text).unwrap();
        let patch = late_toleration(&view, &configuration.virtual_nodes)?;
        let mut pod = pod.clone();
        json_patch::patch(&mut pod, &patch).unwrap();
        Some(pod)
    }

    #[test]
    fn late_pods_get_the_toleration_once_and_it_is_recorded() {
        let ours = json!({"key": "virtual-kubelet.io/provider", "operator": "Exists", "effect": "NoSchedule"});
        let own = json!({"key": "x", "operator": "Exists"});
        for (pod, added, tolerations) in [
            (json!({"metadata": {}, "spec": {}}), "toleration", json!([ours])),
            (
                json!({"metadata": {"annotations": {ADDED: "affinity,kube-proxy,dns"}}, "spec": {"tolerations": [own]}}),
                "toleration,affinity,kube-proxy,dns",
                json!([own, ours]),
            ),
        ] {
            let late = after(&pod).unwrap();
            assert_eq!(late["metadata"]["annotations"][ADDED], added);
            assert_eq!(late["spec"]["tolerations"], tolerations);
            assert_eq!(after(&late), None, "never twice");
        }
    }

    #[test]
    fn pods_that_already_tolerate_virtual_nodes_get_no_patch() {
        let own = json!({"key": "virtual-kubelet.io/provider", "operator": "Exists"});
        assert_eq!(after(&json!({"metadata": {}, "spec": {"tolerations": [own]}})), None);
    }
}
