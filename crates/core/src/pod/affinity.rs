//! Node affinity and other scheduling constraints of pods, with the scheduler's semantics.

use bounded_static::ToStatic;
use serde::Deserialize;

use super::{StringMap, Text, from_map};

/// `spec.affinity`
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct Affinity<'a> {
    /// `nodeAffinity`
    #[serde(borrow)]
    pub node_affinity: Option<NodeAffinity<'a>>,
    /// `podAntiAffinity`
    #[serde(borrow)]
    pub pod_anti_affinity: Option<PodAntiAffinity<'a>>,
}

/// `spec.affinity.nodeAffinity`
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(remote = "Self")]
pub struct NodeAffinity<'a> {
    /// `requiredDuringSchedulingIgnoredDuringExecution`
    #[serde(borrow, rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<NodeSelector<'a>>,
    /// `preferredDuringSchedulingIgnoredDuringExecution`
    #[serde(borrow, rename = "preferredDuringSchedulingIgnoredDuringExecution")]
    pub preferred: Option<Vec<PreferredSchedulingTerm<'a>>>,
}

/// Required node affinity. One of its terms must match.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct NodeSelector<'a> {
    /// `nodeSelectorTerms`
    #[serde(borrow)]
    pub node_selector_terms: Option<Vec<NodeSelectorTerm<'a>>>,
}

/// Weighted term of the preferred node affinity.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(remote = "Self")]
pub struct PreferredSchedulingTerm<'a> {
    /// `weight`, from 1 to 100.
    pub weight: Option<i64>,
    /// `preference`
    #[serde(borrow)]
    pub preference: Option<NodeSelectorTerm<'a>>,
}

/// Term of a node affinity. All of its expressions and fields must match.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct NodeSelectorTerm<'a> {
    /// Requirements on labels of the node.
    #[serde(borrow)]
    pub match_expressions: Option<Vec<NodeSelectorRequirement<'a>>>,
    /// Requirements on fields of the node.
    #[serde(borrow)]
    pub match_fields: Option<Vec<NodeSelectorRequirement<'a>>>,
}

/// Requirement of a term.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(remote = "Self")]
pub struct NodeSelectorRequirement<'a> {
    /// Key of the label.
    #[serde(borrow)]
    pub key: Option<Text<'a>>,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`.
    #[serde(borrow)]
    pub operator: Option<Text<'a>>,
    /// Values that the label is compared with.
    #[serde(borrow)]
    pub values: Option<Vec<Text<'a>>>,
}

/// `spec.affinity.podAntiAffinity`
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(remote = "Self")]
pub struct PodAntiAffinity<'a> {
    /// `requiredDuringSchedulingIgnoredDuringExecution`
    #[serde(borrow, rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    pub required: Option<Vec<PodAffinityTerm<'a>>>,
}

/// Term of the pod anti-affinity. Spillway does not read its label selector.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct PodAffinityTerm<'a> {
    /// `topologyKey`
    #[serde(borrow)]
    pub topology_key: Option<Text<'a>>,
}

/// An entry of `spec.topologySpreadConstraints`.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct TopologySpreadConstraint<'a> {
    /// `topologyKey`
    #[serde(borrow)]
    pub topology_key: Option<Text<'a>>,
    /// `DoNotSchedule` (also if absent) or `ScheduleAnyway`.
    #[serde(borrow)]
    pub when_unsatisfiable: Option<Text<'a>>,
    /// `Ignore` (also if absent) or `Honor`.
    #[serde(borrow)]
    pub node_taints_policy: Option<Text<'a>>,
}

from_map!(
    Affinity<'a>,
    NodeAffinity<'a>,
    NodeSelector<'a>,
    PreferredSchedulingTerm<'a>,
    NodeSelectorTerm<'a>,
    NodeSelectorRequirement<'a>,
    PodAntiAffinity<'a>,
    PodAffinityTerm<'a>,
    TopologySpreadConstraint<'a>,
);

/// Node that a pod's constraints are matched against.
#[derive(Debug, Clone, Copy)]
pub struct NodeView<'n> {
    /// `metadata.name`
    pub name: &'n str,
    /// `metadata.labels`, in any order.
    pub labels: &'n [(String, String)],
}

