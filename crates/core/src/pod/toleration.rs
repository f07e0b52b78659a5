//! Tolerations with the scheduler's semantics.

use bounded_static::ToStatic;
use serde::Deserialize;

use super::{Text, from_map};

/// Entry of `spec.tolerations`.
#[derive(Debug, Default, Deserialize, ToStatic)]
#[serde(remote = "Self")]
pub struct Toleration<'a> {
    /// `key`. If it is empty or absent, with operator `Exists`, it means every key.
    #[serde(borrow)]
    pub key: Option<Text<'a>>,
    /// `operator`: `Exists` or `Equal`. If it is empty or absent, it means `Equal`.
    #[serde(borrow)]
    pub operator: Option<Text<'a>>,
    /// `value`. `Equal` compares it with the taint's value.
    #[serde(borrow)]
    pub value: Option<Text<'a>>,
    /// `effect`. If it is empty or absent, it means every effect.
    #[serde(borrow)]
    pub effect: Option<Text<'a>>,
}

/// Taint of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taint<'a> {
    /// Key, such as `virtual-kubelet.io/provider`.
    pub key: &'a str,
    /// Value, such as `azure`.
    pub value: &'a str,
    /// Effect: `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: &'a str,
}

from_map!(Toleration<'a>);

impl Toleration<'_> {
    /// Returns whether this toleration covers the taint.
    ///
    /// The rules are those of `ToleratesTaint` in k8s.io/component-helpers `scheduling/corev1`. The operators `Lt` and
    /// `Gt` (an alpha feature that compares integers) count as not tolerating. At worst, Spillway adds a redundant
    /// toleration.
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

/// Toleration that Spillway adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TolerationFields<'t> {
    /// `key`
    pub key: &'t str,
    /// `operator`
    pub operator: &'t str,
    /// `value`. Empty if the toleration has none.
    pub value: &'t str,
    /// `effect`
    pub effect: &'t str,
}

impl TolerationFields<'_> {
    /// Returns whether the toleration covers the taint. Its key and effect are never empty.
    pub fn tolerates(self, taint: Taint<'_>) -> bool {
        let is_value = self.operator == "Exists" || self.value == taint.value;
        self.key == taint.key && self.effect == taint.effect && is_value
    }
}

impl Toleration<'_> {
    /// Returns whether this entry of a namespace's whitelist permits a toleration.
    ///
    /// The rules are those of `isSuperset` in kubernetes/kubernetes `pkg/util/tolerations/tolerations.go`, for
    /// tolerations without `tolerationSeconds`.
    pub fn permits(&self, wanted: TolerationFields<'_>) -> bool {
        let key = self.key.as_deref().unwrap_or_default();
        let operator = self.operator.as_deref().unwrap_or_default();
        let effect = self.effect.as_deref().unwrap_or_default();
        let every_key = key.is_empty() && operator == "Exists";
        if (key != wanted.key && !every_key) || (effect != wanted.effect && !effect.is_empty()) {
            return false;
        }
        match operator {
            "Exists" => true,
            "" | "Equal" => wanted.operator == "Equal" && self.value.as_deref().unwrap_or_default() == wanted.value,
            _ => false,
        }
    }

    /// Returns whether this entry has exactly these fields.
    pub fn equals(&self, fields: TolerationFields<'_>) -> bool {
        let TolerationFields { key, operator, value, effect } = fields;
        let pairs = [(&self.key, key), (&self.operator, operator), (&self.value, value), (&self.effect, effect)];
        pairs.into_iter().all(|(field, text)| field.as_deref().unwrap_or_default() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAINT: Taint<'_> = Taint { key: "virtual-kubelet.io/provider", value: "azure", effect: "NoSchedule" };

    #[test]
    fn a_toleration_covers_a_taint_as_in_the_scheduler() {
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
