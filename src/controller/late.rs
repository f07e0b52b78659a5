//! Late burst: a pod that the webhook marked `late` and that no VM has taken in time gets the toleration of virtual nodes.
//!
//! All that has to be known of a pod stands in the pod, so another replica goes on where this one ends. How long a pod has waited is
//! counted from when it is first seen unschedulable. That time is put off while a VM seems to be on its way, up to `late.max`.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use futures_util::stream;
use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, jsonptr::PointerBuf};
use k8s_openapi::{
    api::core::v1::{Namespace, ObjectReference, Taint},
    jiff::Timestamp,
};
use kube::{Api, api::Patch};
use serde_json::json;
use tokio::time::Instant;

use super::{
    Context, each, guarded, is_unanswered,
    observed::{Kept, Name, Node, Observed, OnVirtual, Waiting, are_known},
    pauses::Pauses,
    pods::{PodError, together, write},
    reconcile::{Alarm, Outcome, repeat},
    room,
    taints::FULL,
    tally::Happening,
};
use crate::{
    burst::{self, DECISION, UNSCHEDULABLE_SINCE},
    cluster::{self, Cluster, Snapshot},
    config::{Configuration, DISABLED, Mode, Overrides, Settings, VirtualNodes},
    telemetry::{Causes, Late},
};

const RECONCILER: &str = "late";

const BURST: Happening = Happening::done("LateBurst");
const WITHHELD: Happening = Happening::wrong("LateWithheld");

/// How long a VM that has just become Ready may take pods before these are let elsewhere: the scheduler needs a moment.
const SETTLING: Duration = Duration::from_secs(15);

/// What keeps pods from a node until it is set up (kubernetes `staging/src/k8s.io/api/core/v1/well_known_taints.go` and
/// `staging/src/k8s.io/cloud-provider/api/well_known_taints.go`, kubernetes-sigs/karpenter `pkg/apis/v1/taints.go`). Those of pressure and
/// shutdown are none of these: they say that a node takes nobody for as long as it likes.
const TAINTS_OF_NEW_NODES: [&str; 5] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/network-unavailable",
    "node.cloudprovider.kubernetes.io/uninitialized",
    "karpenter.sh/unregistered",
];

/// The least time between two rounds in which pods are let onto virtual nodes. What may be let in a second is let in one round.
const BEAT: Duration = Duration::from_secs(1);

/// How long a pod that was let go and waits no longer counts as on its way to a virtual node: that it has left and that it has arrived
/// is heard by two watches.
const ARRIVAL: Duration = Duration::from_secs(5);

