//! The states of a cached pod.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::{meta::PodMeta, object::FailureCause, view::SchedulingView};
use crate::{
    identity,
    pod::{Pod, Quantity},
};

/// Effective requests of a pod, or allocatable resources of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// `cpu`
    pub(crate) cpu: Quantity,
    /// `memory`
    pub(crate) memory: Quantity,
}

impl Requests {
    pub(super) fn of(pod: &Pod<'_>) -> Self {
        Self { cpu: pod.request("cpu"), memory: pod.request("memory") }
    }
}

/// A pod without a node. Excludes pods that are terminating or have ended.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct UnscheduledPod {
    pub(crate) meta: PodMeta,
    /// `metadata.resourceVersion`
    pub(crate) resource_version: String,
    /// The labels of the pod. Empty if it has a decision.
    pub(crate) labels: BTreeMap<String, String>,
    /// The annotations of Spillway and of mirror pods.
    pub(crate) annotations: BTreeMap<String, String>,
    /// `true` if the scheduler has found no node for the pod.
    pub(crate) is_unschedulable: bool,
    /// `true` if the pod has a nominated node, on which the scheduler preempts other pods.
    pub(crate) is_nominated: bool,
    /// Empty if the pod has no decision.
    pub(super) view: SchedulingView,
}

impl UnscheduledPod {
    /// Returns an annotation of Spillway.
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }

    /// Returns the fields that scheduling depends on. Returns `None` if the pod has no decision, or is larger than
    /// `view::MAX_VIEW_BYTES`.
    pub(crate) fn pod(&self) -> Option<&Pod<'static>> {
        self.view.pod()
    }
}

/// The minimal part of a pod with a node.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ScheduledPod {
    /// `spec.nodeName`
    pub(crate) node: Box<str>,
    /// The effective requests of the pod.
    pub(crate) requests: Requests,
    /// The metadata of the pod. `None` if it has a decision or is terminating.
    pub(crate) undecided: Option<Box<UndecidedPod>>,
}

/// A scheduled pod without a decision.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct UndecidedPod {
    pub(crate) meta: PodMeta,
    /// `metadata.labels`
    pub(crate) labels: BTreeMap<String, String>,
    /// The annotations of Spillway and of mirror pods.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A pod on a virtual node. Includes terminating pods, because they use resources until they are deleted. Excludes pods
/// that have ended, unless the provider failed to run them.
#[derive(Debug, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about a pod")]
pub(crate) struct VirtualPod {
    pub(crate) meta: PodMeta,
    /// The time when the pod was bound to the node.
    pub(crate) bound: Timestamp,
    /// `true` if the pod has a deletion timestamp.
    pub(crate) is_terminating: bool,
    /// `true` if the pod has ended and uses no resources.
    pub(crate) has_ended: bool,
    /// `true` if a container runs or has run.
    pub(crate) has_started: bool,
    /// Why the pod does not start.
    pub(crate) failure: FailureCause,
    /// `true` if the pod runs a kube-proxy on virtual nodes that support one.
    pub(crate) has_kube_proxy: bool,
    /// `true` if the pod has required pod affinity.
    pub(crate) has_pod_affinity: bool,
    pub(super) view: SchedulingView,
}

impl VirtualPod {
    /// Returns the fields that scheduling depends on. Returns `None` if the pod is larger than `view::MAX_VIEW_BYTES`.
    pub(crate) fn pod(&self) -> Option<&Pod<'static>> {
        self.view.pod()
    }
}

/// A cached pod.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct CachedPod {
    pub(crate) state: PodState,
    /// The input of the identity checks. `None` if they are off or exclude the namespace.
    pub(crate) identity: Option<Box<identity::observation::Pod>>,
}

/// The state of a pod, by its node.
#[derive(Debug, PartialEq)]
pub(crate) enum PodState {
    /// The pod has no node.
    Unscheduled(Box<UnscheduledPod>),
    /// The pod is bound to a VM.
    OnVm(ScheduledPod),
    /// The pod is bound to a virtual node.
    OnVirtualNode(ScheduledPod, Box<VirtualPod>),
    /// The pod is bound to a node that is not in the cache yet. The pod is full, because the node may be virtual.
    OnUnknownNode(ScheduledPod, Box<VirtualPod>),
}

impl Default for PodState {
    fn default() -> Self {
        Self::OnVm(ScheduledPod::default())
    }
}

impl PodState {
    /// Returns the minimal part of a pod with a node.
    pub(crate) fn scheduled(&self) -> Option<&ScheduledPod> {
        match self {
            Self::OnVm(pod) | Self::OnVirtualNode(pod, _) | Self::OnUnknownNode(pod, _) => Some(pod),
            Self::Unscheduled(_) => None,
        }
    }
}

/// The kind of a pod's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Vm,
    Virtual,
    Unknown,
}
