//! The real webhook: the program itself, with the permissions of its own service account, installed from the manifests.

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

/// The program under test.
pub(crate) fn spillway_command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_spillway"))
}

/// A serving certificate with its key, in files, and the authority that signed it.
pub(crate) struct Pair {
    pub(crate) dir: PathBuf,
    pub(crate) ca: String,
}

impl Pair {
    pub(crate) fn make(dir: &Path) -> Self {
        let made = spillway_command().args(["certs", "dev", "--out"]).arg(dir).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        Self { dir: dir.to_owned(), ca: fs::read_to_string(dir.join("ca.crt")).unwrap() }
    }

    /// The same in a volume as the kubelet makes it: each file is a link through `..data` into a directory that is never written again.
    pub(crate) fn publish(dir: &Path) -> Self {
        let first = Self::make(&dir.join("..first"));
        symlink("..first", dir.join("..data")).unwrap();
        for file in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(file), dir.join(file)).unwrap();
        }
        Self { dir: dir.to_owned(), ca: first.ca }
    }

    /// Swaps all files of such a volume at once; `change` gets a directory with copies of those that are there.
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

    /// The flags that name it, and more.
    fn flags(&self, more: &[&str]) -> Vec<String> {
        let pair = [("cert", "tls.crt"), ("key", "tls.key")];
        let pair = pair.map(|(flag, file)| format!("--tls-{flag}-file={}", self.dir.join(file).display()));
        pair.into_iter().chain(more.iter().map(ToString::to_string)).collect()
    }
}

/// A running webhook; it ends with the test, or with the test process.
pub(crate) struct Webhook {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) ca: String,
    log: PathBuf,
    tether: Child,
}

impl Webhook {
    /// Starts the program with this kubeconfig.
    pub(crate) fn start(name: &str, kubeconfig: &Path) -> Self {
        Self::start_with(name, kubeconfig, &[])
    }

    /// The same with more flags.
    pub(crate) fn start_with(name: &str, kubeconfig: &Path, flags: &[&str]) -> Self {
        Self::start_as(&[], name, kubeconfig, flags)
    }

    /// The same beside another control plane.
    pub(crate) fn start_beside(plane: &ControlPlane, name: &str, kubeconfig: &Path) -> Self {
        let pair = Pair::make(&plane.dir.join(name));
        Self::launch(plane, &[], name, kubeconfig, &pair.ca, &pair.flags(&[]))
    }

    /// The same through another program, which gets the whole command line.
    pub(crate) fn start_as(through: &[&str], name: &str, kubeconfig: &Path, flags: &[&str]) -> Self {
        let plane = control_plane();
        let pair = Pair::make(&plane.dir.join(name));
        Self::launch(plane, through, name, kubeconfig, &pair.ca, &pair.flags(flags))
    }

    /// The same with a certificate from where its configuration says; its own is in `ca`, `tls.crt` and `tls.key` all the same.
    pub(crate) fn start_configured(name: &str, kubeconfig: &Path, flags: &[&str]) -> Self {
        let plane = control_plane();
        let flags: Vec<_> = flags.iter().map(ToString::to_string).collect();
        Self::launch(plane, &[], name, kubeconfig, &Pair::make(&directory(name)).ca, &flags)
    }

    /// The same with a certificate that it signs itself, under the authority that the controller keeps.
    pub(crate) fn start_self_managed(plane: &ControlPlane, name: &str, flags: &[&str]) -> Self {
        Self::start_self_managed_as(plane, name, &plane.kubeconfig_for("spillway-system", "spillway-webhook"), flags)
    }

    /// The same with the rights of another account.
    pub(crate) fn start_self_managed_as(plane: &ControlPlane, name: &str, kubeconfig: &Path, flags: &[&str]) -> Self {
        let flags: Vec<_> = flags.iter().map(ToString::to_string).collect();
        Self::launch(plane, &[], name, kubeconfig, "", &flags)
    }

    /// Starts one of several that serve the same certificate.
    pub(crate) fn start_replica(
        plane: &ControlPlane,
        name: &str,
        kubeconfig: &Path,
        pair: &Pair,
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
        command.args(["webhook", "--bind=127.0.0.1:0", "--admin-bind=127.0.0.1:0"]).args(flags);
        command.env("KUBECONFIG", kubeconfig).stdin(Stdio::piped()).stderr(File::create(&log).unwrap());
        let tether = command.spawn().unwrap();
        let said = || lines(&log).into_iter().find(|line| line["message"] == "listening");
        let listening = eventually("the webhook to listen", said);
        let address = |field: &str| listening[field].as_str().unwrap().parse().unwrap();
        Self { address: address("webhook"), admin: address("admin"), ca: ca.to_owned(), log, tether }
    }

