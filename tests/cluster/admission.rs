//! A pod in an opted-in namespace gets Spillway's changes and keeps everything it had.

use serde_json::{Value, json};

use crate::{
    generated::without_random_names,
    generated_pods::lost,
    harness::{control_plane, spillway},
};

pub(crate) fn pod(name: &str, more: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "registry.example/c"}]},
    });
    merge(&mut pod, more);
    pod
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from.clone(),
    }
}

/// Returns the pod without fields that differ between creations.
fn stable(pod: &Value) -> Value {
    let mut pod = without_random_names(pod);
    let metadata = pod["metadata"].as_object_mut().unwrap();
    for own in ["namespace", "uid", "creationTimestamp", "resourceVersion", "managedFields", "generation"] {
        metadata.remove(own);
    }
    metadata
        .get_mut("annotations")
        .and_then(Value::as_object_mut)
        .map(|annotations| annotations.remove("kubectl.kubernetes.io/last-applied-configuration"));
    pod.as_object_mut().unwrap().remove("status");
    pod
}

const TOLERATION: &str = r#"{"effect":"NoSchedule","key":"virtual-kubelet.io/provider","operator":"Exists"}"#;

#[test]
fn a_created_pod_gets_the_four_changes() {
    spillway();
    let namespace = control_plane().namespace(Some("high-scale"));
    namespace.known_identity("web");
    let created = namespace.create(&pod("web", &json!({"spec": {"serviceAccountName": "web"}})));

    let tolerations = created["spec"]["tolerations"].as_array().unwrap();
    let toleration: Value = serde_json::from_str(TOLERATION).unwrap();
    assert_eq!(tolerations.iter().filter(|t| **t == toleration).count(), 1, "{created:#}");
    assert_eq!(
        created["spec"]["affinity"],
        json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": {
            "matchExpressions": [{"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]}]}}]}})
    );
    assert_eq!(created["metadata"]["labels"], json!({"azure.workload.identity/use": "true"}));
    assert_eq!(
        created["metadata"]["annotations"],
        json!({
            "microsoft.containerinstance.virtualnode.injectkubeproxy": "false",
            "microsoft.containerinstance.virtualnode.injectdns": "false",
            "spillway.dev/added": "toleration,affinity,kube-proxy,dns,identity-label",
            "spillway.dev/decision": "prefer",
        })
    );
}

#[test]
fn settings_come_from_profile_namespace_and_pod() {
    spillway();
    let proxy = "microsoft.containerinstance.virtualnode.injectkubeproxy";
    let plane = control_plane();
    let enabled = plane.namespace(Some("enabled"));
    let annotated = plane.annotated_namespace(Some("enabled"), &json!({"spillway.dev/kube-proxy": "opt-out"}));
    let off = plane.annotated_namespace(Some("enabled"), &json!({"spillway.dev/mode": "off"}));
    let keep = json!({"metadata": {"annotations": {"spillway.dev/kube-proxy": "keep"}}});

    let annotations = |pod: Value| pod["metadata"]["annotations"].clone();
    assert_eq!(annotations(enabled.dry_run(&pod("a", &json!({}))))[proxy], Value::Null);
    assert_eq!(annotations(annotated.dry_run(&pod("b", &json!({}))))[proxy], "false");
    assert_eq!(annotations(annotated.dry_run(&pod("c", &keep)))[proxy], Value::Null);
    assert_eq!(annotations(off.dry_run(&pod("d", &json!({}))))["spillway.dev/decision"], "stay: ModeOff");
}

#[test]
fn a_dry_run_shows_what_a_create_does() {
    spillway();
    let namespace = control_plane().namespace(Some("high-scale"));
    namespace.known_identity("web");
    for (name, more) in [
        ("plain", json!({})),
        ("identity", json!({"spec": {"serviceAccountName": "web"}})),
        ("windows", json!({"spec": {"os": {"name": "windows"}}})),
        ("opted-out", json!({"metadata": {"labels": {"spillway.dev/burst": "disabled"}}})),
    ] {
        let wanted = pod(name, &more);
        let shown = namespace.kubectl_dry_run(&wanted);
        assert_eq!(namespace.pods(), [Value::Null; 0], "a dry run of {name} left a pod behind");
        let text = namespace.kubectl(&["apply", "-o", "json", "-f", "-"], &wanted.to_string());
        let created: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(stable(&shown), stable(&created), "{name}");
        namespace.kubectl(&["delete", "pod", name, "--grace-period=0", "--force"], "");
    }
}

#[test]
fn pods_of_a_deployment_are_changed_too() {
    spillway();
    let namespace = control_plane().namespace(Some("enabled"));
    namespace.create(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "registry.example/c"}]}}},
    }));
    namespace.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"], "");
    let decision = |pod: &Value| pod["metadata"]["annotations"]["spillway.dev/decision"].clone();
    assert_eq!(namespace.pods().iter().map(decision).collect::<Vec<_>>(), ["prefer"; 3]);
}

