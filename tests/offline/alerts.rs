//! The alerts and the dashboard: they can be parsed, fire when they should, and link to a section of the runbook.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(project(path)).unwrap()
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&text(path)).unwrap()
}

fn rules() -> Value {
    yaml("manifests/monitoring/prometheusrule.yaml")["spec"].clone()
}

fn alerts() -> Vec<Value> {
    let groups = rules()["groups"].as_array().unwrap().clone();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

#[test]
fn every_alert_has_a_runbook_section_and_vice_versa() {
    let runbook = text("docs/runbook.md");
    let sections: BTreeSet<_> =
        runbook.lines().filter_map(|line| line.strip_prefix("### ")).filter(|s| s.starts_with("Spillway")).collect();
    let alerts = alerts();
    let names: BTreeSet<_> = alerts.iter().map(|alert| alert["alert"].as_str().unwrap()).collect();
    assert_eq!(sections, names);
    for alert in &alerts {
        let anchor = format!("docs/runbook.md#{}", alert["alert"].as_str().unwrap().to_lowercase());
        assert_eq!(alert["annotations"]["runbook"], anchor, "{alert:#}");
    }
}

#[test]
fn every_alert_is_tested_with_firing_and_near_miss_series() {
    let tests = yaml("manifests/monitoring/tests.yaml");
    let names: BTreeSet<_> =
        tests["tests"].as_array().unwrap().iter().map(|test| test["name"].as_str().unwrap()).collect();
    for alert in alerts() {
        for outcome in ["fires", "stays quiet"] {
            let name = format!("{} {outcome}", alert["alert"].as_str().unwrap());
            assert!(names.contains(name.as_str()), "no test \"{name}\" in manifests/monitoring/tests.yaml");
        }
    }
}

/// Needs promtool. Without it the test prints so and checks nothing.
#[test]
fn alerts_fire_when_they_should() {
    if Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("skipped: promtool is not installed (Debian: apt-get install prometheus)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("rules.yaml"), rules().to_string()).unwrap();
    fs::write(dir.path().join("tests.yaml"), text("manifests/monitoring/tests.yaml")).unwrap();
    for arguments in [["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]] {
        let ran = Command::new("promtool").args(arguments).current_dir(dir.path()).output().unwrap();
        let output = [ran.stdout, ran.stderr].concat();
        assert!(ran.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&output));
    }
}

#[test]
fn the_dashboard_shows_only_what_its_data_source_can_answer() {
    let dashboard: Value = serde_json::from_str(&text("manifests/monitoring/dashboard.json")).unwrap();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "two panels of one id: {panel:#}");
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel:#}");
        assert!(!panel["targets"].as_array().unwrap().is_empty(), "{panel:#}");
    }
}
