//! Pods that the webhook should have seen and has not: it was down, or too slow, when they were created.
//!
//! One that has found no node yet gets now what can still be given to a living pod. One that has a node is counted, and told of once;
//! it is evicted, to be created anew, only where the configuration says so.

mod eviction;
mod plan;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt, stream};
use k8s_openapi::{
    api::core::v1::{Namespace, ObjectReference, Pod as ApiPod},
    jiff::Timestamp,
};
use kube::{
    Api, Resource,
    api::{Patch, Request},
};
use plan::{Found, OptIn, Scheduled};
use serde_json::Value;
use tokio::time::Instant;

use self::eviction::Evictions;
use super::{
    Context, each,
    events::reference,
    guarded, is_unanswered,
    observed::{Name, Observed, Owned},
    pauses::Pauses,
    pods::{AT_ONCE, PodError, together, write},
    reconcile::{Outcome, repeat},
    tally::Happening,
};
use crate::{
    burst::{self, DECISION, Decision, ServiceAccount, Verdict},
    certs::self_managed::WEBHOOK_CONFIGURATION_NAME,
    cluster::{Cluster, Snapshot, opted_in_since},
    config::{Configuration, Overrides},
    eligibility::VirtualNode,
    pod::{Pod, from_json},
};

const RECONCILER: &str = "missed";

const HEALED: Happening = Happening::done("MissedPodHealed");
const MISSED: Happening = Happening::wrong("PodMissed");
const UNKNOWN: Happening = Happening::wrong("MissedUnknown");

