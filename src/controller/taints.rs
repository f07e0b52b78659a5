//! The taints that Spillway keeps on virtual nodes: one is put on or taken off at a time, and nothing else of a node is touched.

use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, RemoveOperation, jsonptr::PointerBuf};
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Context, FIELD_MANAGER, Outcome, guarded, is_conflict, pauses::Pauses, tally::Happening};
use crate::{
    cluster,
    config::{FULL_TAINT, LAST_RESORT_TAINT},
};

/// Keeps pods that prefer VMs on VMs while these have room: the scheduler avoids a node with it, and no toleration of ours covers it.
pub(super) const LAST_RESORT: Kept = Kept { key: LAST_RESORT_TAINT, effect: "PreferNoSchedule" };

/// Closes virtual nodes to every pod that does not tolerate it.
pub(super) const FULL: Kept = Kept { key: FULL_TAINT, effect: "NoSchedule" };

/// Says of a virtual node that nobody runs that its cordon is ours.
pub(super) const GHOST: Kept = Kept { key: "spillway.dev/ghost", effect: "NoSchedule" };

/// A taint of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) key: &'static str,
    pub(super) effect: &'static str,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// The node is as it should be, without us, or is no more.
    Right,
    /// We have written it.
    Changed,
    /// Somebody else writes to the node all the time.
    Conflict,
    /// The API server's answer lacks what we wrote: another webhook takes it away.
    Stripped,
}

/// How often a conflict is met with another look at the node.
const ATTEMPTS: usize = 5;

