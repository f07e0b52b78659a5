//! Late burst: gives the toleration of virtual nodes to pods of mode `late` that were not scheduled to a VM in time.
//!
//! The pod itself holds its state, so a new leader continues where the former leader stopped. The waiting time of a pod starts when the
//! controller first sees the pod unschedulable. While an autoscaler seems to add a VM, the pod waits longer, up to `late.max`.

mod apply;
mod in_flight;
mod observation;
mod plan;
mod scale_up;
mod state;
#[cfg(test)]
mod testing;

use futures_util::stream;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use self::{
    apply::{LateError, apply_tolerations, start_clocks},
    in_flight::InFlight,
    observation::Observation,
    plan::{MIN_ROUND_INTERVAL, Plan, plan},
};
use super::{
    changes::changes_of,
    context::Context,
    events::EventKind,
    reconcile::{Outcome, Requeue, run_rounds},
};
use crate::{cluster::Inventory, config::Configuration, kubernetes::Backoff};

const RECONCILER: &str = "late";

const WITHHELD: EventKind = EventKind::problem("LateWithheld");

/// Runs rounds until the future is dropped.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let requeue = Requeue::default();
    let changes = [changes_of(inventory.pods.unscheduled()), changes_of(context.configuration.clone()), requeue.due()];
    let mut state = ReconcilerState::default();
    let round = async || round(context, inventory, &requeue, &mut state).await;
    Box::pin(run_rounds(RECONCILER, &context.metrics, stream::select_all(changes), round)).await;
}

/// The state between rounds. A new leader starts with an empty state.
#[derive(Debug, Default)]
struct ReconcilerState {
    /// When pods last got the toleration.
    last_applied: Option<Instant>,
    in_flight: InFlight,
    /// Pods whose last write failed.
    backoff: Backoff,
}

async fn round(
    context: &Context,
    inventory: &Inventory,
    requeue: &Requeue,
    state: &mut ReconcilerState,
) -> Result<Outcome, LateError> {
    let configuration = context.configuration.borrow().clone();
    let Some(plan) = observe_and_plan(&configuration, inventory, state) else { return Ok(Outcome::NotSynced) };
    context.metrics.overflow.late(plan.counts);
    for withheld in plan.withheld.into_values() {
        context.event_aggregator.record(withheld.owner, WITHHELD, withheld.note);
    }
    let clocks = start_clocks(context, plan.clock_starts, &mut state.backoff).await?;
    if !plan.due.is_empty() {
        state.last_applied = Some(Instant::now());
        state.in_flight.extend(plan.due.iter().map(|pod| pod.key.clone()));
    }
    let tolerations = apply_tolerations(context, &configuration, plan.due, &mut state.backoff).await?;
    // The pods of failed writes back off from now on.
    if let Some(next) = plan.requeue_after.into_iter().chain(state.backoff.next_expiry(Instant::now())).min() {
        requeue.after(next);
    }
    Ok(if clocks == Outcome::Changed { clocks } else { tolerations })
}

fn observe_and_plan(
    configuration: &Configuration,
    inventory: &Inventory,
    ReconcilerState { last_applied, in_flight, backoff }: &mut ReconcilerState,
) -> Option<Plan> {
    let (pods, instant) = (inventory.pods.borrow(), Instant::now());
    backoff.retain(pods.unscheduled().map(|(_, pod)| pod.meta.uid.as_str()));
    in_flight.update(&pods, instant);
    plan(&Observation {
        now: Timestamp::now(),
        instant,
        configuration,
        snapshot: &inventory.snapshot(),
        pods: &pods,
        nodes: &inventory.nodes.borrow(),
        in_flight,
        scale_up_signals: &inventory.scale_ups.borrow(),
        backoff,
        may_apply: last_applied.is_none_or(|last| instant.duration_since(last) >= MIN_ROUND_INTERVAL),
    })
}
