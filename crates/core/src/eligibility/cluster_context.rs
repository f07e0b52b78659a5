//! Facts about the cluster around a pod, as plain values.

use std::collections::BTreeMap;

use crate::{
    pod::{NodeView, requirement_matches},
    workload_identity::ServiceAccount,
};

/// Generation of Azure virtual nodes. Both generations have the same taint, but they can run different pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// The AKS add-on and virtual-kubelet/azure-aci, which translate pods into calls of Azure Container Instances.
    V1,
    /// microsoft/virtualnodesOnAzureContainerInstances and the AKS extension, which run a real kubelet.
    V2,
}

/// Label that only nodes of the second generation have (microsoft/virtualnodesOnAzureContainerInstances README).
pub const V2_LABEL: (&str, &str) = ("virtualization", "virtualnode2");

/// Set of generations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Generations {
    v1: bool,
    v2: bool,
}

impl Generations {
    /// Both generations.
    pub const BOTH: Self = Self { v1: true, v2: true };

    /// Returns the set with only this generation.
    pub const fn only(generation: Generation) -> Self {
        match generation {
            Generation::V1 => Self { v1: true, v2: false },
            Generation::V2 => Self { v1: false, v2: true },
        }
    }

    /// Returns whether the set contains this generation.
    pub const fn has(self, generation: Generation) -> bool {
        match generation {
            Generation::V1 => self.v1,
            Generation::V2 => self.v2,
        }
    }

    /// Returns whether the set is empty.
    pub const fn is_empty(self) -> bool {
        !self.v1 && !self.v2
    }

    /// Returns the set with this generation added.
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
    /// Generation of the node.
    pub generation: Generation,
}

impl VirtualNode {
    /// Creates a virtual node. Its labels tell the generation.
    pub fn new(name: String, labels: Vec<(String, String)>) -> Self {
        let is_v2 = labels.iter().any(|(key, value)| (key.as_str(), value.as_str()) == V2_LABEL);
        Self { name, labels, generation: if is_v2 { Generation::V2 } else { Generation::V1 } }
    }

    /// Returns the view that selectors and node affinity are matched against.
    pub fn view(&self) -> NodeView<'_> {
        NodeView { name: &self.name, labels: &self.labels }
    }
}

/// NetworkPolicy, reduced to its pod selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// `metadata.name`
    pub name: String,
    /// `spec.podSelector`
    pub pod_selector: LabelSelector,
}

/// Label selector. An empty one selects everything.
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
    /// Key of the label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// Values that the label is compared with.
    pub values: Vec<String>,
}

impl LabelSelector {
    /// Returns whether the labels meet all requirements. `label` returns the value of a key.
    pub fn selects<'l>(&self, label: impl Fn(&str) -> Option<&'l str>) -> bool {
        self.match_labels.iter().all(|(key, value)| label(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| {
                let values = requirement.values.iter().map(String::as_str);
                requirement_matches(&requirement.operator, values, label(&requirement.key))
            })
    }
}

/// Labels of a namespace that the rules read.
pub const NAMESPACE_LABELS: &[&str] = &["istio-injection", "istio.io/dataplane-mode", "istio.io/rev"];

/// Annotations of a namespace that the rules read.
pub const NAMESPACE_ANNOTATIONS: &[&str] = &["linkerd.io/inject", "scheduler.alpha.kubernetes.io/tolerationsWhitelist"];

/// Known facts about the cluster around one pod.
#[derive(Debug, Clone, Copy)]
pub struct ClusterContext<'c> {
    /// Service account of the pod.
    pub service_account: ServiceAccount,
    /// Namespace of the pod. Empty if unknown.
    pub namespace: &'c str,
    /// Virtual nodes of the cluster. Empty if none is known.
    pub virtual_nodes: &'c [VirtualNode],
    /// Labels of the namespace, at least [`NAMESPACE_LABELS`].
    pub namespace_labels: &'c BTreeMap<String, String>,
    /// Annotations of the namespace, at least [`NAMESPACE_ANNOTATIONS`].
    pub namespace_annotations: &'c BTreeMap<String, String>,
    /// NetworkPolicies of the namespace.
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