/// What is done in one round. The next follows at once where more is left.
const NAMESPACES: usize = 50;
const PODS: usize = 200;

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
enum MissedError {
    #[error("cannot read namespace {0}")]
    Namespace(String, #[source] kube::Error),
    #[error(transparent)]
    Pod(#[from] PodError),
}

/// Rounds, for as long as it is asked to.
pub(super) async fn run(context: &Context, observed: &Observed, cluster: &Cluster) {
    let changes = [
        each(observed.waiting.clone()),
        each(observed.assigned.clone()),
        each(observed.scope.clone()),
        each(context.configuration.clone()),
    ];
    let mut memory = Memory::default();
    let round = async || round(context, observed, cluster, &mut memory).await;
    Box::pin(repeat(RECONCILER, &context.metrics, stream::select_all(changes), round)).await;
}

/// What is known from one round to the next. A new leader begins without it.
#[derive(Debug, Default)]
struct Memory {
    /// Namespaces that have opted in, and since when.
    opted_in: HashMap<String, OptIn>,
    /// The uids of scheduled pods that were missed, and what would be decided on them.
    judged: HashMap<String, Judged>,
    /// By which configuration that was judged, and with which virtual nodes.
    basis: Option<(Arc<Configuration>, Vec<VirtualNode>)>,
    evictions: Evictions,
    pauses: Pauses,
}

/// What would be decided on a pod that was missed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Judged {
    namespace: String,
    /// For the metric; a closed set.
    word: &'static str,
    /// Whether it may be evicted to that end.
    may_go: bool,
}

async fn round(
    context: &Context,
    observed: &Observed,
    cluster: &Cluster,
    memory: &mut Memory,
) -> Result<Outcome, MissedError> {
    let (configuration, snapshot) = (context.configuration.borrow().clone(), cluster.snapshot());
    let is_complete = observed.waiting.borrow().is_complete()
        && observed.assigned.borrow().is_complete()
        && observed.scope.borrow().is_complete();
    if !is_complete || !cluster.unsynced().is_empty() {
        return Ok(Outcome::Early);
    }
    memory.judge_by(&configuration, snapshot.virtual_nodes());
    let unread = {
        let (waiting, assigned) = (observed.waiting.borrow(), observed.assigned.borrow());
        plan::unread(&waiting, &assigned, &snapshot, &memory.opted_in)
    };
    // One that cannot be read fails the round, and keeps no other from being looked at.
    let (is_all_read, mut failure) = (unread.is_empty(), None);
    for name in unread.into_iter().take(NAMESPACES) {
        if let Err(error) = memory.read_namespace(context, &snapshot, &name).await {
            let is_unanswered = is_unanswered(&error);
            let error = MissedError::Namespace(name, error);
            if is_unanswered {
                return Err(error);
            }
            failure.get_or_insert(error);
        }
    }
    memory.opted_in.retain(|name, _| snapshot.namespace(name).is_some());
    let found = {
        let (waiting, assigned) = (observed.waiting.borrow(), observed.assigned.borrow());
        let scope = observed.scope.borrow();
        let scope = scope.get(&(String::new(), WEBHOOK_CONFIGURATION_NAME.to_owned()));
        scope.map(|scope| plan::missed(scope, &waiting, &assigned, &memory.opted_in)).unwrap_or_default()
    };
    let Found { waiting, scheduled, depends } = found;
    if let Some(condition) = depends {
        let note = format!(
            "nobody can tell which pods were missed: matchCondition {condition} is not the one of the manifests, and only the API server evaluates it"
        );
        let about = reference(
            "admissionregistration.k8s.io/v1",
            "MutatingWebhookConfiguration",
            None,
            WEBHOOK_CONFIGURATION_NAME,
        );
        context.tally.note(about, UNKNOWN, note);
    }
    let decide = Decide { context, snapshot: &snapshot, configuration: &configuration };
    let pauses = &mut memory.pauses;
    pauses.retain(waiting.iter().map(|pod| pod.uid.as_str()));
    let waiting = next(&waiting, pauses);
    let is_all_healed = waiting.is_empty();
    let heal = waiting.into_iter().map(|pod| (pod.uid.clone(), decide.heal(pod)));
    let healed = together(heal.collect(), pauses).await?;
    let judged = decide.judge(&scheduled, &mut memory.judged).await;
    let counts = plan::counts(&scheduled, |uid| memory.judged.get(uid).map(|judged| judged.word));
    context.metrics.overflow.missed(counts);
    let is_all_judged = judged?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    // An attempt, which takes long, has the time of a round in which there is nothing else to do.
    if !(is_all_read && is_all_healed && is_all_judged) {
        return Ok(Outcome::Changed);
    }
    if configuration.missed.evict {
        let judged = &memory.judged;
        let may_go = scheduled.iter().filter(|pod| judged.get(&pod.owned.uid).is_some_and(|judged| judged.may_go));
        if memory.evictions.evict(context, may_go).await {
            return Ok(Outcome::Changed);
        }
    }
    Ok(healed)
}

/// The pods that are decided on in this round: those that were tried in vain keep nobody waiting.
fn next<'p>(waiting: &'p [Owned], pauses: &Pauses) -> Vec<&'p Owned> {
    let now = Instant::now();
    waiting.iter().filter(|pod| pauses.rest(&pod.uid, now).is_none()).take(PODS).collect()
}

impl Memory {
    /// What was judged by another configuration, or with other virtual nodes, is judged anew.
    fn judge_by(&mut self, configuration: &Arc<Configuration>, virtual_nodes: &[VirtualNode]) {
        let is_same = self
            .basis
            .as_ref()
            .is_some_and(|(before, nodes)| Arc::ptr_eq(before, configuration) && nodes == virtual_nodes);
        if !is_same {
            self.judged.clear();
            self.basis = Some((configuration.clone(), virtual_nodes.to_vec()));
        }
    }

    /// It is about to be known since when, and how, a namespace has opted in. What was judged by what it said before is judged anew.
    fn opt_in(&mut self, name: String, opt_in: OptIn) {
        self.judged.retain(|_, judged| judged.namespace != name);
        self.opted_in.insert(name, opt_in);
    }

    async fn read_namespace(&mut self, context: &Context, snapshot: &Snapshot, name: &str) -> kube::Result<()> {
        let Some(seen) = snapshot.namespace(name) else { return Ok(()) };
        let namespaces: Api<Namespace> = Api::all(context.client.clone());
        let Some(read) = namespaces.get_metadata_opt(name).await? else { return Ok(()) };
        // Where nobody is recorded, it counts from now on.
        let since = opted_in_since(&read.metadata).unwrap_or_else(Timestamp::now);
        let labels = read.metadata.labels.unwrap_or_default();
        self.opt_in(name.to_owned(), OptIn { seen, since, labels });
        Ok(())
    }
}

