//! The controller's identity checks: it reports each problem within seconds, once, and its repair once.

use std::{collections::BTreeSet, fs, time::Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    harness::{ConfigVolume, ControlPlane, Controller, InstalledSandbox, Namespace, eventually, webhook_configuration},
    identity_command::FakeAzure,
};

const CLIENT_ID: &str = "00000000-1111-4222-8333-444444444444";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const AZURE_WI: &str = "azure-wi-webhook-mutating-webhook-configuration";

/// A sandbox with the custom resources of Azure Service Operator, and without a report. Dropping it removes them.
pub(crate) struct IdentitySandbox(pub(crate) InstalledSandbox);

impl IdentitySandbox {
    pub(crate) fn new() -> Self {
        let identity_sandbox = Self(InstalledSandbox::new());
        identity_sandbox.clear();
        let plane = identity_sandbox.0.plane();
        plane.create_or_replace(None, &azure_service_operator());
        let kinds =
            ["userassignedidentities", "federatedidentitycredentials"].map(|kind| format!("crd/{kind}.{GROUP}"));
        plane.kubectl(&["wait", "--for=condition=Established", &kinds[0], &kinds[1]]);
        identity_sandbox
    }

    fn clear(&self) {
        let plane = self.0.plane();
        for name in [AZURE_WI, "zz-spillway"] {
            plane.delete(&format!("{CONFIGURATIONS}/{name}"));
        }
        plane.delete("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/azure-wi");
        self.forget();
    }

    /// Deletes the report and the lease, as if no controller had run.
    pub(crate) fn forget(&self) {
        self.0.plane().delete("/api/v1/namespaces/spillway-system/configmaps/spillway-identity-report");
        self.0.delete_lease();
    }
}

impl Drop for IdentitySandbox {
    fn drop(&mut self) {
        let plane = self.0.plane();
        plane.try_kubectl(&["delete", "--ignore-not-found", "-f", "-"], &azure_service_operator().to_string());
        plane.try_kubectl(
            &["delete", "--ignore-not-found", "mutatingwebhookconfiguration", AZURE_WI, "zz-spillway"],
            "",
        );
    }
}

const GROUP: &str = "managedidentity.azure.com";

fn azure_service_operator() -> Value {
    let kinds = [
        ("UserAssignedIdentity", "userassignedidentities"),
        ("FederatedIdentityCredential", "federatedidentitycredentials"),
    ];
    let definitions = kinds.map(|(kind, plural)| {
        let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let schema = json!({"type": "object", "properties": {"spec": any, "status": any}});
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{GROUP}")},
            "spec": {
                "group": GROUP, "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                "versions": [{"name": "v1api20230131", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
            },
        })
    });
    json!({"apiVersion": "v1", "kind": "List", "items": definitions})
}

fn identity() -> Value {
    let id = "/subscriptions/s/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/web";
    json!({"apiVersion": format!("{GROUP}/v1api20230131"), "kind": "UserAssignedIdentity", "metadata": {"name": "web"},
        "spec": {"azureName": "web"}, "status": {"clientId": CLIENT_ID, "id": id}})
}

/// Returns a credential for service account `web` that is too old to count as new.
fn credential(namespace: &Namespace, issuer: &str) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1api20230131"), "kind": "FederatedIdentityCredential", "metadata": {"name": "web"},
        "spec": {"owner": {"name": "web"}},
        "status": {"name": "web", "issuer": issuer, "subject": format!("system:serviceaccount:{}:web", namespace.name),
            "audiences": ["api://AzureADTokenExchange"], "systemData": {"lastModifiedAt": "2020-01-01T00:00:00Z"}}})
}

fn service_account(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": name, "annotations": {"azure.workload.identity/client-id": CLIENT_ID}}})
}

fn apply(namespace: &Namespace, object: &Value) {
    namespace.apply(object);
}

/// Returns the report, if it exists.
fn report(plane: &ControlPlane) -> Option<Value> {
    let map = plane.find("/api/v1/namespaces/spillway-system/configmaps/spillway-identity-report")?;
    serde_json::from_str(map["data"]["report.json"].as_str()?).ok()
}

