//! Pods, reduced on arrival to what their readers need.
//!
//! Pods that wait for a node and pods on virtual nodes are kept with all that scheduling depends on. All others are slim: their node,
//! their requests, and who they are only if they have no decision.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hasher},
};

use k8s_openapi::{
    api::core::v1::{self as core, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
    jiff::Timestamp,
};
use kube::api::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use crate::{
    burst::DECISION,
    identity,
    kubernetes::{ObjectKey, PartialObject, annotation, object_reference},
    pod::{Container, Metadata, Pod, Quantity, Spec, StringMap},
};

/// The prefix of the annotations that are kept.
const OURS: &str = "spillway.dev/";
/// The annotation of the mirror of a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// virtual-kubelet/virtual-kubelet `node/pod.go`, podStatusReasonProviderFailed
const PROVIDER_FAILED: &str = "ProviderFailed";
/// The annotation that opts out of kube-proxy (microsoft/virtualnodesOnAzureContainerInstances Docs/PodCustomizations.md).
const INJECT_KUBE_PROXY: &str = "microsoft.containerinstance.virtualnode.injectkubeproxy";
/// The annotation of a confidential pod, beside which nothing runs that its policy does not name (the same document).
const CCE_POLICY: &str = "microsoft.containerinstance.virtualnode.ccepolicy";

/// The most that is kept of one pod for scheduling, in bytes of its `Debug` output. A pod takes some kilobytes; the API server accepts
/// more than a megabyte. A pod beyond this has no [`SchedulingView`]: it gets no late toleration.
const MAX_VIEW_BYTES: usize = 64 * 1024;

/// A Pod of the API. Each reader decodes what it needs of `spec`.
pub(crate) type PodObject = PartialObject<core::Pod, Option<Box<RawValue>>, Option<PodStatus>>;

/// `status` of a Pod, as far as it is read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodStatus {
    phase: Option<String>,
    reason: Option<String>,
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
}

impl PodStatus {
    /// Returns whether the pod has ended.
    fn has_ended(&self) -> bool {
        matches!(self.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    fn scheduled(&self) -> Option<&Condition> {
        self.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled")
    }

    /// Returns whether any container runs or has run: while init containers do their work, which may take long, the phase is `Pending`.
    fn has_started(&self) -> bool {
        let containers = [&self.init_container_statuses, &self.container_statuses].into_iter().flatten().flatten();
        let mut states = containers.flat_map(|container| [&container.state, &container.last_state]).flatten();
        self.phase.as_deref() == Some("Running")
            || states.any(|state| state.running.is_some() || state.terminated.is_some())
    }
}

/// What a pod asks for, of what the scheduler counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// `cpu`
    pub(crate) cpu: Quantity,
    /// `memory`
    pub(crate) memory: Quantity,
}

impl Requests {
    fn of(pod: &Pod<'_>) -> Self {
        Self { cpu: pod.request("cpu"), memory: pod.request("memory") }
    }
}

/// Who a pod is and who manages it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct PodMeta {
    /// `metadata.namespace`
    pub(crate) namespace: String,
    /// `metadata.name`
    pub(crate) name: String,
    /// `metadata.uid`
    pub(crate) uid: String,
    /// `metadata.creationTimestamp`
    pub(crate) created: Timestamp,
    /// The controller among `metadata.ownerReferences`.
    pub(crate) controller: Option<OwnerReference>,
}

impl PodMeta {
    pub(crate) fn read(meta: &ObjectMeta) -> Self {
        let mut owners = meta.owner_references.iter().flatten();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            created: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            controller: owners.find(|owner| owner.controller == Some(true)).cloned(),
        }
    }

    pub(crate) fn key(&self) -> ObjectKey {
        ObjectKey::new(&self.namespace, &self.name)
    }

    /// The object that events about the pod are attached to: its controller, or the pod where it has none.
    pub(crate) fn owner(&self) -> ObjectReference {
        let (api_version, kind, name, uid) = match &self.controller {
            Some(owner) => (owner.api_version.as_str(), owner.kind.as_str(), &owner.name, &owner.uid),
            None => ("v1", "Pod", &self.name, &self.uid),
        };
        ObjectReference { uid: Some(uid.clone()), ..object_reference(api_version, kind, Some(&self.namespace), name) }
    }
}

