//! The elected controller on a real API server, with the permissions of its own account.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use spillway::{
    certs::authority::CaSecret,
    controller::{Outcome, ca_rotation::AuthorityReconciler, events::EventRecorder},
    telemetry::ControllerMetrics,
};
use tokio::sync::Barrier;

use crate::harness::{AUTHORITY_SECRET, CONTROLLER_LEASE, Controller, InstalledSandbox, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_concurrent_controllers_create_one_authority() {
    let installed = InstalledSandbox::new();
    // A controller that is too late sees a conflict. A race without one proves nothing, so the test runs it again.
    while race(&installed).await == 0 {
        installed.delete_authority();
    }
}

/// Runs the race once, and returns the number of controllers that saw a conflict.
async fn race(installed: &InstalledSandbox) -> usize {
    let start = Arc::new(Barrier::new(20));
    let mut reconcilers = tokio::task::JoinSet::new();
    for index in 0..20 {
        let (client, start) = (installed.plane().client().await, start.clone());
        reconcilers.spawn(async move {
            let events = EventRecorder::new(client.clone(), &format!("racer-{index}"));
            let metrics = ControllerMetrics::default();
            let mut reconciler = AuthorityReconciler::new(client.clone(), "spillway-system", events, metrics);
            let mut outcomes = Vec::new();
            start.wait().await;
            while outcomes.last() != Some(&Outcome::UpToDate) {
                outcomes.push(reconciler.round().await.unwrap());
            }
            let secrets = kube::Api::<k8s_openapi::api::core::v1::Secret>::namespaced(client, "spillway-system");
            let data = secrets.get("spillway-ca").await.unwrap().data.unwrap();
            let data = data.into_iter().map(|(key, value)| (key, value.0)).collect();
            (outcomes, CaSecret::read(&data).unwrap().current.certificate().pem())
        });
    }
    let agreed = reconcilers.join_all().await;
    let made = agreed.iter().filter(|(outcomes, _)| outcomes.contains(&Outcome::Changed)).count();
    assert_eq!(made, 1, "{agreed:#?}");
    assert!(agreed.iter().all(|(_, authority)| *authority == agreed[0].1));
    agreed.iter().filter(|(outcomes, _)| outcomes.contains(&Outcome::Conflict)).count()
}

fn wait_for_leader(next: &Controller) {
    eventually("the other replica to act", || next.leads().then_some(()));
}

#[test]
fn one_replica_leads_and_another_takes_over() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let start = |name: &str| Controller::start(plane, name, &[]);
    let first = start("controller-first");
    eventually("the first replica to act", || first.leads().then_some(()));
    let mut second = start("controller-second");
    eventually("the second replica to stand by", || (second.admin("/readyz").0 == 200).then_some(()));
    assert!(first.leads() && !second.leads());

    let killed = Instant::now();
    first.signal("KILL");
    wait_for_leader(&second);
    let after = killed.elapsed();
    assert!(after > Duration::from_secs(5), "the lease of a replica that may be alive was taken after {after:?}");

    let third = start("controller-third");
    eventually("the third replica to stand by", || (third.admin("/readyz").0 == 200).then_some(()));
    assert!(second.leads() && !third.leads());
    second.signal("TERM");
    eventually("the second replica to end", || (!second.is_alive()).then_some(()));
    let releases = |line: &Value| line["message"] == "released the lease";
    assert!(second.log().iter().any(releases), "{:#?}", second.log());
    wait_for_leader(&third);
    let lease = plane.get(CONTROLLER_LEASE);
    assert_eq!(
        (&lease["spec"]["holderIdentity"], &lease["spec"]["leaseDurationSeconds"]),
        (&third.name.clone().into(), &15.into())
    );
}

#[test]
fn the_controller_survives_a_restart_of_the_api_server() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let mut controller = Controller::start(plane, "controller-restart", &[]);
    eventually("the replica to act", || controller.leads().then_some(()));
    plane.restart_api_server();
    assert_eq!(controller.admin("/healthz").0, 200);
    plane.delete(AUTHORITY_SECRET);
    eventually("the replica to continue", || plane.find(AUTHORITY_SECRET).map(drop));
    assert!(controller.is_alive());
}

#[test]
fn events_report_an_invalid_configuration_and_its_repair() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let file = plane.dir.join("controller-configuration.yaml");
    let good = "apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n";
    fs::write(&file, good).unwrap();
    let controller = Controller::start(plane, "controller-configuration", &["--config", file.to_str().unwrap()]);
    let wait_for_event = |wanted: &str| {
        eventually(wanted, || {
            let mut events = plane.events("spillway-system").into_iter();
            events.find(|e| e["reason"] == wanted && e["reportingInstance"] == "controller-configuration")
        })
    };
    fs::write(&file, format!("{good}modus: off\n")).unwrap();
    let event = wait_for_event("ConfigurationInvalid");
    let about = (&event["regarding"]["kind"], &event["regarding"]["name"], &event["type"]);
    assert_eq!(about, (&"ConfigMap".into(), &"spillway-config".into(), &"Warning".into()));
    assert!(event["note"].as_str().unwrap().contains("unknown field \"modus\""), "{event:#}");
    assert_eq!(controller.metric("spillway_configuration_last_reload_failed"), 1);
    fs::write(&file, good).unwrap();
    assert_eq!(wait_for_event("ConfigurationReloaded")["type"], "Normal");
    assert_eq!(controller.metric("spillway_configuration_last_reload_failed"), 0);
}
