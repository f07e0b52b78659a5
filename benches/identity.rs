//! Measures a full pass of the identity checks over a large cluster in which most service accounts have a problem.
//!
//! Fails if the median exceeds one second.

#![allow(clippy::print_stdout)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::ensure;
use spillway::identity::{AccountName, Object, Observation, check, managed_identity, observation};

const ACCOUNTS: usize = 5_000;
const PODS: usize = 20_000;
/// Odd, so that one of the rounds is the median.
const ROUNDS: usize = 5;
const MAX_MEDIAN: Duration = Duration::from_secs(1);

const ISSUER: &str = "https://westeurope.oic.prod-aks.azure.com/t/c/";

fn main() -> anyhow::Result<()> {
    let seen = cluster();
    let mut findings = 0;
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            findings = black_box(check(black_box(&seen))).len();
            start.elapsed()
        })
        .collect();
    times.sort();
    let median = times.get(ROUNDS / 2).copied().unwrap_or_default();
    println!(
        "{ACCOUNTS} service accounts, {PODS} pods: {findings} findings, median of {ROUNDS}: {:.0} ms",
        median.as_secs_f64() * 1_000.0
    );
    ensure!(findings > ACCOUNTS, "expected more than one finding per service account");
    ensure!(median <= MAX_MEDIAN, "a pass takes {median:?}, expected at most {MAX_MEDIAN:?}");
    Ok(())
}

/// Returns a cluster in which each identity has ten service accounts, and eight credentials with similar subjects.
fn cluster() -> Observation {
    Observation {
        cluster: observation::Cluster {
            service_accounts: (0..ACCOUNTS).map(account).collect(),
            is_complete: true,
            pods: (0..PODS).map(pod).collect(),
            ..observation::Cluster::default()
        },
        issuers: vec![observation::Issuer { url: ISSUER.to_owned(), source: String::new(), algorithms: None }],
        managed_identities: Some(managed_identity::ManagedIdentities {
            identities: (0..ACCOUNTS).step_by(10).map(identity).collect(),
            ..managed_identity::ManagedIdentities::default()
        }),
        ..Observation::default()
    }
}

fn client_id(number: usize) -> String {
    format!("00000000-0000-4000-8000-{:012}", number / 10)
}

fn name(number: usize) -> AccountName {
    AccountName { namespace: format!("ns-{}", number % 100), name: format!("sa-{number}") }
}

fn account(number: usize) -> observation::ServiceAccount {
    observation::ServiceAccount {
        name: name(number),
        annotations: [("azure.workload.identity/client-id".to_owned(), client_id(number))].into(),
        ..observation::ServiceAccount::default()
    }
}

/// Returns a pod. Two of three pods have the label.
fn pod(number: usize) -> observation::Pod {
    let AccountName { namespace, name } = name(number % ACCOUNTS);
    let label = ("azure.workload.identity/use".to_owned(), "true".to_owned());
    observation::Pod {
        owner: Object::namespaced("Deployment", &namespace, &name),
        name: format!("{name}-{number}"),
        namespace,
        service_account: name,
        is_admitted: true,
        containers: vec![observation::Container { name: "web".to_owned(), ..observation::Container::default() }],
        labels: Some(label).into_iter().filter(|_| !number.is_multiple_of(3)).collect(),
        ..observation::Pod::default()
    }
}

fn identity(number: usize) -> managed_identity::ManagedIdentity {
    managed_identity::ManagedIdentity {
        client_id: client_id(number),
        principal_id: None,
        tenant_id: None,
        id: None,
        credentials: Ok((number..number + 8).map(credential).collect()),
        completeness: managed_identity::Completeness::Complete,
        source: String::new(),
    }
}

fn credential(number: usize) -> managed_identity::FederatedCredential {
    managed_identity::FederatedCredential {
        name: format!("c-{number}"),
        issuer: ISSUER.to_owned(),
        subject: Some(format!("system:serviceaccount:ns-{}:sb-{number}", number % 100)),
        audiences: vec![spillway::azure::Cloud::Public.audience().to_owned()],
        expression: None,
        since: None,
        source: String::new(),
    }
}
