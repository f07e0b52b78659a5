//! The pods of the cluster, from one watch.
//!
//! What is kept of a pod depends on its node. Where a node becomes virtual whose pods are slim, the pods are listed again: until then the
//! pods on virtual nodes are not known.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
};

use kube::Client;
use tokio::sync::watch;

use super::{
    node::Node,
    pod::{CachedPod, NodeKind, PodObject, PodState, ScheduledPod, UnscheduledPod, VirtualPod},
};
use crate::{
    config::{self, Selector},
    identity::observation,
    kubernetes::{Listing, ObjectKey, Refusal, Sink, Store, Watch},
    reload::configuration::{ConfigReceiver, until},
};

/// Pods in one page of a list: they are large, and a page is in memory as a whole.
const PAGE: u32 = 100;

/// All pods.
#[derive(Debug, Default)]
pub(crate) struct PodStore {
    pods: Store<CachedPod>,
    /// By name, `true` for virtual nodes; what is not here has not been seen.
    nodes: HashMap<String, bool>,
    /// `true` if a pod on a virtual node is slim.
    lacks_virtual: bool,
    /// The identity settings by which pods were reduced.
    settings: Option<config::Identity>,
}

impl PodStore {
    /// Returns whether a complete list has arrived.
    pub(crate) fn is_listed(&self) -> bool {
        self.pods.is_listed()
    }

    /// Returns whether all nodes have arrived, and all pods on those that are virtual.
    pub(crate) fn knows_virtual(&self, nodes: &Store<Node>, selector: &Selector) -> bool {
        let mut virtual_nodes = nodes.values().filter(|node| node.is_virtual(selector));
        self.is_listed()
            && nodes.is_listed()
            && !self.lacks_virtual
            && virtual_nodes.all(|node| self.kind_of(&node.name) == NodeKind::Virtual)
    }

    /// A pod that has no node.
    pub(crate) fn unscheduled_pod(&self, key: &ObjectKey) -> Option<&UnscheduledPod> {
        match &self.pods.get(key)?.state {
            PodState::Unscheduled(pod) => Some(pod),
            _ => None,
        }
    }

    /// The pods that have no node, in the order of their keys.
    pub(crate) fn unscheduled(&self) -> impl Iterator<Item = (&ObjectKey, &UnscheduledPod)> {
        self.pods.iter().filter_map(|(key, pod)| match &pod.state {
            PodState::Unscheduled(pod) => Some((key, &**pod)),
            _ => None,
        })
    }

    /// The pods that have a node, of any kind.
    pub(crate) fn scheduled(&self) -> impl Iterator<Item = &ScheduledPod> {
        self.pods.values().filter_map(|pod| pod.state.scheduled())
    }

    /// A pod on a virtual node.
    pub(crate) fn virtual_pod(&self, key: &ObjectKey) -> Option<&VirtualPod> {
        match &self.pods.get(key)?.state {
            PodState::OnVirtualNode(_, pod) => Some(pod),
            _ => None,
        }
    }

    /// The pods on virtual nodes, in the order of their keys.
    pub(crate) fn on_virtual_nodes(&self) -> impl Iterator<Item = (&ObjectKey, &ScheduledPod, &VirtualPod)> {
        self.pods.iter().filter_map(|(key, pod)| match &pod.state {
            PodState::OnVirtualNode(slim, pod) => Some((key, slim, &**pod)),
            _ => None,
        })
    }

    /// What identity checks read of pods, by these settings.
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

