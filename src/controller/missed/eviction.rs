//! Evicts pods that were missed, so that they are created anew: never a loop.
//!
//! Only after a dry run has just shown that the webhook answers and lets such a pod overflow; through the eviction API, which respects
//! PodDisruptionBudgets; one pod of an owner in an hour.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, EvictParams, ListParams, PostParams, Preconditions},
    core::ApiResource,
};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout};

use super::{
    super::{Context, FIELD_MANAGER, is_conflict, pods::PodError, tally::Happening},
    plan::Scheduled,
};
use crate::{
    burst::DECISION,
    cluster::PodMeta,
    kubernetes::{ObjectKey, list_metadata},
    telemetry::Causes,
};

const EVICTED: Happening = Happening::done("MissedPodEvicted");

/// How long nothing more of an owner is evicted, and how long nothing is tried where it did not work.
const EVERY: Duration = Duration::from_secs(3600);
const AGAIN: Duration = Duration::from_secs(60);

/// How long an eviction may take, and all that is asked before: there is one in a round, which takes 10 s at the most.
const PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE_BEFORE: Duration = Duration::from_secs(5);

/// When pods of an owner may be evicted, by its uid.
#[derive(Debug, Default)]
pub(super) struct Evictions(HashMap<String, Instant>);

impl Evictions {
    /// Tries to evict the next pod, and returns whether the one after it may be tried at once: where nothing comes of it, that has time.
    /// Those without an owner would not come back. What cannot be done about one pod is a result like any other.
    pub(super) async fn evict<'p>(&mut self, context: &Context, pods: impl Iterator<Item = &'p Scheduled>) -> bool {
        let Some((owner, pod)) = self.next(pods, Instant::now()) else { return false };
        let result = self.one(owner, attempt(context, &owner.uid, pod)).await;
        context.metrics.overflow.acted("evict", result);
        let ObjectKey { namespace, name } = pod.key();
        tracing::info!(namespace, pod = name, result, "tried to evict a pod that the webhook had missed");
        if result == "success" {
            let note = format!("pod {name} was created without Spillway and has been evicted, to be created anew");
            context.tally.note(pod.meta.owner(), EVICTED, note);
        }
        matches!(result, "success" | "gone")
    }

    /// Keeps the hour from before the attempt, which may never come back, unless it is certain that nobody was evicted.
    async fn one(&mut self, owner: &OwnerReference, attempt: impl Future<Output = Attempt>) -> &'static str {
        self.0.insert(owner.uid.clone(), Instant::now() + EVERY);
        match attempt.await {
            Attempt::Sent(result) => result,
            Attempt::Nobody(result) => {
                self.0.insert(owner.uid.clone(), Instant::now() + AGAIN);
                result
            }
        }
    }

    fn next<'p>(
        &mut self,
        pods: impl Iterator<Item = &'p Scheduled>,
        now: Instant,
    ) -> Option<(&'p OwnerReference, &'p Scheduled)> {
        self.0.retain(|_, until| *until > now);
        let mut owned = pods.filter_map(|pod| Some((pod.meta.controller.as_ref()?, pod)));
        owned.find(|(owner, _)| !self.0.contains_key(&owner.uid))
    }
}

/// What came of an attempt, in the word of the metric.
#[derive(Debug, PartialEq)]
enum Attempt {
    /// Nobody was evicted.
    Nobody(&'static str),
    /// The eviction was sent, and it has not been said for certain that nobody was evicted.
    Sent(&'static str),
}

/// Whether a pod, as the API server has it, is one that may be evicted: it is made anew as it was, and does not say that it is not to be
/// disrupted. To what runs to an end, a Job or the run of a pipeline, an eviction is a failure.
pub(super) fn may_go<'a>(pod: &Value, annotation: impl Fn(&str) -> Option<&'a str>) -> bool {
    let policy = pod.pointer("/spec/restartPolicy").and_then(Value::as_str);
    policy.is_none_or(|policy| policy == "Always") && !is_protected(annotation)
}

/// Whether a pod says of itself that it is not to be disrupted, as node autoscalers understand it (kubernetes/autoscaler
/// `utils/drain/drain.go`; kubernetes-sigs/karpenter `pkg/apis/v1/labels.go`).
fn is_protected<'a>(annotation: impl Fn(&str) -> Option<&'a str>) -> bool {
    annotation("cluster-autoscaler.kubernetes.io/safe-to-evict") == Some("false")
        || annotation("karpenter.sh/do-not-disrupt") == Some("true")
}

