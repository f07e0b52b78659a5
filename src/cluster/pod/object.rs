//! Pods as the API server sends them.

use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use crate::kubernetes::PartialObject;

/// A Pod of the API. `spec` stays encoded, because each reader decodes different fields of it.
pub(crate) type PodObject = PartialObject<core::Pod, Option<Box<RawValue>>, Option<PodStatus>>;

/// The fields of a Pod's `status` that Spillway reads.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodStatus {
    pub(super) phase: Option<String>,
    reason: Option<String>,
    message: Option<String>,
    nominated_node_name: Option<String>,
    conditions: Option<Vec<Condition>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(rename = "type", default)]
    type_: String,
    #[serde(default)]
    status: String,
    reason: Option<String>,
    last_transition_time: Option<Time>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    state: Option<ContainerState>,
    last_state: Option<ContainerState>,
}

#[derive(Debug, Clone, Deserialize)]
struct ContainerState {
    running: Option<IgnoredAny>,
    terminated: Option<IgnoredAny>,
    waiting: Option<Waiting>,
}

#[derive(Debug, Clone, Deserialize)]
struct Waiting {
    reason: Option<String>,
}

/// Why a pod on a virtual node does not start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum FailureCause {
    /// The pod's status has no cause.
    #[default]
    Unknown,
    /// The pod itself: its image or its configuration. It would start on no node.
    Pod,
    /// The virtual kubelet reports that its provider could not run the pod.
    Provider,
    /// The provider reports that it has no capacity or quota.
    NoCapacity,
}

impl FailureCause {
    /// Returns whether the provider could not run the pod.
    pub(crate) fn is_of_provider(self) -> bool {
        matches!(self, Self::Provider | Self::NoCapacity)
    }
}

/// virtual-kubelet/virtual-kubelet `node/pod.go`, podStatusReasonProviderFailed
const PROVIDER_FAILED: &str = "ProviderFailed";

/// Codes of Azure Container Instances for a lack of capacity or quota
/// (learn.microsoft.com/azure/container-instances/container-instances-troubleshooting).
const NO_CAPACITY: [&str; 3] = ["ContainerGroupQuotaReached", "ServiceUnavailable", "QuotaExceeded"];

/// Reasons of waiting containers whose image or configuration is wrong (kubernetes `pkg/kubelet/images/types.go`,
/// `pkg/kubelet/kuberuntime/kuberuntime_container.go`).
const POD_FAULTS: [&str; 8] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "CreateContainerConfigError",
    "CreateContainerError",
];

impl PodStatus {
    /// Returns whether the pod has ended.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Returns why the pod does not start.
    pub(super) fn failure(&self) -> FailureCause {
        if self.reason.as_deref() == Some(PROVIDER_FAILED) {
            // A user chooses names that Azure repeats in its message. Names contain neither spaces nor quotes.
            let message = self.message.as_deref().unwrap_or_default();
            let has_code = |code: &str| {
                [format!("ERROR CODE: {code}\n"), format!("Code=\"{code}\"")].iter().any(|text| message.contains(text))
            };
            return if NO_CAPACITY.iter().any(|code| has_code(code)) {
                FailureCause::NoCapacity
            } else {
                FailureCause::Provider
            };
        }
        let is_pod_fault = |reason: &str| POD_FAULTS.contains(&reason);
        let mut reasons = self.containers().filter_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
        if reasons.any(is_pod_fault) { FailureCause::Pod } else { FailureCause::Unknown }
    }

    fn containers(&self) -> impl Iterator<Item = &ContainerStatus> {
        [&self.init_container_statuses, &self.container_statuses].into_iter().flatten().flatten()
    }

    /// Returns whether the scheduler has found no node for the pod.
    pub(super) fn is_unschedulable(&self) -> bool {
        self.scheduled().is_some_and(|condition| {
            condition.status == "False" && condition.reason.as_deref() == Some("Unschedulable")
        })
    }

    /// Returns whether the pod has a nominated node.
    pub(super) fn is_nominated(&self) -> bool {
        self.nominated_node_name.as_ref().is_some_and(|node| !node.is_empty())
    }

    /// Returns the time when the pod was bound to its node.
    pub(super) fn bound(&self) -> Option<Timestamp> {
        Some(self.scheduled()?.last_transition_time.as_ref()?.0)
    }

    fn scheduled(&self) -> Option<&Condition> {
        self.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled")
    }

    /// Returns whether a container runs or has run. The phase alone is not enough: it is `Pending` while init containers
    /// run, which may take long.
    pub(super) fn has_started(&self) -> bool {
        let mut states = self.containers().flat_map(|container| [&container.state, &container.last_state]).flatten();
        self.phase.as_deref() == Some("Running")
            || states.any(|state| state.running.is_some() || state.terminated.is_some())
    }
}