    /// Keeps a pod as what its node is now.
    fn settle(&self, pod: &mut CachedPod) -> Settled {
        let Some(slim) = pod.state.scheduled() else { return Settled::Right };
        let kind = self.kind_of(&slim.node);
        match (kind, mem::take(&mut pod.state)) {
            (NodeKind::Vm, PodState::OnVirtualNode(_, full) | PodState::OnUnknownNode(_, full)) if full.is_over => {
                Settled::Gone
            }
            (NodeKind::Vm, PodState::OnVirtualNode(slim, _) | PodState::OnUnknownNode(slim, _)) => {
                pod.state = PodState::OnVm(slim);
                Settled::Moved
            }
            (NodeKind::Virtual, PodState::OnUnknownNode(slim, full)) => {
                pod.state = PodState::OnVirtualNode(slim, full);
                Settled::Moved
            }
            (NodeKind::Unknown, PodState::OnVirtualNode(slim, full)) => {
                pod.state = PodState::OnUnknownNode(slim, full);
                Settled::Moved
            }
            (NodeKind::Virtual, PodState::OnVm(slim)) => {
                pod.state = PodState::OnVm(slim);
                Settled::SecretError
            }
            (_, same) => {
                pod.state = same;
                Settled::Right
            }
        }
    }

    /// Keeps all pods as what their nodes are now. Returns whether any of them moved.
    fn settle_all(&mut self) -> bool {
        let mut pods = mem::take(&mut self.pods);
        let (mut has_moved, mut lacks_virtual) = (false, false);
        if let Store::Listed(all) = &mut pods {
            all.retain(|_, pod| {
                let settled = self.settle(pod);
                has_moved |= matches!(settled, Settled::Moved | Settled::Gone);
                lacks_virtual |= settled == Settled::SecretError;
                settled != Settled::Gone
            });
        }
        (self.pods, self.lacks_virtual) = (pods, lacks_virtual);
        has_moved
    }
}

/// What came of looking at a pod's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    /// The pod is kept as it was.
    Right,
    /// It is kept as another kind of pod now.
    Moved,
    /// It no longer counts.
    Gone,
    /// It would have to be kept in full, and is slim.
    SecretError,
}

#[cfg(test)]
impl PodStore {
    /// A complete list of pods as the API server has them, on nodes of which these are virtual.
    pub(crate) fn of<'p>(pods: impl IntoIterator<Item = &'p serde_json::Value>, virtual_nodes: &[&str]) -> Self {
        let kind_of = |node: &str| if virtual_nodes.contains(&node) { NodeKind::Virtual } else { NodeKind::Vm };
        let read = |pod: &serde_json::Value| {
            let object: PodObject = serde_json::from_value(pod.clone()).unwrap();
            Some((ObjectKey::of(&object), CachedPod::read(&object, kind_of, |_| false)?))
        };
        let nodes = virtual_nodes.iter().map(|node| ((*node).to_owned(), true)).collect();
        Self { pods: pods.into_iter().filter_map(read).collect(), nodes, ..Self::default() }
    }

    /// The same before pods of a node that has become virtual have been listed again.
    pub(crate) fn with_slim_virtual_pods(self) -> Self {
        Self { lacks_virtual: true, ..self }
    }
}

/// The pods as they are published.
#[derive(Debug)]
pub(crate) struct Pods {
    store: watch::Sender<PodStore>,
    unscheduled: watch::Sender<()>,
    scheduled: watch::Sender<()>,
    on_virtual_nodes: watch::Sender<()>,
    identity: watch::Sender<()>,
    /// The pods are to be listed again.
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

/// What has changed.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent signals")]
struct News {
    unscheduled: bool,
    scheduled: bool,
    on_virtual_nodes: bool,
    identity: bool,
    /// Pods on a virtual node are slim.
    relist: bool,
}

impl News {
    /// A change of one pod.
    fn compare(&mut self, before: Option<&CachedPod>, after: Option<&CachedPod>) {
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
    /// All pods, as they are now.
    pub(crate) fn borrow(&self) -> watch::Ref<'_, PodStore> {
        self.store.borrow()
    }

    /// Changes of pods that have no node.
    pub(crate) fn unscheduled(&self) -> watch::Receiver<()> {
        self.unscheduled.subscribe()
    }

