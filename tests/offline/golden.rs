//! Golden pairs: a file of `tests/golden`, and Spillway's decision on it.
//!
//! `NAME.yaml` is a stream of documents: a pod or a workload and, where they matter, objects of the cluster (Namespace,
//! ServiceAccount, Node, NetworkPolicy) and the SpillwayConfiguration. `NAME.expected.yaml` contains decision, reasons and patch
//! of each pod, as the installed command prints them. To add a pair, write the first file and run `SPILLWAY_UPDATE_GOLDEN=1 cargo
//! test --test offline golden`, which rewrites every second file. Then review the difference.
//!
//! Every rule has at least two pairs: it fires in `CODE.fires.yaml`, and does not fire in `CODE.near-miss.yaml`, which is as close
//! as possible.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{LazyLock, Mutex},
    thread,
};

use serde_json::{Value, json};
use spillway::{
    burst::{self, ClusterContext, ServiceAccount, Verdict},
    config::{Configuration, Overrides},
    eligibility,
    pod::Pod,
};

const EXPECTED: &str = ".expected.yaml";

/// One pair. All tests use the same run of it.
struct Case {
    name: String,
    documents: Vec<Value>,
    /// The output of the command for each pod.
    explained: Vec<Value>,
    /// Its output for the patched pods.
    again: Vec<Value>,
}

/// The expected output for one pod.
#[derive(serde::Serialize)]
struct Expected {
    pod: String,
    decision: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    accepted: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    patch: Value,
}

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let names: Vec<_> = files().into_iter().filter(|name| !name.ends_with(EXPECTED)).collect();
    let (queue, cases) = (Mutex::new(names.into_iter()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let Some(file) = queue.lock().unwrap().next() else { break };
            let case = Case::play(&file);
            cases.lock().unwrap().push(case);
        }
    };
    thread::scope(|scope| [(); 4].map(|()| scope.spawn(work)).map(|thread| thread.join().unwrap()));
    let mut cases = cases.into_inner().unwrap();
    cases.sort_by(|one: &Case, other| one.name.cmp(&other.name));
    cases
});

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn files() -> BTreeSet<String> {
    fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

impl Case {
    fn play(file: &str) -> Self {
        let name = file.strip_suffix(".yaml").unwrap_or_else(|| panic!("tests/golden/{file}: expected a .yaml file"));
        let text = fs::read_to_string(folder().join(file)).unwrap();
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("tests/golden/{file}: {error}"));
        let explained = explain(file, &documents);
        let mut patched = documents.clone();
        let pods = patched.iter_mut().filter_map(pod_of);
        for (pod, one) in pods.zip(&explained) {
            let patch: json_patch::Patch = serde_json::from_value(one["patch"].clone()).unwrap();
            json_patch::patch(pod, &patch).unwrap_or_else(|error| panic!("tests/golden/{file}: the patch: {error}"));
        }
        let again = explain(file, &patched);
        Self { name: name.to_owned(), documents, explained, again }
    }

    /// Returns the content of the expected file.
    fn expected(&self) -> String {
        let text = |findings: &Value| {
            let one = |finding: &Value| {
                let (code, detail) = (finding["code"].as_str().unwrap(), finding["detail"].as_str().unwrap());
                if detail.is_empty() { code.to_owned() } else { format!("{code}: {detail}") }
            };
            findings.as_array().unwrap().iter().map(one).collect::<Vec<_>>()
        };
        let word = |one: &Value, key: &str| one[key].as_str().unwrap().to_owned();
        let pods = self.explained.iter().map(|one| Expected {
            pod: format!("{} {}/{}", word(one, "kind"), word(one, "namespace"), word(one, "name")),
            decision: word(one, "decision"),
            reasons: text(&one["reasons"]),
            accepted: text(&one["accepted"]),
            notes: text(&one["notes"]),
            patch: one["patch"].clone(),
        });
        serde_saphyr::to_string(&pods.collect::<Vec<_>>()).unwrap()
    }

    /// Returns the reasons, accepted or not.
    fn codes(&self) -> BTreeSet<String> {
        let lists = self.explained.iter().flat_map(|one| [&one["reasons"], &one["accepted"], &one["notes"]]);
        let codes = lists.flat_map(|list| list.as_array().unwrap()).map(|found| found["code"].as_str().unwrap());
        codes.map(str::to_owned).chain(self.codes_of_the_uncalled()).collect()
    }

    /// Reasons for pods that the webhook's registration excludes. `explain` knows them; the decision does not depend on them.
    fn codes_of_the_uncalled(&self) -> Vec<String> {
        let mut documents = self.documents.clone();
        let pods = documents.iter_mut().filter_map(pod_of).zip(&self.explained);
        let uncalled = pods.filter(|(_, one)| one["decision"] == "not called").map(|(pod, _)| pod.to_string());
        let configuration = Configuration::default();
        let settings = configuration.settings("enabled", &Overrides::default(), &Overrides::default());
        let found = uncalled.flat_map(|json| {
            let pod: Pod<'_> = serde_json::from_str(&json).unwrap();
            let decision = burst::decide(&pod, &settings, &ClusterContext::only(ServiceAccount::Unknown));
            let Verdict::Stay(findings) = decision.verdict else { return Vec::new() };
            findings.iter().map(|finding| finding.reason.code.to_owned()).collect()
        });
        found.collect()
    }
}

