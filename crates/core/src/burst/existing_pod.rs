//! Patch for an existing pod that has no node yet.

use json_patch::Patch as JsonPatch;

use super::{
    Added, Decision, Outcome, Part, Verdict, Why,
    patch::{PatchBuilder, set_annotations},
    placement::Form,
};
use crate::pod::Pod;

/// Returns the JSON patch that carries out a decision on an existing pod, or `None` if the pod is opted out.
///
/// The API server lets clients add tolerations and change annotations of an existing pod (kubernetes
/// `pkg/apis/core/validation/validation.go`, `ValidatePodUpdate`). It lets no client change the affinity. Clients can
/// change the identity label, but Azure Workload Identity injects only at creation. With the label alone, the pod would
/// seem to have an identity.
pub fn existing_pod_patch(pod: &Pod<'_>, decision: &Decision<'_>) -> Option<JsonPatch> {
    if decision.verdict == Verdict::OptedOut {
        return None;
    }
    let added = Added::read(pod);
    let mut possible = Decision { form: Form::None, ..decision.clone() };
    for step in &mut possible.steps {
        step.outcome = match (step.part, step.outcome) {
            (Part::Affinity, Outcome::Added) if added.has(Part::Affinity) => Outcome::Kept,
            (Part::Affinity | Part::IdentityLabel, Outcome::Added) => Outcome::Left(Why::TooLate),
            (_, Outcome::Withdrawn) => Outcome::Kept,
            (_, outcome) => outcome,
        };
    }
    let mut patch = PatchBuilder::new();
    set_annotations(&mut patch, pod, &possible, &added);
    if let (Outcome::Added, Some(nodes)) = (possible.outcome(Part::Toleration), possible.virtual_nodes) {
        patch.append(format_args!("/spec/tolerations"), pod.spec.tolerations.is_some(), &nodes.toleration);
    }
    patch.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        burst::decide,
        config::{Configuration, Overrides},
        eligibility::{ClusterContext, VirtualNode},
        keys::{ADDED, DECISION},
        workload_identity::ServiceAccount,
    };

    fn after(profile: &str, pod: &Value) -> Option<Value> {
        let (text, configuration) = (pod.to_string(), Configuration::default());
        let view: Pod<'_> = serde_json::from_str(&text).unwrap();
        let settings = configuration.settings(profile, &Overrides::default(), &Overrides::default());
        let labels = [("type", "virtual-kubelet"), ("virtualization", "virtualnode2")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let virtual_nodes = [VirtualNode::new("v".to_owned(), labels)];
        let cluster =
            ClusterContext { virtual_nodes: &virtual_nodes, ..ClusterContext::only(ServiceAccount::WithClientId) };
        let decision = decide(&view, &settings, &cluster);
        let patch = existing_pod_patch(&view, &decision)?;
        let mut pod = pod.clone();
        json_patch::patch(&mut pod, &patch).unwrap();
        Some(pod)
    }

    #[test]
    fn existing_pods_get_only_the_toleration_and_annotations() {
        let ours = json!({"key": "virtual-kubelet.io/provider", "operator": "Exists", "effect": "NoSchedule"});
        let own = json!({"key": "x", "operator": "Exists"});
        let pod = json!({
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}], "tolerations": [own]}});
        let prefer = after("enabled", &pod).unwrap();
        assert_eq!(prefer["metadata"]["annotations"], json!({DECISION: "prefer", ADDED: "toleration"}));
        assert_eq!(prefer["spec"]["tolerations"], json!([own, ours]));
        assert_eq!(
            (&prefer["spec"]["affinity"], &prefer["metadata"]["labels"]),
            (&Value::Null, &json!({"app": "web"}))
        );

        let late = after("autoscaled", &pod).unwrap();
        assert_eq!(late["metadata"]["annotations"], json!({DECISION: "late"}));
        assert_eq!(late["spec"], pod["spec"], "the controller may add the toleration later");

        let peak = after("high-scale", &pod).unwrap();
        assert_eq!(peak["metadata"]["annotations"][ADDED], "toleration,kube-proxy,dns");
    }

    #[test]
    fn a_pod_that_stays_or_is_opted_out_keeps_its_spec() {
        let spec = json!({"containers": [{"name": "c"}], "hostNetwork": true});
        let stays = after("enabled", &json!({"metadata": {}, "spec": spec})).unwrap();
        assert_eq!(stays["spec"], spec);
        assert!(stays["metadata"]["annotations"][DECISION].as_str().unwrap().starts_with("stay: "));
        let out = json!({"metadata": {"labels": {"spillway.dev/burst": "disabled"}}, "spec": spec});
        assert_eq!(after("enabled", &out), None);
    }
}
