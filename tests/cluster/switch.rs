//! `spillway off` and `spillway on`: the emergency switch.

use std::{
    collections::BTreeSet,
    env,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
    sync::mpsc,
    thread,
    time::Duration,
};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    harness::{self, ControlPlane, WEBHOOK_CONFIGURATION, sandbox, spillway_command},
    packaging::shipped_configuration,
};

const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/base");
const KIND: &str = "mutatingwebhookconfiguration";
const NAME: &str = "aci-spillway";
const COPY: &str = "/api/v1/namespaces/spillway-system/configmaps/spillway-switched-off";

/// Installs Spillway in this way, with what others write to the configuration: the bundle and a label.
fn install(plane: &ControlPlane, how: &[&str]) {
    harness::install(plane);
    plane.delete(WEBHOOK_CONFIGURATION);
    let named = shipped_configuration().replace(
        "  name: aci-spillway\n",
        "  name: aci-spillway\n  labels: {app.kubernetes.io/name: spillway}\n", // as kustomize does
    );
    plane.kubectl_with(&[&["apply", "-f", "-"], how].concat(), &named);
    plane.delete(COPY);
    let bundle = r#"[{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "YQ=="}]"#;
    plane.kubectl(&["patch", KIND, NAME, "--type=json", "--patch", bundle, "--field-manager=spillway-controller"]);
    plane.kubectl(&["label", KIND, NAME, "example.com/team=a"]);
    // The annotation that users set for the Admissions Enforcer of AKS.
    plane.kubectl(&["annotate", KIND, NAME, "admissions.enforcer/disabled=true"]);
}

fn live(plane: &ControlPlane) -> Option<Value> {
    plane.find(WEBHOOK_CONFIGURATION)
}

fn saved_copy(plane: &ControlPlane) -> Option<Value> {
    plane.find(COPY)
}

/// Returns what must be the same afterwards: the object and the owners of its fields.
fn comparable(object: &Value) -> Value {
    let mut comparable = object.clone();
    let metadata = comparable["metadata"].as_object_mut().unwrap();
    for set_by_the_server in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"] {
        metadata.remove(set_by_the_server);
    }
    let managers: BTreeSet<String> = object["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| json!([entry["manager"], entry["operation"], entry["fieldsV1"]]).to_string())
        .collect();
    json!({"object": comparable, "managers": managers})
}

fn run_as(kubeconfig: &Path, args: &[&str]) -> (i32, String) {
    exit_code_and_output(&spillway_command().args(args).env("KUBECONFIG", kubeconfig).output().unwrap())
}

/// Returns the exit code and all output.
fn exit_code_and_output(output: &Output) -> (i32, String) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
}

/// Runs the program, and asserts its exit code and parts of its output.
fn expect(plane: &ControlPlane, args: &[&str], code: i32, words: &[&str]) {
    let (ended, text) = run_as(&plane.kubeconfig, args);
    assert_eq!(ended, code, "{args:?}: {text}");
    for words in words {
        assert!(text.contains(words), "{args:?} does not say \"{words}\": {text}");
    }
}

#[test]
fn off_and_on_restore_the_configuration() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    for how in [&[][..], &["--server-side"]] {
        install(plane, how);
        let before = live(plane).unwrap();
        expect(plane, &["off"], 0, &["Switched off", "stay on VMs", "ConfigMap spillway-system/spillway-switched-off"]);
        assert!(live(plane).is_none() && saved_copy(plane).is_some());
        expect(plane, &["on"], 0, &["Switched on", "is restored"]);
        let after = live(plane).unwrap();
        assert_eq!(comparable(&before), comparable(&after), "{how:?}");
        assert!(saved_copy(plane).is_none());

        // The owner can change it as before, and keeps what others wrote.
        let args = [&["apply", "-k", BASE], how].concat();
        let unchanged = plane.kubectl(&args);
        let line = unchanged.lines().find(|line| line.contains(NAME)).unwrap();
        assert!(line.ends_with(if how.is_empty() { "unchanged" } else { "serverside-applied" }), "{line}");
        let manifest = plane.kubectl(&["kustomize", BASE]).replace("timeoutSeconds: 2", "timeoutSeconds: 3");
        plane.kubectl_with(&[&["apply", "-f", "-"], how].concat(), &manifest);
        let changed = live(plane).unwrap();
        assert_eq!(changed["webhooks"][0]["timeoutSeconds"], 3);
        assert_eq!(changed["webhooks"][0]["clientConfig"]["caBundle"], "YQ==");
    }
}

