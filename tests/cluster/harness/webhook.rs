//! The real webhook, with the permissions of its own service account, installed from the manifests.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{ControlPlane, api::collection, control_plane, eventually, https::Https};

/// Returns a command that runs the program under test.
pub(crate) fn spillway_command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_spillway"))
}

/// Files with a serving certificate and its key, and the certificate authority.
pub(crate) struct KeyPair {
    pub(crate) dir: PathBuf,
    pub(crate) ca: String,
}

impl KeyPair {
    pub(crate) fn generate(dir: &Path) -> Self {
        let made = spillway_command().args(["certs", "dev", "--out"]).arg(dir).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        Self { dir: dir.to_owned(), ca: fs::read_to_string(dir.join("ca.crt")).unwrap() }
    }

    /// Creates a pair in a volume like the kubelet's: each file is a link through `..data` into a directory that never changes.
    pub(crate) fn in_volume(dir: &Path) -> Self {
        let first = Self::generate(&dir.join("..first"));
        symlink("..first", dir.join("..data")).unwrap();
        for file in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(file), dir.join(file)).unwrap();
        }
        Self { dir: dir.to_owned(), ca: first.ca }
    }

    /// Replaces all files of such a volume at once. `change` gets a directory with copies of them.
    pub(crate) fn replace(&self, change: impl FnOnce(&Path)) {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("..replaced-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let next = self.dir.join(&name);
        fs::create_dir(&next).unwrap();
        for file in ["tls.crt", "tls.key"] {
            fs::copy(self.dir.join(file), next.join(file)).unwrap();
        }
        change(&next);
        symlink(&name, self.dir.join("..next")).unwrap();
        fs::rename(self.dir.join("..next"), self.dir.join("..data")).unwrap();
    }

    /// Returns the flags that name the files, and more flags.
    fn flags(&self, more: &[&str]) -> Vec<String> {
        let pair = [("cert", "tls.crt"), ("key", "tls.key")];
        let pair = pair.map(|(flag, file)| format!("--tls-{flag}-file={}", self.dir.join(file).display()));
        pair.into_iter().chain(more.iter().map(ToString::to_string)).collect()
    }
}

/// A running webhook. It stops with the test, or with the test process.
pub(crate) struct Webhook {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) ca: String,
    log: PathBuf,
    tether: Child,
}

impl Webhook {
    /// Starts a webhook with this kubeconfig.
    pub(crate) fn start(name: &str, kubeconfig: &Path) -> Self {
        Self::start_with(name, kubeconfig, &[])
    }

    /// Starts a webhook with more flags.
    pub(crate) fn start_with(name: &str, kubeconfig: &Path, flags: &[&str]) -> Self {
        Self::start_as(&[], name, kubeconfig, flags)
    }

    /// Starts a webhook for another control plane.
    pub(crate) fn start_beside(plane: &ControlPlane, name: &str, kubeconfig: &Path) -> Self {
        let pair = KeyPair::generate(&plane.dir.join(name));
        Self::launch(plane, &[], name, kubeconfig, &pair.ca, &pair.flags(&[]))
    }

    /// Starts a webhook through another program, which gets the whole command line.
    pub(crate) fn start_as(through: &[&str], name: &str, kubeconfig: &Path, flags: &[&str]) -> Self {
        let plane = control_plane();
        let pair = KeyPair::generate(&plane.dir.join(name));
        Self::launch(plane, through, name, kubeconfig, &pair.ca, &pair.flags(flags))
    }

    /// Starts a webhook whose configuration names its certificate. A pair is generated in its directory all the same.
    pub(crate) fn start_configured(name: &str, kubeconfig: &Path, flags: &[&str]) -> Self {
        let plane = control_plane();
        let flags: Vec<_> = flags.iter().map(ToString::to_string).collect();
        Self::launch(plane, &[], name, kubeconfig, &KeyPair::generate(&directory(name)).ca, &flags)
    }

    /// Starts a webhook that signs its own certificate with the controller's authority.
    pub(crate) fn start_self_managed(plane: &ControlPlane, name: &str, flags: &[&str]) -> Self {
        Self::start_self_managed_as(plane, name, &plane.kubeconfig_for("spillway-system", "spillway-webhook"), flags)
    }

    /// Starts such a webhook with the permissions of this kubeconfig.
    pub(crate) fn start_self_managed_as(plane: &ControlPlane, name: &str, kubeconfig: &Path, flags: &[&str]) -> Self {
        let flags: Vec<_> = flags.iter().map(ToString::to_string).collect();
        Self::launch(plane, &[], name, kubeconfig, "", &flags)
    }

