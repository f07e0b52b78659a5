//! A real control plane: etcd, kube-apiserver, kube-scheduler and kube-controller-manager, with kwok in place of kubelets.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, OnceLock},
    thread,
};

use axum::http::Method;
use kube::Client;
use serde_json::{Value, json};

use super::{
    api::{ApiClient, ApiFailure, collection, connect},
    eventually,
};

pub(crate) struct ControlPlane {
    pub(crate) program: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) server: String,
    pub(crate) kubeconfig: PathBuf,
    api: ApiClient,
    /// The revisions of the objects that `install` has created.
    pub(super) installed: Mutex<Vec<String>>,
    /// The program that runs the parts. It ends when its standard input closes.
    up: Child,
}

/// Returns the control plane that tests share. The first call starts it.
pub(crate) fn control_plane() -> &'static ControlPlane {
    static SHARED: OnceLock<ControlPlane> = OnceLock::new();
    SHARED.get_or_init(|| ControlPlane::start(""))
}

impl ControlPlane {
    /// Starts a control plane with the nodes of the example.
    pub(super) fn start(suffix: &str) -> Self {
        let program = program();
        let dir = work_dir(suffix);
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
        let kubeconfig = PathBuf::from(text("kubeconfig"));
        let api = ApiClient::new(&kubeconfig);
        let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/nodes.yaml")).unwrap();
        let started = Self { program, dir, server: text("server"), kubeconfig, api, installed: Mutex::default(), up };
        started.kubectl_with(&["apply", "-f", "-"], &manifest);
        started
    }

    /// Stops the control plane.
    pub(super) fn stop(&self) {
        let _ = Command::new("kill").arg(self.up.id().to_string()).status();
    }

    /// Returns a client for the runtime of a test: a client belongs to the runtime on which it was created.
    pub(crate) async fn client(&self) -> Client {
        connect(&self.kubeconfig, None).await
    }

    /// Returns a client that impersonates another user.
    pub(crate) async fn client_as(&self, user: &str) -> Client {
        connect(&self.kubeconfig, Some(user)).await
    }

    /// Sends a request to the API server.
    pub(crate) fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value, ApiFailure> {
        self.api.send(method, path, body)
    }

    /// Returns the object at a path of the API server, unless it does not exist.
    pub(crate) fn find(&self, path: &str) -> Option<Value> {
        match self.send(Method::GET, path, &Value::Null) {
            Ok(found) => Some(found),
            Err(failure) if failure.code == Some(404) => None,
            Err(failure) => panic!("GET {path}: {}", failure.message),
        }
    }

    /// Returns the object at a path of the API server.
    pub(crate) fn get(&self, path: &str) -> Value {
        self.find(path).unwrap_or_else(|| panic!("GET {path}: not found"))
    }

    /// Returns the objects of a list.
    pub(crate) fn list(&self, path: &str) -> Vec<Value> {
        let mut list = self.get(path);
        match list["items"].take() {
            Value::Array(items) => items,
            _ => panic!("GET {path}: no list: {list:#}"),
        }
    }

    /// Returns the events about objects of a namespace; those about objects without a namespace are in `default`.
    pub(crate) fn events(&self, namespace: &str) -> Vec<Value> {
        self.list(&format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"))
    }

    /// Creates an object that has no namespace.
    pub(crate) fn create(&self, object: &Value) -> Value {
        self.create_in(None, object)
    }

    /// Creates an object in a namespace, or one that has none.
    pub(crate) fn create_in(&self, namespace: Option<&str>, object: &Value) -> Value {
        let path = format!("{}?fieldValidation=Strict", collection(namespace, object));
        match self.send(Method::POST, &path, object) {
            Ok(created) => created,
            Err(failure) => panic!("POST {path}: {}\n{object:#}", failure.message),
        }
    }

    /// Creates the objects of a manifest, or replaces those that exist.
    pub(crate) fn apply(&self, manifest: &str) {
        for document in manifest.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(document).unwrap();
            self.create_or_replace(object["metadata"]["namespace"].as_str(), &object);
        }
    }