#[test]
fn off_and_on_are_idempotent() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    install(plane, &[]);
    expect(plane, &["on"], 0, &["Already on"]);
    expect(plane, &["off"], 0, &["Switched off"]);
    let copy = saved_copy(plane);
    expect(plane, &["off"], 0, &["Already off", "`spillway on` restores it"]);
    assert_eq!(copy, saved_copy(plane));
    expect(plane, &["on"], 0, &["Switched on"]);
    let before = live(plane);
    expect(plane, &["on"], 0, &["Already on"]);
    assert_eq!(before, live(plane));
}

#[test]
fn on_without_a_copy_says_what_to_do() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    install(plane, &[]);
    plane.delete(WEBHOOK_CONFIGURATION);
    expect(plane, &["on"], 2, &["nothing to restore", "kubectl apply -k manifests/base"]);
    expect(plane, &["off"], 0, &["Already off", "no copy", "apply the manifests"]);
}

#[test]
fn a_dry_run_of_the_switch_changes_nothing() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    install(plane, &[]);
    let before = live(plane);
    expect(plane, &["off", "--dry-run"], 0, &["Would remove", "nothing changed"]);
    assert_eq!((before, None), (live(plane), saved_copy(plane)));
    expect(plane, &["off"], 0, &[]);
    let copy = saved_copy(plane);
    expect(plane, &["on", "--dry-run"], 0, &["Would restore", "nothing changed"]);
    assert_eq!((None, copy), (live(plane), saved_copy(plane)));
}

#[test]
fn on_leaves_a_configuration_that_a_user_restored() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    install(plane, &[]);
    expect(plane, &["off"], 0, &[]);
    plane.kubectl(&["apply", "-k", BASE]);
    let before = live(plane);
    expect(plane, &["on"], 0, &["Already on", "The copy", "is deleted"]);
    assert_eq!((before, None), (live(plane), saved_copy(plane)));

    expect(plane, &["off"], 0, &[]);
    plane.kubectl(&["apply", "-k", BASE]);
    plane.kubectl(&["label", KIND, NAME, "example.com/newer=yes"]);
    expect(plane, &["off"], 0, &["Switched off"]);
    let copy = saved_copy(plane).unwrap()["data"]["aci-spillway.json"].to_string();
    assert!(copy.contains("example.com/newer"), "what was live last is kept: {copy}");
}

#[test]
fn off_keeps_a_concurrent_change() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    for _ in 0..3 {
        install(plane, &[]);
        let last = thread::scope(|scope| {
            let (started, first) = mpsc::channel();
            let writer = scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(write_until_deleted(plane, &started))
            });
            first.recv().unwrap();
            expect(plane, &["off"], 0, &["Switched off"]);
            writer.join().unwrap()
        });
        let copy: Value =
            serde_json::from_str(saved_copy(plane).unwrap()["data"]["aci-spillway.json"].as_str().unwrap()).unwrap();
        assert_eq!(copy["metadata"]["labels"]["example.com/write"], last.to_string());
    }
}

/// Changes the configuration repeatedly, and signals the first change. Returns the last write that succeeded. The pauses grow, so
/// that `off` succeeds between two writes on a slow machine too.
async fn write_until_deleted(plane: &ControlPlane, started: &mpsc::Sender<()>) -> u32 {
    let api: Api<MutatingWebhookConfiguration> = Api::all(plane.client().await);
    let mut last = None;
    for write in 0.. {
        let label = json!({"metadata": {"labels": {"example.com/write": write.to_string()}}});
        match api.patch(NAME, &PatchParams::default(), &Patch::Merge(label)).await {
            Ok(_) if last.is_none() => started.send(()).unwrap(),
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => break,
            Err(error) => panic!("{error}"),
        }
        last = Some(write);
        tokio::time::sleep(Duration::from_millis(10 << write.min(10))).await;
    }
    last.expect("a write before the configuration is gone")
}

