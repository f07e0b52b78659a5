//! The command line: its output, streams and exit codes.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
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
        &[
            "explain",
            "-f",
            &example("deployment.yaml"),
            "-f",
            &example("nodes.yaml"),
            "--service-account",
            &account,
            "--profile",
            "high-scale",
        ],
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
fn explain_reads_cluster_state_from_documents_and_flags() {
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
        let parts = explained["parts"].as_array().unwrap().iter().filter(|part| part["outcome"] == "added");
        parts.map(|part| part["part"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(",")
    };
    assert_eq!(added(&decide(&[&pod], &[])), "toleration,affinity");
    let v2 = json!({"kind": "Node", "metadata": {"name": "v", "labels": {
        "type": "virtual-kubelet", "virtualization": "virtualnode2"}}});
    assert_eq!(added(&decide(&[&pod, &account, &v2], &[])), "toleration,affinity,identity-label");
    let unknown = decide(&[&pod, &account], &[]);
    assert_eq!(unknown["decision"], "stay: WorkloadIdentityUnavailable", "while no node is known, fit for both");
    let high_scale = namespace(json!({"spillway.dev/burst": "high-scale"}));
    assert_eq!(added(&decide(&[&pod, &high_scale], &[])), "toleration,affinity,kube-proxy,dns");
    let opt_out = ["--namespace-annotations", "spillway.dev/kube-proxy=opt-out,spillway.dev/identity-label=off"];
    let by_annotation = decide(&[&pod, &account], &opt_out);
    assert_eq!(added(&by_annotation), "toleration,affinity,kube-proxy,dns");
    let origin = json!({"name": "network.kubeProxy", "value": "opt-out", "origin": "namespace"});
    assert!(by_annotation["settings"].as_array().unwrap().contains(&origin), "{by_annotation}");
    assert_eq!(decide(&[&pod, &namespace(json!({}))], &[])["decision"], "not opted in");
    assert_eq!(decide(&[&pod], &["--profile", "enabeld"])["decision"], "stay: UnknownProfile");
    let typo = decide(&[&pod], &["--namespace-annotations", "spillway.dev/mode=perfer"]);
    assert!(typo["ignored"][0]["message"].as_str().unwrap().contains("did you mean \"prefer\""), "{typo}");
}

#[test]
fn wrong_usage_and_unreadable_input_exit_with_2() {
    for (args, stdin, expected) in [
        (&["explain"][..], "", "KIND/NAME"),
        (&["explain", "-f", "/nonexistent.yaml"], "", "cannot read /nonexistent.yaml"),
        (&["explain", "-f", "-"], "", "no pod and no workload"),
        (&["explain", "-f", "-"], "kind: Service\n", "no pod and no workload"),
        (&["explain", "-f", "-"], "kind: Pod\nspec: [\n", "error: -:2:7: unclosed bracket '['\n"),
        (&["explain", "-f", "-"], "{\"kind\": \"Pod\"", "error: -:1:1: unclosed bracket '{'\n"),
        (&["explain", "-f", "-"], "just words\n", "expected Kubernetes objects with a kind"),
        (&["explain", "-f", "-"], "kind: Deployment\nmetadata: {name: w}\n", "error: -: Deployment w: expected spec\n"),
        (&["explain", "-f", "-", "-o", "xml"], "", "xml"),
        (&["config", "validate", "/nonexistent.yaml"], "", "cannot read /nonexistent.yaml"),
        (&["webhook", "--self-signed", "--log-level", "inof"], "", "did you mean \"info\"?"),
        (
            &["webhook", "--self-signed", "--tls-cert-file", "a", "--tls-key-file", "b"],
            "",
            "--self-signed cannot be used with --tls-cert-file",
        ),
        (
            &["certs", "dev", "--out", "/dev/null/x", "--name", "bad name!"],
            "",
            "invalid value 'bad name!' for '--name <NAME>': expected a DNS name or an IP address",
        ),
        (
            &["webhook", "--tls-cert-file", "/nonexistent", "--tls-key-file", "/nonexistent"],
            "",
            "--tls-cert-file: cannot read",
        ),
        (&["certs", "dev", "--out", "/dev/null/x"], "", "--out: cannot create /dev/null/x"),
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
fn type_errors_name_file_object_path_and_expected_type() {
    let pod = |fields: &str| format!("kind: Pod\nmetadata: {{name: web}}\n{fields}\n");
    let deployment = "kind: Deployment\nmetadata: {name: w}\nspec: {template: {spec: {containers: [{name: 5}]}}}\n";
    for (text, expected) in [
        (pod(""), "Pod web: expected spec"),
        (pod("spec: null"), "Pod web: expected spec"),
        (pod("spec: []"), "Pod web: spec: expected a map of fields, got a list"),
        (
            pod("spec: {nodeSelector: {gpu: true}}"),
            "Pod web: spec.nodeSelector.gpu: expected a string, got boolean `true`; put it in quotes",
        ),
        (pod("spec: {hostNetwork: x}"), "Pod web: spec.hostNetwork: expected a boolean, got string \"x\""),
        (pod("spec: {containers: {}}"), "Pod web: spec.containers: expected a list, got map"),
        (
            deployment.to_owned(),
            "Deployment w: spec.template.spec.containers[0].name: expected a string, got integer `5`; put it in quotes",
        ),
        (deployment.replace("template: ", "x: "), "Deployment w: expected spec.template"),
        (
            format!("kind: Namespace\nmetadata: {{name: shop, labels: {{a: false}}}}\n---\n{}", pod("spec: {}")),
            "Namespace shop: metadata.labels.a: expected a string, got boolean `false`; put it in quotes",
        ),
        (
            format!(
                "kind: ServiceAccount\nmetadata: {{name: web, annotations: {{azure.workload.identity/client-id: 5}}}}\n---\n{}",
                pod("spec: {}")
            ),
            "ServiceAccount web: metadata.annotations.azure.workload.identity/client-id: \
             expected a string, got integer `5`; put it in quotes",
        ),
    ] {
        let ran = spillway(&["explain", "-f", "-"], &text);
        assert_eq!((ran.code, ran.stderr.as_str()), (2, format!("error: -: {expected}\n").as_str()), "{text}");
    }
    let twice = spillway(&["explain", "-f", "-"], "kind: Pod\nspec: {}\nspec: {}\n");
    assert_eq!((twice.code, twice.stderr.as_str()), (2, "error: -:3:1: duplicate field \"spec\"\n"));
}

#[test]
fn explain_takes_a_review_only_if_the_webhook_would() {
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u", "operation": "CREATE", "namespace": "shop", "dryRun": false, "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "object": {"metadata": {"generateName": "web-"}, "spec": {}}}});
    let with = |pointer: &str, value: Value| {
        let mut review = review.clone();
        *review.pointer_mut(pointer).unwrap() = value;
        review
    };
    let (code, explained) = explain_json(&["-f", "-"], &review.to_string());
    assert_eq!((code, &explained[0]["namespace"], &explained[0]["name"]), (0, &json!("shop"), &json!("web-*")));
    let mut update = with("/request/operation", json!("UPDATE"));
    update["request"]["oldObject"] = review["request"]["object"].clone();
    for (review, expected) in [
        (with("/apiVersion", json!("v2")), "expected kind AdmissionReview of admission.k8s.io/v1"),
        (
            with("/request/kind/kind", json!("Node")),
            "expected the creation or update of a v1 Pod, got \"CREATE\" of \"Node\"",
        ),
        (with("/request/uid", json!("")), "the review has no request with a uid"),
        (with("/request/object", Value::Null), "the review has no object"),
        (
            with("/request/object/spec", json!({"dnsPolicy": 1})),
            "request.object.spec.dnsPolicy: expected a string, got integer `1`",
        ),
        (with("/request/dryRun", json!(1)), "expected"),
        (update, "the request is an update; spillway explain supports only creations"),
    ] {
        let ran = spillway(&["explain", "-f", "-"], &review.to_string());
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{review}");
        assert!(ran.stderr.contains(expected) && !ran.stderr.contains("column"), "{}", ran.stderr);
    }
}

