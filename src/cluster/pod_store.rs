//! The pods of the cluster, from one watch.
//!
//! The node of a pod decides whether the cache keeps the pod full or minimal. If a VM becomes a virtual node, its pods
//! are minimal, so the controller lists all pods again. Until then, the pods on virtual nodes are not known.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
};

use kube::Client;
use tokio::sync::watch;

use super::{
    node::Node,
    pod::{CachedPod, NodeKind, PodObject, PodState, ScheduledPod, UnscheduledPod, VirtualPod},
    watch::PAGE,
};
use crate::{
    config::{self, Selector},
    identity::observation,
    kubernetes::{Listing, ObjectKey, Refusal, Sink, Store, Watch},
    reload::configuration::{ConfigReceiver, until},
    telemetry::CacheMetrics,
};

/// All pods.
#[derive(Debug, Default)]
pub(crate) struct PodStore {
    pods: Store<CachedPod>,
    /// The known nodes by name, with `true` for virtual nodes.
    nodes: HashMap<String, bool>,
    /// `true` if a pod on a virtual node is minimal.
    needs_relist: bool,
    /// The identity settings with which the pods were reduced.
    settings: Option<config::Identity>,
}

impl PodStore {
    /// Returns whether the initial list is complete.
    pub(crate) fn is_listed(&self) -> bool {
        self.pods.is_listed()
    }

    /// Returns whether all nodes, and all pods on virtual nodes, are in the cache.
    pub(crate) fn has_synced_virtual_pods(&self, nodes: &Store<Node>, selector: &Selector) -> bool {
        let mut virtual_nodes = nodes.values().filter(|node| node.is_virtual(selector));
        self.is_listed()
            && nodes.is_listed()
            && !self.needs_relist
            && virtual_nodes.all(|node| self.kind_of(&node.name) == NodeKind::Virtual)
    }

    /// Returns a pod without a node.
    pub(crate) fn unscheduled_pod(&self, key: &ObjectKey) -> Option<&UnscheduledPod> {
        match &self.pods.get(key)?.state {
            PodState::Unscheduled(pod) => Some(pod),
            _ => None,
        }
    }

    /// Returns the pods without a node, sorted by key.
    pub(crate) fn unscheduled(&self) -> impl Iterator<Item = (&ObjectKey, &UnscheduledPod)> {
        self.pods.iter().filter_map(|(key, pod)| match &pod.state {
            PodState::Unscheduled(pod) => Some((key, &**pod)),
            _ => None,
        })
    }

    /// Returns the pods with a node of any kind.
    pub(crate) fn scheduled(&self) -> impl Iterator<Item = &ScheduledPod> {
        self.pods.values().filter_map(|pod| pod.state.scheduled())
    }

    /// Returns a pod on a virtual node.
    pub(crate) fn virtual_pod(&self, key: &ObjectKey) -> Option<&VirtualPod> {
        match &self.pods.get(key)?.state {
            PodState::OnVirtualNode(_, pod) => Some(pod),
            _ => None,
        }
    }

    /// Returns the pods on virtual nodes, sorted by key.
    pub(crate) fn on_virtual_nodes(&self) -> impl Iterator<Item = (&ObjectKey, &ScheduledPod, &VirtualPod)> {
        self.pods.iter().filter_map(|(key, pod)| match &pod.state {
            PodState::OnVirtualNode(scheduled, pod) => Some((key, scheduled, &**pod)),
            _ => None,
        })
    }

