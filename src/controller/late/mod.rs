//! Late burst: gives the toleration of virtual nodes to pods of mode `late` that no VM has taken in time.
//!
//! All state of a pod is in the pod itself, so a new leader continues where the former one stopped. The waiting time of a pod counts from
//! when the controller first saw it unschedulable. While a VM seems to be on its way, the pod waits on, up to `late.max`.

mod apply;
mod in_flight;
mod plan;
mod scale_up;
mod state;
#[cfg(test)]
mod testing;

use std::time::Duration;

use futures_util::stream;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use self::{
    apply::{apply_tolerations, start_clocks},
    in_flight::InFlight,
    plan::{MIN_ROUND_INTERVAL, Observation, Plan, plan},
};
use super::{
    Context, changes_of,
    events::EventKind,
    pods::PodError,
    reconcile::{Outcome, Requeue, run_rounds},
};
use crate::{cluster::Inventory, config::Configuration, kubernetes::Backoff};

const RECONCILER: &str = "late";

const WITHHELD: EventKind = EventKind::problem("LateWithheld");

/// How long a VM that has just become Ready counts as on its way: the scheduler needs a moment to place pods on it.
const SETTLING: Duration = Duration::from_secs(15);

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
enum LateError {
    #[error("cannot read namespace {0}")]
    Namespace(String, #[source] kube::Error),
    #[error(transparent)]
    Pod(#[from] PodError),
}

/// Runs rounds until it is dropped.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let requeue = Requeue::default();
    let changes = [changes_of(inventory.pods.unscheduled()), changes_of(context.configuration.clone()), requeue.due()];
    let mut memory = Memory::default();
    let round = async || round(context, inventory, &requeue, &mut memory).await;
    Box::pin(run_rounds(RECONCILER, &context.metrics, stream::select_all(changes), round)).await;
}

/// State that is kept between rounds. A new leader starts without it.
#[derive(Debug, Default)]
struct Memory {
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
    memory: &mut Memory,
) -> Result<Outcome, LateError> {
    let configuration = context.configuration.borrow().clone();
    let Some(plan) = observe_and_plan(&configuration, inventory, memory) else { return Ok(Outcome::NotSynced) };
    context.metrics.overflow.late(plan.counts);
    for withheld in plan.withheld.into_values() {
        context.event_aggregator.record(withheld.owner, WITHHELD, withheld.note);
    }
    let clocks = start_clocks(context, plan.clock_starts, &mut memory.backoff).await?;
    if !plan.due.is_empty() {
        memory.last_applied = Some(Instant::now());
        memory.in_flight.extend(plan.due.iter().map(|pod| pod.key.clone()));
    }
    let tolerations = apply_tolerations(context, &configuration, plan.due, &mut memory.backoff).await?;
    // Some writes of this round may have failed, and their pods back off now.
    if let Some(next) = plan.requeue_after.into_iter().chain(memory.backoff.next_expiry(Instant::now())).min() {
        requeue.after(next);
    }
    Ok(if clocks == Outcome::Changed { clocks } else { tolerations })
}

fn observe_and_plan(
    configuration: &Configuration,
    inventory: &Inventory,
    Memory { last_applied, in_flight, backoff }: &mut Memory,
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
