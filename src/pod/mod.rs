//! A borrowed view of the fields of a Pod that Spillway reads, and nothing else.
//!
//! The view borrows from the JSON text it was read from. Fields that are not named here are skipped without being
//! built: that is where the speed comes from, and it is why a field that a newer Kubernetes adds can never be lost.
//! Every map, list and struct may be absent or `null`, as Go's encoder may leave it out either way.

mod affinity;
mod text;
mod toleration;

pub use affinity::{Affinity, NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm, PreferredSchedulingTerm};
use serde::Deserialize;
pub use text::{StringMap, Text};
pub use toleration::{Taint, Toleration};

/// The parts of a `v1.Pod` that a decision rests on.
///
/// `metadata` and `spec` are required: the API server always sends both, and something without them is not a pod.
#[derive(Debug, Deserialize)]
pub struct Pod<'a> {
    /// `metadata`
    #[serde(borrow)]
    pub metadata: Metadata<'a>,
    /// `spec`
    #[serde(borrow)]
    pub spec: Spec<'a>,
}

/// The parts of `metadata` that are read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata<'a> {
    /// `metadata.name`; absent when the API server has yet to generate one.
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    /// `metadata.generateName`, the prefix a controller gives its pods.
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
#[derive(Debug, Deserialize)]
pub struct OwnerReference<'a> {
    /// The owner's kind, such as `ReplicaSet`.
    #[serde(borrow)]
    pub kind: Option<Text<'a>>,
}

/// The parts of `spec` that are read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec<'a> {
    /// `spec.nodeName`: set when the pod is bound already.
    #[serde(borrow)]
    pub node_name: Option<Text<'a>>,
    /// `spec.nodeSelector`
    #[serde(borrow)]
    pub node_selector: Option<StringMap<'a>>,
    /// `spec.os`
    #[serde(borrow)]
    pub os: Option<PodOs<'a>>,
    /// `spec.serviceAccountName`; the API server's own ServiceAccount plugin has filled it in before webhooks run.
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
}

/// `spec.os`
#[derive(Debug, Deserialize)]
pub struct PodOs<'a> {
    /// `linux` or `windows`.
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
}

impl Pod<'_> {
    /// The value of an annotation, if the pod has it.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key)
    }

    /// All annotations, in the order of the document.
    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        self.metadata.annotations.iter().flat_map(StringMap::iter)
    }

    /// The value of a label, if the pod has it.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(key)
    }

    /// The entries of `spec.tolerations`, none if the list is absent.
    pub fn tolerations(&self) -> &[Toleration<'_>] {
        self.spec.tolerations.as_deref().unwrap_or_default()
    }

    /// The entries of the preferred node affinity, none if any part of the way there is absent.
    pub fn preferred_node_terms(&self) -> &[PreferredSchedulingTerm<'_>] {
        self.spec
            .affinity
            .as_ref()
            .and_then(|affinity| affinity.node_affinity.as_ref())
            .and_then(|node| node.preferred.as_deref())
            .unwrap_or_default()
    }

    /// The service account the pod runs as: `default` when it names none, as the API server defaults it.
    pub fn service_account(&self) -> &str {
        match self.spec.service_account_name.as_deref() {
            Some(name) if !name.is_empty() => name,
            _ => "default",
        }
    }
}
