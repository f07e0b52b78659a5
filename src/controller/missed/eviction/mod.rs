//! Evicts missed pods, so that their owners recreate them. Never in a loop.
//!
//! Before an eviction, a dry run must show that the webhook responds and lets such a pod overflow. The controller uses the eviction API,
//! which respects PodDisruptionBudgets. It evicts at most one pod of each owner per hour.

mod plan;

use std::time::Duration;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, EvictParams, ListParams, PostParams, Preconditions},
    core::ApiResource,
};
use plan::{Attempt, OWNER_INTERVAL, dry_run_copy, is_protected, was_recreated};
pub(super) use plan::{Evictions, may_evict};
use tokio::time::{Instant, timeout};

use super::plan::Scheduled;
use crate::{
    burst::DECISION,
    controller::{context::Context, events::EventKind, names::FIELD_MANAGER, pod_writes::PodError},
    kubernetes::{ObjectKey, is_conflict, list_metadata},
    telemetry::Causes,
};

const EVICTED: EventKind = EventKind::action("MissedPodEvicted");

/// The timeout of an eviction, and of its dry run. A round has at most one eviction, and takes at most 10 s.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(1);

/// The timeout of all checks before an eviction.
const CHECKS_TIMEOUT: Duration = Duration::from_secs(5);

impl Evictions {
    /// Tries to evict the next pod. Returns whether the next round may start at once.
    pub(super) async fn evict_next<'p>(
        &mut self,
        context: &Context,
        pods: impl Iterator<Item = &'p Scheduled>,
    ) -> bool {
        let Some((owner, pod)) = self.next(pods, Instant::now()) else { return false };
        let result = self.attempt(&owner.uid, evict(context, &owner.uid, pod)).await;
        context.metrics.overflow.acted("evict", result);
        let ObjectKey { namespace, name } = pod.meta.key();
        tracing::info!(namespace, pod = name, result, "tried to evict a pod that the webhook missed");
        if result == "success" {
            let note = format!(
                "pod {name} was created without Spillway; the controller evicted it, so that its owner recreates it"
            );
            context.event_aggregator.record(pod.meta.owner(), EVICTED, note);
        }
        matches!(result, "success" | "gone")
    }
}

async fn evict(context: &Context, owner: &str, pod: &Scheduled) -> Attempt {
    match timeout(CHECKS_TIMEOUT, check(context, owner, pod)).await {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(result))) => return Attempt::NotEvicted(result),
        Ok(Err(error)) => {
            tracing::warn!(error = %Causes(&error), "did not evict a pod that the webhook missed");
            return Attempt::NotEvicted("failed");
        }
        Err(_elapsed) => {
            tracing::warn!("no response within {CHECKS_TIMEOUT:?}: did not evict a pod that the webhook missed");
            return Attempt::NotEvicted("failed");
        }
    }
    let typed: Api<Pod> = Api::namespaced(context.client.clone(), &pod.meta.namespace);
    let evict = async |dry_run| {
        let params = evict_params(pod, dry_run);
        timeout(EVICTION_TIMEOUT, typed.evict(&pod.meta.name, &params)).await
    };
    // A PodDisruptionBudget causes status 429, and kube's client retries that (kube-client `client/retry.rs`). A dry run that times out
    // means the same.
    match evict(true).await.map(read_answer) {
        Err(_elapsed) => return Attempt::NotEvicted("blocked"),
        Ok(Attempt::NotEvicted(result) | Attempt::Sent(result)) if result != "success" => {
            return Attempt::NotEvicted(result);
        }
        Ok(_) => {}
    }
    // An eviction that times out may have happened.
    evict(false).await.map_or(Attempt::Sent("failed"), read_answer)
}

fn evict_params(pod: &Scheduled, dry_run: bool) -> EvictParams {
    let same = Preconditions { uid: Some(pod.meta.uid.clone()), resource_version: None };
    let delete_options = DeleteParams { preconditions: Some(same), dry_run, ..DeleteParams::default() };
    let post_options = PostParams { dry_run, ..PostParams::default() };
    EvictParams { delete_options: Some(delete_options), post_options }
}

