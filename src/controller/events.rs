//! Events: what a person should find with `kubectl get events` and `kubectl describe`.
//!
//! All of them are about objects of our own namespace, so that one Role is enough to write them.
//!
//! | reason | about | type |
//! | --- | --- | --- |
//! | `AuthorityCreated` | Secret `spillway-ca` | Normal |
//! | `AuthorityReplaced`: it was malformed, or not valid | Secret `spillway-ca` | Warning |
//! | `AuthorityRotating`, `AuthorityRotated`, `AuthorityRetired`: the steps of a rotation | Secret `spillway-ca` | Normal |
//! | `ConfigurationInvalid`: the last good one stays in force | ConfigMap `spillway-config` | Warning |
//! | `ConfigurationReloaded`: it was invalid, and is good again | ConfigMap `spillway-config` | Normal |

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::NAME;
use crate::telemetry::Causes;

/// The API server takes 1,024 bytes (kubernetes `pkg/apis/core/validation/events.go`), and a character has four at the most.
const LONGEST_NOTE: usize = 1024 / 4;

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
        let note = note.chars().take(LONGEST_NOTE).collect();
        let (reason, action) = (reason.to_owned(), "Reconcile".to_owned());
        let event = Event { type_, reason, note: Some(note), action, secondary: None };
        if let Err(error) = self.0.publish(&event, about).await {
            tracing::warn!(error = %Causes(&error), reason = event.reason, "cannot write an event");
        }
    }
}