/// Returns the pod of a document, with metadata, if it has one.
fn pod_of(document: &mut Value) -> Option<&mut Value> {
    let path = match document["kind"].as_str()? {
        "Pod" => "",
        "Deployment" | "StatefulSet" | "ReplicaSet" | "DaemonSet" | "Job" => "/spec/template",
        "CronJob" => "/spec/jobTemplate/spec/template",
        _ => return None,
    };
    let pod = document.pointer_mut(path)?;
    if pod["metadata"].is_null() {
        pod["metadata"] = json!({}); // as the controller gives it one
    }
    Some(pod)
}

/// Runs `spillway explain` on the documents, with the configuration among them.
fn explain(file: &str, documents: &[Value]) -> Vec<Value> {
    let is_configuration = |document: &&Value| document["kind"] == "SpillwayConfiguration";
    let mut command = Command::new(env!("CARGO_BIN_EXE_spillway"));
    command.args(["explain", "-o", "json", "-f", "-"]).env_remove("SPILLWAY_CONFIG");
    let mut configuration = tempfile::NamedTempFile::new().unwrap();
    if let Some(document) = documents.iter().find(is_configuration) {
        configuration.write_all(document.to_string().as_bytes()).unwrap();
        command.arg("--config").arg(configuration.path());
    }
    let rest =
        documents.iter().filter(|d| !is_configuration(d)).map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that fails early does not read its input.
    let _ = child.stdin.take().unwrap().write_all(rest.as_bytes());
    let output = child.wait_with_output().unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("tests/golden/{file}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Fails with all problems at once.
fn assert_none(wrong: impl IntoIterator<Item = String>) {
    let wrong: Vec<_> = wrong.into_iter().collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn golden_every_case_gives_the_expected_answer() {
    let update = std::env::var_os("SPILLWAY_UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for case in &*CASES {
        let (path, actual) = (folder().join(format!("{}{EXPECTED}", case.name)), case.expected());
        if update {
            fs::write(&path, &actual).unwrap();
        } else if fs::read_to_string(&path).unwrap_or_default() != actual {
            wrong.push(format!("tests/golden/{}{EXPECTED}: now it is\n{actual}", case.name));
        }
    }
    assert_none(wrong);
}

#[test]
fn golden_every_file_belongs_to_a_case() {
    let files = files();
    let update = std::env::var_os("SPILLWAY_UPDATE_GOLDEN").is_some();
    let orphans = files.iter().filter_map(|file| match file.strip_suffix(EXPECTED) {
        Some(name) => Some(format!("{name}.yaml")).filter(|input| !files.contains(input)),
        None if update => None, // it is being written
        None => Some(file.replace(".yaml", EXPECTED)).filter(|expected| !files.contains(expected)),
    });
    assert_none(
        orphans.map(|missing| format!("tests/golden/{missing}: missing, but the other file of the pair exists")),
    );
}

#[test]
fn golden_a_second_decision_changes_nothing() {
    let mut wrong = Vec::new();
    for case in &*CASES {
        for (first, second) in case.explained.iter().zip(&case.again) {
            if first["decision"] != second["decision"] || second["patch"] != json!([]) {
                wrong.push(format!("tests/golden/{}.yaml: then {} {}", case.name, second["decision"], second["patch"]));
            }
        }
        assert_eq!(case.explained.len(), case.again.len(), "{}", case.name);
        assert!(case.documents.len() >= case.explained.len(), "{}", case.name);
    }
    assert_none(wrong);
}

#[test]
fn golden_every_rule_has_a_firing_case_and_a_near_miss() {
    let mut wrong = Vec::new();
    for rule in eligibility::rules() {
        let code = rule.reason.code;
        for (kind, fires) in [("fires", true), ("near-miss", false)] {
            let name = format!("{code}.{kind}");
            match CASES.iter().find(|case| case.name == name) {
                None => wrong.push(format!("tests/golden/{name}.yaml: missing")),
                Some(case) if case.codes().contains(code) != fires => {
                    let does = if fires { "does not fire" } else { "fires" };
                    wrong.push(format!("tests/golden/{name}.yaml: {code} {does}; found are {:?}", case.codes()));
                }
                Some(_) => {}
            }
        }
    }
    assert_none(wrong);
}

#[test]
fn golden_every_case_named_after_a_rule_has_its_rule() {
    let unknown = CASES.iter().filter_map(|case| {
        let code = case.name.strip_suffix(".fires").or_else(|| case.name.strip_suffix(".near-miss"))?;
        eligibility::rule(code).is_none().then(|| format!("tests/golden/{}.yaml: there is no rule {code}", case.name))
    });
    assert_none(unknown);
}
