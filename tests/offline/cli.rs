//! The command line: what it prints, where, and how it exits.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn spillway(args: &[&str], stdin: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_spillway"))
        .args(args)
        .env("RUST_BACKTRACE", "1") // must not show
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails early does not read its input.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn example(name: &str) -> String {
    root("examples").join(name).to_str().unwrap().to_owned()
}

fn explain_json(args: &[&str], stdin: &str) -> (i32, Value) {
    let ran = spillway(&[&["explain", "-o", "json"], args].concat(), stdin);
    (ran.code, serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{} {}", ran.stdout, ran.stderr)))
}

#[test]
fn explain_shows_decision_reasons_and_change_of_the_examples() {
    let account = example("serviceaccount.yaml");
    let ran = spillway(
        &["explain", "-f", &example("deployment.yaml"), "--service-account", &account, "--profile", "high-scale"],
        "",
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for line in [
        "Deployment default/web: prefer",
        "identity-label  added",
        "+   tolerations:",
        "network.kubeProxy=opt-out (profile)",
    ] {
        assert!(ran.stdout.contains(line), "{line}\n{}", ran.stdout);
    }
    let windows = spillway(&["explain", "-f", &example("pod-windows.yaml")], "");
    assert_eq!(windows.code, 1, "a refusal");
    assert!(
        windows.stdout.contains("stay: Windows") && windows.stdout.contains("Windows: virtual nodes run Linux only")
    );
}

#[test]
fn explain_reads_every_kind_that_makes_pods() {
    let template = json!({"spec": {"containers": []}});
    let workload = |kind: &str| json!({"kind": kind, "metadata": {"name": "w"}, "spec": {"template": template}});
    let items: Vec<_> = ["Deployment", "StatefulSet", "ReplicaSet", "Job", "DaemonSet"].map(workload).into();
    let stream = [
        json!({"kind": "List", "items": items}),
        json!({"kind": "CronJob", "metadata": {"name": "w"}, "spec": {"jobTemplate": {"spec": {"template": template}}}}),
        json!({"kind": "PodList", "items": [{"kind": "Pod", "metadata": {"name": "w"}, "spec": {}}]}),
        json!({"kind": "Service", "metadata": {"name": "w"}}),
    ];
    let text = stream.map(|document| document.to_string()).join("\n---\n");
    for stdin in [format!("---\n{text}\n---\n"), text.replace("\n---\n", "\n")] {
        let (code, explained) = explain_json(&["-f", "-"], &stdin);
        let seen: Vec<_> = explained.as_array().unwrap().iter().map(|one| [&one["kind"], &one["decision"]]).collect();
        assert_eq!(
            json!(seen),
            json!([
                ["Deployment", "prefer"],
                ["StatefulSet", "prefer"],
                ["ReplicaSet", "prefer"],
                ["Job", "prefer"],
                ["DaemonSet", "stay: DaemonSet"],
                ["CronJob", "prefer"],
                ["Pod", "prefer"],
            ])
        );
        assert_eq!(code, 1, "the DaemonSet is a refusal");
    }
}

#[test]
fn explain_takes_from_documents_and_flags_what_the_cluster_would_know() {
    let pod =
        json!({"kind": "Pod", "metadata": {"name": "p", "namespace": "shop"}, "spec": {"serviceAccountName": "web"}});
    let account = json!({"kind": "ServiceAccount", "metadata": {"name": "web", "namespace": "shop",
        "annotations": {"azure.workload.identity/client-id": "x"}}});
    let namespace = |label: Value| json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": label}});
    let decide = |documents: &[&Value], args: &[&str]| {
        let stdin = documents.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n---\n");
        explain_json(&[&["-f", "-"], args].concat(), &format!("---\n{stdin}")).1[0].clone()
    };
    let added = |explained: &Value| {
        let parts = explained["parts"].as_array().unwrap().iter().filter(|part| part["added"] == true);
        parts.map(|part| part["part"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(",")
    };
    assert_eq!(added(&decide(&[&pod], &[])), "toleration,affinity");
    assert_eq!(added(&decide(&[&pod, &account], &[])), "toleration,affinity,identity-label");
    let high_scale = namespace(json!({"spillway.dev/burst": "high-scale"}));
    assert_eq!(added(&decide(&[&pod, &high_scale], &[])), "toleration,affinity,kube-proxy,dns");
    let opt_out = ["--namespace-annotations", "spillway.dev/kube-proxy=opt-out,spillway.dev/identity-label=off"];
    let by_annotation = decide(&[&pod, &account], &opt_out);
    assert_eq!(added(&by_annotation), "toleration,affinity,kube-proxy,dns");
    assert_eq!(by_annotation["settings"]["network.kubeProxy"]["origin"], "namespace annotation");
    assert_eq!(decide(&[&pod, &namespace(json!({}))], &[])["decision"], "not opted in");
    assert_eq!(decide(&[&pod], &["--profile", "enabeld"])["decision"], "stay: UnknownProfile");
    let typo = decide(&[&pod], &["--namespace-annotations", "spillway.dev/mode=perfer"]);
    assert!(typo["ignored"][0]["message"].as_str().unwrap().contains("did you mean \"prefer\""), "{typo}");
}

#[test]
fn wrong_use_and_unreadable_input_exit_with_2_and_say_what_is_wrong() {
    for (args, stdin, expected) in [
        (&["explain"][..], "", "--filename"),
        (&["explain", "-f", "/nonexistent.yaml"], "", "cannot read /nonexistent.yaml"),
        (&["explain", "-f", "-"], "", "no pod and no workload"),
        (&["explain", "-f", "-"], "kind: Service\n", "no pod and no workload"),
        (&["explain", "-f", "-"], "kind: Pod\nspec: [\n", "-: unclosed bracket '[' at line 2, column 7"),
        (&["explain", "-f", "-"], "{\"kind\": \"Pod\"", "- is not JSON"),
        (&["explain", "-f", "-"], "just words\n", "expected Kubernetes objects with a kind"),
        (
            &["explain", "-f", "-"],
            "kind: Deployment\nmetadata: {name: w}\n",
            "Deployment w: expected a pod at /spec/template",
        ),
        (&["explain", "-f", "-"], "kind: Pod\nmetadata: {labels: [a]}\nspec: {}\n", "cannot be read as a pod"),
        (&["explain", "-f", "-", "-o", "xml"], "", "xml"),
        (&["config", "validate", "/nonexistent.yaml"], "", "cannot read /nonexistent.yaml"),
        (&["webhook"], "", "--tls-cert-file"),
        (
            &["webhook", "--tls-cert-file", "/nonexistent", "--tls-key-file", "/nonexistent"],
            "",
            "--tls-cert-file: cannot read",
        ),
        (&["certs", "dev", "--out", "/dev/null/x"], "", "--out: cannot make /dev/null/x"),
        (&["nonsense"], "", "nonsense"),
    ] {
        let ran = spillway(args, stdin);
        assert_eq!(ran.code, 2, "{args:?}: {} {}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(expected), "{args:?}\n  expected: {expected}\n  got: {}", ran.stderr);
        assert_eq!(ran.stdout, "", "{args:?}");
        assert!(!ran.stderr.contains("backtrace"), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn config_validate_names_file_line_and_nearest_name() {
    let head = "apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n";
    let wrong = spillway(&["config", "validate", "-"], &format!("{head}network: {{kubeproxy: keep}}\n"));
    assert_eq!(wrong.code, 2);
    assert_eq!(
        wrong.stderr,
        "error: -:3:11: unknown field \"kubeproxy\", expected \"kubeProxy\" or \"dns\"; did you mean \"kubeProxy\"?\n"
    );
    let right = spillway(&["config", "validate", "-"], &format!("{head}profiles: {{night: {{mode: off}}}}\n"));
    assert_eq!((right.code, right.stdout.as_str()), (0, "-: valid, profiles: enabled, high-scale, night\n"));
}

#[test]
fn config_show_prints_what_validate_accepts() {
    let shown = spillway(&["config", "show"], "");
    assert!(shown.stdout.contains("mode: prefer") && shown.stdout.contains("selector: type=virtual-kubelet"));
    let again = spillway(&["config", "show", "-"], &shown.stdout);
    assert_eq!(again.stdout, shown.stdout);
}

#[test]
fn the_manifests_configuration_is_the_default() {
    let manifest: Value =
        serde_saphyr::from_str(&fs::read_to_string(root("manifests/base/configmap.yaml")).unwrap()).unwrap();
    let shown = spillway(&["config", "show", "-"], manifest["data"]["config.yaml"].as_str().unwrap());
    assert_eq!(shown.stdout, spillway(&["config", "show"], "").stdout, "{}", shown.stderr);
}

#[test]
fn certs_dev_writes_a_pair_that_serves_and_a_key_that_only_its_owner_reads() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/b");
    for _ in 0..2 {
        let ran = spillway(&["certs", "dev", "--out", out.to_str().unwrap(), "--name", "example.com"], "");
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    assert_eq!(fs::metadata(out.join("tls.key")).unwrap().permissions().mode() & 0o777, 0o600);
    spillway::certs::from_files(&out.join("tls.crt"), &out.join("tls.key")).unwrap();
}

#[test]
fn every_command_has_a_help_text() {
    for args in [
        &[][..],
        &["webhook"],
        &["explain"],
        &["config"],
        &["config", "validate"],
        &["config", "show"],
        &["certs"],
        &["certs", "dev"],
        &["completions"],
    ] {
        let ran = spillway(&[args, &["--help"]].concat(), "");
        assert_eq!(ran.code, 0, "{args:?}");
        assert!(ran.stdout.contains("Usage: spillway"), "{args:?}: {}", ran.stdout);
    }
    assert!(spillway(&["completions", "bash"], "").stdout.contains("_spillway"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let command = format!("{} config schema | head -1", env!("CARGO_BIN_EXE_spillway"));
    let output = Command::new("bash").args(["-o", "pipefail", "-c", &command]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn one_provider_of_cryptography_is_installed() {
    // A second one in the tree, or none installed, panics at the first handshake: proved by a pair that can be made at all.
    assert_eq!(spillway(&["certs", "dev", "--out", tempfile::tempdir().unwrap().path().to_str().unwrap()], "").code, 0);
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "-e", "normal,build", "-i", "ring"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&tree.stdout), "", "ring is linked");
}
