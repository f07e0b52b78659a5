//! Keeps the taint `spillway.dev/last-resort:PreferNoSchedule` on virtual nodes, so that pods go there only when no VM has room.
//!
//! A preferred node affinity alone leaks: with one preferred term its weight is normalised away, and the default spreading of
//! ReplicaSets outweighs it (kubernetes `pkg/scheduler/framework/plugins/tainttoleration` weighs 3, `nodeaffinity` 2,
//! `podtopologyspread` 2; virtual-kubelet/virtual-kubelet#1250).

use std::{collections::HashMap, time::Duration};

use futures_util::stream;
use k8s_openapi::api::core::v1;
use kube::{Api, Client, api::ListParams};
use tokio::time::Instant;

use super::{
    Context, TaintError, each,
    ghosts::cordon,
    observed::{Kept, Node, Observed},
    reconcile::{Outcome, repeat},
    taints::{self, FULL, GHOST, LAST_RESORT, Written},
    tally::Happening,
};
use crate::config::VirtualNodes;

const RECONCILER: &str = "last-resort";

const STRIPPED: Happening = Happening::wrong("TaintStripped");

/// Rounds, for as long as it is asked to.
pub(super) async fn run(context: &Context, observed: &Observed) {
    let changes = stream::select(each(observed.nodes.clone()), each(context.configuration.clone()));
    let mut fights = Fights::default();
    Box::pin(repeat(RECONCILER, &context.metrics, changes, async || round(context, observed, &mut fights).await)).await;
}

async fn round(context: &Context, observed: &Observed, fights: &mut Fights) -> Result<Outcome, TaintError> {
    let configuration = context.configuration.borrow().clone();
    let (now, plan) = {
        let nodes = observed.nodes.borrow();
        fights.forget_all_but(&nodes);
        (Instant::now(), plan(&nodes, &configuration.virtual_nodes))
    };
    let mut outcome = Outcome::Right;
    for Planned { node, wanted } in plan {
        if fights.is_pausing(&node.name, now) {
            continue;
        }
        match context.write_taint(&node, LAST_RESORT, wanted).await? {
            Written::Right => {}
            Written::Changed => {
                fights.won(&node.name);
                outcome = Outcome::Changed;
            }
            Written::Conflict => return Ok(Outcome::Conflict),
            Written::Stripped => {
                let pause = fights.lost(&node.name, now);
                let note = format!(
                    "the answer to our own patch lacks {}: another admission webhook takes it away; trying again in {pause:?}",
                    LAST_RESORT.key
                );
                tracing::warn!(node = node.name, ?pause, "another webhook strips our taint");
                context.tally.note(node.reference(), STRIPPED, note);
            }
        }
    }
    Ok(outcome)
}

/// A node whose taint is to change.
#[derive(Debug, PartialEq)]
struct Planned {
    node: Node,
    wanted: bool,
}

/// Those that have the taint and should not, and those that lack it. A node that is no longer selected loses it.
fn plan(nodes: &Kept<Node>, settings: &VirtualNodes) -> Vec<Planned> {
    let wrong = nodes.values().filter_map(|node| {
        let wanted = settings.last_resort_taint && node.is_virtual(&settings.selector);
        (node.has_taint(LAST_RESORT.key, LAST_RESORT.effect) != wanted).then(|| Planned { node: node.clone(), wanted })
    });
    wrong.collect()
}

/// The nodes on which another webhook takes our taint away, and when to try again.
#[derive(Debug, Default)]
struct Fights(HashMap<String, (Instant, Duration)>);

impl Fights {
    const FIRST: Duration = Duration::from_secs(5);
    const LONGEST: Duration = Duration::from_secs(600);

    fn is_pausing(&self, node: &str, now: Instant) -> bool {
        self.0.get(node).is_some_and(|(next, _)| now < *next)
    }

    /// Returns how long nothing is tried.
    fn lost(&mut self, node: &str, now: Instant) -> Duration {
        let pause = self.0.get(node).map_or(Self::FIRST, |(_, pause)| Self::LONGEST.min(*pause * 2));
        self.0.insert(node.to_owned(), (now + pause, pause));
        pause
    }

    fn won(&mut self, node: &str) {
        self.0.remove(node);
    }

    fn forget_all_but(&mut self, nodes: &Kept<Node>) {
        self.0.retain(|name, _| nodes.get(&(String::new(), name.clone())).is_some());
    }
}

/// Takes the taints of Spillway off all nodes, undoes its cordons, and returns the names of those that had any.
///
/// # Errors
///
/// What the API server answers, and [`CleanupError::Contended`] if somebody else writes to a node all the time.
pub async fn cleanup(client: &Client) -> Result<Vec<String>, CleanupError> {
    let nodes: Api<v1::Node> = Api::all(client.clone());
    let mut cleaned = Vec::new();
    let mut pages = ListParams::default().limit(PAGE);
    loop {
        let page = nodes.list(&pages).await.map_err(CleanupError::List)?;
        for node in page.items.into_iter().filter_map(Node::read) {
            if node.has_taint(GHOST.key, GHOST.effect) && node.is_cordoned {
                let uncordoned = cordon(&nodes, &node.name, false).await;
                uncordoned.map_err(|error| CleanupError::Write(node.name.clone(), error))?;
            }
            let ours = [LAST_RESORT, FULL, GHOST].into_iter().filter(|taint| node.has_taint(taint.key, taint.effect));
            let mut is_cleaned = false;
            for taint in ours {
                let written = taints::write(&nodes, &node.name, taint, false).await;
                match written.map_err(|error| CleanupError::Write(node.name.clone(), error))? {
                    Written::Right | Written::Changed => is_cleaned = true,
                    Written::Conflict | Written::Stripped => return Err(CleanupError::Contended(node.name)),
                }
            }
            cleaned.extend(is_cleaned.then_some(node.name));
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => pages.continue_token = Some(token),
            None => return Ok(cleaned),
        }
    }
}

const PAGE: u32 = 250;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fight_with_another_webhook_gets_rarer_and_ends_when_the_taint_stays() {
        let (mut fights, start) = (Fights::default(), Instant::now());
        let pauses: Vec<_> = (0..9).map(|_| fights.lost("n", start).as_secs()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        assert!(fights.is_pausing("n", start + Duration::from_secs(599)));
        assert!(!fights.is_pausing("n", start + Duration::from_secs(600)) && !fights.is_pausing("other", start));
        fights.won("n");
        assert_eq!(fights.lost("n", start), Fights::FIRST);
        fights.forget_all_but(&Kept::default());
        assert!(fights.0.is_empty(), "a node that is recreated is tried at once");
    }
}
