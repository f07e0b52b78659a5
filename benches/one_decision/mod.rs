//! One decision as the webhook makes it, on a review as the API server sends it.

use spillway::{
    admission::{self, ReviewError},
    burst::{self, ClusterContext, ServiceAccount},
    config::{Configuration, Overrides},
    eligibility::VirtualNode,
    webhook,
};

/// The review of a Deployment's pod with three containers: recorded from a real API server, then its UIDs and times made constant
/// and its user the ReplicaSet controller's service account.
pub(crate) const REVIEW: &[u8] = include_bytes!("../review.json");

/// What the webhook has at hand before a request comes.
pub(crate) struct Surroundings {
    configuration: Configuration,
    namespace: Overrides,
    virtual_nodes: Vec<VirtualNode>,
}

impl Default for Surroundings {
    /// Ten virtual nodes of the second generation: what a cluster of 2,000 overflowing pods has.
    fn default() -> Self {
        let labels = [("type", "virtual-kubelet"), ("virtualization", "virtualnode2"), ("kubernetes.io/os", "linux")];
        let labels: Vec<_> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let node = |i| VirtualNode::new(format!("virtualnode-{i}"), labels.clone());
        Self {
            configuration: Configuration::default(),
            namespace: Overrides::default(),
            virtual_nodes: (0..10).map(node).collect(),
        }
    }
}

/// From the body of a request to the body of its answer. All five parts are added to this pod.
pub(crate) fn decide(surroundings: &Surroundings, body: &[u8]) -> Result<Vec<u8>, ReviewError> {
    let review = admission::parse(body)?;
    let overrides = Overrides::read(review.pod.annotations());
    let settings = surroundings.configuration.settings("high-scale", &surroundings.namespace, &overrides);
    let cluster = ClusterContext {
        namespace: &review.namespace,
        virtual_nodes: &surroundings.virtual_nodes,
        ..ClusterContext::only(ServiceAccount::WithClientId)
    };
    let decision = burst::decide(&review.pod, &settings, &cluster);
    let patch = burst::json_patch(&review.pod, &decision).as_ref().map(admission::encode);
    let extras = webhook::response_extras(&review, settings.as_known(), &decision);
    Ok(admission::allow(&review.uid, patch.as_deref(), &extras))
}
