//! Writes of late burst: the start times of clocks, and tolerations.

use std::collections::{BTreeMap, BTreeSet};

use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, jsonptr::PointerBuf};
use k8s_openapi::{api::core::v1::Namespace, jiff::Timestamp};
use kube::Api;
use serde_json::json;
use tokio::time::Instant;

use super::{
    super::{
        context::Context,
        events::EventKind,
        pod_writes::{PodError, apply_all, patch_pod},
        reconcile::Outcome,
    },
    plan::{ClockStart, DuePod},
};
use crate::{
    burst::UNSCHEDULABLE_SINCE,
    cluster,
    config::{Configuration, DISABLED, Mode},
    kubernetes::{Backoff, ObjectKey, is_unanswered},
    telemetry::Causes,
};

const BURST: EventKind = EventKind::action("LateBurst");

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LateError {
    #[error("cannot read namespace {0}")]
    Namespace(String, #[source] kube::Error),
    #[error(transparent)]
    Pod(#[from] PodError),
}

/// Records the time since which pods have been unschedulable.
pub(super) async fn start_clocks(
    context: &Context,
    clocks: Vec<ClockStart>,
    backoff: &mut Backoff,
) -> Result<Outcome, LateError> {
    let start = async |clock: ClockStart| {
        let patch = clock_patch(clock.since);
        let outcome = patch_pod(context, &clock.key, &clock.resource_version, "start_clock", patch).await?;
        if outcome == Outcome::Changed {
            let ClockStart { key: ObjectKey { namespace, name }, since, .. } = &clock;
            tracing::debug!(namespace, pod = name, %since, "pod is unschedulable for the first time");
        }
        Ok(outcome)
    };
    let writes = clocks.into_iter().map(|clock| (clock.uid.clone(), start(clock)));
    Ok(apply_all(writes.collect(), backoff).await?)
}

/// Records the time in whole seconds, as the API server does. A late pod always has annotations, because the decision is one.
fn clock_patch(since: Timestamp) -> JsonPatch {
    let since = Timestamp::from_second(since.as_second()).unwrap_or(since);
    let path = PointerBuf::from_tokens(["metadata", "annotations", UNSCHEDULABLE_SINCE]);
    let add = AddOperation { path, value: json!(since.to_string()) };
    JsonPatch(vec![PatchOperation::Add(add)])
}

/// Gives the toleration to pods whose namespaces are still in mode `late`. Reads the namespaces again, because the watch may be behind.
pub(super) async fn apply_tolerations(
    context: &Context,
    configuration: &Configuration,
    pods: Vec<DuePod>,
    backoff: &mut Backoff,
) -> Result<Outcome, LateError> {
    let namespaces = &read_namespaces(context, &pods).await?;
    let (pods, unread): (Vec<_>, Vec<_>) =
        pods.into_iter().partition(|pod| namespaces.contains_key(&pod.key.namespace));
    for pod in unread {
        backoff.start(&pod.uid, Instant::now());
    }
    let apply = async |pod: DuePod| {
        let namespace = namespaces.get(&pod.key.namespace).and_then(Option::as_ref);
        let settings = namespace.and_then(|namespace| {
            configuration.settings(&namespace.profile, &namespace.overrides, &pod.overrides).known()
        });
        // The namespace has changed since the plan. The watch will report the change.
        if settings.is_none_or(|settings| settings.mode.value != Mode::Late) {
            return Ok(Outcome::Conflict);
        }
        apply_toleration(context, pod).await
    };
    let writes = pods.into_iter().map(|pod| (pod.uid.clone(), apply(pod)));
    Ok(apply_all(writes.collect(), backoff).await?)
}

async fn apply_toleration(context: &Context, pod: DuePod) -> Result<Outcome, PodError> {
    let outcome = patch_pod(context, &pod.key, &pod.resource_version, "burst", pod.patch).await?;
    if outcome == Outcome::Changed {
        let (ObjectKey { namespace, name }, seconds) = (&pod.key, pod.waited.as_secs());
        tracing::info!(namespace, pod = name, waited_seconds = seconds, "pod may run on virtual nodes now");
        let note = format!("pod {name} may run on virtual nodes now: no VM had room for {seconds} s");
        context.event_aggregator.record(pod.owner, BURST, note);
    }
    Ok(outcome)
}

/// Returns the readable namespaces of these pods by name. The value is `None` if a namespace has opted out or was deleted.
async fn read_namespaces(
    context: &Context,
    pods: &[DuePod],
) -> Result<BTreeMap<String, Option<cluster::Namespace>>, LateError> {
    let names: BTreeSet<_> = pods.iter().map(|pod| pod.key.namespace.clone()).collect();
    let mut namespaces = BTreeMap::new();
    for name in names {
        match read_namespace(context, &name).await {
            Ok(namespace) => {
                namespaces.insert(name, namespace);
            }
            Err(error) if is_unanswered(&error) => return Err(LateError::Namespace(name, error)),
            Err(error) => {
                tracing::warn!(namespace = name, error = %Causes(&error), "cannot read the namespace, its late pods keep waiting");
            }
        }
    }
    Ok(namespaces)
}

async fn read_namespace(context: &Context, name: &str) -> kube::Result<Option<cluster::Namespace>> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let read = namespaces.get_metadata_opt(name).await?;
    let metadata = read.map(|namespace| namespace.metadata).unwrap_or_default();
    let (labels, annotations) = (metadata.labels.unwrap_or_default(), metadata.annotations.unwrap_or_default());
    Ok(cluster::Namespace::read(labels, annotations).filter(|namespace| namespace.profile != DISABLED))
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Arc};

    use axum::http;
    use kube::client::Body;

    use super::{
        super::{
            super::events::{EventAggregator, EventRecorder},
            testing::{Cluster, unchanged},
        },
        *,
    };
    use crate::{burst::DECISION, kubernetes::conditional_patch, telemetry::ControllerMetrics};

    #[test]
    fn a_clock_is_written_to_the_observed_version_only() {
        let clock = Cluster::new().pod("shop", "new", None, unchanged).plan().clock_starts.swap_remove(0);
        let patch = conditional_patch(&clock.resource_version, clock_patch(clock.since));
        let mut pod = json!({"metadata": {"resourceVersion": "7", "annotations": {DECISION: "late"}}});
        let expected = json!({"metadata": {"resourceVersion": "7",
            "annotations": {DECISION: "late", UNSCHEDULABLE_SINCE: "2026-01-01T12:00:00Z"}}});
        json_patch::patch(&mut pod, &patch).unwrap();
        assert_eq!(pod, expected);
        pod["metadata"]["resourceVersion"] = "8".into();
        json_patch::patch(&mut pod, &patch).unwrap();
        assert_eq!(pod["metadata"]["resourceVersion"], "7", "the API server refuses a pod that has changed since");
    }

    #[tokio::test]
    async fn a_namespace_is_read_again_before_its_pods_overflow() {
        for (label, mode, expected) in [
            ("autoscaled", "late", Outcome::Changed),
            ("disabled", "late", Outcome::UpToDate),
            ("autoscaled", "off", Outcome::UpToDate),
        ] {
            let answer = move |request: http::Request<Body>| async move {
                let metadata = json!({"name": "shop", "labels": {"spillway.dev/burst": label}, "annotations": {"spillway.dev/mode": mode}});
                let (kind, metadata) = match request.uri().path() {
                    "/api/v1/namespaces/shop" => ("Namespace", metadata),
                    _ => ("Pod", json!({"namespace": "shop", "name": "p"})),
                };
                let body = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata}).to_string();
                Ok::<_, Infallible>(http::Response::new(Body::from(body.into_bytes())))
            };
            let client = kube::Client::new(tower::service_fn(answer), "default");
            let context = Context {
                client: client.clone(),
                namespace: "spillway-system".to_owned(),
                configuration: tokio::sync::watch::Sender::new(Arc::default()).subscribe(),
                events: EventRecorder::new(client, "test"),
                event_aggregator: EventAggregator::default(),
                metrics: ControllerMetrics::default(),
            };
            let due = Cluster::new().pod("shop", "p", Some(900), unchanged).plan().due;
            let outcome = apply_tolerations(&context, &Configuration::default(), due, &mut Backoff::default()).await;
            assert_eq!(outcome.unwrap(), expected, "{label} {mode}");
        }
    }
}
