//! Writes the taints that Spillway manages. Each write adds or removes one taint, and changes no other field of the node.

mod plan;

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
pub(super) use plan::{FULL, GHOST, LAST_RESORT, ManagedTaint};
use tokio::time::Instant;

use super::{
    context::Context,
    events::EventKind,
    names::FIELD_MANAGER,
    reconcile::{CombinedOutcome, Outcome},
};
use crate::{
    cluster,
    kubernetes::{Backoff, is_conflict},
};

const STRIPPED: EventKind = EventKind::problem("TaintStripped");
const WRITTEN: EventKind = EventKind::action("LastResortTaint");

/// The most attempts to write a taint while other clients write to the node.
const MAX_ATTEMPTS: usize = 5;

/// The result of writing a taint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TaintWrite {
    /// The node needs no write, or no longer exists.
    UpToDate,
    /// The taint was written.
    Changed,
    /// Other clients wrote to the node during each attempt.
    Conflict,
    /// The API server's response lacks the change, because another webhook undid the change.
    Stripped,
}

/// Why a taint could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the taint {taint} of node {node}")]
pub(super) struct TaintError {
    taint: &'static str,
    node: String,
    #[source]
    source: kube::Error,
}

/// Adds or removes a taint of a node. Keeps all changes that other clients make in the meantime.
///
/// # Errors
///
/// Errors of the API server except conflicts.
pub(super) async fn write_taint(
    nodes: &Api<Node>,
    name: &str,
    taint: ManagedTaint,
    desired: bool,
) -> Result<TaintWrite, kube::Error> {
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    for attempt in 1..=MAX_ATTEMPTS {
        let Some(node) = nodes.get_opt(name).await? else { return Ok(TaintWrite::UpToDate) };
        let Some(patch) = taint.plan(&node, desired) else { return Ok(TaintWrite::UpToDate) };
        match nodes.patch(name, &params, &Patch::Json::<()>(patch)).await {
            Ok(node) if taint.is_on(&node) == desired => return Ok(TaintWrite::Changed),
            Ok(_) => return Ok(TaintWrite::Stripped),
            Err(error) if is_conflict(&error) => {}
            // The list of taints has become shorter. The API server checks the index of the patch before it compares the version.
            Err(kube::Error::Api(status)) if status.code == 422 && attempt < MAX_ATTEMPTS => {}
            Err(error) => return Err(error),
        }
    }
    Ok(TaintWrite::Conflict)
}

impl Context {
    /// Adds or removes a taint, as desired for each node. A node whose write fails does not delay the others.
    pub(super) async fn reconcile_taints(
        &self,
        taint: ManagedTaint,
        nodes: &[(cluster::Node, bool)],
        backoff: &mut Backoff,
    ) -> Result<Outcome, TaintError> {
        let mut combined = CombinedOutcome::default();
        for (node, desired) in nodes {
            combined.add(self.reconcile_taint(node, taint, *desired, backoff).await);
        }
        combined.outcome()
    }

    /// Adds or removes a taint of a node, and reports the change. If another webhook undoes the write, the node backs off.
    pub(super) async fn reconcile_taint(
        &self,
        node: &cluster::Node,
        taint: ManagedTaint,
        desired: bool,
        backoff: &mut Backoff,
    ) -> Result<Outcome, TaintError> {
        if backoff.remaining(&node.name, Instant::now()).is_some() {
            return Ok(Outcome::UpToDate);
        }
        let written = write_taint(&Api::all(self.client.clone()), &node.name, taint, desired).await;
        let result = match &written {
            Ok(TaintWrite::UpToDate) => return Ok(Outcome::UpToDate),
            Ok(TaintWrite::Changed) => "success",
            Ok(TaintWrite::Conflict) => "conflict",
            Ok(TaintWrite::Stripped) => "stripped",
            Err(_) => "failure",
        };
        self.metrics.overflow.acted(if desired { "add_taint" } else { "remove_taint" }, result);
        match written {
            Ok(TaintWrite::UpToDate) => Ok(Outcome::UpToDate),
            Ok(TaintWrite::Changed) => {
                backoff.reset(&node.name);
                self.report_written(node, taint, desired);
                Ok(Outcome::Changed)
            }
            Ok(TaintWrite::Conflict) => Ok(Outcome::Conflict),
            Ok(TaintWrite::Stripped) => {
                self.report_stripped(node, taint, backoff);
                Ok(Outcome::UpToDate)
            }
            Err(source) => Err(TaintError { taint: taint.key, node: node.name.clone(), source }),
        }
    }

    /// Writes an event about the last-resort taint. The reconcilers of the other taints write their own events.
    fn report_written(&self, node: &cluster::Node, taint: ManagedTaint, desired: bool) {
        tracing::info!(node = node.name, taint = taint.key, is_on = desired, "wrote a taint");
        if taint == LAST_RESORT {
            let message = if desired {
                "the controller added the last-resort taint: pods run here only if no VM has room"
            } else {
                "the controller removed the last-resort taint: pods may run here while VMs have room"
            };
            self.event_aggregator.record(node.reference(), WRITTEN, message.to_owned());
        }
    }

