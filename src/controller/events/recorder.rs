//! Writes events.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::super::names::NAME;
use crate::telemetry::Causes;

/// The most bytes of a note (kubernetes `pkg/apis/core/validation/events.go`).
const MAX_NOTE_BYTES: usize = 1024;

/// Writes events, and counts repetitions of the same event. Clones share their state.
#[derive(Clone)]
pub struct EventRecorder(Recorder);

impl EventRecorder {
    /// Returns a recorder for this replica.
    pub fn new(client: Client, pod_name: &str) -> Self {
        let reporter = Reporter { controller: NAME.to_owned(), instance: Some(pod_name.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Writes an event. Only logs a failure, because the action that the event reports has already happened.
    pub(in crate::controller) async fn publish(
        &self,
        about: &ObjectReference,
        type_: EventType,
        reason: &str,
        note: String,
    ) -> bool {
        let note = truncated(note);
        let (reason, action) = (reason.to_owned(), action(&note));
        let event = Event { type_, reason, note: Some(note), action, secondary: None };
        let result = self.0.publish(&event, about).await;
        if let Err(error) = &result {
            tracing::warn!(error = %Causes(error), reason = event.reason, "cannot write an event");
        }
        result.is_ok()
    }
}

/// Returns a different action for each note. Otherwise the recorder would treat events that differ only in their notes as the same, and
/// repeat the first note (kube-runtime `events.rs`, `EventKey`).
fn action(note: &str) -> String {
    let mut hasher = DefaultHasher::new();
    note.hash(&mut hasher);
    format!("Reconcile-{:016x}", hasher.finish())
}

/// Truncates a note to the most bytes that the API server accepts, at a character boundary.
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
        for note in ["F3: fixed", "F5: fixed", "F3: fixed"] {
            recorder.publish(&about, EventType::Normal, "IdentityHealed", note.to_owned()).await;
        }
        let written = written.lock().unwrap();
        let written: Vec<_> = written.iter().map(|(method, note)| (method.as_str(), note.as_str())).collect();
        assert_eq!(written, [("POST", "F3: fixed"), ("POST", "F5: fixed"), ("PATCH", "F3: fixed")]);
    }

    #[test]
    fn a_note_is_truncated_to_what_the_api_server_accepts() {
        assert_eq!(truncated("short".to_owned()), "short");
        assert_eq!(truncated("x".repeat(2_000)).len(), 1024);
        assert_eq!(truncated("€".repeat(1_000)).len(), 1023, "whole characters only");
    }
}