    /// Returns the input of the identity checks, if the pods were reduced with these settings.
    pub(crate) fn identity(&self, settings: &config::Identity) -> Listing<'_, observation::Pod> {
        if self.is_listed() && self.settings.as_ref() != Some(settings) {
            return Listing::Pending;
        }
        self.pods.project(|pod| pod.identity.as_deref())
    }

    fn kind_of(&self, node: &str) -> NodeKind {
        match self.nodes.get(node) {
            None => NodeKind::Unknown,
            Some(false) => NodeKind::Vm,
            Some(true) => NodeKind::Virtual,
        }
    }

    /// Changes the state of a pod to match the current kind of its node.
    fn reclassify(&self, pod: &mut CachedPod) -> Reclassified {
        let Some(scheduled) = pod.state.scheduled() else { return Reclassified::Unchanged };
        let kind = self.kind_of(&scheduled.node);
        match (kind, mem::take(&mut pod.state)) {
            (NodeKind::Vm, PodState::OnVirtualNode(_, full) | PodState::OnUnknownNode(_, full)) if full.has_ended => {
                Reclassified::Removed
            }
            (NodeKind::Vm, PodState::OnVirtualNode(minimal, _) | PodState::OnUnknownNode(minimal, _)) => {
                pod.state = PodState::OnVm(minimal);
                Reclassified::Changed
            }
            (NodeKind::Virtual, PodState::OnUnknownNode(minimal, full)) => {
                pod.state = PodState::OnVirtualNode(minimal, full);
                Reclassified::Changed
            }
            (NodeKind::Unknown, PodState::OnVirtualNode(minimal, full)) => {
                pod.state = PodState::OnUnknownNode(minimal, full);
                Reclassified::Changed
            }
            (NodeKind::Virtual, PodState::OnVm(minimal)) => {
                pod.state = PodState::OnVm(minimal);
                Reclassified::NeedsRelist
            }
            (_, same) => {
                pod.state = same;
                Reclassified::Unchanged
            }
        }
    }

    /// Changes the state of all pods to match the current kinds of their nodes. Returns whether any pod changed.
    fn reclassify_all(&mut self) -> bool {
        let mut pods = mem::take(&mut self.pods);
        let (mut has_changed, mut needs_relist) = (false, false);
        if let Store::Listed(all) = &mut pods {
            all.retain(|_, pod| {
                let result = self.reclassify(pod);
                has_changed |= matches!(result, Reclassified::Changed | Reclassified::Removed);
                needs_relist |= result == Reclassified::NeedsRelist;
                result != Reclassified::Removed
            });
        }
        (self.pods, self.needs_relist) = (pods, needs_relist);
        has_changed
    }
}

/// Result of [`PodStore::reclassify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reclassified {
    /// The state of the pod already matched its node.
    Unchanged,
    /// The state of the pod changed.
    Changed,
    /// The pod has ended and its node is a VM, so the cache removes the pod.
    Removed,
    /// The pod must be full but is minimal.
    NeedsRelist,
}

#[cfg(test)]
impl PodStore {
    /// Creates a store with a complete list of these pods. Only `virtual_nodes` are virtual nodes.
    pub(crate) fn of<'p>(pods: impl IntoIterator<Item = &'p serde_json::Value>, virtual_nodes: &[&str]) -> Self {
        let kind_of = |node: &str| if virtual_nodes.contains(&node) { NodeKind::Virtual } else { NodeKind::Vm };
        let read = |pod: &serde_json::Value| {
            let object: PodObject = serde_json::from_value(pod.clone()).unwrap();
            Some((ObjectKey::of(&object), CachedPod::read(&object, kind_of, |_| false)?))
        };
        let nodes = virtual_nodes.iter().map(|node| ((*node).to_owned(), true)).collect();
        Self { pods: pods.into_iter().filter_map(read).collect(), nodes, ..Self::default() }
    }

    /// Returns the store in which a pod on a virtual node is minimal.
    pub(crate) fn with_incomplete_virtual_pods(self) -> Self {
        Self { needs_relist: true, ..self }
    }
}

/// Publishes the pods, with a signal for each kind of reader.
#[derive(Debug)]
pub(crate) struct Pods {
    store: watch::Sender<PodStore>,
    unscheduled: watch::Sender<()>,
    scheduled: watch::Sender<()>,
    on_virtual_nodes: watch::Sender<()>,
    identity: watch::Sender<()>,
    /// Requests a new list of pods.
    relist: watch::Sender<()>,
}

impl Default for Pods {
    fn default() -> Self {
        let signal = || watch::Sender::new(());
        Self {
            store: watch::Sender::new(PodStore::default()),
            unscheduled: signal(),
            scheduled: signal(),
            on_virtual_nodes: signal(),
            identity: signal(),
            relist: signal(),
        }
    }
}

