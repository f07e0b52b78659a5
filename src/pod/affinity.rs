//! Node affinity: the part of `spec.affinity` that Spillway reads and adds to.

use serde::Deserialize;

use super::Text;

/// `spec.affinity`; pod affinity and anti-affinity are left unread.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Affinity<'a> {
    /// `nodeAffinity`
    #[serde(borrow)]
    pub node_affinity: Option<NodeAffinity<'a>>,
}

/// `spec.affinity.nodeAffinity`
#[derive(Debug, Deserialize)]
pub struct NodeAffinity<'a> {
    /// `preferredDuringSchedulingIgnoredDuringExecution`
    #[serde(borrow, rename = "preferredDuringSchedulingIgnoredDuringExecution")]
    pub preferred: Option<Vec<PreferredSchedulingTerm<'a>>>,
}

/// A weighted term of the preferred node affinity. Its weight is the user's and is not read.
#[derive(Debug, Deserialize)]
pub struct PreferredSchedulingTerm<'a> {
    /// `preference`
    #[serde(borrow)]
    pub preference: Option<NodeSelectorTerm<'a>>,
}

/// A term: all of its expressions and all of its fields must match.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSelectorTerm<'a> {
    /// Requirements on labels of the node.
    #[serde(borrow)]
    pub match_expressions: Option<Vec<NodeSelectorRequirement<'a>>>,
    /// Requirements on fields of the node.
    #[serde(borrow)]
    pub match_fields: Option<Vec<NodeSelectorRequirement<'a>>>,
}

/// One requirement of a term.
#[derive(Debug, Deserialize)]
pub struct NodeSelectorRequirement<'a> {
    /// The label's key.
    #[serde(borrow)]
    pub key: Option<Text<'a>>,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`.
    #[serde(borrow)]
    pub operator: Option<Text<'a>>,
    /// What the label is compared with.
    #[serde(borrow)]
    pub values: Option<Vec<Text<'a>>>,
}

impl NodeSelectorTerm<'_> {
    /// Whether this term says `key NotIn [value]` and nothing else, however often it repeats itself.
    pub fn is_only_not_in(&self, key: &str, value: &str) -> bool {
        let expressions = self.match_expressions.as_deref().unwrap_or_default();
        let fields = self.match_fields.as_deref().unwrap_or_default();
        fields.is_empty() && !expressions.is_empty() && expressions.iter().all(|e| e.is_not_in(key, value))
    }
}

impl NodeSelectorRequirement<'_> {
    fn is_not_in(&self, key: &str, value: &str) -> bool {
        let values = self.values.as_deref().unwrap_or_default();
        self.key.as_deref() == Some(key)
            && self.operator.as_deref() == Some("NotIn")
            && !values.is_empty()
            && values.iter().all(|v| &**v == value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_term_that_says_the_same_is_taken_for_ours() {
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
            assert_eq!(term.is_only_not_in("type", "virtual-kubelet"), expected, "{json}");
        }
    }
}