impl<'n> NodeView<'n> {
    /// Returns the value of a label, or `None` if the node lacks it.
    pub fn label(&self, key: &str) -> Option<&'n str> {
        self.labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

impl StringMap<'_> {
    /// Returns the first entry of a `spec.nodeSelector` that the node does not match.
    pub fn first_unmatched(&self, node: NodeView<'_>) -> Option<(&str, &str)> {
        self.iter().find(|(key, value)| node.label(key) != Some(value))
    }
}

impl NodeSelector<'_> {
    /// Returns the terms. A node affinity without terms matches no node.
    pub fn terms(&self) -> &[NodeSelectorTerm<'_>] {
        self.node_selector_terms.as_deref().unwrap_or_default()
    }

    /// Returns whether one of the terms matches the node.
    pub fn matches(&self, node: NodeView<'_>) -> bool {
        self.terms().iter().any(|term| term.matches(node))
    }
}

impl NodeSelectorTerm<'_> {
    /// Returns the requirements on labels.
    pub fn expressions(&self) -> &[NodeSelectorRequirement<'_>] {
        self.match_expressions.as_deref().unwrap_or_default()
    }

    /// Returns the requirements on fields.
    pub fn fields(&self) -> &[NodeSelectorRequirement<'_>] {
        self.match_fields.as_deref().unwrap_or_default()
    }

    /// Returns whether the term has no requirements. Such a term matches no node.
    pub fn is_empty(&self) -> bool {
        self.expressions().is_empty() && self.fields().is_empty()
    }

    /// Returns whether the node meets every requirement. An empty term matches no node, as in k8s.io/component-helpers
    /// `scheduling/corev1/nodeaffinity`.
    pub fn matches(&self, node: NodeView<'_>) -> bool {
        let (expressions, fields) = (self.expressions(), self.fields());
        // The API has only this field.
        let field = |key: &str| (key == "metadata.name").then_some(node.name);
        !self.is_empty()
            && expressions.iter().all(|e| e.matches(|key| node.label(key)))
            && fields.iter().all(|e| e.matches(field))
    }

    /// Returns whether this term is `key OPERATOR [value]` alone, which may be repeated.
    pub fn is_exactly(&self, key: &str, operator: &str, value: &str) -> bool {
        let expressions = self.expressions();
        self.fields().is_empty()
            && !expressions.is_empty()
            && expressions.iter().all(|e| e.equals(key, operator, value))
    }
}

impl NodeSelectorRequirement<'_> {
    /// Returns whether this is `key OPERATOR [value]`, with that value alone.
    pub fn equals(&self, key: &str, operator: &str, value: &str) -> bool {
        let values = self.values();
        self.key.as_deref() == Some(key)
            && self.operator.as_deref() == Some(operator)
            && !values.is_empty()
            && values.iter().all(|v| &**v == value)
    }

    fn values(&self) -> &[Text<'_>] {
        self.values.as_deref().unwrap_or_default()
    }

    fn matches<'n>(&self, look_up: impl Fn(&str) -> Option<&'n str>) -> bool {
        let found = look_up(self.key.as_deref().unwrap_or_default());
        let values = self.values().iter().map(|value| &**value);
        requirement_matches(self.operator.as_deref().unwrap_or_default(), values, found)
    }
}

/// Formats `key In [a, b]`, for messages.
impl std::fmt::Display for NodeSelectorRequirement<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.key.as_deref().unwrap_or("?"), self.operator.as_deref().unwrap_or("?"))?;
        if !self.values().is_empty() {
            let values: Vec<_> = self.values().iter().map(|value| &**value).collect();
            write!(f, " [{}]", values.join(", "))?;
        }
        Ok(())
    }
}