/// The parts of the store that a change affects.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent signals")]
struct Changes {
    unscheduled: bool,
    scheduled: bool,
    on_virtual_nodes: bool,
    identity: bool,
    /// `true` if the pods must be listed again.
    relist: bool,
}

impl Changes {
    /// Adds the change of one pod.
    fn add(&mut self, before: Option<&CachedPod>, after: Option<&CachedPod>) {
        let states = (before.map(|pod| &pod.state), after.map(|pod| &pod.state));
        if states.0 != states.1 {
            for state in [states.0, states.1].into_iter().flatten() {
                self.unscheduled |= matches!(state, PodState::Unscheduled(_));
                self.on_virtual_nodes |= matches!(state, PodState::OnVirtualNode(..));
            }
            self.scheduled |= states.0.and_then(PodState::scheduled) != states.1.and_then(PodState::scheduled);
        }
        self.identity |= before.and_then(|pod| pod.identity.as_ref()) != after.and_then(|pod| pod.identity.as_ref());
    }

    fn all() -> Self {
        Self { unscheduled: true, scheduled: true, on_virtual_nodes: true, identity: true, relist: false }
    }
}

impl Pods {
    /// Returns the current pods.
    pub(crate) fn borrow(&self) -> watch::Ref<'_, PodStore> {
        self.store.borrow()
    }

    /// Signals changes of pods without a node.
    pub(crate) fn unscheduled(&self) -> watch::Receiver<()> {
        self.unscheduled.subscribe()
    }

    /// Signals changes of the minimal part of pods with a node.
    pub(crate) fn scheduled(&self) -> watch::Receiver<()> {
        self.scheduled.subscribe()
    }

    /// Signals changes of pods on virtual nodes.
    pub(crate) fn on_virtual_nodes(&self) -> watch::Receiver<()> {
        self.on_virtual_nodes.subscribe()
    }

    /// Signals changes of the input of the identity checks.
    pub(crate) fn identity(&self) -> watch::Receiver<()> {
        self.identity.subscribe()
    }

    fn publish(&self, change: impl FnOnce(&mut PodStore) -> Changes) {
        let mut changes = Changes::default();
        self.store.send_modify(|store| changes = change(store));
        let signals = [
            (changes.unscheduled, &self.unscheduled),
            (changes.scheduled, &self.scheduled),
            (changes.on_virtual_nodes, &self.on_virtual_nodes),
            (changes.identity, &self.identity),
            (changes.relist, &self.relist),
        ];
        for (_, signal) in signals.into_iter().filter(|(is_changed, _)| *is_changed) {
            signal.send_replace(());
        }
    }

    /// Watches pods and nodes until the future is dropped.
    pub(super) async fn run(
        &self,
        client: &Client,
        metrics: &CacheMetrics,
        configuration: &ConfigReceiver,
        nodes: watch::Receiver<Store<Node>>,
    ) {
        let pods = Watch::all(client, "pods").page_size(PAGE).count_undecodable(metrics);
        tokio::join!(self.follow_nodes(configuration, nodes.clone()), self.follow_pods(&pods, configuration, nodes));
    }

    /// Updates the kinds of nodes after changes of the nodes or of the selector.
    async fn follow_nodes(&self, configuration: &ConfigReceiver, mut nodes: watch::Receiver<Store<Node>>) {
        loop {
            let selector = configuration.borrow().virtual_nodes.selector.clone();
            let kinds = kinds(&nodes.borrow_and_update(), &selector);
            self.set_nodes(kinds);
            tokio::select! {
                changed = nodes.changed() => if changed.is_err() { return },
                () = until(configuration, |now| now.virtual_nodes.selector != selector) => {}
            }
        }
    }

    fn set_nodes(&self, nodes: HashMap<String, bool>) {
        if self.store.borrow().nodes == nodes {
            return;
        }
        self.publish(|store| {
            store.nodes = nodes;
            let needed_relist = store.needs_relist;
            let on_virtual_nodes = store.reclassify_all();
            Changes { on_virtual_nodes, relist: store.needs_relist && !needed_relist, ..Changes::default() }
        });
    }

    async fn follow_pods(
        &self,
        pods: &Watch<PodObject>,
        configuration: &ConfigReceiver,
        mut nodes: watch::Receiver<Store<Node>>,
    ) {
        // While no node is known, the cache would keep every pod full.
        let _ = nodes.wait_for(|nodes| !nodes.is_pending()).await;
        let mut relist = self.relist.subscribe();
        loop {
            relist.mark_unchanged();
            let settings = configuration.borrow().identity.clone();
            let sink = PodSink { pods: self, settings: &settings };
            tokio::select! {
                () = pods.run(|object| self.reduce(&object, &settings), &sink) => {}
                () = until(configuration, |now| now.identity != settings) => {}
                _ = relist.changed() => tracing::debug!("a VM became a virtual node, listing pods again"),
            }
        }
    }

    fn reduce(&self, object: &PodObject, settings: &config::Identity) -> Option<CachedPod> {
        let store = self.store.borrow();
        // If the API server forbids reading nodes, every node counts as a VM. Spillway cannot act on virtual nodes then.
        let kind_of = |node: &str| if store.nodes.is_empty() { NodeKind::Vm } else { store.kind_of(node) };
        CachedPod::read(object, kind_of, |namespace| settings.enabled && settings.covers(namespace))
    }
}

