//! Missed pods: pods without a decision, because the webhook was down or too slow at their creation.
//!
//! The controller adds to a missed pod without a node the fields that an existing pod may still get. It counts a missed pod with a node,
//! and reports the pod once. If the configuration enables evictions, it evicts such a pod, so that the owner recreates the pod.

mod decide;
mod eviction;
mod plan;
mod state;

use futures_util::stream;
use tokio::time::Instant;

use self::{
    decide::Decider,
    plan::{MissedPods, next_pods},
    state::ReconcilerState,
};
use super::{
    changes::changes_of,
    context::Context,
    events::EventKind,
    pod_writes::{PodError, apply_all},
    reconcile::{Outcome, run_rounds},
};
use crate::{certs::self_managed::WEBHOOK_CONFIGURATION_NAME, cluster::Inventory, kubernetes::object_reference};

const RECONCILER: &str = "missed";

const UNKNOWN: EventKind = EventKind::problem("MissedUnknown");

/// Runs rounds until the future is dropped.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let changes = [
        changes_of(inventory.pods.unscheduled()),
        changes_of(inventory.pods.scheduled()),
        changes_of(inventory.scope.clone()),
        changes_of(context.configuration.clone()),
    ];
    let mut state = ReconcilerState::default();
    let round = async || round(context, inventory, &mut state).await;
    Box::pin(run_rounds(RECONCILER, &context.metrics, stream::select_all(changes), round)).await;
}

async fn round(context: &Context, inventory: &Inventory, state: &mut ReconcilerState) -> Result<Outcome, PodError> {
    let (configuration, snapshot) = (context.configuration.borrow().clone(), inventory.snapshot());
    let is_complete = inventory.pods.borrow().is_listed() && inventory.scope.borrow().is_listed();
    if !is_complete || !inventory.unsynced().is_empty() {
        return Ok(Outcome::NotSynced);
    }
    state.set_inputs(&configuration, snapshot.virtual_nodes());
    let MissedPods { waiting, scheduled, unknown_condition } = find_missed(inventory, state);
    if let Some(condition) = unknown_condition {
        report_unknown(context, &condition);
    }
    let decider = Decider { context, snapshot: &snapshot, configuration: &configuration };
    state.backoff.retain(waiting.iter().map(|pod| pod.uid.as_str()));
    let waiting = next_pods(&waiting, &state.backoff, Instant::now());
    let is_all_repaired = waiting.is_empty();
    let repairs = waiting.into_iter().map(|pod| (pod.uid.clone(), decider.repair(pod)));
    let repaired = apply_all(repairs.collect(), &mut state.backoff).await?;
    let assessed = decider.assess(&scheduled, &mut state.assessed).await;
    let counts = plan::counts(&scheduled, |uid| state.assessed.get(uid).map(|assessment| assessment.label));
    context.metrics.overflow.missed(counts);
    let is_all_assessed = assessed?;
    // An eviction takes long, so the controller evicts only in a round without other work.
    if !(is_all_repaired && is_all_assessed) {
        return Ok(Outcome::Changed);
    }
    if configuration.missed.evict {
        let assessed = &state.assessed;
        let may_evict = |uid: &String| assessed.get(uid).is_some_and(|assessment| assessment.may_evict);
        let candidates = scheduled.iter().filter(|pod| may_evict(&pod.meta.uid));
        if state.evictions.evict_next(context, candidates).await {
            return Ok(Outcome::Changed);
        }
    }
    Ok(repaired)
}

fn find_missed(inventory: &Inventory, state: &mut ReconcilerState) -> MissedPods {
    let opted_in = inventory.opted_in.borrow();
    state.set_opted_in(&opted_in);
    let scope = inventory.live_scope();
    scope.map(|scope| plan::missed(&scope, &inventory.pods.borrow(), &opted_in)).unwrap_or_default()
}

fn report_unknown(context: &Context, condition: &str) {
    let note = format!(
        "the controller cannot find missed pods: matchCondition {condition} differs from the manifests, and only the API server can evaluate it"
    );
    let about = object_reference(
        "admissionregistration.k8s.io/v1",
        "MutatingWebhookConfiguration",
        None,
        WEBHOOK_CONFIGURATION_NAME,
    );
    context.event_aggregator.record(about, UNKNOWN, note);
}
