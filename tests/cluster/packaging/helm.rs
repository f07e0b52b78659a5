//! The real helm installs, upgrades and uninstalls the chart while pods are created.
//!
//! There is no kube-proxy, so the test registers the webhooks by URL; everything else is the chart as it is. The test plays the
//! controller, which writes the bundle, and the kubelet, which stops the webhook with its last pod.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{
        ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams, WatchEvent,
        WatchParams,
    },
};
use serde_json::{Value, json};

use super::{NAMESPACE, manifests, remove_everything};
use crate::{
    admission::pod,
    harness::{ControlPlane, Webhook, eventually, sandbox, with_long_timeouts},
};

/// Copies the chart with a change of its webhook configuration.
pub(crate) fn chart_with(plane: &ControlPlane, change: impl Fn(&str) -> String) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let copy = plane.dir.join(format!("chart-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(copy.join("templates")).unwrap();
    for file in ["Chart.yaml", "values.yaml", "values.schema.json"] {
        fs::copy(manifests("chart/") + file, copy.join(file)).unwrap();
    }
    for file in fs::read_dir(manifests("chart/templates")).unwrap() {
        let path = file.unwrap().path();
        let mut text = fs::read_to_string(&path).unwrap();
        if path.ends_with("mutatingwebhookconfiguration.yaml") {
            let changed = change(&text);
            assert_ne!(changed, text);
            text = changed;
        }
        fs::write(copy.join("templates").join(path.file_name().unwrap()), text).unwrap();
    }
    copy.to_str().unwrap().to_owned()
}

/// Returns the change of the webhook configuration that replaces the Service by an address, with long timeouts.
fn with_url(address: std::net::SocketAddr) -> impl Fn(&str) -> String {
    move |text| {
        let service = |path: &str| {
            format!(
                "    service:\n      namespace: {{{{ include \"spillway.namespace\" . }}}}\n      name: spillway-webhook\n      \
                 path: {path}\n      port: 443\n"
            )
        };
        ["/mutate-v1-pod", "/mutate-v1-binding"].iter().fold(with_long_timeouts(text), |text, path| {
            assert!(text.contains(&service(path)), "{text}");
            text.replace(&service(path), &format!("    url: https://{address}{path}\n"))
        })
    }
}

fn resource(group: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural)
}

/// Created and deleted objects in the order of etcd revisions.
type Order = Arc<Mutex<Vec<(u64, String)>>>;

/// Records creations and deletions of the objects of a kind.
async fn note_order(client: Client, resource: ApiResource, order: Order) {
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let from = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut events = api.watch(&WatchParams::default().timeout(280), &from).await.unwrap().boxed();
    tokio::spawn(async move {
        while let Some(Ok(event)) = events.next().await {
            let (what, object) = match event {
                WatchEvent::Added(object) => ("created", object),
                WatchEvent::Deleted(object) => ("deleted", object),
                _ => continue,
            };
            // A deleted object carries the revision of its deletion.
            let revision = object.metadata.resource_version.unwrap().parse().unwrap();
            let name = object.metadata.name.unwrap();
            order.lock().unwrap().push((revision, format!("{what} {} {name}", resource.kind)));
        }
    });
}