    /// Changes of pods that have a node, as far as all of them are kept.
    pub(crate) fn scheduled(&self) -> watch::Receiver<()> {
        self.scheduled.subscribe()
    }

    /// Changes of pods on virtual nodes.
    pub(crate) fn on_virtual_nodes(&self) -> watch::Receiver<()> {
        self.on_virtual_nodes.subscribe()
    }

    /// Changes of what identity checks read.
    pub(crate) fn identity(&self) -> watch::Receiver<()> {
        self.identity.subscribe()
    }

    fn publish(&self, change: impl FnOnce(&mut PodStore) -> News) {
        let mut news = News::default();
        self.store.send_modify(|store| news = change(store));
        let signals = [
            (news.unscheduled, &self.unscheduled),
            (news.scheduled, &self.scheduled),
            (news.on_virtual_nodes, &self.on_virtual_nodes),
            (news.identity, &self.identity),
            (news.relist, &self.relist),
        ];
        for (_, signal) in signals.into_iter().filter(|(is_news, _)| *is_news) {
            signal.send_replace(());
        }
    }

    /// Watches pods as long as it is polled.
    pub(super) async fn run(
        &self,
        client: &Client,
        configuration: &ConfigReceiver,
        nodes: watch::Receiver<Store<Node>>,
    ) {
        tokio::join!(self.follow_nodes(configuration, nodes.clone()), self.follow_pods(client, configuration, nodes));
    }

    /// Follows which nodes are virtual.
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
            let lacked = store.lacks_virtual;
            let on_virtual_nodes = store.settle_all();
            News { on_virtual_nodes, relist: store.lacks_virtual && !lacked, ..News::default() }
        });
    }

    async fn follow_pods(
        &self,
        client: &Client,
        configuration: &ConfigReceiver,
        mut nodes: watch::Receiver<Store<Node>>,
    ) {
        // Without nodes, every pod would have to be kept in full.
        let _ = nodes.wait_for(|nodes| !nodes.is_pending()).await;
        let mut relist = self.relist.subscribe();
        loop {
            relist.mark_unchanged();
            let settings = configuration.borrow().identity.clone();
            let watch = Watch::all(client, "pods").page_size(PAGE);
            let sink = PodSink { pods: self, settings: &settings };
            tokio::select! {
                () = watch.run(|object| self.reduce(&object, &settings), &sink) => {}
                () = until(configuration, |now| now.identity != settings) => {}
                _ = relist.changed() => tracing::debug!("a node has become virtual, listing pods again"),
            }
        }
    }

    fn reduce(&self, object: &PodObject, settings: &config::Identity) -> Option<CachedPod> {
        let store = self.store.borrow();
        // Nodes that may not be read are taken for VMs: nothing can be done about pods on the others.
        let kind_of = |node: &str| if store.nodes.is_empty() { NodeKind::Vm } else { store.kind_of(node) };
        CachedPod::read(object, kind_of, |namespace| settings.enabled && settings.covers(namespace))
    }
}

fn kinds(nodes: &Store<Node>, selector: &Selector) -> HashMap<String, bool> {
    nodes.values().map(|node| (node.name.clone(), node.is_virtual(selector))).collect()
}

/// Takes what the watch of pods brings.
struct PodSink<'p> {
    pods: &'p Pods,
    settings: &'p config::Identity,
}

