//! A pod with its decision, as `spillway explain` shows it.

use json_patch::Patch as JsonPatch;
use serde_json::Value;

use super::{placement::Placement, webhook_scope::NotCalled};
use crate::{
    burst::{Decision, reasons},
    cli::manifest::PodTemplate,
    config::Settings,
    eligibility::Finding,
};

/// A pod, its decision, and the inputs of the decision.
pub(super) struct Explained<'a> {
    pub(super) template: &'a PodTemplate,
    pub(super) namespace: String,
    /// The profile, or the reason why the API server does not call Spillway.
    pub(super) profile: Result<&'a str, NotCalled>,
    pub(super) settings: Option<Settings<'a>>,
    pub(super) decision: Decision<'a>,
    /// The patch that the webhook would send. Empty if nothing changes.
    pub(super) patch: JsonPatch,
    /// The Services that the pod cannot reach without kube-proxy.
    pub(super) unreachable_services: Vec<String>,
    /// `true` if the pod must support both generations, because no virtual node is known.
    pub(super) generations_unknown: bool,
    /// The node of an existing pod.
    pub(super) placement: Option<Placement>,
    /// `true` if all virtual nodes are closed by a cap or the circuit breaker, cordoned, or not Ready.
    pub(super) is_closed: bool,
    /// Number of the namespace's pods on virtual nodes, if it has reached its cap.
    pub(super) at_cap: Option<usize>,
    /// The kinds that could not be read, as plurals.
    pub(super) unread: &'a [String],
}

impl Explained<'_> {
    pub(super) fn refusals(&self) -> &[Finding] {
        self.decision.verdict.refusals()
    }

    /// Returns whether the pod is refused although it should overflow. A pod with mode `off` is not refused.
    pub(super) fn is_refused(&self) -> bool {
        self.refusals().iter().any(|finding| *finding.reason != reasons::MODE_OFF)
    }

    /// Returns the value of `spillway.dev/decision`, or the reason why the pod has no decision.
    pub(super) fn decision_text(&self) -> String {
        match (&self.profile, &self.decision.verdict) {
            (Err(why), _) => why.as_str().to_owned(),
            (Ok(_), verdict) => verdict.to_string(),
        }
    }

    /// Returns the pod with the patch applied.
    pub(super) fn admitted(&self) -> anyhow::Result<Value> {
        let mut pod = self.template.pod.clone();
        json_patch::patch(&mut pod, &self.patch)?;
        Ok(pod)
    }
}
