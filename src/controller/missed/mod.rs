//! Missed pods: pods that the webhook should have decided on and has not, because it was down or too slow.
//!
//! A missed pod without a node gets what can still be added to an existing pod. A missed pod with a node is counted and reported once.
//! If the configuration says so, the controller evicts it, so that its owner recreates it.

mod decide;
mod eviction;
mod memory;
mod plan;

use futures_util::stream;
use k8s_openapi::{api::core::v1::Namespace, jiff::Timestamp};
use kube::Api;
use tokio::time::Instant;

use self::{
    decide::Decider,
    memory::Memory,
    plan::{MissedPods, OptIn},
};
use super::{
    Context, changes_of,
    events::{EventKind, reference},
    observed::{Observed, Owned},
    pods::{PodError, apply_all},
    reconcile::{Outcome, run_rounds},
};
use crate::{
    certs::self_managed::CONFIGURATION,
    cluster::{Cluster, Snapshot, opted_in_since},
    kubernetes::{Backoff, is_unanswered},
};

const RECONCILER: &str = "missed";

const UNKNOWN: EventKind = EventKind::problem("MissedUnknown");

/// The most namespaces that are read in one round. The next round follows at once.
const MAX_NAMESPACES: usize = 50;

/// The most pods that are decided on in one round. The next round follows at once.
const MAX_PODS: usize = 200;

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
enum MissedError {
    #[error("cannot read namespace {0}")]
    Namespace(String, #[source] kube::Error),
    #[error(transparent)]
    Pod(#[from] PodError),
}

/// Runs rounds until it is dropped.
pub(super) async fn run(context: &Context, observed: &Observed, cluster: &Cluster) {
    let changes = [
        changes_of(observed.waiting.clone()),
        changes_of(observed.assigned.clone()),
        changes_of(observed.scope.clone()),
        changes_of(context.configuration.clone()),
    ];
    let mut memory = Memory::default();
    let round = async || round(context, observed, cluster, &mut memory).await;
    Box::pin(run_rounds(RECONCILER, &context.metrics, stream::select_all(changes), round)).await;
}

async fn round(
    context: &Context,
    observed: &Observed,
    cluster: &Cluster,
    memory: &mut Memory,
) -> Result<Outcome, MissedError> {
    let (configuration, snapshot) = (context.configuration.borrow().clone(), cluster.snapshot());
    if !is_complete(observed) || !cluster.unsynced().is_empty() {
        return Ok(Outcome::NotSynced);
    }
    memory.set_basis(&configuration, snapshot.virtual_nodes());
    let (is_all_read, failure) = read_namespaces(context, observed, &snapshot, memory).await?;
    let MissedPods { waiting, scheduled, unknown_condition } = find_missed(observed, memory);
    if let Some(condition) = unknown_condition {
        report_unknown(context, &condition);
    }
    let decider = Decider { context, snapshot: &snapshot, configuration: &configuration };
    memory.backoff.retain(waiting.iter().map(|pod| pod.uid.as_str()));
    let waiting = next_pods(&waiting, &memory.backoff);
    let is_all_repaired = waiting.is_empty();
    let repairs = waiting.into_iter().map(|pod| (pod.uid.clone(), decider.repair(pod)));
    let repaired = apply_all(repairs.collect(), &mut memory.backoff).await?;
    let assessed = decider.assess(&scheduled, &mut memory.assessed).await;
    let counts = plan::counts(&scheduled, |uid| memory.assessed.get(uid).map(|assessment| assessment.label));
    context.metrics.overflow.missed(counts);
    let is_all_assessed = assessed?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    // An eviction takes long, so it waits for a round without other work.
    if !(is_all_read && is_all_repaired && is_all_assessed) {
        return Ok(Outcome::Changed);
    }
    if configuration.missed.evict {
        let assessed = &memory.assessed;
        let may_evict = |uid: &String| assessed.get(uid).is_some_and(|assessment| assessment.may_evict);
        let candidates = scheduled.iter().filter(|pod| may_evict(&pod.owned.uid));
        if memory.evictions.evict_next(context, candidates).await {
            return Ok(Outcome::Changed);
        }
    }
    Ok(repaired)
}

fn is_complete(observed: &Observed) -> bool {
    observed.waiting.borrow().is_complete()
        && observed.assigned.borrow().is_complete()
        && observed.scope.borrow().is_complete()
}

/// Reads when namespaces opted in, where that is unknown. Returns whether all are known, and the first failure: a namespace that cannot
/// be read fails the round in the end, and does not hold up the others.
async fn read_namespaces(
    context: &Context,
    observed: &Observed,
    snapshot: &Snapshot,
    memory: &mut Memory,
) -> Result<(bool, Option<MissedError>), MissedError> {
    let unread = {
        let (waiting, assigned) = (observed.waiting.borrow(), observed.assigned.borrow());
        plan::unread_namespaces(&waiting, &assigned, snapshot, &memory.opted_in)
    };
    let (is_all_read, mut failure) = (unread.is_empty(), None);
    for name in unread.into_iter().take(MAX_NAMESPACES) {
        match read_opt_in(context, snapshot, &name).await {
            Ok(Some(opt_in)) => memory.set_opt_in(name, opt_in),
            Ok(None) => {}
            Err(error) if is_unanswered(&error) => return Err(MissedError::Namespace(name, error)),
            Err(error) => {
                failure.get_or_insert(MissedError::Namespace(name, error));
            }
        }
    }
    memory.opted_in.retain(|name, _| snapshot.namespace(name).is_some());
    Ok((is_all_read, failure))
}

/// Returns nothing if the namespace has opted out or is gone.
async fn read_opt_in(context: &Context, snapshot: &Snapshot, name: &str) -> kube::Result<Option<OptIn>> {
    let Some(seen) = snapshot.namespace(name) else { return Ok(None) };
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let Some(read) = namespaces.get_metadata_opt(name).await? else { return Ok(None) };
    // If no manager of the label is recorded, the opt-in counts from now.
    let since = opted_in_since(&read.metadata).unwrap_or_else(Timestamp::now);
    let labels = read.metadata.labels.unwrap_or_default();
    Ok(Some(OptIn { seen, since, labels }))
}

fn find_missed(observed: &Observed, memory: &Memory) -> MissedPods {
    let (waiting, assigned) = (observed.waiting.borrow(), observed.assigned.borrow());
    let scope = observed.scope.borrow();
    let scope = scope.get(&(String::new(), CONFIGURATION.to_owned()));
    scope.map(|scope| plan::missed(scope, &waiting, &assigned, &memory.opted_in)).unwrap_or_default()
}

fn report_unknown(context: &Context, condition: &str) {
    let note = format!(
        "missed pods are unknown: matchCondition {condition} is not the one of the manifests, and only the API server evaluates it"
    );
    let about = reference("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", None, CONFIGURATION);
    context.event_aggregator.record(about, UNKNOWN, note);
}

/// The pods that this round decides on. Pods that back off do not hold up others.
fn next_pods<'p>(waiting: &'p [Owned], backoff: &Backoff) -> Vec<&'p Owned> {
    let now = Instant::now();
    waiting.iter().filter(|pod| backoff.remaining(&pod.uid, now).is_none()).take(MAX_PODS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_back_off_do_not_hold_up_others() {
        let pod = |number: usize| Owned { uid: number.to_string(), ..Owned::default() };
        let waiting: Vec<_> = (0..=MAX_PODS).map(pod).collect();
        let mut backoff = Backoff::default();
        let first = next_pods(&waiting, &backoff);
        assert_eq!(first.len(), MAX_PODS);
        for pod in first {
            backoff.start(&pod.uid, Instant::now());
        }
        assert_eq!(next_pods(&waiting, &backoff), [&pod(MAX_PODS)]);
    }
}
