//! Observability: alerts and the dashboard use existing metrics, and no log contains a secret.

use std::{collections::BTreeSet, fs, path::Path};

use axum::{body::Body, response::Response};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    admission::pod,
    harness::{
        AUTHORITY_SECRET, Controller, Stub, Webhook, control_plane, eventually, install, sandbox, webhook_configuration,
    },
};

/// Returns the names with this prefix in the alerts and the dashboard.
fn asked_for(prefix: &str) -> BTreeSet<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/monitoring");
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut names = BTreeSet::new();
    for file in ["prometheusrule.yaml", "dashboard.json"] {
        let text = fs::read_to_string(directory.join(file)).unwrap();
        let words = text.split(|c| !is_part(c)).filter(|word| word.starts_with(prefix));
        names.extend(words.map(ToOwned::to_owned));
    }
    assert!(names.len() > 2, "{names:?}");
    names
}

/// Returns the names of all samples.
fn offered(metrics: &str) -> BTreeSet<String> {
    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect()
}

#[test]
fn every_spillway_metric_of_alerts_and_dashboard_exists() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    install(plane);
    let controller = Controller::start(plane, "monitored-controller", &[]);
    let webhook = Webhook::start_self_managed(plane, "monitored-webhook", &[]);
    plane.apply(&webhook_configuration(plane, webhook.address));
    // A metric with a reason label exists after the first pod with such a reason.
    let namespace = plane.namespace(Some("enabled"));
    let decision = |changes: Value| namespace.dry_run(&pod("monitored", &changes))["metadata"]["annotations"].clone();
    eventually("a pod to be decided on", || decision(json!({}))["spillway.dev/decision"].is_string().then_some(()));
    decision(json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}));
    let spread = json!([{"topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}]);
    decision(json!({"spec": {"topologySpreadConstraints": spread}}));
    let names = asked_for("spillway_");
    let missing = || {
        let both = offered(&[controller.admin("/metrics").1, webhook.admin("/metrics").1].concat());
        names.difference(&both).cloned().collect::<Vec<_>>()
    };
    // The controller counts its first rounds when it leads.
    eventually("the controller to lead", || controller.leads().then_some(()));
    eventually(&format!("{:?}", missing()), || missing().is_empty().then_some(()));
}

#[test]
fn no_key_and_no_token_is_logged_even_at_trace() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    install(plane);
    let flags = ["--log-level", "trace"];
    let controller = Controller::start(plane, "traced-controller", &flags);
    let webhook = Webhook::start_self_managed(plane, "traced-webhook", &flags);
    plane.apply(&webhook_configuration(plane, webhook.address));
    let webhook = webhook.ready();
    eventually("the controller to lead", || controller.leads().then_some(()));
    let mut secrets = Vec::new();
    let stored = plane.get(AUTHORITY_SECRET);
    let key = stored["data"]["tls.key"].as_str().unwrap();
    let pem = String::from_utf8(STANDARD.decode(key).unwrap()).unwrap();
    secrets.push(key.to_owned());
    secrets.extend(pem.lines().filter(|line| line.len() > 30 && !line.starts_with("--")).map(ToOwned::to_owned));
    for account in ["spillway-webhook", "spillway-controller"] {
        let kubeconfig = fs::read_to_string(plane.dir.join(format!("spillway-system-{account}.kubeconfig"))).unwrap();
        let kubeconfig: Value = serde_json::from_str(&kubeconfig).unwrap();
        secrets.push(kubeconfig["users"][0]["user"]["token"].as_str().unwrap().to_owned());
    }
    assert!(secrets.len() >= 4, "a key of some lines, and two tokens");
    for name in ["traced-controller", "traced-webhook"] {
        let log = fs::read_to_string(plane.dir.join(format!("{name}.log"))).unwrap();
        assert!(log.contains("TRACE"), "{name} does not log at trace");
        assert!(!secrets.iter().any(|secret| log.contains(secret.as_str())), "{name} logs a secret");
    }
    drop((controller, webhook));
}

/// A patch that does not apply is the only way in which the webhook could refuse pods. The API server counts it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_api_server_metric_of_alerts_and_dashboard_exists() {
    let plane = control_plane();
    let namespace = plane.namespace(None);
    let stub = Stub::start(|body| {
        let review: Value = serde_json::from_slice(&body).unwrap();
        let name = review["request"]["object"]["metadata"]["name"].as_str().unwrap();
        let patch = STANDARD.encode(r#"[{"op":"remove","path":"/spec/nothing"}]"#);
        let answer = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "response": {"uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch", "patch": patch},
        });
        let answer = if name == "bad-patch" { answer.to_string() } else { "garbage".to_owned() };
        std::future::ready(
            Response::builder().header("content-type", "application/json").body(Body::from(answer)).unwrap(),
        )
    })
    .await;
    let _registered = stub.register("aci-spillway-counted", &namespace.name);
    let create = |name: &str| {
        let pod = pod(name, &json!({})).to_string();
        plane.try_kubectl(&["-n", &namespace.name, "create", "-f", "-"], &pod).status.success()
    };
    eventually("a patch that does not apply to refuse the pod", || {
        let created = create("bad-patch");
        plane.try_kubectl(&["-n", &namespace.name, "delete", "pod", "bad-patch"], "");
        (!created).then_some(())
    });
    assert!(create("garbage"), "the API server ignores a failed call");
    let names = asked_for("apiserver_");
    eventually("the API server's metrics", || {
        let all = plane.get("/metrics");
        let ours: Vec<_> =
            all.as_str().unwrap().lines().filter(|line| line.contains(r#"name="pods.spillway.dev""#)).collect();
        let ours = ours.join("\n");
        names.is_subset(&offered(&ours)).then_some(())
    });
}
