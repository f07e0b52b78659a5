//! Properties of the decision that hold for every pod.

use proptest::prelude::*;
use serde_json::{Value, json};
use spillway::{
    burst::{self, ClusterContext, ServiceAccount, Verdict},
    config::{Configuration, Overrides},
    eligibility::VirtualNode,
    pod::Pod,
};

use crate::generated_pods::{Allow, lost, pod};

/// Returns the decision on a pod for this mode and profile, in a cluster with virtual nodes of the second generation, and the pod
/// after an independent implementation of RFC 6902 has applied the patch.
fn decide_in(mode: &str, pod: &Value, profile: &str, account: ServiceAccount) -> (Verdict, Option<Value>, Value) {
    let (text, configuration) = (pod.to_string(), Configuration::default());
    let view: Pod<'_> = serde_json::from_str(&text).unwrap();
    let namespace = Overrides::read([("spillway.dev/mode", mode)].into_iter());
    let settings = configuration.settings(profile, &namespace, &Overrides::read(view.annotations()));
    let labels = [("type", "virtual-kubelet"), ("virtualization", "virtualnode2"), ("kubernetes.io/os", "linux")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let nodes = [VirtualNode::new("virtualnode-0".to_owned(), labels)];
    let cluster = ClusterContext { virtual_nodes: &nodes, ..ClusterContext::only(account) };
    let decision = burst::decide(&view, &settings, &cluster);
    let patch: Option<Value> = burst::json_patch(&view, &decision).map(|patch| serde_json::to_value(&patch).unwrap());
    let mut after = pod.clone();
    if let Some(patch) = &patch {
        let patch: json_patch::Patch = serde_json::from_value(patch.clone()).unwrap();
        json_patch::patch(&mut after, &patch).expect("the patch applies");
    }
    (decision.verdict, patch, after)
}

fn decide(pod: &Value, profile: &str, account: ServiceAccount) -> (Verdict, Option<Value>, Value) {
    decide_in("prefer", pod, profile, account)
}

fn mode() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("prefer"), Just("late"), Just("bridge"), Just("require"), Just("off")]
}

/// Returns the pod without the record of additions, which its author could have forged.
fn unforged(mut pod: Value) -> Value {
    if let Some(annotations) = pod["metadata"].get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.remove("spillway.dev/added");
    }
    pod
}

fn account() -> impl Strategy<Value = ServiceAccount> {
    prop_oneof![
        Just(ServiceAccount::WithClientId),
        Just(ServiceAccount::WithoutClientId),
        Just(ServiceAccount::Unknown)
    ]
}

