//! What a pod gets that the webhook marked `late` and that has waited for a VM in vain.

use json_patch::Patch as JsonPatch;

use super::{ADDED, Part, patch::PatchBuilder, placement};
use crate::{config::VirtualNodes, pod::Pod};

/// The JSON patch that lets a living pod onto virtual nodes; nothing if it tolerates them already.
///
/// Tolerations are the one constraint that can be loosened on a pod that exists, by adding some (kubernetes
/// `pkg/apis/core/validation/validation.go`, `ValidatePodUpdate`); the scheduler then looks at the pod again.
pub fn late_toleration(pod: &Pod<'_>, nodes: &VirtualNodes) -> Option<JsonPatch> {
    if placement::is_tolerated(pod, nodes) {
        return None;
    }
    let toleration = Part::Toleration.as_str();
    let added = match pod.annotation(ADDED).unwrap_or_default() {
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
    fn a_late_pod_gets_the_toleration_once_and_it_is_recorded_as_ours() {
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
    fn a_pod_that_tolerates_virtual_nodes_by_itself_is_left_alone() {
        let own = json!({"key": "virtual-kubelet.io/provider", "operator": "Exists"});
        assert_eq!(after(&json!({"metadata": {}, "spec": {"tolerations": [own]}})), None);
    }
}