fn read_answer<T>(answer: Result<T, kube::Error>) -> Attempt {
    match answer {
        Ok(_) => Attempt::Sent("success"),
        Err(kube::Error::Api(status)) if status.code == 429 => Attempt::NotEvicted("blocked"),
        Err(error) if is_conflict(&error) => Attempt::NotEvicted("gone"),
        // For example 500, if two PodDisruptionBudgets select the pod.
        Err(error) => {
            tracing::warn!(error = %Causes(&error), "the eviction of a pod that the webhook missed may have failed");
            Attempt::Sent("failed")
        }
    }
}

/// Returns why the pod must not be evicted, or `None` if the controller may evict the pod.
async fn check(context: &Context, owner: &str, pod: &Scheduled) -> Result<Option<&'static str>, PodError> {
    let failed = |verb, error| PodError::new(verb, &pod.meta.key(), error);
    let resource = ApiResource::erase::<Pod>(&());
    let pods: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &pod.meta.namespace, &resource);
    let live = pods.get_opt(&pod.meta.name).await.map_err(|error| failed("read", error))?;
    let Some(live) = live else { return Ok(Some("gone")) };
    let annotations = live.metadata.annotations.clone().unwrap_or_default();
    if is_protected(|key| annotations.get(key).map(String::as_str)) {
        return Ok(Some("protected"));
    }
    if has_recreated(context, owner, pod).await.map_err(|error| failed("list the siblings of", error))? {
        return Ok(Some("recent"));
    }
    let params = PostParams { dry_run: true, field_manager: Some(FIELD_MANAGER.to_owned()) };
    let answer = match pods.create(&params, &dry_run_copy(&live)).await {
        Ok(answer) => answer,
        // The API server refuses such a pod, for example because of a quota or a policy.
        Err(kube::Error::Api(_)) => return Ok(Some("refused")),
        Err(error) => return Err(failed("try to create", error)),
    };
    let decision = answer.metadata.annotations.as_ref().and_then(|annotations| annotations.get(DECISION));
    if decision.is_none_or(|decision| decision.starts_with("stay")) {
        return Ok(Some("unproven"));
    }
    Ok(None)
}

/// Returns whether the owner has created a pod with a decision within the last hour. That pod may replace one that a former leader
/// evicted. No other object shows that.
async fn has_recreated(context: &Context, owner: &str, pod: &Scheduled) -> Result<bool, kube::Error> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.meta.namespace);
    let horizon = Timestamp::now() - OWNER_INTERVAL;
    let recreated =
        list_metadata(&pods, ListParams::default(), |pod| was_recreated(&pod.metadata, owner, horizon).then_some(()));
    Ok(!recreated.await?.is_empty())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use kube::core::Status;

    use super::{plan::RETRY_INTERVAL, *};
    use crate::cluster::PodMeta;

    fn pod(name: &str, uid: Option<&str>) -> Scheduled {
        let controller = uid.map(|uid| OwnerReference { uid: uid.to_owned(), ..OwnerReference::default() });
        let meta = PodMeta { name: name.to_owned(), controller, ..PodMeta::default() };
        Scheduled { meta, node: "vm".to_owned() }
    }

    #[test]
    fn the_interval_starts_before_the_attempt() {
        let answer = |code| kube::Error::Api(Box::new(Status::failure("", "").with_code(code)));
        for (code, result, interval) in [
            (429, "blocked", RETRY_INTERVAL),
            (404, "gone", RETRY_INTERVAL),
            (409, "gone", RETRY_INTERVAL),
            (500, "failed", OWNER_INTERVAL),
        ] {
            let (mut evictions, web) = (Evictions::default(), pod("a", Some("web")));
            let owner = web.meta.controller.as_ref().unwrap();
            let attempt = std::future::ready(read_answer::<()>(Err(answer(code))));
            assert_eq!(evictions.attempt(&owner.uid, attempt).now_or_never(), Some(result));
            let remaining = evictions.remaining("web");
            assert!(remaining <= interval && remaining + Duration::from_secs(30) > interval, "{code}: {remaining:?}");
        }
        let (mut evictions, web) = (Evictions::default(), pod("a", Some("web")));
        let owner = web.meta.controller.as_ref().unwrap();
        assert_eq!(evictions.attempt(&owner.uid, std::future::pending()).now_or_never(), None);
        assert!(evictions.remaining("web") > RETRY_INTERVAL, "an attempt that is cancelled may have evicted the pod");
        assert_eq!(read_answer(Ok(())), Attempt::Sent("success"));
    }
}