/// Puts the taint on a node, or takes it off. Everything that others write meanwhile stays.
///
/// # Errors
///
/// What the API server answers, but for conflicts.
pub(super) async fn write(nodes: &Api<Node>, name: &str, taint: Kept, wanted: bool) -> Result<Written, kube::Error> {
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    for attempt in 1..=ATTEMPTS {
        let Some(node) = nodes.get_opt(name).await? else { return Ok(Written::Right) };
        let Some(patch) = taint.plan(&node, wanted) else { return Ok(Written::Right) };
        match nodes.patch(name, &params, &Patch::Json::<()>(patch)).await {
            Ok(node) if taint.is_on(&node) == wanted => return Ok(Written::Changed),
            Ok(_) => return Ok(Written::Stripped),
            Err(error) if is_conflict(&error) => {}
            // A patch of a place in a list that has become shorter, which is answered so before the version is compared.
            Err(kube::Error::Api(status)) if status.code == 422 && attempt < ATTEMPTS => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Written::Conflict)
}

impl Kept {
    fn is_ours(self, taint: &Taint) -> bool {
        taint.key == self.key && taint.effect == self.effect
    }

    fn is_on(self, node: &Node) -> bool {
        taints(node).is_some_and(|taints| taints.iter().any(|taint| self.is_ours(taint)))
    }

    /// What is to be written to this version of the node; nothing if it is as wanted.
    fn plan(self, node: &Node, wanted: bool) -> Option<JsonPatch> {
        let place = taints(node).and_then(|taints| taints.iter().position(|taint| self.is_ours(taint)));
        let change = match (place, wanted) {
            (Some(_), true) | (None, false) => return None,
            (Some(place), false) => {
                let path = PointerBuf::from_tokens(["spec", "taints", &place.to_string()]);
                PatchOperation::Remove(RemoveOperation { path })
            }
            (None, true) => {
                let taint = json!({"key": self.key, "effect": self.effect});
                let (path, value) = match taints(node) {
                    Some(_) => (PointerBuf::from_tokens(["spec", "taints", "-"]), taint),
                    None => (PointerBuf::from_tokens(["spec", "taints"]), Value::Array(vec![taint])),
                };
                PatchOperation::Add(AddOperation { path, value })
            }
        };
        // The list is patched by index: it has to be the one that was seen.
        Some(guarded(node.metadata.resource_version.as_deref()?, JsonPatch(vec![change])))
    }
}

fn taints(node: &Node) -> Option<&[Taint]> {
    node.spec.as_ref()?.taints.as_deref()
}

const STRIPPED: Happening = Happening::wrong("TaintStripped");
const WRITTEN: Happening = Happening::done("LastResortTaint");

/// Why a taint could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the taint {taint} of node {node}")]
pub(super) struct TaintError {
    taint: &'static str,
    node: String,
    #[source]
    source: kube::Error,
}

impl Context {
    /// Puts a taint on nodes, or takes it off, as it is wanted of each. One that cannot be written keeps no other from its turn.
    pub(super) async fn write_taints(
        &self,
        taint: Kept,
        nodes: &[(cluster::Node, bool)],
        fights: &mut Pauses,
    ) -> Result<Outcome, TaintError> {
        let mut all = All::default();
        for (node, wanted) in nodes {
            all.add(self.write_taint(node, taint, *wanted, fights).await);
        }
        all.outcome()
    }

    /// Puts a taint on a node or takes it off; counts, logs and tells that. Where another webhook takes it away, it is left at that for
    /// a while.
    pub(super) async fn write_taint(
        &self,
        node: &cluster::Node,
        taint: Kept,
        wanted: bool,
        fights: &mut Pauses,
    ) -> Result<Outcome, TaintError> {
        if fights.rest(&node.name, Instant::now()).is_some() {
            return Ok(Outcome::Right);
        }
        let written = write(&Api::all(self.client.clone()), &node.name, taint, wanted).await;
        let (result, outcome) = match &written {
            Ok(Written::Right) => return Ok(Outcome::Right),
            Ok(Written::Changed) => ("success", Outcome::Changed),
            Ok(Written::Conflict) => ("conflict", Outcome::Conflict),
            Ok(Written::Stripped) => ("stripped", Outcome::Right),
            Err(_) => ("failure", Outcome::Conflict),
        };
        self.metrics.overflow.acted(if wanted { "add_taint" } else { "remove_taint" }, result);
        match written {
            Ok(Written::Changed) => {
                fights.end(&node.name);
                self.tell_of_taint(node, taint, wanted);
            }
            Ok(Written::Stripped) => {
                let pause = fights.tries(&node.name, Instant::now());
                let told = format!(
                    "the answer to our own patch has {} otherwise than we wrote it: another admission webhook is at work; not trying again within {pause:?}",
                    taint.key
                );
                tracing::warn!(node = node.name, taint = taint.key, ?pause, "another webhook undoes what we write");
                self.tally.note(node.reference(), STRIPPED, told);
            }
            Ok(Written::Right | Written::Conflict) => {}
            Err(source) => return Err(TaintError { taint: taint.key, node: node.name.clone(), source }),
        }
        Ok(outcome)
    }

    /// Why the other taints come and go is told by those who want it.
    fn tell_of_taint(&self, node: &cluster::Node, taint: Kept, wanted: bool) {
        tracing::info!(node = node.name, taint = taint.key, is_on = wanted, "wrote a taint");
        if taint == LAST_RESORT {
            let told = if wanted {
                "has the taint of the last resort now: pods come here when no VM has room"
            } else {
                "has the taint of the last resort no longer: pods may come here while VMs have room"
            };
            self.tally.note(node.reference(), WRITTEN, told.to_owned());
        }
    }
}

/// What a round over many nodes comes to: its first error, or that somebody else has written to one, or that something was done.
#[derive(Debug)]
pub(super) struct All<E>(Result<Outcome, E>);

impl<E> Default for All<E> {
    fn default() -> Self {
        Self(Ok(Outcome::Right))
    }
}

impl<E> All<E> {
    pub(super) fn add(&mut self, one: Result<Outcome, E>) {
        match (&self.0, one) {
            (Err(_), _) | (_, Ok(Outcome::Right)) | (Ok(Outcome::Conflict), Ok(_)) => {}
            (_, one) => self.0 = one,
        }
    }

    pub(super) fn outcome(self) -> Result<Outcome, E> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use axum::http;
    use kube::{Client, client::Body};

    use super::*;
    use crate::{
        controller::{events::Events, tally::Tally},
        telemetry::ControllerMetrics,
    };

    fn node(taints: Option<Value>) -> Node {
        let mut node = json!({"metadata": {"name": "n", "resourceVersion": "7"}, "spec": {}});
        if let Some(taints) = taints {
            node["spec"]["taints"] = taints;
        }
        serde_json::from_value(node).unwrap()
    }

    fn after(node: &Node, wanted: bool) -> Option<Value> {
        let mut value = serde_json::to_value(node).unwrap();
        json_patch::patch(&mut value, &LAST_RESORT.plan(node, wanted)?).unwrap();
        Some(value["spec"]["taints"].clone())
    }

    #[test]
    fn every_other_taint_stays_as_it_is() {
        let azure = json!({"key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule"});
        // The same key with another effect is another taint, and not ours.
        let alike = json!({"key": "spillway.dev/last-resort", "effect": "NoSchedule"});
        let ours = json!({"key": "spillway.dev/last-resort", "effect": "PreferNoSchedule"});
        let valued = json!({"key": "spillway.dev/last-resort", "value": "x", "effect": "PreferNoSchedule"});
        assert_eq!(after(&node(None), true), Some(json!([ours])));
        assert_eq!(after(&node(Some(json!([azure, alike]))), true), Some(json!([azure, alike, ours])));
        assert_eq!(after(&node(Some(json!([azure, ours, alike]))), false), Some(json!([azure, alike])));
        assert_eq!(after(&node(Some(json!([ours]))), true), None);
        assert_eq!(after(&node(Some(json!([valued]))), true), None, "the scheduler does not look at the value");
        assert_eq!(after(&node(Some(json!([azure]))), false), None);
        assert_eq!(after(&node(None), false), None);
    }

    #[test]
    fn a_node_that_has_changed_since_is_not_written() {
        let patch = LAST_RESORT.plan(&node(None), true).unwrap();
        let mut newer = json!({"metadata": {"resourceVersion": "8"}, "spec": {}});
        json_patch::patch(&mut newer, &patch).unwrap();
        assert_eq!(newer["metadata"]["resourceVersion"], "7", "for the API server to refuse");
    }

    /// An API server whose nodes have no taints: `forbidden` cannot be written, and what is written to `stripped` is not kept.
    fn context() -> Context {
        let server = tower::service_fn(async |request: http::Request<Body>| {
            let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let taints = match (request.method(), name.as_str()) {
                (&http::Method::PATCH, "open") => json!([{"key": LAST_RESORT.key, "effect": LAST_RESORT.effect}]),
                _ => json!([]),
            };
            let (status, body) = match (request.method(), name.as_str()) {
                (&http::Method::PATCH, "forbidden") => (403, json!({"status": "Failure", "code": 403})),
                _ => (200, json!({"metadata": {"name": name, "resourceVersion": "7"}, "spec": {"taints": taints}})),
            };
            let body = Body::from(body.to_string().into_bytes());
            Ok::<_, Infallible>(http::Response::builder().status(status).body(body).unwrap())
        });
        let client = Client::new(server, "default");
        Context {
            events: Events::new(client.clone(), "pod"),
            client,
            namespace: "spillway-system".to_owned(),
            configuration: tokio::sync::watch::Sender::new(std::sync::Arc::default()).subscribe(),
            tally: Tally::default(),
            metrics: ControllerMetrics::default(),
        }
    }

    #[tokio::test]
    async fn one_node_that_cannot_be_written_keeps_no_other_from_its_turn_and_what_is_done_and_undone_is_told() {
        let (context, mut fights) = (context(), Pauses::default());
        let node = |name: &str| (cluster::Node { name: name.to_owned(), ..cluster::Node::default() }, true);
        let nodes = ["forbidden", "stripped", "open"].map(node);
        let error = context.write_taints(LAST_RESORT, &nodes, &mut fights).await.unwrap_err();
        assert_eq!(error.node, "forbidden");
        let told = |context: &Context| {
            let told = context.tally.due(Instant::now()).into_iter();
            told.map(|(about, happening, _)| (about.name.unwrap(), happening.reason)).collect::<Vec<_>>()
        };
        let expected = [("open", "LastResortTaint"), ("stripped", "TaintStripped")];
        assert_eq!(told(&context), expected.map(|(node, reason)| (node.to_owned(), reason)));
        assert!(fights.rest("stripped", Instant::now()).is_some() && fights.rest("open", Instant::now()).is_none());
        let (context, mut fights) = (self::context(), Pauses::default());
        context.write_taints(FULL, &nodes[1..2], &mut fights).await.unwrap();
        assert_eq!(told(&context), [("stripped".to_owned(), "TaintStripped")], "whichever taint it is");
    }

    #[tokio::test]
    async fn a_patch_of_a_list_that_has_become_shorter_is_made_anew_a_few_times() {
        for (refusals, expected) in [(ATTEMPTS - 1, Ok(Written::Changed)), (ATTEMPTS, Err(422))] {
            let patches = AtomicUsize::new(0);
            let server = tower::service_fn(move |request: http::Request<Body>| {
                let is_patch = request.method() == http::Method::PATCH;
                let taints = if is_patch { json!([{"key": FULL.key, "effect": FULL.effect}]) } else { json!([]) };
                let (status, body) = if is_patch && patches.fetch_add(1, Ordering::Relaxed) < refusals {
                    (422, json!({"status": "Failure", "reason": "Invalid", "code": 422}))
                } else {
                    (200, json!({"metadata": {"name": "n", "resourceVersion": "7"}, "spec": {"taints": taints}}))
                };
                let answer = http::Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
                std::future::ready(Ok::<_, Infallible>(answer.unwrap()))
            });
            let nodes = Api::all(Client::new(server, "default"));
            let written = write(&nodes, "n", FULL, true).await.map_err(|error| match error {
                kube::Error::Api(status) => status.code,
                _ => 0,
            });
            assert_eq!(written, expected, "{refusals}");
        }
    }

    #[test]
    fn what_many_writes_come_to_is_the_first_error_then_a_conflict_then_a_change() {
        let all = |outcomes: &[Result<Outcome, u8>]| {
            let mut all = All::default();
            for one in outcomes {
                all.add(*one);
            }
            all.outcome()
        };
        let (right, changed, conflict) = (Ok(Outcome::Right), Ok(Outcome::Changed), Ok(Outcome::Conflict));
        assert_eq!(all(&[right, right]), right);
        assert_eq!(all(&[right, changed, right]), changed);
        assert_eq!(all(&[changed, conflict, changed]), conflict);
        assert_eq!(all(&[conflict, Err(1), changed, Err(2)]), Err(1));
    }
}