#[test]
fn explain_decides_nothing_where_the_webhook_is_not_called() {
    let pod = json!({"kind": "Pod", "metadata": {"name": "p"}, "spec": {}});
    let namespace =
        |name: &str, labels: Value| json!({"kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    let opted_in = |key: &str, value: &str| namespace("shop", json!({"spillway.dev/burst": "enabled", key: value}));
    for (namespaces, name, decision, reason) in [
        (vec![], "kube-system", "not called", "the webhook's configuration excludes namespace kube-system"),
        (vec![], "spillway-system", "not called", "the webhook's configuration excludes namespace spillway-system"),
        (
            vec![opted_in("control-plane", "true")],
            "shop",
            "not called",
            "the webhook's configuration excludes namespaces with the label control-plane: \"true\"",
        ),
        (
            vec![opted_in("kubernetes.azure.com/managedby", "aks")],
            "shop",
            "not called",
            "the webhook's configuration excludes namespaces with the label kubernetes.azure.com/managedby: \"aks\"",
        ),
        (
            vec![opted_in("spillway.dev/burst", "disabled")],
            "shop",
            "not opted in",
            "the webhook's configuration excludes namespaces with the label spillway.dev/burst: \"disabled\"",
        ),
        (
            vec![namespace("shop", json!({}))],
            "shop",
            "not opted in",
            "the namespace has no label spillway.dev/burst that names a profile",
        ),
    ] {
        let documents: Vec<_> = namespaces.iter().chain([&pod]).map(ToString::to_string).collect();
        let stdin = documents.join("\n---\n");
        let (code, explained) = explain_json(&["-f", "-", "-n", name], &stdin);
        let one = &explained[0];
        assert_eq!(
            (code, &one["decision"], &one["notCalled"], &one["patch"]),
            (0, &json!(decision), &json!(reason), &json!([]))
        );
        let text = spillway(&["explain", "-f", "-", "-n", name], &stdin).stdout;
        assert_eq!(text, format!("Pod {name}/p: {decision}\n  {reason}, so the API server does not call Spillway\n"));
    }
}

#[test]
fn explain_skips_unknown_kinds_with_a_note() {
    let stdin = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {}}\n---\n".to_owned()
        + "apiVersion: batch.volcano.sh/v1alpha1\nkind: Job\nmetadata: {name: v}\n---\n"
        + "apiVersion: example.com/v1\nkind: Deployment\nmetadata: {name: d}\n---\n"
        + "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: s}\n---\n"
        + "apiVersion: example.com/v1\nkind: AllowList\nmetadata: {name: a}\n";
    let ran = spillway(&["explain", "-f", "-", "-o", "patch"], &stdin);
    assert_eq!((ran.code, ran.stdout.lines().count()), (0, 1), "{}", ran.stderr);
    assert_eq!(
        ran.stderr,
        "skipped Job v: not a workload\nskipped Deployment d: not a workload\n\
         skipped Service s: not a workload\nskipped AllowList a: not a workload\n"
    );
}

#[test]
fn items_of_a_typed_list_take_its_kind() {
    let pod = json!({"metadata": {"name": "w"}, "spec": {}});
    let lists = [
        json!({"apiVersion": "v1", "kind": "PodList", "items": [pod]}),
        json!({"apiVersion": "apps/v1", "kind": "DeploymentList", "items": [{"spec": {"template": pod}}]}),
    ];
    let stdin = lists.map(|list| list.to_string()).join("\n");
    let (_, explained) = explain_json(&["-f", "-"], &stdin);
    let kinds: Vec<_> = explained.as_array().unwrap().iter().map(|one| &one["kind"]).collect();
    assert_eq!(kinds, ["Pod", "Deployment"]);
}

#[test]
fn the_deprecated_service_account_field_counts() {
    let account =
        "kind: ServiceAccount\nmetadata: {name: web, annotations: {azure.workload.identity/client-id: x}}\n---\n";
    let pod = |spec: &str| format!("{account}kind: Pod\nmetadata: {{name: p}}\nspec: {spec}\n");
    for (spec, is_added) in [
        ("{serviceAccount: web}", true),
        ("{serviceAccount: web, serviceAccountName: ''}", true),
        ("{serviceAccount: web, serviceAccountName: other}", false),
    ] {
        let patch = spillway(&["explain", "-f", "-", "-o", "patch"], &pod(spec)).stdout;
        assert_eq!(patch.contains("azure.workload.identity/use"), is_added, "{spec}: {patch}");
    }
}

#[test]
fn explain_decides_on_the_pod_template_and_shows_the_workload() {
    let v1 = "kind: Node\nmetadata: {name: v, labels: {type: virtual-kubelet}}\n---\n";
    let account = |automount: bool| {
        format!("kind: ServiceAccount\nmetadata: {{name: default}}\nautomountServiceAccountToken: {automount}\n---\n")
    };
    let web = |kind: &str, name: &str, spec: &str| {
        let template = format!("{{metadata: {{name: x}}, spec: {{containers: [{{name: web, image: nginx}}]{spec}}}}}");
        format!("{v1}kind: {kind}\nmetadata: {{name: {name}}}\nspec: {{template: {template}}}\n")
    };
    let longest = "w".repeat(38); // default-, ten of a hash, five of a pod, and two hyphens
    let codes = |found: &Value| {
        let found = found.as_array().unwrap().iter();
        found.map(|one| one["code"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(",")
    };
    for (text, reasons, notes) in [
        (web("Deployment", "web", ""), "", "ApiTokenUnavailable"),
        (web("Deployment", "web.dots", ""), "ContainerGroupName", "ApiTokenUnavailable"),
        (web("Deployment", &longest, ""), "", "ApiTokenUnavailable"),
        (web("Deployment", &format!("{longest}w"), ""), "ContainerGroupName", "ApiTokenUnavailable"),
        (web("ReplicaSet", &format!("{longest}w"), ""), "", "ApiTokenUnavailable"),
        (web("StatefulSet", "web.dots", ""), "ContainerGroupName", "ApiTokenUnavailable"),
        (web("Deployment", "web", ", automountServiceAccountToken: false"), "", ""),
        (account(false) + &web("Deployment", "web", ""), "", ""),
        (account(true) + &web("Deployment", "web", ""), "", "ApiTokenUnavailable"),
        (account(false) + &web("Deployment", "web", ", automountServiceAccountToken: true"), "", "ApiTokenUnavailable"),
    ] {
        let (_, explained) = explain_json(&["-f", "-"], &text);
        let seen = (codes(&explained[0]["reasons"]), codes(&explained[0]["notes"]));
        assert_eq!(seen, (reasons.to_owned(), notes.to_owned()), "{text}");
        let shown = spillway(&["explain", "-f", "-"], &text).stdout;
        let (_, diff) = shown.split_once("--- submitted").unwrap();
        assert!(!["kube-api-access", "generateName", "xxxxx"].iter().any(|made| diff.contains(made)), "{shown}");
        let patch = explained[0]["patch"].as_array().unwrap();
        assert!(!patch.iter().any(|step| step["path"].as_str().unwrap().contains("volumes")), "{patch:?}");
        assert_eq!(patch[0]["path"], "/metadata/annotations", "there are none in the manifest");
    }
}

/// Starts an API server that responds to GET of these paths, and forbids all other requests.
fn api_server(objects: Vec<(&'static str, Value)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while stream.read_line(&mut head).unwrap() > 2 {}
            let path = head.split([' ', '?']).nth(1).unwrap().to_owned();
            let found = objects.iter().find(|(of, _)| *of == path);
            let (status, body) = found.map_or_else(
                || {
                    (
                        "403 Forbidden",
                        json!({"kind": "Status", "status": "Failure", "message": "forbidden", "code": 403}),
                    )
                },
                |(_, object)| ("200 OK", object.clone()),
            );
            let body = body.to_string();
            let length = body.len();
            let head = "content-type: application/json\r\nconnection: close";
            write!(stream.get_mut(), "HTTP/1.1 {status}\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        }
    });
    format!("http://{address}")
}

#[test]
fn explain_names_what_it_was_forbidden_to_read() {
    let none = json!({"metadata": {}, "items": []});
    let template = json!({"spec": {"containers": [{"name": "web"}]}});
    let server = api_server(vec![
        (
            "/apis/apps/v1/namespaces/shop/deployments/web",
            json!({"metadata": {"name": "web"}, "spec": {"template": template}}),
        ),
        ("/api/v1/namespaces/shop", json!({"metadata": {"name": "shop", "labels": {"spillway.dev/burst": "enabled"}}})),
        ("/api/v1/namespaces/shop/serviceaccounts", none.clone()),
        ("/api/v1/namespaces/shop/services", none),
    ]);
    let kubeconfig = tempfile::NamedTempFile::new().unwrap();
    let cluster = json!([{"name": "c", "cluster": {"server": server}}]);
    let context = json!([{"name": "c", "context": {"cluster": "c", "user": "u"}}]);
    let users = json!([{"name": "u", "user": {}}]);
    let text = json!({"apiVersion": "v1", "kind": "Config", "clusters": cluster, "contexts": context, "users": users, "current-context": "c"});
    fs::write(kubeconfig.path(), text.to_string()).unwrap();
    let explain = |output: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spillway"));
        command.args(["explain", "deploy/web", "-n", "shop", "-o", output]).env("KUBECONFIG", kubeconfig.path());
        let ran = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert_eq!(ran.status.code(), Some(0), "{}", text(ran.stderr));
        text(ran.stdout)
    };
    let text = explain("text");
    for line in [
        "\n  network policies could not be read: isolation not checked\n",
        "\n  nodes could not be read: decided as if no virtual node were known\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert_eq!(text.matches("could not be read").count(), 2, "{text}");
    let json: Value = serde_json::from_str(&explain("json")).unwrap();
    assert_eq!(json[0]["notTakenIntoAccount"], json!(["nodes", "networkpolicies"]));
    let (_, offline) = explain_json(&["-f", "-"], "kind: Pod\nmetadata: {name: p}\nspec: {}\n");
    assert_eq!(offline[0]["notTakenIntoAccount"], json!([]));
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
    assert_eq!(
        (right.code, right.stdout.as_str()),
        (0, "-: valid, profiles: autoscaled, enabled, high-scale, night\n")
    );
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
fn certs_dev_writes_a_usable_pair_with_a_private_key_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/b");
    for _ in 0..2 {
        let ran = spillway(&["certs", "dev", "--out", out.to_str().unwrap(), "--name", "example.com"], "");
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    assert_eq!(fs::metadata(out.join("tls.key")).unwrap().permissions().mode() & 0o777, 0o600);
    spillway::certs::load_key_pair(&out.join("tls.crt"), &out.join("tls.key")).unwrap();
}

#[test]
fn a_failed_certs_dev_keeps_the_former_files() {
    let dir = tempfile::tempdir().unwrap();
    let run = || spillway(&["certs", "dev", "--out", dir.path().to_str().unwrap()], "");
    assert_eq!(run().code, 0);
    let read = || ["ca.crt", "tls.crt"].map(|name| fs::read_to_string(dir.path().join(name)).unwrap());
    let before = read();
    fs::rename(dir.path().join("tls.key"), dir.path().join("kept")).unwrap();
    fs::create_dir_all(dir.path().join("tls.key/in-the-way")).unwrap();
    let failed = run();
    assert_eq!(failed.code, 2);
    assert!(failed.stderr.contains("tls.key"), "{}", failed.stderr);
    assert!(read() == before, "certificates of another key");
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["ca.crt", "kept", "tls.crt", "tls.key"], "nothing half-written is left");
}

#[test]
fn a_flag_and_its_variable_mean_the_same() {
    let webhook = |args: &[&str], value: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spillway"));
        let output = command.arg("webhook").args(args).env("SPILLWAY_SELF_SIGNED", value).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let files = &["--tls-cert-file", "/nonexistent", "--tls-key-file", "/nonexistent"][..];
    for (args, value, expected) in [
        (&[][..], "maybe", "invalid value 'maybe' for '--self-signed'"),
        (files, "1", "--self-signed cannot be used with --tls-cert-file"),
        (files, "0", "--tls-cert-file: cannot read /nonexistent"),
    ] {
        assert!(webhook(args, value).contains(expected), "{value}: {}", webhook(args, value));
    }
}

/// Runs `spillway explain deploy/x` with a kubeconfig.
fn explain_live(kubeconfig: &str) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    fs::write(&path, kubeconfig).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_spillway"));
    command.args(["explain", "deploy/x"]).env("KUBECONFIG", &path).env_remove("KUBERNETES_SERVICE_HOST");
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn a_missing_kubeconfig_is_reported_once() {
    let broken = explain_live("clusters: {\n");
    assert_eq!(broken.code, 2);
    assert!(
        broken.stderr.starts_with("error: cannot find a cluster\n  cause: failed to infer config"),
        "{}",
        broken.stderr
    );
    assert!(!broken.stderr.contains("no kubeconfig"), "{}", broken.stderr);
    assert_eq!(broken.stderr.matches("failed to parse kubeconfig").count(), 1, "{}", broken.stderr);
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
fn a_closed_pipe_is_no_error() {
    let command = format!("{} config schema | head -1", env!("CARGO_BIN_EXE_spillway"));
    let output = Command::new("bash").args(["-o", "pipefail", "-c", &command]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn one_provider_of_cryptography_is_linked() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "-e", "normal,build", "-i", "ring"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&tree.stderr);
    // The lock file contains ring, which rustls does not need. A failing cargo also prints nothing, which would prove nothing.
    assert_eq!((tree.status.code(), tree.stdout.is_empty()), (Some(0), true), "{words}");
    assert!(words.contains("nothing to print"), "{words}");
}

#[test]
fn an_unreachable_cluster_is_an_error() {
    let ran = explain_live(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n\
         users: [{name: c, user: {}}]\ncontexts: [{name: c, context: {cluster: c, user: c}}]\n",
    );
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("Connection refused") && !ran.stderr.contains("panicked"), "{}", ran.stderr);
}

#[test]
fn every_reason_is_in_the_documentation() {
    let printed = spillway(&["explain", "--reasons"], "");
    let written = fs::read_to_string(root("docs/reasons.md")).unwrap();
    assert_eq!(printed.stdout, written, "fix with: cargo run -- explain --reasons >docs/reasons.md");
    for reason in spillway::burst::reasons::all() {
        assert!(written.contains(&format!("\n## {}\n", reason.code)), "{}", reason.code);
        let entry = spillway(&["explain", "--reason", reason.code], "");
        assert!(entry.code == 0 && entry.stdout.starts_with(&format!("{}: ", reason.code)), "{}", reason.code);
    }
    let unknown = spillway(&["explain", "--reason", "HostPathVolum"], "");
    assert_eq!(unknown.stderr, "error: --reason: unknown reason \"HostPathVolum\"; did you mean \"HostPathVolume\"?\n");
}