    /// Creates an object, or replaces it. A list stands for its items.
    pub(crate) fn create_or_replace(&self, namespace: Option<&str>, object: &Value) {
        if let Some(items) = object["items"].as_array() {
            return items.iter().for_each(|item| self.create_or_replace(namespace, item));
        }
        let collection = collection(namespace, object);
        let path = format!("{collection}/{}", object["metadata"]["name"].as_str().unwrap());
        let mut object = object.clone();
        eventually("a write without a conflict", || {
            let sent = match self.find(&path) {
                None => self.send(Method::POST, &collection, &object),
                Some(live) => {
                    object["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
                    self.send(Method::PUT, &path, &object)
                }
            };
            match sent {
                Ok(_) => Some(()),
                Err(failure) if failure.code == Some(409) => None,
                Err(failure) => panic!("{path}: {}\n{object:#}", failure.message),
            }
        });
    }

    /// Changes an object by a JSON patch, or by a merge patch.
    pub(crate) fn patch(&self, path: &str, change: &Value) -> Value {
        match self.send(Method::PATCH, path, change) {
            Ok(patched) => patched,
            Err(failure) => panic!("PATCH {path} {change}: {}", failure.message),
        }
    }

    /// Deletes a node, if it exists.
    pub(crate) fn delete_node(&self, name: &str) {
        self.delete(&format!("/api/v1/nodes/{name}"));
    }

    /// Deletes the object at a path of the API server, if it exists.
    pub(crate) fn delete(&self, path: &str) {
        match self.send(Method::DELETE, path, &Value::Null) {
            Err(failure) if failure.code != Some(404) => panic!("DELETE {path}: {}", failure.message),
            _ => {}
        }
    }

    /// Runs the real kubectl and returns its standard output.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        self.kubectl_with(args, "")
    }

    /// Runs kubectl with this standard input.
    pub(crate) fn kubectl_with(&self, args: &[&str], stdin: &str) -> String {
        let output = self.try_kubectl(args, stdin);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {args:?} failed: {stderr}\n{stdin}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs kubectl and returns its exit status and output.
    pub(crate) fn try_kubectl(&self, args: &[&str], stdin: &str) -> Output {
        self.run("kubectl", args, stdin)
    }

    /// Runs the real helm and returns its standard output.
    pub(crate) fn helm(&self, args: &[&str]) -> String {
        let output = self.try_helm(args);
        assert!(output.status.success(), "helm {args:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs helm and returns its exit status and output.
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

    /// Returns the number of pods in a namespace that were admitted although a webhook call failed, by the audit log.
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

    /// Restarts the API server, and waits until it is ready again.
    pub(crate) fn restart_api_server(&self) {
        let ready = |plane: &Self| plane.send(Method::GET, "/readyz", &Value::Null).is_ok();
        let sent = Command::new("kill").args(["-s", "USR1", &self.up.id().to_string()]).status().unwrap();
        assert!(sent.success());
        eventually("the API server to stop", || (!ready(self)).then_some(()));
        eventually("the API server to be ready again", || ready(self).then_some(()));
    }

    /// Waits until the nodes with these labels are ready. New nodes are not ready, and all pods would be scheduled to the first ready node.
    pub(crate) fn nodes_are_ready(&self, selector: &str) {
        eventually("the nodes to be ready", || {
            let nodes = self.list(&format!("/api/v1/nodes?labelSelector={}", selector.replace('=', "%3D")));
            let is_ready = |node: &Value| !node["spec"]["taints"].to_string().contains("not-ready");
            nodes.iter().all(is_ready).then_some(())
        });
    }

    /// Writes a kubeconfig with the permissions of a service account.
    pub(crate) fn kubeconfig_for(&self, namespace: &str, account: &str) -> PathBuf {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 6 * 3600},
        });
        let token =
            self.send(Method::POST, &path, &request).unwrap_or_else(|failure| panic!("{path}: {}", failure.message));
        let file = self.dir.join(format!("{namespace}-{account}.kubeconfig"));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.server, "certificate-authority": self.dir.join("pki/ca.crt")}}],
            "users": [{"name": "test", "user": {"token": token["status"]["token"]}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        fs::write(&file, config.to_string()).unwrap();
        file
    }
}

/// Returns the path of the control plane's program: `SPILLWAY_CONTROLPLANE`, or the one that the script builds and caches.
fn program() -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/controlplane/build.sh");
    let output = Command::new(script).stderr(Stdio::inherit()).output().expect("run tests/controlplane/build.sh");
    assert!(output.status.success(), "tests/controlplane/build.sh failed");
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// Creates a directory for data and logs. The directory remains until the next run, so that developers can read the logs.
pub(super) fn work_dir(suffix: &str) -> PathBuf {
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
