//! One decision of the webhook, on a review from a real API server.

use spillway::{
    admission::{self, ResponseExtras, ReviewError},
    burst::{self, ClusterContext, ServiceAccount},
    config::{Configuration, Overrides},
    eligibility::{NetworkPolicy, VirtualNode},
    webhook,
};

/// The review of a Deployment's pod with three containers, recorded from a real API server. UIDs and times were replaced by constants,
/// and the user by the ReplicaSet controller's service account.
pub(crate) const REVIEW: &[u8] = include_bytes!("../review.json");

/// The webhook's configuration and cached objects.
pub(crate) struct WebhookState {
    configuration: Configuration,
    namespace: Overrides,
    virtual_nodes: Vec<VirtualNode>,
    /// NetworkPolicies of the pod's namespace.
    pub(crate) network_policies: Vec<NetworkPolicy>,
}

impl Default for WebhookState {
    /// Returns a state with ten virtual nodes of the second generation, which run 2,000 pods.
    fn default() -> Self {
        let labels = [("type", "virtual-kubelet"), ("virtualization", "virtualnode2"), ("kubernetes.io/os", "linux")];
        let labels: Vec<_> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let node = |i| VirtualNode::new(format!("virtualnode-{i}"), labels.clone());
        Self {
            configuration: Configuration::default(),
            namespace: Overrides::default(),
            virtual_nodes: (0..10).map(node).collect(),
            network_policies: Vec::new(),
        }
    }
}

/// Returns the response body for a request body. The decision adds all five parts to the pod of [`REVIEW`].
pub(crate) fn decide(state: &WebhookState, body: &[u8]) -> Result<Vec<u8>, ReviewError> {
    let review = admission::parse(body)?;
    if let Some(old) = &review.old {
        let patch =
            burst::restore(&review.pod, old, &state.configuration.virtual_nodes).as_ref().map(admission::encode);
        return Ok(admission::allow(&review.uid, patch.as_deref(), &ResponseExtras::default()));
    }
    let overrides = Overrides::read(review.pod.annotations());
    let settings = state.configuration.settings("high-scale", &state.namespace, &overrides);
    let cluster = ClusterContext {
        namespace: &review.namespace,
        virtual_nodes: &state.virtual_nodes,
        network_policies: &state.network_policies,
        ..ClusterContext::only(ServiceAccount::WithClientId)
    };
    let decision = burst::decide(&review.pod, &settings, &cluster);
    let patch = burst::json_patch(&review.pod, &decision).as_ref().map(admission::encode);
    let extras = webhook::response_extras(&review, settings.as_known(), &decision);
    Ok(admission::allow(&review.uid, patch.as_deref(), &extras))
}