fn profile() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("enabled"), Just("high-scale"), Just("unknown")]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_patch_applies_and_keeps_the_users_fields(
        pod in pod(Allow::Anything), profile in profile(), account in account(), mode in mode(),
    ) {
        let (_, _, after) = decide_in(mode, &pod, profile, account);
        prop_assert_eq!(lost(&pod, &after), None);
    }

    #[test]
    fn deciding_on_the_result_changes_nothing(
        pod in pod(Allow::Anything), profile in profile(), account in account(), mode in mode(),
    ) {
        let (verdict, _, after) = decide_in(mode, &pod, profile, account);
        let (again, patch, _) = decide_in(mode, &after, profile, account);
        prop_assert_eq!(verdict, again);
        prop_assert_eq!(patch, None);
    }

    #[test]
    fn a_mode_change_removes_what_the_former_mode_added(
        pod in pod(Allow::Valid), profile in profile(), before in mode(), after in mode(),
    ) {
        let pod = unforged(pod);
        let (_, _, once) = decide_in(before, &pod, profile, ServiceAccount::WithoutClientId);
        let (_, _, changed) = decide_in(after, &once, profile, ServiceAccount::WithoutClientId);
        let (_, _, fresh) = decide_in(after, &pod, profile, ServiceAccount::WithoutClientId);
        prop_assert_eq!(pruned(&changed), pruned(&fresh));
    }

    #[test]
    fn a_pod_that_stays_gets_only_decision_and_identity_label(
        pod in pod(Allow::Anything), profile in profile(),
    ) {
        let (verdict, _, mut after) = decide(&pod, profile, ServiceAccount::WithoutClientId);
        if matches!(verdict, Verdict::Stay(_)) {
            prop_assert_eq!(&after["spec"], &pod["spec"]);
            let annotations = after["metadata"]["annotations"].as_object_mut().unwrap();
            let decision = annotations.remove("spillway.dev/decision").unwrap();
            prop_assert!(decision.as_str().unwrap().starts_with("stay: "));
            // Spillway may change its own annotations.
            let own = |key: &str| matches!(key, "spillway.dev/decision" | "spillway.dev/added");
            let before = pod["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
            let before: Vec<_> = before.iter().filter(|(key, _)| !own(key)).collect();
            prop_assert_eq!(annotations.iter().filter(|(key, _)| !own(key)).collect::<Vec<_>>(), before);
        }
    }

    #[test]
    fn a_withdrawal_leaves_the_pod_as_it_was(
        pod in pod(Allow::Valid), profile in profile(), mode in mode(),
    ) {
        let pod = unforged(pod);
        let (_, _, mut changed) = decide_in(mode, &pod, profile, ServiceAccount::WithoutClientId);
        let mut fresh = pod;
        for pod in [&mut changed, &mut fresh] {
            pod["spec"]["nodeSelector"] = json!({"kubernetes.io/arch": "arm64"});
        }
        let (_, _, withdrawn) = decide_in(mode, &changed, profile, ServiceAccount::WithoutClientId);
        let (_, _, never) = decide_in(mode, &fresh, profile, ServiceAccount::WithoutClientId);
        prop_assert_eq!(pruned(&withdrawn), pruned(&never));
    }

    #[test]
    fn a_second_apply_keeps_the_additions_in_place(pod in pod(Allow::Valid), mode in mode()) {
        let pod = unforged(pod);
        let (_, _, old) = decide_in(mode, &pod, "high-scale", ServiceAccount::WithoutClientId);
        // An apply replaces lists of the pod, and merges maps.
        let mut new = old.clone();
        for list in ["tolerations", "affinity"] {
            if !pod["spec"][list].is_null() {
                new["spec"][list] = pod["spec"][list].clone();
            }
        }
        let (new_text, old_text, configuration) = (new.to_string(), old.to_string(), Configuration::default());
        let (new_view, old_view) = (serde_json::from_str(&new_text).unwrap(), serde_json::from_str(&old_text).unwrap());
        if let Some(patch) = burst::restore(&new_view, &old_view, &configuration.virtual_nodes) {
            json_patch::patch(&mut new, &patch).unwrap();
        }
        prop_assert_eq!(pruned(&new["spec"]["affinity"]), pruned(&old["spec"]["affinity"]));
        prop_assert_eq!(&new["spec"]["tolerations"], &old["spec"]["tolerations"]);
    }

    #[test]
    fn no_toleration_without_an_effect_is_ever_added(pod in pod(Allow::Anything)) {
        let (_, patch, _) = decide(&pod, "enabled", ServiceAccount::Unknown);
        let patch = patch.unwrap_or_else(|| json!([]));
        for operation in patch.as_array().unwrap() {
            if operation["path"].as_str().unwrap().starts_with("/spec/tolerations") {
                let added = operation["value"].as_array().map_or(&operation["value"], |list| &list[0]);
                prop_assert_eq!(&added["effect"], "NoSchedule");
            }
        }
    }
}

#[test]
fn the_generated_pods_are_not_all_of_one_kind() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let (mut bursts, mut stays) = (0, 0);
    for _ in 0..500 {
        let pod = pod(Allow::Valid).new_tree(&mut runner).unwrap().current();
        match decide_in("require", &pod, "enabled", ServiceAccount::Unknown).0 {
            Verdict::Burst(_) => bursts += 1,
            Verdict::Stay(_) => stays += 1,
            Verdict::OptedOut => {}
        }
    }
    assert!(bursts > 60 && stays > 60, "{bursts} burst, {stays} stay: properties of the fewer are hardly tried");
}

