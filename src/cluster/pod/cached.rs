//! The kept part of a pod.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::{meta::PodMeta, view::SchedulingView};
use crate::{
    identity,
    pod::{Pod, Quantity},
};

/// What a pod asks for, of what the scheduler counts.
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

/// A pod that has no node yet. A pod that is being deleted, or has ended, is none.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct UnscheduledPod {
    pub(crate) meta: PodMeta,
    /// `metadata.resourceVersion`
    pub(crate) resource_version: String,
    /// Its labels, if it has no decision.
    pub(crate) labels: BTreeMap<String, String>,
    /// The annotations of Spillway, and the one of mirror pods.
    pub(crate) annotations: BTreeMap<String, String>,
    /// `true` if the scheduler has found no node for it.
    pub(crate) is_unschedulable: bool,
    /// `true` if a node is reserved for it once others have been preempted.
    pub(crate) is_nominated: bool,
    /// Kept only if it has a decision.
    pub(super) view: SchedulingView,
}

impl UnscheduledPod {
    /// An annotation of Spillway.
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }

    /// What scheduling depends on; `None` if the pod has no decision, or is larger than `view::MAX_VIEW_BYTES`.
    pub(crate) fn pod(&self) -> Option<&Pod<'static>> {
        self.view.pod()
    }
}

/// A pod that has a node.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ScheduledPod {
    /// `spec.nodeName`
    pub(crate) node: Box<str>,
    /// What it asks for.
    pub(crate) requests: Requests,
    /// Who it is, if it has no decision and is not being deleted.
    pub(crate) undecided: Option<Box<UndecidedPod>>,
}

/// A scheduled pod without a decision.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct UndecidedPod {
    pub(crate) meta: PodMeta,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// The annotations of Spillway, and the one of mirror pods.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A pod on a virtual node. It holds its place until it is gone, so one that is being deleted counts. A pod that has ended is none, unless
/// the provider has failed to run it.
#[derive(Debug, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about a pod")]
pub(crate) struct VirtualPod {
    pub(crate) meta: PodMeta,
    /// When it was bound to the node.
    pub(crate) bound: Timestamp,
    /// `true` if it is being deleted.
    pub(crate) is_going: bool,
    /// `true` if it has ended, so that it no longer holds a place.
    pub(crate) is_over: bool,
    /// `true` if any of its containers runs or has run.
    pub(crate) has_started: bool,
    /// `true` if the virtual kubelet reports that its provider could not run it.
    pub(crate) is_failed: bool,
    /// `true` if a kube-proxy runs beside it, where virtual nodes have one.
    pub(crate) has_kube_proxy: bool,
    /// `true` if it has required pod affinity.
    pub(crate) has_pod_affinity: bool,
    pub(super) view: SchedulingView,
}

impl VirtualPod {
    /// What scheduling depends on; `None` if the pod is larger than `view::MAX_VIEW_BYTES`.
    pub(crate) fn pod(&self) -> Option<&Pod<'static>> {
        self.view.pod()
    }
}

/// A pod as it is kept.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct CachedPod {
    pub(crate) state: PodState,
    /// What identity checks read, if they are on and cover its namespace.
    pub(crate) identity: Option<Box<identity::observation::Pod>>,
}

/// Where a pod is.
#[derive(Debug, PartialEq)]
pub(crate) enum PodState {
    /// It has no node.
    Unscheduled(Box<UnscheduledPod>),
    /// It is on a VM.
    OnVm(ScheduledPod),
    /// It is on a virtual node.
    OnVirtualNode(ScheduledPod, Box<VirtualPod>),
    /// The watch of nodes has not brought its node. It is kept in full, as the node may be virtual.
    OnUnknownNode(ScheduledPod, Box<VirtualPod>),
}

impl Default for PodState {
    fn default() -> Self {
        Self::OnVm(ScheduledPod::default())
    }
}

impl PodState {
    /// The pod, if it has a node.
    pub(crate) fn scheduled(&self) -> Option<&ScheduledPod> {
        match self {
            Self::OnVm(pod) | Self::OnVirtualNode(pod, _) | Self::OnUnknownNode(pod, _) => Some(pod),
            Self::Unscheduled(_) => None,
        }
    }
}

/// What kind of node a pod is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Vm,
    Virtual,
    Unknown,
}