/// The annotations that are kept: those of Spillway, and the one of mirror pods.
fn annotations(meta: &ObjectMeta) -> BTreeMap<String, String> {
    let all = meta.annotations.iter().flatten();
    let kept = all.filter(|(key, _)| key.starts_with(OURS) || key.as_str() == MIRROR);
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn has_decision(meta: &ObjectMeta) -> bool {
    annotation(meta, DECISION).is_some()
}

/// The part of a pod that scheduling depends on.
#[derive(Debug, Default)]
pub(crate) struct SchedulingView {
    pod: Option<Pod<'static>>,
    /// Two views with the same digest say the same.
    digest: u64,
}

impl PartialEq for SchedulingView {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl SchedulingView {
    fn of(meta: &ObjectMeta, spec: Spec<'_>) -> Self {
        let annotations = annotations(meta);
        let kept: StringMap<'_> = annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let spec = Spec {
            volumes: None,
            containers: spec.containers.map(slim),
            init_containers: spec.init_containers.map(slim),
            ..spec
        };
        let pod = Pod { metadata: Metadata { annotations: Some(kept), ..Metadata::default() }, spec };
        let mut measure = Measure::default();
        if fmt::Write::write_fmt(&mut measure, format_args!("{pod:?}")).is_ok() {
            return Self { pod: Some(pod.into_owned()), digest: measure.digest.finish() };
        }
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        tracing::debug!(namespace, pod = name, "pod is too large: it gets no late toleration");
        Self::default()
    }
}

/// What scheduling needs of containers.
fn slim(containers: Vec<Container<'_>>) -> Vec<Container<'_>> {
    let slim = |Container { name, restart_policy, resources, .. }| Container {
        name,
        restart_policy,
        resources,
        ..Container::default()
    };
    containers.into_iter().map(slim).collect()
}

/// Measures what is written, up to [`MAX_VIEW_BYTES`].
#[derive(Default)]
struct Measure {
    bytes: usize,
    digest: DefaultHasher,
}

impl fmt::Write for Measure {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes += text.len();
        self.digest.write(text.as_bytes());
        if self.bytes > MAX_VIEW_BYTES { Err(fmt::Error) } else { Ok(()) }
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
    view: SchedulingView,
}

impl UnscheduledPod {
    /// An annotation of Spillway.
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }

    /// What scheduling depends on; `None` if the pod has no decision, or is larger than [`MAX_VIEW_BYTES`].
    pub(crate) fn pod(&self) -> Option<&Pod<'static>> {
        self.view.pod.as_ref()
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
    view: SchedulingView,
}

impl VirtualPod {
    /// What scheduling depends on; `None` if the pod is larger than [`MAX_VIEW_BYTES`].
    pub(crate) fn pod(&self) -> Option<&Pod<'static>> {
        self.view.pod.as_ref()
    }
}

/// A pod as it is kept.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct CachedPod {
    pub(crate) state: PodState,
    /// What identity checks read, if they are on and cover its namespace.
    pub(crate) identity: Option<Box<identity::seen::Pod>>,
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

impl CachedPod {
    /// Reduces a pod to what is kept; `None` if nothing is. `identity_covers` says whether identity checks cover a namespace.
    pub(crate) fn read(
        object: &PodObject,
        kind_of: impl Fn(&str) -> NodeKind,
        identity_covers: impl Fn(&str) -> bool,
    ) -> Option<Self> {
        let (meta, no_status) = (&object.metadata, PodStatus::default());
        let status = object.status.as_ref().unwrap_or(&no_status);
        let text = object.spec.as_deref().map_or("{}", RawValue::get);
        // What the API server sends can be read. Anything else counts as a pod without requests.
        let spec: Spec<'_> = serde_json::from_str(text).unwrap_or_default();
        let node: Option<Box<str>> = spec.node_name.as_deref().filter(|node| !node.is_empty()).map(Into::into);
        let state = match node {
            None => PodState::Unscheduled(Box::new(unscheduled(meta, status, spec)?)),
            Some(node) => scheduled(meta, status, node, spec, text, kind_of)?,
        };
        let is_covered = identity_covers(meta.namespace.as_deref().unwrap_or_default());
        Some(Self { state, identity: if is_covered { identity_part(object).map(Box::new) } else { None } })
    }
}