fn kinds(nodes: &Store<Node>, selector: &Selector) -> HashMap<String, bool> {
    nodes.values().map(|node| (node.name.clone(), node.is_virtual(selector))).collect()
}

/// Receives the pods of the watch.
struct PodSink<'p> {
    pods: &'p Pods,
    settings: &'p config::Identity,
}

impl Sink<CachedPod> for PodSink<'_> {
    fn replace(&self, all: BTreeMap<ObjectKey, CachedPod>) {
        self.pods.publish(|store| {
            let is_changed = store.pods.replace(all) || store.settings.as_ref() != Some(self.settings);
            store.settings = Some(self.settings.clone());
            let has_changed = store.reclassify_all();
            let changes = if is_changed || has_changed { Changes::all() } else { Changes::default() };
            // A node may have become virtual while its pods were listed.
            Changes { relist: store.needs_relist, ..changes }
        });
    }

    fn apply(&self, key: ObjectKey, mut pod: Option<CachedPod>) {
        self.pods.publish(|store| {
            let result = pod.as_mut().map(|pod| store.reclassify(pod));
            pod = pod.take().filter(|_| result != Some(Reclassified::Removed));
            let needs_relist = result == Some(Reclassified::NeedsRelist);
            let mut changes = Changes { relist: needs_relist && !store.needs_relist, ..Changes::default() };
            store.needs_relist |= needs_relist;
            changes.add(store.pods.get(&key), pod.as_ref());
            store.pods.put(key, pod);
            changes
        });
    }

    fn refuse(&self, refusal: Refusal) {
        self.pods.publish(|store| if store.pods.refuse(refusal) { Changes::all() } else { Changes::default() });
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use serde_json::{Value, json};
    use tokio::{task::JoinSet, time::timeout};

    use super::*;
    use crate::{cluster::NodeObject, config::Configuration, kubernetes::testing::FakeApi};

    const PODS: &str = "/api/v1/pods";
    const NODES: &str = "/api/v1/nodes";

    /// A node. A virtual one has the label that the configuration selects by default.
    fn node(name: &str, is_virtual: bool) -> Value {
        let kind = if is_virtual { "virtual-kubelet" } else { "vm" };
        json!({"metadata": {"name": name, "labels": {"type": kind}}})
    }

    /// A pod of mode `late` on this node, or without one.
    fn pod(name: &str, node: Option<&str>) -> Value {
        json!({
            "metadata": {"namespace": "shop", "name": name, "uid": name, "labels": {"app": "web"},
                "annotations": {"spillway.dev/decision": "late"}},
            "spec": {"nodeName": node, "nodeSelector": {"disk": "ssd"}, "tolerations": [],
                "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": "Pending"},
        })
    }

    /// The pods of a cluster with the nodes `vm` and `virtual`.
    struct TestCluster {
        api: FakeApi,
        pods: Arc<Pods>,
        nodes: watch::Receiver<Store<Node>>,
        configuration: watch::Sender<Arc<Configuration>>,
        _tasks: JoinSet<()>,
    }

    impl TestCluster {
        async fn start(pods: &[Value]) -> Self {
            let api = FakeApi::default();
            api.apply(NODES, node("vm", false));
            api.apply(NODES, node("virtual", true));
            for pod in pods {
                api.apply(PODS, pod.clone());
            }
            let (client, mut tasks) = (api.client(), JoinSet::new());
            let (publish, nodes) = watch::channel(Store::default());
            Watch::<NodeObject>::all(&client, "nodes").spawn(&mut tasks, Node::read, publish);
            let (configuration, receiver) = watch::channel(Arc::<Configuration>::default());
            let cluster = Self { api, pods: Arc::default(), nodes, configuration, _tasks: JoinSet::new() };
            let (pods, nodes) = (cluster.pods.clone(), cluster.nodes.clone());
            tasks.spawn(async move { pods.run(&client, &CacheMetrics::default(), &receiver, nodes).await });
            let cluster = Self { _tasks: tasks, ..cluster };
            cluster.until("the pods are listed", PodStore::is_listed).await;
            cluster
        }

        async fn until(&self, what: &str, condition: impl Fn(&PodStore) -> bool) {
            let mut store = self.pods.store.subscribe();
            let met = timeout(Duration::from_secs(60), store.wait_for(condition)).await;
            assert!(met.is_ok(), "{what}: {:?}", self.pods.borrow());
        }

        async fn until_synced(&self, what: &str) {
            let selector = Configuration::default().virtual_nodes.selector;
            self.until(what, |pods| pods.has_synced_virtual_pods(&self.nodes.borrow(), &selector)).await;
        }

        fn lists(&self) -> usize {
            self.api.requests(PODS).iter().filter(|query| !query.contains("watch=true")).count()
        }
    }

    /// Returns the state in which the cache keeps a pod.
    fn kept(pods: &PodStore, name: &str) -> &'static str {
        let key = ObjectKey::new("shop", name);
        match pods.pods.get(&key).map(|pod| &pod.state) {
            None => "nothing",
            Some(PodState::Unscheduled(pod)) if pod.pod().is_some() => "unscheduled, full",
            Some(PodState::Unscheduled(_)) => "unscheduled, minimal",
            Some(PodState::OnVm(_)) => "on a VM, minimal",
            Some(PodState::OnVirtualNode(_, pod)) if pod.pod().is_some() => "on a virtual node, full",
            Some(PodState::OnVirtualNode(..)) => "on a virtual node, without its view",
            Some(PodState::OnUnknownNode(_, pod)) if pod.pod().is_some() => "on an unknown node, full",
            Some(PodState::OnUnknownNode(..)) => "on an unknown node, without its view",
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pods_are_full_only_where_scheduling_fields_are_needed() {
        let undecided = |name, node| {
            let mut pod = pod(name, node);
            pod["metadata"]["annotations"] = json!({});
            pod
        };
        let pods = [
            pod("waits", None),
            undecided("new", None),
            pod("on-vm", Some("vm")),
            pod("on-virtual", Some("virtual")),
            undecided("missed", Some("vm")),
        ];
        let cluster = TestCluster::start(&pods).await;
        let pods = cluster.pods.borrow();
        let names = ["waits", "new", "on-vm", "on-virtual", "missed", "other"];
        assert_eq!(
            names.map(|name| kept(&pods, name)),
            [
                "unscheduled, full",
                "unscheduled, minimal",
                "on a VM, minimal",
                "on a virtual node, full",
                "on a VM, minimal",
                "nothing"
            ]
        );
        let undecided: Vec<_> = pods.scheduled().filter_map(|pod| Some(&*pod.undecided.as_ref()?.meta.name)).collect();
        assert_eq!(undecided, ["missed"]);
        let waiting = pods.unscheduled_pod(&ObjectKey::new("shop", "waits")).unwrap();
        let view = waiting.pod().unwrap();
        assert_eq!(view.spec.node_selector.as_ref().unwrap().get("disk"), Some("ssd"));
        assert_eq!(view.annotation("spillway.dev/decision"), Some("late"));
        assert_eq!(cluster.api.watches()[PODS], 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_becomes_minimal_on_a_vm_and_stays_full_on_a_virtual_node() {
        let cluster = TestCluster::start(&[pod("a", None), pod("b", None)]).await;
        cluster.api.apply(PODS, pod("a", Some("vm")));
        cluster.api.apply(PODS, pod("b", Some("virtual")));
        cluster.until("the pod on the VM is minimal", |pods| kept(pods, "a") == "on a VM, minimal").await;
        cluster.until("the pod on the virtual node is full", |pods| kept(pods, "b") == "on a virtual node, full").await;
        assert_eq!(cluster.pods.borrow().unscheduled().count(), 0);
        cluster.api.delete(PODS, pod("a", Some("vm")));
        cluster.api.delete(PODS, pod("b", Some("virtual")));
        cluster.until("both pods are deleted", |pods| pods.scheduled().count() == 0).await;
        assert_eq!(cluster.lists(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unscheduled_pod_is_full_while_it_has_a_decision() {
        let mut undecided = pod("a", None);
        undecided["metadata"]["annotations"] = json!({});
        let cluster = TestCluster::start(std::slice::from_ref(&undecided)).await;
        let labels = |pods: &PodStore| pods.unscheduled_pod(&ObjectKey::new("shop", "a")).unwrap().labels.len();
        assert_eq!((kept(&cluster.pods.borrow(), "a"), labels(&cluster.pods.borrow())), ("unscheduled, minimal", 1));
        cluster.api.apply(PODS, pod("a", None));
        cluster
            .until("the pod has a decision", |pods| kept(pods, "a") == "unscheduled, full" && labels(pods) == 0)
            .await;
        cluster.api.apply(PODS, undecided);
        cluster
            .until("the pod has no decision", |pods| kept(pods, "a") == "unscheduled, minimal" && labels(pods) == 1)
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn pods_on_an_unknown_node_are_full_until_it_is_known() {
        let cluster = TestCluster::start(&[]).await;
        for (name, node) in [("a", "new-vm"), ("b", "new-virtual")] {
            cluster.api.apply(PODS, pod(name, Some(node)));
            cluster.until("the pod is kept", |pods| kept(pods, name) == "on an unknown node, full").await;
        }
        assert_eq!(cluster.pods.borrow().on_virtual_nodes().count(), 0);
        cluster.api.apply(NODES, node("new-vm", false));
        cluster.api.apply(NODES, node("new-virtual", true));
        cluster.until("the pod on the VM is minimal", |pods| kept(pods, "a") == "on a VM, minimal").await;
        cluster.until("the pod on the virtual node is full", |pods| kept(pods, "b") == "on a virtual node, full").await;
        cluster.until_synced("the pods are known").await;
        cluster.api.delete(NODES, node("new-virtual", true));
        cluster.until("the node is deleted", |pods| kept(pods, "b") == "on an unknown node, full").await;
        assert_eq!(cluster.lists(), 1, "the pods are not listed again");
    }

    #[tokio::test(start_paused = true)]
    async fn pods_are_listed_again_when_their_vm_becomes_a_virtual_node() {
        let cluster = TestCluster::start(&[pod("a", Some("vm"))]).await;
        let selector = Configuration::default().virtual_nodes.selector;
        cluster.until_synced("the pods are known").await;
        cluster.api.apply(NODES, node("vm", true));
        // Once the node counts as virtual, its pods do not count as known.
        let mut nodes = cluster.nodes.clone();
        nodes.wait_for(|nodes| nodes.values().all(|node| node.is_virtual(&selector))).await.unwrap();
        assert!(!cluster.pods.borrow().has_synced_virtual_pods(&cluster.nodes.borrow(), &selector));
        cluster.until("the pod is full", |pods| kept(pods, "a") == "on a virtual node, full").await;
        cluster.until_synced("the pods are known").await;
        assert_eq!(cluster.lists(), 2);
        // The opposite change needs no list.
        cluster.api.apply(NODES, node("vm", false));
        cluster.until("the pod is minimal", |pods| kept(pods, "a") == "on a VM, minimal").await;
        assert_eq!(cluster.lists(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_node_selector_changes_the_pods_on_its_nodes() {
        let cluster = TestCluster::start(&[pod("a", Some("vm")), pod("b", Some("virtual"))]).await;
        let file = "apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\nvirtualNodes: {selector: type=vm}";
        cluster.configuration.send_replace(Arc::new(crate::config::parse(file).unwrap()));
        cluster.until("the former VM's pod", |pods| kept(pods, "a") == "on a virtual node, full").await;
        cluster.until("the other", |pods| kept(pods, "b") == "on a VM, minimal").await;
    }

    #[tokio::test(start_paused = true)]
    async fn readers_are_woken_only_by_relevant_changes() {
        let cluster = TestCluster::start(&[pod("a", None), pod("b", Some("virtual")), pod("c", Some("vm"))]).await;
        let signals = [
            cluster.pods.unscheduled(),
            cluster.pods.scheduled(),
            cluster.pods.on_virtual_nodes(),
            cluster.pods.identity(),
        ];
        let change = async |object: Value| {
            let mut signals = signals.clone();
            let mut store = cluster.pods.store.subscribe();
            signals.iter_mut().for_each(watch::Receiver::mark_unchanged);
            store.mark_unchanged();
            cluster.api.apply(PODS, object);
            timeout(Duration::from_secs(60), store.changed()).await.unwrap().unwrap();
            signals.map(|signal| signal.has_changed().unwrap())
        };
        let running = |mut pod: Value| {
            pod["status"]["phase"] = "Running".into();
            pod
        };
        // The minimal part of a pod on a VM does not change.
        assert_eq!(change(running(pod("c", Some("vm")))).await, [false; 4]);
        assert_eq!(change(running(pod("b", Some("virtual")))).await, [false, false, true, false]);
        assert_eq!(change(pod("a", Some("vm"))).await, [true, true, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_input_of_identity_checks_follows_their_settings() {
        let mut labelled = pod("a", Some("vm"));
        labelled["metadata"]["labels"]["azure.workload.identity/use"] = "true".into();
        let cluster = TestCluster::start(&[labelled]).await;
        let settings = Configuration::default().identity;
        let names = |pods: &PodStore, settings| {
            let listing = pods.identity(settings);
            listing.listed().map(|all| all.iter().map(|(key, _)| key.name.clone()).collect::<Vec<_>>())
        };
        assert_eq!(names(&cluster.pods.borrow(), &settings), Some(vec!["a".to_owned()]));
        let file = "apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\nidentity: {enabled: false}";
        let off = crate::config::parse(file).unwrap();
        assert_eq!(names(&cluster.pods.borrow(), &off.identity), None, "pending, not empty");
        cluster.configuration.send_replace(Arc::new(off.clone()));
        cluster.until("nothing is kept", |pods| names(pods, &off.identity) == Some(Vec::new())).await;
        assert_eq!(names(&cluster.pods.borrow(), &settings), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_too_large_has_no_scheduling_view() {
        let mut large = pod("a", None);
        let value = "x".repeat(70_000);
        large["spec"]["nodeSelector"] = json!({"key": value});
        let mut on_virtual = large.clone();
        on_virtual["metadata"]["name"] = "b".into();
        on_virtual["spec"]["nodeName"] = "virtual".into();
        let mut with_large_env = pod("c", None);
        with_large_env["spec"]["containers"][0]["env"] = json!([{"name": "TEXT", "value": value}]);
        let cluster = TestCluster::start(&[large, on_virtual, with_large_env]).await;
        let pods = cluster.pods.borrow();
        assert_eq!(kept(&pods, "a"), "unscheduled, minimal");
        assert_eq!(kept(&pods, "b"), "on a virtual node, without its view");
        assert_eq!(kept(&pods, "c"), "unscheduled, full", "scheduling does not depend on environment variables");
    }
}