/// Clocks that are started in one round.
const CLOCKS: usize = 200;

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
enum LateError {
    #[error("cannot read namespace {0}")]
    Namespace(String, #[source] kube::Error),
    #[error(transparent)]
    Pod(#[from] PodError),
}

/// Rounds, for as long as it is asked to.
pub(super) async fn run(context: &Context, observed: &Observed, cluster: &Cluster) {
    let alarm = Alarm::default();
    let changes = [each(observed.waiting.clone()), each(context.configuration.clone()), alarm.rings()];
    let mut memory = Memory::default();
    let round = async || round(context, observed, cluster, &alarm, &mut memory).await;
    Box::pin(repeat(RECONCILER, &context.metrics, stream::select_all(changes), round)).await;
}

/// What is known from one round to the next. A new leader begins without it.
#[derive(Debug, Default)]
struct Memory {
    /// When pods were let onto virtual nodes last.
    last: Option<Instant>,
    on_their_way: OnTheirWay,
    pauses: Pauses,
}

/// Pods that were let onto virtual nodes and have not been seen there, and since when they wait no more.
#[derive(Debug, Default)]
struct OnTheirWay(HashMap<Name, Option<Instant>>);

impl OnTheirWay {
    fn look(&mut self, waiting: &Kept<Waiting>, on_virtual: &OnVirtual, now: Instant) {
        self.0.retain(|name, left| {
            if waiting.get(name).is_some() {
                *left = None;
                return true;
            }
            let left = *left.get_or_insert(now);
            now.duration_since(left) < ARRIVAL && on_virtual.values().all(|pods| pods.get(name).is_none())
        });
    }

    /// Those that wait no more.
    fn between(&self) -> impl Iterator<Item = &Name> {
        self.0.iter().filter(|(_, left)| left.is_some()).map(|(name, _)| name)
    }
}

async fn round(
    context: &Context,
    observed: &Observed,
    cluster: &Cluster,
    alarm: &Alarm,
    Memory { last, on_their_way, pauses }: &mut Memory,
) -> Result<Outcome, LateError> {
    let configuration = context.configuration.borrow().clone();
    let is_too_soon = last.is_some_and(|last| last.elapsed() < BEAT);
    let plan = {
        let waiting = observed.waiting.borrow();
        let on_virtual = observed.on_virtual.borrow();
        pauses.retain(waiting.values().map(|pod| pod.owned.uid.as_str()));
        on_their_way.look(&waiting, &on_virtual, Instant::now());
        let seen = Seen {
            now: Timestamp::now(),
            configuration: &configuration,
            snapshot: &cluster.snapshot(),
            waiting: &waiting,
            nodes: &observed.nodes.borrow(),
            on_virtual: &on_virtual,
            on_their_way,
            coming: &observed.coming.borrow(),
            pauses,
            may_let: !is_too_soon,
        };
        plan(&seen)
    };
    let Some(plan) = plan else { return Ok(Outcome::Early) };
    context.metrics.overflow.late(plan.counts);
    for withheld in plan.withheld.into_values() {
        context.tally.note(withheld.owner, WITHHELD, withheld.note);
    }
    let clocks = start_clocks(context, plan.clocks, pauses).await?;
    if !plan.burst.is_empty() {
        *last = Some(Instant::now());
        on_their_way.0.extend(plan.burst.iter().map(|pod| (pod.name.clone(), None)));
    }
    let burst = let_go(context, &configuration, plan.burst, pauses).await?;
    // Of those that were tried just now, some may have been in vain.
    if let Some(next) = plan.next.into_iter().chain(pauses.next(Instant::now())).min() {
        alarm.set(next);
    }
    Ok(if clocks == Outcome::Changed { clocks } else { burst })
}

/// What a plan rests on.
struct Seen<'s> {
    now: Timestamp,
    configuration: &'s Configuration,
    snapshot: &'s Snapshot,
    waiting: &'s Kept<Waiting>,
    nodes: &'s Kept<Node>,
    on_virtual: &'s OnVirtual,
    on_their_way: &'s OnTheirWay,
    coming: &'s Kept<Timestamp>,
    /// Pods that were tried in vain.
    pauses: &'s Pauses,
    /// Whether pods may be let onto virtual nodes in this round.
    may_let: bool,
}

/// What is to be done.
#[derive(Debug, Default)]
struct Plan {
    /// Pods that are seen unschedulable for the first time, and when.
    clocks: Vec<Clock>,
    /// Pods that get the toleration.
    burst: Vec<Due>,
    /// Pods that would get it, and why they do not, one an owner, by its uid.
    withheld: BTreeMap<String, Withheld>,
    counts: Late,
    /// How long it is until there will be something to do, without any change.
    next: Option<Duration>,
}

/// A pod whose clock starts.
#[derive(Debug, PartialEq)]
struct Clock {
    name: Name,
    uid: String,
    resource_version: String,
    since: Timestamp,
}

/// A pod whose time has come.
#[derive(Debug, Clone, PartialEq)]
struct Due {
    name: Name,
    uid: String,
    waited: Duration,
    resource_version: String,
    owner: ObjectReference,
    overrides: Overrides,
    patch: JsonPatch,
}

#[derive(Debug, PartialEq)]
struct Withheld {
    owner: ObjectReference,
    note: String,
}

/// What becomes of a pod that is marked `late`.
#[derive(Debug, PartialEq)]
enum Fate {
    /// None of our business, or not any more.
    None,
    /// It is seen unschedulable for the first time.
    Start,
    /// It may still find a VM.
    Wait { rest: Duration, is_coming: bool },
    /// Its time has come.
    Due { waited: Duration },
}

impl Plan {
    /// A pod whose time has come gets nothing. One of an owner is told of.
    fn withhold(&mut self, name: &Name, pod: &Waiting, why: &str) {
        let owner = pod.owned.owner();
        self.withheld.entry(owner.uid.clone().unwrap_or_default()).or_insert_with(|| {
            let note = format!("pod {} stays unschedulable: {why}", name.1);
            Withheld { owner, note }
        });
    }

