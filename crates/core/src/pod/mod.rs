//! Borrowed view of the Pod fields that Spillway reads.
//!
//! The view borrows from the JSON text. It skips all other fields without building them. This makes it fast, and it
//! cannot lose a field of a newer Kubernetes (decision 5). Every map, list and struct may be absent or `null`, because
//! Go's encoder may write either.

mod affinity;
mod binding;
mod container;
mod filtered;
mod from_map;
mod present;
mod quantity;
mod resources;
mod text;
mod toleration;
mod volume;

pub use affinity::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, NodeView, PodAffinityTerm,
    PodAntiAffinity, PreferredSchedulingTerm, TopologySpreadConstraint, requirement_matches,
};
pub use binding::{Binding, BindingTarget};
use bounded_static::{IntoBoundedStatic, ToStatic};
pub use container::{
    Capabilities, Container, ContainerPort, ContainerSecurityContext, EnvVar, EnvVarSource, HttpGet, IntOrString,
    Lifecycle, ObjectFieldSelector, Probe, VolumeMount,
};
pub use filtered::{FilteredVec, Keep};
pub(crate) use from_map::from_map;
pub use present::Present;
pub use quantity::{MaybeQuantity, Quantity, QuantityError};
pub use resources::{ResourceList, ResourceRequirements};
use serde::Deserialize;
pub use text::{StringMap, Text};
pub use toleration::{Taint, Toleration, TolerationFields};
pub use volume::{
    CsiVolume, KeysProjection, ProjectedVolume, ServiceAccountTokenProjection, Volume, VolumeProjection, VolumeSource,
};

/// Maximum length of the name of an object. The API server validates names after the webhooks, and checks no reference
/// (Kubernetes, "Object Names and IDs", DNS subdomain names).
pub const MAX_NAME_BYTES: usize = 253;

/// Fields of a `v1.Pod` that a decision depends on.
///
/// `metadata` and `spec` are required. The API server always sends both, and an object without them is not a pod.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(remote = "Self")]
pub struct Pod<'a> {
    /// `metadata`
    #[serde(borrow)]
    pub metadata: Metadata<'a>,
    /// `spec`
    #[serde(borrow)]
    pub spec: Spec<'a>,
}

/// Fields of `metadata` that Spillway reads.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct Metadata<'a> {
    /// `metadata.name`. Absent if the API server has yet to generate the name.
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    /// `metadata.generateName`, the prefix of generated names.
    #[serde(borrow)]
    pub generate_name: Option<Text<'a>>,
    /// `metadata.labels`
    #[serde(borrow)]
    pub labels: Option<StringMap<'a>>,
    /// `metadata.annotations`
    #[serde(borrow)]
    pub annotations: Option<StringMap<'a>>,
    /// `metadata.ownerReferences`
    #[serde(borrow)]
    pub owner_references: Option<Vec<OwnerReference<'a>>>,
}

/// One entry of `metadata.ownerReferences`.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(remote = "Self")]
pub struct OwnerReference<'a> {
    /// Kind of the owner, such as `ReplicaSet`.
    #[serde(borrow)]
    pub kind: Option<Text<'a>>,
    /// `true` if the owner manages the pod. At most one owner does.
    pub controller: Option<bool>,
}

/// Fields of `spec` that Spillway reads.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct Spec<'a> {
    /// `spec.nodeName`. Set if the pod is already bound.
    #[serde(borrow)]
    pub node_name: Option<Text<'a>>,
    /// `spec.nodeSelector`
    #[serde(borrow)]
    pub node_selector: Option<StringMap<'a>>,
    /// `spec.os`
    #[serde(borrow)]
    pub os: Option<PodOs<'a>>,
    /// `spec.serviceAccountName`. The API server's ServiceAccount plugin sets it before webhooks run.
    #[serde(borrow)]
    pub service_account_name: Option<Text<'a>>,
    /// `spec.dnsPolicy`
    #[serde(borrow)]
    pub dns_policy: Option<Text<'a>>,
    /// `spec.tolerations`
    #[serde(borrow)]
    pub tolerations: Option<Vec<Toleration<'a>>>,
    /// `spec.affinity`
    #[serde(borrow)]
    pub affinity: Option<Affinity<'a>>,
    /// `spec.topologySpreadConstraints`
    #[serde(borrow)]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint<'a>>>,
    /// `spec.containers`
    #[serde(borrow)]
    pub containers: Option<Vec<Container<'a>>>,
    /// `spec.initContainers`
    #[serde(borrow)]
    pub init_containers: Option<Vec<Container<'a>>>,
    /// `spec.volumes`
    #[serde(borrow)]
    pub volumes: Option<Vec<Volume<'a>>>,
    /// `spec.hostNetwork`
    pub host_network: Option<bool>,
    /// `spec.hostPID`
    #[serde(rename = "hostPID")]
    pub host_pid: Option<bool>,
    /// `spec.hostIPC`
    #[serde(rename = "hostIPC")]
    pub host_ipc: Option<bool>,
    /// `spec.runtimeClassName`
    #[serde(borrow)]
    pub runtime_class_name: Option<Text<'a>>,
    /// `spec.resourceClaims`
    pub resource_claims: Option<Vec<Present>>,
    /// `spec.resources`, for the pod as a whole.
    #[serde(borrow)]
    pub resources: Option<ResourceRequirements<'a>>,
    /// `spec.overhead`. The API server sets it from the runtime class.
    #[serde(borrow)]
    pub overhead: Option<ResourceList<'a>>,
    /// `spec.securityContext`
    pub security_context: Option<PodSecurityContext>,
    /// `spec.terminationGracePeriodSeconds`
    pub termination_grace_period_seconds: Option<i64>,
    /// `spec.hostAliases`
    pub host_aliases: Option<Vec<Present>>,
    /// `spec.readinessGates`
    pub readiness_gates: Option<Vec<Present>>,
    /// `spec.shareProcessNamespace`
    pub share_process_namespace: Option<bool>,
}

