//! What holds for every pod.

use proptest::prelude::*;
use serde_json::{Value, json};
use spillway::{
    burst::{self, ServiceAccount, Verdict},
    config::{Configuration, Overrides},
    pod::Pod,
};

use crate::generated_pods::{Allow, lost, pod};

/// Decides on a pod and applies the patch with an implementation of RFC 6902 that is not ours.
fn decide(pod: &Value, profile: &str, account: ServiceAccount) -> (Verdict, Option<Value>, Value) {
    let (text, configuration) = (pod.to_string(), Configuration::default());
    let view: Pod<'_> = serde_json::from_str(&text).unwrap();
    let overrides = Overrides::read(view.annotations());
    let settings = configuration.settings(profile, &Overrides::default(), &overrides);
    let decision = burst::decide(&view, settings.as_ref(), account);
    let patch: Option<Value> = burst::json_patch(&view, &decision).map(|patch| serde_json::from_slice(&patch).unwrap());
    let mut after = pod.clone();
    if let Some(patch) = &patch {
        json_patch::patch(&mut after, &serde_json::from_value::<json_patch::Patch>(patch.clone()).unwrap())
            .expect("the patch applies");
    }
    (decision.verdict, patch, after)
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
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_patch_applies_and_nothing_of_the_users_is_lost(
        pod in pod(Allow::Anything), profile in profile(), account in account(),
    ) {
        let (_, _, after) = decide(&pod, profile, account);
        prop_assert_eq!(lost(&pod, &after), None);
    }

    #[test]
    fn deciding_on_the_result_changes_nothing(
        pod in pod(Allow::Anything), profile in profile(), account in account(),
    ) {
        let (verdict, _, after) = decide(&pod, profile, account);
        let (again, patch, _) = decide(&after, profile, account);
        prop_assert_eq!(verdict, again);
        prop_assert_eq!(patch, None);
    }

    #[test]
    fn a_pod_that_stays_gets_nothing_but_its_decision_and_its_identity(
        pod in pod(Allow::Anything), profile in profile(),
    ) {
        let (verdict, _, mut after) = decide(&pod, profile, ServiceAccount::WithoutClientId);
        if matches!(verdict, Verdict::Stay(_)) {
            prop_assert_eq!(&after["spec"], &pod["spec"]);
            let annotations = after["metadata"]["annotations"].as_object_mut().unwrap();
            let decision = annotations.remove("spillway.dev/decision").unwrap();
            prop_assert!(decision.as_str().unwrap().starts_with("stay: "));
            let before = pod["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
            let before: Vec<_> = before.iter().filter(|(key, _)| *key != "spillway.dev/decision").collect();
            prop_assert_eq!(annotations.iter().collect::<Vec<_>>(), before);
        }
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
fn an_opted_out_pod_gets_nothing_at_all() {
    let pod = json!({"metadata": {"labels": {"spillway.dev/burst": "disabled"}}, "spec": {}});
    let (verdict, patch, _) = decide(&pod, "high-scale", ServiceAccount::WithClientId);
    assert_eq!((verdict, patch), (Verdict::OptedOut, None));
}

#[test]
fn a_toleration_that_covers_the_taint_already_is_enough() {
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
fn kube_proxy_and_dns_are_opted_out_of_together_or_not_at_all() {
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
        (
            "confidential",
            json!({"annotations": {"microsoft.containerinstance.virtualnode.ccepolicy": "cA=="}}),
            json!(null),
            json!({}),
        ),
        (
            "image cache",
            json!({"annotations": {"microsoft.containerinstance.virtualnode.imagecachepod": "true"}}),
            json!(null),
            json!({}),
        ),
        (
            "companion",
            json!({"labels": {"virtualdaemonset.kubernetes.io/virtualdaemonset": "x"}}),
            json!(null),
            json!({}),
        ),
    ] {
        let pod = json!({"metadata": metadata, "spec": {"dnsPolicy": dns_policy}});
        let (_, _, after) = decide(&pod, "high-scale", ServiceAccount::Unknown);
        let annotations = &after["metadata"]["annotations"];
        assert_eq!([&annotations[PROXY], &annotations[DNS]], [&expected[PROXY], &expected[DNS]], "{name}");
    }
}