    /// There will be something to do after this time.
    fn ring(&mut self, after: Duration) {
        self.next = Some(self.next.map_or(after, |next| next.min(after)));
    }
}

/// Whether everything has arrived. Without all nodes a VM that has just come would be overlooked, without what autoscalers have said
/// one that is on its way, and without all pods on virtual nodes a cap.
fn is_complete(seen: &Seen<'_>) -> bool {
    let selector = &seen.configuration.virtual_nodes.selector;
    seen.waiting.is_complete() && seen.coming.is_complete() && are_known(seen.nodes, seen.on_virtual, selector)
}

/// Nothing while not everything is known.
fn plan(seen: &Seen<'_>) -> Option<Plan> {
    if !is_complete(seen) {
        return None;
    }
    let mut plan = Plan::default();
    let coming: Vec<_> = seen.nodes.values().filter_map(|node| coming(node, seen)).collect();
    let mut due = Vec::new();
    let now = Instant::now();
    for (name, pod) in seen.waiting.iter() {
        let fate = fate(name, pod, &coming, seen);
        // Before anybody is counted or cut off: those that are tried in vain keep no other waiting.
        let pause = seen.pauses.rest(&pod.owned.uid, now);
        match (fate, pause) {
            (Fate::None, _) => {}
            (Fate::Wait { rest, is_coming }, _) => {
                plan.counts.waiting += u64::from(!is_coming);
                plan.counts.coming += u64::from(is_coming);
                plan.ring(rest);
            }
            (fate, Some(_)) => {
                if fate != Fate::Start {
                    plan.counts.refused += 1;
                    plan.withhold(name, pod, "the toleration could not be written, and the controller's log says why");
                }
            }
            (Fate::Start, None) => {
                let (uid, resource_version) = (pod.owned.uid.clone(), pod.resource_version.clone());
                // The API server's clock may be ahead of ours.
                let since = seen.now.max(pod.owned.created);
                plan.clocks.push(Clock { name: name.clone(), uid, resource_version, since });
            }
            (Fate::Due { waited }, None) => due.push((waited, name, pod)),
        }
    }
    plan.clocks.truncate(CLOCKS);
    // Those that have waited longest go first.
    due.sort_by(|(one, a, _), (other, b, _)| other.cmp(one).then_with(|| a.cmp(b)));
    admit(due, seen, &mut plan);
    Some(plan)
}

/// Lets pods go as far as caps and pace permit.
fn admit(due: Vec<(Duration, &Name, &Waiting)>, seen: &Seen<'_>, plan: &mut Plan) {
    if due.is_empty() {
        return;
    }
    let nodes = &seen.configuration.virtual_nodes;
    let is_closed = is_closed(seen.nodes, nodes);
    // Counted only where there is a cap.
    let on_virtual = LazyCell::new(|| overflowing(seen));
    let rate = seen.configuration.late_rate;
    let mut let_of = BTreeMap::<&str, u32>::new();
    for (waited, name, pod) in due {
        let namespace = name.0.as_str();
        let let_here = let_of.entry(namespace).or_default();
        let cap = settings(name, pod, seen).and_then(|settings| settings.max_pods);
        let count = || on_virtual.get(namespace).copied().unwrap_or_default() + u64::from(*let_here);
        let why = if is_closed {
            plan.counts.closed += 1;
            Some("virtual nodes are closed, or there is none that is ready".to_owned())
        } else if let Some(cap) = cap.filter(|cap| count() >= u64::from(*cap)) {
            plan.counts.capped += 1;
            if seen.on_their_way.between().next().is_some() {
                plan.ring(ARRIVAL);
            }
            let count = count();
            Some(format!("namespace {namespace} has {count} pods on virtual nodes, and maxPods is {cap}"))
        } else {
            None
        };
        if let Some(why) = why {
            plan.withhold(name, pod, &why);
            continue;
        }
        let is_in_time = plan.burst.len() < rate.total.get() as usize && *let_here < rate.per_namespace.get();
        if !seen.may_let || !is_in_time {
            plan.counts.paced += 1;
            plan.ring(BEAT);
            continue;
        }
        let Some(patch) = patch(pod, nodes) else { continue };
        *let_here += 1;
        let (owner, resource_version) = (pod.owned.owner(), pod.resource_version.clone());
        let (uid, overrides) = (pod.owned.uid.clone(), overrides(pod));
        plan.burst.push(Due { name: name.clone(), uid, waited, resource_version, owner, overrides, patch });
    }
}

fn patch(pod: &Waiting, nodes: &VirtualNodes) -> Option<JsonPatch> {
    let patch = burst::late_toleration(&pod.pod()?, nodes)?;
    serde_json::from_slice(&patch).ok()
}

fn overrides(pod: &Waiting) -> Overrides {
    Overrides::read(pod.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())))
}

fn settings<'s>(name: &Name, pod: &Waiting, seen: &Seen<'s>) -> Option<Settings<'s>> {
    let namespace = seen.snapshot.namespace(&name.0)?;
    seen.configuration.settings(&namespace.profile, &namespace.overrides, &overrides(pod))
}

/// Pods are parsed only where that decides: all that wait come by here every second.
fn fate(name: &Name, pod: &Waiting, coming: &[Node], seen: &Seen<'_>) -> Fate {
    let is_late = pod.annotation(DECISION) == Some(Mode::Late.as_str());
    if !is_late || !pod.is_unschedulable {
        return Fate::None;
    }
    let Some(settings) = settings(name, pod, seen).filter(|settings| settings.mode.value == Mode::Late) else {
        return Fate::None;
    };
    let since = since(pod, seen.now);
    let waited = since.and_then(|since| Duration::try_from(seen.now.duration_since(since)).ok()).unwrap_or_default();
    let after = settings.late_after.value;
    let due = after + jitter(&pod.owned.uid, after);
    let rest = |until: Duration| until.saturating_sub(waited).max(Duration::from_millis(100));
    if since.is_some() && waited < due {
        return Fate::Wait { rest: rest(due), is_coming: false };
    }
    let Some(view) = pod.pod() else { return Fate::None };
    if burst::late_toleration(&view, &seen.configuration.virtual_nodes).is_none() {
        return Fate::None;
    }
    if since.is_none() {
        return Fate::Start;
    }
    // By the API server's clock on both sides. What was said of an earlier pod of that name is older.
    let has_said = seen.coming.get(name).is_some_and(|said| *said >= pod.owned.created);
    let is_coming = pod.is_nominated || has_said || coming.iter().any(|node| room::accepts(node, &view));
    if is_coming && waited < settings.late_max {
        // What is coming may come to nothing long before.
        return Fate::Wait { rest: rest(settings.late_max).min(SETTLING), is_coming: true };
    }
    Fate::Due { waited }
}

/// Since when the pod has waited; nothing if nobody has written it, nobody who can tell the time, or somebody of an earlier pod that
/// this one was made from.
fn since(pod: &Waiting, now: Timestamp) -> Option<Timestamp> {
    let since: Timestamp = pod.annotation(UNSCHEDULABLE_SINCE)?.parse().ok()?;
    let created = pod.owned.created;
    (since >= created && since <= created.max(now + SETTLING)).then_some(since)
}

/// Not all at the same moment: up to a tenth more, and always the same for the same pod.
fn jitter(uid: &str, after: Duration) -> Duration {
    const LONGEST: Duration = Duration::from_secs(30);
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    let permille = u32::try_from(hasher.finish() % 1000).unwrap_or_default();
    LONGEST.min(after / 10) * permille / 1000
}

