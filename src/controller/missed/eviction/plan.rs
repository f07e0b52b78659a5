//! Selects the missed pod to evict next.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::api::DynamicObject;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::super::plan::Scheduled;
use crate::{burst::DECISION, cluster::PodMeta};

/// The least time between two evictions of pods of one owner.
pub(super) const OWNER_INTERVAL: Duration = Duration::from_secs(3600);

/// The least time until the next attempt if no pod was evicted.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// The result of an attempt, as label `result` of metric `spillway_actions`.
#[derive(Debug, PartialEq)]
pub(super) enum Attempt {
    /// No pod was evicted.
    NotEvicted(&'static str),
    /// The eviction was sent, and may have happened.
    Sent(&'static str),
}

/// The time from which pods of an owner may be evicted again, by the owner's uid.
#[derive(Debug, Default)]
pub(in super::super) struct Evictions(HashMap<String, Instant>);

impl Evictions {
    /// Returns the next pod to evict. Skips pods without an owner, because no controller would recreate them.
    pub(super) fn next<'p>(
        &mut self,
        pods: impl Iterator<Item = &'p Scheduled>,
        now: Instant,
    ) -> Option<(&'p OwnerReference, &'p Scheduled)> {
        self.0.retain(|_, until| *until > now);
        let mut owned = pods.filter_map(|pod| Some((pod.meta.controller.as_ref()?, pod)));
        owned.find(|(owner, _)| !self.0.contains_key(&owner.uid))
    }

    /// Runs an attempt. The interval of the owner starts before the attempt, because the attempt may be cancelled. The interval becomes
    /// shorter only if the pod was certainly not evicted.
    pub(super) async fn attempt(&mut self, owner: &str, attempt: impl Future<Output = Attempt>) -> &'static str {
        self.0.insert(owner.to_owned(), Instant::now() + OWNER_INTERVAL);
        match attempt.await {
            Attempt::Sent(result) => result,
            Attempt::NotEvicted(result) => {
                self.0.insert(owner.to_owned(), Instant::now() + RETRY_INTERVAL);
                result
            }
        }
    }

    /// Returns how long no further pod of an owner may be evicted.
    #[cfg(test)]
    pub(super) fn remaining(&self, owner: &str) -> Duration {
        self.0[owner] - Instant::now()
    }
}

/// Returns whether a pod may be evicted: its owner recreates the same pod, and the pod is not protected. A pod that runs to completion,
/// such as a pod of a Job or a pipeline, would fail by an eviction.
pub(in super::super) fn may_evict<'a>(pod: &Value, annotation: impl Fn(&str) -> Option<&'a str>) -> bool {
    let policy = pod.pointer("/spec/restartPolicy").and_then(Value::as_str);
    policy.is_none_or(|policy| policy == "Always") && !is_protected(annotation)
}

/// Returns whether an annotation forbids node autoscalers to disrupt a pod (kubernetes/autoscaler `utils/drain/drain.go`;
/// kubernetes-sigs/karpenter `pkg/apis/v1/labels.go`).
pub(super) fn is_protected<'a>(annotation: impl Fn(&str) -> Option<&'a str>) -> bool {
    annotation("cluster-autoscaler.kubernetes.io/safe-to-evict") == Some("false")
        || annotation("karpenter.sh/do-not-disrupt") == Some("true")
}

/// Returns whether a pod of the owner has a decision and was created after `horizon`.
pub(super) fn was_recreated(pod: &ObjectMeta, owner: &str, horizon: Timestamp) -> bool {
    let is_decided = pod.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(DECISION));
    let pod = PodMeta::read(pod);
    is_decided && pod.created > horizon && pod.controller.is_some_and(|controller| controller.uid == owner)
}