/// `spec.securityContext`
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct PodSecurityContext {
    /// `runAsUser`
    pub run_as_user: Option<Present>,
    /// `runAsGroup`
    pub run_as_group: Option<Present>,
    /// `fsGroup`
    pub fs_group: Option<Present>,
    /// `sysctls`
    pub sysctls: Option<Vec<Present>>,
}

/// `spec.os`
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(remote = "Self")]
pub struct PodOs<'a> {
    /// `linux` or `windows`.
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
}

from_map!(Pod<'a>, Metadata<'a>, OwnerReference<'a>, Spec<'a>, PodSecurityContext, PodOs<'a>);

impl Pod<'_> {
    /// Returns the same pod with its own copy of the text.
    pub fn into_owned(self) -> Pod<'static> {
        self.into_static()
    }

    /// Returns the value of an annotation, or `None` if it is absent.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key)
    }

    /// Returns all annotations, in the order of the document.
    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        self.metadata.annotations.iter().flat_map(StringMap::iter)
    }

    /// Returns the value of a label, or `None` if it is absent.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(key)
    }

    /// Returns the entries of `spec.tolerations`. Empty if the list is absent.
    pub fn tolerations(&self) -> &[Toleration<'_>] {
        self.spec.tolerations.as_deref().unwrap_or_default()
    }

    /// Returns the list of the preferred node affinity, or `None` if it is absent. The list may be empty.
    pub fn preferred_node_affinity(&self) -> Option<&[PreferredSchedulingTerm<'_>]> {
        self.spec.affinity.as_ref()?.node_affinity.as_ref()?.preferred.as_deref()
    }

    /// Returns the entries of the preferred node affinity. Empty if the list or one of its parents is absent.
    pub fn preferred_node_terms(&self) -> &[PreferredSchedulingTerm<'_>] {
        self.preferred_node_affinity().unwrap_or_default()
    }

    /// Returns the required node affinity.
    pub fn required_node_affinity(&self) -> Option<&NodeSelector<'_>> {
        self.spec.affinity.as_ref()?.node_affinity.as_ref()?.required.as_ref()
    }

    /// Returns the entries of `spec.containers`.
    pub fn containers(&self) -> &[Container<'_>] {
        self.spec.containers.as_deref().unwrap_or_default()
    }

    /// Returns the entries of `spec.initContainers`.
    pub fn init_containers(&self) -> &[Container<'_>] {
        self.spec.init_containers.as_deref().unwrap_or_default()
    }

    /// Returns the init containers, then the containers.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container<'_>> {
        self.init_containers().iter().chain(self.containers())
    }

    /// Returns the entries of `spec.volumes`.
    pub fn volumes(&self) -> &[Volume<'_>] {
        self.spec.volumes.as_deref().unwrap_or_default()
    }

    /// Returns the kind of the owner that manages the pod.
    pub fn controller_kind(&self) -> Option<&str> {
        let owners = self.metadata.owner_references.as_deref().unwrap_or_default();
        owners.iter().find(|owner| owner.controller == Some(true))?.kind.as_deref()
    }

    /// Returns the pod's service account. If the pod names none, it is `default`, as in the API server.
    pub fn service_account(&self) -> &str {
        match self.spec.service_account_name.as_deref() {
            Some(name) if !name.is_empty() => name,
            _ => "default",
        }
    }
}

#[cfg(test)]
mod tests;
