//! Writes to pods.

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::Value;
use tokio::time::Instant;

use super::{Context, FIELD_MANAGER, is_conflict, is_unanswered, pauses::Pauses, reconcile::Outcome};
use crate::{kubernetes::ObjectKey, telemetry::Causes};

/// Requests that are under way at the same time.
pub(super) const AT_ONCE: usize = 8;

/// Why something could not be done about a pod.
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

    /// Whether it is not about this pod.
    pub(super) fn is_of_all(&self) -> bool {
        is_unanswered(&self.source)
    }
}

/// Writes to a pod; counts that.
pub(super) async fn write(
    context: &Context,
    pod: &ObjectKey,
    action: &'static str,
    patch: &Patch<Value>,
) -> Result<Outcome, PodError> {
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace);
    let (result, outcome) = match pods.patch_metadata(&pod.name, &params, patch).await {
        Ok(_) => ("success", Ok(Outcome::Changed)),
        // It is gone, or has changed since: what it is now will be seen.
        Err(error) if is_conflict(&error) => ("conflict", Ok(Outcome::Conflict)),
        Err(error) => ("failure", Err(PodError::new("write", pod, error))),
    };
    context.metrics.overflow.acted(action, result);
    outcome
}

/// Does something about a number of pods, each with its uid. One that is refused, by the admission policy of somebody else, pauses; that
/// is logged and no reason to do less about the others. One that has changed meanwhile does not: what it is now comes by the watch, and
/// is then looked at.
///
/// # Errors
///
/// If the API server does not answer.
pub(super) async fn together<F: Future<Output = Result<Outcome, PodError>>>(
    tries: Vec<(String, F)>,
    pauses: &mut Pauses,
) -> Result<Outcome, PodError> {
    let now = Instant::now();
    for (uid, _) in &tries {
        pauses.tries(uid, now);
    }
    let tries = tries.into_iter().map(|(uid, attempt)| async move { (uid, attempt.await) });
    let mut done = std::pin::pin!(stream::iter(tries).buffer_unordered(AT_ONCE));
    let mut all = Ok(Outcome::Right);
    while let Some((uid, outcome)) = done.next().await {
        match outcome {
            Ok(Outcome::Changed) => {
                pauses.end(&uid);
                all = all.map(|_| Outcome::Changed);
            }
            Ok(Outcome::Conflict) => pauses.end(&uid),
            Ok(Outcome::Right | Outcome::Early) => {}
            Err(error) if error.is_of_all() => {
                pauses.end(&uid);
                all = Err(error);
            }
            Err(error) => tracing::warn!(error = %Causes(&error), "will be tried again later"),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use kube::core::Status;

    use super::*;

    /// What comes of pods, and which of them pause then.
    fn done(outcomes: Vec<(&str, Result<Outcome, kube::Error>)>) -> (Result<Outcome, PodError>, Vec<String>) {
        let name = ObjectKey::new("shop", "web");
        let mut pauses = Pauses::default();
        let uids: Vec<_> = outcomes.iter().map(|(uid, _)| (*uid).to_owned()).collect();
        let tries = outcomes.into_iter().map(|(uid, outcome)| {
            let outcome = outcome.map_err(|error| PodError::new("write", &name, error));
            (uid.to_owned(), std::future::ready(outcome))
        });
        let all = together(tries.collect(), &mut pauses).now_or_never().unwrap();
        let now = Instant::now();
        (all, uids.into_iter().filter(|uid| pauses.rest(uid, now).is_some()).collect())
    }

    fn answer(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(Status::failure("denied", "Forbidden").with_code(code)))
    }

    #[test]
    fn a_pod_that_is_refused_pauses_one_that_has_changed_does_not_and_neither_is_a_failure_of_the_others() {
        let (all, pausing) = done(vec![
            ("denied", Err(answer(403))),
            ("changed", Ok(Outcome::Changed)),
            ("conflict", Ok(Outcome::Conflict)),
            ("broken", Err(answer(500))),
        ]);
        assert_eq!(all.unwrap(), Outcome::Changed);
        assert_eq!(pausing, ["denied", "broken"]);
    }

    #[test]
    fn where_the_api_server_does_not_answer_the_round_has_failed_and_no_pod_is_to_blame() {
        let (all, pausing) = done(vec![("p", Err(kube::Error::Service("down".into())))]);
        assert!(all.is_err());
        assert_eq!(pausing, <[&str; 0]>::default());
    }

    #[test]
    fn pods_whose_writes_never_end_pause_too() {
        let mut pauses = Pauses::default();
        let hangs = vec![("p".to_owned(), std::future::pending())];
        assert!(together(hangs, &mut pauses).now_or_never().is_none());
        assert!(pauses.rest("p", Instant::now()).is_some());
    }
}