/// Returns the pod as its owner might recreate it, for a dry run: without fields that only an existing pod has.
pub(super) fn dry_run_copy(pod: &DynamicObject) -> DynamicObject {
    let mut spec = pod.data.get("spec").and_then(Value::as_object).cloned().unwrap_or_else(Map::new);
    for field in ["nodeName", "ephemeralContainers"] {
        spec.remove(field);
    }
    let mut copy =
        DynamicObject { types: pod.types.clone(), metadata: ObjectMeta::default(), data: json!({"spec": spec}) };
    copy.metadata.generate_name = Some("spillway-trial-".to_owned());
    copy.metadata.namespace.clone_from(&pod.metadata.namespace);
    copy.metadata.labels.clone_from(&pod.metadata.labels);
    copy.metadata.annotations.clone_from(&pod.metadata.annotations);
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: Option<&str>) -> Scheduled {
        let controller = uid.map(|uid| OwnerReference { uid: uid.to_owned(), ..OwnerReference::default() });
        let meta = PodMeta { name: name.to_owned(), controller, ..PodMeta::default() };
        Scheduled { meta, node: "vm".to_owned() }
    }

    #[test]
    fn one_pod_of_an_owner_is_evicted_in_an_hour() {
        let pods = [pod("a", Some("web")), pod("b", Some("web")), pod("c", Some("api")), pod("bare", None)];
        let (mut evictions, start) = (Evictions::default(), Instant::now());
        let next =
            |evictions: &mut Evictions, at| evictions.next(pods.iter(), at).map(|(_, pod)| pod.meta.name.as_str());
        assert_eq!(next(&mut evictions, start), Some("a"));
        evictions.0.insert("web".to_owned(), start + OWNER_INTERVAL);
        assert_eq!(next(&mut evictions, start), Some("c"));
        evictions.0.insert("api".to_owned(), start + OWNER_INTERVAL + RETRY_INTERVAL);
        assert_eq!(next(&mut evictions, start + OWNER_INTERVAL - RETRY_INTERVAL), None);
        assert_eq!(next(&mut evictions, start + OWNER_INTERVAL), Some("a"));
    }

    #[test]
    fn pods_that_complete_or_are_protected_are_not_evicted() {
        for (policy, expected) in [("Always", true), ("Never", false), ("OnFailure", false)] {
            assert_eq!(may_evict(&json!({"spec": {"restartPolicy": policy}}), |_| None), expected, "{policy}");
        }
        assert!(!may_evict(&json!({}), |key| (key == "karpenter.sh/do-not-disrupt").then_some("true")));
        for (key, value, expected) in [
            ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false", true),
            ("cluster-autoscaler.kubernetes.io/safe-to-evict", "true", false),
            ("karpenter.sh/do-not-disrupt", "true", true),
            ("karpenter.sh/do-not-disrupt", "false", false),
            ("other", "true", false),
        ] {
            assert_eq!(is_protected(|asked| (asked == key).then_some(value)), expected, "{key}={value}");
        }
    }

    #[test]
    fn a_new_leader_waits_after_a_pod_was_recreated() {
        let sibling = |created: &str, owner: &str, decision: &str| -> ObjectMeta {
            serde_json::from_value(json!({
                "name": "b", "creationTimestamp": created, "annotations": {decision: "prefer"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": owner, "controller": true}],
            }))
            .unwrap()
        };
        let horizon = "2026-01-01T12:00:00Z".parse().unwrap();
        for (created, owner, decision, expected) in [
            ("2026-01-01T12:00:01Z", "web", DECISION, true),
            ("2026-01-01T12:00:00Z", "web", DECISION, false),
            ("2026-01-01T12:00:01Z", "api", DECISION, false),
            ("2026-01-01T12:00:01Z", "web", "missed-itself", false),
        ] {
            assert_eq!(
                was_recreated(&sibling(created, owner, decision), "web", horizon),
                expected,
                "{created} {owner} {decision}"
            );
        }
    }

    #[test]
    fn the_dry_run_copy_is_a_pod_that_could_be_created() {
        let live: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u", "resourceVersion": "7", "labels": {"app": "web"},
                "annotations": {"a": "b"}, "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "y"}]},
            "spec": {"nodeName": "vm", "containers": [{"name": "c"}], "ephemeralContainers": [{"name": "debug"}]},
            "status": {"phase": "Running"},
        }))
        .unwrap();
        let expected = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"generateName": "spillway-trial-", "namespace": "shop", "labels": {"app": "web"}, "annotations": {"a": "b"}},
            "spec": {"containers": [{"name": "c"}]},
        });
        assert_eq!(serde_json::to_value(dry_run_copy(&live)).unwrap(), expected);
    }
}
