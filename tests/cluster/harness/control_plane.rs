//! One real control plane for the whole test binary, and a second one for tests that would be in the way of others.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use super::eventually;

/// How the names of the tests' namespaces begin.
const PREFIX: &str = "test-";

pub(crate) struct ControlPlane {
    pub(crate) program: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) server: String,
    pub(crate) kubeconfig: PathBuf,
    /// Its standard input keeps it alive.
    up: Child,
}

/// The control plane, started when the first test asks for it.
pub(crate) fn control_plane() -> &'static ControlPlane {
    static SHARED: OnceLock<ControlPlane> = OnceLock::new();
    SHARED.get_or_init(|| ControlPlane::start(""))
}

/// A control plane in which one test at a time installs, changes and removes what is there once in a cluster. The namespaces that it has
/// made go with its turn, and so do their pods: whoever comes next finds room on the nodes, and nothing that waits.
pub(crate) struct Sandbox {
    pub(crate) plane: &'static ControlPlane,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let run = |args: &[&str]| {
            let output = self.plane.try_kubectl(args, "");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() || thread::panicking(), "kubectl {args:?} failed: {stderr}");
            String::from_utf8(output.stdout).unwrap_or_default()
        };
        let of_tests = ["--field-selector=status.phase=Active", "-o", "jsonpath={.items[*].metadata.name}"];
        let names = run(&[&["get", "namespaces"], &of_tests[..]].concat());
        let names: Vec<_> = names.split_whitespace().filter(|name| name.starts_with(PREFIX)).collect();
        if names.is_empty() {
            return;
        }
        // Nothing can be created in a namespace that is on its way out, so no ReplicaSet makes its pods anew.
        run(&[&["delete", "namespace", "--wait=false"], &names[..]].concat());
        for name in names {
            run(&["delete", "--raw", &format!("/api/v1/namespaces/{name}/pods?gracePeriodSeconds=0")]);
        }
    }
}

/// Waits for its turn, and finds the cluster as the test before has left it.
pub(crate) fn sandbox() -> Sandbox {
    static PLANE: OnceLock<ControlPlane> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Sandbox { plane: PLANE.get_or_init(|| ControlPlane::start("-sandbox")), _turn: turn }
}

