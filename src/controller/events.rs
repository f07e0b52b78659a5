//! Events: what a person should find with `kubectl get events` and `kubectl describe`. `docs/runbook.md` says what to do about each.
//!
//! They are in the namespace of what they are about; those about nodes and the webhook configuration, which have none, in `default`.
//! "Owner" is the controller of a pod, such as its ReplicaSet, or the pod itself where it has none.
//!
//! | reason | about | type |
//! | --- | --- | --- |
//! | `AuthorityCreated` | Secret `spillway-ca` | Normal |
//! | `AuthorityReplaced`: it was malformed, or not valid | Secret `spillway-ca` | Warning |
//! | `AuthorityRotating`, `AuthorityRotated`, `AuthorityRetired`: the steps of a rotation | Secret `spillway-ca` | Normal |
//! | `ConfigurationInvalid`: the last good one stays in force | ConfigMap `spillway-config` | Warning |
//! | `ConfigurationReloaded`: it was invalid, and is good again | ConfigMap `spillway-config` | Normal |
//! | `IdentityF3` and the like: a finding of `docs/identity.md` by its id | the ServiceAccount, or ConfigMap `spillway-config` for the cluster as a whole | Warning |
//! | `IdentityHealed`: it is there no more | the same | Normal |
//! | `IdentityManyFindings`: more than have events of their own | ConfigMap `spillway-config` | Warning, Normal |
//! | `LateBurst`: a pod of mode `late` may go to virtual nodes now | owner | Normal, gathered for a minute |
//! | `LateWithheld`: its time has come, but virtual nodes are closed, its namespace is at `maxPods`, or the toleration is refused | owner | Warning, an hour |
//! | `MissedPodHealed`: a waiting pod that the webhook had not seen was decided on | owner | Normal, a minute |
//! | `PodMissed`: a pod that the webhook had not seen has a node already | owner | Warning, an hour |
//! | `MissedPodEvicted`: it was evicted, to be created anew | owner | Normal, a minute |
//! | `MissedUnknown`: a matchCondition of the webhook configuration is not ours, so nobody can tell which pods were missed | MutatingWebhookConfiguration `aci-spillway` | Warning, an hour |
//! | `LastResortTaint`: the taint `spillway.dev/last-resort` was put on or taken off | the node | Normal, a minute |
//! | `TaintStripped`: another webhook undoes what we write of our taints, whichever it is | the node | Warning, an hour |
//! | `VirtualNodesFull`: closed, by `virtualNodes.maxPods` | each virtual node | Warning, a minute |
//! | `BreakerOpen`: closed, by `breaker.failures` | each virtual node | Warning, a minute |
//! | `VirtualNodesReopened` | each virtual node | Normal, a minute |
//! | `GhostNode`: the pod is gone that runs the node | the virtual node | Warning, an hour |
//! | `GhostNodeCordoned` | the virtual node | Warning, a minute |
//! | `GhostNodeBack`: no longer cordoned, and why | the virtual node | Normal, a minute |
//! | `TaintNotTolerated`: a taint that `virtualNodes.toleration` does not cover | the virtual node | Warning, an hour |
//! | `VirtualNodeNearlyFull`: 180 of the 200 pods that one of the second generation runs at the most | the virtual node | Warning, an hour |
//! | `PreferDrainsVMs`: mode `prefer` where a node autoscaler is at work | the Namespace | Warning, a day |
//! | `KubeProxyOnVirtualNodes`: more than 1,000 pods run a kube-proxy each | each Namespace that has some of them | Warning, a day |
//!
//! Those with a time are gathered by object and reason (`tally.rs`): the first is told within a second or so, what comes within the time
//! after it is one event with its number and the last note, and no more than ten are written in a second. The number counts how often
//! something was found or done. The leader keeps this in memory: the next one may tell once more.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::NAME;
use crate::telemetry::Causes;

/// In bytes (kubernetes `pkg/apis/core/validation/events.go`).
const LONGEST_NOTE: usize = 1024;

/// Writes events, and aggregates those that repeat. All clones are one.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// Events by this replica.
    pub fn new(client: Client, pod_name: &str) -> Self {
        let reporter = Reporter { controller: NAME.to_owned(), instance: Some(pod_name.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Writes an event. That it could not be written is logged, and no reason to fail: what it tells of has happened.
    pub(super) async fn publish(&self, about: &ObjectReference, type_: EventType, reason: &str, note: String) {
        let note = shortened(note);
        let (reason, action) = (reason.to_owned(), action(&note));
        let event = Event { type_, reason, note: Some(note), action, secondary: None };
        if let Err(error) = self.0.publish(&event, about).await {
            tracing::warn!(error = %Causes(&error), reason = event.reason, "cannot write an event");
        }
    }
}

/// An object, for events about it, as far as it is known without reading it.
pub(super) fn reference(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: namespace.map(str::to_owned),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

/// The recorder takes events for the same that differ in their notes alone, and writes the first note again. The action sets them
/// apart (kube-runtime `events.rs`, `EventKey`).
fn action(note: &str) -> String {
    let mut hasher = DefaultHasher::new();
    note.hash(&mut hasher);
    format!("Reconcile-{:016x}", hasher.finish())
}

/// What the API server takes of a note: all of it, or as many whole characters as fit.
fn shortened(mut note: String) -> String {
    if note.len() > LONGEST_NOTE {
        let end = (0..=LONGEST_NOTE).rev().find(|end| note.is_char_boundary(*end)).unwrap_or_default();
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
    async fn events_that_differ_in_their_notes_alone_are_two_and_the_same_again_is_one() {
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
        let events = Events::new(Client::new(server, "default"), "pod");
        let about = ObjectReference { name: Some("web".to_owned()), ..ObjectReference::default() };
        for note in ["F3: mended", "F5: mended", "F3: mended"] {
            events.publish(&about, EventType::Normal, "IdentityHealed", note.to_owned()).await;
        }
        let written = written.lock().unwrap();
        let written: Vec<_> = written.iter().map(|(method, note)| (method.as_str(), note.as_str())).collect();
        assert_eq!(written, [("POST", "F3: mended"), ("POST", "F5: mended"), ("PATCH", "F3: mended")]);
    }

    #[test]
    fn a_note_is_as_long_as_the_api_server_takes() {
        assert_eq!(shortened("short".to_owned()), "short");
        assert_eq!(shortened("x".repeat(2_000)).len(), 1024);
        assert_eq!(shortened("€".repeat(1_000)).len(), 1023, "whole characters only");
    }
}
