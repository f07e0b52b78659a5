//! The configuration file of a running webhook: broken, mended, changed.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    harness::{Pair, Webhook, control_plane, eventually, spillway_command},
    unusable::{place, review},
};

/// A ConfigMap volume as the kubelet makes it: files are links through `..data`, which is swapped.
pub(crate) struct Volume {
    dir: PathBuf,
    revision: u32,
}

impl Volume {
    pub(crate) fn new(name: &str, settings: &str) -> Self {
        let dir = control_plane().dir.join(name);
        fs::create_dir_all(&dir).unwrap();
        symlink("..data/config.yaml", dir.join("config.yaml")).unwrap();
        let mut volume = Self { dir, revision: 0 };
        volume.publish(settings);
        volume
    }

    pub(crate) fn publish(&mut self, settings: &str) {
        self.revision += 1;
        let revision = format!("..revision-{}", self.revision);
        fs::create_dir(self.dir.join(&revision)).unwrap();
        let text = format!("apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n{settings}\n");
        fs::write(self.dir.join(&revision).join("config.yaml"), text).unwrap();
        symlink(&revision, self.dir.join("..next")).unwrap();
        fs::rename(self.dir.join("..next"), self.dir.join("..data")).unwrap();
    }

    pub(crate) fn file(&self) -> String {
        self.dir.join("config.yaml").display().to_string()
    }
}

async fn decision(webhook: &Webhook, namespace: &str) -> String {
    let (_, answer) = webhook.https().review(review(namespace).to_string()).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    answer["response"]["auditAnnotations"]["decision"].as_str().unwrap().to_owned()
}

fn metric(webhook: &Webhook, name: &str) -> u64 {
    webhook.metric(&format!("spillway_configuration_{name}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_is_broken_and_then_mended_never_stops_the_webhook() {
    let (kubeconfig, namespace) = place();
    let mut volume = Volume::new("config-volume", "mode: require");
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
    let is_told = |line: &Value| line["error"].as_str().is_some_and(|error| error.starts_with(&expected));
    assert!(webhook.log().iter().any(is_told), "{expected}");

    let is_debug = |line: &Value| line["level"] == "DEBUG";
    assert!(!webhook.log().iter().any(is_debug));
    volume.publish("mode: prefer\nlogging: {level: debug}");
    eventually("the mended file to be in force", || (metric(&webhook, "generation") == 2).then_some(()));
    assert_eq!(
        (metric(&webhook, "last_reload_failed"), metric(&webhook, r#"reloads_total{result="success"}"#)),
        (0, 1)
    );
    assert_eq!(decision(&webhook, &namespace).await, "prefer");
    // The level follows a moment after the configuration; what is to be logged comes after it.
    let is_louder = |line: &Value| line["message"] == "log level changed";
    eventually("the level", || webhook.log().iter().any(is_louder).then_some(()));
    volume.publish("mode: prefer\nlogging: {level: debug}\nvirtualNodes: {selector: type=other}");
    let is_listed = |line: &Value| line["cache"] == "virtual nodes" && line["message"] == "cache filled";
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
        // Lines may wait to be written with others, until an error takes them along.
        attempt += 1;
        volume.publish(&format!("modus: {attempt}"));
        let since = eventually("an error to be told", || {
            let since = webhook.log().split_off(before);
            since.iter().any(|line| line["level"] == "ERROR").then_some(since)
        });
        (!since.iter().any(says)).then_some(())
    });
}

#[test]
fn a_configuration_that_cannot_be_used_is_loud_at_the_start() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("broken.yaml");
    fs::write(&file, json!({"modus": "prefer"}).to_string()).unwrap();
    let output = spillway_command().args(["webhook", "--self-signed", "--config"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains(&format!("error: {}:1:2: unknown field \"modus\"", file.display())), "{stderr}");
}

/// The controller follows it as well: were one of them to stay behind, the `caBundle` would not belong to the certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_source_of_certificates_is_taken_without_a_restart() {
    let (kubeconfig, namespace) = place();
    let [one, two] = ["source-one", "source-two"].map(|name| Pair::make(&control_plane().dir.join(name)));
    let files = |pair: &Pair| format!("certificates: {{source: files, directory: {}}}", pair.dir.display());
    let mut volume = Volume::new("source-volume", &files(&one));
    let mut webhook = Webhook::start_configured("sources", &kubeconfig, &["--config", &volume.file()]).ready();
    for pair in [&one, &two] {
        volume.publish(&files(pair));
        webhook.ca.clone_from(&pair.ca);
        let decided = async {
            let body = axum::body::Bytes::from(review(&namespace).to_string());
            // Until then the certificate is not trusted.
            while webhook.https().send("/mutate-v1-pod", "application/json", body.clone()).await.is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), decided).await.expect("the pair of the new source");
    }
}
