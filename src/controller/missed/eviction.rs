//! Evicts pods that were missed, so that they are created anew: never a loop.
//!
//! Only after a dry run has just shown that the webhook answers and lets such a pod overflow; through the eviction API, which respects
//! PodDisruptionBudgets; one pod of an owner in an hour.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, EvictParams, PostParams, Preconditions},
    core::ApiResource,
};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout};

use super::{
    super::{Context, FIELD_MANAGER, is_conflict, pods::PodError, tally::Happening},
    plan::Scheduled,
};
use crate::burst::DECISION;

const EVICTED: Happening = Happening::done("MissedPodEvicted");

/// How long nothing more of an owner is evicted, and how long nothing is tried where it did not work.
const EVERY: Duration = Duration::from_secs(3600);
const AGAIN: Duration = Duration::from_secs(60);

/// How long an eviction may take, and how many there are in a round, which takes 10 s at the most.
const PATIENCE: Duration = Duration::from_secs(1);
const AT_ONCE: usize = 5;

/// When pods of an owner may be evicted, by its uid.
#[derive(Debug, Default)]
pub(super) struct Evictions(HashMap<String, Instant>);

impl Evictions {
    /// Evicts at most one pod of each owner. Those without an owner would not come back.
    pub(super) async fn evict<'p>(
        &mut self,
        context: &Context,
        pods: impl Iterator<Item = &'p Scheduled>,
    ) -> Result<(), PodError> {
        for (owner, pod) in self.due(pods, Instant::now()) {
            let result = attempt(context, pod).await?;
            context.metrics.overflow.acted("evict", result);
            let pause = if result == "success" { EVERY } else { AGAIN };
            self.0.insert(owner, Instant::now() + pause);
            let (namespace, name) = pod.name();
            tracing::info!(namespace, pod = name, result, "tried to evict a pod that the webhook had missed");
            if result == "success" {
                let note = format!("pod {name} was created without Spillway and has been evicted, to be created anew");
                context.tally.note(pod.owned.owner(), EVICTED, note);
            }
        }
        Ok(())
    }

    fn due<'p>(&mut self, pods: impl Iterator<Item = &'p Scheduled>, now: Instant) -> Vec<(String, &'p Scheduled)> {
        self.0.retain(|_, until| *until > now);
        let mut due: Vec<(String, &Scheduled)> = Vec::new();
        for pod in pods {
            let Some(owner) = &pod.owned.controller else { continue };
            let is_free = !self.0.contains_key(&owner.uid) && due.iter().all(|(uid, _)| *uid != owner.uid);
            if is_free && due.len() < AT_ONCE {
                due.push((owner.uid.clone(), pod));
            }
        }
        due
    }
}

/// What came of it, for the metric.
async fn attempt(context: &Context, pod: &Scheduled) -> Result<&'static str, PodError> {
    let failed = |verb, error| PodError::new(verb, &pod.name(), error);
    let resource = ApiResource::erase::<Pod>(&());
    let pods: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &pod.owned.namespace, &resource);
    let living = pods.get_opt(&pod.owned.name).await.map_err(|error| failed("read", error))?;
    let Some(living) = living else { return Ok("gone") };
    let trial = PostParams { dry_run: true, field_manager: Some(FIELD_MANAGER.to_owned()) };
    let answer = match pods.create(&trial, &copy(&living)).await {
        Ok(answer) => answer,
        // It would not be let in again: a quota, another policy.
        Err(kube::Error::Api(_)) => return Ok("refused"),
        Err(error) => return Err(failed("try to create", error)),
    };
    let decision = answer.metadata.annotations.as_ref().and_then(|annotations| annotations.get(DECISION));
    if decision.is_none_or(|decision| decision.starts_with("stay")) {
        return Ok("unproven");
    }
    let same = Preconditions { uid: Some(pod.owned.uid.clone()), resource_version: None };
    let delete_options = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
    let params = EvictParams { delete_options: Some(delete_options), ..EvictParams::default() };
    let typed: Api<Pod> = Api::namespaced(context.client.clone(), &pod.owned.namespace);
    // A PodDisruptionBudget answers 429, and kube's client tries again what is answered so (kube-client `client/retry.rs`).
    let Ok(evicted) = timeout(PATIENCE, typed.evict(&pod.owned.name, &params)).await else { return Ok("blocked") };
    match evicted {
        Ok(_) => Ok("success"),
        Err(kube::Error::Api(status)) if status.code == 429 => Ok("blocked"),
        Err(error) if is_conflict(&error) => Ok("gone"),
        Err(error) => Err(failed("evict", error)),
    }
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
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;
    use crate::controller::observed::Owned;

    fn pod(name: &str, uid: Option<&str>) -> Scheduled {
        let controller = uid.map(|uid| OwnerReference { uid: uid.to_owned(), ..OwnerReference::default() });
        let owned = Owned { name: name.to_owned(), controller, ..Owned::default() };
        Scheduled { owned, node: "vm".to_owned() }
    }

    #[test]
    fn one_pod_of_an_owner_is_evicted_in_an_hour_and_none_that_would_not_come_back() {
        let pods = [pod("a", Some("web")), pod("b", Some("web")), pod("c", Some("api")), pod("bare", None)];
        let (mut evictions, start) = (Evictions::default(), Instant::now());
        let names = |evictions: &mut Evictions, at| {
            evictions.due(pods.iter(), at).into_iter().map(|(_, pod)| pod.owned.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&mut evictions, start), ["a", "c"]);
        evictions.0.insert("web".to_owned(), start + EVERY);
        assert_eq!(names(&mut evictions, start + EVERY - AGAIN), ["c"]);
        assert_eq!(names(&mut evictions, start + EVERY), ["a", "c"]);
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
