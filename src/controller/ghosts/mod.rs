//! Reports ghosts: virtual nodes whose pod no longer exists. Cordons them if `virtualNodes.cordonGhosts` is on.
//!
//! A pod runs each virtual node of the second generation, and labels of the node name that pod. When a scale-down of the release deletes
//! the pod, the Node is left behind and shows Ready, and pods that are bound to it hang
//! (microsoft/virtualnodesOnAzureContainerInstances Docs/NodeCustomizations.md). A node without these labels is never a ghost.

mod plan;

use futures_util::stream;
use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, jsonptr::PointerBuf};
use k8s_openapi::api::core::v1::{Node as ApiNode, Pod};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use plan::{MissingPods, Step};
use tokio::time::Instant;

use super::{
    changes::changes_of,
    context::Context,
    events::EventKind,
    names::FIELD_MANAGER,
    pod_writes::PodError,
    reconcile::{CombinedOutcome, Outcome, Requeue, run_rounds},
    taints::{GHOST, TaintError},
};
use crate::{
    cluster::{Inventory, Node},
    kubernetes::{Backoff, ObjectKey, is_conflict},
};

const RECONCILER: &str = "ghosts";

const FOUND: EventKind = EventKind::problem("GhostNode");
const CORDONED: EventKind = EventKind::warning("GhostNodeCordoned");
const BACK: EventKind = EventKind::action("GhostNodeBack");

/// The labels that name the pod of a virtual node of the second generation.
const POD_NAME: &str = "microsoft.containerinstance.virtualnode.podname";
const POD_NAMESPACE: &str = "microsoft.containerinstance.virtualnode.podns";

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
enum GhostError {
    #[error(transparent)]
    Pod(#[from] PodError),
    #[error(transparent)]
    Taint(#[from] TaintError),
    #[error("cannot cordon or uncordon node {0}")]
    Cordon(String, #[source] kube::Error),
}

/// Runs rounds until the future is dropped.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let requeue = Requeue::default();
    let changes = [changes_of(inventory.nodes.clone()), changes_of(context.configuration.clone()), requeue.due()];
    let mut state = ReconcilerState::default();
    let round = async || round(context, inventory, &requeue, &mut state).await;
    Box::pin(run_rounds(RECONCILER, &context.metrics, stream::select_all(changes), round)).await;
}

/// The state between rounds. A new leader starts with an empty state.
#[derive(Debug, Default)]
struct ReconcilerState {
    missing: MissingPods,
    /// Nodes whose taint another webhook strips.
    backoff: Backoff,
}

async fn round(
    context: &Context,
    inventory: &Inventory,
    requeue: &Requeue,
    state: &mut ReconcilerState,
) -> Result<Outcome, GhostError> {
    let settings = context.configuration.borrow().virtual_nodes.clone();
    let nodes: Vec<_> = {
        let nodes = inventory.nodes.borrow();
        if !nodes.is_listed() {
            return Ok(Outcome::NotSynced);
        }
        state.backoff.retain(nodes.values().map(|node| node.name.as_str()));
        let is_relevant = |node: &&Node| node.is_virtual(&settings.selector) || GHOST.is_on_observed(node);
        nodes.values().filter(is_relevant).cloned().collect()
    };
    state.missing.retain(&nodes);
    let mut combined = CombinedOutcome::default();
    for node in &nodes {
        combined.add(reconcile_node(context, node, settings.cordon_ghosts, state).await);
    }
    let now = Instant::now();
    context.metrics.overflow.ghosts(state.missing.ghosts(now));
    if let Some(next) = state.missing.next_ghost(now) {
        requeue.after(next);
    }
    combined.outcome()
}

/// Checks whether the pod of a node exists, and takes the next step.
async fn reconcile_node(
    context: &Context,
    node: &Node,
    may_cordon: bool,
    ReconcilerState { missing, backoff }: &mut ReconcilerState,
) -> Result<Outcome, GhostError> {
    let pod = node_pod(node);
    let is_there = match &pod {
        Some(pod) => exists(&context.client, pod).await?,
        None => true,
    };
    let is_ghost = missing.update(&node.name, is_there, Instant::now());
    if is_ghost {
        let pod = pod.unwrap_or_default();
        let message = format!(
            "pod {pod}, which runs this virtual node, no longer exists: pods that are bound to this node hang. To remove the node: kubectl delete node {}",
            node.name
        );
        context.event_aggregator.record(node.reference(), FOUND, message);
    }
    // The pod may be missing only for a moment, so the controller does not change the node yet.
    let is_undecided = !is_there && !is_ghost;
    let step = if is_undecided { None } else { Step::next(node, is_ghost && may_cordon) };
    match step {
        None => Ok(Outcome::UpToDate),
        Some(Step::AddTaint) => Ok(context.reconcile_taint(node, GHOST, true, backoff).await?),
        Some(Step::RemoveTaint) => Ok(context.reconcile_taint(node, GHOST, false, backoff).await?),
        Some(Step::Cordon) => {
            cordon_and_report(context, node, true, "cordoned: the pod that runs this virtual node no longer exists")
                .await
        }
        Some(Step::Uncordon) => cordon_and_report(context, node, false, uncordon_note(is_ghost)).await,
    }
}

/// Why a node is no longer cordoned.
fn uncordon_note(is_ghost: bool) -> &'static str {
    if is_ghost {
        "uncordoned: virtualNodes.cordonGhosts is off, but the pod that runs this virtual node still does not exist"
    } else {
        "uncordoned: the pod that runs this virtual node exists again"
    }
}

/// Returns the pod that runs a node. Returns `None` if no labels name a pod.
fn node_pod(node: &Node) -> Option<ObjectKey> {
    Some(ObjectKey::new(node.label(POD_NAMESPACE)?, node.label(POD_NAME)?))
}

async fn exists(client: &Client, pod: &ObjectKey) -> Result<bool, PodError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let read = pods.get_metadata_opt(&pod.name).await;
    Ok(read.map_err(|error| PodError::new("read", pod, error))?.is_some())
}

async fn cordon_and_report(
    context: &Context,
    node: &Node,
    desired: bool,
    message: &str,
) -> Result<Outcome, GhostError> {
    let nodes: Api<ApiNode> = Api::all(context.client.clone());
    let (action, kind) = if desired { ("cordon", CORDONED) } else { ("uncordon", BACK) };
    let (result, outcome) = match set_cordon(&nodes, &node.name, desired).await {
        Ok(()) => ("success", Ok(Outcome::Changed)),
        Err(error) if is_conflict(&error) => ("conflict", Ok(Outcome::Conflict)),
        Err(error) => ("failure", Err(GhostError::Cordon(node.name.clone(), error))),
    };
    context.metrics.overflow.acted(action, result);
    if result == "success" {
        tracing::warn!(node = node.name, action, "{message}");
        context.event_aggregator.record(node.reference(), kind, message.to_owned());
    }
    outcome
}

/// Cordons or uncordons a node.
pub(super) async fn set_cordon(nodes: &Api<ApiNode>, name: &str, desired: bool) -> Result<(), kube::Error> {
    let path = PointerBuf::from_tokens(["spec", "unschedulable"]);
    let operations = vec![PatchOperation::Add(AddOperation { path, value: desired.into() })];
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    nodes.patch_metadata(name, &params, &Patch::Json::<()>(JsonPatch(operations))).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uncordoned_ghost_is_not_reported_as_back() {
        assert!(uncordon_note(true).contains("cordonGhosts is off") && uncordon_note(false).contains("exists again"));
    }
}