async fn attempt(context: &Context, owner: &str, pod: &Scheduled) -> Attempt {
    match timeout(PATIENCE_BEFORE, prove(context, owner, pod)).await {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(result))) => return Attempt::Nobody(result),
        Ok(Err(error)) => {
            tracing::warn!(error = %Causes(&error), "a pod that the webhook had missed is not evicted");
            return Attempt::Nobody("failed");
        }
        Err(_elapsed) => {
            tracing::warn!("no answer within {PATIENCE_BEFORE:?}: a pod that the webhook had missed is not evicted");
            return Attempt::Nobody("failed");
        }
    }
    let typed: Api<Pod> = Api::namespaced(context.client.clone(), &pod.meta.namespace);
    let evict = async |is_trial| {
        let params = params(pod, is_trial);
        timeout(PATIENCE, typed.evict(&pod.meta.name, &params)).await
    };
    // A PodDisruptionBudget answers 429, and kube's client tries again what is answered so (kube-client `client/retry.rs`): that
    // it takes too long says the same, of a dry run.
    match evict(true).await.map(judge) {
        Err(_elapsed) => return Attempt::Nobody("blocked"),
        Ok(Attempt::Nobody(result) | Attempt::Sent(result)) if result != "success" => return Attempt::Nobody(result),
        Ok(_) => {}
    }
    // What takes too long now may have been done.
    evict(false).await.map_or(Attempt::Sent("failed"), judge)
}

fn params(pod: &Scheduled, dry_run: bool) -> EvictParams {
    let same = Preconditions { uid: Some(pod.meta.uid.clone()), resource_version: None };
    let delete_options = DeleteParams { preconditions: Some(same), dry_run, ..DeleteParams::default() };
    let post_options = PostParams { dry_run, ..PostParams::default() };
    EvictParams { delete_options: Some(delete_options), post_options }
}

/// What the answer to an eviction says.
fn judge<T>(answer: Result<T, kube::Error>) -> Attempt {
    match answer {
        Ok(_) => Attempt::Sent("success"),
        Err(kube::Error::Api(status)) if status.code == 429 => Attempt::Nobody("blocked"),
        Err(error) if is_conflict(&error) => Attempt::Nobody("gone"),
        // Such as 500, where two PodDisruptionBudgets select it.
        Err(error) => {
            tracing::warn!(error = %Causes(&error), "a pod that the webhook had missed may not have been evicted");
            Attempt::Sent("failed")
        }
    }
}

/// Why the pod is not to be evicted; nothing if it may be.
async fn prove(context: &Context, owner: &str, pod: &Scheduled) -> Result<Option<&'static str>, PodError> {
    let failed = |verb, error| PodError::new(verb, &pod.key(), error);
    let resource = ApiResource::erase::<Pod>(&());
    let pods: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &pod.meta.namespace, &resource);
    let living = pods.get_opt(&pod.meta.name).await.map_err(|error| failed("read", error))?;
    let Some(living) = living else { return Ok(Some("gone")) };
    let annotations = living.metadata.annotations.clone().unwrap_or_default();
    if is_protected(|key| annotations.get(key).map(String::as_str)) {
        return Ok(Some("protected"));
    }
    if was_replaced(context, owner, pod).await.map_err(|error| failed("list the siblings of", error))? {
        return Ok(Some("recent"));
    }
    let trial = PostParams { dry_run: true, field_manager: Some(FIELD_MANAGER.to_owned()) };
    let answer = match pods.create(&trial, &copy(&living)).await {
        Ok(answer) => answer,
        // It would not be let in again: a quota, another policy.
        Err(kube::Error::Api(_)) => return Ok(Some("refused")),
        Err(error) => return Err(failed("try to create", error)),
    };
    let decision = answer.metadata.annotations.as_ref().and_then(|annotations| annotations.get(DECISION));
    if decision.is_none_or(|decision| decision.starts_with("stay")) {
        return Ok(Some("unproven"));
    }
    Ok(None)
}

