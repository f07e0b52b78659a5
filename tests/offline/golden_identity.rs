//! Golden cases of `spillway identity check`: from manifests and credentials to the printed text.
//!
//! A case is a folder of `tests/golden_identity` with `manifests.yaml`, output of the Azure CLI in `*.json`, further arguments in
//! `args`, and in `expected.txt` the output and exit code of the command. `--credentials` names the JSON files unless `args` does.
//! The issuer is [`ISSUER`] unless `args` names another one (`--no-issuer` is an argument of the test: none). To add a case, write
//! all files but the last and run `SPILLWAY_UPDATE_GOLDEN=1 cargo test --test offline golden_identity`, which rewrites it for all
//! cases. Then review the difference.
//!
//! Every check has at least two cases: it finds something in `ID-found`, and nothing in `ID-not-found`, which is as close as
//! possible.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::LazyLock,
};

use serde_json::Value;
use spillway::identity;

const ISSUER: &str = "https://westeurope.oic.prod-aks.azure.com/11111111-2222-4333-8444-555555555555/aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee/";
const AT: &str = "2026-06-01T12:00:00Z";
const EXPECTED: &str = "expected.txt";

struct Case {
    name: String,
    text: String,
    /// The IDs of the findings.
    ids: BTreeSet<String>,
    /// The commands among the fixes.
    commands: Vec<String>,
}

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| folders().iter().map(|name| Case::play(name)).collect());

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden_identity")
}

fn entries(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn folders() -> BTreeSet<String> {
    entries(&root())
}

fn is_json(file: &str) -> bool {
    Path::new(file).extension().is_some_and(|extension| extension == "json")
}

/// Returns the arguments of a case after `identity check`.
fn arguments(folder: &Path) -> Vec<String> {
    let own = fs::read_to_string(folder.join("args")).unwrap_or_default();
    let mut arguments: Vec<String> = ["-f", "manifests.yaml", "--at", AT].map(str::to_owned).into();
    for file in entries(folder).into_iter().filter(|file| is_json(file) && !own.contains(file.as_str())) {
        arguments.extend(["--credentials".to_owned(), file]);
    }
    if !["--issuer", "--discovery", "--no-issuer"].iter().any(|flag| own.contains(flag)) {
        arguments.extend(["--issuer", ISSUER].map(str::to_owned));
    }
    arguments.extend(own.split_whitespace().filter(|word| *word != "--no-issuer").map(str::to_owned));
    arguments
}

/// Runs the command in the folder of the files, so that their names are short.
fn check(folder: &Path, output: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spillway"));
    command.args(["identity", "check", "-o", output]).args(arguments(folder)).current_dir(folder);
    command.output().unwrap()
}

impl Case {
    fn play(name: &str) -> Self {
        let folder = root().join(name);
        let (printed, json) = (check(&folder, "text"), check(&folder, "json"));
        let words = String::from_utf8(printed.stderr).unwrap();
        let words: String = words.lines().flat_map(|line| ["stderr: ", line, "\n"]).collect();
        let text = String::from_utf8(printed.stdout).unwrap();
        let text = format!("{text}{words}exit code: {}\n", printed.status.code().unwrap());
        let json: Value =
            serde_json::from_slice(&json.stdout).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
        let findings = json["findings"].as_array().unwrap();
        let ids = findings.iter().map(|finding| finding["id"].as_str().unwrap().to_owned()).collect();
        let fixes = findings.iter().flat_map(|finding| finding["fix"].as_str().unwrap().lines());
        let is_command = |line: &&str| ["az ", "kubectl ", "printf "].iter().any(|word| line.starts_with(word));
        let commands = fixes.filter(is_command).map(str::to_owned).collect();
        Self { name: name.to_owned(), text, ids, commands }
    }
}

/// Fails with all problems at once.
fn assert_none(wrong: impl IntoIterator<Item = String>) {
    let wrong: Vec<_> = wrong.into_iter().collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn golden_identity_every_case_prints_the_expected_report() {
    let update = std::env::var_os("SPILLWAY_UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for Case { name, text, .. } in &*CASES {
        let path = root().join(name).join(EXPECTED);
        if update {
            fs::write(&path, text).unwrap();
        } else if fs::read_to_string(&path).unwrap_or_default() != *text {
            wrong.push(format!("tests/golden_identity/{name}/{EXPECTED}: now it is\n{text}"));
        }
    }
    assert_none(wrong);
}

#[test]
fn golden_identity_every_check_has_positive_and_negative_cases() {
    let mut wrong = Vec::new();
    for check in identity::checks() {
        for (kind, is_found) in [("found", true), ("not-found", false)] {
            let name = format!("{}-{kind}", check.id);
            match CASES.iter().find(|case| case.name == name) {
                None => wrong.push(format!("tests/golden_identity/{name}: missing")),
                Some(case) if case.ids.contains(check.id) != is_found => {
                    wrong.push(format!("tests/golden_identity/{name}: found are {:?}", case.ids));
                }
                Some(_) => {}
            }
        }
    }
    assert_none(wrong);
}

#[test]
fn golden_identity_every_case_finds_what_its_name_says() {
    let wrong = CASES.iter().filter_map(|case| {
        let (id, rest) = case.name.split_once('-')?;
        let is_found = if rest.starts_with("found") {
            true
        } else if rest.starts_with("not-found") {
            false
        } else {
            return None;
        };
        let is_right = identity::check_of(id).is_some() && case.ids.contains(id) == is_found;
        (!is_right).then(|| format!("tests/golden_identity/{}: found are {:?}", case.name, case.ids))
    });
    assert_none(wrong);
}

/// Here `az` and `kubectl` are functions that accept anything.
#[test]
fn golden_identity_commands_are_safe_to_paste() {
    let dir = tempfile::tempdir().unwrap();
    let commands: Vec<_> = CASES.iter().flat_map(|case| &case.commands).map(String::as_str).collect();
    assert!(commands.len() > 40, "{}", commands.len());
    let script = format!("set -eu\naz() {{ :; }}\nkubectl() {{ :; }}\n{}\n", commands.join("\n"));
    // The search path contains no other program.
    let ran = Command::new("/bin/sh").args(["-c", &script]).env("PATH", dir.path()).output().unwrap();
    assert!(ran.status.success() && ran.stderr.is_empty(), "{}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn golden_identity_no_file_is_left_unused() {
    let update = std::env::var_os("SPILLWAY_UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for name in folders() {
        let folder = root().join(&name);
        let files = entries(&folder);
        for needed in ["manifests.yaml", EXPECTED] {
            let is_being_written = update && needed == EXPECTED;
            if !files.contains(needed) && !is_being_written {
                wrong.push(format!("tests/golden_identity/{name}/{needed}: missing"));
            }
        }
        let arguments = arguments(&folder);
        let is_used = |file: &str| {
            [EXPECTED, "args"].contains(&file)
                || arguments.iter().any(|word| word == file || word.ends_with(&format!("={file}")))
        };
        wrong.extend(
            files
                .iter()
                .filter(|file| !is_used(file))
                .map(|file| format!("tests/golden_identity/{name}/{file}: no case uses it")),
        );
    }
    assert_none(wrong);
}
