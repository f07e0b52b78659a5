//! E: the controller decides on pods that were created during an outage of Spillway.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    clusters::{Clusters, Group, ROOM, Web, clear, wait_for_age},
    harness::Namespace,
    proof::Scenario,
    timeline::{ObservedPod, Timeline},
};

const ABOUT: &str = "A Deployment creates 200 pods while the webhook is down, and while both webhook and controller are down. The API server creates \
the pods unchanged (`failurePolicy: Ignore`). Without a toleration, 24 run on VMs and 176 wait. The controller decides on the waiting pods and gives them \
the toleration, while the webhook is still down or after the controller is back. It counts the pods on VMs, and does not change them. By hand, no \
component can be down, but pods do not prefer VMs.";

const PODS: usize = 200;
const OVER: usize = PODS - ROOM;

pub(crate) fn run(clusters: &mut Clusters) -> Scenario {
    let mut scenario = Scenario::new("E", "Outage", ABOUT);
    let namespace = clusters.namespace(Group::ByHand, "", &json!({}));
    let timeline = Web::of(PODS).create(clusters, Group::ByHand, &namespace);
    timeline.wait("every pod to be placed", |counts| counts.is_settled(PODS));
    scenario.row("200 pods, nothing is down", Group::ByHand.title(), &timeline, String::new());
    scenario.panel(Group::ByHand.title(), &timeline);
    clear(&namespace, &timeline);
    without_webhook(clusters, &mut scenario);
    without_spillway(clusters, &mut scenario);
    scenario
}

fn without_webhook(clusters: &mut Clusters, scenario: &mut Scenario) {
    let namespace = opted_in(clusters);
    clusters.stop_webhook();
    let timeline = Web::of(PODS).create(clusters, Group::Spillway, &namespace);
    let created = timeline.wait("200 pods", |counts| counts.total() == PODS);
    let since = Instant::now();
    timeline.mark("all created");
    timeline.wait("every pod to be placed", |counts| counts.total() == PODS && counts.waiting == 0);
    let took = since.elapsed().as_secs_f64();
    let remark = format!("all placed {took:.1} s after the last pod was created");
    scenario.row("the webhook is down", Group::Spillway.title(), &timeline, remark);
    scenario.claim("the webhook is down: the API server creates 200 pods and refuses none", created.total() == PODS);
    confirm(scenario, "the webhook is down", &timeline);
    scenario.panel("the webhook is down", &timeline);
    clear(&namespace, &timeline);
    clusters.start_webhook();
}

fn without_spillway(clusters: &mut Clusters, scenario: &mut Scenario) {
    let namespace = opted_in(clusters);
    clusters.stop_webhook();
    clusters.stop_controller();
    let timeline = Web::of(PODS).create(clusters, Group::Spillway, &namespace);
    let waiting = timeline.wait("176 pods to wait", |counts| counts.is_settled(PODS));
    scenario.row("all of Spillway is down", Group::Spillway.title(), &timeline, String::new());
    scenario.claim(
        "all of Spillway is down: the API server creates 200 pods, 24 run and 176 wait",
        (waiting.vms, waiting.waiting) == (ROOM, PODS - ROOM),
    );
    timeline.mark("Spillway is back");
    let back = Instant::now();
    clusters.start_controller();
    timeline.wait("every pod to be placed", |counts| counts.total() == PODS && counts.waiting == 0);
    let took = back.elapsed().as_secs_f64();
    let remark = format!("all placed {took:.1} s after the controller was started");
    scenario.row("... and back", Group::Spillway.title(), &timeline, remark);
    confirm(scenario, "Spillway is back", &timeline);
    scenario.panel("all of Spillway is down, then back", &timeline);
    clear(&namespace, &timeline);
    clusters.start_webhook();
}

/// Claims that the controller has decided on the waiting pods, and only on these.
fn confirm(scenario: &mut Scenario, scene: &str, timeline: &Timeline) {
    let counts = timeline.now();
    let placed = (counts.vms, counts.virtual_nodes, counts.waiting);
    scenario.claim(format!("{scene}: no pod waits any longer, and the VMs are full"), placed == (ROOM, PODS - ROOM, 0));
    let repaired = |pod: &ObservedPod| pod.decision.as_deref() == Some("prefer") && pod.tolerations == 1;
    let unchanged = |pod: &ObservedPod| pod.decision.is_none() && pod.tolerations == 0;
    let count = |is_so: &dyn Fn(&ObservedPod) -> bool| timeline.pods().iter().filter(|pod| is_so(pod)).count();
    scenario.claim(
        format!("{scene}: the {OVER} waiting pods have a decision and one toleration, and the {ROOM} running pods are unchanged"),
        (count(&repaired), count(&unchanged)) == (OVER, ROOM),
    );
}

/// Returns a namespace that opted in long enough ago for its pods to count as missed. For two seconds after an opt-in, an API server may
/// not have seen the label yet.
fn opted_in(clusters: &Clusters) -> Namespace {
    let since = Instant::now();
    let namespace = clusters.namespace(Group::Spillway, "enabled", &json!({}));
    wait_for_age(since, Duration::from_secs(4));
    namespace
}
