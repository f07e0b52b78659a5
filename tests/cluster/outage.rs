//! With the webhook down, slow, wrong or untrusted, pods are created all the same.

use std::time::{Duration, Instant};

use axum::{body::Body, response::Response};
use serde_json::json;

use crate::{
    admission::pod,
    harness::{Stub, control_plane, eventually, register_url, spillway},
};

/// Creates a pod once the API server is seen to have tried and failed to call the webhook.
fn created_although(what: &str, namespace: &crate::harness::Namespace) {
    // The audit log says when a webhook failed open; until then the API server may not know of the webhook yet.
    eventually(&format!("the API server to meet the webhook that is {what}"), || {
        let start = Instant::now();
        let created = namespace.create(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-"}, "spec": pod("x", &json!({}))["spec"],
        }));
        assert!(created["metadata"]["annotations"].is_null(), "{what}: {created:#}");
        // The webhook's own timeout of 2 s, and room for a busy machine.
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: {:?}", start.elapsed());
        (control_plane().failed_open(&namespace.name) > 0).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_is_down_does_not_hold_up_pods() {
    let namespace = control_plane().namespace(None);
    // A port that nobody listens on: taken once and given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("https://127.0.0.1:{port}/mutate-v1-pod");
    let _registered = register_url("aci-spillway-down", &url, &spillway().ca, &namespace.name);
    created_although("down", &namespace);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_is_too_slow_does_not_hold_up_pods() {
    let namespace = control_plane().namespace(None);
    let stub = Stub::start(|body| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        crate::harness::allowed(&body)
    })
    .await;
    let _registered = stub.register("aci-spillway-slow", &namespace.name);
    created_although("slow", &namespace);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_answers_garbage_does_not_hold_up_pods() {
    for (name, status, answer) in [
        ("empty", 200, String::new()),
        ("text", 200, "<html>not here</html>".to_owned()),
        ("error", 500, "{}".to_owned()),
        ("without-a-response", 200, r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#.to_owned()),
        (
            "with-another-uid",
            200,
            r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"x","allowed":true}}"#
                .to_owned(),
        ),
    ] {
        let namespace = control_plane().namespace(None);
        let stub = Stub::start(move |_| {
            let response = Response::builder().status(status).header("content-type", "application/json");
            std::future::ready(response.body(Body::from(answer.clone())).unwrap())
        })
        .await;
        let _registered = stub.register(&format!("aci-spillway-garbage-{name}"), &namespace.name);
        created_although(name, &namespace);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_authority_does_not_hold_up_pods() {
    let webhook = spillway();
    let namespace = control_plane().namespace(None);
    let other = Stub::start(|body| std::future::ready(crate::harness::allowed(&body))).await;
    let url = format!("https://{}/mutate-v1-pod", webhook.address);
    let _registered = register_url("aci-spillway-untrusted", &url, &other.ca, &namespace.name);
    created_although("untrusted", &namespace);
}
