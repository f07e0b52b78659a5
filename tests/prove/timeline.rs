//! Records the nodes of a namespace's pods over time, by a watch.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    runtime::watcher::{Config, Event, watcher},
};
use tokio::sync::oneshot;

use crate::harness::{ControlPlane, eventually};

/// The number of pods by kind of node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) vms: usize,
    pub(crate) virtual_nodes: usize,
    pub(crate) waiting: usize,
    /// Waiting pods for which the scheduler found no node.
    pub(crate) unschedulable: usize,
}

impl Counts {
    pub(crate) fn total(self) -> usize {
        self.vms + self.virtual_nodes + self.waiting
    }

    /// Returns whether this number of pods exists, and the scheduler has tried each of them.
    pub(crate) fn is_settled(self, pods: usize) -> bool {
        self.total() == pods && self.unschedulable == self.waiting
    }
}

/// The last observed state of a pod, and the times of its changes.
#[derive(Debug, Clone, Default)]
pub(crate) struct ObservedPod {
    pub(crate) node: Option<String>,
    pub(crate) is_unschedulable: bool,
    /// The number of tolerations of virtual nodes.
    pub(crate) tolerations: usize,
    /// When the first of them was observed.
    pub(crate) tolerates: Option<Instant>,
    /// The annotation `spillway.dev/decision`.
    pub(crate) decision: Option<String>,
    pub(crate) bound: Option<Instant>,
}

#[derive(Debug, Default)]
struct Record {
    pods: BTreeMap<String, ObservedPod>,
    samples: Vec<(Instant, Counts)>,
    marks: Vec<(Instant, String)>,
}

/// Watches the pods until the timeline is dropped.
pub(crate) struct Timeline {
    began: Instant,
    record: Arc<Mutex<Record>>,
    _stop: oneshot::Sender<()>,
}

/// The content of a timeline, with times in seconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recording {
    pub(crate) samples: Vec<(f64, Counts)>,
    pub(crate) marks: Vec<(f64, String)>,
    pub(crate) end: f64,
}

impl Timeline {
    /// Starts a watch, and returns when the first list has arrived.
    pub(crate) fn follow(plane: &'static ControlPlane, namespace: &str) -> Self {
        let record = Arc::new(Mutex::new(Record::default()));
        let (stop, stopped) = oneshot::channel();
        let (log, namespace) = (record.clone(), namespace.to_owned());
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let pods: Api<Pod> = Api::namespaced(plane.client().await, &namespace);
                let follow = async {
                    let mut events = std::pin::pin!(watcher(pods, Config::default()));
                    while let Some(event) = events.next().await {
                        if let Ok(event) = event {
                            lock(&log).take(event);
                        }
                    }
                };
                tokio::select! {
                    () = follow => {}
                    _ = stopped => {}
                }
            });
        });
        eventually("the first list of pods", || (!lock(&record).samples.is_empty()).then_some(()));
        Self { began: Instant::now(), record, _stop: stop }
    }

    pub(crate) fn now(&self) -> Counts {
        lock(&self.record).counts()
    }

    /// Marks an event that the chart should name.
    pub(crate) fn mark(&self, what: &str) {
        lock(&self.record).marks.push((Instant::now(), what.to_owned()));
    }

    /// Waits until a condition on the counts holds.
    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(Counts) -> bool) -> Counts {
        eventually(&format!("{what} (now {:?})", self.now()), || Some(self.now()).filter(|counts| is_so(*counts)))
    }

    pub(crate) fn pods(&self) -> Vec<ObservedPod> {
        lock(&self.record).pods.values().cloned().collect()
    }

    /// Returns the number of pods by node.
    pub(crate) fn nodes(&self) -> BTreeMap<String, usize> {
        let mut nodes = BTreeMap::new();
        for node in self.pods().into_iter().filter_map(|pod| pod.node) {
            *nodes.entry(node).or_default() += 1;
        }
        nodes
    }

    pub(crate) fn recording(&self) -> Recording {
        let record = lock(&self.record);
        let at = |instant: &Instant| instant.saturating_duration_since(self.began).as_secs_f64();
        Recording {
            samples: record.samples.iter().map(|(when, counts)| (at(when), *counts)).collect(),
            marks: record.marks.iter().map(|(when, what)| (at(when), what.clone())).collect(),
            end: self.began.elapsed().as_secs_f64(),
        }
    }

    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Record {
    fn take(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.pods.clear(),
            Event::InitApply(pod) | Event::Apply(pod) => self.observe(&pod),
            Event::Delete(pod) => drop(self.pods.remove(&pod.name_any())),
            Event::InitDone => {}
        }
        let counts = self.counts();
        if self.samples.last().is_none_or(|(_, last)| *last != counts) {
            self.samples.push((Instant::now(), counts));
        }
    }

    fn observe(&mut self, pod: &Pod) {
        let (now, seen) = (Instant::now(), self.pods.entry(pod.name_any()).or_default());
        let Some(spec) = &pod.spec else { return };
        seen.node.clone_from(&spec.node_name);
        let tolerations = spec.tolerations.iter().flatten();
        let of_virtual_nodes = tolerations.filter(|one| one.key.as_deref() == Some("virtual-kubelet.io/provider"));
        seen.tolerations = of_virtual_nodes.count();
        if seen.tolerations > 0 {
            seen.tolerates.get_or_insert(now);
        }
        seen.decision = pod.annotations().get("spillway.dev/decision").cloned();
        if seen.node.is_some() {
            seen.bound.get_or_insert(now);
        }
        let mut conditions = pod.status.iter().flat_map(|status| &status.conditions).flatten();
        seen.is_unschedulable = conditions.any(|condition| condition.reason.as_deref() == Some("Unschedulable"));
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for pod in self.pods.values() {
            match pod.node.as_deref() {
                Some(node) if node.starts_with("virtual") => counts.virtual_nodes += 1,
                Some(_) => counts.vms += 1,
                None => {
                    counts.waiting += 1;
                    counts.unschedulable += usize::from(pod.is_unschedulable);
                }
            }
        }
        counts
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap()
}
