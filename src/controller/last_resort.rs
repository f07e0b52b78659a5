//! Keeps the taint `spillway.dev/last-resort:PreferNoSchedule` on virtual nodes, so that pods go there only when no VM has room.
//!
//! A preferred node affinity alone leaks: with one preferred term its weight is normalised away, and the default spreading of
//! ReplicaSets outweighs it (kubernetes `pkg/scheduler/framework/plugins/tainttoleration` weighs 3, `nodeaffinity` 2,
//! `podtopologyspread` 2; virtual-kubelet/virtual-kubelet#1250).

use futures_util::stream;
use k8s_openapi::api::core::v1;
use kube::{Api, Client, api::ListParams};

use super::{
    Context, each,
    ghosts::cordon,
    pauses::Pauses,
    reconcile::{Outcome, repeat},
    taints::{self, FULL, GHOST, Kept, LAST_RESORT, TaintError, Written},
};
use crate::{
    cluster::{Inventory, Node, NodeObject},
    config::VirtualNodes,
    kubernetes::{Store, list},
};

const RECONCILER: &str = "last-resort";

/// Rounds, for as long as it is asked to.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let changes = stream::select(each(inventory.nodes.clone()), each(context.configuration.clone()));
    let mut fights = Pauses::default();
    Box::pin(repeat(RECONCILER, &context.metrics, changes, async || round(context, inventory, &mut fights).await))
        .await;
}

async fn round(context: &Context, inventory: &Inventory, fights: &mut Pauses) -> Result<Outcome, TaintError> {
    let configuration = context.configuration.borrow().clone();
    let plan = {
        let nodes = inventory.nodes.borrow();
        fights.retain(nodes.values().map(|node| node.name.as_str()));
        plan(&nodes, &configuration.virtual_nodes)
    };
    context.write_taints(LAST_RESORT, &plan, fights).await
}

/// Nodes whose taint is to change, and whether they are to have it: those that have it and should not, and those that lack it. A node
/// that is no longer selected loses it.
fn plan(nodes: &Store<Node>, settings: &VirtualNodes) -> Vec<(Node, bool)> {
    let wrong = nodes.values().filter_map(|node| {
        let wanted = settings.last_resort_taint && node.is_virtual(&settings.selector);
        (node.has_taint(LAST_RESORT.key, LAST_RESORT.effect) != wanted).then(|| (node.clone(), wanted))
    });
    wrong.collect()
}

/// Takes the taints of Spillway off all nodes, undoes its cordons, and returns the names of those that had any.
///
/// # Errors
///
/// What the API server answers, and [`CleanupError::Contended`] if somebody else writes to a node all the time.
pub async fn cleanup(client: &Client) -> Result<Vec<String>, CleanupError> {
    let (nodes, partial): (Api<v1::Node>, Api<NodeObject>) = (Api::all(client.clone()), Api::all(client.clone()));
    let ours = |node: &Node| OURS.into_iter().any(|taint| node.has_taint(taint.key, taint.effect));
    let tainted = list(&partial, ListParams::default(), |node| Node::read(node).filter(ours));
    let mut cleaned = Vec::new();
    for node in tainted.await.map_err(CleanupError::List)? {
        if node.has_taint(GHOST.key, GHOST.effect) && node.is_cordoned {
            let uncordoned = cordon(&nodes, &node.name, false).await;
            uncordoned.map_err(|error| CleanupError::Write(node.name.clone(), error))?;
        }
        for taint in OURS.into_iter().filter(|taint| node.has_taint(taint.key, taint.effect)) {
            let written = taints::write(&nodes, &node.name, taint, false).await;
            match written.map_err(|error| CleanupError::Write(node.name.clone(), error))? {
                Written::Right | Written::Changed => {}
                Written::Conflict | Written::Stripped => return Err(CleanupError::Contended(node.name)),
            }
        }
        cleaned.push(node.name);
    }
    Ok(cleaned)
}

/// The taints of Spillway.
const OURS: [Kept; 3] = [LAST_RESORT, FULL, GHOST];

/// Why the taints could not be taken off.
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
    #[error("somebody else writes the taints of node {0} at the same time: try again")]
    Contended(String),
}
