//! A user with the rights of `edit` in one namespace writes objects that are meant to stop Spillway for all namespaces.

use serde_json::{Value, json};

use crate::{
    admission::pod,
    harness::{
        ControlPlane, Controller, InstalledSandbox, Namespace, Webhook, eventually, register_spillway,
        webhook_configuration,
    },
};

/// A time that the API server stores, and that is later than any time that Spillway can represent.
const TOO_LATE: &str = "9999-12-31T23:59:59Z";

/// Replaces the managers of an object's fields by one with such a time.
fn set_manager(plane: &ControlPlane, path: &str, api_version: &str) {
    let manager = json!({"manager": "m", "operation": "Update", "apiVersion": api_version, "fieldsType": "FieldsV1",
        "fieldsV1": {"f:metadata": {}}, "time": TOO_LATE});
    let stored = plane.patch(path, &json!({"metadata": {"managedFields": [manager]}}));
    assert!(stored["metadata"]["managedFields"].to_string().contains(TOO_LATE), "{stored:#}");
}

fn scale_up(name: &str, about: &str, namespace: &str, time: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "reason": "TriggeredScaleUp", "type": "Normal",
        "involvedObject": {"kind": "Pod", "namespace": namespace, "name": about}, "lastTimestamp": time, "firstTimestamp": time})
}

fn policy(name: &str, selector: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
        "spec": {"podSelector": selector, "policyTypes": ["Ingress"]}})
}

fn decision(created: &Value) -> &str {
    created["metadata"]["annotations"]["spillway.dev/decision"].as_str().unwrap_or_default()
}

/// Creates a pod of mode late for which no VM has room, as the webhook changes it.
fn create_late_pod(namespace: &Namespace) {
    let mut late = pod(
        "waits",
        &json!({"metadata": {
        "annotations": {"spillway.dev/decision": "late", "spillway.dev/added": "affinity"}}}),
    );
    late["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "20"}});
    namespace.create(&late);
}

fn overflows(namespace: &Namespace) {
    eventually("the late pod to overflow", || {
        (namespace.pod("waits")["spec"]["nodeName"] == "virtualnode-0").then_some(())
    });
}

#[test]
fn an_object_that_cannot_be_decoded_stops_neither_decisions_nor_late_burst() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let hostile = plane.namespace(Some("enabled"));
    let honest = plane.annotated_namespace(Some("autoscaled"), &json!({"spillway.dev/late-after": "3s"}));
    hostile.identity("bad");
    set_manager(plane, &format!("/api/v1/namespaces/{}/serviceaccounts/bad", hostile.name), "v1");
    hostile.create(&policy("bad", &json!({"matchLabels": {"app": "db"}})));
    let path = format!("/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies/bad", hostile.name);
    set_manager(plane, &path, "networking.k8s.io/v1");
    hostile.create(&pod("bad", &json!({})));
    set_manager(plane, &format!("/api/v1/namespaces/{}/pods/bad", hostile.name), "v1");
    hostile.create(&scale_up("bad", "web", &hostile.name, TOO_LATE));

    let kubeconfig = plane.kubeconfig_for("spillway-system", "spillway-webhook");
    let webhook = Webhook::start_beside(plane, "hostile-objects", &kubeconfig).ready();
    register_spillway(plane, &webhook_configuration(plane, webhook.address), &webhook.ca);
    eventually("the webhook to decide", || {
        let own = hostile.dry_run(&pod("web", &json!({"spec": {"serviceAccountName": "bad"}})));
        let is_labelled = own["metadata"]["labels"]["azure.workload.identity/use"] == "true";
        (decision(&own) == "prefer" && is_labelled).then_some(())
    });
    let selected = hostile.dry_run(&pod("db", &json!({"metadata": {"labels": {"app": "db"}}})));
    assert_eq!(decision(&selected), "stay: NetworkPolicyNotEnforced");

    let controller = Controller::start(plane, "hostile-objects", &[]);
    create_late_pod(&honest);
    overflows(&honest);
    assert_eq!(controller.metric("spillway_undecodable_objects{kind=\"events\"}"), 1);
    let bodies = controller.log().iter().any(|line| line.to_string().contains("involvedObject"));
    assert!(!bodies, "no log line has the object");
}

#[test]
fn an_event_about_a_pod_of_another_namespace_or_in_the_future_holds_no_pod() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let hostile = plane.namespace(Some("enabled"));
    let honest = plane.annotated_namespace(Some("autoscaled"), &json!({"spillway.dev/late-after": "3s"}));
    // Only the newer API does not compare the namespaces.
    hostile.create(&json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "other"},
        "reason": "TriggeredScaleUp", "type": "Normal", "action": "ScaleUp", "note": "a VM comes",
        "reportingController": "cluster-autoscaler", "reportingInstance": "cluster-autoscaler",
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "series": {"count": 2, "lastObservedTime": "9000-01-01T00:00:00.000000Z"},
        "regarding": {"kind": "Pod", "namespace": honest.name, "name": "waits"}}));
    honest.create(&scale_up("future", "waits", &honest.name, "9000-01-01T00:00:00Z"));
    let _controller = Controller::start(plane, "hostile-events", &[]);
    create_late_pod(&honest);
    overflows(&honest);
}

/// A kibibyte of text that is a valid part of a label value or name.
fn kibibytes(count: usize) -> String {
    "x".repeat(count << 10)
}

#[test]
fn large_objects_of_one_namespace_do_not_fill_the_memory() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let hostile = plane.namespace(Some("enabled"));
    for i in 0..60 {
        // A value of 63 characters in a list of 16,000 is a megabyte.
        let values: Vec<_> = (0..16_000).map(|value| format!("{value:063}")).collect();
        let selector = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": values}]});
        hostile.create(&policy(&format!("large-{i}"), &selector));
        let labels: serde_json::Map<_, _> =
            (0..3500).map(|l| (format!("l{l}.example/{}", "k".repeat(63)), format!("{l:063}").into())).collect();
        hostile.create(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": format!("large-{i}"), "labels": labels}}));
        let mut gated = pod(
            &format!("large-{i}"),
            &json!({"metadata": {"labels": labels}, "spec": {"schedulingGates": [{"name": "g"}]}}),
        );
        gated["spec"]["containers"][0]["args"] = json!([kibibytes(600)]);
        hostile.create(&gated);
    }
    for i in 0..150 {
        hostile.create(&scale_up(&format!("large-{i}"), &kibibytes(1000), &hostile.name, "9000-01-01T00:00:00Z"));
    }
    let kubeconfig = plane.kubeconfig_for("spillway-system", "spillway-webhook");
    let webhook = Webhook::start_beside(plane, "large-objects", &kubeconfig).ready();
    let controller = Controller::start(plane, "large-objects", &[]);
    eventually("the controller to lead and to list", || {
        (controller.admin("/readyz").0 == 200 && controller.leads()).then_some(())
    });
    eventually("the controller to decide", || {
        (controller.metric("spillway_cache_synced{cache=\"network policies\"}") == 1).then_some(())
    });
    let (webhook, controller) = (webhook.peak_memory() >> 10, controller.peak_memory() >> 10);
    println!("peak memory: webhook {webhook} MiB, controller {controller} MiB");
    assert!(webhook <= 128 && controller <= 192, "webhook {webhook} MiB, controller {controller} MiB");
}
