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
use json_patch::Patch as JsonPatch;
use k8s_openapi::api::core::v1::{ObjectReference, Pod as ApiPod};
use kube::{
    Resource,
    api::{Patch, Request},
};
use plan::{Found, Scheduled};
use serde_json::Value;
use tokio::time::Instant;

use self::eviction::Evictions;
use super::{
    Context, each,
    events::reference,
    guarded,
    pauses::Pauses,
    pods::{AT_ONCE, PodError, together, write},
    reconcile::{Outcome, repeat},
    tally::Happening,
};
use crate::{
    burst::{self, DECISION, Decision, ServiceAccount, Verdict},
    certs::self_managed::CONFIGURATION,
    cluster::{Inventory, OptedIn, PodMeta, Snapshot},
    config::{Configuration, Overrides},
    eligibility::VirtualNode,
    kubernetes::{ObjectKey, Store},
    pod::{Pod, from_json},
};

const RECONCILER: &str = "missed";

const HEALED: Happening = Happening::done("MissedPodHealed");
const MISSED: Happening = Happening::wrong("PodMissed");
const UNKNOWN: Happening = Happening::wrong("MissedUnknown");

/// What is done in one round. The next follows at once where more is left.
const PODS: usize = 200;

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
enum MissedError {
    #[error(transparent)]
    Pod(#[from] PodError),
}

/// Rounds, for as long as it is asked to.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let changes = [
        each(inventory.pods.unscheduled()),
        each(inventory.pods.scheduled()),
        each(inventory.scope.clone()),
        each(context.configuration.clone()),
    ];
    let mut memory = Memory::default();
    let round = async || round(context, inventory, &mut memory).await;
    Box::pin(repeat(RECONCILER, &context.metrics, stream::select_all(changes), round)).await;
}

/// What is known from one round to the next. A new leader begins without it.
#[derive(Debug, Default)]
struct Memory {
    /// Namespaces by which pods were judged.
    opted_in: HashMap<String, Arc<OptedIn>>,
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

async fn round(context: &Context, inventory: &Inventory, memory: &mut Memory) -> Result<Outcome, MissedError> {
    let (configuration, snapshot) = (context.configuration.borrow().clone(), inventory.snapshot());
    let is_complete = inventory.pods.borrow().is_listed() && inventory.scope.borrow().is_listed();
    if !is_complete || !inventory.unsynced().is_empty() {
        return Ok(Outcome::Early);
    }
    memory.judge_by(&configuration, snapshot.virtual_nodes());
    let found = {
        let opted_in = inventory.opted_in.borrow();
        memory.opt_in(&opted_in);
        let scope = inventory.live_scope();
        scope.map(|scope| plan::missed(&scope, &inventory.pods.borrow(), &opted_in)).unwrap_or_default()
    };
    let Found { waiting, scheduled, depends } = found;
    if let Some(condition) = depends {
        let note = format!(
            "nobody can tell which pods were missed: matchCondition {condition} is not the one of the manifests, and only the API server evaluates it"
        );
        let about = reference("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", None, CONFIGURATION);
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
    // An attempt, which takes long, has the time of a round in which there is nothing else to do.
    if !(is_all_healed && is_all_judged) {
        return Ok(Outcome::Changed);
    }
    if configuration.missed.evict {
        let judged = &memory.judged;
        let may_go = scheduled.iter().filter(|pod| judged.get(&pod.meta.uid).is_some_and(|judged| judged.may_go));
        if memory.evictions.evict(context, may_go).await {
            return Ok(Outcome::Changed);
        }
    }
    Ok(healed)
}

/// The pods that are decided on in this round: those that were tried in vain keep nobody waiting.
fn next<'p>(waiting: &'p [PodMeta], pauses: &Pauses) -> Vec<&'p PodMeta> {
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

