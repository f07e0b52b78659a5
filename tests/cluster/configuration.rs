//! The configuration file of a running webhook: invalid, fixed, changed.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    harness::{ConfigVolume, KeyPair, Webhook, control_plane, eventually, spillway_command},
    unusable::{review, webhook_account_and_namespace},
};

async fn decision(webhook: &Webhook, namespace: &str) -> String {
    let (_, answer) = webhook.https().review(review(namespace).to_string()).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    answer["response"]["auditAnnotations"]["decision"].as_str().unwrap().to_owned()
}

fn metric(webhook: &Webhook, name: &str) -> u64 {
    webhook.metric(&format!("spillway_configuration_{name}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_configuration_keeps_the_last_good_one() {
    let (kubeconfig, namespace) = webhook_account_and_namespace();
    let mut volume = ConfigVolume::new("config-volume", "mode: require");
    let webhook = Webhook::start_with("reloading", &kubeconfig, &["--config", &volume.file()]).ready();
    assert_eq!(decision(&webhook, &namespace).await, "require");
    assert_eq!((metric(&webhook, "generation"), metric(&webhook, "last_reload_failed")), (1, 0));
    let started = metric(&webhook, "last_success_timestamp_seconds");

    volume.publish("modus: prefer");
    eventually("the failure to be counted", || (metric(&webhook, "last_reload_failed") == 1).then_some(()));
    assert_eq!(metric(&webhook, r#"reloads_total{result="failure"}"#), 1);
    assert_eq!(metric(&webhook, "last_success_timestamp_seconds"), started);
    assert_eq!(decision(&webhook, &namespace).await, "require", "the last good one is kept");
    assert_eq!(webhook.admin("/readyz").0, 200);
    let expected = format!("{}:3:1: unknown field \"modus\"", volume.file());
    let is_logged = |line: &Value| line["error"].as_str().is_some_and(|error| error.starts_with(&expected));
    assert!(webhook.log().iter().any(is_logged), "{expected}");

    let is_debug = |line: &Value| line["level"] == "DEBUG";
    assert!(!webhook.log().iter().any(is_debug));
    volume.publish("mode: prefer\nlogging: {level: debug}");
    eventually("the fixed file to take effect", || (metric(&webhook, "generation") == 2).then_some(()));
    assert_eq!(
        (metric(&webhook, "last_reload_failed"), metric(&webhook, r#"reloads_total{result="success"}"#)),
        (0, 1)
    );
    assert_eq!(decision(&webhook, &namespace).await, "prefer");
    // The log level follows a moment after the configuration, so the test waits for it.
    let is_louder = |line: &Value| line["message"] == "log level changed";
    eventually("the level", || webhook.log().iter().any(is_louder).then_some(()));
    volume.publish("mode: prefer\nlogging: {level: debug}\nvirtualNodes: {selector: type=other}");
    let is_listed = |line: &Value| line["resource"] == "nodes" && line["message"] == "listed";
    eventually("the log at level debug, of the new list of nodes", || {
        webhook.log().iter().any(is_listed).then_some(())
    });

    volume.publish("logging: {level: error}");
    eventually("the next one", || (metric(&webhook, "generation") == 4).then_some(()));
    let says = |line: &Value| line["message"] == "pod reviewed";
    let mut attempt = 0;
    eventually("quiet", || {
        let before = webhook.log().len();
        let runtime = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| runtime.block_on(decision(&webhook, &namespace)));
        // Log lines may be buffered until an error flushes them.
        attempt += 1;
        volume.publish(&format!("modus: {attempt}"));
        let since = eventually("an error to be logged", || {
            let since = webhook.log().split_off(before);
            since.iter().any(|line| line["level"] == "ERROR").then_some(since)
        });
        (!since.iter().any(says)).then_some(())
    });
}

#[test]
fn an_invalid_configuration_fails_the_start() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("broken.yaml");
    fs::write(&file, json!({"modus": "prefer"}).to_string()).unwrap();
    let output = spillway_command().args(["webhook", "--self-signed", "--config"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains(&format!("error: {}:1:2: unknown field \"modus\"", file.display())), "{stderr}");
}

/// The controller follows the file as well: otherwise the `caBundle` would not match the certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_source_changes_without_a_restart() {
    let (kubeconfig, namespace) = webhook_account_and_namespace();
    let [one, two] = ["source-one", "source-two"].map(|name| KeyPair::generate(&control_plane().dir.join(name)));
    let files = |pair: &KeyPair| format!("certificates: {{source: files, directory: {}}}", pair.dir.display());
    let mut volume = ConfigVolume::new("source-volume", &files(&one));
    let mut webhook = Webhook::start_configured("sources", &kubeconfig, &["--config", &volume.file()]).ready();
    for pair in [&one, &two] {
        volume.publish(&files(pair));
        webhook.ca.clone_from(&pair.ca);
        let decided = async {
            let body = axum::body::Bytes::from(review(&namespace).to_string());
            // Until then the client does not trust the certificate.
            while webhook.https().send("/mutate-v1-pod", "application/json", body.clone()).await.is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), decided).await.expect("the pair of the new source");
    }
}
