//! Tolerations as the scheduler understands them.

use serde::Deserialize;

use super::Text;

/// One entry of `spec.tolerations`.
#[derive(Debug, Deserialize)]
pub struct Toleration<'a> {
    /// Empty or absent, with operator `Exists`, means every key.
    #[serde(borrow)]
    pub key: Option<Text<'a>>,
    /// `Exists` or `Equal`; empty or absent means `Equal`.
    #[serde(borrow)]
    pub operator: Option<Text<'a>>,
    /// Compared with the taint's value by `Equal`.
    #[serde(borrow)]
    pub value: Option<Text<'a>>,
    /// Empty or absent means every effect.
    #[serde(borrow)]
    pub effect: Option<Text<'a>>,
}

/// A taint of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taint<'a> {
    /// Such as `virtual-kubelet.io/provider`.
    pub key: &'a str,
    /// Such as `azure`.
    pub value: &'a str,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: &'a str,
}

impl Toleration<'_> {
    /// Whether this toleration tolerates the taint.
    ///
    /// The rules are those of `ToleratesTaint` in k8s.io/component-helpers `scheduling/corev1`. The operators `Lt` and `Gt`
    /// (an alpha feature that compares integers) count as not tolerating: the worst of that is one toleration more.
    pub fn tolerates(&self, taint: Taint<'_>) -> bool {
        let effect = self.effect.as_deref().unwrap_or_default();
        let key = self.key.as_deref().unwrap_or_default();
        if !effect.is_empty() && effect != taint.effect {
            return false;
        }
        if !key.is_empty() && key != taint.key {
            return false;
        }
        match self.operator.as_deref().unwrap_or_default() {
            "" | "Equal" => self.value.as_deref().unwrap_or_default() == taint.value,
            "Exists" => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAINT: Taint<'_> = Taint { key: "virtual-kubelet.io/provider", value: "azure", effect: "NoSchedule" };

    #[test]
    fn a_toleration_covers_a_taint_exactly_when_the_scheduler_says_so() {
        for (json, expected) in [
            (r#"{"key":"virtual-kubelet.io/provider","operator":"Exists","effect":"NoSchedule"}"#, true),
            (r#"{"key":"virtual-kubelet.io/provider","operator":"Exists"}"#, true),
            (r#"{"key":"virtual-kubelet.io/provider","operator":"Exists","effect":""}"#, true),
            (r#"{"operator":"Exists"}"#, true),
            (r#"{"operator":"Exists","effect":"NoSchedule"}"#, true),
            (r#"{"key":"virtual-kubelet.io/provider","operator":"Equal","value":"azure"}"#, true),
            (r#"{"key":"virtual-kubelet.io/provider","value":"azure","effect":"NoSchedule"}"#, true),
            (r#"{"key":"virtual-kubelet.io/provider","operator":"","value":"azure"}"#, true),
            (r#"{"key":"virtual-kubelet.io/provider","operator":"Equal","value":"aws"}"#, false),
            (r#"{"key":"virtual-kubelet.io/provider","operator":"Equal"}"#, false),
            (r#"{"key":"virtual-kubelet.io/provider","operator":"Exists","effect":"NoExecute"}"#, false),
            (r#"{"key":"virtual-kubelet.io/provider","operator":"Exists","effect":"PreferNoSchedule"}"#, false),
            (r#"{"key":"azure.com/aci","operator":"Exists","effect":"NoSchedule"}"#, false),
            (r#"{"key":"virtual-kubelet.io/provider","operator":"Gt","value":"1"}"#, false),
            (r#"{"key":null,"operator":"Exists","value":null,"effect":null}"#, true),
            ("{}", false),
        ] {
            let toleration: Toleration<'_> = serde_json::from_str(json).unwrap();
            assert_eq!(toleration.tolerates(TAINT), expected, "{json}");
        }
    }
}