/// Returns the findings of the report by ID and object name.
fn findings(plane: &ControlPlane) -> BTreeSet<(String, String)> {
    let report = report(plane).unwrap_or_default();
    let all = report["findings"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.iter().map(|finding| (text(&finding["id"]), text(&finding["object"]["name"]))).collect()
}

fn has_finding(plane: &ControlPlane, id: &str, name: &str) -> bool {
    findings(plane).contains(&(id.to_owned(), name.to_owned()))
}

/// Returns whether the report contains a resolved finding that is not reported as repaired yet.
fn is_remembered(plane: &ControlPlane, id: &str, name: &str) -> bool {
    let reported = report(plane).unwrap()["told"].as_array().unwrap().clone();
    reported.iter().any(|one| one["id"] == id && one["name"] == name && one["absentSince"].is_string())
}

/// Returns the notes of the events with this reason about an object, and whether each event has the object's UID.
fn notes(plane: &ControlPlane, namespace: &str, name: &str, reason: &str) -> Vec<(String, bool)> {
    let mut events = plane.events(namespace);
    events.retain(|event| event["regarding"]["name"] == name && event["reason"] == reason);
    let items = events.iter();
    items.map(|event| (event["note"].as_str().unwrap().to_owned(), event["regarding"]["uid"].is_string())).collect()
}

/// Returns the reasons of the events about an object, each as often as it occurred.
fn events(plane: &ControlPlane, namespace: &str, name: &str) -> Vec<String> {
    let events = plane.events(namespace);
    let of_object = events.iter().filter(|event| event["regarding"]["name"] == name);
    let of_identity = of_object.filter_map(|event| {
        let count = event["series"]["count"].as_u64().unwrap_or(1);
        let reason = event["reason"].as_str()?;
        reason.starts_with("Identity").then(|| vec![reason.to_owned(); usize::try_from(count).unwrap()])
    });
    let mut reasons: Vec<_> = of_identity.flatten().collect();
    reasons.sort();
    reasons
}

fn start_leader(plane: &ControlPlane, name: &str) -> Controller {
    let controller = Controller::start(plane, name, &[]);
    eventually("the replica to have checked all", || {
        (controller.metric("spillway_identity_last_full_pass_timestamp_seconds{}") > 0).then_some(())
    });
    controller
}

/// Waits until the report contains a finding, or no longer contains it, and prints how long that took.
fn wait_for_finding(plane: &ControlPlane, id: &str, name: &str, is_there: bool) {
    let start = Instant::now();
    let what = format!("{id} of {name} to be {}", if is_there { "found" } else { "gone" });
    eventually(&what, || (has_finding(plane, id, name) == is_there).then_some(()));
    println!("{what}: {:?}", start.elapsed());
}

#[test]
fn a_broken_link_and_its_repair_are_each_reported_once() {
    let identity_sandbox = IdentitySandbox::new();
    let plane = identity_sandbox.0.plane();
    let namespace = plane.namespace(None);
    let controller = start_leader(plane, "identity-checks");
    let metric = |id: &str, severity: &str| {
        let labels = format!(r#"id="{id}",severity="{severity}",namespace="{}""#, namespace.name);
        controller.metric(&format!("spillway_identity_findings{{{labels}}}"))
    };

    apply(&namespace, &service_account("web"));
    apply(&namespace, &identity());
    apply(&namespace, &credential(&namespace, &format!("{ISSUER}/")));
    wait_for_finding(plane, "F3", "web", true);
    eventually("the event", || events(plane, &namespace.name, "web").contains(&"IdentityF3".to_owned()).then_some(()));
    assert_eq!(metric("F3", "error"), 1, "{}", report(plane).unwrap());

    // A new leader does not report again.
    let reasons = events(plane, &namespace.name, "web");
    drop(controller);
    let controller = start_leader(plane, "identity-checks-next");
    assert!(has_finding(plane, "F3", "web"));
    assert_eq!(events(plane, &namespace.name, "web"), reasons);

    apply(&namespace, &credential(&namespace, ISSUER));
    wait_for_finding(plane, "F3", "web", false);
    eventually("the event", || {
        events(plane, &namespace.name, "web").contains(&"IdentityHealed".to_owned()).then_some(())
    });
    let healed = notes(plane, &namespace.name, "web", "IdentityHealed");
    assert!(healed.iter().any(|(note, has_uid)| note.starts_with("F3, ") && *has_uid), "{healed:?}");
    let of_metric = format!(r#"spillway_identity_findings{{id="F3",severity="error",namespace="{}"}}"#, namespace.name);
    assert_eq!(controller.metric(&of_metric), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_asks_azure_and_follows_its_settings() {
    let identity_sandbox = IdentitySandbox::new();
    let plane = identity_sandbox.0.plane();
    let namespace = plane.namespace(None);
    let subject = format!("system:serviceaccount:{}:web", namespace.name);
    let dir = tempfile::tempdir().unwrap();
    let azure = FakeAzure::start(dir.path()).await;
    azure.set_credential(&format!("{ISSUER}/"), &subject);
    apply(&namespace, &service_account("web"));

    let mut volume = ConfigVolume::new("identity-volume", &azure.section("10m"));
    let kubeconfig = plane.kubeconfig_for("spillway-system", "spillway-controller");
    let (file, path) = (volume.file(), azure.path());
    let controller =
        Controller::start_with(plane, "identity-azure", &kubeconfig, &["--config", &file], &[("PATH", &path)]);
    wait_for_finding(plane, "F3", "web", true);
    assert_eq!(controller.metric(r#"spillway_identity_source_up{source="credentials"}"#), 1, "{:?}", controller.log());

    // New settings restart the checks without the former data.
    azure.set_credential(ISSUER, &subject);
    volume.publish(&azure.section("9m"));
    wait_for_finding(plane, "F3", "web", false);
    eventually("the event", || {
        events(plane, &namespace.name, "web").contains(&"IdentityHealed".to_owned()).then_some(())
    });

    let last_pass = || controller.metric("spillway_identity_last_full_pass_timestamp_seconds{}");
    volume.publish("identity: {enabled: false}");
    eventually("the checks to end", || (last_pass() == 0).then_some(()));
    apply(&namespace, &service_account("late"));
    volume.publish(&azure.section("8m"));
    wait_for_finding(plane, "F2", "late", true);
    assert!(!has_finding(plane, "F3", "web"));
}

#[test]
fn pods_older_than_the_annotation_are_reported() {
    let identity_sandbox = IdentitySandbox::new();
    let plane = identity_sandbox.0.plane();
    let namespace = plane.namespace(None);
    let _controller = start_leader(plane, "identity-pods");
    let pod = |name: &str, env: Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"azure.workload.identity/use": "true"}},
            "spec": {"serviceAccountName": "web", "schedulingGates": [{"name": "test/held"}],
                "containers": [{"name": "c", "image": "registry.example/c", "env": env}]}})
    };
    let env = |client_id: &str| {
        json!([{"name": "AZURE_CLIENT_ID", "value": client_id}, {"name": "AZURE_TENANT_ID", "value": "t"},
            {"name": "AZURE_AUTHORITY_HOST", "value": "https://login.microsoftonline.com/"},
            {"name": "AZURE_FEDERATED_TOKEN_FILE", "value": "/var/run/secrets/azure/tokens/azure-identity-token"}])
    };
    apply(&namespace, &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web"}}));
    apply(&namespace, &pod("before", env("99999999-1111-4222-8333-444444444444")));
    apply(&namespace, &pod("after", env(CLIENT_ID)));
    apply(&namespace, &service_account("web"));
    wait_for_finding(plane, "P1", "before", true);
    assert!(!has_finding(plane, "P1", "after"), "{:?}", findings(plane));
    namespace.delete_pod("before");
    wait_for_finding(plane, "P1", "before", false);
    // Findings about pods count as repaired only after some time.
    assert!(is_remembered(plane, "P1", "web"), "{}", report(plane).unwrap());
    let reasons = events(plane, &namespace.name, "web");
    assert!(
        reasons.contains(&"IdentityP1".to_owned()) && !reasons.contains(&"IdentityHealed".to_owned()),
        "{reasons:?}"
    );
}

/// Returns the webhook configuration of azure-workload-identity, for a namespace that does not exist.
pub(crate) fn azure_workload_identity() -> Value {
    // The API server accepts only a certificate here, but nothing uses it.
    let authority = spillway::certs::generate(&[], time::OffsetDateTime::now_utc()).unwrap().ca;
    let ca_bundle = STANDARD.encode(authority);
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": AZURE_WI},
        "webhooks": [{
            "name": "mutation.azure-workload-identity.io", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Ignore", "objectSelector": {"matchLabels": {"azure.workload.identity/use": "true"}},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "nowhere"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
            "clientConfig": {"caBundle": ca_bundle, "service": {"namespace": "kube-system", "name": "azure-wi-webhook-webhook-service"}},
        }],
    })
}

#[test]
fn identity_webhooks_in_wrong_order_or_unready_are_reported() {
    let identity_sandbox = IdentitySandbox::new();
    let plane = identity_sandbox.0.plane();
    let namespace = plane.namespace(None);
    apply(&namespace, &service_account("web"));
    let _controller = start_leader(plane, "identity-webhooks");
    plane.create_or_replace(None, &azure_workload_identity());
    wait_for_finding(plane, "W3", AZURE_WI, true);
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "azure-wi", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "azure-wi-webhook-webhook-service"}},
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}], "ports": [{"name": "https", "port": 9443, "protocol": "TCP"}],
    });
    plane.create_or_replace(Some("kube-system"), &slice);
    wait_for_finding(plane, "W3", AZURE_WI, false);

    let ours = webhook_configuration(plane, "127.0.0.1:9".parse().unwrap());
    let mut ours: Value = serde_saphyr::from_str(&ours).unwrap();
    ours["metadata"]["name"] = "zz-spillway".into();
    plane.create_or_replace(None, &ours);
    wait_for_finding(plane, "W2", "zz-spillway", true);
    plane.delete(&format!("{CONFIGURATIONS}/zz-spillway"));
    wait_for_finding(plane, "W2", "zz-spillway", false);
    eventually("the events on what stands for the cluster", || {
        let reasons = events(plane, "spillway-system", "spillway-config");
        ["IdentityW2", "IdentityW3"].iter().all(|reason| reasons.contains(&(*reason).to_owned())).then_some(())
    });
    assert!(is_remembered(plane, "W2", "zz-spillway"), "{}", report(plane).unwrap());
}

