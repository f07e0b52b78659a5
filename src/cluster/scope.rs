//! For which pods the API server calls Spillway, by the webhook configuration that is live: a pod that it should have called for and
//! that carries no decision was missed.

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

/// How much younger than the opt-in of its namespace a pod must be to count as missed: every API server and every webhook has to hear of
/// the opt-in first, and times are whole seconds.
pub const GRACE: Duration = Duration::from_secs(2);

/// The mirror of a static pod carries it (kubernetes `pkg/apis/core/annotation_key_constants.go`, MirrorPodAnnotationKey).
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The matchCondition of the manifests, without spaces. What others say is for the API server alone to tell: it evaluates CEL.
const NOT_A_MIRROR_POD: &str =
    "!has(object.metadata.annotations)||!('kubernetes.io/config.mirror'inobject.metadata.annotations)";

/// Whom a webhook configuration has the API server call for when a pod is created.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scope(Vec<Selects>);

#[derive(Debug, Clone, PartialEq)]
struct Selects {
    namespaces: LabelSelector,
    pods: LabelSelector,
    /// The name of a matchCondition that is not the one of the manifests.
    unknown: Option<String>,
}

/// Whether the API server calls for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// It does.
    Called,
    /// It does not.
    NotCalled,
    /// That depends on this matchCondition.
    Depends(String),
}

impl Scope {
    /// Of all webhooks of a configuration, those that are called when a pod is created.
    pub fn read(configuration: MutatingWebhookConfiguration) -> Self {
        let webhooks = configuration.webhooks.into_iter().flatten();
        let creation = webhooks.filter(|webhook| webhook.rules.iter().flatten().any(is_of_new_pods));
        Self(creation.map(Selects::read).collect())
    }

    /// Whether the API server calls for a pod with these labels and annotations in a namespace with these labels. Pods that are
    /// opted out and mirrors of static pods are none of our business, whatever the configuration says.
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
            match &webhook.unknown {
                None => return Reach::Called,
                Some(condition) => reach = Reach::Depends(condition.clone()),
            }
        }
        reach
    }
}

impl Selects {
    fn read(webhook: MutatingWebhook) -> Self {
        let conditions = webhook.match_conditions.into_iter().flatten();
        let is_ours = |text: &str| text.chars().filter(|c| !c.is_whitespace()).eq(NOT_A_MIRROR_POD.chars());
        Self {
            namespaces: label_selector(webhook.namespace_selector.unwrap_or_default()),
            pods: label_selector(webhook.object_selector.unwrap_or_default()),
            unknown: conditions.filter(|c| !is_ours(&c.expression)).map(|condition| condition.name).next(),
        }
    }
}

fn is_of_new_pods(rule: &RuleWithOperations) -> bool {
    let names = |all: &Option<Vec<String>>, one: &str| all.iter().flatten().any(|word| word == one || word == "*");
    names(&rule.api_groups, "") && names(&rule.resources, "pods") && names(&rule.operations, "CREATE")
}

/// A namespace that has opted in.
#[derive(Debug, PartialEq)]
pub(crate) struct OptedIn {
    pub(crate) namespace: Arc<Namespace>,
    /// When it opted in, as far as its `managedFields` say; otherwise when that was read.
    pub(crate) since: Timestamp,
    /// All of its labels.
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

/// Since when a namespace has carried the label that opts in, as far as its `managedFields` tell: when whoever owns the label last
/// wrote anything. Nothing if nobody is recorded.
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
    fn the_api_server_calls_for_whom_the_live_configuration_selects() {
        let (shipped, opted_in) = (shipped(), [(BURST_LABEL, "enabled")]);
        let reached = |namespace: &[(&str, &str)], labels: &[(&str, &str)], annotation| {
            reach(&shipped, namespace, labels, annotation) == Reach::Called
        };
        assert!(reached(&opted_in, &[("app", "web")], "note"));
        assert!(!reached(&[("team", "x")], &[], ""));
        assert!(!reached(&[(BURST_LABEL, DISABLED)], &[], ""));
        assert!(!reached(&[(BURST_LABEL, "enabled"), ("kubernetes.io/metadata.name", "kube-system")], &[], ""));
        assert!(!reached(&opted_in, &[(BURST_LABEL, DISABLED)], ""), "opted out");
        assert!(!reached(&opted_in, &[], MIRROR), "a mirror");

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
    fn a_namespace_has_opted_in_when_whoever_wrote_the_label_did() {
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
