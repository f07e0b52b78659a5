//! What the reconcilers of overflow rest on, watched from the moment that this replica leads.
//!
//! Whole pods are asked for only where all of them matters: those that are not scheduled, and those on virtual nodes. Of what runs on
//! VMs, a few fields are decoded and fewer are kept. Nothing keeps `managedFields`.

mod kept;
mod node;
mod pod;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
};

use k8s_openapi::{
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        core::v1::{self as core, ObjectReference},
    },
    jiff::Timestamp,
};
pub(super) use kept::{Kept, Name};
use kept::{Kind, Source};
use kube::{Api, Client, runtime::watcher::Config};
pub(super) use node::Node;
pub(super) use pod::{Assigned, Owned, Requests, Undecided, VirtualPod, Waiting};
use pod::{Lean, Whole};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    background::again_after_panic, certs::self_managed::CONFIGURATION, cluster::Scope, config::Selector,
    reload::configuration::ConfigReceiver,
};

/// Objects in a page of a list.
const PAGE: u32 = 250;

/// The reasons of Events by which an autoscaler says that a VM is on its way for a pod: cluster-autoscaler
/// (kubernetes/autoscaler `processors/status/eventing_scale_up_processor.go`) and Karpenter (kubernetes-sigs/karpenter
/// `pkg/controllers/provisioning/scheduling/events.go`).
const COMING: [&str; 2] = ["TriggeredScaleUp", "Nominated"];

/// Virtual node → the pods on it.
pub(super) type OnVirtual = BTreeMap<String, Kept<VirtualPod>>;

/// Whether all nodes have arrived, and all pods on those that are virtual.
pub(super) fn are_known(nodes: &Kept<Node>, on_virtual: &OnVirtual, selector: &Selector) -> bool {
    let is_known = |node: &Node| on_virtual.get(&node.name).is_some_and(Kept::is_complete);
    nodes.is_complete() && nodes.values().filter(|node| node.is_virtual(selector)).all(is_known)
}

/// The cluster as the reconcilers see it; it follows the cluster until it is dropped.
pub(super) struct Observed {
    /// All nodes, with no namespace.
    pub(super) nodes: watch::Receiver<Kept<Node>>,
    /// Pods that no node has been found for.
    pub(super) waiting: watch::Receiver<Kept<Waiting>>,
    /// Pods that have a node, whatever node.
    pub(super) assigned: watch::Receiver<Kept<Assigned>>,
    /// Pods on virtual nodes.
    pub(super) on_virtual: watch::Receiver<OnVirtual>,
    /// Pods for which an autoscaler has said that it adds a VM, and when.
    pub(super) coming: watch::Receiver<Kept<Timestamp>>,
    /// For which pods the API server calls Spillway, if it does, with no namespace.
    pub(super) scope: watch::Receiver<Kept<Scope>>,
    _watches: JoinSet<()>,
}

impl Observed {
    /// Starts to follow; returns at once. Must be called within a tokio runtime.
    pub(super) fn start(client: &Client, configuration: &ConfigReceiver) -> Self {
        let nodes = watch::Sender::new(Kept::default());
        let waiting = watch::Sender::new(Kept::default());
        let assigned = watch::Sender::new(Kept::default());
        let on_virtual = watch::Sender::new(OnVirtual::default());
        let coming = watch::Sender::new(Kept::default());
        let scope = watch::Sender::new(Kept::default());
        let (seen, mut watches) = (nodes.subscribe(), JoinSet::new());
        let receivers = (nodes.subscribe(), waiting.subscribe(), assigned.subscribe(), on_virtual.subscribe());
        let (heard, live) = (coming.subscribe(), scope.subscribe());
        let (client, configuration) = (client.clone(), configuration.clone());
        watches.spawn(again_after_panic(async move || {
            let all = || Api::all(client.clone());
            tokio::join!(
                NODES.keep(Api::all(client.clone()), pages(), &nodes),
                WAITING.keep(all(), pages().fields("spec.nodeName="), &waiting),
                ASSIGNED.keep(Api::all(client.clone()), pages().fields("spec.nodeName!="), &assigned),
                keep_virtual(&client, &configuration, seen.clone(), &on_virtual),
                keep_coming(&client, &coming),
                SCOPE.keep(Api::all(client.clone()), only(CONFIGURATION), &scope),
            );
        }));
        let (nodes, waiting, assigned, on_virtual) = receivers;
        Self { nodes, waiting, assigned, on_virtual, coming: heard, scope: live, _watches: watches }
    }
}

const NODES: Kind<node::Lean, Node> = Kind { plural: "nodes", read: Node::read };
const WAITING: Kind<Whole, Waiting> = Kind { plural: "unscheduled pods", read: Waiting::read };
const ASSIGNED: Kind<Lean, Assigned> = Kind { plural: "scheduled pods", read: Assigned::read };
const ON_VIRTUAL: Kind<Whole, VirtualPod> = Kind { plural: "pods on virtual nodes", read: VirtualPod::read };

