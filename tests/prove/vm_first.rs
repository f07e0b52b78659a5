//! A: while VMs have room, pods are scheduled to VMs.

use serde_json::json;

use crate::{
    clusters::{Clusters, Group, ROOM, Web, clear},
    proof::Scenario,
};

const ABOUT: &str = "Several Deployments of 18 pods, and one of 30, on VMs with room for 24. The scheduler weighs the manifest's preference against \
spreading and free resources, which favour an empty virtual node. Spillway's controller taints virtual nodes with \
`spillway.dev/last-resort:PreferNoSchedule`, which weighs more.";

pub(crate) fn run(clusters: &mut Clusters) -> Scenario {
    let mut scenario = Scenario::new("A", "VMs first", ABOUT);
    let few = || Web::of(18);
    let scenes = [
        ("18 pods", few()),
        ("18 pods, own affinity of weight 1", Web { weight: Some(1), ..few() }),
        ("18 pods, own affinity of weight 100", Web { weight: Some(100), ..few() }),
        ("18 pods, spread over hosts by their owner", Web { is_spread: true, ..few() }),
        ("18 memory-heavy pods", Web { cpu: "100m", memory: "2Gi", ..few() }),
        ("18 CPU-heavy pods", Web { cpu: "500m", memory: "16Mi", ..few() }),
        ("30 pods", Web::of(30)),
    ];
    let (mut leaked_by_hand, mut leaked) = (0, 0);
    for (scene, web) in scenes {
        for group in Group::BOTH {
            let namespace = clusters.namespace(group, "enabled", &json!({}));
            let timeline = web.create(clusters, group, &namespace);
            let counts = timeline.wait("every pod to be placed", |counts| counts.is_settled(web.replicas));
            scenario.row(scene, group.title(), &timeline, String::new());
            if scene == "18 pods" {
                scenario.panel(format!("{scene}, {}", group.title()), &timeline);
            }
            let leak = counts.virtual_nodes.saturating_sub(web.replicas.saturating_sub(ROOM));
            match group {
                Group::ByHand => leaked_by_hand += leak,
                Group::Spillway => leaked += leak,
            }
            if web.replicas > ROOM && group == Group::Spillway {
                scenario.claim(
                    "of 30 pods, 24 run on VMs and 6 on the virtual node",
                    (counts.vms, counts.virtual_nodes) == (24, 6),
                );
            }
            clear(&namespace, &timeline);
        }
    }
    scenario.claim(
        format!("by hand, pods run on the virtual node while VMs have room ({leaked_by_hand} in all scenes)"),
        leaked_by_hand > 0,
    );
    scenario.claim("with Spillway, no pod does so in any scene", leaked == 0);
    scenario
}
