//! Closes virtual nodes to new pods at the cap, or while too many pods on virtual nodes fail to start.
//!
//! A virtual node never looks full to the scheduler. The first generation advertises thousands of CPUs, but the quota of a subscription
//! is often 100 container groups (MicrosoftDocs/azure-compute-docs `container-instances-resource-and-quota-limits.md`). Pods above the
//! quota are bound to the node and fail. The taint `spillway.dev/full:NoSchedule` makes them wait for a VM.
//!
//! The taint affects all pods that do not tolerate it, also pods that Spillway did not change. Spillway refuses no pod, and running pods
//! continue. Pods that the scheduler binds before it sees the taint may exceed the cap. A terminating pod counts until it is deleted,
//! because its container group still exists. A pod that has ended does not count.

mod plan;

use futures_util::stream;
use k8s_openapi::jiff::Timestamp;
use plan::{Closed, Plan, events, plan};

use super::{
    changes::changes_of,
    context::Context,
    reconcile::{Outcome, run_rounds},
    taints::{FULL, TaintError},
};
use crate::{cluster::Inventory, kubernetes::Backoff};

const RECONCILER: &str = "capacity";

/// Runs rounds until the future is dropped.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let changes = [
        changes_of(inventory.nodes.clone()),
        changes_of(inventory.pods.on_virtual_nodes()),
        changes_of(context.configuration.clone()),
    ];
    // Until the first round, the controller does not know why a former leader closed virtual nodes.
    let (mut closed, mut backoff) = (None, Backoff::default());
    let round = async || round(context, inventory, &mut closed, &mut backoff).await;
    Box::pin(run_rounds(RECONCILER, &context.metrics, stream::select_all(changes), round)).await;
}

async fn round(
    context: &Context,
    inventory: &Inventory,
    closed: &mut Option<Closed>,
    backoff: &mut Backoff,
) -> Result<Outcome, TaintError> {
    let configuration = context.configuration.borrow().clone();
    let plan = {
        let (nodes, pods) = (inventory.nodes.borrow(), inventory.pods.borrow());
        backoff.retain(nodes.values().map(|node| node.name.as_str()));
        plan(&nodes, &pods, &configuration, *closed, Timestamp::now())
    };
    let Some(Plan { before, now, load, taint_changes, virtual_nodes }) = plan else { return Ok(Outcome::NotSynced) };
    context.metrics.overflow.closed(now.by_cap, now.by_breaker, load.failing);
    *closed = Some(now);
    for (kind, note) in events(before, now, load, &configuration) {
        tracing::warn!(reason = kind.reason, pods = load.total, failing = load.failing, "{note}");
        for node in &virtual_nodes {
            context.event_aggregator.record(node.reference(), kind, note.clone());
        }
    }
    context.reconcile_taints(FULL, &taint_changes, backoff).await
}
