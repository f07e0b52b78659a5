//! Which requests reach the webhook: the selectors of the manifest, tested with a stub that counts.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::{
    admission::pod,
    harness::{Stub, allowed, control_plane, eventually, manifest_webhooks},
};

#[test]
fn the_webhooks_are_registered_to_fail_open() {
    let webhooks = manifest_webhooks();
    let names: Vec<_> = webhooks.iter().map(|webhook| &webhook["name"]).collect();
    assert_eq!(json!(names), json!(["pods.spillway.dev", "pod-updates.spillway.dev", "bindings.spillway.dev"]));
    for (webhook, (reinvocation, seconds)) in webhooks.iter().zip([("IfNeeded", 2), ("Never", 2), ("Never", 1)]) {
        let fixed = [
            "failurePolicy",
            "timeoutSeconds",
            "matchPolicy",
            "sideEffects",
            "admissionReviewVersions",
            "reinvocationPolicy",
        ];
        let registered: Vec<_> = fixed.iter().map(|field| webhook[field].clone()).collect();
        assert_eq!(json!(registered), json!(["Ignore", seconds, "Equivalent", "None", ["v1"], reinvocation]));
    }
    assert_eq!(webhooks[0]["rules"][0]["operations"], json!(["CREATE"]));
    assert_eq!(webhooks[1]["rules"][0]["operations"], json!(["UPDATE"]));
    let conditions: Vec<_> =
        webhooks[1]["matchConditions"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(json!(conditions), json!(["not-the-controller", "tolerations-or-affinity-changed"]));
    let controller = webhooks[1]["matchConditions"][0]["expression"].as_str().unwrap();
    assert!(controller.contains("!= 'system:serviceaccount:spillway-system:spillway-controller'"), "{controller}");
    let rule = &webhooks[2]["rules"][0];
    assert_eq!((&rule["resources"], &rule["operations"]), (&json!(["pods/binding"]), &json!(["CREATE"])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_opted_in_pods_call_the_webhook() {
    let plane = control_plane();
    let calls: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let stub = {
        let calls = calls.clone();
        Stub::start(move |body| {
            let review: Value = serde_json::from_slice(&body).unwrap();
            let text = |pointer| review.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            calls.lock().unwrap().push((text("/request/namespace"), text("/request/object/metadata/name")));
            std::future::ready(allowed(&body))
        })
        .await
    };
    let _registered = stub.register_like("aci-spillway-calls", &manifest_webhooks()[0]);
    let count = |namespace: &str, name: &str| {
        let calls = calls.lock().unwrap();
        calls.iter().filter(|(ns, pod)| ns == namespace && pod == name).count()
    };

    let opted_in = plane.namespace(Some("enabled"));
    eventually("the stub to be called", || {
        opted_in.dry_run(&pod("probe", &json!({})));
        (count(&opted_in.name, "probe") > 0).then_some(())
    });

    let plain = plane.namespace(None);
    let disabled = plane.namespace(Some("disabled"));
    let managed = plane.namespace(Some("enabled"));
    let control = plane.namespace(Some("enabled"));
    plane.kubectl(&["label", "namespace", &managed.name, "kubernetes.azure.com/managedby=aks"]);
    plane.kubectl(&["label", "namespace", &control.name, "control-plane=true"]);
    plane.kubectl(&["label", "namespace", "kube-system", "spillway.dev/burst=enabled"]);
    for namespace in [&plain, &disabled, &managed, &control] {
        namespace.create(&pod("web", &json!({})));
        assert_eq!(count(&namespace.name, "web"), 0, "{}", namespace.name);
    }
    plane.kubectl_with(&["-n", "kube-system", "create", "-f", "-"], &pod("web", &json!({})).to_string());
    plane.kubectl(&["-n", "kube-system", "delete", "pod", "web", "--grace-period=0", "--force"]);
    assert_eq!(count("kube-system", "web"), 0);

    opted_in.create(&pod("out", &json!({"metadata": {"labels": {"spillway.dev/burst": "disabled"}}})));
    assert_eq!(count(&opted_in.name, "out"), 0, "the pod's label overrides the namespace");
    let mirror =
        json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": {"nodeName": "vm-1"}});
    let refused = plane.try_kubectl(&["-n", &opted_in.name, "create", "-f", "-"], &pod("mirror", &mirror).to_string());
    assert_eq!(count(&opted_in.name, "mirror"), 0, "{refused:?}");

    opted_in.create(&pod("in", &json!({})));
    assert_eq!(count(&opted_in.name, "in"), 1);
    opted_in.kubectl(&["label", "pod", "in", "a=b"], "");
    opted_in.kubectl(&["delete", "pod", "in", "--grace-period=0", "--force"], "");
    assert_eq!(count(&opted_in.name, "in"), 1, "only a creation causes a call");
}
