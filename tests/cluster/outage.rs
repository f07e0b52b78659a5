//! The API server creates pods although the webhook is down, slow, wrong or untrusted.

use std::time::{Duration, Instant};

use axum::{body::Body, response::Response};
use serde_json::json;
use tokio::net::TcpSocket;

use crate::{
    admission::pod,
    harness::{Stub, control_plane, eventually, in_namespace, manifest_webhooks, register_url, spillway},
};

/// How long the slow webhook takes: longer than the timeout of any webhook.
const SLOW: Duration = Duration::from_secs(60);

/// Creates pods until the audit log shows that the webhook failed open.
fn created_although(what: &str, namespace: &crate::harness::Namespace) {
    // Until then the API server may not know the webhook yet.
    eventually(&format!("the API server to call the webhook that is {what}"), || {
        let start = Instant::now();
        let created = namespace.create(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-"}, "spec": pod("x", &json!({}))["spec"],
        }));
        assert!(created["metadata"]["annotations"].is_null(), "{what}: {created:#}");
        // A delayed pod would wait for the response, or for the API server's maximum timeout.
        assert!(start.elapsed() < Duration::from_secs(30), "{what}: {:?}", start.elapsed());
        (control_plane().failed_open(&namespace.name) > 0).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_is_down_does_not_delay_pods() {
    let namespace = control_plane().namespace(None);
    // The port is reserved, and nothing listens on it.
    let port = TcpSocket::new_v4().unwrap();
    port.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("https://{}/mutate-v1-pod", port.local_addr().unwrap());
    let _registered = register_url("aci-spillway-down", &url, &spillway().ca, &namespace.name);
    created_although("down", &namespace);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_webhook_does_not_delay_pods() {
    let namespace = control_plane().namespace(None);
    let stub = Stub::start(|body| async move {
        tokio::time::sleep(SLOW).await;
        crate::harness::allowed(&body)
    })
    .await;
    let mut webhook = in_namespace(&namespace.name);
    webhook["timeoutSeconds"] = manifest_webhooks()[0]["timeoutSeconds"].clone();
    let _registered = stub.register_like("aci-spillway-slow", &webhook);
    created_although("slow", &namespace);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_answers_garbage_does_not_delay_pods() {
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
async fn an_untrusted_certificate_does_not_delay_pods() {
    let webhook = spillway();
    let namespace = control_plane().namespace(None);
    let other = Stub::start(|body| std::future::ready(crate::harness::allowed(&body))).await;
    let url = format!("https://{}/mutate-v1-pod", webhook.address);
    let _registered = register_url("aci-spillway-untrusted", &url, &other.ca, &namespace.name);
    created_although("untrusted", &namespace);
}
