//! The identity label: the webhook decides by its cache, or by one lookup, and never refuses the pod.

use serde_json::{Value, json};

use crate::{
    admission::pod,
    harness::{Webhook, control_plane, eventually, spillway},
};

fn label(pod: &Value) -> &Value {
    &pod["metadata"]["labels"]["azure.workload.identity/use"]
}

#[test]
fn the_label_follows_the_service_account() {
    spillway();
    let namespace = control_plane().namespace(Some("enabled"));
    namespace.known_identity("web");
    let as_web = json!({"spec": {"serviceAccountName": "web"}});
    assert_eq!(label(&namespace.dry_run(&pod("a", &as_web))), "true");
    assert_eq!(*label(&namespace.dry_run(&pod("b", &json!({})))), Value::Null);

    let refused = json!({"metadata": {"labels": {"azure.workload.identity/use": "false"}}, "spec": {"serviceAccountName": "web"}});
    assert_eq!(label(&namespace.dry_run(&pod("c", &refused))), "false");
    let off = json!({"metadata": {"annotations": {"spillway.dev/mode": "off"}}, "spec": {"serviceAccountName": "web"}});
    assert_eq!(label(&namespace.dry_run(&pod("d", &off))), "true", "mode off keeps the identity label");
    let windows = json!({"spec": {"serviceAccountName": "web", "os": {"name": "windows"}}});
    assert_eq!(label(&namespace.dry_run(&pod("e", &windows))), "true", "a pod that stays has an identity all the same");

    namespace.kubectl(&["annotate", "serviceaccount", "web", "azure.workload.identity/client-id-"], "");
    eventually("the change to reach the webhook", || {
        label(&namespace.dry_run(&pod("f", &as_web))).is_null().then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_service_account_is_unknown_gets_no_label() {
    let plane = control_plane();
    let namespace = plane.namespace(Some("enabled"));
    namespace.identity("web");
    // A webhook that may list namespaces, but no service accounts.
    plane.kubectl(&[
        "create",
        "clusterrole",
        "namespaces-only",
        "--verb=list,watch",
        "--resource=namespaces,nodes,networkpolicies.networking.k8s.io",
    ]);
    namespace.kubectl(&["create", "serviceaccount", "half-blind"], "");
    let subject = format!("--serviceaccount={}:half-blind", namespace.name);
    plane.kubectl(&["create", "clusterrolebinding", "half-blind", "--clusterrole=namespaces-only", &subject]);
    let webhook = Webhook::start("half-blind", &plane.kubeconfig_for(&namespace.name, "half-blind"));
    let is_missing = |what: &str| webhook.admin("/readyz").1.contains(what);
    eventually("the rest", || (!["namespaces", "nodes", "policies"].into_iter().any(is_missing)).then_some(()));
    assert_eq!(webhook.admin("/readyz"), (503, "not ready: service accounts\n".to_owned()));

    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "u-1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
            "namespace": namespace.name, "object": pod("web", &json!({"spec": {"serviceAccountName": "web"}}))},
    });
    let (status, answer) = webhook.https().review(review.to_string()).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((status.as_u16(), &answer["response"]["allowed"]), (200, &json!(true)));
    let patch = crate::explain::sent_patch(&answer);
    assert!(patch.contains("spillway.dev/decision") && !patch.contains("azure.workload.identity/use"), "{patch}");
    // The lookup is forbidden or, on a busy machine, times out: exactly one of them, once.
    let failures = ["error", "timeout"]
        .map(|result| webhook.metric(&format!(r#"spillway_service_account_lookups_total{{result="{result}"}}"#)));
    assert_eq!(failures.iter().sum::<u64>(), 1, "{failures:?}");
}
