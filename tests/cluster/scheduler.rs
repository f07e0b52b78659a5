//! Compares Spillway's evaluation of tolerations, node selectors and required node affinity with the real scheduler.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::api::core::v1;
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{select, subsequence},
    strategy::ValueTree,
    test_runner::TestRunner,
};
use serde_json::{Value, json};
use spillway::pod::{NodeView, Pod, Taint};

use crate::harness::control_plane;

const NODES: usize = 12;
const PODS: usize = 400;
/// Keeps the pods of other tests off these nodes.
const GUARD: &str = "scheduler-test";

#[derive(Debug)]
struct Node {
    name: String,
    labels: Vec<(String, String)>,
    taints: Vec<(&'static str, &'static str, &'static str)>,
}

fn node() -> impl Strategy<Value = Node> {
    let labels = vec![
        ("flavour", "virtual"),
        ("virtualization", "virtualnode2"),
        ("cores", "8"),
        ("zone", "a"),
        ("empty", ""),
        ("word", "eight"),
    ];
    let taints = vec![
        ("virtual-kubelet.io/provider", "azure", "NoSchedule"),
        ("gpu", "yes", "NoSchedule"),
        ("bare", "", "NoSchedule"),
        ("soft", "x", "PreferNoSchedule"),
        ("hard", "x", "NoExecute"),
    ];
    (subsequence(labels, 0..=6), subsequence(taints, 0..=2)).prop_map(|(labels, mut taints)| {
        taints.push((GUARD, "", "NoSchedule"));
        let labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        Node { name: String::new(), labels, taints }
    })
}

fn pod() -> impl Strategy<Value = Value> {
    let tolerations = select(vec![
        json!({"operator": "Exists"}),
        json!({"operator": "Exists", "effect": "NoSchedule"}),
        json!({"key": "virtual-kubelet.io/provider", "operator": "Exists", "effect": "NoSchedule"}),
        json!({"key": "virtual-kubelet.io/provider", "operator": "Equal", "value": "azure"}),
        json!({"key": "virtual-kubelet.io/provider", "value": "aws"}),
        json!({"key": "gpu", "value": "yes", "effect": "NoSchedule"}),
        json!({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}),
        json!({"key": "bare"}),
        json!({"key": "bare", "operator": "Equal", "value": "x"}),
        json!({"key": "hard", "operator": "Exists"}),
    ]);
    let selector = prop_oneof![
        4 => Just(json!({})),
        1 => select(vec![json!({"flavour": "virtual"}), json!({"empty": ""}), json!({"zone": "b"}), json!({"zone": "a", "cores": "8"})]),
    ];
    let values = vec(select(vec!["virtual", "a", "b", "", "virtualnode2"]), 1..3);
    let key = || select(vec!["flavour", "virtualization", "cores", "zone", "empty", "word", "absent"]);
    let expression = prop_oneof![
        (key(), select(vec!["In", "NotIn"]), values)
            .prop_map(|(k, o, v)| json!({"key": k, "operator": o, "values": v})),
        (key(), select(vec!["Exists", "DoesNotExist"])).prop_map(|(k, o)| json!({"key": k, "operator": o})),
        (key(), select(vec!["Gt", "Lt"]), select(vec!["7", "8", "9"]))
            .prop_map(|(k, o, v)| json!({"key": k, "operator": o, "values": [v]})),
    ];
    let terms = prop_oneof![1 => Just(Vec::new()), 3 => vec(vec(expression, 0..3), 1..3)];
    (vec(tolerations, 0..3), selector, terms).prop_map(|(mut tolerations, selector, terms)| {
        tolerations.push(json!({"key": GUARD, "operator": "Exists", "effect": "NoSchedule"}));
        json!({"tolerations": tolerations, "nodeSelector": selector, "terms": terms})
    })
}

/// Returns a pod that names one node in every term, so that the scheduler considers only this node.
fn manifest(name: &str, shape: &Value, node: &str) -> Value {
    let by_name = json!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
    let mut terms: Vec<_> = shape["terms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| json!({"matchExpressions": e, "matchFields": by_name}))
        .collect();
    if terms.is_empty() {
        terms.push(json!({"matchFields": by_name}));
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "containers": [{"name": "c", "image": "registry.example/c"}],
            "tolerations": shape["tolerations"], "nodeSelector": shape["nodeSelector"],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}},
        },
    })
}

