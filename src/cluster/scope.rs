//! The pods for which the API server calls Spillway, according to the live webhook configuration.
//!
//! A pod in this scope without a decision was missed by the webhook.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{
    api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations},
    jiff::Timestamp,
};
use kube::api::ObjectMeta;
use serde_json::Value;

use super::snapshot::{Namespace, label_selector};
use crate::{
    config::{BURST_LABEL, DISABLED},
    eligibility::LabelSelector,
};

/// Time after the opt-in of a namespace in which its new pods do not count as missed. Every API server and every webhook
/// replica must observe the opt-in first, and timestamps have whole seconds.
pub const GRACE: Duration = Duration::from_secs(2);

/// The annotation of a mirror pod (kubernetes `pkg/apis/core/annotation_key_constants.go`, MirrorPodAnnotationKey).
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The matchCondition of the manifests, without spaces. Spillway does not evaluate the CEL of other matchConditions.
const NOT_A_MIRROR_POD: &str =
    "!has(object.metadata.annotations)||!('kubernetes.io/config.mirror'inobject.metadata.annotations)";

/// The pods for whose creation the API server calls the webhooks of a configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scope(Vec<WebhookScope>);

/// The pods for whose creation the API server calls one webhook.
#[derive(Debug, Clone, PartialEq)]
struct WebhookScope {
    namespaces: LabelSelector,
    pods: LabelSelector,
    /// The name of the first matchCondition that differs from the manifests.
    unknown_condition: Option<String>,
}

/// Result of [`Scope::reaches`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// The API server calls Spillway for the pod.
    Called,
    /// The API server does not call Spillway for the pod.
    NotCalled,
    /// The result depends on this matchCondition.
    Depends(String),
}

impl Scope {
    /// Reads the webhooks of a configuration that the API server calls for new pods.
    pub fn read(configuration: MutatingWebhookConfiguration) -> Self {
        let webhooks = configuration.webhooks.into_iter().flatten();
        let creation = webhooks.filter(|webhook| webhook.rules.iter().flatten().any(covers_new_pods));
        Self(creation.map(WebhookScope::read).collect())
    }

    /// Returns whether the API server calls Spillway for a pod, by the labels of its namespace, its labels and its
    /// annotations. Opted-out pods and mirror pods are never in scope, whatever the configuration selects.
    pub fn reaches(
        &self,
        namespace: &BTreeMap<String, String>,
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
    ) -> Reach {
        let is_out = labels.get(BURST_LABEL).is_some_and(|label| label == DISABLED);
        if is_out || annotations.contains_key(MIRROR) {
            return Reach::NotCalled;
        }
        let label = |labels: &'_ BTreeMap<String, String>, selector: &LabelSelector| {
            selector.selects(|key| labels.get(key).map(String::as_str))
        };
        let mut reach = Reach::NotCalled;
        for webhook in self.0.iter().filter(|one| label(namespace, &one.namespaces) && label(labels, &one.pods)) {
            match &webhook.unknown_condition {
                None => return Reach::Called,
                Some(condition) => reach = Reach::Depends(condition.clone()),
            }
        }
        reach
    }
}

impl WebhookScope {
    fn read(webhook: MutatingWebhook) -> Self {
        let conditions = webhook.match_conditions.into_iter().flatten();
        let is_ours = |text: &str| text.chars().filter(|c| !c.is_whitespace()).eq(NOT_A_MIRROR_POD.chars());
        Self {
            namespaces: label_selector(webhook.namespace_selector.unwrap_or_default()),
            pods: label_selector(webhook.object_selector.unwrap_or_default()),
            unknown_condition: conditions.filter(|c| !is_ours(&c.expression)).map(|condition| condition.name).next(),
        }
    }
}

fn covers_new_pods(rule: &RuleWithOperations) -> bool {
    let names = |all: &Option<Vec<String>>, one: &str| all.iter().flatten().any(|word| word == one || word == "*");
    names(&rule.api_groups, "") && names(&rule.resources, "pods") && names(&rule.operations, "CREATE")
}

/// An opted-in namespace.
#[derive(Debug, PartialEq)]
pub(crate) struct OptedIn {
    pub(crate) namespace: Arc<Namespace>,
    /// The time of the opt-in from `managedFields`, or the time of the read if they do not show it.
    pub(crate) since: Timestamp,
    /// All labels of the namespace.
    pub(crate) labels: BTreeMap<String, String>,
}

