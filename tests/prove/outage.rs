//! E: pods that were created while Spillway was away get what they missed.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    harness::Namespace,
    proof::Story,
    stage::{Group, ROOM, Stage, Web, clear, wait_for_age},
    timeline::{Seen, Timeline},
};

const ABOUT: &str = "200 pods are created while the webhook is down, and while webhook and controller both are. The API server creates them all the same \
(`failurePolicy: Ignore`); without a toleration, 24 find a VM and 176 wait. The controller makes the decision that was missed, and gives the waiting pods \
their toleration: with the webhook still down, and, where it was away itself, when it is back. Those that run on VMs are counted and left alone. \
By hand there is nothing that could be down, and the VMs are not used first.";

const PODS: usize = 200;
const OVER: usize = PODS - ROOM;

pub(crate) fn play(stage: &mut Stage) -> Story {
    let mut story = Story::new("E", "Outage", ABOUT);
    let namespace = stage.namespace(Group::ByHand, "", &json!({}));
    let timeline = Web::of(PODS).create(stage, Group::ByHand, &namespace);
    timeline.wait("every pod to be placed", |counts| counts.is_settled(PODS));
    story.row("200 pods, nothing is down", Group::ByHand.title(), &timeline, String::new());
    story.panel(Group::ByHand.title(), &timeline);
    clear(&namespace, &timeline);
    without_webhook(stage, &mut story);
    without_spillway(stage, &mut story);
    story
}

fn without_webhook(stage: &mut Stage, story: &mut Story) {
    let namespace = opted_in(stage);
    stage.stop_webhook();
    let timeline = Web::of(PODS).create(stage, Group::Spillway, &namespace);
    let created = timeline.wait("200 pods", |counts| counts.total() == PODS);
    let since = Instant::now();
    timeline.mark("all created");
    timeline.wait("every pod to be placed", |counts| counts.total() == PODS && counts.waiting == 0);
    let took = since.elapsed().as_secs_f64();
    let remark = format!("all placed {took:.1} s after the last was created");
    story.row("the webhook is down", Group::Spillway.title(), &timeline, remark);
    story.claim("the webhook is down: 200 pods are created, none is refused", created.total() == PODS);
    confirm(story, "the webhook is down", &timeline);
    story.panel("the webhook is down", &timeline);
    clear(&namespace, &timeline);
    stage.start_webhook();
}

fn without_spillway(stage: &mut Stage, story: &mut Story) {
    let namespace = opted_in(stage);
    stage.stop_webhook();
    stage.stop_controller();
    let timeline = Web::of(PODS).create(stage, Group::Spillway, &namespace);
    let waiting = timeline.wait("176 pods to wait", |counts| counts.is_settled(PODS));
    story.row("all of Spillway is down", Group::Spillway.title(), &timeline, String::new());
    story.claim(
        "all of Spillway is down: 200 pods are created, 24 run and 176 wait",
        (waiting.vms, waiting.waiting) == (ROOM, PODS - ROOM),
    );
    timeline.mark("Spillway is back");
    let back = Instant::now();
    stage.start_controller();
    timeline.wait("every pod to be placed", |counts| counts.total() == PODS && counts.waiting == 0);
    let took = back.elapsed().as_secs_f64();
    let remark = format!("all placed {took:.1} s after the controller was started");
    story.row("... and back", Group::Spillway.title(), &timeline, remark);
    confirm(story, "Spillway is back", &timeline);
    story.panel("all of Spillway is down, then back", &timeline);
    clear(&namespace, &timeline);
    stage.start_webhook();
}

/// What holds once the pods that waited are healed.
fn confirm(story: &mut Story, scene: &str, timeline: &Timeline) {
    let counts = timeline.now();
    let placed = (counts.vms, counts.virtual_nodes, counts.waiting);
    story.claim(format!("{scene}: none is left waiting, and the VMs are full"), placed == (ROOM, PODS - ROOM, 0));
    let healed = |pod: &Seen| pod.decision.as_deref() == Some("prefer") && pod.tolerations == 1;
    let untouched = |pod: &Seen| pod.decision.is_none() && pod.tolerations == 0;
    let count = |is_so: &dyn Fn(&Seen) -> bool| timeline.pods().iter().filter(|pod| is_so(pod)).count();
    story.claim(
        format!("{scene}: the {OVER} that waited have a decision and one toleration, the {ROOM} that ran are left as they were"),
        (count(&healed), count(&untouched)) == (OVER, ROOM),
    );
}

/// A namespace that has opted in long enough for its pods to count as missed: those created within two seconds of that may be older than
/// what API servers have heard.
fn opted_in(stage: &Stage) -> Namespace {
    let since = Instant::now();
    let namespace = stage.namespace(Group::Spillway, "enabled", &json!({}));
    wait_for_age(since, Duration::from_secs(4));
    namespace
}
