//! Missed pods: pods that the webhook should have decided on and has not, because it was down or too slow.
//!
//! A missed pod without a node gets what can still be added to an existing pod. A missed pod with a node is counted and reported once.
//! If the configuration says so, the controller evicts it, so that its owner recreates it.

mod decide;
mod eviction;
mod memory;
mod plan;

use futures_util::stream;
use tokio::time::Instant;

use self::{decide::Decider, memory::Memory, plan::MissedPods};
use super::{
    Context, changes_of,
    events::EventKind,
    pods::{PodError, apply_all},
    reconcile::{Outcome, run_rounds},
};
use crate::{
    certs::self_managed::WEBHOOK_CONFIGURATION_NAME,
    cluster::{Inventory, PodMeta},
    kubernetes::{Backoff, object_reference},
};

const RECONCILER: &str = "missed";

const UNKNOWN: EventKind = EventKind::problem("MissedUnknown");

/// The most pods that are decided on in one round. The next round follows at once.
const MAX_PODS: usize = 200;

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
enum MissedError {
    #[error(transparent)]
    Pod(#[from] PodError),
}

/// Runs rounds until it is dropped.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let changes = [
        changes_of(inventory.pods.unscheduled()),
        changes_of(inventory.pods.scheduled()),
        changes_of(inventory.scope.clone()),
        changes_of(context.configuration.clone()),
    ];
    let mut memory = Memory::default();
    let round = async || round(context, inventory, &mut memory).await;
    Box::pin(run_rounds(RECONCILER, &context.metrics, stream::select_all(changes), round)).await;
}

async fn round(context: &Context, inventory: &Inventory, memory: &mut Memory) -> Result<Outcome, MissedError> {
    let (configuration, snapshot) = (context.configuration.borrow().clone(), inventory.snapshot());
    let is_complete = inventory.pods.borrow().is_listed() && inventory.scope.borrow().is_listed();
    if !is_complete || !inventory.unsynced().is_empty() {
        return Ok(Outcome::NotSynced);
    }
    memory.set_basis(&configuration, snapshot.virtual_nodes());
    let MissedPods { waiting, scheduled, unknown_condition } = find_missed(inventory, memory);
    if let Some(condition) = unknown_condition {
        report_unknown(context, &condition);
    }
    let decider = Decider { context, snapshot: &snapshot, configuration: &configuration };
    memory.backoff.retain(waiting.iter().map(|pod| pod.uid.as_str()));
    let waiting = next_pods(&waiting, &memory.backoff);
    let is_all_repaired = waiting.is_empty();
    let repairs = waiting.into_iter().map(|pod| (pod.uid.clone(), decider.repair(pod)));
    let repaired = apply_all(repairs.collect(), &mut memory.backoff).await?;
    let assessed = decider.assess(&scheduled, &mut memory.assessed).await;
    let counts = plan::counts(&scheduled, |uid| memory.assessed.get(uid).map(|assessment| assessment.label));
    context.metrics.overflow.missed(counts);
    let is_all_assessed = assessed?;
    // An eviction takes long, so it waits for a round without other work.
    if !(is_all_repaired && is_all_assessed) {
        return Ok(Outcome::Changed);
    }
    if configuration.missed.evict {
        let assessed = &memory.assessed;
        let may_evict = |uid: &String| assessed.get(uid).is_some_and(|assessment| assessment.may_evict);
        let candidates = scheduled.iter().filter(|pod| may_evict(&pod.meta.uid));
        if memory.evictions.evict_next(context, candidates).await {
            return Ok(Outcome::Changed);
        }
    }
    Ok(repaired)
}

fn find_missed(inventory: &Inventory, memory: &mut Memory) -> MissedPods {
    let opted_in = inventory.opted_in.borrow();
    memory.set_opted_in(&opted_in);
    let scope = inventory.live_scope();
    scope.map(|scope| plan::missed(&scope, &inventory.pods.borrow(), &opted_in)).unwrap_or_default()
}

fn report_unknown(context: &Context, condition: &str) {
    let note = format!(
        "missed pods are unknown: matchCondition {condition} is not the one of the manifests, and only the API server evaluates it"
    );
    let about = object_reference(
        "admissionregistration.k8s.io/v1",
        "MutatingWebhookConfiguration",
        None,
        WEBHOOK_CONFIGURATION_NAME,
    );
    context.event_aggregator.record(about, UNKNOWN, note);
}

/// The pods that this round decides on. Pods that back off do not hold up others.
fn next_pods<'p>(waiting: &'p [PodMeta], backoff: &Backoff) -> Vec<&'p PodMeta> {
    let now = Instant::now();
    waiting.iter().filter(|pod| backoff.remaining(&pod.uid, now).is_none()).take(MAX_PODS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_back_off_do_not_hold_up_others() {
        let pod = |number: usize| PodMeta { uid: number.to_string(), ..PodMeta::default() };
        let waiting: Vec<_> = (0..=MAX_PODS).map(pod).collect();
        let mut backoff = Backoff::default();
        let first = next_pods(&waiting, &backoff);
        assert_eq!(first.len(), MAX_PODS);
        for pod in first {
            backoff.start(&pod.uid, Instant::now());
        }
        assert_eq!(next_pods(&waiting, &backoff), [&pod(MAX_PODS)]);
    }
}