/// Returns whether the pod may be scheduled to the node, according to Spillway.
fn may_go(manifest: &Value, node: &Node) -> bool {
    let text = manifest.to_string();
    let pod: Pod<'_> = serde_json::from_str(&text).unwrap();
    let view = NodeView { name: &node.name, labels: &node.labels };
    let tolerated =
        node.taints.iter().filter(|(_, _, effect)| *effect != "PreferNoSchedule").all(|(key, value, effect)| {
            pod.tolerations().iter().any(|toleration| toleration.tolerates(Taint { key, value, effect }))
        });
    tolerated
        && pod.spec.node_selector.as_ref().is_none_or(|selector| selector.first_unmatched(view).is_none())
        && pod.required_node_affinity().is_none_or(|required| required.matches(view))
}

fn create_nodes(runner: &mut TestRunner) -> Vec<Node> {
    let nodes: Vec<_> = (0..NODES)
        .map(|i| Node { name: format!("scheduler-{i}"), ..node().new_tree(runner).unwrap().current() })
        .collect();
    let items: Vec<_> = nodes
        .iter()
        .map(|node| {
            let labels: HashMap<_, _> = node.labels.iter().cloned().collect();
            let taints: Vec<_> = node
                .taints
                .iter()
                .map(|(key, value, effect)| json!({"key": key, "value": value, "effect": effect}))
                .collect();
            let capacity = json!({"cpu": "1000", "memory": "1000Gi", "pods": "1000"});
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name, "labels": labels},
                "spec": {"taints": taints}, "status": {"allocatable": capacity, "capacity": capacity}})
        })
        .collect();
    control_plane().create_or_replace(None, &json!({"items": items}));
    control_plane().nodes_are_ready("");
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scheduler_agrees_on_where_a_pod_may_go() {
    let namespace = control_plane().namespace(None);
    let mut runner = TestRunner::deterministic();
    let nodes = create_nodes(&mut runner);
    let api: Api<v1::Pod> = Api::namespaced(control_plane().client().await, &namespace.name);

    let mut expected = HashMap::new();
    for i in 0..PODS {
        let (shape, node) = (pod().new_tree(&mut runner).unwrap().current(), &nodes[i % NODES]);
        let name = format!("p-{i}");
        let manifest = manifest(&name, &shape, &node.name);
        let object: v1::Pod = serde_json::from_value(manifest.clone()).unwrap();
        // The scheduler does not see pods that the API server refuses.
        if api.create(&PostParams::default(), &object).await.is_ok() {
            expected.insert(name, (may_go(&manifest, node), node.name.clone(), shape));
        }
    }
    let yes = expected.values().filter(|(may, ..)| *may).count();
    assert!(
        expected.len() > PODS / 2 && yes > 40 && yes < expected.len() - 40,
        "{yes} of {}: too one-sided",
        expected.len()
    );

    for (name, placed) in decided(&api, expected.len()).await {
        let (may, node, shape) = &expected[&name];
        assert_eq!(
            placed.is_some(),
            *may,
            "{name} on {node}: {shape:#}\n{:#?}",
            nodes.iter().find(|n| n.name == *node)
        );
        assert!(placed.is_none_or(|placed| placed == *node));
    }
}

/// Waits until the scheduler has tried all pods. Returns the node of each pod, or `None` if the pod is unschedulable.
async fn decided(api: &Api<v1::Pod>, count: usize) -> Vec<(String, Option<String>)> {
    for _ in 0..600 {
        let pods = api.list(&ListParams::default()).await.unwrap();
        let decided: Vec<_> = pods
            .iter()
            .filter_map(|pod| {
                let node = pod.spec.as_ref()?.node_name.clone();
                let conditions = pod.status.as_ref()?.conditions.as_ref();
                let refused =
                    conditions.is_some_and(|c| c.iter().any(|c| c.reason.as_deref() == Some("Unschedulable")));
                (node.is_some() || refused).then(|| (pod.metadata.name.clone().unwrap(), node))
            })
            .collect();
        if decided.len() == count {
            return decided;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the scheduler has not tried all of {count} pods");
}
