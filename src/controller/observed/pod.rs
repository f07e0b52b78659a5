//! Pods, as far as overflow is concerned.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{self as core, ObjectReference},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
    jiff::Timestamp,
};
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::super::events::reference;
use crate::{
    burst::DECISION,
    lean,
    pod::{Pod, Quantity},
};

/// What begins the keys of the annotations that are kept.
const OURS: &str = "spillway.dev/";
/// The annotation of the mirror of a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// virtual-kubelet/virtual-kubelet `node/pod.go`, podStatusReasonProviderFailed
const PROVIDER_FAILED: &str = "ProviderFailed";
/// The annotation that opts out of kube-proxy (microsoft/virtualnodesOnAzureContainerInstances Docs/PodCustomizations.md).
const INJECT_KUBE_PROXY: &str = "microsoft.containerinstance.virtualnode.injectkubeproxy";
/// The annotation of a confidential pod, beside which nothing runs that its policy does not name (the same document).
const CCE_POLICY: &str = "microsoft.containerinstance.virtualnode.ccepolicy";

/// What a pod asks for, of what the scheduler counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::controller) struct Requests {
    /// `cpu`
    pub(in crate::controller) cpu: Quantity,
    /// `memory`
    pub(in crate::controller) memory: Quantity,
}

impl Requests {
    fn of(pod: &Pod<'_>) -> Self {
        Self { cpu: pod.request("cpu"), memory: pod.request("memory") }
    }
}

/// Who a pod is, for whoever has to be told of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::controller) struct Owned {
    /// `metadata.namespace`
    pub(in crate::controller) namespace: String,
    /// `metadata.name`
    pub(in crate::controller) name: String,
    /// `metadata.uid`
    pub(in crate::controller) uid: String,
    /// `metadata.creationTimestamp`
    pub(in crate::controller) created: Timestamp,
    /// Who manages it.
    pub(in crate::controller) controller: Option<OwnerReference>,
}

impl Owned {
    pub(in crate::controller) fn read(meta: &ObjectMeta) -> Self {
        let mut owners = meta.owner_references.iter().flatten();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            created: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            controller: owners.find(|owner| owner.controller == Some(true)).cloned(),
        }
    }

    /// What an event about it should stand with: its controller, or the pod where it has none.
    pub(in crate::controller) fn owner(&self) -> ObjectReference {
        let (api_version, kind, name, uid) = match &self.controller {
            Some(owner) => (owner.api_version.as_str(), owner.kind.as_str(), &owner.name, &owner.uid),
            None => ("v1", "Pod", &self.name, &self.uid),
        };
        ObjectReference { uid: Some(uid.clone()), ..reference(api_version, kind, Some(&self.namespace), name) }
    }
}

/// What of the annotations may matter.
fn annotations(meta: &ObjectMeta) -> BTreeMap<String, String> {
    let all = meta.annotations.iter().flatten();
    let kept = all.filter(|(key, _)| key.starts_with(OURS) || key.as_str() == MIRROR);
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn has_decision(meta: &ObjectMeta) -> bool {
    meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(DECISION))
}

/// A pod that no node has been found for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::controller) struct Waiting {
    /// Who it is.
    pub(in crate::controller) owned: Owned,
    /// `metadata.resourceVersion`
    pub(in crate::controller) resource_version: String,
    /// Its labels, while the webhook has not seen it.
    pub(in crate::controller) labels: BTreeMap<String, String>,
    /// Those of Spillway, and the one of mirror pods.
    pub(in crate::controller) annotations: BTreeMap<String, String>,
    /// Whether the scheduler has found no node for it.
    pub(in crate::controller) is_unschedulable: bool,
    /// Whether a node is kept for it once others have been preempted.
    pub(in crate::controller) is_nominated: bool,
    /// The pod as JSON, without what scheduling does not need, if it has been decided on.
    text: Box<str>,
}