    /// Waits until it is ready.
    pub(crate) fn ready(self) -> Self {
        eventually("the webhook to be ready", || (self.admin("/readyz").0 == 200).then_some(()));
        self
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> Vec<Value> {
        lines(&self.log)
    }

    /// Asks it to end, as the kubelet does.
    pub(crate) fn terminate(&self) {
        let sent = Command::new("kill").arg("-TERM").arg(self.tether.id().to_string()).status();
        assert!(sent.unwrap().success());
    }

    /// Waits for its end, and returns its exit code.
    pub(crate) fn exit_code(&mut self) -> i32 {
        eventually("the webhook to end", || self.tether.try_wait().unwrap()).code().unwrap()
    }

    pub(crate) fn https(&self) -> Https {
        Https::new(self.address, &self.ca)
    }

    /// What a GET on the admin port answers: status and body.
    pub(crate) fn admin(&self, path: &str) -> (u16, String) {
        get(self.admin, path)
    }

    /// The value of a metric, by its name with its labels; 0 if it has not been counted yet.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        metric(self.admin, name)
    }

    /// The most memory the program has used so far, in KiB.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
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

/// Where a webhook's files are: its certificate, its log.
pub(crate) fn directory(name: &str) -> PathBuf {
    control_plane().dir.join(name)
}

/// The process id of the program that a tether runs. A child hangs under the thread that started it, which need not be the main one.
pub(super) fn child(tether: &Child) -> String {
    let threads = format!("/proc/{}/task", tether.id());
    eventually("the tether to have a child", || {
        let threads = fs::read_dir(&threads).unwrap().flatten();
        let children = threads.flat_map(|thread| fs::read_to_string(thread.path().join("children")));
        children.map(|children| children.trim().to_owned()).find(|children| !children.is_empty())
    })
}

/// What a GET on an admin port answers: status and body.
pub(super) fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut tcp = TcpStream::connect(address).unwrap();
    tcp.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The value of a metric, by its name with its labels; 0 if it has not been counted yet.
pub(super) fn metric(address: SocketAddr, name: &str) -> u64 {
    let (_, metrics) = get(address, "/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

/// The lines of a log, those apart that are no JSON.
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

/// Installs everything but the webhook configuration, as a user does, unless nothing has changed since that was done the last time.
pub(crate) fn install(plane: &ControlPlane) {
    let mut installed = plane.installed.lock().unwrap_or_else(PoisonError::into_inner);
    if installed.is_empty() || *installed != revisions(plane) {
        plane.kubectl_with(&["apply", "-f", "-"], &manifests(plane, |document| !is_webhook(document)));
        *installed = revisions(plane);
    }
}

/// Returns what changes with each change of the installed objects.
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
        // The status of an object changes its resource version, but not its generation.
        let revision =
            if metadata["generation"].is_null() { &metadata["resourceVersion"] } else { &metadata["generation"] };
        Some(format!("{path} {} {revision}", metadata["uid"]))
    };
    objects.iter().map(|object| revision(object).unwrap_or_default()).collect()
}

/// Tells the API server where the webhook is, by a configuration, and waits until it is called for pods of a namespace that opted in.
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

/// The manifest `aci-spillway` for a webhook at this address, with an empty line for a bundle, but patient.
pub(crate) fn webhook_configuration(plane: &ControlPlane, address: SocketAddr) -> String {
    patient(&installed_configuration(plane, address))
}

/// The same as it is installed.
pub(crate) fn installed_configuration(plane: &ControlPlane, address: SocketAddr) -> String {
    manifests(plane, is_webhook).replace("127.0.0.1:9443", &address.to_string())
}

/// How many seconds the API server waits for a webhook in tests that are not about that: so long no answer takes, however busy the machine.
pub(crate) const PATIENCE: u64 = 30;

/// A manifest of webhooks with that patience.
pub(crate) fn patient(manifest: &str) -> String {
    let seconds = |seconds: u64| format!("timeoutSeconds: {seconds}");
    manifest.replace(&seconds(1), &seconds(PATIENCE)).replace(&seconds(2), &seconds(PATIENCE))
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

/// The webhook that all tests share, installed as a user installs it.
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

/// The webhooks of the manifest `aci-spillway`, as the API server has them where it is installed.
pub(crate) fn manifest_webhooks() -> Vec<Value> {
    let plane = control_plane();
    let configuration = installed_configuration(plane, spillway().address);
    let text = plane.kubectl_with(&["apply", "--dry-run=server", "-o", "json", "-f", "-"], &configuration);
    let configuration: Value = serde_json::from_str(&text).unwrap();
    configuration["webhooks"].as_array().unwrap().clone()
}