/// What the decision on a pod that was missed takes.
struct Decide<'d> {
    context: &'d Context,
    snapshot: &'d Snapshot,
    configuration: &'d Configuration,
}

impl Decide<'_> {
    /// A pod as the API server has it now, with everything that a newer Kubernetes may have added; nothing if it is gone.
    async fn read(&self, name: &Name) -> Result<Option<Value>, PodError> {
        let request = Request::new(ApiPod::url_path(&(), Some(&name.0))).get(&name.1, &kube::api::GetParams::default());
        let request = request.map_err(|error| PodError::new("read", name, kube::Error::BuildRequest(error)))?;
        match self.context.client.request(request).await {
            Ok(pod) => Ok(Some(pod)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(PodError::new("read", name, error)),
        }
    }

    /// What the webhook would decide; nothing if the namespace has opted out meanwhile.
    fn decide(&self, namespace: &str, pod: &Pod<'_>) -> Option<Decision<'_>> {
        let known = self.snapshot.namespace(namespace)?;
        let overrides = Overrides::read(pod.annotations());
        let settings = self.configuration.settings(&known.profile, &known.overrides, &overrides);
        let account = self.snapshot.service_account(namespace, pod.service_account());
        let facts = self.snapshot.facts(namespace, &known, account.unwrap_or(ServiceAccount::Unknown));
        Some(burst::decide(pod, &settings, &facts))
    }

    /// Decides on a pod that waits, and gives it what it can still be given.
    async fn heal(&self, owned: &Owned) -> Result<Outcome, PodError> {
        let name = &(owned.namespace.clone(), owned.name.clone());
        let Some(pod) = self.read(name).await? else { return Ok(Outcome::Right) };
        let text = pod.to_string();
        let Ok(view) = from_json::<Pod<'_>>(&text) else { return Ok(Outcome::Right) };
        let has_node = pod.pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|node| !node.is_empty());
        if has_node || view.annotation(DECISION).is_some() {
            return Ok(Outcome::Right);
        }
        let Some(decision) = self.decide(&name.0, &view) else { return Ok(Outcome::Right) };
        let patch = burst::existing_pod_patch(&view, &decision);
        let version = pod.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        let (Some(patch), Some(version)) = (patch, version) else { return Ok(Outcome::Right) };
        let outcome = write(self.context, name, "heal", &Patch::Json(guarded(version, patch))).await?;
        if outcome == Outcome::Changed {
            let ((namespace, name), verdict) = (name, &decision.verdict);
            tracing::info!(namespace, pod = name, decision = %verdict, "decided on a pod that the webhook had missed");
            let note = format!("pod {name} had been created without Spillway: decided now, {verdict}");
            self.context.tally.note(owner(namespace, &pod), HEALED, note);
        }
        Ok(outcome)
    }

    /// Decides on pods that have a node, to tell of them. Returns whether there were none. One that cannot be read keeps no other from
    /// its turn.
    async fn judge(&self, scheduled: &[Scheduled], judged: &mut HashMap<String, Judged>) -> Result<bool, MissedError> {
        let still: HashSet<_> = scheduled.iter().map(|pod| pod.owned.uid.as_str()).collect();
        judged.retain(|uid, _| still.contains(uid.as_str()));
        let mut new: Vec<_> = scheduled.iter().filter(|pod| !judged.contains_key(&pod.owned.uid)).collect();
        let is_all = new.is_empty();
        new.truncate(PODS);
        let mut failure = None;
        let reads = new.into_iter().map(|pod| async move { (pod, self.read(&pod.name()).await) });
        let read: Vec<_> = stream::iter(reads).buffer_unordered(AT_ONCE).collect().await;
        for (Scheduled { owned, node }, read) in read {
            let read = match read {
                Err(error) if error.is_of_all() => return Err(error.into()),
                Err(error) => {
                    failure.get_or_insert(error);
                    continue;
                }
                Ok(read) => read,
            };
            let Some(mut pod) = read else { continue };
            // The scheduler's, not its author's: created anew, it has none.
            if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
                spec.remove("nodeName");
            }
            // Whatever comes of it, there is no use in reading it again and again.
            judged.insert(owned.uid.clone(), unknown(owned));
            let text = pod.to_string();
            let Ok(view) = from_json::<Pod<'_>>(&text) else { continue };
            let Some(decision) = self.decide(&owned.namespace, &view) else { continue };
            let (name, verdict) = (&owned.name, &decision.verdict);
            tracing::warn!(namespace = owned.namespace, pod = name, node, decision = %verdict, "the webhook has missed a pod");
            let note = format!(
                "pod {name} was created without Spillway and runs on {node}; created anew it would be: {verdict}"
            );
            self.context.tally.note(owned.owner(), MISSED, note);
            let word = match verdict {
                Verdict::Burst(mode) => mode.as_str(),
                Verdict::Stay(_) => "stay",
                Verdict::OptedOut => "opted_out",
            };
            let may_go = matches!(verdict, Verdict::Burst(_)) && eviction::may_go(&pod, |key| view.annotation(key));
            judged.insert(owned.uid.clone(), Judged { word, may_go, ..unknown(owned) });
        }
        match failure {
            None => Ok(is_all),
            Some(error) => Err(error.into()),
        }
    }
}