/// A VM that is about to take pods, as it will be then: one that has become Ready so recently that its pods may still be on their way,
/// or that nobody has taken the taints of a new node from yet.
fn coming(node: &Node, seen: &Seen<'_>) -> Option<Node> {
    let is_settling = seen.now < node.ready_since? + SETTLING;
    let is_new = |taint: &Taint| TAINTS_OF_NEW_NODES.contains(&taint.key.as_str());
    let is_coming = is_settling || node.taints.iter().any(is_new);
    if node.is_virtual(&seen.configuration.virtual_nodes.selector) || !is_coming {
        return None;
    }
    let mut node = node.clone();
    node.taints.retain(|taint| !is_new(taint));
    Some(node)
}

/// Whether no virtual node takes a pod that comes with our toleration.
fn is_closed(nodes: &Kept<Node>, settings: &VirtualNodes) -> bool {
    let mut virtual_nodes = nodes.values().filter(|node| node.is_virtual(&settings.selector));
    let is_open =
        |node: &Node| node.ready_since.is_some() && !node.is_cordoned && !node.has_taint(FULL.key, FULL.effect);
    !virtual_nodes.any(is_open)
}

/// Namespace → how many of its pods are on virtual nodes, or may go there any moment.
fn overflowing<'s>(seen: &Seen<'s>) -> BTreeMap<&'s str, u64> {
    let mut counts = BTreeMap::<&str, u64>::new();
    // One that is over holds no place any more, although its failure still counts.
    let there = seen.on_virtual.values().flat_map(Kept::iter).filter(|(_, pod)| !pod.is_over);
    let there = there.map(|((namespace, _), _)| namespace.as_str());
    let nodes = &seen.configuration.virtual_nodes;
    let is_let = |pod: &Waiting| {
        pod.annotation(DECISION) == Some(Mode::Late.as_str())
            && pod.pod().is_some_and(|view| burst::late_toleration(&view, nodes).is_none())
    };
    let on_their_way = seen.waiting.iter().filter(|(_, pod)| is_let(pod)).map(|((namespace, _), _)| namespace.as_str());
    let between = seen.on_their_way.between().map(|(namespace, _)| namespace.as_str());
    for namespace in there.chain(on_their_way).chain(between) {
        *counts.entry(namespace).or_default() += 1;
    }
    counts
}

/// Writes since when pods have been unschedulable.
async fn start_clocks(context: &Context, clocks: Vec<Clock>, pauses: &mut Pauses) -> Result<Outcome, LateError> {
    let start_one = async |clock: Clock| {
        let outcome = write(context, &clock.name, "start_clock", &Patch::Json(start(&clock))).await?;
        if outcome == Outcome::Changed {
            let (Clock { since, .. }, (namespace, name)) = (&clock, &clock.name);
            tracing::debug!(namespace, pod = name, %since, "pod is seen unschedulable for the first time");
        }
        Ok(outcome)
    };
    let writes = clocks.into_iter().map(|clock| (clock.uid.clone(), start_one(clock)));
    Ok(together(writes.collect(), pauses).await?)
}

/// Writes since when, in whole seconds as the API server counts, beside the decision, which the pod has.
fn start(clock: &Clock) -> JsonPatch {
    let since = Timestamp::from_second(clock.since.as_second()).unwrap_or(clock.since);
    let path = PointerBuf::from_tokens(["metadata", "annotations", UNSCHEDULABLE_SINCE]);
    let add = AddOperation { path, value: json!(since.to_string()) };
    guarded(&clock.resource_version, JsonPatch(vec![PatchOperation::Add(add)]))
}

/// Lets pods onto virtual nodes whose namespaces still want that.
async fn let_go(
    context: &Context,
    configuration: &Configuration,
    pods: Vec<Due>,
    pauses: &mut Pauses,
) -> Result<Outcome, LateError> {
    let names: BTreeSet<_> = pods.iter().map(|pod| pod.name.0.clone()).collect();
    let mut namespaces = BTreeMap::new();
    for name in names {
        match read_again(context, &name).await {
            Ok(namespace) => {
                namespaces.insert(name, namespace);
            }
            Err(error) if is_unanswered(&error) => return Err(LateError::Namespace(name, error)),
            Err(error) => {
                tracing::warn!(namespace = name, error = %Causes(&error), "its pods are not let onto virtual nodes");
            }
        }
    }
    let (pods, unread): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| namespaces.contains_key(&pod.name.0));
    for pod in unread {
        pauses.tries(&pod.uid, Instant::now());
    }
    let namespaces = &namespaces;
    let let_one = async |pod: Due| {
        let namespace = namespaces.get(&pod.name.0).and_then(Option::as_ref);
        let settings = namespace
            .and_then(|namespace| configuration.settings(&namespace.profile, &namespace.overrides, &pod.overrides));
        // Something else than was seen: that is on its way to us too.
        if settings.is_none_or(|settings| settings.mode.value != Mode::Late) {
            return Ok(Outcome::Conflict);
        }
        let outcome =
            write(context, &pod.name, "burst", &Patch::Json(guarded(&pod.resource_version, pod.patch))).await?;
        if outcome == Outcome::Changed {
            let ((namespace, name), seconds) = (&pod.name, pod.waited.as_secs());
            tracing::info!(namespace, pod = name, waited_seconds = seconds, "pod may go to virtual nodes now");
            let note = format!("pod {name} may go to virtual nodes now: no VM has taken it for {seconds} s");
            context.tally.note(pod.owner, BURST, note);
        }
        Ok(outcome)
    };
    let writes = pods.into_iter().map(|pod| (pod.uid.clone(), let_one(pod)));
    Ok(together(writes.collect(), pauses).await?)
}