impl Waiting {
    pub(in crate::controller) fn read(pod: Whole) -> Option<Self> {
        let is_going = pod.metadata.deletion_timestamp.is_some();
        let status = pod.status.as_ref();
        let is_over = matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
        if is_going || is_over {
            return None;
        }
        let mut conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        let scheduled = conditions.find(|condition| condition.type_ == "PodScheduled");
        let nominated = status.and_then(|status| status.nominated_node_name.as_deref()).unwrap_or_default();
        let is_decided = has_decision(&pod.metadata);
        Some(Self {
            owned: Owned::read(&pod.metadata),
            resource_version: pod.metadata.resource_version.clone().unwrap_or_default(),
            labels: if is_decided { BTreeMap::new() } else { pod.metadata.labels.clone().unwrap_or_default() },
            annotations: annotations(&pod.metadata),
            is_unschedulable: scheduled.is_some_and(|condition| {
                condition.status == "False" && condition.reason.as_deref() == Some("Unschedulable")
            }),
            is_nominated: !nominated.is_empty(),
            text: if is_decided { text(pod) } else { Box::default() },
        })
    }

    /// An annotation of Spillway.
    pub(in crate::controller) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }

    /// What scheduling needs of it; nothing if it has not been decided on.
    pub(in crate::controller) fn pod(&self) -> Option<Pod<'_>> {
        serde_json::from_str(&self.text).ok()
    }
}

/// A pod that has a node, whatever node. Pods that are over are none.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::controller) struct Assigned {
    /// `spec.nodeName`
    pub(in crate::controller) node: Box<str>,
    /// What it asks for.
    pub(in crate::controller) requests: Requests,
    /// Who it is, its labels, and its annotations of interest, if the webhook has not seen it and it is not on its way out.
    pub(in crate::controller) undecided: Option<Box<Undecided>>,
}

/// A scheduled pod without a decision.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::controller) struct Undecided {
    /// Who it is.
    pub(in crate::controller) owned: Owned,
    /// Its labels.
    pub(in crate::controller) labels: BTreeMap<String, String>,
    /// Those of Spillway, and the one of mirror pods.
    pub(in crate::controller) annotations: BTreeMap<String, String>,
}

