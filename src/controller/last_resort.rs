//! Keeps the taint `spillway.dev/last-resort:PreferNoSchedule` on virtual nodes, so that the scheduler prefers VMs with free capacity.
//!
//! A preferred node affinity alone is too weak. The scheduler normalises the weight of a single preferred term, and the default spreading
//! of ReplicaSets outweighs the term (kubernetes `pkg/scheduler/framework/plugins/tainttoleration` weighs 3, `nodeaffinity` 2,
//! `podtopologyspread` 2; virtual-kubelet/virtual-kubelet#1250).

use futures_util::stream;
use k8s_openapi::api::core::v1;
use kube::{Api, Client, api::ListParams};

use super::{
    changes::changes_of,
    context::Context,
    ghosts::set_cordon,
    reconcile::{Outcome, run_rounds},
    taints::{FULL, GHOST, LAST_RESORT, ManagedTaint, TaintError, TaintWrite, write_taint},
};
use crate::{
    cluster::{Inventory, Node, NodeObject},
    config::VirtualNodes,
    kubernetes::{Backoff, Store, list},
};

const RECONCILER: &str = "last-resort";

/// Runs rounds until the future is dropped.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let changes = stream::select(changes_of(inventory.nodes.clone()), changes_of(context.configuration.clone()));
    let mut backoff = Backoff::default();
    let round = async || round(context, inventory, &mut backoff).await;
    Box::pin(run_rounds(RECONCILER, &context.metrics, changes, round)).await;
}

async fn round(context: &Context, inventory: &Inventory, backoff: &mut Backoff) -> Result<Outcome, TaintError> {
    let configuration = context.configuration.borrow().clone();
    let plan = {
        let nodes = inventory.nodes.borrow();
        backoff.retain(nodes.values().map(|node| node.name.as_str()));
        plan(&nodes, &configuration.virtual_nodes)
    };
    context.reconcile_taints(LAST_RESORT, &plan, backoff).await
}

/// Returns the nodes whose taint must change, with `true` to add the taint. A node that is no longer selected loses the taint.
fn plan(nodes: &Store<Node>, settings: &VirtualNodes) -> Vec<(Node, bool)> {
    let wrong = nodes.values().filter_map(|node| {
        let desired = settings.last_resort_taint && node.is_virtual(&settings.selector);
        (LAST_RESORT.is_on_observed(node) != desired).then(|| (node.clone(), desired))
    });
    wrong.collect()
}

/// Removes Spillway's taints and cordons from all nodes. Returns the names of the nodes that had any.
///
/// # Errors
///
/// Errors of the API server, and [`CleanupError::Contended`] if another client keeps writing to a node.
pub async fn cleanup(client: &Client) -> Result<Vec<String>, CleanupError> {
    let (nodes, partial): (Api<v1::Node>, Api<NodeObject>) = (Api::all(client.clone()), Api::all(client.clone()));
    let has_taints = |node: &Node| MANAGED_TAINTS.into_iter().any(|taint| taint.is_on_observed(node));
    let tainted = list(&partial, ListParams::default(), |node| Node::read(node).filter(has_taints));
    let mut cleaned = Vec::new();
    for node in tainted.await.map_err(CleanupError::List)? {
        if GHOST.is_on_observed(&node) && node.is_cordoned {
            let uncordoned = set_cordon(&nodes, &node.name, false).await;
            uncordoned.map_err(|error| CleanupError::Write(node.name.clone(), error))?;
        }
        for taint in MANAGED_TAINTS.into_iter().filter(|taint| taint.is_on_observed(&node)) {
            let written = write_taint(&nodes, &node.name, taint, false).await;
            match written.map_err(|error| CleanupError::Write(node.name.clone(), error))? {
                TaintWrite::UpToDate | TaintWrite::Changed => {}
                TaintWrite::Conflict | TaintWrite::Stripped => return Err(CleanupError::Contended(node.name)),
            }
        }
        cleaned.push(node.name);
    }
    Ok(cleaned)
}

const MANAGED_TAINTS: [ManagedTaint; 3] = [LAST_RESORT, FULL, GHOST];

/// Why the taints could not be removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CleanupError {
    /// The nodes could not be listed.
    #[error("cannot list nodes")]
    List(#[source] kube::Error),
    /// A node could not be written.
    #[error("cannot write the taints of node {0}")]
    Write(String, #[source] kube::Error),
    /// The taint is still there.
    #[error("another client writes the taints of node {0} at the same time: retry")]
    Contended(String),
}
