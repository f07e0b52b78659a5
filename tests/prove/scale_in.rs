//! B: a scale-in deletes the pods on virtual nodes first.

use std::time::Duration;

use serde_json::json;

use crate::{
    clusters::{Clusters, Group, Web, clear, wait_for_age},
    harness::{Namespace, eventually},
    proof::Scenario,
    timeline::Timeline,
};

const ABOUT: &str = "30 pods are scaled to 24, back to 30, and to 20. The table shows which pods the ReplicaSet deletes. A rollout restart and a drain of \
one VM follow. These two are measured, not promised, because Kubernetes never moves a running pod. A pod that is bound to a virtual node gets a \
pod-deletion-cost, which only ReplicaSets read.";

pub(crate) fn run(clusters: &mut Clusters) -> Scenario {
    let mut scenario = Scenario::new("B", "Scale-in", ABOUT);
    for group in Group::BOTH {
        let namespace = clusters.namespace(group, "enabled", &json!({}));
        let timeline = Web::of(30).create(clusters, group, &namespace);
        timeline.wait("30 pods to be placed", |counts| counts.is_settled(30));
        hold(&timeline);
        scenario.row("30 pods", group.title(), &timeline, String::new());
        for (scene, replicas) in [("30 → 24", 24), ("24 → 30", 30), ("30 → 20", 20)] {
            scale(&namespace, &timeline, scene, replicas);
            scenario.row(scene, group.title(), &timeline, String::new());
            if group == Group::Spillway && replicas < 30 {
                scenario.claim(
                    format!("{scene}: with Spillway, the ReplicaSet deletes the pods on the virtual node first"),
                    timeline.now().virtual_nodes == 0,
                );
            }
            if group == Group::Spillway && replicas == 24 {
                let is_full = timeline.nodes().values().all(|pods| *pods == 8);
                scenario.claim(format!("{scene}: with Spillway, the VMs stay full, with 8 pods each"), is_full);
            }
        }
        timeline.mark("rollout restart");
        namespace.kubectl(&["rollout", "restart", "deployment", "web"], "");
        namespace.kubectl(&["rollout", "status", "deployment", "web", "--timeout=60s"], "");
        timeline.wait("20 pods", |counts| counts.is_settled(20));
        hold(&timeline);
        scenario.row("20, rollout restart", group.title(), &timeline, "measured".to_owned());
        timeline.mark("drain");
        drain(clusters, group);
        timeline.wait("20 pods", |counts| counts.is_settled(20));
        let left = timeline.now().virtual_nodes;
        scenario.row("20, a VM drained and back", group.title(), &timeline, "measured".to_owned());
        if group == Group::Spillway {
            // The controller updates the metric every 30 s.
            let metric = || clusters.controller().metric("spillway_virtual_pods_while_vms_have_room");
            let reported =
                eventually("the metric to count the pods", || Some(metric()).filter(|count| *count == left as u64));
            scenario.claim(
                format!("`spillway_virtual_pods_while_vms_have_room` reports that {reported} pods could run on VMs"),
                reported == left as u64,
            );
        }
        scenario.panel(group.title(), &timeline);
        clear(&namespace, &timeline);
    }
    scenario
}

fn scale(namespace: &Namespace, timeline: &Timeline, scene: &str, replicas: usize) {
    timeline.mark(scene);
    namespace.kubectl(&["scale", "deployment", "web", &format!("--replicas={replicas}")], "");
    timeline.wait(scene, |counts| counts.is_settled(replicas));
    hold(timeline);
}

/// Waits for a second, so that the chart shows the present state.
fn hold(timeline: &Timeline) {
    wait_for_age(timeline.began(), timeline.elapsed() + Duration::from_secs(1));
}

/// Drains a VM, and uncordons it.
fn drain(clusters: &Clusters, group: Group) {
    let plane = clusters.plane(group);
    plane.kubectl(&["drain", "vm-3", "--force", "--timeout=60s"]);
    plane.kubectl(&["uncordon", "vm-3"]);
}
