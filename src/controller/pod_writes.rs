//! Writes to pods.

use std::collections::HashSet;

use futures_util::{StreamExt, stream};
use json_patch::Patch as JsonPatch;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use tokio::time::Instant;

use super::{context::Context, names::FIELD_MANAGER, reconcile::Outcome};
use crate::{
    kubernetes::{Backoff, ObjectKey, conditional_patch, is_conflict, is_unanswered},
    telemetry::Causes,
};

/// The most concurrent requests.
pub(super) const MAX_CONCURRENT_REQUESTS: usize = 8;

/// Why a request about a pod failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} pod {pod}")]
pub(super) struct PodError {
    verb: &'static str,
    pod: ObjectKey,
    #[source]
    source: kube::Error,
}

impl PodError {
    pub(super) fn new(verb: &'static str, pod: &ObjectKey, source: kube::Error) -> Self {
        Self { verb, pod: pod.clone(), source }
    }

    /// Returns whether the API server did not respond. Requests for other pods will then fail too.
    pub(super) fn is_unanswered(&self) -> bool {
        is_unanswered(&self.source)
    }
}

/// Patches this version of a pod, and counts the result under `action`.
pub(super) async fn patch_pod(
    context: &Context,
    pod: &ObjectKey,
    resource_version: &str,
    action: &'static str,
    patch: JsonPatch,
) -> Result<Outcome, PodError> {
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patch = Patch::Json::<()>(conditional_patch(resource_version, patch));
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace);
    let (result, outcome) = match pods.patch_metadata(&pod.name, &params, &patch).await {
        Ok(_) => ("success", Ok(Outcome::Changed)),
        // The pod was deleted or has changed. The watch will report that.
        Err(error) if is_conflict(&error) => ("conflict", Ok(Outcome::Conflict)),
        Err(error) => ("failure", Err(PodError::new("write", pod, error))),
    };
    context.metrics.overflow.acted(action, result);
    outcome
}

/// Runs a write for each pod. The keys are the uids of the pods.
///
/// A pod whose write is refused, for example by an admission policy, backs off. The controller logs the error and continues with the
/// other pods. A pod that has changed in the meantime does not back off, because the watch reports its new state.
///
/// # Errors
///
/// If the API server does not respond. Writes that are not finished then are dropped.
pub(super) async fn apply_all<F: Future<Output = Result<Outcome, PodError>>>(
    writes: Vec<(String, F)>,
    backoff: &mut Backoff,
) -> Result<Outcome, PodError> {
    let now = Instant::now();
    let mut unfinished: HashSet<_> = writes.iter().map(|(uid, _)| uid.clone()).collect();
    for uid in &unfinished {
        backoff.start(uid, now);
    }
    let writes = writes.into_iter().map(|(uid, write)| async move { (uid, write.await) });
    let mut written = std::pin::pin!(stream::iter(writes).buffer_unordered(MAX_CONCURRENT_REQUESTS));
    let mut all = Ok(Outcome::UpToDate);
    while let Some((uid, outcome)) = written.next().await {
        unfinished.remove(&uid);
        match outcome {
            Ok(Outcome::Changed) => {
                backoff.reset(&uid);
                all = all.map(|_| Outcome::Changed);
            }
            Ok(Outcome::Conflict) => backoff.reset(&uid),
            Ok(Outcome::UpToDate | Outcome::NotSynced) => {}
            Err(error) if error.is_unanswered() => {
                // The next round tries these pods again.
                for uid in unfinished.iter().chain([&uid]) {
                    backoff.reset(uid);
                }
                return Err(error);
            }
            Err(error) => tracing::warn!(error = %Causes(&error), "pod write failed, retrying later"),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use kube::core::Status;

    use super::*;

    /// Applies these outcomes. Returns the result and the pods that back off.
    fn apply(outcomes: Vec<(&str, Result<Outcome, kube::Error>)>) -> (Result<Outcome, PodError>, Vec<String>) {
        let name = ObjectKey::new("shop", "web");
        let mut backoff = Backoff::default();
        let uids: Vec<_> = outcomes.iter().map(|(uid, _)| (*uid).to_owned()).collect();
        let writes = outcomes.into_iter().map(|(uid, outcome)| {
            let outcome = outcome.map_err(|error| PodError::new("write", &name, error));
            (uid.to_owned(), std::future::ready(outcome))
        });
        let all = apply_all(writes.collect(), &mut backoff).now_or_never().unwrap();
        let now = Instant::now();
        (all, uids.into_iter().filter(|uid| backoff.remaining(uid, now).is_some()).collect())
    }

    fn answer(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(Status::failure("denied", "Forbidden").with_code(code)))
    }

    #[test]
    fn a_refused_pod_backs_off_and_does_not_fail_the_others() {
        let (all, backing_off) = apply(vec![
            ("denied", Err(answer(403))),
            ("changed", Ok(Outcome::Changed)),
            ("conflict", Ok(Outcome::Conflict)),
            ("broken", Err(answer(500))),
        ]);
        assert_eq!(all.unwrap(), Outcome::Changed);
        assert_eq!(backing_off, ["denied", "broken"]);
    }

    #[test]
    fn no_response_fails_the_round_and_no_pod_backs_off() {
        let down = || kube::Error::Service("down".into());
        let (all, backing_off) = apply(vec![("p", Err(down())), ("q", Ok(Outcome::UpToDate)), ("r", Err(down()))]);
        assert!(all.is_err());
        assert_eq!(backing_off, <[&str; 0]>::default());
    }

    #[test]
    fn a_pod_whose_write_never_ends_backs_off() {
        let mut backoff = Backoff::default();
        let hangs = vec![("p".to_owned(), std::future::pending())];
        assert!(apply_all(hangs, &mut backoff).now_or_never().is_none());
        assert!(backoff.remaining("p", Instant::now()).is_some());
    }
}