fn unknown(pod: &Owned) -> Judged {
    Judged { namespace: pod.namespace.clone(), word: "unknown", may_go: false }
}

/// Who manages a pod, or the pod.
fn owner(namespace: &str, pod: &Value) -> ObjectReference {
    let metadata = pod.get("metadata").cloned().unwrap_or_default();
    let metadata = serde_json::from_value(metadata).unwrap_or_default();
    ObjectReference { namespace: Some(namespace.to_owned()), ..Owned::read(&metadata).owner() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_judged_is_judged_anew_when_what_it_rests_on_is_another() {
        let judged = |namespace: &str| {
            (namespace.to_owned(), unknown(&Owned { namespace: namespace.to_owned(), ..Owned::default() }))
        };
        let snapshot = Snapshot::of_namespaces(&[("shop", "enabled"), ("bar", "enabled")]);
        let configuration = Arc::<Configuration>::default();
        let node = VirtualNode::new("v".to_owned(), Vec::new());
        let mut memory = Memory::default();
        let judge = |memory: &mut Memory| {
            memory.judged = ["shop", "bar"].map(judged).into();
        };
        let left = |memory: &Memory| memory.judged.keys().cloned().collect::<Vec<_>>();
        memory.judge_by(&configuration, &[]);
        judge(&mut memory);
        memory.judge_by(&configuration, &[]);
        assert_eq!(left(&memory).len(), 2);
        let seen = snapshot.namespace("shop").unwrap();
        memory.opt_in("shop".to_owned(), OptIn { seen, since: Timestamp::UNIX_EPOCH, labels: [].into() });
        assert_eq!(left(&memory), ["bar"], "its namespace says something else now");
        memory.judge_by(&configuration, std::slice::from_ref(&node));
        assert!(left(&memory).is_empty(), "there is another virtual node");
        judge(&mut memory);
        memory.judge_by(&Arc::default(), &[node]);
        assert!(left(&memory).is_empty(), "another configuration");
    }

    #[test]
    fn pods_that_nothing_can_be_done_about_keep_no_other_waiting() {
        let pod = |number: usize| Owned { uid: number.to_string(), ..Owned::default() };
        let waiting: Vec<_> = (0..=PODS).map(pod).collect();
        let mut pauses = Pauses::default();
        let first = super::next(&waiting, &pauses);
        assert_eq!(first.len(), PODS);
        for pod in first {
            pauses.tries(&pod.uid, Instant::now());
        }
        assert_eq!(super::next(&waiting, &pauses), [&pod(PODS)]);
    }
}