    /// What was judged by what a namespace said before is judged again.
    fn opt_in(&mut self, opted_in: &Store<Arc<OptedIn>>) {
        let is_same = |name: &str| {
            let (before, now) = (self.opted_in.get(name), opted_in.get(&ObjectKey::cluster_scoped(name)));
            before.zip(now).is_some_and(|(before, now)| Arc::ptr_eq(before, now))
        };
        self.judged.retain(|_, judged| is_same(&judged.namespace));
        self.opted_in = opted_in.iter().map(|(key, namespace)| (key.name.clone(), namespace.clone())).collect();
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
    async fn read(&self, key: &ObjectKey) -> Result<Option<Value>, PodError> {
        let url = ApiPod::url_path(&(), Some(&key.namespace));
        let request = Request::new(url).get(&key.name, &kube::api::GetParams::default());
        let request = request.map_err(|error| PodError::new("read", key, kube::Error::BuildRequest(error)))?;
        match self.context.client.request(request).await {
            Ok(pod) => Ok(Some(pod)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(PodError::new("read", key, error)),
        }
    }

    /// What the webhook would decide; nothing if the namespace has opted out meanwhile.
    fn decide(&self, namespace: &str, pod: &Pod<'_>) -> Option<Decision<'_>> {
        let known = self.snapshot.namespace(namespace)?;
        let overrides = Overrides::read(pod.annotations());
        let settings = self.configuration.settings(&known.profile, &known.overrides, &overrides);
        let account = self.snapshot.service_account(namespace, pod.service_account());
        let facts = self.snapshot.facts(namespace, &known, account.unwrap_or(ServiceAccount::Unknown));
        Some(burst::decide(pod, settings.as_ref(), &facts))
    }

    /// Decides on a pod that waits, and gives it what it can still be given.
    async fn heal(&self, meta: &PodMeta) -> Result<Outcome, PodError> {
        let key = &meta.key();
        let Some(pod) = self.read(key).await? else { return Ok(Outcome::Right) };
        let text = pod.to_string();
        let Ok(view) = from_json::<Pod<'_>>(&text) else { return Ok(Outcome::Right) };
        let has_node = pod.pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|node| !node.is_empty());
        if has_node || view.annotation(DECISION).is_some() {
            return Ok(Outcome::Right);
        }
        let Some(decision) = self.decide(&key.namespace, &view) else { return Ok(Outcome::Right) };
        let patch =
            burst::living_patch(&view, &decision).and_then(|patch| serde_json::from_slice::<JsonPatch>(&patch).ok());
        let version = pod.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        let (Some(patch), Some(version)) = (patch, version) else { return Ok(Outcome::Right) };
        let outcome = write(self.context, key, "heal", &Patch::Json(guarded(version, patch))).await?;
        if outcome == Outcome::Changed {
            let (ObjectKey { namespace, name }, verdict) = (key, &decision.verdict);
            tracing::info!(namespace, pod = name, decision = %verdict, "decided on a pod that the webhook had missed");
            let note = format!("pod {name} had been created without Spillway: decided now, {verdict}");
            self.context.tally.note(owner(namespace, &pod), HEALED, note);
        }
        Ok(outcome)
    }

    /// Decides on pods that have a node, to tell of them. Returns whether there were none. One that cannot be read keeps no other from
    /// its turn.
    async fn judge(&self, scheduled: &[Scheduled], judged: &mut HashMap<String, Judged>) -> Result<bool, MissedError> {
        let still: HashSet<_> = scheduled.iter().map(|pod| pod.meta.uid.as_str()).collect();
        judged.retain(|uid, _| still.contains(uid.as_str()));
        let mut new: Vec<_> = scheduled.iter().filter(|pod| !judged.contains_key(&pod.meta.uid)).collect();
        let is_all = new.is_empty();
        new.truncate(PODS);
        let mut failure = None;
        let reads = new.into_iter().map(|pod| async move { (pod, self.read(&pod.key()).await) });
        let read: Vec<_> = stream::iter(reads).buffer_unordered(AT_ONCE).collect().await;
        for (Scheduled { meta, node }, read) in read {
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
            judged.insert(meta.uid.clone(), unknown(meta));
            let text = pod.to_string();
            let Ok(view) = from_json::<Pod<'_>>(&text) else { continue };
            let Some(decision) = self.decide(&meta.namespace, &view) else { continue };
            let (name, verdict) = (&meta.name, &decision.verdict);
            tracing::warn!(namespace = meta.namespace, pod = name, node, decision = %verdict, "the webhook has missed a pod");
            let note = format!(
                "pod {name} was created without Spillway and runs on {node}; created anew it would be: {verdict}"
            );
            self.context.tally.note(meta.owner(), MISSED, note);
            let word = match verdict {
                Verdict::Burst(mode) => mode.as_str(),
                Verdict::Stay(_) => "stay",
                Verdict::OptedOut => "opted_out",
            };
            let may_go = matches!(verdict, Verdict::Burst(_)) && eviction::may_go(&pod, |key| view.annotation(key));
            judged.insert(meta.uid.clone(), Judged { word, may_go, ..unknown(meta) });
        }
        match failure {
            None => Ok(is_all),
            Some(error) => Err(error.into()),
        }
    }
}

fn unknown(pod: &PodMeta) -> Judged {
    Judged { namespace: pod.namespace.clone(), word: "unknown", may_go: false }
}

/// Who manages a pod, or the pod.
fn owner(namespace: &str, pod: &Value) -> ObjectReference {
    let metadata = pod.get("metadata").cloned().unwrap_or_default();
    let metadata = serde_json::from_value(metadata).unwrap_or_default();
    ObjectReference { namespace: Some(namespace.to_owned()), ..PodMeta::read(&metadata).owner() }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    #[test]
    fn pods_are_judged_again_when_an_input_of_that_changes() {
        let judged = |namespace: &str| {
            (namespace.to_owned(), unknown(&PodMeta { namespace: namespace.to_owned(), ..PodMeta::default() }))
        };
        let opted_in = |since: i64| {
            let namespace = Snapshot::of_namespaces(&[("shop", "enabled")]).namespace("shop").unwrap();
            Arc::new(OptedIn { namespace, since: Timestamp::from_second(since).unwrap(), labels: [].into() })
        };
        let store = |namespaces: [(&str, &Arc<OptedIn>); 2]| {
            namespaces.map(|(name, one)| (ObjectKey::cluster_scoped(name), one.clone())).into_iter().collect()
        };
        let (shop, bar) = (opted_in(1), opted_in(1));
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
        memory.opt_in(&store([("shop", &shop), ("bar", &bar)]));
        judge(&mut memory);
        memory.opt_in(&store([("shop", &shop), ("bar", &bar)]));
        assert_eq!(left(&memory).len(), 2);
        memory.opt_in(&store([("shop", &opted_in(2)), ("bar", &bar)]));
        assert_eq!(left(&memory), ["bar"], "its namespace says something else now");
        memory.judge_by(&configuration, std::slice::from_ref(&node));
        assert!(left(&memory).is_empty(), "there is another virtual node");
        judge(&mut memory);
        memory.judge_by(&Arc::default(), &[node]);
        assert!(left(&memory).is_empty(), "another configuration");
    }

    #[test]
    fn pods_that_nothing_can_be_done_about_keep_no_other_waiting() {
        let pod = |number: usize| PodMeta { uid: number.to_string(), ..PodMeta::default() };
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