/// Returns whether a label meets a requirement, by the rules of k8s.io/apimachinery `pkg/labels`. `None` means that the
/// label is absent. No label meets an unknown operator.
pub fn requirement_matches<'v>(operator: &str, mut values: impl Iterator<Item = &'v str>, label: Option<&str>) -> bool {
    match operator {
        "In" => label.is_some_and(|label| values.any(|value| value == label)),
        "NotIn" => label.is_none_or(|label| values.all(|value| value != label)),
        "Exists" => label.is_some(),
        "DoesNotExist" => label.is_none(),
        "Gt" | "Lt" => {
            let number = |text: &str| text.parse::<i64>().ok();
            match (label.and_then(number), values.next().and_then(number)) {
                (Some(label), Some(bound)) => {
                    if operator == "Gt" {
                        label > bound
                    } else {
                        label < bound
                    }
                }
                _ => false,
            }
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_equal_term_counts_as_ours() {
        for (json, expected) in [
            (r#"{"matchExpressions":[{"key":"type","operator":"NotIn","values":["virtual-kubelet"]}]}"#, true),
            (
                r#"{"matchExpressions":[{"key":"type","operator":"NotIn","values":["virtual-kubelet"]}],"matchFields":null}"#,
                true,
            ),
            (r#"{"matchExpressions":[{"key":"type","operator":"NotIn","values":["virtual-kubelet","x"]}]}"#, false),
            (r#"{"matchExpressions":[{"key":"type","operator":"In","values":["virtual-kubelet"]}]}"#, false),
            (r#"{"matchExpressions":[{"key":"type","operator":"NotIn","values":[]}]}"#, false),
            (r#"{"matchExpressions":[{"key":"type","operator":"DoesNotExist"}]}"#, false),
            (
                r#"{"matchExpressions":[{"key":"type","operator":"NotIn","values":["virtual-kubelet"]},{"key":"zone","operator":"Exists"}]}"#,
                false,
            ),
            (
                r#"{"matchExpressions":[{"key":"type","operator":"NotIn","values":["virtual-kubelet"]}],"matchFields":[{"key":"metadata.name","operator":"In","values":["a"]}]}"#,
                false,
            ),
            ("{}", false),
        ] {
            let term: NodeSelectorTerm<'_> = serde_json::from_str(json).unwrap();
            assert_eq!(term.is_exactly("type", "NotIn", "virtual-kubelet"), expected, "{json}");
        }
    }

    #[test]
    fn required_affinity_matches_as_the_scheduler_does() {
        let labels =
            [("type", "virtual-kubelet"), ("cores", "8"), ("empty", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let node = NodeView { name: "virtual", labels: &labels };
        for (terms, expected) in [
            ("[]", false),
            ("[{}]", false),
            (r#"[{},{"matchExpressions":[{"key":"type","operator":"Exists"}]}]"#, true),
            (r#"[{"matchExpressions":[{"key":"type","operator":"In","values":["a","virtual-kubelet"]}]}]"#, true),
            (r#"[{"matchExpressions":[{"key":"type","operator":"NotIn","values":["a"]}]}]"#, true),
            (r#"[{"matchExpressions":[{"key":"zone","operator":"NotIn","values":["a"]}]}]"#, true),
            (r#"[{"matchExpressions":[{"key":"zone","operator":"DoesNotExist"}]}]"#, true),
            (r#"[{"matchExpressions":[{"key":"empty","operator":"In","values":[""]}]}]"#, true),
            (r#"[{"matchExpressions":[{"key":"cores","operator":"Gt","values":["7"]}]}]"#, true),
            (r#"[{"matchExpressions":[{"key":"cores","operator":"Lt","values":["8"]}]}]"#, false),
            (r#"[{"matchExpressions":[{"key":"type","operator":"Gt","values":["1"]}]}]"#, false),
            (r#"[{"matchFields":[{"key":"metadata.name","operator":"In","values":["virtual"]}]}]"#, true),
            (r#"[{"matchFields":[{"key":"metadata.name","operator":"NotIn","values":["virtual"]}]}]"#, false),
            (
                r#"[{"matchExpressions":[{"key":"type","operator":"Exists"},{"key":"zone","operator":"Exists"}]}]"#,
                false,
            ),
        ] {
            let json = format!(r#"{{"nodeSelectorTerms":{terms}}}"#);
            let selector: NodeSelector<'_> = serde_json::from_str(&json).unwrap();
            assert_eq!(selector.matches(node), expected, "{terms}");
        }
    }
}
