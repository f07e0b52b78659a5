//! Reports virtual nodes that nobody runs any more, and cordons them where the configuration says so.
//!
//! A virtual node of the second generation is run by a pod, which its labels name. When that pod is gone, as after a scale-down of its
//! release, the Node stays, shows Ready, and pods that are bound to it hang
//! (microsoft/virtualnodesOnAzureContainerInstances Docs/NodeCustomizations.md). A node without these labels is never called a ghost.

use std::{collections::HashMap, time::Duration};

use futures_util::stream;
use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, jsonptr::PointerBuf};
use k8s_openapi::api::core::v1::{Node as ApiNode, Pod};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use tokio::time::Instant;

use super::{
    Context, FIELD_MANAGER, each, is_conflict,
    pauses::Pauses,
    pods::PodError,
    reconcile::{Alarm, Outcome, repeat},
    taints::{All, GHOST, TaintError},
    tally::Happening,
};
use crate::{
    cluster::{Inventory, Node},
    kubernetes::ObjectKey,
};

const RECONCILER: &str = "ghosts";

const FOUND: Happening = Happening::wrong("GhostNode");
const CORDONED: Happening = Happening { is_warning: true, ..Happening::done("GhostNodeCordoned") };
const BACK: Happening = Happening::done("GhostNodeBack");

/// The labels that name the pod which runs a virtual node of the second generation.
const POD_NAME: &str = "microsoft.containerinstance.virtualnode.podname";
const POD_NAMESPACE: &str = "microsoft.containerinstance.virtualnode.podns";

/// For how long it must be gone: a StatefulSet replaces its pod under the same name within seconds.
const GONE: Duration = Duration::from_secs(25);

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

/// Rounds, for as long as it is asked to.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let alarm = Alarm::default();
    let changes = [each(inventory.nodes.clone()), each(context.configuration.clone()), alarm.rings()];
    let (mut gone, mut fights) = (Gone::default(), Pauses::default());
    let round = async || round(context, inventory, &alarm, &mut gone, &mut fights).await;
    Box::pin(repeat(RECONCILER, &context.metrics, stream::select_all(changes), round)).await;
}

async fn round(
    context: &Context,
    inventory: &Inventory,
    alarm: &Alarm,
    gone: &mut Gone,
    fights: &mut Pauses,
) -> Result<Outcome, GhostError> {
    let settings = context.configuration.borrow().virtual_nodes.clone();
    let nodes: Vec<_> = {
        let nodes = inventory.nodes.borrow();
        if !nodes.is_listed() {
            return Ok(Outcome::Early);
        }
        fights.retain(nodes.values().map(|node| node.name.as_str()));
        nodes
            .values()
            .filter(|node| node.is_virtual(&settings.selector) || node.has_taint(GHOST.key, GHOST.effect))
            .cloned()
            .collect()
    };
    gone.forget_all_but(&nodes);
    let mut all = All::default();
    for node in &nodes {
        all.add(attend(context, node, settings.cordon_ghosts, gone, fights).await);
    }
    let now = Instant::now();
    context.metrics.overflow.ghosts(gone.ghosts(now));
    if let Some(next) = gone.next(now) {
        alarm.set(next);
    }
    all.outcome()
}

/// Looks whether anybody runs the node, and does the next thing about it.
async fn attend(
    context: &Context,
    node: &Node,
    may_cordon: bool,
    gone: &mut Gone,
    fights: &mut Pauses,
) -> Result<Outcome, GhostError> {
    let is_there = match infrastructure(node) {
        Some(pod) => exists(&context.client, &pod).await?,
        None => true,
    };
    let is_ghost = gone.look(&node.name, is_there, Instant::now());
    if is_ghost {
        let ObjectKey { namespace, name: pod } = infrastructure(node).unwrap_or_default();
        let told = format!(
            "pod {namespace}/{pod}, which runs this virtual node, is gone: pods that are bound to it hang. If it is not coming back: kubectl delete node {}",
            node.name
        );
        context.tally.note(node.reference(), FOUND, told);
    }
    // Missing for a moment only: leave it as it is.
    let is_undecided = !is_there && !is_ghost;
    let step = if is_undecided { None } else { next(node, is_ghost && may_cordon) };
    match step {
        None => Ok(Outcome::Right),
        Some(Step::Mark) => Ok(context.write_taint(node, GHOST, true, fights).await?),
        Some(Step::Unmark) => Ok(context.write_taint(node, GHOST, false, fights).await?),
        Some(Step::Cordon) => set_cordon(context, node, true, "cordoned: nobody runs this virtual node").await,
        Some(Step::Uncordon) => set_cordon(context, node, false, uncordoned(is_ghost)).await,
    }
}

/// Why a node is no longer cordoned.
fn uncordoned(is_ghost: bool) -> &'static str {
    if is_ghost {
        "uncordoned: nobody runs it, but virtualNodes.cordonGhosts is off"
    } else {
        "uncordoned: it is run again"
    }
}

/// The pod that runs the node, if its labels name one.
fn infrastructure(node: &Node) -> Option<ObjectKey> {
    Some(ObjectKey::new(node.label(POD_NAMESPACE)?, node.label(POD_NAME)?))
}

async fn exists(client: &Client, pod: &ObjectKey) -> Result<bool, PodError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let read = pods.get_metadata_opt(&pod.name).await;
    Ok(read.map_err(|error| PodError::new("read", pod, error))?.is_some())
}