    /// Starts one of several replicas with the same certificate.
    pub(crate) fn start_replica(
        plane: &ControlPlane,
        name: &str,
        kubeconfig: &Path,
        pair: &KeyPair,
        flags: &[&str],
    ) -> Self {
        Self::launch(plane, &[], name, kubeconfig, &pair.ca, &pair.flags(flags))
    }

    fn launch(
        plane: &ControlPlane,
        through: &[&str],
        name: &str,
        kubeconfig: &Path,
        ca: &str,
        flags: &[String],
    ) -> Self {
        let log = plane.dir.join(format!("{name}.log"));
        let mut command = Command::new(&plane.program);
        command.args(["tether", "--"]).args(through).arg(env!("CARGO_BIN_EXE_spillway"));
        command.args(["webhook", "--bind=127.0.0.1:0", "--admin-bind=127.0.0.1:0"]);
        command.arg("--health-probe-bind=127.0.0.1:0").args(flags);
        command.env("KUBECONFIG", kubeconfig).stdin(Stdio::piped()).stderr(File::create(&log).unwrap());
        let tether = command.spawn().unwrap();
        let line = || lines(&log).into_iter().find(|line| line["message"] == "listening");
        let listening = eventually("the webhook to listen", line);
        let address = |field: &str| listening[field].as_str().unwrap().parse().unwrap();
        Self { address: address("webhook"), admin: address("admin"), ca: ca.to_owned(), log, tether }
    }

    /// Waits until the webhook is ready.
    pub(crate) fn ready(self) -> Self {
        eventually("the webhook to be ready", || (self.admin("/readyz").0 == 200).then_some(()));
        self
    }

    /// Returns the log lines so far.
    pub(crate) fn log(&self) -> Vec<Value> {
        lines(&self.log)
    }

    /// Sends SIGTERM, as the kubelet does.
    pub(crate) fn terminate(&self) {
        let sent = Command::new("kill").arg("-TERM").arg(self.tether.id().to_string()).status();
        assert!(sent.unwrap().success());
    }

    /// Waits until the webhook ends, and returns its exit code.
    pub(crate) fn exit_code(&mut self) -> i32 {
        eventually("the webhook to end", || self.tether.try_wait().unwrap()).code().unwrap()
    }

    pub(crate) fn https(&self) -> Https {
        Https::new(self.address, &self.ca)
    }

    /// Sends a GET to the admin port and returns status and body.
    pub(crate) fn admin(&self, path: &str) -> (u16, String) {
        get(self.admin, path)
    }

    /// Returns the value of a metric by its name with labels, or 0 if it does not exist yet.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        metric(self.admin, name)
    }

    /// Returns the peak memory of the program in KiB.
    pub(crate) fn peak_memory(&self) -> u64 {
        peak_memory(&self.pid())
    }

    pub(crate) fn pid(&self) -> String {
        child(&self.tether)
    }

    /// Sends a signal to the program.
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args(["-s", signal, &self.pid()]).status().unwrap();
        assert!(sent.success());
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.tether.try_wait().unwrap().is_none()
    }
}

/// Returns the directory of a webhook's certificate.
pub(crate) fn directory(name: &str) -> PathBuf {
    control_plane().dir.join(name)
}

/// Returns the process ID of the program that `tether` runs. A child belongs to the thread that started it, which may not be the
/// main one.
pub(super) fn child(tether: &Child) -> String {
    let threads = format!("/proc/{}/task", tether.id());
    eventually("the tether to have a child", || {
        let threads = fs::read_dir(&threads).unwrap().flatten();
        let children = threads.flat_map(|thread| fs::read_to_string(thread.path().join("children")));
        children.map(|children| children.trim().to_owned()).find(|children| !children.is_empty())
    })
}

