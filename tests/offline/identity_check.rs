//! `spillway identity check`: formats for programs, exit codes, and refused input.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use spillway::identity;

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn check(args: &[&str], stdin: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spillway"));
    command.args(["identity", "check"]).args(args);
    command.env("KUBECONFIG", "/nonexistent/kubeconfig").env_remove("KUBERNETES_SERVICE_HOST");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that fails early does not read its input.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn case(name: &str, file: &str) -> String {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden_identity").join(name);
    folder.join(file).to_str().unwrap().to_owned()
}

const SUBSCRIPTION: &str = "99999999-8888-4777-8666-555555555555";
const ISSUER: &str = "https://westeurope.oic.prod-aks.azure.com/11111111-2222-4333-8444-555555555555/aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee/";

/// Runs a case with a missing slash, and a service account whose name every format must escape.
fn slash(args: &[&str]) -> Ran {
    let files = ["manifests.yaml", "identities.json", "id-web.json"].map(|file| case("F3-found", file));
    let [manifests, identities, credentials] = files.each_ref().map(String::as_str);
    let fixed =
        ["-f", manifests, "-f", "-", "--credentials", identities, "--credentials", credentials, "--issuer", ISSUER];
    let other = r#"{"kind": "ServiceAccount", "metadata": {"namespace": "shop", "name": "<&\"\u001b>", "annotations": {"azure.workload.identity/client-id": "x"}}}"#;
    check(&[&fixed[..], args].concat(), other)
}

#[test]
fn identity_check_output_is_the_same_in_json_yaml_and_text() {
    let json = slash(&["-o", "json"]);
    assert_eq!(json.code, 1);
    let read: Value = serde_json::from_str(&json.stdout).unwrap();
    let yaml: Value = serde_saphyr::from_str(&slash(&["-o", "yaml"]).stdout).unwrap();
    assert_eq!(read, yaml);
    assert_eq!(read["summary"], json!({"error": 2}));
    let found = read["findings"].as_array().unwrap().iter().find(|finding| finding["id"] == "F3").unwrap();
    assert_eq!(found["object"], json!({"kind": "ServiceAccount", "namespace": "shop", "name": "web"}));
    assert_eq!(found["serviceAccount"], json!({"namespace": "shop", "name": "web"}));
    assert_eq!(found["file"], case("F3-found", "manifests.yaml"));
    let difference = &found["evidence"][0];
    assert_eq!((&difference["expected"], &difference["differsAt"]), (&json!(ISSUER), &json!(ISSUER.len() - 1)));
    assert!(found["fix"].as_str().unwrap().starts_with("az identity federated-credential update --name shop-web "));
    let names: Vec<_> = read["serviceAccounts"].as_array().unwrap().iter().map(|one| &one["worst"]).collect();
    assert_eq!(names, ["error", "error"]);
}

#[test]
fn identity_check_sarif_names_files_and_rules() {
    let sarif: Value = serde_json::from_str(&slash(&["-o", "sarif"]).stdout).unwrap();
    assert_eq!(sarif["version"], "2.1.0");
    let run = &sarif["runs"][0];
    let rules: Vec<_> =
        run["tool"]["driver"]["rules"].as_array().unwrap().iter().map(|rule| rule["id"].clone()).collect();
    assert_eq!(rules.len(), identity::checks().count());
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    let mut fingerprints = Vec::new();
    for result in results {
        assert!(rules.contains(&result["ruleId"]), "{result:#}");
        assert_eq!(result["level"], "error");
        assert!(!result["message"]["text"].as_str().unwrap().is_empty());
        fingerprints.push(result["partialFingerprints"]["object/v1"].as_str().unwrap());
    }
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), 2, "each finding has its own");
    let located = results.iter().find(|result| result["ruleId"] == "F3").unwrap();
    let physical = &located["locations"][0]["physicalLocation"];
    assert!(
        physical["artifactLocation"]["uri"]
            .as_str()
            .unwrap()
            .ends_with("tests/golden_identity/F3-found/manifests.yaml")
    );
    let from_stdin = results.iter().find(|result| result["ruleId"] == "S5").unwrap();
    assert!(from_stdin["locations"][0].get("physicalLocation").is_none(), "standard input is no file");
}

