//! The cost of a decision is linear in the size of the body, whatever its author writes. The size of the response has a maximum.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};
use spillway::eligibility::{LabelSelector, NetworkPolicy, Requirement};

use crate::one_decision::{WebhookState, decide};

/// Size of each body. Quadratic work on it takes seconds.
const BODY_BYTES: usize = 512 << 10;
/// Maximum time for a byte. The slowest body needs a tenth of it without optimization, and quadratic work many times as much.
const MAX_NANOS_PER_BYTE: u128 = 250;
const MAX_RESPONSE_BYTES: usize = 64 << 10;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Returns the CPU time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

fn review(pod: &Value, old: Option<&Value>) -> Vec<u8> {
    let operation = if old.is_some() { "UPDATE" } else { "CREATE" };
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": operation, "namespace": "shop",
        "object": pod, "oldObject": old}})
    .to_string()
    .into_bytes()
}

/// Returns as many entries as fit into a body.
fn fill(entry: impl Fn(usize) -> Value) -> Value {
    (0..BODY_BYTES / (entry(BODY_BYTES).to_string().len() + 1)).map(entry).collect()
}

/// Returns as many entries of a map as fit into a body.
fn fill_map(key: &str, value: &str) -> Value {
    let count = BODY_BYTES / (key.len() + value.len() + 13);
    (0..count).map(|i| (format!("{key}{i:07}"), value.into())).collect::<Map<_, _>>().into()
}

fn pod_with(field: &str, value: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c"}]});
    spec[field] = value;
    json!({"metadata": {}, "spec": spec})
}

fn container_with(field: &str, value: Value) -> Value {
    let mut container = json!({"name": "c"});
    container[field] = value;
    pod_with("containers", json!([container]))
}

fn annotated(key: &str, value: impl Into<Value>) -> Value {
    json!({"metadata": {"annotations": {key: value.into()}}, "spec": {"containers": [{"name": "c"}]}})
}

fn affinity(kind: &str, terms: Value) -> Value {
    let terms = if kind == REQUIRED { json!({"nodeSelectorTerms": terms}) } else { terms };
    pod_with("affinity", json!({"nodeAffinity": {kind: terms}}))
}

