//! `spillway identity check` on a real API server, with a fake Azure Resource Manager.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
    sync::{Arc, Mutex},
};

use axum::{Router, extract::Request};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::harness::{Namespace, control_plane, spillway_command};

const CLIENT_ID: &str = "00000000-1111-4222-8333-444444444444";
const SUBSCRIPTION: &str = "99999999-8888-4777-8666-555555555555";
const AZURE_TOKEN: &str = "token-of-az-login";

/// An Azure Resource Manager with one identity, whose credentials the test sets, and an `az` that is logged in to it.
pub(crate) struct FakeAzure {
    credentials: Arc<Mutex<Value>>,
    endpoint: String,
    config: PathBuf,
    bin: PathBuf,
}

impl FakeAzure {
    pub(crate) async fn start(dir: &Path) -> Self {
        let credentials = Arc::new(Mutex::new(json!([])));
        let known = Arc::clone(&credentials);
        let id = format!(
            "/subscriptions/{SUBSCRIPTION}/resourcegroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id-web"
        );
        let answer = move |request: Request| {
            assert_eq!(request.headers()["authorization"], format!("Bearer {AZURE_TOKEN}"));
            let identity = json!({"id": id, "name": "id-web", "properties": {"clientId": CLIENT_ID, "principalId": "p", "tenantId": "t"}});
            let is_credentials = request.uri().path().ends_with("/federatedIdentityCredentials");
            let value = if is_credentials { known.lock().unwrap().clone() } else { json!([identity]) };
            std::future::ready(json!({"value": value}).to_string())
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let config = json!({
            "apiVersion": "spillway.dev/v1alpha1",
            "kind": "SpillwayConfiguration",
            "identity": {"resourceManager": {"endpoint": endpoint}},
        });
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        let (file, az) = (dir.join("config.yaml"), dir.join("az"));
        fs::write(&file, config.to_string()).unwrap();
        let token = json!({"accessToken": AZURE_TOKEN, "expires_on": 4_102_444_800_u64, "tokenType": "Bearer"});
        fs::write(&az, format!("#!/bin/sh\necho '{token}'\n")).unwrap();
        fs::set_permissions(&az, fs::Permissions::from_mode(0o755)).unwrap();
        Self { credentials, endpoint, config: file, bin: dir.to_owned() }
    }

    pub(crate) fn set_credential(&self, issuer: &str, subject: &str) {
        *self.credentials.lock().unwrap() = json!([{
            "name": "web",
            "properties": {"issuer": issuer, "subject": subject, "audiences": ["api://AzureADTokenExchange"]},
        }]);
    }

    /// Returns a search path on which the fake `az` comes first.
    pub(crate) fn path(&self) -> String {
        format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap())
    }

    /// Returns the section of the configuration that makes the controller ask this Resource Manager.
    pub(crate) fn section(&self, refresh: &str) -> String {
        let manager = json!({"endpoint": self.endpoint, "subscriptions": [SUBSCRIPTION], "refresh": refresh});
        format!("identity: {}", json!({"resourceManager": manager}))
    }

    async fn check(&self, kubeconfig: &Path, args: &[&str]) -> Output {
        let path = self.path();
        let mut command = tokio::process::Command::from(spillway_command());
        command.args(["identity", "check", "--subscription", SUBSCRIPTION]).args(args);
        command.env("PATH", path).env("KUBECONFIG", kubeconfig).env("SPILLWAY_CONFIG", &self.config);
        command.output().await.unwrap()
    }
}

fn web(namespace: &Namespace) {
    namespace.create(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "web", "annotations": {"azure.workload.identity/client-id": CLIENT_ID}},
    }));
}

fn shown(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let all = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(!all.contains(AZURE_TOKEN) && !all.contains("eyJ"), "a token is shown: {all}");
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_check_compares_a_live_cluster_with_azure_and_entra() {
    let plane = control_plane();
    let namespace = plane.namespace(None);
    web(&namespace);
    let dir = tempfile::tempdir().unwrap();
    let azure = FakeAzure::start(dir.path()).await;
    let issuer = "https://kubernetes.default.svc.cluster.local";
    let subject = format!("system:serviceaccount:{}:web", namespace.name);
    let args = ["-n", &namespace.name, "--service-account", "web", "--token"];
    let ids = |output: &Output| -> Vec<Value> {
        let all = shown(output);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {all}"));
        report["findings"].as_array().unwrap().iter().map(|finding| finding["id"].clone()).collect()
    };

    azure.set_credential(issuer, &subject);
    let right = azure.check(&plane.kubeconfig, &[&args[..], &["-o", "json"]].concat()).await;
    assert!(ids(&right).iter().all(|id| !id.as_str().unwrap().starts_with('F')), "{}", shown(&right));
    let report: Value = serde_json::from_slice(&right.stdout).unwrap();
    assert_eq!((&report["token"]["matches"], &report["token"]["issuer"]), (&json!("web"), &json!(issuer)));
    assert_eq!(report["token"]["subject"], subject);
    let text = shown(&azure.check(&plane.kubeconfig, &args).await);
    assert!(text.contains("✓ credential web of identity id-web matches: Entra accepts the token"), "{text}");

    azure.set_credential(&format!("{issuer}/"), &subject);
    let slash = azure.check(&plane.kubeconfig, &[&args[..], &["-o", "json"]].concat()).await;
    assert!(ids(&slash).contains(&json!("F3")), "{}", shown(&slash));
    let wrong = azure.check(&plane.kubeconfig, &args).await;
    let text = shown(&wrong);
    assert_eq!(wrong.status.code(), Some(1), "{text}");
    assert!(text.contains("✗ no credential of identity id-web matches: Entra refuses the token"), "{text}");
    assert!(text.contains("web: issuer: an extra slash at the end"), "{text}");

    let whole = azure.check(&plane.kubeconfig, &["-o", "json"]).await;
    assert!(ids(&whole).contains(&json!("F3")), "{}", shown(&whole));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_check_names_forbidden_and_missing_objects() {
    let plane = control_plane();
    let namespace = plane.namespace(None);
    web(&namespace);
    let dir = tempfile::tempdir().unwrap();
    let azure = FakeAzure::start(dir.path()).await;
    let unprivileged = plane.kubeconfig_for(&namespace.name, "default");
    let refused = azure.check(&unprivileged, &["-n", &namespace.name]).await;
    let text = shown(&refused);
    assert_eq!(refused.status.code(), Some(2), "{text}");
    assert!(text.contains(&format!("cannot list the service accounts of namespace {}: 403", namespace.name)), "{text}");
    for (args, expected) in [
        (&["-n", "no-such-place"][..], "--namespace: no namespace \"no-such-place\" in the cluster"),
        (
            &["-n", &namespace.name, "--service-account", "wed", "--token"],
            "--service-account: no service account \"wed\" in the cluster; did you mean \"web\"?",
        ),
    ] {
        let output = azure.check(&plane.kubeconfig, args).await;
        let text = shown(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(expected), "{text}");
    }
}