#[test]
fn identity_check_junit_failures_match_the_exit_code() {
    let count = |ran: &Ran, what: &str| ran.stdout.matches(what).count();
    let ran = slash(&["-o", "junit"]);
    assert!(ran.stdout.starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites"), "{}", ran.stdout);
    assert!(ran.stdout.contains("<testsuite name=\"shop\" tests=\"2\" failures=\"2\""), "{}", ran.stdout);
    assert_eq!((count(&ran, "<failure "), count(&ran, "</failure>")), (2, 2), "{}", ran.stdout);
    assert!(ran.stdout.contains("&lt;&amp;&quot;\\u{1b}&gt;"), "{}", ran.stdout);
    let opened = count(&ran, "<testcase ") - count(&ran, "/>\n");
    assert_eq!(opened, count(&ran, "</testcase>"));

    let manifests = case("S1-found", "manifests.yaml");
    let warned = check(&["-f", &manifests, "-o", "junit"], "");
    assert_eq!(
        (warned.code, count(&warned, "<failure "), count(&warned, "<system-out>")),
        (0, 0, 1),
        "{}",
        warned.stdout
    );
    let strict = check(&["-f", &manifests, "-o", "junit", "--fail-on", "warning"], "");
    assert_eq!((strict.code, count(&strict, "<failure ")), (1, 1));

    let unknown = case("F0-found", "manifests.yaml");
    let identities = case("F0-found", "identities.json");
    let args =
        ["-f", &unknown, "--credentials", &identities, "--issuer", ISSUER, "-o", "junit", "--fail-on", "warning"];
    let ran = check(&args, "");
    assert_eq!((ran.code, count(&ran, "<skipped ")), (0, 1), "unknown facts are no findings: {}", ran.stdout);
}

#[test]
fn identity_check_reports_only_what_was_asked_for() {
    let account = |namespace: &str, name: &str| {
        json!({"kind": "ServiceAccount", "metadata": {"namespace": namespace, "name": name,
            "annotations": {"azure.workload.identity/client-id": "x"}}})
        .to_string()
    };
    let stdin = [account("shop", "web"), account("shop", "worker"), account("billing", "web")].join("\n");
    let found = |args: &[&str]| {
        let ran = check(&[&["-f", "-", "-o", "json"], args].concat(), &stdin);
        let read: Value = serde_json::from_str(&ran.stdout).unwrap();
        let names = read["findings"].as_array().unwrap().iter().map(|finding| {
            let name = &finding["serviceAccount"];
            format!("{}/{}", name["namespace"].as_str().unwrap(), name["name"].as_str().unwrap())
        });
        names.collect::<Vec<_>>()
    };
    assert_eq!(found(&[]), ["billing/web", "shop/web", "shop/worker"]);
    assert_eq!(found(&["-n", "shop"]), ["shop/web", "shop/worker"]);
    assert_eq!(found(&["--service-account", "web"]), ["billing/web", "shop/web"]);
    assert_eq!(found(&["-n", "shop", "--service-account", "web"]), ["shop/web"]);
    let ran = check(&["-f", "-", "--service-account", "wokrer"], &stdin);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("no service account \"wokrer\" among the manifests; did you mean \"worker\"?"),
        "{}",
        ran.stderr
    );
}

#[test]
fn identity_check_explains_error_codes() {
    let ran = check(&["--explain", "AADSTS700213"], "");
    assert_eq!(ran.code, 0);
    for text in ["AADSTS700213: no federated credential has the token", "\n  F2 ", "\n  F4 "] {
        assert!(ran.stdout.contains(text), "{text}\n{}", ran.stdout);
    }
    let pasted = check(
        &["--explain", "{\"error\":\"invalid_client\",\"error_description\":\"AADSTS700212: No match. Trace ID: 7\"}"],
        "",
    );
    assert!(pasted.stdout.starts_with("AADSTS700212: "), "{}", pasted.stdout);
    let unknown = check(&["--explain", "AADSTS700231"], "");
    assert_eq!(unknown.code, 2);
    assert!(unknown.stderr.contains("did you mean \"AADSTS700213\"?"), "{}", unknown.stderr);
}

#[test]
fn identity_check_refuses_unusable_input_with_a_hint() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "[{\"issuer\": 5}]").unwrap();
    let path = file.path().to_str().unwrap();
    let none = "{kind: ServiceAccount, metadata: {name: web}}";
    let identity = format!("00000000-1111-4222-8333-444444444444={path}");
    for (args, stdin, expected) in [
        (&[][..], "", "cannot find a cluster"),
        (&["-f", "/nonexistent.yaml"], "", "cannot read /nonexistent.yaml"),
        (&["-f", "-"], "just words\n", "expected Kubernetes objects with a kind"),
        (
            &["-f", "-"],
            "{kind: ServiceAccount, metadata: {name: web, annotations: {azure.workload.identity/client-id: 5}}}",
            "ServiceAccount web: metadata.annotations.azure.workload.identity/client-id: expected a string, got integer `5`; put it in quotes",
        ),
        (
            &["-f", "-"],
            "{kind: Pod, metadata: {name: p}, spec: {hostNetwork: x}}",
            "Pod p: spec.hostNetwork: expected a boolean",
        ),
        (&["-f", "-", "--credentials", path], none, "[0].issuer: expected a string, got integer `5`"),
        (&["-f", "-", "--identity", &identity], none, "[0].issuer: expected a string, got integer `5`"),
        (&["-f", "-", "--identity", "web=x.json"], none, "expected a client id before \"=\""),
        (&["-f", "-", "--identity", "x.json"], none, "expected CLIENT_ID=FILE"),
        (&["-f", "-", "--discovery", path], none, "expected an OpenID discovery document"),
        (&["-f", "-", "--cloud", "germany"], none, "us-government"),
        (&["-f", "-", "--at", "yesterday"], none, "--at"),
        (&["--issuer", "x", "--findings"], "", "cannot be used with '--findings'"),
        (&["-f", "-", "--subscription", SUBSCRIPTION], none, "'--subscription <ID>' cannot be used with"),
        (&["--subscription", "Pay as you go"], "", "expected a subscription id"),
        (&["--resource-id", "web=/subscriptions/s"], "", "expected CLIENT_ID=RESOURCE_ID"),
        (&["--token", "-n", "shop"], "", "--service-account"),
        (&["--token", "-n", "shop", "--service-account", "web", "-o", "junit"], "", "text, json or yaml"),
        (&["--whole-cluster"], "", "--filename"),
    ] {
        let ran = check(args, stdin);
        assert_eq!(ran.code, 2, "{args:?}: {} {}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(expected), "{args:?}\n  expected: {expected}\n  got: {}", ran.stderr);
        assert_eq!(ran.stdout, "", "{args:?}");
    }
}