/// Since when pods have been missing, by the names of the nodes that they run.
#[derive(Debug, Default)]
struct Gone(HashMap<String, Instant>);

impl Gone {
    /// Whether the node is a ghost: its pod has been missing for a while, each time that somebody looked.
    fn look(&mut self, node: &str, is_there: bool, now: Instant) -> bool {
        if is_there {
            self.0.remove(node);
            return false;
        }
        let since = *self.0.entry(node.to_owned()).or_insert(now);
        now.duration_since(since) >= GONE
    }

    /// How many are ghosts, as far as anybody could look.
    fn ghosts(&self, now: Instant) -> usize {
        self.0.values().filter(|since| now.duration_since(**since) >= GONE).count()
    }

    /// How long it is until the next will be one, if its pod stays away.
    fn next(&self, now: Instant) -> Option<Duration> {
        let rests = self.0.values().map(|since| (*since + GONE).saturating_duration_since(now));
        rests.filter(|rest| !rest.is_zero()).min()
    }

    fn forget_all_but(&mut self, nodes: &[Node]) {
        self.0.retain(|name, _| nodes.iter().any(|node| node.name == *name));
    }
}

/// What is to be done about a node next. The taint says that the cordon is ours, so that what others have cordoned stays so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Mark,
    Cordon,
    Uncordon,
    Unmark,
}

fn next(node: &Node, wanted: bool) -> Option<Step> {
    match (wanted, node.has_taint(GHOST.key, GHOST.effect), node.is_cordoned) {
        // Somebody else has cordoned it: there is nothing to do.
        (true, _, true) | (false, false, _) => None,
        (true, false, false) => Some(Step::Mark),
        (true, true, false) => Some(Step::Cordon),
        (false, true, true) => Some(Step::Uncordon),
        (false, true, false) => Some(Step::Unmark),
    }
}

async fn set_cordon(context: &Context, node: &Node, wanted: bool, told: &str) -> Result<Outcome, GhostError> {
    let nodes: Api<ApiNode> = Api::all(context.client.clone());
    let (action, happening) = if wanted { ("cordon", CORDONED) } else { ("uncordon", BACK) };
    let (result, outcome) = match cordon(&nodes, &node.name, wanted).await {
        Ok(()) => ("success", Ok(Outcome::Changed)),
        Err(error) if is_conflict(&error) => ("conflict", Ok(Outcome::Conflict)),
        Err(error) => ("failure", Err(GhostError::Cordon(node.name.clone(), error))),
    };
    context.metrics.overflow.acted(action, result);
    if result == "success" {
        tracing::warn!(node = node.name, action, "{told}");
        context.tally.note(node.reference(), happening, told.to_owned());
    }
    outcome
}

/// Keeps the scheduler from a node, or no longer.
pub(super) async fn cordon(nodes: &Api<ApiNode>, name: &str, wanted: bool) -> Result<(), kube::Error> {
    let path = PointerBuf::from_tokens(["spec", "unschedulable"]);
    let operations = vec![PatchOperation::Add(AddOperation { path, value: wanted.into() })];
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    nodes.patch_metadata(name, &params, &Patch::Json::<()>(JsonPatch(operations))).await.map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(is_marked: bool, is_cordoned: bool) -> Node {
        let taints = if is_marked { json!([{"key": GHOST.key, "effect": GHOST.effect}]) } else { json!([]) };
        let spec = json!({"taints": taints, "unschedulable": is_cordoned});
        Node::read(serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": spec})).unwrap()).unwrap()
    }

    #[test]
    fn a_node_is_a_ghost_whose_pod_has_been_missing_for_a_while() {
        let (mut gone, start) = (Gone::default(), Instant::now());
        assert!(!gone.look("v", false, start) && !gone.look("v", false, start + GONE / 2));
        assert_eq!(gone.ghosts(start + GONE / 2), 0);
        assert_eq!((gone.next(start + GONE / 2), gone.next(start + GONE)), (Some(GONE / 2), None));
        assert!(gone.look("v", false, start + GONE));
        assert_eq!(gone.ghosts(start + GONE), 1);
        assert!(!gone.look("v", true, start + GONE) && !gone.look("v", false, start + GONE), "it was there in between");
        gone.forget_all_but(&[]);
        assert!(gone.0.is_empty());
    }

    #[test]
    fn what_we_have_cordoned_is_uncordoned_and_what_others_have_cordoned_is_not() {
        for (wanted, is_marked, is_cordoned, expected) in [
            (true, false, false, Some(Step::Mark)),
            (true, true, false, Some(Step::Cordon)),
            (true, true, true, None),
            (true, false, true, None),
            (false, true, true, Some(Step::Uncordon)),
            (false, true, false, Some(Step::Unmark)),
            (false, false, true, None),
            (false, false, false, None),
        ] {
            assert_eq!(next(&node(is_marked, is_cordoned), wanted), expected, "{wanted} {is_marked} {is_cordoned}");
        }
    }

    #[test]
    fn a_node_that_nobody_runs_is_not_said_to_be_run_again_when_its_cordon_is_taken_back() {
        assert!(uncordoned(true).contains("cordonGhosts is off") && uncordoned(false).contains("run again"));
    }
}
