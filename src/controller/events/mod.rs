//! Events: what people find with `kubectl get events` and `kubectl describe`. `docs/runbook.md` says what to do about each.
//!
//! An event is in the namespace of its object. Events about nodes and the webhook configuration, which have none, are in `default`.
//! The "owner" of a pod is its controller, such as its ReplicaSet, or the pod itself if it has none.
//!
//! | reason | about | type |
//! | --- | --- | --- |
//! | `AuthorityCreated` | Secret `spillway-ca` | Normal |
//! | `AuthorityReplaced`: it was malformed, or not valid | Secret `spillway-ca` | Warning |
//! | `AuthorityRotating`, `AuthorityRotated`, `AuthorityRetired`: the steps of a rotation | Secret `spillway-ca` | Normal |
//! | `ConfigurationInvalid`: the last valid one stays in force | ConfigMap `spillway-config` | Warning |
//! | `ConfigurationReloaded`: it was invalid, and is valid again | ConfigMap `spillway-config` | Normal |
//! | `IdentityF3` and the like: a finding of `docs/identity.md` by its id | the ServiceAccount, or ConfigMap `spillway-config` for the cluster as a whole | Warning |
//! | `IdentityHealed`: the finding is gone | the same | Normal |
//! | `IdentityManyFindings`: more findings than have events of their own | ConfigMap `spillway-config` | Warning, Normal |
//! | `LateBurst`: a pod of mode `late` may go to virtual nodes now | owner | Normal, a minute |
//! | `LateWithheld`: a pod is due, but virtual nodes are closed, its namespace is at `maxPods`, or the toleration is refused | owner | Warning, an hour |
//! | `MissedPodHealed`: the controller decided on a pending pod that the webhook had missed | owner | Normal, a minute |
//! | `PodMissed`: a pod that the webhook had missed has a node already | owner | Warning, an hour |
//! | `MissedPodEvicted`: the controller evicted such a pod, so that its owner recreates it | owner | Normal, a minute |
//! | `MissedUnknown`: missed pods are unknown, because a matchCondition of the webhook configuration is not Spillway's | MutatingWebhookConfiguration `aci-spillway` | Warning, an hour |
//! | `LastResortTaint`: the taint `spillway.dev/last-resort` was added or removed | the node | Normal, a minute |
//! | `TaintStripped`: another webhook undoes a write of a taint of Spillway | the node | Warning, an hour |
//! | `VirtualNodesFull`: closed, by `virtualNodes.maxPods` | each virtual node | Warning, a minute |
//! | `BreakerOpen`: closed, by `breaker.failures` | each virtual node | Warning, a minute |
//! | `VirtualNodesReopened` | each virtual node | Normal, a minute |
//! | `GhostNode`: the pod that runs the node is gone | the virtual node | Warning, an hour |
//! | `GhostNodeCordoned` | the virtual node | Warning, a minute |
//! | `GhostNodeBack`: no longer cordoned, and why | the virtual node | Normal, a minute |
//! | `TaintNotTolerated`: a taint that `virtualNodes.toleration` does not cover | the virtual node | Warning, an hour |
//! | `VirtualNodeNearlyFull`: 180 of the at most 200 pods of a virtual node of the second generation | the virtual node | Warning, an hour |
//! | `PreferDrainsVMs`: mode `prefer` in a cluster with a node autoscaler | the Namespace | Warning, a day |
//! | `KubeProxyOnVirtualNodes`: more than 1,000 pods run a kube-proxy each | each Namespace that has some of them | Warning, a day |
//!
//! Events with a time are aggregated by object and reason (`aggregator.rs`). The controller writes the first one within about a second.
//! Within the time after it, it combines all occurrences into one event, with their number and the last note. It writes at most ten
//! events in a second. The leader keeps this in memory, so a new leader may repeat an event.

mod aggregator;

use std::hash::{DefaultHasher, Hash, Hasher};

pub(super) use aggregator::{EventAggregator, EventKind, ObjectEvent};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::NAME;
use crate::telemetry::Causes;

/// The most bytes of a note (kubernetes `pkg/apis/core/validation/events.go`).
const MAX_NOTE_BYTES: usize = 1024;

/// Writes events, and counts repetitions of the same event. Clones share their state.
#[derive(Clone)]
pub struct EventRecorder(Recorder);

impl EventRecorder {
    /// A recorder for this replica.
    pub fn new(client: Client, pod_name: &str) -> Self {
        let reporter = Reporter { controller: NAME.to_owned(), instance: Some(pod_name.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Writes an event. Logs a failure and goes on: the action that the event reports has happened.
    pub(super) async fn publish(&self, about: &ObjectReference, type_: EventType, reason: &str, note: String) {
        let note = truncated(note);
        let (reason, action) = (reason.to_owned(), action(&note));
        let event = Event { type_, reason, note: Some(note), action, secondary: None };
        if let Err(error) = self.0.publish(&event, about).await {
            tracing::warn!(error = %Causes(&error), reason = event.reason, "cannot write an event");
        }
    }
}

/// A different action for each note. The recorder treats events that differ only in their notes as the same, and writes the first note
/// again (kube-runtime `events.rs`, `EventKey`).
fn action(note: &str) -> String {
    let mut hasher = DefaultHasher::new();
    note.hash(&mut hasher);
    format!("Reconcile-{:016x}", hasher.finish())
}

/// Truncates a note to what the API server accepts, at the end of a character.
fn truncated(mut note: String) -> String {
    if note.len() > MAX_NOTE_BYTES {
        let end = (0..=MAX_NOTE_BYTES).rev().find(|end| note.is_char_boundary(*end)).unwrap_or_default();
        note.truncate(end);
    }
    note
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use axum::http;
    use kube::client::Body;
    use serde_json::Value;

    use super::*;

    #[tokio::test]
    async fn events_that_differ_only_in_their_notes_are_two_events() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let log = written.clone();
        let server = tower::service_fn(move |request: http::Request<Body>| {
            let log = log.clone();
            async move {
                let method = request.method().to_string();
                let body = request.into_body().collect_bytes().await.unwrap();
                let event: Value = serde_json::from_slice(&body).unwrap();
                log.lock().unwrap().push((method, event["note"].as_str().unwrap().to_owned()));
                Ok::<_, Infallible>(http::Response::builder().status(200).body(Body::from(body.to_vec())).unwrap())
            }
        });
        let recorder = EventRecorder::new(Client::new(server, "default"), "pod");
        let about = ObjectReference { name: Some("web".to_owned()), ..ObjectReference::default() };
        for note in ["F3: mended", "F5: mended", "F3: mended"] {
            recorder.publish(&about, EventType::Normal, "IdentityHealed", note.to_owned()).await;
        }
        let written = written.lock().unwrap();
        let written: Vec<_> = written.iter().map(|(method, note)| (method.as_str(), note.as_str())).collect();
        assert_eq!(written, [("POST", "F3: mended"), ("POST", "F5: mended"), ("PATCH", "F3: mended")]);
    }

    #[test]
    fn a_note_is_truncated_to_what_the_api_server_accepts() {
        assert_eq!(truncated("short".to_owned()), "short");
        assert_eq!(truncated("x".repeat(2_000)).len(), 1024);
        assert_eq!(truncated("€".repeat(1_000)).len(), 1023, "whole characters only");
    }
}