const SCOPE: Kind<MutatingWebhookConfiguration, Scope> =
    Kind { plural: "the webhook configuration", read: |configuration| Some(Scope::read(configuration)) };

fn only(name: &str) -> Config {
    pages().fields(&format!("metadata.name={name}"))
}

fn pages() -> Config {
    Config::default().page_size(PAGE)
}

/// Follows the pods of each virtual node, as these come and go.
async fn keep_virtual(
    client: &Client,
    configuration: &ConfigReceiver,
    mut nodes: watch::Receiver<Kept<Node>>,
    publish: &watch::Sender<OnVirtual>,
) {
    let mut configuration = configuration.clone();
    loop {
        let selector = configuration.borrow_and_update().virtual_nodes.selector.clone();
        let names = names(&nodes.borrow_and_update(), &selector);
        publish.send_if_modified(|kept| {
            let before = kept.len();
            kept.retain(|name, _| names.contains(name));
            kept.len() != before
        });
        let watches = names.iter().map(|name| {
            let pods = pages().fields(&format!("spec.nodeName={name}"));
            let source = Source { kind: &ON_VIRTUAL, api: Api::all(client.clone()), config: pods };
            source.follow(move |change| {
                publish.send_if_modified(|kept| change(kept.entry(name.clone()).or_default()));
            })
        });
        let another = async {
            // Without anyone who could change the configuration, it stays as it is.
            if configuration.wait_for(|now| now.virtual_nodes.selector != selector).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let watches = async {
            futures_util::future::join_all(watches).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = watches => {}
            _ = nodes.wait_for(|nodes| self::names(nodes, &selector) != names) => {}
            () = another => {}
        }
    }
}

fn names(nodes: &Kept<Node>, selector: &Selector) -> BTreeSet<String> {
    nodes.values().filter(|node| node.is_virtual(selector)).map(|node| node.name.clone()).collect()
}

/// Follows what autoscalers say, by the pod that it is about.
async fn keep_coming(client: &Client, publish: &watch::Sender<Kept<Timestamp>>) {
    let are_listed = &COMING.map(|_| AtomicBool::new(false));
    let follow = COMING.into_iter().zip(are_listed).map(|(reason, is_listed)| {
        let fields = format!("reason={reason},involvedObject.kind=Pod");
        let source = Source { kind: &SAID, api: Api::all(client.clone()), config: pages().fields(&fields) };
        let put = move |pod, at| {
            publish.send_if_modified(|coming| put_newest(coming, pod, at));
        };
        let done = move || {
            is_listed.store(true, Ordering::Relaxed);
            let are_all = are_listed.iter().all(|is_listed| is_listed.load(Ordering::Relaxed));
            publish.send_if_modified(|coming| are_all && coming.complete());
        };
        source.each(put, done)
    });
    tokio::join!(futures_util::future::join_all(follow), forget_old(publish));
}

/// Several Events may name a pod, and they come in any order. Whether that is news.
fn put_newest(coming: &mut Kept<Timestamp>, pod: Name, at: Timestamp) -> bool {
    coming.get(&pod).is_none_or(|known| *known < at) && coming.put(pod, Some(at))
}

const SAID: Kind<core::Event, (Name, Timestamp)> = Kind { plural: "events of autoscalers", read: said };

fn said(event: core::Event) -> Option<(Name, Timestamp)> {
    let ObjectReference { namespace, name, .. } = event.involved_object;
    let at = event.series.and_then(|series| series.last_observed_time).or(event.event_time).map(|time| time.0);
    let at = at.or(event.last_timestamp.map(|time| time.0)).or(event.metadata.creation_timestamp.map(|time| time.0));
    Some(((namespace.unwrap_or_default(), name.unwrap_or_default()), at?))
}

/// What was said an hour ago is of no interest, as the API server forgets it too.
async fn forget_old(publish: &watch::Sender<Kept<Timestamp>>) {
    const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);
    loop {
        tokio::time::sleep(HOUR / 4).await;
        let horizon = Timestamp::now() - HOUR;
        publish.send_if_modified(|coming| {
            coming.retain(|at| *at > horizon);
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_autoscaler_said_last_counts_in_whatever_order_it_is_heard() {
        let mut coming = Kept::default();
        let pod = ("shop".to_owned(), "web".to_owned());
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let is_news = [10, 30, 20].map(|seconds| put_newest(&mut coming, pod.clone(), at(seconds)));
        assert_eq!((is_news, coming.get(&pod)), ([true, true, false], Some(&at(30))));
        assert!(!coming.is_complete(), "other Events may be on their way");
        assert!(coming.complete() && !coming.complete() && coming.is_complete());
    }
}
