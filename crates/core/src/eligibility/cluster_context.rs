//! The cluster around a pod, as plain values.

use std::collections::BTreeMap;

use crate::{
    pod::{NodeView, requirement_matches},
    workload_identity::ServiceAccount,
};

/// A generation of Azure's virtual nodes. Both carry the same taint; what they can run differs widely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// The AKS add-on and virtual-kubelet/azure-aci: a translation of pods into calls of Azure Container Instances.
    V1,
    /// microsoft/virtualnodesOnAzureContainerInstances and the AKS extension: a real kubelet.
    V2,
}

/// The label that only nodes of the second generation carry (microsoft/virtualnodesOnAzureContainerInstances README).
pub const V2_LABEL: (&str, &str) = ("virtualization", "virtualnode2");

/// A set of generations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Generations {
    v1: bool,
    v2: bool,
}

impl Generations {
    /// Both.
    pub const BOTH: Self = Self { v1: true, v2: true };

    /// This one alone.
    pub const fn only(generation: Generation) -> Self {
        match generation {
            Generation::V1 => Self { v1: true, v2: false },
            Generation::V2 => Self { v1: false, v2: true },
        }
    }

    /// Whether this one is among them.
    pub const fn has(self, generation: Generation) -> bool {
        match generation {
            Generation::V1 => self.v1,
            Generation::V2 => self.v2,
        }
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        !self.v1 && !self.v2
    }

    /// These and that one.
    #[must_use]
    pub const fn with(self, generation: Generation) -> Self {
        match generation {
            Generation::V1 => Self { v1: true, ..self },
            Generation::V2 => Self { v2: true, ..self },
        }
    }
}

/// A virtual node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualNode {
    /// `metadata.name`
    pub name: String,
    /// `metadata.labels`
    pub labels: Vec<(String, String)>,
    /// Which generation it is.
    pub generation: Generation,
}

impl VirtualNode {
    /// A node that carries the label of virtual nodes.
    pub fn new(name: String, labels: Vec<(String, String)>) -> Self {
        let is_v2 = labels.iter().any(|(key, value)| (key.as_str(), value.as_str()) == V2_LABEL);
        Self { name, labels, generation: if is_v2 { Generation::V2 } else { Generation::V1 } }
    }

    /// For matching.
    pub fn view(&self) -> NodeView<'_> {
        NodeView { name: &self.name, labels: &self.labels }
    }
}

/// A NetworkPolicy, by whom it selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// `metadata.name`
    pub name: String,
    /// `spec.podSelector`
    pub pod_selector: LabelSelector,
}

/// A label selector; empty, it selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// `matchLabels`
    pub match_labels: BTreeMap<String, String>,
    /// `matchExpressions`
    pub match_expressions: Vec<Requirement>,
}

/// An entry of `matchExpressions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// What the label is compared with.
    pub values: Vec<String>,
}

impl LabelSelector {
    /// Whether labels, looked up by their keys, meet every requirement.
    pub fn selects<'l>(&self, label: impl Fn(&str) -> Option<&'l str>) -> bool {
        self.match_labels.iter().all(|(key, value)| label(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| {
                let values = requirement.values.iter().map(String::as_str);
                requirement_matches(&requirement.operator, values, label(&requirement.key))
            })
    }
}

/// The labels of a namespace that the rules read.
pub const NAMESPACE_LABELS: &[&str] = &["istio-injection", "istio.io/dataplane-mode", "istio.io/rev"];

/// The annotations of a namespace that the rules read.
pub const NAMESPACE_ANNOTATIONS: &[&str] = &["linkerd.io/inject", "scheduler.alpha.kubernetes.io/tolerationsWhitelist"];

/// The cluster around one pod, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub struct ClusterContext<'c> {
    /// The service account that the pod runs as.
    pub service_account: ServiceAccount,
    /// The pod's namespace; empty when it is not known.
    pub namespace: &'c str,
    /// The virtual nodes of the cluster; empty if none is known.
    pub virtual_nodes: &'c [VirtualNode],
    /// Labels of the namespace: at least [`NAMESPACE_LABELS`].
    pub namespace_labels: &'c BTreeMap<String, String>,
    /// Annotations of the namespace: at least [`NAMESPACE_ANNOTATIONS`].
    pub namespace_annotations: &'c BTreeMap<String, String>,
    /// The NetworkPolicies of the pod's namespace.
    pub network_policies: &'c [NetworkPolicy],
}

impl ClusterContext<'_> {
    /// Returns a context in which only the service account is known.
    pub const fn only(service_account: ServiceAccount) -> ClusterContext<'static> {
        static NOTHING: BTreeMap<String, String> = BTreeMap::new();
        ClusterContext {
            service_account,
            namespace: "",
            virtual_nodes: &[],
            namespace_labels: &NOTHING,
            namespace_annotations: &NOTHING,
            network_policies: &[],
        }
    }
}
