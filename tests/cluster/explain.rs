//! `spillway explain` says offline what the webhook does in the cluster.

use std::{
    io::Write,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    admission::pod,
    harness::{Stub, allowed, control_plane, spillway, spillway_command},
};

/// Returns the patch of a webhook's response as text.
pub(crate) fn sent_patch(answer: &Value) -> String {
    let patch = answer["response"]["patch"].as_str().unwrap_or("W10="); // [] without a patch
    String::from_utf8(STANDARD.decode(patch).unwrap()).unwrap()
}

fn explain(args: &[&str], stdin: &str) -> Output {
    let mut child = spillway_command()
        .args(["explain", "-f", "-", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/examples/nodes.yaml")])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn shapes() -> Vec<(&'static str, Value)> {
    vec![
        ("plain", json!({})),
        ("identity", json!({"spec": {"serviceAccountName": "web"}})),
        ("tolerant", json!({"spec": {"tolerations": [{"operator": "Exists"}]}})),
        (
            "own-dns",
            json!({"metadata": {"annotations": {"microsoft.containerinstance.virtualnode.injectdns": "true"}}}),
        ),
        ("kept", json!({"metadata": {"annotations": {"spillway.dev/kube-proxy": "keep"}}})),
        ("off", json!({"metadata": {"annotations": {"spillway.dev/mode": "off"}}})),
        ("windows", json!({"spec": {"os": {"name": "windows"}, "nodeName": "vm-1"}})),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_prints_the_patch_that_the_webhook_sends() {
    let webhook = spillway();
    let namespace = control_plane().namespace(Some("high-scale"));
    namespace.known_identity("web");
    let account = control_plane().dir.join("account.json");
    let text = namespace.kubectl(&["get", "serviceaccounts", "-o", "json"], "");
    std::fs::write(&account, text).unwrap();

    // A webhook whose name sorts before Spillway's gets the same requests.
    let requests = Arc::new(Mutex::new(Vec::new()));
    let listener = {
        let requests = requests.clone();
        Stub::start(move |body| {
            requests.lock().unwrap().push(body.clone());
            std::future::ready(allowed(&body))
        })
        .await
    };
    let _registered = listener.register("aci-a-listener", &namespace.name);
    crate::harness::eventually("the listener to be called", || {
        namespace.dry_run(&pod("probe", &json!({})));
        (!requests.lock().unwrap().is_empty()).then_some(())
    });

    let https = webhook.https();
    for (name, more) in shapes() {
        requests.lock().unwrap().clear();
        let admitted = namespace.dry_run(&pod(name, &more));
        let review = requests.lock().unwrap().first().cloned().unwrap();
        let (_, answer) = https.review(review.clone()).await;
        let sent = sent_patch(&serde_json::from_slice(&answer).unwrap());

        let args = ["--profile", "high-scale", "--service-account", account.to_str().unwrap()];
        let review = String::from_utf8(review.to_vec()).unwrap();
        let printed = explain(&[&args[..], &["-o", "patch"]].concat(), &review);
        assert_eq!(String::from_utf8(printed.stdout).unwrap().trim_end(), sent, "{name}");

        // The manifest lacks default tolerations and the token volume. The decision must be the same.
        let raw = explain(&[&args[..], &["-n", &namespace.name, "-o", "json"]].concat(), &pod(name, &more).to_string());
        let raw: Value = serde_json::from_slice(&raw.stdout).unwrap();
        assert_eq!(raw[0]["decision"], admitted["metadata"]["annotations"]["spillway.dev/decision"], "{name}");
        assert_eq!(raw[0]["patch"] == json!([]), sent == "[]", "{name}");
    }
}
