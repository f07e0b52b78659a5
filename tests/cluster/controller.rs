//! The elected controller, on the real API server and with the permissions of its own account.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use spillway::{
    certs::authority::Stored,
    controller::{Outcome, authority::AuthorityReconciler, events::EventRecorder},
    telemetry::ControllerMetrics,
};
use tokio::sync::Barrier;

use crate::{
    certificates::Installed,
    harness::{Controller, eventually},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_replicas_at_once_create_one_authority() {
    let installed = Installed::new();
    // Who is too late is told by a conflict; a race in which nobody was is none, and is run again.
    while race(&installed).await == 0 {
        installed.clear_authority();
    }
}

/// Lets them race once, and tells how many came too late.
async fn race(installed: &Installed) -> usize {
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
            (outcomes, Stored::read(&data).unwrap().current.certificate().pem())
        });
    }
    let agreed = reconcilers.join_all().await;
    let made = agreed.iter().filter(|(outcomes, _)| outcomes.contains(&Outcome::Changed)).count();
    assert_eq!(made, 1, "{agreed:#?}");
    assert!(agreed.iter().all(|(_, authority)| *authority == agreed[0].1));
    agreed.iter().filter(|(outcomes, _)| outcomes.contains(&Outcome::Conflict)).count()
}

fn takes_over(next: &Controller) {
    eventually("the other replica to act", || next.leads().then_some(()));
}

#[test]
fn one_of_two_replicas_acts_and_the_other_takes_over() {
    let installed = Installed::new();
    let plane = installed.plane();
    let start = |name: &str| Controller::start(plane, name, &[]);
    let first = start("controller-first");
    eventually("the first replica to act", || first.leads().then_some(()));
    let mut second = start("controller-second");
    eventually("the second replica to stand by", || (second.admin("/readyz").0 == 200).then_some(()));
    assert!(first.leads() && !second.leads());

    let killed = Instant::now();
    first.signal("KILL");
    takes_over(&second);
    let after = killed.elapsed();
    assert!(after > Duration::from_secs(5), "the lease of a replica that may be alive was taken after {after:?}");

    let third = start("controller-third");
    eventually("the third replica to stand by", || (third.admin("/readyz").0 == 200).then_some(()));
    assert!(second.leads() && !third.leads());
    second.signal("TERM");
    eventually("the second replica to end", || (!second.is_alive()).then_some(()));
    let releases = |line: &Value| line["message"] == "released the lease";
    assert!(second.log().iter().any(releases), "{:#?}", second.log());
    takes_over(&third);
    let lease = plane.get("/apis/coordination.k8s.io/v1/namespaces/spillway-system/leases/spillway-controller");
    assert_eq!(
        (&lease["spec"]["holderIdentity"], &lease["spec"]["leaseDurationSeconds"]),
        (&third.name.clone().into(), &15.into())
    );
}

#[test]
fn a_restart_of_the_api_server_does_not_end_the_controller() {
    let installed = Installed::new();
    let plane = installed.plane();
    let mut controller = Controller::start(plane, "controller-restart", &[]);
    eventually("the replica to act", || controller.leads().then_some(()));
    plane.restart_api_server();
    assert_eq!(controller.admin("/healthz").0, 200);
    plane.delete("/api/v1/namespaces/spillway-system/secrets/spillway-ca");
    eventually("the replica to go on", || {
        plane.find("/api/v1/namespaces/spillway-system/secrets/spillway-ca").map(drop)
    });
    assert!(controller.is_alive());
}

#[test]
fn a_configuration_that_becomes_unusable_is_told_by_an_event_and_so_is_that_it_is_mended() {
    let installed = Installed::new();
    let plane = installed.plane();
    let file = plane.dir.join("controller-configuration.yaml");
    let good = "apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n";
    fs::write(&file, good).unwrap();
    let controller = Controller::start(plane, "controller-configuration", &["--config", file.to_str().unwrap()]);
    let told = |wanted: &str| {
        eventually(wanted, || {
            let mut events = plane.events("spillway-system").into_iter();
            events.find(|e| e["reason"] == wanted && e["reportingInstance"] == "controller-configuration")
        })
    };
    fs::write(&file, format!("{good}modus: off\n")).unwrap();
    let event = told("ConfigurationInvalid");
    let about = (&event["regarding"]["kind"], &event["regarding"]["name"], &event["type"]);
    assert_eq!(about, (&"ConfigMap".into(), &"spillway-config".into(), &"Warning".into()));
    assert!(event["note"].as_str().unwrap().contains("unknown field \"modus\""), "{event:#}");
    assert_eq!(controller.metric("spillway_configuration_last_reload_failed"), 1);
    fs::write(&file, good).unwrap();
    assert_eq!(told("ConfigurationReloaded")["type"], "Normal");
    assert_eq!(controller.metric("spillway_configuration_last_reload_failed"), 0);
}
