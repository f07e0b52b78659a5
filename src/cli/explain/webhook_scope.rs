//! The selectors of `manifests/base/mutatingwebhookconfiguration.yaml`, with which the API server selects pods.

use std::fmt;

use super::known_cluster::Namespace;
use crate::{
    config::{BURST_LABEL, DISABLED},
    pod::Pod,
};

/// Namespaces that are excluded by name.
const NAMESPACES: &[&str] =
    &["kube-system", "kube-public", "kube-node-lease", "vn2", "vn-system", "vk-azure-aci", "spillway-system"];

/// Labels that exclude a namespace.
const LABELS: &[(&str, &str)] =
    &[(BURST_LABEL, DISABLED), ("control-plane", "true"), ("kubernetes.azure.com/managedby", "aks")];

/// Annotation of mirror pods.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The reason why the API server does not call Spillway for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotCalled {
    /// The namespace has no label with a profile.
    NotOptedIn,
    /// The namespace belongs to the cluster or to Spillway.
    Namespace(String),
    /// The namespace has a label that excludes it.
    Label(&'static str, &'static str),
    /// The pod is the mirror of a static pod, and already runs on its node.
    MirrorPod,
}

impl NotCalled {
    /// Returns the text that replaces the decision.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::NotOptedIn | Self::Label(BURST_LABEL, _) => "not opted in",
            _ => "not called",
        }
    }
}

impl fmt::Display for NotCalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOptedIn => write!(f, "the namespace has no label {BURST_LABEL} that names a profile"),
            Self::Namespace(name) => write!(f, "the webhook's configuration excludes namespace {name}"),
            Self::Label(key, value) => {
                write!(f, "the webhook's configuration excludes namespaces with the label {key}: {value:?}")
            }
            Self::MirrorPod => f.write_str("the pod is the mirror of a static pod, which already runs on its node"),
        }
    }
}

/// Returns the profile for a pod in this namespace, or the reason why the API server does not call Spillway.
pub(super) fn profile<'n>(name: &str, namespace: &'n Namespace, pod: &Pod<'_>) -> Result<&'n str, NotCalled> {
    if NAMESPACES.contains(&name) {
        return Err(NotCalled::Namespace(name.to_owned()));
    }
    if let Some((key, value)) = LABELS.iter().find(|(key, value)| namespace.label(key) == Some(value)) {
        return Err(NotCalled::Label(key, value));
    }
    if pod.annotation(MIRROR).is_some() {
        return Err(NotCalled::MirrorPod);
    }
    namespace.label(BURST_LABEL).ok_or(NotCalled::NotOptedIn)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn excluded_namespaces_and_pods_match_the_manifest() {
        let manifest = include_str!("../../../manifests/base/mutatingwebhookconfiguration.yaml");
        let manifest: Value = serde_saphyr::from_str(manifest).unwrap();
        let not_in = |key: &str, values: Value| json!({"key": key, "operator": "NotIn", "values": values});
        let mut expected = vec![json!({"key": BURST_LABEL, "operator": "Exists"})];
        expected.extend(LABELS.iter().map(|(key, value)| not_in(key, json!([value]))));
        expected.push(not_in("kubernetes.io/metadata.name", json!(NAMESPACES)));
        for webhook in manifest["webhooks"].as_array().unwrap() {
            assert_eq!(webhook["namespaceSelector"], json!({"matchExpressions": expected}), "{}", webhook["name"]);
            // A Binding has no labels.
            let is_of_bindings = webhook["name"] == "bindings.spillway.dev";
            let pods = json!({"matchExpressions": [not_in(BURST_LABEL, json!([DISABLED]))]});
            let expected = if is_of_bindings { Value::Null } else { pods };
            assert_eq!(webhook["objectSelector"], expected, "{}", webhook["name"]);
        }
        let condition = &manifest["webhooks"][0]["matchConditions"];
        assert_eq!(condition.as_array().unwrap().len(), 1);
        assert!(condition[0]["expression"].as_str().unwrap().contains(&format!("'{MIRROR}'")));
    }
}