impl Sink<CachedPod> for PodSink<'_> {
    fn replace(&self, all: BTreeMap<ObjectKey, CachedPod>) {
        self.pods.publish(|store| {
            let is_news = store.pods.replace(all) || store.settings.as_ref() != Some(self.settings);
            store.settings = Some(self.settings.clone());
            let has_moved = store.settle_all();
            let news = if is_news || has_moved { News::all() } else { News::default() };
            // A node may have become virtual while its pods were listed.
            News { relist: store.lacks_virtual, ..news }
        });
    }

    fn apply(&self, key: ObjectKey, mut pod: Option<CachedPod>) {
        self.pods.publish(|store| {
            let settled = pod.as_mut().map(|pod| store.settle(pod));
            pod = pod.take().filter(|_| settled != Some(Settled::Gone));
            let is_lacking = settled == Some(Settled::SecretError);
            let mut news = News { relist: is_lacking && !store.lacks_virtual, ..News::default() };
            store.lacks_virtual |= is_lacking;
            news.compare(store.pods.get(&key), pod.as_ref());
            store.pods.put(key, pod);
            news
        });
    }

    fn refuse(&self, refusal: Refusal) {
        self.pods.publish(|store| if store.pods.refuse(refusal) { News::all() } else { News::default() });
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

    /// A node; it is virtual by the label that the configuration selects by default.
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

    /// The pods of a cluster that has `vm` and `virtual`.
    struct World {
        api: FakeApi,
        pods: Arc<Pods>,
        nodes: watch::Receiver<Store<Node>>,
        configuration: watch::Sender<Arc<Configuration>>,
        _tasks: JoinSet<()>,
    }

    impl World {
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
            let world = Self { api, pods: Arc::default(), nodes, configuration, _tasks: JoinSet::new() };
            let (pods, nodes) = (world.pods.clone(), world.nodes.clone());
            tasks.spawn(async move { pods.run(&client, &receiver, nodes).await });
            let world = Self { _tasks: tasks, ..world };
            world.until("the pods are listed", PodStore::is_listed).await;
            world
        }

        async fn until(&self, what: &str, condition: impl Fn(&PodStore) -> bool) {
            let mut store = self.pods.store.subscribe();
            let met = timeout(Duration::from_secs(60), store.wait_for(condition)).await;
            assert!(met.is_ok(), "{what}: {:?}", self.pods.borrow());
        }

        async fn until_known(&self, what: &str) {
            let selector = Configuration::default().virtual_nodes.selector;
            self.until(what, |pods| pods.knows_virtual(&self.nodes.borrow(), &selector)).await;
        }

        fn lists(&self) -> usize {
            self.api.asked(PODS).iter().filter(|query| !query.contains("watch=true")).count()
        }
    }

    /// What is kept of a pod.
    fn kept(pods: &PodStore, name: &str) -> &'static str {
        let key = ObjectKey::new("shop", name);
        match pods.pods.get(&key).map(|pod| &pod.state) {
            None => "nothing",
            Some(PodState::Unscheduled(pod)) if pod.pod().is_some() => "unscheduled, in full",
            Some(PodState::Unscheduled(_)) => "unscheduled, slim",
            Some(PodState::OnVm(_)) => "on a VM, slim",
            Some(PodState::OnVirtualNode(_, pod)) if pod.pod().is_some() => "on a virtual node, in full",
            Some(PodState::OnVirtualNode(..)) => "on a virtual node, without its view",
            Some(PodState::OnUnknownNode(_, pod)) if pod.pod().is_some() => "on an unknown node, in full",
            Some(PodState::OnUnknownNode(..)) => "on an unknown node, without its view",
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pods_are_kept_in_full_only_where_scheduling_is_looked_at() {
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
        let world = World::start(&pods).await;
        let pods = world.pods.borrow();
        let names = ["waits", "new", "on-vm", "on-virtual", "missed", "other"];
        assert_eq!(
            names.map(|name| kept(&pods, name)),
            [
                "unscheduled, in full",
                "unscheduled, slim",
                "on a VM, slim",
                "on a virtual node, in full",
                "on a VM, slim",
                "nothing"
            ]
        );
        let undecided: Vec<_> = pods.scheduled().filter_map(|pod| Some(&*pod.undecided.as_ref()?.meta.name)).collect();
        assert_eq!(undecided, ["missed"]);
        let waiting = pods.unscheduled_pod(&ObjectKey::new("shop", "waits")).unwrap();
        let view = waiting.pod().unwrap();
        assert_eq!(view.spec.node_selector.as_ref().unwrap().get("disk"), Some("ssd"));
        assert_eq!(view.annotation("spillway.dev/decision"), Some("late"));
        assert_eq!(world.api.watches()[PODS], 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_becomes_slim_when_a_vm_takes_it_and_not_on_a_virtual_node() {
        let world = World::start(&[pod("a", None), pod("b", None)]).await;
        world.api.apply(PODS, pod("a", Some("vm")));
        world.api.apply(PODS, pod("b", Some("virtual")));
        world.until("the VM's pod is slim", |pods| kept(pods, "a") == "on a VM, slim").await;
        world.until("the other is in full", |pods| kept(pods, "b") == "on a virtual node, in full").await;
        assert_eq!(world.pods.borrow().unscheduled().count(), 0);
        world.api.delete(PODS, pod("a", Some("vm")));
        world.api.delete(PODS, pod("b", Some("virtual")));
        world.until("both are gone", |pods| pods.scheduled().count() == 0).await;
        assert_eq!(world.lists(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_decision_makes_an_unscheduled_pod_full_and_its_loss_makes_it_slim() {
        let mut undecided = pod("a", None);
        undecided["metadata"]["annotations"] = json!({});
        let world = World::start(std::slice::from_ref(&undecided)).await;
        let labels = |pods: &PodStore| pods.unscheduled_pod(&ObjectKey::new("shop", "a")).unwrap().labels.len();
        assert_eq!((kept(&world.pods.borrow(), "a"), labels(&world.pods.borrow())), ("unscheduled, slim", 1));
        world.api.apply(PODS, pod("a", None));
        world.until("it is decided", |pods| kept(pods, "a") == "unscheduled, in full" && labels(pods) == 0).await;
        world.api.apply(PODS, undecided);
        world.until("it is undecided", |pods| kept(pods, "a") == "unscheduled, slim" && labels(pods) == 1).await;
    }

    #[tokio::test(start_paused = true)]
    async fn pods_of_an_unknown_node_are_in_full_until_it_is_known() {
        let world = World::start(&[]).await;
        for (name, node) in [("a", "new-vm"), ("b", "new-virtual")] {
            world.api.apply(PODS, pod(name, Some(node)));
            world.until("it is kept", |pods| kept(pods, name) == "on an unknown node, in full").await;
        }
        assert_eq!(world.pods.borrow().on_virtual_nodes().count(), 0);
        world.api.apply(NODES, node("new-vm", false));
        world.api.apply(NODES, node("new-virtual", true));
        world.until("the VM's pod is slim", |pods| kept(pods, "a") == "on a VM, slim").await;
        world.until("the other is in full", |pods| kept(pods, "b") == "on a virtual node, in full").await;
        world.until_known("all of it is known").await;
        world.api.delete(NODES, node("new-virtual", true));
        world.until("the node is gone", |pods| kept(pods, "b") == "on an unknown node, in full").await;
        assert_eq!(world.lists(), 1, "nothing was listed again");
    }

    #[tokio::test(start_paused = true)]
    async fn pods_are_listed_again_when_their_vm_becomes_a_virtual_node() {
        let world = World::start(&[pod("a", Some("vm"))]).await;
        let selector = Configuration::default().virtual_nodes.selector;
        world.until_known("all of it is known").await;
        world.api.apply(NODES, node("vm", true));
        // From the moment that the node is known to be virtual, its pods are not.
        let mut nodes = world.nodes.clone();
        nodes.wait_for(|nodes| nodes.values().all(|node| node.is_virtual(&selector))).await.unwrap();
        assert!(!world.pods.borrow().knows_virtual(&world.nodes.borrow(), &selector));
        world.until("it is in full", |pods| kept(pods, "a") == "on a virtual node, in full").await;
        world.until_known("all of it is known").await;
        assert_eq!(world.lists(), 2);
        // And back: no list is necessary.
        world.api.apply(NODES, node("vm", false));
        world.until("it is slim", |pods| kept(pods, "a") == "on a VM, slim").await;
        assert_eq!(world.lists(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn another_selector_of_virtual_nodes_is_another_kind_of_pod() {
        let world = World::start(&[pod("a", Some("vm")), pod("b", Some("virtual"))]).await;
        let file = "apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\nvirtualNodes: {selector: type=vm}";
        world.configuration.send_replace(Arc::new(crate::config::parse(file).unwrap()));
        world.until("the former VM's pod", |pods| kept(pods, "a") == "on a virtual node, in full").await;
        world.until("the other", |pods| kept(pods, "b") == "on a VM, slim").await;
    }

    #[tokio::test(start_paused = true)]
    async fn only_news_wakes_readers() {
        let world = World::start(&[pod("a", None), pod("b", Some("virtual")), pod("c", Some("vm"))]).await;
        let signals =
            [world.pods.unscheduled(), world.pods.scheduled(), world.pods.on_virtual_nodes(), world.pods.identity()];
        let change = async |object: Value| {
            let mut signals = signals.clone();
            let mut store = world.pods.store.subscribe();
            signals.iter_mut().for_each(watch::Receiver::mark_unchanged);
            store.mark_unchanged();
            world.api.apply(PODS, object);
            timeout(Duration::from_secs(60), store.changed()).await.unwrap().unwrap();
            signals.map(|signal| signal.has_changed().unwrap())
        };
        let running = |mut pod: Value| {
            pod["status"]["phase"] = "Running".into();
            pod
        };
        // Of a pod on a VM, nothing that is kept changes.
        assert_eq!(change(running(pod("c", Some("vm")))).await, [false; 4]);
        assert_eq!(change(running(pod("b", Some("virtual")))).await, [false, false, true, false]);
        assert_eq!(change(pod("a", Some("vm"))).await, [true, true, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_identity_checks_read_follows_their_settings() {
        let mut labelled = pod("a", Some("vm"));
        labelled["metadata"]["labels"]["azure.workload.identity/use"] = "true".into();
        let world = World::start(&[labelled]).await;
        let settings = Configuration::default().identity;
        let names = |pods: &PodStore, settings| {
            let listing = pods.identity(settings);
            listing.listed().map(|all| all.iter().map(|(key, _)| key.name.clone()).collect::<Vec<_>>())
        };
        assert_eq!(names(&world.pods.borrow(), &settings), Some(vec!["a".to_owned()]));
        let file = "apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\nidentity: {enabled: false}";
        let off = crate::config::parse(file).unwrap();
        assert_eq!(names(&world.pods.borrow(), &off.identity), None, "pending, not empty");
        world.configuration.send_replace(Arc::new(off.clone()));
        world.until("nothing is kept", |pods| names(pods, &off.identity) == Some(Vec::new())).await;
        assert_eq!(names(&world.pods.borrow(), &settings), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_too_large_is_kept_without_its_view() {
        let mut large = pod("a", None);
        let value = "x".repeat(70_000);
        large["spec"]["nodeSelector"] = json!({"key": value});
        let mut on_virtual = large.clone();
        on_virtual["metadata"]["name"] = "b".into();
        on_virtual["spec"]["nodeName"] = "virtual".into();
        let mut of_many_words = pod("c", None);
        of_many_words["spec"]["containers"][0]["env"] = json!([{"name": "TEXT", "value": value}]);
        let world = World::start(&[large, on_virtual, of_many_words]).await;
        let pods = world.pods.borrow();
        assert_eq!(kept(&pods, "a"), "unscheduled, slim");
        assert_eq!(kept(&pods, "b"), "on a virtual node, without its view");
        assert_eq!(kept(&pods, "c"), "unscheduled, in full", "scheduling does not look at variables");
    }
}