#[test]
fn the_users_own_fields_survive() {
    spillway();
    let plane = control_plane();
    let (plain, opted_in) = (plane.namespace(None), plane.namespace(Some("high-scale")));
    let spread = json!([{"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]);
    let everything = json!({
        "metadata": {
            "labels": {"app": "web", "example.com/a.b-c_d": "x", "azure.workload.identity/use": "false"},
            "annotations": {"example.com/text": "quotes \" and \\ and\nlines and ~ and / and ünïcödé", "a/b": "", "c": "~1~0"},
        },
        "spec": {
            "tolerations": [
                {"key": "virtual-kubelet.io/provider", "operator": "Equal", "value": "aws", "effect": "NoSchedule"},
                {"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
            ],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]}]},
                    "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 50, "preference": {"matchExpressions": [
                        {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["1"]}]}}],
                },
                "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 10, "podAffinityTerm": spread[0]}]},
                "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": spread},
            },
        },
    });
    let parts = [
        ("everything", everything.clone()),
        ("nothing", json!({})),
        (
            "required-only",
            json!({"spec": {"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": everything["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]}}}}),
        ),
        (
            "anti-affinity-only",
            json!({"spec": {"affinity": {
            "podAntiAffinity": everything["spec"]["affinity"]["podAntiAffinity"]}}}),
        ),
        (
            "empty",
            json!({"metadata": {"labels": {}, "annotations": {}}, "spec": {"affinity": {"nodeAffinity": {}}, "tolerations": []}}),
        ),
    ];
    for (name, more) in parts {
        let before = stable(&plain.dry_run(&pod(name, &more)));
        let after = stable(&opted_in.dry_run(&pod(name, &more)));
        assert_eq!(lost(&before, &after), None, "{name}: {after:#}");
        assert_eq!(after["metadata"]["annotations"]["spillway.dev/decision"], "prefer", "{name}");
        assert!(lost(&after, &before).is_some(), "{name}: nothing was added");
    }
}

#[test]
fn ineligible_pods_stay_with_a_reason() {
    spillway();
    let namespace = control_plane().namespace(Some("enabled"));
    let typo = control_plane().namespace(Some("Enabled"));
    let windows = json!({"spec": {"os": {"name": "windows"}}});
    let owner = json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u"}]}});
    for (namespace, more, decision) in [
        (&namespace, windows.clone(), "stay: Windows"),
        (&namespace, owner, "stay: DaemonSet"),
        (&namespace, json!({"spec": {"nodeName": "vm-1", "os": {"name": "windows"}}}), "stay: NodeName,Windows"),
        (&typo, json!({}), "stay: UnknownProfile"),
    ] {
        let admitted = namespace.dry_run(&pod("p", &more));
        let annotations = admitted["metadata"]["annotations"].as_object().unwrap();
        assert_eq!(annotations["spillway.dev/decision"], decision);
        assert!(!annotations.contains_key("spillway.dev/added"), "{decision}");
        assert!(!admitted["spec"].to_string().contains("virtual-kubelet"), "{decision}");
    }
}

#[test]
fn namespace_label_changes_take_effect() {
    spillway();
    let plane = control_plane();
    let namespace = plane.namespace(Some("enabled"));
    let decision =
        || namespace.dry_run(&pod("web", &json!({})))["metadata"]["annotations"]["spillway.dev/decision"].clone();
    assert_eq!(decision(), "prefer");
    let label = |value: &str| plane.kubectl(&["label", "--overwrite", "namespace", &namespace.name, value]);
    label("spillway.dev/burst=nonsense");
    crate::harness::eventually("the new profile", || (decision() == "stay: UnknownProfile").then_some(()));
    label("spillway.dev/burst=disabled");
    crate::harness::eventually("the namespace to be out", || decision().is_null().then_some(()));
    label("spillway.dev/burst=enabled");
    crate::harness::eventually("the namespace to be in again", || (decision() == "prefer").then_some(()));
}

#[test]
fn a_recreated_service_account_has_no_client_id() {
    let webhook = spillway();
    let namespace = control_plane().namespace(Some("enabled"));
    namespace.known_identity("web");
    let as_web = pod("web", &json!({"spec": {"serviceAccountName": "web"}}));
    let label = |pod: &Value| pod["metadata"]["labels"]["azure.workload.identity/use"].clone();
    assert_eq!(label(&namespace.dry_run(&as_web)), "true");
    namespace.kubectl(&["delete", "serviceaccount", "web"], "");
    namespace.kubectl(&["create", "serviceaccount", "web"], "");
    crate::harness::eventually("the new account to be seen", || {
        label(&namespace.dry_run(&as_web)).is_null().then_some(())
    });
    assert_eq!(webhook.admin("/readyz"), (200, "ok\n".to_owned()));
}
