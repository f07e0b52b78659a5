//! Closes virtual nodes to new pods while they are at their cap, or while too many pods fail to start there.
//!
//! A virtual node never looks full. The first generation advertises thousands of CPUs, while the quota of a subscription is often 100
//! container groups (MicrosoftDocs/azure-compute-docs `container-instances-resource-and-quota-limits.md`), and pods beyond it are bound
//! and fail. With the taint `spillway.dev/full:NoSchedule` on virtual nodes, they wait for a VM instead.
//!
//! The taint keeps away all pods that do not tolerate it, whether they came through Spillway or not. Spillway refuses nothing, and
//! running pods continue. The scheduler does not count: pods that it binds before it sees the taint exceed the cap. A terminating pod
//! counts until it is gone, as its container group does; a pod that has ended does not count.

mod plan;

use futures_util::stream;
use k8s_openapi::jiff::Timestamp;
use plan::{Closed, Plan, events, plan};

use super::{
    Context, changes_of,
    reconcile::{Outcome, run_rounds},
    taints::{FULL, TaintError},
};
use crate::{cluster::Inventory, kubernetes::Backoff};

const RECONCILER: &str = "capacity";

/// Runs rounds until it is dropped.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let changes = [
        changes_of(inventory.nodes.clone()),
        changes_of(inventory.pods.on_virtual_nodes()),
        changes_of(context.configuration.clone()),
    ];
    // Before the first round, the cause for which a former leader closed virtual nodes is unknown.
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
