//! B: who scales in gives back virtual nodes first.

use std::time::Duration;

use serde_json::json;

use crate::{
    harness::{Namespace, eventually},
    proof::Story,
    stage::{Group, Stage, Web, clear, wait_for_age},
    timeline::Timeline,
};

const ABOUT: &str = "30 pods are scaled to 24, back to 30, and to 20: which go? Then a rollout restart, and a drain of one VM, which comes back: \
what do they leave on the virtual node? The last two are measured, nothing is promised of them: nobody moves a pod that runs. A pod that is bound to \
a virtual node gets a pod-deletion-cost, by which ReplicaSets choose; nothing else reads it.";

pub(crate) fn play(stage: &mut Stage) -> Story {
    let mut story = Story::new("B", "Scale-in", ABOUT);
    for group in Group::BOTH {
        let namespace = stage.namespace(group, "enabled", &json!({}));
        let timeline = Web::of(30).create(stage, group, &namespace);
        timeline.wait("30 pods to be placed", |counts| counts.is_settled(30));
        hold(&timeline);
        story.row("30 pods", group.title(), &timeline, String::new());
        for (scene, replicas) in [("30 → 24", 24), ("24 → 30", 30), ("30 → 20", 20)] {
            scale(&namespace, &timeline, scene, replicas);
            story.row(scene, group.title(), &timeline, String::new());
            if group == Group::Spillway && replicas < 30 {
                story.claim(
                    format!("{scene}: with Spillway the pods on the virtual node are the first to go"),
                    timeline.now().virtual_nodes == 0,
                );
            }
            if group == Group::Spillway && replicas == 24 {
                let is_full = timeline.nodes().values().all(|pods| *pods == 8);
                story.claim(format!("{scene}: with Spillway the VMs stay full, 8 pods on each"), is_full);
            }
        }
        timeline.mark("rollout restart");
        namespace.kubectl(&["rollout", "restart", "deployment", "web"], "");
        namespace.kubectl(&["rollout", "status", "deployment", "web", "--timeout=60s"], "");
        timeline.wait("20 pods", |counts| counts.is_settled(20));
        hold(&timeline);
        story.row("20, rollout restart", group.title(), &timeline, "measured".to_owned());
        timeline.mark("drain");
        drain(stage, group);
        timeline.wait("20 pods", |counts| counts.is_settled(20));
        let left = timeline.now().virtual_nodes;
        story.row("20, a VM drained and back", group.title(), &timeline, "measured".to_owned());
        if group == Group::Spillway {
            // It is looked at every half minute.
            let metric = || stage.controller().metric("spillway_virtual_pods_while_vms_have_room");
            let told = eventually("the metric to say so", || Some(metric()).filter(|told| *told == left as u64));
            story.claim(
                format!("`spillway_virtual_pods_while_vms_have_room` comes to say that {told} could be on VMs"),
                told == left as u64,
            );
        }
        story.panel(group.title(), &timeline);
        clear(&namespace, &timeline);
    }
    story
}

fn scale(namespace: &Namespace, timeline: &Timeline, scene: &str, replicas: usize) {
    timeline.mark(scene);
    namespace.kubectl(&["scale", "deployment", "web", &format!("--replicas={replicas}")], "");
    timeline.wait(scene, |counts| counts.is_settled(replicas));
    hold(timeline);
}

/// What is reached stays so for a second, for the chart.
fn hold(timeline: &Timeline) {
    wait_for_age(timeline.began(), timeline.elapsed() + Duration::from_secs(1));
}

/// Empties a VM, and takes it back into service.
fn drain(stage: &Stage, group: Group) {
    let plane = stage.plane(group);
    plane.kubectl(&["drain", "vm-3", "--force", "--timeout=60s"]);
    plane.kubectl(&["uncordon", "vm-3"]);
}