#[test]
fn additions_to_required_terms_are_recorded_for_each_term() {
    let linux = json!({"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]});
    let is_virtual = json!({"key": "type", "operator": "In", "values": ["virtual-kubelet"]});
    let pod = |terms: &Value, added: Option<&str>| {
        let mut pod = json!({"metadata": {}, "spec": {"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}});
        if let Some(added) = added {
            pod["metadata"]["annotations"] = json!({"spillway.dev/added": added});
        }
        pod
    };
    let record = |pod: &Value| {
        let (_, _, after) = decide_in("require", pod, "enabled", ServiceAccount::Unknown);
        after["metadata"]["annotations"]["spillway.dev/added"].clone()
    };
    let own = json!({"matchExpressions": [linux, is_virtual]});
    let bare = json!({"matchExpressions": [linux]});
    assert_eq!(record(&pod(&json!([bare, bare]), None)), "toleration,affinity");
    assert_eq!(record(&pod(&json!([bare, own]), None)), "toleration,affinity:0");
    // A later webhook appended a term. Spillway's addition stays Spillway's.
    assert_eq!(record(&pod(&json!([own, bare]), Some("toleration,affinity:0"))), "toleration,affinity");
    assert_eq!(record(&pod(&json!([own, own, bare]), Some("affinity:1"))), "toleration,affinity:1+2");
}

#[test]
fn a_term_of_the_user_is_never_taken_for_spillways() {
    let avoids = json!({"weight": 100, "preference": {"matchExpressions": [
        {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]}]}});
    let requires = json!({"matchExpressions": [{"key": "type", "operator": "In", "values": ["virtual-kubelet"]}]});
    let linux = json!({"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]});
    let preferred = json!({"preferredDuringSchedulingIgnoredDuringExecution": [avoids]});
    let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [requires, linux]}});
    for (affinity, mode, record) in
        [(preferred, "require", "toleration,affinity:0"), (required, "prefer", "toleration,affinity:preferred")]
    {
        let pod = json!({"metadata": {}, "spec": {"affinity": {"nodeAffinity": affinity}}});
        let (_, _, admitted) = decide_in(mode, &pod, "enabled", ServiceAccount::Unknown);
        assert_eq!(admitted["metadata"]["annotations"]["spillway.dev/added"], record);
        for later in ["require", "prefer", "late", "off"] {
            let (_, _, after) = decide_in(later, &admitted, "enabled", ServiceAccount::Unknown);
            assert_eq!(lost(&pod, &after), None, "{mode}, then {later}");
            let (_, patch, _) = decide_in(later, &after, "enabled", ServiceAccount::Unknown);
            assert_eq!(patch, None, "{mode}, then {later} twice");
        }
        let (_, _, unknown) = decide_in(mode, &admitted, "unknown", ServiceAccount::Unknown);
        assert_eq!(unknown["metadata"]["annotations"]["spillway.dev/added"], record);
    }
}

/// Returns the pod without empty maps and lists: the API server treats them as absent.
fn pruned(value: &Value) -> Value {
    let is_empty = |value: &Value| matches!(value, Value::Null) || *value == json!({}) || *value == json!([]);
    match value {
        Value::Object(map) => {
            let fields = map.iter().map(|(key, value)| (key.clone(), pruned(value)));
            fields.filter(|(_, value)| !is_empty(value)).collect::<serde_json::Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

#[test]
fn an_opted_out_pod_is_not_changed() {
    let pod = json!({"metadata": {"labels": {"spillway.dev/burst": "disabled"}}, "spec": {}});
    let (verdict, patch, _) = decide(&pod, "high-scale", ServiceAccount::WithClientId);
    assert_eq!((verdict, patch), (Verdict::OptedOut, None));
}

#[test]
fn a_pod_that_tolerates_the_taint_gets_no_toleration() {
    for (toleration, added) in [
        (json!({"operator": "Exists"}), false),
        (json!({"key": "virtual-kubelet.io/provider", "operator": "Equal", "value": "azure"}), false),
        (json!({"key": "virtual-kubelet.io/provider", "operator": "Equal", "value": "aws"}), true),
        (json!({"key": "virtual-kubelet.io/provider", "operator": "Exists", "effect": "NoExecute"}), true),
    ] {
        let pod = json!({"metadata": {}, "spec": {"tolerations": [toleration]}});
        let (_, _, after) = decide(&pod, "enabled", ServiceAccount::Unknown);
        assert_eq!(after["spec"]["tolerations"].as_array().unwrap().len(), 1 + usize::from(added), "{toleration}");
    }
}

#[test]
fn kube_proxy_and_dns_are_opted_out_together() {
    const PROXY: &str = "microsoft.containerinstance.virtualnode.injectkubeproxy";
    const DNS: &str = "microsoft.containerinstance.virtualnode.injectdns";
    for (name, metadata, dns_policy, expected) in [
        ("cluster DNS", json!({}), json!("ClusterFirst"), json!({PROXY: "false", DNS: "false"})),
        ("cluster DNS by default", json!({}), json!(null), json!({PROXY: "false", DNS: "false"})),
        ("host DNS", json!({}), json!("Default"), json!({PROXY: "false"})),
        ("own DNS", json!({}), json!("None"), json!({PROXY: "false"})),
        ("own kube-proxy", json!({"annotations": {PROXY: "true"}}), json!(null), json!({PROXY: "true"})),
        ("own opt-out", json!({"annotations": {PROXY: "false"}}), json!(null), json!({PROXY: "false"})),
        ("own DNS annotation", json!({"annotations": {DNS: "false"}}), json!(null), json!({DNS: "false"})),
    ] {
        let pod = json!({"metadata": metadata, "spec": {"dnsPolicy": dns_policy}});
        let (_, _, after) = decide(&pod, "high-scale", ServiceAccount::Unknown);
        let annotations = &after["metadata"]["annotations"];
        assert_eq!([&annotations[PROXY], &annotations[DNS]], [&expected[PROXY], &expected[DNS]], "{name}");
    }
}

/// Decides on a new pod with this configuration.
fn admitted(configuration: &str, pod: &Value) -> Value {
    let text = format!("apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n{configuration}\n");
    let configuration = spillway::config::parse(&text).unwrap();
    let json = pod.to_string();
    let view: Pod<'_> = serde_json::from_str(&json).unwrap();
    let none = Overrides::default();
    let settings = configuration.settings("high-scale", &none, &none);
    let decision = burst::decide(&view, &settings, &ClusterContext::only(ServiceAccount::Unknown));
    let patch = burst::json_patch(&view, &decision).unwrap();
    let mut after = pod.clone();
    json_patch::patch(&mut after, &patch).unwrap();
    after
}

#[test]
fn every_setting_of_the_file_has_its_effect() {
    let empty = json!({"metadata": {}, "spec": {}});
    let own = "virtualNodes: {selector: pool=burst, toleration: {key: acme.com/burst, operator: Equal, value: x, effect: NoExecute}}";
    let after = admitted(own, &empty);
    assert_eq!(
        after["spec"]["tolerations"],
        json!([{"key": "acme.com/burst", "operator": "Equal", "value": "x", "effect": "NoExecute"}])
    );
    let preferred =
        "/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution/0/preference/matchExpressions/0";
    assert_eq!(after.pointer(preferred), Some(&json!({"key": "pool", "operator": "NotIn", "values": ["burst"]})));

    let tolerates =
        |value: &str| json!({"metadata": {}, "spec": {"tolerations": [{"key": "acme.com/burst", "value": value}]}});
    assert_eq!(admitted(own, &tolerates("x"))["spec"]["tolerations"].as_array().unwrap().len(), 1);
    assert_eq!(admitted(own, &tolerates("y"))["spec"]["tolerations"].as_array().unwrap().len(), 2);

    let annotations = |configuration: &str| admitted(configuration, &empty)["metadata"]["annotations"].clone();
    let dns = "microsoft.containerinstance.virtualnode.injectdns";
    assert_eq!(annotations("")[dns], "false");
    assert_eq!(annotations("network: {dns: keep}")[dns], Value::Null);
    assert_eq!(annotations("mode: late")["spillway.dev/decision"], "late");
    assert_eq!(annotations("mode: off")["spillway.dev/decision"], "stay: ModeOff");
}

#[test]
fn pods_of_the_virtual_node_infrastructure_stay_unchanged() {
    for (name, metadata, reason) in [
        (
            "confidential",
            json!({"annotations": {"microsoft.containerinstance.virtualnode.ccepolicy": "cA=="}}),
            "ConfidentialPod",
        ),
        (
            "image cache",
            json!({"annotations": {"microsoft.containerinstance.virtualnode.imagecachepod": "true"}}),
            "ImageCachePod",
        ),
        (
            "companion",
            json!({"labels": {"virtualdaemonset.kubernetes.io/virtualdaemonset": "x"}}),
            "VirtualDaemonSetPod",
        ),
    ] {
        let pod = json!({"metadata": metadata, "spec": {}});
        let (_, _, after) = decide(&pod, "high-scale", ServiceAccount::Unknown);
        assert_eq!(after["spec"], json!({}), "{name}");
        assert_eq!(after["metadata"]["annotations"]["spillway.dev/decision"], format!("stay: {reason}"), "{name}");
    }
    let no_cache = json!({"metadata": {"annotations": {"microsoft.containerinstance.virtualnode.imagecachepod": "false"}}, "spec": {}});
    let (verdict, _, _) = decide(&no_cache, "enabled", ServiceAccount::Unknown);
    assert_eq!(verdict.to_string(), "prefer");
}

#[test]
fn no_identity_label_where_the_pod_would_be_refused() {
    let refused = |annotations: Value, host_network: bool, account| {
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {"hostNetwork": host_network}});
        let (_, _, after) = decide(&pod, "enabled", account);
        after["metadata"]["labels"].is_null()
    };
    let expiration = |seconds: &str| json!({"azure.workload.identity/service-account-token-expiration": seconds});
    let proxy = json!({"azure.workload.identity/inject-proxy-sidecar": "false"});
    let port = json!({"azure.workload.identity/inject-proxy-sidecar": "true", "azure.workload.identity/proxy-sidecar-port": "http"});
    use ServiceAccount::{WithBadExpiration, WithClientId};
    for (annotations, host_network, account, expected) in [
        (json!({}), false, WithClientId, false),
        (expiration("3600"), false, WithClientId, false),
        (expiration("3599"), false, WithClientId, true),
        (expiration("1h"), false, WithClientId, true),
        (json!({}), false, WithBadExpiration, true),
        (expiration("86400"), false, WithBadExpiration, false),
        (proxy.clone(), false, WithClientId, false),
        (proxy, true, WithClientId, true),
        (port, false, WithClientId, true),
    ] {
        assert_eq!(
            refused(annotations.clone(), host_network, account),
            expected,
            "{annotations} {host_network} {account:?}"
        );
    }
}
