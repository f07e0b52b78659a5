//! A pod that a user applies again keeps Spillway's additions, and the second apply succeeds.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};

use crate::{
    admission::pod,
    harness::{Stub, allowed, control_plane, eventually, manifest_webhooks, spillway},
};

/// Returns a pod with tolerations and preferred terms: kubectl sends these lists as a whole.
fn opinionated() -> Value {
    pod(
        "web",
        &json!({"spec": {
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10, "preference": {
                "matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["1"]}]}}]}},
        }}),
    )
}

#[test]
fn applying_a_pod_twice_succeeds_and_changes_nothing() {
    spillway();
    for how in [&["apply", "-f", "-"][..], &["apply", "--server-side", "-f", "-"]] {
        for mode in ["prefer", "require"] {
            let namespace =
                control_plane().annotated_namespace(Some("high-scale"), &json!({"spillway.dev/mode": mode}));
            namespace.kubectl(how, &opinionated().to_string());
            let spec = |pod: &str| -> Value { serde_json::from_str::<Value>(pod).unwrap()["spec"].clone() };
            let get = || namespace.kubectl(&["get", "pod", "web", "-o", "json"], "");
            let first = get();
            assert!(first.contains("virtual-kubelet.io/provider"), "{first}");
            for again in 2..4 {
                namespace.kubectl(how, &opinionated().to_string());
                let (mut before, mut after) = (spec(&first), spec(&get()));
                for pod in [&mut before, &mut after] {
                    let pod = pod.as_object_mut().unwrap();
                    pod.remove("nodeName");
                    let tolerations = pod.get_mut("tolerations").unwrap().as_array_mut().unwrap();
                    tolerations.sort_by_key(Value::to_string);
                }
                assert_eq!(before, after, "{how:?} {mode}, time {again}");
            }
        }
    }
}

#[test]
fn a_replaced_pod_keeps_the_additions() {
    spillway();
    let namespace = control_plane().namespace(Some("high-scale"));
    namespace.create(&opinionated());
    let mut created = eventually("the pod to be bound", || {
        let pod = namespace.pod("web");
        pod["spec"]["nodeName"].is_string().then_some(pod)
    });
    // A replacement also drops Spillway's annotations. The webhook uses the record in the old object.
    created["metadata"].as_object_mut().unwrap().remove("annotations");
    created["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let tolerations = created["spec"]["tolerations"].as_array_mut().unwrap();
    tolerations.retain(|toleration| toleration["key"] != "virtual-kubelet.io/provider");
    let replaced = namespace.kubectl(&["replace", "-o", "json", "-f", "-"], &created.to_string());
    let replaced: Value = serde_json::from_str(&replaced).unwrap();
    let annotations = &replaced["metadata"]["annotations"];
    assert_eq!(annotations["spillway.dev/added"], "toleration,affinity,kube-proxy,dns", "{replaced:#}");
    assert_eq!(annotations["microsoft.containerinstance.virtualnode.injectdns"], "false");
    assert!(replaced["spec"]["tolerations"].to_string().contains("virtual-kubelet.io/provider"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_updates_of_tolerations_or_affinity_call_the_webhook() {
    spillway();
    let namespace = control_plane().namespace(Some("enabled"));
    let calls = Arc::new(AtomicUsize::new(0));
    let stub = {
        let (calls, name) = (calls.clone(), namespace.name.clone());
        Stub::start(move |body| {
            let review: Value = serde_json::from_slice(&body).unwrap();
            calls.fetch_add(usize::from(review["request"]["namespace"] == name.as_str()), Ordering::Relaxed);
            std::future::ready(allowed(&body))
        })
        .await
    };
    let updates =
        manifest_webhooks().into_iter().find(|webhook| webhook["name"] == "pod-updates.spillway.dev").unwrap();
    let _registered = stub.register_like("aci-a-listener-of-updates", &updates); // before Spillway, which reverts the difference
    namespace.kubectl(&["apply", "-f", "-"], &opinionated().to_string());
    eventually("an apply to cause a call", || {
        namespace.kubectl(&["apply", "-f", "-"], &opinionated().to_string());
        (calls.load(Ordering::Relaxed) > 0).then_some(())
    });
    calls.store(0, Ordering::Relaxed);
    namespace.kubectl(&["label", "pod", "web", "a=b"], "");
    namespace.kubectl(&["annotate", "pod", "web", "a=b"], "");
    namespace.kubectl(&["set", "image", "pod/web", "c=registry.example/other"], "");
    assert_eq!(calls.load(Ordering::Relaxed), 0, "labels, annotations, images and status do not cause a call");
}