/// A namespace as the API server has it now; nothing if it has not opted in, or is no more.
async fn read_again(context: &Context, name: &str) -> kube::Result<Option<cluster::Namespace>> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let read = namespaces.get_metadata_opt(name).await?;
    let metadata = read.map(|namespace| namespace.metadata).unwrap_or_default();
    let (labels, annotations) = (metadata.labels.unwrap_or_default(), metadata.annotations.unwrap_or_default());
    Ok(cluster::Namespace::read(labels, annotations).filter(|namespace| namespace.profile != DISABLED))
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Arc};

    use axum::http;
    use kube::client::Body;
    use serde_json::Value;

    use super::{
        super::{events::Events, observed::VirtualPod, tally::Tally},
        *,
    };
    use crate::{config::parse, telemetry::ControllerMetrics};

    fn now() -> Timestamp {
        "2026-01-01T12:00:00Z".parse().unwrap()
    }

    fn before(seconds: u64) -> Timestamp {
        now() - Duration::from_secs(seconds)
    }

    /// A cluster with a namespace `shop` of profile `autoscaled` and a virtual node.
    struct Cluster {
        configuration: Configuration,
        snapshot: Snapshot,
        waiting: BTreeMap<Name, Value>,
        nodes: Vec<Value>,
        on_virtual: Vec<Value>,
        on_their_way: OnTheirWay,
        coming: Vec<(Name, Timestamp)>,
        pauses: Pauses,
        may_let: bool,
    }

    impl Cluster {
        fn new() -> Self {
            Self {
                configuration: Configuration::default(),
                snapshot: Snapshot::of_namespaces(&[
                    ("shop", "autoscaled"),
                    ("other", "autoscaled"),
                    ("plain", "enabled"),
                ]),
                waiting: BTreeMap::new(),
                nodes: vec![node("virtual", &json!({"type": "virtual-kubelet"}), 3600)],
                on_virtual: Vec::new(),
                on_their_way: OnTheirWay::default(),
                coming: Vec::new(),
                pauses: Pauses::default(),
                may_let: true,
            }
        }

        fn configured(text: &str) -> Self {
            let file = format!("apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n{text}");
            Self { configuration: parse(&file).unwrap(), ..Self::new() }
        }

        /// A pod that has been unschedulable for so many seconds, as far as anybody has written it.
        fn pod(mut self, namespace: &str, name: &str, since: Option<u64>, change: impl FnOnce(&mut Value)) -> Self {
            let mut pod = json!({
                "metadata": {"namespace": namespace, "name": name, "uid": name, "resourceVersion": "7",
                    "creationTimestamp": before(since.unwrap_or_default()),
                    "annotations": {DECISION: "late", "spillway.dev/added": "affinity"},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true}]},
                "spec": {"containers": [{"name": "c"}], "tolerations": []},
                "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]},
            });
            if let Some(since) = since {
                pod["metadata"]["annotations"][UNSCHEDULABLE_SINCE] = before(since).to_string().into();
            }
            change(&mut pod);
            self.waiting.insert((namespace.to_owned(), name.to_owned()), pod);
            self
        }

        fn plan(&self) -> Plan {
            self.plan_without("").unwrap()
        }

        /// What is planned while something is not known yet.
        fn plan_without(&self, unknown: &str) -> Option<Plan> {
            let read = |(name, pod): (&Name, &Value)| {
                Some((name.clone(), Waiting::read(serde_json::from_value(pod.clone()).unwrap())?))
            };
            let nodes = self.nodes.iter().map(|node| {
                let node = Node::read(serde_json::from_value(node.clone()).unwrap()).unwrap();
                ((String::new(), node.name.clone()), node)
            });
            let there = self.on_virtual.iter().map(|pod| {
                let pod = VirtualPod::read(serde_json::from_value(pod.clone()).unwrap()).unwrap();
                ((pod.owned.namespace.clone(), pod.owned.name.clone()), pod)
            });
            let mut seen = Seen {
                now: now(),
                configuration: &self.configuration,
                snapshot: &self.snapshot,
                waiting: &self.waiting.iter().filter_map(read).collect(),
                nodes: &nodes.collect(),
                on_virtual: &[("virtual".to_owned(), there.collect())].into(),
                on_their_way: &self.on_their_way,
                coming: &self.coming.iter().cloned().collect(),
                pauses: &self.pauses,
                may_let: self.may_let,
            };
            let (waiting, nodes, coming, none) =
                (Kept::default(), Kept::default(), Kept::default(), OnVirtual::default());
            let half = OnVirtual::from([("virtual".to_owned(), Kept::default())]);
            match unknown {
                "waiting" => seen.waiting = &waiting,
                "nodes" => seen.nodes = &nodes,
                "the pods of a virtual node" => seen.on_virtual = &none,
                "all of these" => seen.on_virtual = &half,
                "coming" => seen.coming = &coming,
                _ => {}
            }
            plan(&seen)
        }

        /// The names of the pods that get the toleration.
        fn burst(&self) -> Vec<String> {
            self.plan().burst.into_iter().map(|pod| pod.name.1).collect()
        }
    }

    fn node(name: &str, labels: &Value, ready_for: u64) -> Value {
        let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": before(ready_for)});
        json!({"metadata": {"name": name, "labels": labels}, "status": {"conditions": [ready]}})
    }

    fn same(_: &mut Value) {}

    #[test]
    fn the_clock_starts_when_a_pod_is_first_seen_unschedulable() {
        let plan = Cluster::new().pod("shop", "new", None, same).plan();
        let clocks: Vec<_> = plan.clocks.iter().map(|clock| (clock.name.1.as_str(), clock.since)).collect();
        assert_eq!(clocks, [("new", now())]);
        assert_eq!(plan.burst, []);
        for (condition, value) in [("reason", "SchedulingGated"), ("status", "True")] {
            let gated = |pod: &mut Value| pod["status"]["conditions"][0][condition] = value.into();
            let plan = Cluster::new().pod("shop", "held", None, gated).plan();
            assert_eq!((plan.clocks.len(), plan.counts), (0, Late::default()), "{value}");
        }
        // What nobody can have written starts anew.
        for wrong in ["soon", "2026-01-01T13:00:00Z"] {
            let forged = |pod: &mut Value| pod["metadata"]["annotations"][UNSCHEDULABLE_SINCE] = wrong.into();
            assert_eq!(Cluster::new().pod("shop", "p", None, forged).plan().clocks.len(), 1, "{wrong}");
        }
    }

    #[test]
    fn a_clock_is_written_to_the_version_of_the_pod_that_was_seen_and_to_nothing_else() {
        let clock = Cluster::new().pod("shop", "new", None, same).plan().clocks.swap_remove(0);
        let patch = start(&clock);
        let mut pod = json!({"metadata": {"resourceVersion": "7", "annotations": {DECISION: "late"}}});
        let expected = json!({"metadata": {"resourceVersion": "7",
            "annotations": {DECISION: "late", UNSCHEDULABLE_SINCE: "2026-01-01T12:00:00Z"}}});
        json_patch::patch(&mut pod, &patch).unwrap();
        assert_eq!(pod, expected);
        pod["metadata"]["resourceVersion"] = "8".into();
        json_patch::patch(&mut pod, &patch).unwrap();
        assert_eq!(pod["metadata"]["resourceVersion"], "7", "for the API server to refuse: it has changed since");
    }

    #[test]
    fn a_clock_that_is_older_than_its_pod_starts_anew_and_never_behind_the_pod() {
        let created =
            |at: Timestamp| move |pod: &mut Value| pod["metadata"]["creationTimestamp"] = json!(at.to_string());
        let restored = Cluster::new().pod("shop", "p", Some(900), created(before(899))).plan();
        assert_eq!((restored.burst.len(), restored.clocks.len()), (0, 1));
        // Where our clock is behind the API server's, what we write is believed all the same.
        let ahead = now() + Duration::from_secs(60);
        let cluster = Cluster::new().pod("shop", "p", None, created(ahead));
        let clock = cluster.plan().clocks.swap_remove(0);
        assert_eq!(clock.since, ahead);
        let started = |pod: &mut Value| {
            created(ahead)(pod);
            pod["metadata"]["annotations"][UNSCHEDULABLE_SINCE] = clock.since.to_string().into();
        };
        assert_eq!(Cluster::new().pod("shop", "p", None, started).plan().clocks, []);
    }

    #[test]
    fn a_pod_may_go_when_it_has_waited_late_after_and_its_share_of_a_tenth_more() {
        let cluster = |waited| Cluster::new().pod("shop", "p", Some(waited), same);
        let (early, late) = (cluster(179), cluster(200));
        assert_eq!(early.burst(), <[&str; 0]>::default());
        let next = early.plan().next.unwrap();
        assert!((1..20).contains(&next.as_secs()), "{next:?}");
        assert_eq!(late.burst(), ["p"]);
        let pod = &late.plan().burst[0];
        assert_eq!((pod.waited.as_secs(), pod.owner.kind.as_deref()), (200, Some("ReplicaSet")));
        let jitters: BTreeSet<_> = (0..100).map(|uid| jitter(&uid.to_string(), Duration::from_secs(180))).collect();
        assert!(jitters.len() > 50 && jitters.iter().all(|jitter| jitter.as_secs() < 18), "{jitters:?}");
        assert_eq!(jitter("uid", Duration::from_secs(180)), jitter("uid", Duration::from_secs(180)));
    }

    #[test]
    fn only_pods_that_were_marked_late_and_whose_namespace_still_says_so_go() {
        let decided =
            |decision: &'static str| move |pod: &mut Value| pod["metadata"]["annotations"][DECISION] = decision.into();
        let tolerates = |pod: &mut Value| {
            pod["spec"]["tolerations"] = json!([{"key": "virtual-kubelet.io/provider", "operator": "Exists"}]);
        };
        let cluster = Cluster::new()
            .pod("shop", "stays", Some(900), decided("stay: HostPathVolume"))
            .pod("shop", "prefers", Some(900), decided("prefer"))
            .pod("shop", "tolerates", Some(900), tolerates)
            .pod("plain", "was-late", Some(900), same)
            .pod("gone", "is-out", Some(900), same);
        assert_eq!(cluster.burst(), <[&str; 0]>::default());
        let by_itself = |pod: &mut Value| pod["metadata"]["annotations"]["spillway.dev/mode"] = "late".into();
        assert_eq!(Cluster::new().pod("plain", "p", Some(900), by_itself).burst(), ["p"]);
    }

    #[test]
    fn while_a_vm_is_on_its_way_a_pod_waits_longer_but_not_for_ever() {
        type Made = fn(u64) -> Cluster;
        let cases: [(&str, Made); 3] = [
            ("nominated", |waited| {
                Cluster::new().pod("shop", "p", Some(waited), |pod| pod["status"]["nominatedNodeName"] = "vm".into())
            }),
            ("announced", |waited| Cluster {
                coming: vec![(("shop".to_owned(), "p".to_owned()), before(waited - 30))],
                ..Cluster::new().pod("shop", "p", Some(waited), same)
            }),
            ("just ready", |waited| {
                let mut cluster = Cluster::new().pod("shop", "p", Some(waited), same);
                cluster.nodes.push(node("vm", &json!({}), 14));
                cluster
            }),
        ];
        for (case, cluster) in cases {
            let plan = cluster(599).plan();
            assert_eq!((plan.burst.len(), plan.counts.coming), (0, 1), "{case}");
            assert!(plan.next.unwrap() <= Duration::from_secs(1), "{case}");
            assert_eq!(cluster(600).burst(), ["p"], "{case}");
        }
        // What was announced for an earlier pod of that name, a VM that is there for long, one that does not take the pod: none of these comes.
        let mut cluster = Cluster::new().pod("shop", "p", Some(300), same);
        cluster.coming = vec![(("shop".to_owned(), "p".to_owned()), before(301))];
        cluster.nodes.push(node("old", &json!({}), 15));
        let mut tainted = node("tainted", &json!({}), 1);
        tainted["spec"] = json!({"taints": [{"key": "gpu", "effect": "NoSchedule"}]});
        cluster.nodes.push(tainted);
        assert_eq!(cluster.burst(), ["p"]);
    }

    #[test]
    fn an_announcement_counts_from_the_creation_of_the_pod_whatever_our_clock_says() {
        let old = |pod: &mut Value| pod["metadata"]["creationTimestamp"] = json!(before(310).to_string());
        let mut cluster = Cluster::new().pod("shop", "p", Some(300), old);
        cluster.coming = vec![(("shop".to_owned(), "p".to_owned()), before(305))];
        assert_eq!(cluster.plan().counts.coming, 1);
        cluster.coming[0].1 = before(311);
        assert_eq!(cluster.burst(), ["p"]);
    }

    #[test]
    fn a_vm_that_is_not_set_up_yet_is_on_its_way_and_one_that_takes_nobody_is_not() {
        for (key, cordoned, expected) in [
            ("node.cloudprovider.kubernetes.io/uninitialized", false, 1),
            ("node.kubernetes.io/not-ready", false, 1),
            ("node.kubernetes.io/not-ready", true, 0),
            ("node.kubernetes.io/disk-pressure", false, 0),
            ("gpu", false, 0),
        ] {
            let mut cluster = Cluster::new().pod("shop", "p", Some(300), same);
            let mut vm = node("vm", &json!({}), 60);
            vm["spec"] = json!({"unschedulable": cordoned, "taints": [{"key": key, "effect": "NoSchedule"}]});
            cluster.nodes.push(vm);
            assert_eq!(cluster.plan().counts.coming, expected, "{key} {cordoned}");
        }
    }

    #[test]
    fn an_owner_whose_pods_are_held_back_is_told_once_a_round() {
        let mut cluster = Cluster::new();
        cluster.nodes.clear();
        for name in ["a", "b", "c"] {
            cluster = cluster.pod("shop", name, Some(900), same);
        }
        let plan = cluster.plan();
        assert_eq!((plan.counts.closed, plan.withheld.len()), (3, 1));
    }

    #[test]
    fn pods_that_have_waited_longest_go_first_and_no_more_than_the_rate_permits() {
        let mut cluster = Cluster::configured("lateRate: {total: 3, perNamespace: 2}");
        for (name, waited) in [("a", 210), ("b", 240), ("c", 270), ("d", 300)] {
            cluster = cluster.pod("shop", name, Some(waited), same).pod(
                "other",
                &format!("{name}-too"),
                Some(waited - 1),
                same,
            );
        }
        let plan = cluster.plan();
        let burst: Vec<_> = plan.burst.iter().map(|pod| pod.name.1.as_str()).collect();
        assert_eq!(burst, ["d", "d-too", "c"]);
        assert_eq!((plan.counts.paced, plan.next), (5, Some(BEAT)));
        cluster.may_let = false;
        assert_eq!(cluster.burst(), <[&str; 0]>::default(), "one beat at a time");
    }

    #[test]
    fn pods_that_are_refused_again_and_again_keep_no_other_waiting() {
        let mut cluster = Cluster::configured("lateRate: {total: 1, perNamespace: 1}")
            .pod("shop", "refused", Some(900), same)
            .pod("shop", "next", Some(300), same);
        assert_eq!(cluster.burst(), ["refused"]);
        cluster.pauses.tries("refused", Instant::now());
        let plan = cluster.plan();
        assert_eq!(plan.burst[0].name.1, "next");
        assert_eq!((plan.counts.refused, plan.counts.paced), (1, 0));
        assert!(plan.withheld["rs"].note.starts_with("pod refused stays"), "{:?}", plan.withheld);
        assert_eq!(plan.next, None, "the next round is for the end of the pause");
        for number in 0..=CLOCKS {
            let name = format!("a{number:03}");
            cluster = cluster.pod("shop", &name, None, same);
            if number < CLOCKS {
                cluster.pauses.tries(&name, Instant::now());
            }
        }
        assert_eq!(cluster.plan().clocks.len(), 1);
    }

    #[test]
    fn no_pod_goes_to_virtual_nodes_that_take_nobody() {
        let taints: [fn(&mut Value); 4] = [
            |node| node["spec"] = json!({"taints": [{"key": "spillway.dev/full", "effect": "NoSchedule"}]}),
            |node| node["spec"] = json!({"unschedulable": true}),
            |node| node["status"] = json!({"conditions": [{"type": "Ready", "status": "Unknown"}]}),
            |node| node["metadata"]["labels"] = json!({}),
        ];
        for change in taints {
            let mut cluster = Cluster::new().pod("shop", "p", Some(900), same);
            change(&mut cluster.nodes[0]);
            let plan = cluster.plan();
            assert_eq!((plan.burst.len(), plan.counts.closed), (0, 1));
            assert!(plan.withheld["rs"].note.contains("closed"), "{:?}", plan.withheld);
        }
    }

    #[test]
    fn a_namespace_at_its_cap_gets_no_more_and_others_are_not_concerned() {
        let mut cluster = Cluster::configured("profiles: {autoscaled: {maxPods: 3}}");
        let let_already = |pod: &mut Value| {
            pod["spec"]["tolerations"] = json!([{"key": "virtual-kubelet.io/provider", "operator": "Exists"}]);
        };
        cluster = cluster.pod("shop", "let", Some(900), let_already);
        cluster.on_virtual =
            vec![json!({"metadata": {"namespace": "shop", "name": "there"}, "spec": {"containers": []}})];
        cluster.on_virtual.push(json!({
            "metadata": {"namespace": "shop", "name": "over"}, "spec": {"containers": []},
            "status": {"phase": "Failed", "reason": "ProviderFailed"},
        }));
        for name in ["a", "b"] {
            cluster = cluster.pod("shop", name, Some(900), same).pod("other", &format!("{name}-too"), Some(900), same);
        }
        let plan = cluster.plan();
        let mut burst: Vec<_> = plan.burst.iter().map(|pod| pod.name.1.as_str()).collect();
        burst.sort_unstable();
        assert_eq!(burst, ["a", "a-too", "b-too"]);
        assert_eq!(plan.counts.capped, 1);
        assert!(plan.withheld["rs"].note.contains("maxPods is 3"), "{:?}", plan.withheld);
    }

    #[test]
    fn a_pod_between_two_watches_has_its_place_of_the_cap() {
        let mut cluster = Cluster::configured("profiles: {autoscaled: {maxPods: 1}}").pod("shop", "a", Some(900), same);
        let (name, start) = (("shop".to_owned(), "let".to_owned()), Instant::now());
        let there = |names: &[&str]| {
            let pods = names.iter().map(|name| (("shop".to_owned(), (*name).to_owned()), VirtualPod::default()));
            OnVirtual::from([("virtual".to_owned(), pods.collect())])
        };
        let mut look = |after: Duration, names: &[&str]| {
            let mut way = OnTheirWay([(name.clone(), Some(start))].into());
            way.look(&Kept::default(), &there(names), start + after);
            cluster.on_their_way = way;
            cluster.burst().len()
        };
        assert_eq!(look(Duration::from_secs(4), &["another"]), 0, "it has left and not been seen to arrive");
        assert_eq!(look(Duration::from_secs(4), &["let"]), 1, "the watch of the virtual node counts it from now on");
        assert_eq!(look(ARRIVAL, &[]), 1, "it has gone elsewhere");
        let mut way = OnTheirWay([(name.clone(), None)].into());
        way.look(&Kept::default(), &there(&[]), start);
        assert_eq!(way.between().collect::<Vec<_>>(), [&name], "however long it had waited before it left");
    }

    #[test]
    fn nothing_is_decided_before_nodes_pods_and_what_autoscalers_said_are_known() {
        let cluster = Cluster::new().pod("shop", "p", Some(900), same);
        for unknown in ["waiting", "nodes", "the pods of a virtual node", "all of these", "coming"] {
            assert!(cluster.plan_without(unknown).is_none(), "{unknown}");
        }
        assert!(cluster.plan_without("").is_some());
    }

    #[tokio::test]
    async fn a_namespace_is_read_again_before_its_pods_go_wherever_the_watch_is() {
        for (label, mode, expected) in [
            ("autoscaled", "late", Outcome::Changed),
            ("disabled", "late", Outcome::Right),
            ("autoscaled", "off", Outcome::Right),
        ] {
            let answer = move |request: http::Request<Body>| async move {
                let metadata = json!({"name": "shop", "labels": {"spillway.dev/burst": label}, "annotations": {"spillway.dev/mode": mode}});
                let (kind, metadata) = match request.uri().path() {
                    "/api/v1/namespaces/shop" => ("Namespace", metadata),
                    _ => ("Pod", json!({"namespace": "shop", "name": "p"})),
                };
                let body = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata}).to_string();
                Ok::<_, Infallible>(http::Response::new(Body::from(body.into_bytes())))
            };
            let client = kube::Client::new(tower::service_fn(answer), "default");
            let context = Context {
                client: client.clone(),
                namespace: "spillway-system".to_owned(),
                configuration: tokio::sync::watch::Sender::new(Arc::default()).subscribe(),
                events: Events::new(client, "test"),
                tally: Tally::default(),
                metrics: ControllerMetrics::default(),
            };
            let due = Cluster::new().pod("shop", "p", Some(900), same).plan().burst;
            let outcome = let_go(&context, &Configuration::default(), due, &mut Pauses::default()).await.unwrap();
            assert_eq!(outcome, expected, "{label} {mode}");
        }
    }
}