#[test]
fn a_thousand_service_accounts_cost_few_events_and_passes() {
    let identity_sandbox = IdentitySandbox::new();
    let plane = identity_sandbox.0.plane();
    let namespace = plane.namespace(None);
    let accounts = (0..1_000).map(|number| {
        let mut account = service_account(&format!("sa-{number:04}"));
        account["metadata"]["annotations"]["azure.workload.identity/client-id"] = "the name of an identity".into();
        account
    });
    let accounts: Vec<_> = accounts.collect();
    let controller = start_leader(plane, "identity-load");
    let passes = || controller.metric(r#"spillway_reconciles_total{reconciler="identity",result="success"}"#);
    let (before, start) = (passes(), Instant::now());
    let list = json!({"apiVersion": "v1", "kind": "List", "items": accounts});
    namespace.kubectl(&["create", "-f", "-"], &list.to_string());
    eventually("all to be checked", || {
        let report = report(plane)?;
        (report["findings"].as_array()?.len() + usize::try_from(report["omitted"].as_u64()?).ok()? >= 1_000)
            .then_some(())
    });
    let (took, passes) = (start.elapsed(), passes() - before);
    let event_count = all_events(plane, &namespace.name);
    let pid = controller.pid();
    let memory = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let memory = memory.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
    let ticks = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let times: Vec<u64> =
        ticks.rsplit(") ").next().unwrap().split(' ').skip(11).take(2).map(|text| text.parse().unwrap()).collect();
    println!(
        "1,000 service accounts: {passes} passes and {event_count} events in {took:?}; {} ms of CPU (debug build), {}",
        times.iter().sum::<u64>() * 10,
        memory.collect::<Vec<_>>().join(", ")
    );
    assert!(passes <= took.as_secs() + 2, "{passes} passes in {took:?}");
    // A pass is counted after its report and events are written.
    assert!((1..=(passes + 1) * 20).contains(&event_count), "{event_count} events in {passes} passes");
}

/// Returns the number of identity events in a namespace, each as often as it occurred.
fn all_events(plane: &ControlPlane, namespace: &str) -> u64 {
    let events = plane.events(namespace);
    let of_identity = events.iter().filter(|event| event["reason"].as_str().unwrap().starts_with("Identity"));
    of_identity.map(|event| event["series"]["count"].as_u64().unwrap_or(1)).sum()
}