/// Returns the peak memory of a process in KiB.
pub(super) fn peak_memory(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Sends a GET to an admin port and returns status and body.
pub(super) fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut tcp = TcpStream::connect(address).unwrap();
    tcp.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Returns the value of a metric by its name with labels, or 0 if it does not exist yet.
pub(super) fn metric(address: SocketAddr, name: &str) -> u64 {
    let (_, metrics) = get(address, "/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

/// Returns the log lines that are JSON.
pub(super) fn lines(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

impl Drop for Webhook {
    fn drop(&mut self) {
        drop(self.tether.stdin.take());
        let _ = self.tether.wait();
    }
}

/// Installs everything but the webhook configuration, as a user does, unless nothing has changed since the last time.
pub(crate) fn install(plane: &ControlPlane) {
    let mut installed = plane.installed.lock().unwrap_or_else(PoisonError::into_inner);
    if installed.is_empty() || *installed != revisions(plane) {
        plane.kubectl_with(&["apply", "-f", "-"], &manifests(plane, |document| !is_webhook(document)));
        *installed = revisions(plane);
    }
}

/// Returns the UID and revision of each installed object.
fn revisions(plane: &ControlPlane) -> Vec<String> {
    static OBJECTS: OnceLock<Vec<Value>> = OnceLock::new();
    let objects = OBJECTS.get_or_init(|| {
        let rendered = manifests(plane, |document| !is_webhook(document));
        rendered.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
    });
    let revision = |object: &Value| {
        let metadata = &object["metadata"];
        let path = format!("{}/{}", collection(metadata["namespace"].as_str(), object), metadata["name"].as_str()?);
        let found = plane.find(&path)?;
        let metadata = &found["metadata"];
        // A change of the status changes the resource version, but not the generation.
        let revision =
            if metadata["generation"].is_null() { &metadata["resourceVersion"] } else { &metadata["generation"] };
        Some(format!("{path} {} {revision}", metadata["uid"]))
    };
    objects.iter().map(|object| revision(object).unwrap_or_default()).collect()
}

/// Registers the webhook, and waits until the API server calls it for pods of an opted-in namespace.
pub(crate) fn register_spillway(plane: &'static ControlPlane, configuration: &str, ca: &str) {
    let bundle = format!("caBundle: {}", STANDARD.encode(ca));
    plane.apply(&configuration.replace("caBundle: Cg==", &bundle));
    let probe = plane.namespace(Some("enabled"));
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"},
        "spec": {"containers": [{"name": "c", "image": "registry.example/c"}]},
    });
    eventually("the API server to call the webhook", || {
        probe.dry_run(&pod)["metadata"]["annotations"]["spillway.dev/decision"].is_string().then_some(())
    });
}

/// Returns the manifest `aci-spillway` for a webhook at this address, with long timeouts and a placeholder for the bundle.
pub(crate) fn webhook_configuration(plane: &ControlPlane, address: SocketAddr) -> String {
    with_long_timeouts(&installed_configuration(plane, address))
}

/// Returns this manifest with the shipped timeouts.
pub(crate) fn installed_configuration(plane: &ControlPlane, address: SocketAddr) -> String {
    manifests(plane, is_webhook).replace("127.0.0.1:9443", &address.to_string())
}

/// The timeout of webhooks in tests that do not test timeouts. Longer than any response takes on a busy machine.
pub(crate) const LONG_TIMEOUT_SECONDS: u64 = 30;

/// Returns the manifest of webhooks with this timeout.
pub(crate) fn with_long_timeouts(manifest: &str) -> String {
    let seconds = |seconds: u64| format!("timeoutSeconds: {seconds}");
    manifest.replace(&seconds(1), &seconds(LONG_TIMEOUT_SECONDS)).replace(&seconds(2), &seconds(LONG_TIMEOUT_SECONDS))
}

fn is_webhook(document: &str) -> bool {
    document.contains("kind: MutatingWebhookConfiguration")
}

fn manifests(plane: &ControlPlane, wanted: impl Fn(&str) -> bool) -> String {
    static RENDERED: OnceLock<String> = OnceLock::new();
    let overlay = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/overlays/local");
    let rendered = RENDERED.get_or_init(|| plane.kubectl(&["kustomize", overlay]));
    let documents: Vec<_> = rendered.split("\n---\n").filter(|document| wanted(document)).collect();
    documents.join("\n---\n")
}

/// Returns the webhook that tests share, installed as a user installs it.
pub(crate) fn spillway() -> &'static Webhook {
    static SHARED: OnceLock<Webhook> = OnceLock::new();
    SHARED.get_or_init(|| {
        let plane = control_plane();
        install(plane);
        let kubeconfig = plane.kubeconfig_for("spillway-system", "spillway-webhook");
        let webhook = Webhook::start("spillway", &kubeconfig).ready();
        register_spillway(plane, &webhook_configuration(plane, webhook.address), &webhook.ca);
        webhook
    })
}

/// Returns the webhooks of the manifest `aci-spillway` as the API server stores them.
pub(crate) fn manifest_webhooks() -> Vec<Value> {
    let plane = control_plane();
    let configuration = installed_configuration(plane, spillway().address);
    let text = plane.kubectl_with(&["apply", "--dry-run=server", "-o", "json", "-f", "-"], &configuration);
    let configuration: Value = serde_json::from_str(&text).unwrap();
    configuration["webhooks"].as_array().unwrap().clone()
}