    fn report_stripped(&self, node: &cluster::Node, taint: ManagedTaint, backoff: &mut Backoff) {
        let retry_after = backoff.start(&node.name, Instant::now());
        let message = format!(
            "another admission webhook undoes the controller's change of taint {}; retrying in {retry_after:?}",
            taint.key
        );
        tracing::warn!(
            node = node.name,
            taint = taint.key,
            ?retry_after,
            "another webhook undoes the change of a taint"
        );
        self.event_aggregator.record(node.reference(), STRIPPED, message);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use axum::http;
    use kube::{Client, client::Body};
    use serde_json::json;

    use super::*;
    use crate::{
        controller::events::{EventAggregator, EventRecorder},
        telemetry::ControllerMetrics,
    };

    /// A context with an API server whose nodes have no taints. The server refuses writes to `forbidden` and drops writes to `stripped`.
    fn context() -> Context {
        let server = tower::service_fn(async |request: http::Request<Body>| {
            let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let taints = match (request.method(), name.as_str()) {
                (&http::Method::PATCH, "open") => json!([{"key": LAST_RESORT.key, "effect": LAST_RESORT.effect}]),
                _ => json!([]),
            };
            let (status, body) = match (request.method(), name.as_str()) {
                (&http::Method::PATCH, "forbidden") => (403, json!({"status": "Failure", "code": 403})),
                _ => (200, json!({"metadata": {"name": name, "resourceVersion": "7"}, "spec": {"taints": taints}})),
            };
            let body = Body::from(body.to_string().into_bytes());
            Ok::<_, Infallible>(http::Response::builder().status(status).body(body).unwrap())
        });
        let client = Client::new(server, "default");
        Context {
            events: EventRecorder::new(client.clone(), "pod"),
            client,
            namespace: "spillway-system".to_owned(),
            configuration: tokio::sync::watch::Sender::new(std::sync::Arc::default()).subscribe(),
            event_aggregator: EventAggregator::default(),
            metrics: ControllerMetrics::default(),
        }
    }

    #[tokio::test]
    async fn a_failed_node_delays_no_other_and_writes_are_reported() {
        let (context, mut backoff) = (context(), Backoff::default());
        let node = |name: &str| (cluster::Node { name: name.to_owned(), ..cluster::Node::default() }, true);
        let nodes = ["forbidden", "stripped", "open"].map(node);
        let error = context.reconcile_taints(LAST_RESORT, &nodes, &mut backoff).await.unwrap_err();
        assert_eq!(error.node, "forbidden");
        let events = |context: &Context| {
            let events = context.event_aggregator.take_due(Instant::now()).into_iter();
            events.map(|event| (event.about.name.unwrap(), event.kind.reason)).collect::<Vec<_>>()
        };
        let expected = [("stripped", "TaintStripped"), ("open", "LastResortTaint")];
        assert_eq!(events(&context), expected.map(|(node, reason)| (node.to_owned(), reason)));
        assert!(
            backoff.remaining("stripped", Instant::now()).is_some()
                && backoff.remaining("open", Instant::now()).is_none()
        );
        let (context, mut backoff) = (self::context(), Backoff::default());
        context.reconcile_taints(FULL, &nodes[1..2], &mut backoff).await.unwrap();
        assert_eq!(events(&context), [("stripped".to_owned(), "TaintStripped")], "every taint is reported");
    }

    #[tokio::test]
    async fn a_patch_of_a_shortened_taint_list_is_retried() {
        for (refusals, expected) in [(MAX_ATTEMPTS - 1, Ok(TaintWrite::Changed)), (MAX_ATTEMPTS, Err(422))] {
            let patches = AtomicUsize::new(0);
            let server = tower::service_fn(move |request: http::Request<Body>| {
                let is_patch = request.method() == http::Method::PATCH;
                let taints = if is_patch { json!([{"key": FULL.key, "effect": FULL.effect}]) } else { json!([]) };
                let (status, body) = if is_patch && patches.fetch_add(1, Ordering::Relaxed) < refusals {
                    (422, json!({"status": "Failure", "reason": "Invalid", "code": 422}))
                } else {
                    (200, json!({"metadata": {"name": "n", "resourceVersion": "7"}, "spec": {"taints": taints}}))
                };
                let answer = http::Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
                std::future::ready(Ok::<_, Infallible>(answer.unwrap()))
            });
            let nodes = Api::all(Client::new(server, "default"));
            let written = write_taint(&nodes, "n", FULL, true).await.map_err(|error| match error {
                kube::Error::Api(status) => status.code,
                _ => 0,
            });
            assert_eq!(written, expected, "{refusals}");
        }
    }
}
