//! D: with VMs on demand, pods wait for a VM, and overflow if no VM joins.

use std::time::Duration;

use serde_json::json;

use crate::{
    clusters::{Clusters, Group, ROOM, Web, clear, wait_for_age},
    harness::Namespace,
    proof::Scenario,
    timeline::Timeline,
};

const ABOUT: &str = "The VMs have no room for 6 of 30 pods. In one scene a VM joins after 8 s, in the other no VM joins. With Spillway, the namespace \
has the profile `autoscaled` (mode `late`), and `spillway.dev/late-after` is 20 s. By hand, the 6 pods run on the virtual node at once, and stay there \
after the VM has joined. Without an unschedulable pod, a node autoscaler would not even add the VM.";

/// How long pods wait for a VM.
const LATE_AFTER: Duration = Duration::from_secs(20);
/// The time after which a VM joins.
const BOOT: Duration = Duration::from_secs(8);

const OVER: usize = 30 - ROOM;
const VM: &str = "vm-4";

pub(crate) fn run(clusters: &mut Clusters) -> Scenario {
    let mut scenario = Scenario::new("D", "Late burst", ABOUT);
    by_hand(clusters, &mut scenario);
    with_a_vm(clusters, &mut scenario);
    without_a_vm(clusters, &mut scenario);
    scenario
}

fn by_hand(clusters: &Clusters, scenario: &mut Scenario) {
    let group = Group::ByHand;
    let namespace = clusters.namespace(group, "", &json!({}));
    let timeline = Web::of(30).create(clusters, group, &namespace);
    timeline.wait("every pod to be placed", |counts| counts.is_settled(30));
    let before = timeline.now().virtual_nodes;
    let title = format!("{}, a VM joins after 8 s", group.title());
    join(clusters, group, &timeline);
    let as_long = LATE_AFTER + Duration::from_secs(5);
    wait_for_age(timeline.began(), as_long);
    scenario.row("a VM joins after 8 s", group.title(), &timeline, String::new());
    scenario.claim(
        format!("by hand, {before} pods overflow at once, and stay on the virtual node after a VM has joined"),
        before >= OVER && timeline.now().virtual_nodes == before,
    );
    scenario.panel(title, &timeline);
    clear(&namespace, &timeline);
    clusters.remove_node(group, VM);
}

fn with_a_vm(clusters: &Clusters, scenario: &mut Scenario) {
    let group = Group::Spillway;
    let (namespace, timeline) = wait_for_room(clusters);
    join(clusters, group, &timeline);
    timeline.wait("the pods to be placed", |counts| counts.is_settled(30) && counts.waiting == 0);
    scenario.row("a VM joins after 8 s", group.title(), &timeline, String::new());
    let on_it = timeline.nodes().get(VM).copied().unwrap_or_default();
    let tolerating = timeline.pods().iter().filter(|pod| pod.tolerates.is_some()).count();
    scenario.claim(
        "a VM joins in time: all 6 pods run on the VM, none on the virtual node",
        on_it == OVER && timeline.now().virtual_nodes == 0,
    );
    scenario.claim("a VM joins in time: no pod gets the toleration of virtual nodes", tolerating == 0);
    scenario.panel(format!("{}, a VM joins after 8 s", group.title()), &timeline);
    clear(&namespace, &timeline);
    clusters.remove_node(group, VM);
}

fn without_a_vm(clusters: &Clusters, scenario: &mut Scenario) {
    let group = Group::Spillway;
    let (namespace, timeline) = wait_for_room(clusters);
    let unschedulable = timeline.elapsed();
    timeline.wait("the pods to be placed", |counts| counts.is_settled(30) && counts.waiting == 0);
    let waited = timeline.elapsed().saturating_sub(unschedulable).as_secs_f64();
    let late: Vec<_> = timeline.pods().into_iter().filter(|pod| pod.tolerates.is_some()).collect();
    let mut times: Vec<_> = late.iter().filter_map(|pod| Some(pod.bound? - pod.tolerates?)).collect();
    times.sort_unstable();
    let longest = times.last().copied().unwrap_or_default().as_millis();
    let median = times.get(times.len() / 2).copied().unwrap_or_default().as_millis();
    let remark = format!("after {waited:.1} s; from toleration to binding {median} ms, at most {longest} ms");
    scenario.row("no VM joins", group.title(), &timeline, remark);
    let counts = timeline.now();
    scenario.claim(
        "no VM joins: the 6 pods run on the virtual node, but only after they have waited for `late-after`",
        (counts.vms, counts.virtual_nodes) == (ROOM, OVER) && waited >= LATE_AFTER.as_secs_f64() - 1.5,
    );
    scenario.claim("no VM joins: only these 6 pods get the toleration", late.len() == OVER);
    scenario.panel(format!("{}, no VM joins", group.title()), &timeline);
    clear(&namespace, &timeline);
}

/// Creates 30 pods of mode `late`, and waits until 6 of them are unschedulable.
fn wait_for_room(clusters: &Clusters) -> (Namespace, Timeline) {
    let after = format!("{}s", LATE_AFTER.as_secs());
    let namespace = clusters.namespace(Group::Spillway, "autoscaled", &json!({"spillway.dev/late-after": after}));
    let timeline = Web::of(30).create(clusters, Group::Spillway, &namespace);
    timeline.wait("6 pods to wait", |counts| counts.is_settled(30) && counts.waiting == OVER);
    (namespace, timeline)
}

fn join(clusters: &Clusters, group: Group, timeline: &Timeline) {
    wait_for_age(timeline.began(), BOOT);
    timeline.mark("a VM joins");
    clusters.add_vm(group, VM);
}