impl ControlPlane {
    fn start(suffix: &str) -> Self {
        let program = program();
        let dir = fresh_dir(suffix);
        let mut up = Command::new(&program)
            .args(["up", "--stop-with-stdin", "--dir"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the control plane");
        let mut line = String::new();
        BufReader::new(up.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("the control plane did not start: see {}", dir.display()));
        let text = |field: &str| ready[field].as_str().unwrap().to_owned();
        let started = Self { program, dir, server: text("server"), kubeconfig: text("kubeconfig").into(), up };
        let nodes = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/nodes.yaml")).unwrap();
        started.kubectl_with(&["apply", "-f", "-"], &nodes);
        started
    }

    /// A client of a test's own: a client belongs to the runtime it was made on.
    pub(crate) async fn client(&self) -> Client {
        self.client_as(None).await
    }

    /// The same that acts as somebody else.
    pub(crate) async fn client_as(&self, user: Option<&str>) -> Client {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.auth_info.impersonate = user.map(str::to_owned);
        Client::try_from(config).unwrap()
    }

    /// Runs the real kubectl and returns what it printed.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        self.kubectl_with(args, "")
    }

    /// The same with something on its standard input.
    pub(crate) fn kubectl_with(&self, args: &[&str], stdin: &str) -> String {
        let output = self.try_kubectl(args, stdin);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {args:?} failed: {stderr}\n{stdin}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same, whatever the outcome.
    pub(crate) fn try_kubectl(&self, args: &[&str], stdin: &str) -> Output {
        self.run("kubectl", args, stdin)
    }

    /// Runs the real helm and returns what it printed.
    pub(crate) fn helm(&self, args: &[&str]) -> String {
        let output = self.try_helm(args);
        assert!(output.status.success(), "helm {args:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same, whatever the outcome.
    pub(crate) fn try_helm(&self, args: &[&str]) -> Output {
        self.run("helm", args, "")
    }

    fn run(&self, role: &str, args: &[&str], stdin: &str) -> Output {
        let mut child = Command::new(&self.program)
            .arg(role)
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.dir) // for caches
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let text = stdin.to_owned();
        let writer = thread::spawn(move || drop(pipe.write_all(text.as_bytes())));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// How many pods of a namespace the API server has admitted although a call to a webhook failed, as its audit log has it.
    pub(crate) fn failed_open(&self, namespace: &str) -> usize {
        let audit = fs::read_to_string(self.dir.join("audit.log")).unwrap();
        let events = audit.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let failed = |event: &Value| {
            let annotations = event["annotations"].as_object();
            annotations
                .is_some_and(|a| a.keys().any(|key| key.starts_with("failed-open.mutation.webhook.admission.k8s.io/")))
        };
        events.filter(|event| event["objectRef"]["namespace"] == namespace).filter(failed).count()
    }

    /// Restarts the API server, and waits until it answers again.
    pub(crate) fn restart_api_server(&self) {
        let ready = |plane: &Self| plane.try_kubectl(&["get", "--raw", "/readyz"], "").status.success();
        let sent = Command::new("kill").args(["-s", "USR1", &self.up.id().to_string()]).status().unwrap();
        assert!(sent.success());
        eventually("the API server to end", || (!ready(self)).then_some(()));
        eventually("the API server to be back", || ready(self).then_some(()));
    }

    /// Waits until the nodes with these labels are ready. A node starts as not ready: if one was ready before the others, pods would go
    /// there for that alone.
    pub(crate) fn nodes_are_ready(&self, selector: &str) {
        eventually("the nodes to be ready", || {
            let keys = ["-o", "jsonpath={.items[*].spec.taints[*].key}"];
            let keys = self.kubectl(&[&["get", "nodes", "-l", selector], &keys[..]].concat());
            (!keys.contains("not-ready")).then_some(())
        });
    }

    /// A kubeconfig for a service account, so that a test runs with that account's permissions.
    pub(crate) fn kubeconfig_for(&self, namespace: &str, account: &str) -> PathBuf {
        let token = self.kubectl(&["-n", namespace, "create", "token", account, "--duration=6h"]);
        let file = self.dir.join(format!("{namespace}-{account}.kubeconfig"));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.server, "certificate-authority": self.dir.join("pki/ca.crt")}}],
            "users": [{"name": "test", "user": {"token": token.trim()}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        fs::write(&file, config.to_string()).unwrap();
        file
    }

    /// A new namespace with this label `spillway.dev/burst`, or without one.
    pub(crate) fn namespace(&'static self, profile: Option<&str>) -> Namespace {
        self.annotated_namespace(profile, &json!({}))
    }

    /// The same with annotations.
    pub(crate) fn annotated_namespace(&'static self, profile: Option<&str>, annotations: &Value) -> Namespace {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{PREFIX}{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut labels = json!({});
        if let Some(profile) = profile {
            labels["spillway.dev/burst"] = profile.into();
        }
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": labels, "annotations": annotations},
        });
        self.kubectl_with(&["create", "-f", "-"], &object.to_string());
        // Until then the API server refuses pods.
        eventually("the default service account", || {
            self.try_kubectl(&["-n", &name, "get", "serviceaccount", "default"], "").status.success().then_some(())
        });
        Namespace { plane: self, name }
    }
}

/// A namespace that belongs to one test.
pub(crate) struct Namespace {
    plane: &'static ControlPlane,
    pub(crate) name: String,
}

impl Namespace {
    /// Runs kubectl in this namespace.
    pub(crate) fn kubectl(&self, args: &[&str], stdin: &str) -> String {
        self.plane.kubectl_with(&[&["-n", &self.name], args].concat(), stdin)
    }

    /// Creates an object and returns what the API server made of it.
    pub(crate) fn create(&self, object: &Value) -> Value {
        parse(&self.kubectl(&["create", "-o", "json", "-f", "-"], &object.to_string()))
    }

    /// What `kubectl apply --dry-run=server` shows.
    pub(crate) fn dry_run(&self, object: &Value) -> Value {
        parse(&self.kubectl(&["apply", "--dry-run=server", "-o", "json", "-f", "-"], &object.to_string()))
    }

    /// A service account with a client ID that the webhook of all tests knows of: while it does not, it gives a read of the account so
    /// little time that a busy machine may take longer.
    pub(crate) fn known_identity(&self, name: &str) {
        self.identity(name);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"},
            "spec": {"serviceAccountName": name, "containers": [{"name": "c", "image": "registry.example/c"}]},
        });
        eventually("the webhook to know the service account", || {
            (self.dry_run(&pod)["metadata"]["labels"]["azure.workload.identity/use"] == "true").then_some(())
        });
    }

    /// A service account with a client ID.
    pub(crate) fn identity(&self, name: &str) {
        self.create(&json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": name, "annotations": {"azure.workload.identity/client-id": "00000000-0000-0000-0000-000000000000"}},
        }));
    }
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The control plane's program: `SPILLWAY_CONTROLPLANE`, or built once into the cache.
fn program() -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/controlplane/build.sh");
    let output = Command::new(script).stderr(Stdio::inherit()).output().expect("run tests/controlplane/build.sh");
    assert!(output.status.success(), "tests/controlplane/build.sh failed");
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// A directory for data and logs. It stays for whoever wants to read the logs, until the next run.
fn fresh_dir(suffix: &str) -> PathBuf {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("cluster-").and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let dir = parent.join(format!("cluster-{}{suffix}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}