/// Interrupts each command after its first step, by an account that lacks the permission for the second.
#[test]
fn an_interrupted_off_or_on_can_be_repeated() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    install(plane, &[]);
    let before = comparable(&live(plane).unwrap());
    plane.kubectl_with(&["apply", "-f", "-"], ACCOUNT);
    let may = |configurations: &str, maps: &str| {
        for (role, verbs, resource) in
            [("a", configurations, "mutatingwebhookconfigurations"), ("b", maps, "configmaps")]
        {
            let name = format!("switch-{role}");
            let verbs = format!("--verb=get,{verbs}");
            let resource = format!("--resource={resource}");
            let role =
                plane.kubectl(&["create", "clusterrole", &name, &verbs, &resource, "--dry-run=client", "-o", "json"]);
            plane.kubectl_with(&["apply", "-f", "-"], &role);
        }
    };
    let kubeconfig = plane.kubeconfig_for("spillway-system", "switch");
    let expect_as = |args: &[&str], code: i32, words: &[&str]| {
        // The authorizer learns of a role with a delay. A refused attempt changes nothing.
        crate::harness::eventually(&format!("{args:?}: {words:?}"), || {
            let (ended, text) = run_as(&kubeconfig, args);
            (ended == code && words.iter().all(|words| text.contains(words))).then_some(())
        });
    };

    may("list", "create");
    expect_as(&["off"], 2, &["cannot write ConfigMap", "Spillway is still on"]);
    assert!(live(plane).is_some());
    may("list", "create,patch");
    expect_as(&["off"], 2, &["cannot remove aci-spillway"]);
    assert!(live(plane).is_some() && saved_copy(plane).is_some());
    may("delete", "create,patch");
    expect_as(&["off"], 0, &["Switched off"]);

    expect_as(&["on"], 2, &["cannot create aci-spillway"]);
    assert!(live(plane).is_none() && saved_copy(plane).is_some());
    may("create", "list");
    expect_as(&["on"], 2, &["but not its field managers"]);
    may("create,update", "list");
    expect_as(&["on"], 2, &["is restored, but ConfigMap spillway-system/spillway-switched-off cannot be deleted"]);
    assert_eq!(comparable(&live(plane).unwrap()), before);
    may("create", "delete");
    expect_as(&["on"], 0, &["Already on"]);
    assert_eq!(comparable(&live(plane).unwrap()), before);
    assert!(saved_copy(plane).is_none());
    plane.kubectl(&["delete", "clusterrole,clusterrolebinding", "switch-a", "switch-b"]);
}

const ACCOUNT: &str = r#"{"apiVersion": "v1", "kind": "List", "items": [
  {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "switch", "namespace": "spillway-system"}},
  {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "switch-a"},
   "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "switch-a"},
   "subjects": [{"kind": "ServiceAccount", "name": "switch", "namespace": "spillway-system"}]},
  {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "switch-b"},
   "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "switch-b"},
   "subjects": [{"kind": "ServiceAccount", "name": "switch", "namespace": "spillway-system"}]}]}"#;

#[test]
fn kubectl_runs_the_switch_as_its_plugin() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    install(plane, &[]);
    let dir = tempfile::tempdir().unwrap();
    symlink(env!("CARGO_BIN_EXE_spillway"), dir.path().join("kubectl-spillway")).unwrap();
    let path = format!("{}:{}", dir.path().display(), env::var("PATH").unwrap());
    for (args, words) in
        [(["off", "--context=test"], "Switched off"), (["on", "--namespace=spillway-system"], "Switched on")]
    {
        let mut kubectl = Command::new(&plane.program);
        kubectl.args(["kubectl", "spillway"]).args(args).env("PATH", &path).env("KUBECONFIG", &plane.kubeconfig);
        let (code, text) = exit_code_and_output(&kubectl.output().unwrap());
        assert!(code == 0 && text.contains(words), "{code} {text}");
    }
}