/// Plays the controller: writes the bundle into a configuration without one.
async fn write_bundles(client: Client, ca: String) {
    let webhooks =
        resource("admissionregistration.k8s.io", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations");
    let api: Api<DynamicObject> = Api::all_with(client, &webhooks);
    loop {
        if let Ok(found) = api.get("aci-spillway").await
            && found.data["webhooks"][0]["clientConfig"]["caBundle"].is_null()
        {
            let operation = |i: usize| {
                json!([
                    {"op": "test", "path": format!("/webhooks/{i}/name"), "value": found.data["webhooks"][i]["name"]},
                    {"op": "add", "path": format!("/webhooks/{i}/clientConfig/caBundle"), "value": STANDARD.encode(&ca)},
                ])
            };
            let operations = [operation(0), operation(1)];
            let operations: Vec<_> = operations.iter().flat_map(|pair| pair.as_array().unwrap().clone()).collect();
            let patch: json_patch::Patch = serde_json::from_value(json!(operations)).unwrap();
            let _ = api.patch("aci-spillway", &PatchParams::default(), &Patch::<Value>::Json(patch)).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Creates pods one after another, and records for each whether it was decided, or the error.
struct Creations {
    stop: Arc<AtomicBool>,
    outcomes: Arc<Mutex<Vec<Result<bool, String>>>>,
}

impl Creations {
    fn start(client: Client, namespace: &str) -> Self {
        let created = Self { stop: Arc::default(), outcomes: Arc::default() };
        let (stop, outcomes) = (created.stop.clone(), created.outcomes.clone());
        let api: Api<Pod> = Api::namespaced(client, namespace);
        tokio::spawn(async move {
            let pod: Pod = serde_json::from_value(pod("web", &json!({}))).unwrap();
            let dry_run = PostParams { dry_run: true, ..PostParams::default() };
            while !stop.load(Ordering::Relaxed) {
                let created = api.create(&dry_run, &pod).await.map_err(|error| error.to_string());
                let is_decided = created.map(|pod| {
                    pod.metadata
                        .annotations
                        .is_some_and(|annotations| annotations.contains_key("spillway.dev/decision"))
                });
                outcomes.lock().unwrap().push(is_decided);
            }
        });
        created
    }

    /// Returns the outcomes since the last call. No pod may be refused.
    fn take_outcomes(&self) -> Vec<bool> {
        let outcomes = std::mem::take(&mut *self.outcomes.lock().unwrap());
        outcomes.into_iter().map(|outcome| outcome.expect("no request is refused")).collect()
    }
}

/// Returns the number of failed webhook calls in the audit log.
fn failed_open(plane: &ControlPlane, namespace: &str) -> usize {
    let audit = fs::read_to_string(plane.dir.join("audit.log")).unwrap();
    let events = audit.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ours = events.filter(|event| event["objectRef"]["namespace"] == namespace);
    ours.filter(|event| event["annotations"].to_string().contains("failed-open.mutation.webhook")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn helm_install_upgrade_and_uninstall_miss_no_request() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    remove_everything(plane);
    let client = plane.client().await;
    let webhook = Webhook::start_beside(plane, "helm", &plane.kubeconfig);
    let chart = chart_with(plane, with_url(webhook.address));
    let namespace = plane.namespace(Some("enabled"));
    let order = Order::default();
    for kind in [
        resource("admissionregistration.k8s.io", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
        resource("apps", "Deployment", "deployments"),
        resource("", "Service", "services"),
    ] {
        note_order(client.clone(), kind, order.clone()).await;
    }
    let controller = tokio::spawn(write_bundles(client.clone(), webhook.ca.clone()));
    let creations = Creations::start(client.clone(), &namespace.name);

    let release = ["spillway", &chart, "--namespace", NAMESPACE];
    plane.helm(&[&["install"], &release[..], &["--create-namespace", "--wait", "--timeout=60s"]].concat());
    eventually("pods to be decided", || creations.take_outcomes().last().copied().filter(|decided| *decided));

    for mode in ["--server-side=auto", "--server-side=false"] {
        let _ = (creations.take_outcomes(), failed_open(plane, &namespace.name));
        let before = failed_open(plane, &namespace.name);
        let annotation = format!("podAnnotations.{}=x", mode.replace(['-', '='], ""));
        plane.helm(&[&["upgrade"], &release[..], &["--set", &annotation, "--wait", "--timeout=60s", mode]].concat());
        let decided = creations.take_outcomes();
        assert!(decided.len() > 10 && decided.iter().all(|decided| *decided), "{mode}: a pod was missed: {decided:?}");
        assert_eq!(failed_open(plane, &namespace.name), before, "{mode}");
    }

    // Plays the kubelet: the webhook runs until its last pod is deleted.
    let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let kubelet = tokio::spawn(async move {
        let ours = ListParams::default().labels("app.kubernetes.io/component=webhook");
        while !pods.list(&ours).await.unwrap().items.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(webhook);
    });
    let before = failed_open(plane, &namespace.name);
    plane.helm(&["uninstall", "spillway", "--namespace", NAMESPACE, "--wait"]);
    kubelet.await.unwrap();
    creations.take_outcomes();
    eventually("more pods", || (creations.take_outcomes().len() > 1).then_some(()));
    creations.stop.store(true, Ordering::Relaxed);
    controller.abort();
    assert_eq!(failed_open(plane, &namespace.name), before, "the API server called a webhook that no longer existed");

    // Three creations and three deletions, each from a separate watch.
    let order = eventually("the watches to report all changes", || {
        let order: BTreeMap<u64, String> = order.lock().unwrap().iter().cloned().collect();
        let ours =
            order.values().filter(|noted| noted.ends_with(" aci-spillway") || noted.ends_with(" spillway-webhook"));
        (ours.count() >= 6).then_some(order)
    });
    let position =
        |event: &str| order.values().position(|noted| noted == event).unwrap_or_else(|| panic!("{event}: {order:?}"));
    let configuration = "MutatingWebhookConfiguration aci-spillway";
    for other in ["Deployment spillway-webhook", "Service spillway-webhook"] {
        assert!(position(&format!("created {other}")) < position(&format!("created {configuration}")), "{order:?}");
        assert!(position(&format!("deleted {configuration}")) < position(&format!("deleted {other}")), "{order:?}");
    }
}