impl OptedIn {
    pub(super) fn read(namespace: &Arc<Namespace>, meta: &ObjectMeta) -> Self {
        Self {
            namespace: namespace.clone(),
            since: opted_in_since(meta).unwrap_or_else(Timestamp::now),
            labels: meta.labels.clone().unwrap_or_default(),
        }
    }
}

/// Returns the time when a field manager that owns the opt-in label last wrote to the namespace. Returns `None` if
/// `managedFields` names no owner of the label.
pub fn opted_in_since(namespace: &ObjectMeta) -> Option<Timestamp> {
    let label = format!("f:{BURST_LABEL}");
    let owns = |fields: &Value| fields.get("f:metadata").and_then(|meta| meta.get("f:labels")?.get(&label)).is_some();
    let managers = namespace.managed_fields.iter().flatten();
    let owners = managers.filter(|entry| entry.fields_v1.as_ref().is_some_and(|fields| owns(&fields.0)));
    owners.filter_map(|entry| Some(entry.time.as_ref()?.0)).min()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shipped() -> Value {
        serde_saphyr::from_str(include_str!("../../manifests/base/mutatingwebhookconfiguration.yaml")).unwrap()
    }

    fn reach(configuration: &Value, namespace: &[(&str, &str)], labels: &[(&str, &str)], annotation: &str) -> Reach {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let scope = Scope::read(serde_json::from_value(configuration.clone()).unwrap());
        scope.reaches(&map(namespace), &map(labels), &map(&[(annotation, "")]))
    }

    #[test]
    fn the_live_configuration_decides_which_pods_are_in_scope() {
        let (shipped, opted_in) = (shipped(), [(BURST_LABEL, "enabled")]);
        let reached = |namespace: &[(&str, &str)], labels: &[(&str, &str)], annotation| {
            reach(&shipped, namespace, labels, annotation) == Reach::Called
        };
        assert!(reached(&opted_in, &[("app", "web")], "note"));
        assert!(!reached(&[("team", "x")], &[], ""));
        assert!(!reached(&[(BURST_LABEL, DISABLED)], &[], ""));
        assert!(!reached(&[(BURST_LABEL, "enabled"), ("kubernetes.io/metadata.name", "kube-system")], &[], ""));
        assert!(!reached(&opted_in, &[(BURST_LABEL, DISABLED)], ""), "opted out");
        assert!(!reached(&opted_in, &[], MIRROR), "a mirror pod");

        let mut narrower = shipped.clone();
        narrower["webhooks"][0]["objectSelector"] = json!({"matchLabels": {"app": "web"}});
        assert_eq!(reach(&narrower, &opted_in, &[("app", "api")], ""), Reach::NotCalled);
        assert_eq!(reach(&narrower, &opted_in, &[("app", "web")], ""), Reach::Called);
        let mut conditional = shipped.clone();
        conditional["webhooks"][0]["matchConditions"][0]["expression"] = "true".into();
        assert_eq!(reach(&conditional, &opted_in, &[], ""), Reach::Depends("not-a-mirror-pod".to_owned()));
        assert_eq!(reach(&json!({"metadata": {}}), &opted_in, &[], ""), Reach::NotCalled, "no webhook");
        let bindings_only = json!({"metadata": {}, "webhooks": [shipped["webhooks"][2]]});
        assert_eq!(reach(&bindings_only, &opted_in, &[], ""), Reach::NotCalled);
    }

    #[test]
    fn the_owner_of_the_label_gives_the_time_of_the_opt_in() {
        let entry = |time: &str, label: &str| json!({"time": time, "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {label: {}}}}});
        let since = |entries: Value| {
            opted_in_since(&serde_json::from_value(json!({"managedFields": entries})).unwrap())
                .map(|time| time.to_string())
        };
        let other = entry("2026-01-01T00:00:00Z", "f:team");
        let ours = entry("2026-01-02T00:00:00Z", "f:spillway.dev/burst");
        assert_eq!(since(json!([other, ours])).as_deref(), Some("2026-01-02T00:00:00Z"));
        assert_eq!(since(json!([other])), None);
        assert_eq!(since(json!(null)), None);
    }
}