/// Returns pods whose authors want to make a decision expensive.
fn hostile_pods() -> Vec<(&'static str, Value)> {
    let ours = json!({"matchExpressions": [{"key": "type", "operator": "In", "values": ["virtual-kubelet"]}]});
    let expression = |i: usize| json!({"key": format!("k{i:07}"), "operator": "In", "values": ["v"]});
    let long = "n".repeat(BODY_BYTES / 100);
    let long_name = |i: usize| format!("{i}{long}");
    let mut added = affinity(REQUIRED, fill(|_| ours.clone()));
    let indexes: Vec<_> = (0..100_000).map(|i| i.to_string()).collect();
    added["metadata"]["annotations"] = json!({"spillway.dev/added": format!("affinity:{}", indexes.join("+"))});
    let mut many_labels = pod_with("hostNetwork", json!(true));
    many_labels["metadata"]["labels"] = fill_map("k", "v");
    let sixty_four = |entry: &dyn Fn(usize) -> Value| (0..64).map(entry).collect::<Value>();
    vec![
        ("unknown reasons in allow", annotated("spillway.dev/allow", "x,".repeat(BODY_BYTES / 2))),
        ("reasons in allow", annotated("spillway.dev/allow", "HostNetwork,".repeat(BODY_BYTES / 12))),
        ("one long word", annotated("spillway.dev/mode", "m".repeat(BODY_BYTES))),
        ("control characters", annotated("spillway.dev/mode", "\u{1b}".repeat(BODY_BYTES / 6))),
        ("unknown annotations", json!({"metadata": {"annotations": fill_map("spillway.dev/m", "")}, "spec": {}})),
        ("other annotations", json!({"metadata": {"annotations": fill_map("a", "")}, "spec": {}})),
        ("labels", many_labels),
        ("2,000 labels", json!({"metadata": {"labels": (0..2000).map(|i| (format!("k{i}"), "v".into())).collect::<Map<_, _>>()}, "spec": {}})),
        ("indexes of terms", added),
        ("nodeSelector", pod_with("nodeSelector", fill_map("k", "v"))),
        ("required terms", affinity(REQUIRED, fill(|i| json!({"matchExpressions": [expression(i)]})))),
        ("one required term", affinity(REQUIRED, json!([{"matchExpressions": fill(expression)}]))),
        ("one required expression", affinity(REQUIRED, json!([{"matchExpressions": [
            {"key": "a", "operator": "NotIn", "values": fill(|i| json!(i.to_string()))}]}]))),
        ("64 x 64 requirements", affinity(REQUIRED, sixty_four(&|_| {
            let long = json!({"key": "type", "operator": "NotIn", "values": ["v".repeat(BODY_BYTES / 64 / 64)]});
            json!({"matchExpressions": sixty_four(&|_| long.clone())})
        }))),
        ("preferred terms", affinity(PREFERRED, fill(|i| json!({"weight": 100, "preference": {"matchExpressions": [expression(i)]}})))),
        ("tolerations", pod_with("tolerations", fill(|i| json!({"key": format!("k{i:07}"), "operator": "Exists"})))),
        ("spreads", pod_with("topologySpreadConstraints", fill(|i| json!({"topologyKey": format!("k{i:07}")})))),
        ("containers", pod_with("containers", fill(|i| json!({"name": format!("c{i:07}"), "args": ["a"]})))),
        ("100 long containers", pod_with("containers", (0..100).map(|i| {
            json!({"name": long_name(i), "args": ["a"], "resources": {"limits": {"cpu": "9"}, "requests": {"cpu": "1m"}}})
        }).collect())),
        ("volumes", pod_with("volumes", fill(|i| json!({"name": format!("v{i:07}"), "hostPath": {"path": "/"}})))),
        ("100 long volumes", pod_with("volumes", (0..100).map(|i| json!({"name": long_name(i), "nfs": {}})).collect())),
        ("variables", container_with("env", fill(|i| {
            json!({"name": format!("V{i:07}"), "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
        }))),
        ("ports", container_with("ports", fill(|i| json!({"containerPort": i % 65536, "hostPort": 1})))),
        ("mounts", container_with("volumeMounts", fill(|i| json!({"name": format!("v{i:07}"), "subPath": "a"})))),
        ("resources", container_with("resources", json!({"limits": fill_map("nvidia.com/g", "1")}))),
        ("a long quantity", container_with("resources", json!({"limits": {"cpu": "9".repeat(BODY_BYTES)}}))),
        ("owners", json!({"metadata": {"ownerReferences": fill(|_| json!({"kind": "DaemonSet"}))}, "spec": {}})),
    ]
}

/// Returns NetworkPolicies whose author wants to make every pod of the namespace expensive.
fn hostile_policies() -> Vec<NetworkPolicy> {
    let requirement = |i: usize| Requirement {
        key: format!("absent{i:07}"),
        operator: "DoesNotExist".to_owned(),
        values: Vec::new(),
    };
    let match_expressions: Vec<_> = (0..400).map(requirement).collect();
    let pod_selector = LabelSelector { match_expressions, ..LabelSelector::default() };
    (0..20).map(|i| NetworkPolicy { name: format!("policy-{i}"), pod_selector: pod_selector.clone() }).collect()
}

#[test]
fn a_decision_costs_at_most_a_fixed_time_for_each_byte() {
    let mut state = WebhookState::default();
    state.network_policies = hostile_policies();
    let policy_bytes: usize =
        state.network_policies.iter().map(|policy| format!("{:?}", policy.pod_selector).len()).sum();
    let mut expensive = Vec::new();
    for (name, pod) in hostile_pods() {
        let small = annotated("a", "b");
        for (how, body) in [
            ("created", review(&pod, None)),
            ("updated", review(&pod, Some(&pod))),
            ("shortened", review(&small, Some(&pod))),
        ] {
            let start = cpu_time();
            let response = decide(&state, &body).map(|response| response.len());
            let nanos = cpu_time().saturating_sub(start).as_nanos() / (body.len() + policy_bytes) as u128;
            println!(
                "{nanos:5} ns a byte, {} bytes of response: {name}, {how}",
                response.as_ref().map_or(0, |len| *len)
            );
            if nanos > MAX_NANOS_PER_BYTE || response.is_ok_and(|len| len > MAX_RESPONSE_BYTES) {
                expensive.push(format!("{name}, {how}: {nanos} ns a byte"));
            }
        }
    }
    assert!(expensive.is_empty(), "{expensive:#?}");
}