/// What identity checks read of a pod; `None` if it has ended or is being deleted.
pub(crate) fn identity_part(object: &PodObject) -> Option<identity::seen::Pod> {
    let spec: identity::PodSpec = serde_json::from_str(object.spec.as_ref()?.get()).ok()?;
    let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
    identity::seen::Pod::running(&object.metadata, &spec, phase)
}

fn unscheduled(meta: &ObjectMeta, status: &PodStatus, spec: Spec<'_>) -> Option<UnscheduledPod> {
    if meta.deletion_timestamp.is_some() || status.has_ended() {
        return None;
    }
    let is_decided = has_decision(meta);
    Some(UnscheduledPod {
        meta: PodMeta::read(meta),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        labels: if is_decided { BTreeMap::new() } else { meta.labels.clone().unwrap_or_default() },
        annotations: annotations(meta),
        is_unschedulable: status.scheduled().is_some_and(|condition| {
            condition.status == "False" && condition.reason.as_deref() == Some("Unschedulable")
        }),
        is_nominated: status.nominated_node_name.as_ref().is_some_and(|node| !node.is_empty()),
        view: if is_decided { SchedulingView::of(meta, spec) } else { SchedulingView::default() },
    })
}

fn scheduled(
    meta: &ObjectMeta,
    status: &PodStatus,
    node: Box<str>,
    spec: Spec<'_>,
    text: &str,
    kind_of: impl Fn(&str) -> NodeKind,
) -> Option<PodState> {
    let (is_over, is_going) = (status.has_ended(), meta.deletion_timestamp.is_some());
    let is_failed = status.reason.as_deref() == Some(PROVIDER_FAILED);
    let kind = kind_of(&node);
    if is_over && (!is_failed || kind == NodeKind::Vm) {
        return None;
    }
    let undecided = (!is_over && !is_going && !has_decision(meta)).then(|| {
        let (labels, annotations) = (meta.labels.clone().unwrap_or_default(), annotations(meta));
        Box::new(UndecidedPod { meta: PodMeta::read(meta), labels, annotations })
    });
    let pod = Pod { metadata: Metadata::default(), spec };
    let slim = ScheduledPod { node, requests: Requests::of(&pod), undecided };
    if kind == NodeKind::Vm {
        return Some(PodState::OnVm(slim));
    }
    let own = PodMeta::read(meta);
    let bound = status.scheduled().and_then(|condition| condition.last_transition_time.as_ref()).map(|time| time.0);
    let full = Box::new(VirtualPod {
        bound: bound.unwrap_or(own.created),
        meta: own,
        is_going,
        is_over,
        has_started: status.has_started(),
        is_failed,
        has_kube_proxy: annotation(meta, CCE_POLICY).is_none()
            && annotation(meta, INJECT_KUBE_PROXY).is_none_or(|value| !value.eq_ignore_ascii_case("false")),
        has_pod_affinity: has_pod_affinity(text),
        view: SchedulingView::of(meta, pod.spec),
    });
    let is_virtual = kind == NodeKind::Virtual;
    Some(if is_virtual { PodState::OnVirtualNode(slim, full) } else { PodState::OnUnknownNode(slim, full) })
}

/// Returns whether the pod requires other pods to be near. The view of a pod, which the webhook reads too, does not have that.
fn has_pod_affinity(spec: &str) -> bool {
    #[derive(Deserialize)]
    struct WithAffinity {
        affinity: Option<Affinity>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Affinity {
        pod_affinity: Option<PodAffinity>,
    }
    #[derive(Deserialize)]
    struct PodAffinity {
        #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
        required: Option<Vec<IgnoredAny>>,
    }
    let read: Option<WithAffinity> = serde_json::from_str(spec).ok();
    let required = read.and_then(|spec| spec.affinity?.pod_affinity?.required);
    required.is_some_and(|terms| !terms.is_empty())
}

#[cfg(test)]
impl VirtualPod {
    /// A pod as the API server has it, as if it were on a virtual node.
    pub(crate) fn of(pod: &serde_json::Value) -> Option<Self> {
        let mut pod = pod.clone();
        pod["spec"]["nodeName"] = "virtual".into();
        let object: PodObject = serde_json::from_value(pod).unwrap();
        match CachedPod::read(&object, |_| NodeKind::Virtual, |_| false)?.state {
            PodState::OnVirtualNode(_, pod) => Some(*pod),
            _ => None,
        }
    }
}
