//! D: where VMs come on demand, pods wait for one, and overflow when none comes.

use std::time::Duration;

use serde_json::json;

use crate::{
    harness::Namespace,
    proof::Story,
    stage::{Group, ROOM, Stage, Web, clear, wait_for_age},
    timeline::Timeline,
};

const ABOUT: &str = "30 pods, so that 6 find no room; a VM joins after 8 s, or none does. With Spillway the namespace has the profile `autoscaled` \
(mode `late`) and waits for 20 s, by `spillway.dev/late-after`. By hand the 6 are on the virtual node at once, and stay there when the VM has come; \
nothing is ever unschedulable, so a node autoscaler would not even have added it.";

/// How long pods wait for a VM, and when it comes.
const LATE_AFTER: Duration = Duration::from_secs(20);
const BOOT: Duration = Duration::from_secs(8);

const OVER: usize = 30 - ROOM;
const VM: &str = "vm-4";

pub(crate) fn play(stage: &mut Stage) -> Story {
    let mut story = Story::new("D", "Late burst", ABOUT);
    by_hand(stage, &mut story);
    with_a_vm(stage, &mut story);
    without_a_vm(stage, &mut story);
    story
}

fn by_hand(stage: &Stage, story: &mut Story) {
    let group = Group::ByHand;
    let namespace = stage.namespace(group, "", &json!({}));
    let timeline = Web::of(30).create(stage, group, &namespace);
    timeline.wait("every pod to be placed", |counts| counts.is_settled(30));
    let before = timeline.now().virtual_nodes;
    let title = format!("{}, a VM joins after 8 s", group.title());
    join(stage, group, &timeline);
    let as_long = LATE_AFTER + Duration::from_secs(5);
    wait_for_age(timeline.began(), as_long);
    story.row("a VM joins after 8 s", group.title(), &timeline, String::new());
    story.claim(
        format!("by hand {before} pods overflow at once, and are still there when a VM has come"),
        before >= OVER && timeline.now().virtual_nodes == before,
    );
    story.panel(title, &timeline);
    clear(&namespace, &timeline);
    stage.remove_node(group, VM);
}

fn with_a_vm(stage: &Stage, story: &mut Story) {
    let group = Group::Spillway;
    let (namespace, timeline) = wait_for_room(stage);
    join(stage, group, &timeline);
    timeline.wait("the pods to be placed", |counts| counts.is_settled(30) && counts.waiting == 0);
    story.row("a VM joins after 8 s", group.title(), &timeline, String::new());
    let on_it = timeline.nodes().get(VM).copied().unwrap_or_default();
    let tolerating = timeline.pods().iter().filter(|pod| pod.tolerates.is_some()).count();
    story.claim(
        "a VM joins in time: all 6 pods land on it, none on the virtual node",
        on_it == OVER && timeline.now().virtual_nodes == 0,
    );
    story.claim("and no pod has got the toleration of virtual nodes", tolerating == 0);
    story.panel(format!("{}, a VM joins after 8 s", group.title()), &timeline);
    clear(&namespace, &timeline);
    stage.remove_node(group, VM);
}

fn without_a_vm(stage: &Stage, story: &mut Story) {
    let group = Group::Spillway;
    let (namespace, timeline) = wait_for_room(stage);
    let unschedulable = timeline.elapsed();
    timeline.wait("the pods to be placed", |counts| counts.is_settled(30) && counts.waiting == 0);
    let waited = timeline.elapsed().saturating_sub(unschedulable).as_secs_f64();
    let late: Vec<_> = timeline.pods().into_iter().filter(|pod| pod.tolerates.is_some()).collect();
    let mut times: Vec<_> = late.iter().filter_map(|pod| Some(pod.bound? - pod.tolerates?)).collect();
    times.sort_unstable();
    let longest = times.last().copied().unwrap_or_default().as_millis();
    let median = times.get(times.len() / 2).copied().unwrap_or_default().as_millis();
    let remark = format!("after {waited:.1} s; from toleration to binding {median} ms, at most {longest} ms");
    story.row("no VM joins", group.title(), &timeline, remark);
    let counts = timeline.now();
    story.claim(
        "no VM joins: the 6 pods go to the virtual node, and only after they have waited for `late-after`",
        (counts.vms, counts.virtual_nodes) == (ROOM, OVER) && waited >= LATE_AFTER.as_secs_f64() - 1.5,
    );
    story.claim("only these 6 have got the toleration", late.len() == OVER);
    story.panel(format!("{}, no VM joins", group.title()), &timeline);
    clear(&namespace, &timeline);
}

/// 30 pods of mode `late`, of which 6 wait.
fn wait_for_room(stage: &Stage) -> (Namespace, Timeline) {
    let after = format!("{}s", LATE_AFTER.as_secs());
    let namespace = stage.namespace(Group::Spillway, "autoscaled", &json!({"spillway.dev/late-after": after}));
    let timeline = Web::of(30).create(stage, Group::Spillway, &namespace);
    timeline.wait("6 pods to wait", |counts| counts.is_settled(30) && counts.waiting == OVER);
    (namespace, timeline)
}

fn join(stage: &Stage, group: Group, timeline: &Timeline) {
    wait_for_age(timeline.began(), BOOT);
    timeline.mark("a VM joins");
    stage.add_vm(group, VM);
}