/// Whether the owner has made a pod with Spillway less than an hour ago: that may be in place of one that the leader before this one
/// has evicted, which nothing else tells of.
async fn was_replaced(context: &Context, owner: &str, pod: &Scheduled) -> Result<bool, kube::Error> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.meta.namespace);
    let horizon = Timestamp::now() - EVERY;
    let recent =
        list_metadata(&pods, ListParams::default(), |pod| is_recent(&pod.metadata, owner, horizon).then_some(()));
    Ok(!recent.await?.is_empty())
}

fn is_recent(pod: &ObjectMeta, owner: &str, horizon: Timestamp) -> bool {
    let is_decided = pod.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(DECISION));
    let pod = PodMeta::read(pod);
    is_decided && pod.created > horizon && pod.controller.is_some_and(|controller| controller.uid == owner)
}

/// The pod as its owner might create it anew, for a dry run: without what only a pod has that exists.
fn copy(pod: &DynamicObject) -> DynamicObject {
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
    use futures_util::FutureExt;
    use kube::core::Status;

    use super::*;

    fn pod(name: &str, uid: Option<&str>) -> Scheduled {
        let controller = uid.map(|uid| OwnerReference { uid: uid.to_owned(), ..OwnerReference::default() });
        let meta = PodMeta { name: name.to_owned(), controller, ..PodMeta::default() };
        Scheduled { meta, node: "vm".to_owned() }
    }

    #[test]
    fn one_pod_of_an_owner_is_evicted_in_an_hour_and_none_that_would_not_come_back() {
        let pods = [pod("a", Some("web")), pod("b", Some("web")), pod("c", Some("api")), pod("bare", None)];
        let (mut evictions, start) = (Evictions::default(), Instant::now());
        let next =
            |evictions: &mut Evictions, at| evictions.next(pods.iter(), at).map(|(_, pod)| pod.meta.name.as_str());
        assert_eq!(next(&mut evictions, start), Some("a"));
        evictions.0.insert("web".to_owned(), start + EVERY);
        assert_eq!(next(&mut evictions, start), Some("c"));
        evictions.0.insert("api".to_owned(), start + EVERY + AGAIN);
        assert_eq!(next(&mut evictions, start + EVERY - AGAIN), None);
        assert_eq!(next(&mut evictions, start + EVERY), Some("a"));
    }

    #[test]
    fn pods_that_run_to_an_end_and_those_that_are_not_to_be_disrupted_are_left_alone() {
        for (policy, expected) in [("Always", true), ("Never", false), ("OnFailure", false)] {
            assert_eq!(may_go(&json!({"spec": {"restartPolicy": policy}}), |_| None), expected, "{policy}");
        }
        assert!(!may_go(&json!({}), |key| (key == "karpenter.sh/do-not-disrupt").then_some("true")));
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
    fn the_hour_begins_before_the_attempt_and_is_cut_short_only_if_nobody_was_evicted() {
        let answer = |code| kube::Error::Api(Box::new(Status::failure("", "").with_code(code)));
        for (code, result, pause) in
            [(429, "blocked", AGAIN), (404, "gone", AGAIN), (409, "gone", AGAIN), (500, "failed", EVERY)]
        {
            let (mut evictions, web) = (Evictions::default(), pod("a", Some("web")));
            let owner = web.meta.controller.as_ref().unwrap();
            let attempt = std::future::ready(judge::<()>(Err(answer(code))));
            assert_eq!(evictions.one(owner, attempt).now_or_never(), Some(result));
            let rest = evictions.0["web"] - Instant::now();
            assert!(rest <= pause && rest + Duration::from_secs(30) > pause, "{code}: {rest:?}");
        }
        let (mut evictions, web) = (Evictions::default(), pod("a", Some("web")));
        let owner = web.meta.controller.as_ref().unwrap();
        assert_eq!(evictions.one(owner, std::future::pending()).now_or_never(), None);
        assert!(evictions.0["web"] > Instant::now() + AGAIN, "who tried may never come back");
        assert_eq!(judge(Ok(())), Attempt::Sent("success"));
    }

    #[test]
    fn a_new_leader_evicts_nobody_whose_owner_has_made_a_pod_anew_within_the_hour() {
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
                is_recent(&sibling(created, owner, decision), "web", horizon),
                expected,
                "{created} {owner} {decision}"
            );
        }
    }

    #[test]
    fn the_copy_is_a_pod_that_could_be_created() {
        let living: DynamicObject = serde_json::from_value(json!({
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
        assert_eq!(serde_json::to_value(copy(&living)).unwrap(), expected);
    }
}
