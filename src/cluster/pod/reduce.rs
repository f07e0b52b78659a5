//! Reduces a pod of the watch to its cached state.

use std::collections::BTreeMap;

use kube::api::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::{
    cached::{CachedPod, NodeKind, PodState, Requests, ScheduledPod, UndecidedPod, UnscheduledPod, VirtualPod},
    meta::{PodMeta, annotations, labels},
    object::{PodObject, PodStatus},
    view::SchedulingView,
};
use crate::{
    burst::DECISION,
    identity,
    kubernetes::annotation,
    pod::{Metadata, Pod, Spec},
};

/// The annotation that opts out of kube-proxy (microsoft/virtualnodesOnAzureContainerInstances Docs/PodCustomizations.md).
const INJECT_KUBE_PROXY: &str = "microsoft.containerinstance.virtualnode.injectkubeproxy";
/// The annotation of a confidential pod (same document). Containers that its policy does not list cannot run in the pod.
const CCE_POLICY: &str = "microsoft.containerinstance.virtualnode.ccepolicy";

impl CachedPod {
    /// Reduces a pod. Returns `None` if the cache does not keep it. `identity_covers` returns whether the identity checks
    /// cover a namespace.
    pub(crate) fn read(
        object: &PodObject,
        kind_of: impl Fn(&str) -> NodeKind,
        identity_covers: impl Fn(&str) -> bool,
    ) -> Option<Self> {
        let (meta, no_status) = (&object.metadata, PodStatus::default());
        let status = object.status.as_ref().unwrap_or(&no_status);
        let text = object.spec.as_deref().map_or("{}", RawValue::get);
        // The API server sends only valid specs. An invalid one counts as a pod without requests.
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

/// Returns the input of the identity checks. Returns `None` if the pod has ended or is terminating.
pub(crate) fn identity_part(object: &PodObject) -> Option<identity::observation::Pod> {
    let spec: identity::PodSpec = serde_json::from_str(object.spec.as_ref()?.get()).ok()?;
    let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
    identity::observation::Pod::running(&object.metadata, &spec, phase)
}

fn unscheduled(meta: &ObjectMeta, status: &PodStatus, spec: Spec<'_>) -> Option<UnscheduledPod> {
    if meta.deletion_timestamp.is_some() || status.has_ended() {
        return None;
    }
    let is_decided = has_decision(meta);
    Some(UnscheduledPod {
        meta: PodMeta::read(meta),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        labels: if is_decided { BTreeMap::new() } else { labels(meta) },
        annotations: annotations(meta),
        is_unschedulable: status.is_unschedulable(),
        is_nominated: status.is_nominated(),
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
    let (has_ended, is_terminating) = (status.has_ended(), meta.deletion_timestamp.is_some());
    let failure = status.failure();
    let kind = kind_of(&node);
    if has_ended && (!failure.is_of_provider() || kind == NodeKind::Vm) {
        return None;
    }
    let undecided = (!has_ended && !is_terminating && !has_decision(meta)).then(|| {
        let (labels, annotations) = (labels(meta), annotations(meta));
        Box::new(UndecidedPod { meta: PodMeta::read(meta), labels, annotations })
    });
    let pod = Pod { metadata: Metadata::default(), spec };
    let scheduled = ScheduledPod { node, requests: Requests::of(&pod), undecided };
    if kind == NodeKind::Vm {
        return Some(PodState::OnVm(scheduled));
    }
    let own = PodMeta::read(meta);
    let full = Box::new(VirtualPod {
        bound: status.bound().unwrap_or(own.created),
        meta: own,
        is_terminating,
        has_ended,
        has_started: status.has_started(),
        failure,
        has_kube_proxy: annotation(meta, CCE_POLICY).is_none()
            && annotation(meta, INJECT_KUBE_PROXY).is_none_or(|value| !value.eq_ignore_ascii_case("false")),
        has_pod_affinity: has_pod_affinity(text),
        view: SchedulingView::of(meta, pod.spec),
    });
    let is_virtual = kind == NodeKind::Virtual;
    Some(if is_virtual { PodState::OnVirtualNode(scheduled, full) } else { PodState::OnUnknownNode(scheduled, full) })
}

/// Returns whether the pod has required pod affinity. The pod view, which the webhook shares, does not have this field.
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

fn has_decision(meta: &ObjectMeta) -> bool {
    annotation(meta, DECISION).is_some()
}

#[cfg(test)]
impl VirtualPod {
    /// Reads a pod of the API as if it were bound to a virtual node.
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