impl Assigned {
    pub(super) fn read(lean: Lean) -> Option<Self> {
        if matches!(lean.status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let is_going = lean.metadata.deletion_timestamp.is_some();
        let undecided = (!is_going && !has_decision(&lean.metadata)).then(|| {
            Box::new(Undecided {
                owned: Owned::read(&lean.metadata),
                labels: lean.metadata.labels.clone().unwrap_or_default(),
                annotations: annotations(&lean.metadata),
            })
        });
        // What sums up requests reads a view of a pod.
        let text = serde_json::to_string(&Shown { metadata: Nothing {}, spec: &lean.spec }).unwrap_or_default();
        let requests = serde_json::from_str(&text).map(|pod: Pod<'_>| Requests::of(&pod)).unwrap_or_default();
        Some(Self { node: lean.spec.node_name?.into(), requests, undecided })
    }
}

#[cfg(test)]
impl Assigned {
    /// Of a pod as the API server has it.
    pub(in crate::controller) fn of(pod: &serde_json::Value) -> Option<Self> {
        Self::read(serde_json::from_value(pod.clone()).ok()?)
    }
}

#[derive(Serialize)]
struct Nothing {}

#[derive(Serialize)]
struct Shown<'s> {
    metadata: Nothing,
    spec: &'s LeanSpec,
}

/// A pod of which all but metadata is decoded whole.
pub(in crate::controller) type Whole = lean::Lean<core::Pod, Option<core::PodSpec>, Option<core::PodStatus>>;

/// A pod, decoded as far as its requests: metadata alone would not tell how much room a VM has left.
pub(in crate::controller) type Lean = lean::Lean<core::Pod, LeanSpec, LeanStatus>;

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::controller) struct LeanSpec {
    node_name: Option<String>,
    containers: Option<Vec<LeanContainer>>,
    init_containers: Option<Vec<LeanContainer>>,
    overhead: Option<serde_json::Value>,
    resources: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct LeanContainer {
    restart_policy: Option<String>,
    resources: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(in crate::controller) struct LeanStatus {
    phase: Option<String>,
}

/// A pod on a virtual node. One that is over is none, unless the provider has failed to run it; one that is on its way out is, for it
/// has its place until it is gone.
#[derive(Debug, Clone, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "what is true of a pod, each by itself")]
pub(in crate::controller) struct VirtualPod {
    /// Who it is.
    pub(in crate::controller) owned: Owned,
    /// When it was bound to the node.
    pub(in crate::controller) bound: Timestamp,
    /// Whether it is on its way out.
    pub(in crate::controller) is_going: bool,
    /// Whether it has ended, so that it holds no place any more.
    pub(in crate::controller) is_over: bool,
    /// Whether any container of it runs or has run.
    pub(in crate::controller) has_started: bool,
    /// Whether the virtual kubelet says that its provider could not run it.
    pub(in crate::controller) is_failed: bool,
    /// Whether a kube-proxy runs beside it, where virtual nodes have one.
    pub(in crate::controller) has_kube_proxy: bool,
    /// Whether it has to be near other pods.
    pub(in crate::controller) has_pod_affinity: bool,
    /// What it asks for.
    pub(in crate::controller) requests: Requests,
    /// The pod as JSON, without what scheduling does not need.
    text: Box<str>,
}

impl VirtualPod {
    pub(in crate::controller) fn read(pod: Whole) -> Option<Self> {
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        let is_failed = status.and_then(|status| status.reason.as_deref()) == Some(PROVIDER_FAILED);
        let is_over = matches!(phase, Some("Succeeded" | "Failed"));
        if is_over && !is_failed {
            return None;
        }
        let owned = Owned::read(&pod.metadata);
        let mut conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        let scheduled = conditions.find(|condition| condition.type_ == "PodScheduled");
        let bound = scheduled.and_then(|condition| condition.last_transition_time.as_ref()).map(|time| time.0);
        let annotation = |key: &str| pod.metadata.annotations.as_ref().and_then(|all| all.get(key));
        let has_kube_proxy = annotation(CCE_POLICY).is_none()
            && annotation(INJECT_KUBE_PROXY).is_none_or(|value| !value.eq_ignore_ascii_case("false"));
        let has_started = phase == Some("Running") || status.is_some_and(has_started);
        let (is_going, has_pod_affinity) = (pod.metadata.deletion_timestamp.is_some(), has_pod_affinity(&pod));
        let text = text(pod);
        let requests = serde_json::from_str(&text).map(|pod: Pod<'_>| Requests::of(&pod)).unwrap_or_default();
        Some(Self {
            bound: bound.unwrap_or(owned.created),
            owned,
            is_going,
            is_over,
            has_started,
            is_failed,
            has_kube_proxy,
            has_pod_affinity,
            requests,
            text,
        })
    }

    /// What scheduling needs of it.
    pub(in crate::controller) fn pod(&self) -> Option<Pod<'_>> {
        serde_json::from_str(&self.text).ok()
    }
}

/// Whether any container runs or has run: while init containers do their work, which may take long, the phase is `Pending`.
fn has_started(status: &core::PodStatus) -> bool {
    let containers = [&status.init_container_statuses, &status.container_statuses].into_iter().flatten().flatten();
    let mut all = containers.flat_map(|container| [&container.state, &container.last_state]).flatten();
    all.any(|state| state.running.is_some() || state.terminated.is_some())
}

/// Whether it requires other pods to be near. The view of a pod, which the webhook reads too, does not have that.
fn has_pod_affinity(pod: &Whole) -> bool {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()?.pod_affinity.as_ref());
    let required = affinity.and_then(|terms| terms.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_some_and(|terms| !terms.is_empty())
}

/// The pod as JSON, as far as scheduling is concerned.
fn text(pod: Whole) -> Box<str> {
    let metadata = ObjectMeta { annotations: Some(annotations(&pod.metadata)), ..ObjectMeta::default() };
    let mut pod = core::Pod { metadata, spec: pod.spec, status: None };
    if let Some(spec) = &mut pod.spec {
        spec.volumes = None;
        let containers = spec.containers.iter_mut();
        for container in containers.chain(spec.init_containers.iter_mut().flatten()) {
            *container = core::Container {
                name: std::mem::take(&mut container.name),
                resources: container.resources.take(),
                restart_policy: container.restart_policy.take(),
                ..core::Container::default()
            };
        }
    }
    // A pod that the API server has sent can be written.
    serde_json::to_string(&pod).unwrap_or_default().into()
}
