//! Unusable requests: the webhook responds to each request, counts it, and stores nothing.

use std::path::PathBuf;

use axum::body::Bytes;
use serde_json::{Value, json};

use crate::{
    admission::pod,
    harness::{Webhook, control_plane},
};

/// The expected response.
enum Expect {
    /// Status 200, allowed, with this UID and without a patch.
    Allowed(&'static str),
    /// Any status 4xx.
    Refused,
}
use Expect::{Allowed, Refused};

pub(crate) fn review(namespace: &str) -> Value {
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {"uid": "u-1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
            "namespace": namespace, "object": pod("web", &json!({}))},
    })
}

/// Returns a review as Go writes it: `uid` is the first field of the request.
fn uid_first(rest: &str) -> String {
    format!(r#"{{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{{"uid":"u-1",{rest}}}}}"#)
}

fn with(namespace: &str, pointer: &str, value: Value) -> Vec<u8> {
    let mut review = review(namespace);
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    review.pointer_mut(parent).unwrap()[key] = value;
    review.to_string().into_bytes()
}

#[rustfmt::skip]
fn bodies(namespace: &str) -> Vec<(&'static str, Vec<u8>, Expect, &'static str)> {
    let deep = |open: &str, close: &str, n: usize| open.repeat(n) + &close.repeat(n);
    let pod = r#""kind":{"group":"","version":"v1","kind":"Pod"},"operation":"CREATE","namespace":"shop","object":{"metadata":{},"spec":{}}"#;
    vec![
        ("empty", vec![], Refused, "json"),
        ("truncated", uid_first(pod)[..150].into(), Allowed("u-1"), "json"),
        ("not JSON", b"kind: AdmissionReview".into(), Refused, "json"),
        ("another shape", b"[]".into(), Refused, "json"),
        ("deep nesting of nothing", deep("[", "]", 100_000).into(), Refused, "json"),
        ("deep nesting where a map belongs", uid_first(&format!(r#""object":{{"metadata":{}}}"#, deep("[", "]", 100_000))).into(), Allowed("u-1"), "json"),
        ("invalid UTF-8", [uid_first(r#""x":""#).trim_end_matches('}').as_bytes(), b"\xff\"}}"].concat(), Allowed("u-1"), "utf8"),
        ("duplicate keys", uid_first(r#""operation":"CREATE","operation":"CREATE""#).into(), Allowed("u-1"), "json"),
        ("another kind of review", with(namespace, "/kind", json!("ConversionReview")), Allowed("u-1"), "not_a_review"),
        ("another version", with(namespace, "/apiVersion", json!("admission.k8s.io/v1beta1")), Allowed("u-1"), "not_a_review"),
        ("no request", with(namespace, "/request", json!(null)), Refused, "no_request"),
        ("no uid", with(namespace, "/request/uid", json!(null)), Refused, "no_request"),
        ("a uid that is no string", with(namespace, "/request/uid", json!(7)), Refused, "json"),
        ("another kind of object", with(namespace, "/request/kind/kind", json!("Deployment")), Allowed("u-1"), "not_a_pod"),
        ("an update without the old object", with(namespace, "/request/operation", json!("UPDATE")), Allowed("u-1"), "no_object"),
        ("a deletion", with(namespace, "/request/operation", json!("DELETE")), Allowed("u-1"), "not_a_pod"),
        ("no object", with(namespace, "/request/object", json!(null)), Allowed("u-1"), "no_object"),
        ("an object that is a list", with(namespace, "/request/object", json!([])), Allowed("u-1"), "json"),
        ("no metadata", with(namespace, "/request/object/metadata", json!(null)), Allowed("u-1"), "json"),
        ("no spec", with(namespace, "/request/object/spec", json!(null)), Allowed("u-1"), "json"),
        ("an object that is a list of the right length", with(namespace, "/request/object", json!([{}, {}])), Allowed("u-1"), "json"),
        ("an affinity that is a list", with(namespace, "/request/object/spec/affinity", json!([{}])), Allowed("u-1"), "json"),
        ("a request that is a list", with(namespace, "/request", json!(["u-1", {}, null, namespace, "CREATE", false, {}, {}, {}])), Refused, "json"),
        ("labels that are a list", with(namespace, "/request/object/metadata/labels", json!([])), Allowed("u-1"), "json"),
        ("tolerations that hold null", with(namespace, "/request/object/spec/tolerations", json!([null])), Allowed("u-1"), "json"),
        ("tolerations that are a map", with(namespace, "/request/object/spec/tolerations", json!({})), Allowed("u-1"), "json"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusable_requests_are_answered_and_counted() {
    let (mut webhook, namespace) = webhook("unusable");
    let https = webhook.https();
    for (name, body, expect, reason) in bodies(&namespace) {
        let metric = format!(r#"spillway_unusable_requests_total{{reason="{reason}"}}"#);
        let before = webhook.metric(&metric);
        let (status, answer) = https.review(body).await;
        match expect {
            Refused => assert!(status.is_client_error(), "{name}: {status}"),
            Allowed(uid) => {
                assert_eq!(status, 200, "{name}");
                let answer: Value = serde_json::from_slice(&answer).unwrap();
                assert_eq!(answer["response"], json!({"uid": uid, "allowed": true}), "{name}");
            }
        }
        assert_eq!(webhook.metric(&metric), before + 1, "{name}");
    }
    let other = https.send("/mutate-v1-pod", "text/plain", Bytes::from_static(b"{}")).await.unwrap();
    assert_eq!(other.0, 415);
    assert_eq!(https.send("/other", "application/json", Bytes::new()).await.unwrap().0, 404);

    let (status, answer) = https.review(review(&namespace).to_string()).await;
    assert_eq!(status, 200);
    assert!(String::from_utf8_lossy(&answer).contains("JSONPatch"), "it still decides");
    assert!(webhook.is_alive());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn null_in_place_of_maps_and_lists_is_nothing() {
    let (webhook, namespace) = webhook("nulls");
    let https = webhook.https();
    for field in [
        "metadata/labels",
        "metadata/annotations",
        "metadata/ownerReferences",
        "spec/tolerations",
        "spec/affinity",
        "spec/nodeSelector",
        "spec/os",
        "spec/nodeName",
    ] {
        let (_, answer) = https.review(with(&namespace, &format!("/request/object/{field}"), Value::Null)).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let patch: json_patch::Patch = serde_json::from_str(&crate::explain::sent_patch(&answer)).unwrap();
        let mut object =
            serde_json::from_slice::<Value>(&with(&namespace, &format!("/request/object/{field}"), Value::Null))
                .unwrap()["request"]["object"]
                .clone();
        json_patch::patch(&mut object, &patch).unwrap_or_else(|error| panic!("{field}: {error}"));
        assert_eq!(object["metadata"]["annotations"]["spillway.dev/decision"], "prefer", "{field}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_bodies_do_not_cost_huge_memory() {
    let (webhook, namespace) = webhook("huge");
    let https = webhook.https();
    https.review(review(&namespace).to_string()).await;
    let before = webhook.peak_memory();
    let padding = Bytes::from(vec![b' '; 10 * 1024 * 1024]);
    let mut refused = 0;
    for _ in 0..50 {
        // The server responds and closes before it has read everything, so a client that still writes may miss the response. On
        // a busy machine the body may be too slow before it is too large.
        if let Some((status, _)) = https.send("/mutate-v1-pod", "application/json", padding.clone()).await {
            assert!(status == 408 || status == 413, "{status}");
            refused += u64::from(status == 413);
        }
    }
    let counted = webhook.metric(r#"spillway_unusable_requests_total{reason="too_large"}"#);
    assert!(refused > 0 && counted >= refused, "{refused} answers, {counted} counted");
    let grown = webhook.peak_memory() - before;
    // One body of 7 MiB at a time, copied once at worst while its buffer grows.
    assert!(grown < 40 * 1024, "the peak grew by {grown} KiB over 500 MiB of bodies");

    // Concurrent bodies share 32 MiB, twice while they are joined. The webhook refuses bodies that get no share in time.
    let large = Bytes::from(vec![b' '; 7 * 1024 * 1024 - 1]);
    let mut together = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (https, body) = (webhook.https(), large.clone());
        together.spawn(async move { https.send("/mutate-v1-pod", "application/json", body).await });
    }
    for answer in together.join_all().await.into_iter().flatten() {
        assert!(answer.0.is_client_error(), "{}", answer.0);
    }
    let grown = webhook.peak_memory() - before;
    assert!(grown < 110 * 1024, "the peak grew by {grown} KiB over 280 MiB of bodies at once");
    let (status, _) = https.review(review(&namespace).to_string()).await;
    assert_eq!(status, 200, "the budget is released");
}

/// Starts a webhook that counts the requests of one test only.
fn webhook(name: &str) -> (Webhook, String) {
    let (kubeconfig, namespace) = webhook_account_and_namespace();
    (Webhook::start(name, &kubeconfig).ready(), namespace)
}

/// Returns a kubeconfig of the webhook's account, and an opted-in namespace.
pub(crate) fn webhook_account_and_namespace() -> (PathBuf, String) {
    crate::harness::spillway();
    let plane = control_plane();
    (plane.kubeconfig_for("spillway-system", "spillway-webhook"), plane.namespace(Some("enabled")).name)
}
