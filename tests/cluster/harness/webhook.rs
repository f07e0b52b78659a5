//! The real webhook: the program itself, with the permissions of its own service account, installed from the manifests.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{control_plane, eventually, https::Https};

/// The program under test.
pub(crate) fn spillway_command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_spillway"))
}

/// A running webhook; it ends with the test, or with the test process.
pub(crate) struct Webhook {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) ca: String,
    tether: Child,
}

impl Webhook {
    /// Starts the program with this kubeconfig.
    pub(crate) fn start(name: &str, kubeconfig: &Path) -> Self {
        let plane = control_plane();
        let dir = plane.dir.join(name);
        let made = spillway_command().args(["certs", "dev", "--out"]).arg(&dir).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let log = dir.join("webhook.log");
        let tether = Command::new(&plane.program)
            .args([
                "tether",
                "--",
                env!("CARGO_BIN_EXE_spillway"),
                "webhook",
                "--bind",
                "127.0.0.1:0",
                "--admin-bind",
                "127.0.0.1:0",
            ])
            .arg("--tls-cert-file")
            .arg(dir.join("tls.crt"))
            .arg("--tls-key-file")
            .arg(dir.join("tls.key"))
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let listening = eventually("the webhook to listen", || {
            let lines = fs::read_to_string(&log).unwrap();
            lines
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .find(|l| l["message"] == "listening")
        });
        let address = |field: &str| listening[field].as_str().unwrap().parse().unwrap();
        let ca = fs::read_to_string(dir.join("ca.crt")).unwrap();
        Self { address: address("webhook"), admin: address("admin"), ca, tether }
    }

    pub(crate) fn https(&self) -> Https {
        Https::new(self.address, &self.ca)
    }

    /// What a GET on the admin port answers: status and body.
    pub(crate) fn admin(&self, path: &str) -> (u16, String) {
        let mut tcp = TcpStream::connect(self.admin).unwrap();
        tcp.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// The value of a metric, by its name with its labels; 0 if it has not been counted yet.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let (_, metrics) = self.admin("/metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    /// The most memory the program has used so far, in KiB.
    pub(crate) fn peak_memory(&self) -> u64 {
        let children = format!("/proc/{0}/task/{0}/children", self.tether.id());
        let pid = fs::read_to_string(children).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.tether.try_wait().unwrap().is_none()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        drop(self.tether.stdin.take());
        let _ = self.tether.wait();
    }
}

/// The webhook that all tests share, installed as a user installs it.
pub(crate) fn spillway() -> &'static Webhook {
    static SHARED: OnceLock<Webhook> = OnceLock::new();
    SHARED.get_or_init(|| {
        let plane = control_plane();
        let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/overlays/local");
        let rendered = plane.kubectl(&["kustomize", manifests]);
        let is_webhook = |document: &&str| document.contains("kind: MutatingWebhookConfiguration");
        let (webhooks, rest): (Vec<_>, Vec<_>) = rendered.split("\n---\n").partition(is_webhook);
        plane.kubectl_with(&["apply", "-f", "-"], &rest.join("\n---\n"));
        let kubeconfig = plane.kubeconfig_for("spillway-system", "spillway-webhook");
        let webhook = Webhook::start("spillway", &kubeconfig);
        eventually("the webhook to be ready", || (webhook.admin("/readyz").0 == 200).then_some(()));

        let configuration = webhooks
            .join("\n---\n")
            .replace("127.0.0.1:9443", &webhook.address.to_string())
            .replace("caBundle: Cg==", &format!("caBundle: {}", STANDARD.encode(&webhook.ca)));
        plane.kubectl_with(&["apply", "-f", "-"], &configuration);
        let probe = plane.namespace(Some("enabled"));
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"},
            "spec": {"containers": [{"name": "c", "image": "registry.example/c"}]},
        });
        eventually("the API server to call the webhook", || {
            probe.dry_run(&pod)["metadata"]["annotations"]["spillway.dev/decision"].is_string().then_some(())
        });
        webhook
    })
}

/// The webhooks of the manifest `aci-spillway`, as the API server has them.
pub(crate) fn manifest_webhooks() -> Vec<Value> {
    spillway();
    let text = control_plane().kubectl(&["get", "mutatingwebhookconfiguration", "aci-spillway", "-o", "json"]);
    let configuration: Value = serde_json::from_str(&text).unwrap();
    configuration["webhooks"].as_array().unwrap().clone()
}
