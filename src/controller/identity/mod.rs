//! Checks workload identity when something changes, and every five minutes. The reconciler writes Events, metrics and ConfigMap
//! `spillway-identity-report`, and nothing in Azure.
//!
//! A pass has five steps: observe (watches, the issuer, the sources of credentials), check, plan, write Events, write the report. Check
//! and plan are pure. A pause follows each pass, so that changes in every second use at most 5 % of a CPU.

mod coverage;
mod credentials;
mod plan;
mod report;

use std::time::Duration;

use coverage::{Coverage, InputStatus};
use credentials::CredentialReader;
use k8s_openapi::{
    api::core::v1::{ConfigMap, ObjectReference},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::events::EventType,
};
use plan::{Plan, PlannedEvent, plan};
use report::{InputSummary, REPORT_NAME, ReportedFindings};
use serde_json::json;
use spillway_core::config::Identity;
use spillway_identity::{
    self as identity, AccountName, Observation,
    managed_identity::{ManagedIdentities, ReadFailure},
    observation::ServiceAccount,
};
use tokio::{
    task::JoinError,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    context::Context,
    names::{CONFIG_MAP, FIELD_MANAGER},
};
use crate::{
    cluster::{Inventory, identity::IdentityInputs},
    credentials::{
        self as sources, ClientIds, custom_resources,
        issuer::{IssuerReader, IssuerStatus},
    },
    kubernetes::object_reference,
    reload::configuration::until,
    telemetry::Causes,
};

const RECONCILER: &str = "identity";

/// The time between two full passes. They also read inputs without a watch: the issuer, the age of credentials, the report itself.
const FULL_PASS_INTERVAL: Duration = Duration::from_secs(300);

/// The least and the most time between two passes.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The pause after a pass, as a multiple of the work of the pass.
const PAUSE_FACTOR: u32 = 20;

/// How long the first pass waits for the sources of credentials. Without credentials, no finding about them is possible.
const INITIAL_READ_TIMEOUT: Duration = Duration::from_secs(15);

/// The timeout for a response of the API server.
const API_TIMEOUT: Duration = Duration::from_secs(10);

/// The time between a failure and the next attempt.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error("cannot {0}")]
    Api(&'static str, #[source] kube::Error),
    #[error("no response from the API server within {API_TIMEOUT:?}")]
    Timeout,
    #[error("the checks panicked")]
    Check(#[source] JoinError),
}

/// Runs while the configuration enables the checks.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    loop {
        let settings = context.configuration.borrow().identity.clone();
        let changed = until(&context.configuration, |now| now.identity != settings);
        if settings.enabled {
            tokio::select! {
                () = Box::pin(reconcile(context, inventory, &settings)) => {}
                () = changed => tracing::info!("settings of identity checks changed, restarting the checks"),
            }
        } else {
            tracing::info!("identity checks are disabled");
            changed.await;
        }
        context.metrics.identity.reset();
    }
}

/// The inputs of passes, and their state.
struct Reconciler<'c> {
    context: &'c Context,
    settings: &'c Identity,
    cluster: IdentityInputs<'c>,
    credentials: CredentialReader,
    issuer_reader: IssuerReader,
    issuer: IssuerStatus,
    reported: ReportedFindings,
    /// The report in the cluster.
    written: Option<String>,
    /// The duration of the last pass without the requests to the API server.
    work: Duration,
}

async fn reconcile(context: &Context, inventory: &Inventory, settings: &Identity) {
    // The first pass may never run.
    context.metrics.identity.source("cluster", false);
    let written = previous_report(context).await;
    let reported = written.as_deref().map(report::reported_findings).unwrap_or_default();
    let mut reconciler = Reconciler {
        context,
        settings,
        cluster: IdentityInputs::start(inventory, settings),
        credentials: CredentialReader::start(&context.client, settings),
        issuer_reader: IssuerReader::new(context.client.clone()),
        issuer: IssuerStatus::default(),
        reported,
        written,
        work: Duration::ZERO,
    };
    reconciler.wait_for_inputs().await;
    let mut next_full = Instant::now();
    loop {
        let began = Instant::now();
        let is_full = next_full <= began;
        if is_full {
            reconciler.read_unwatched().await;
        }
        let result = match reconciler.pass().await {
            Ok(()) => {
                if is_full {
                    next_full = began + FULL_PASS_INTERVAL;
                }
                context.metrics.identity.passed(began.elapsed(), is_full);
                "success"
            }
            Err(error) => {
                tracing::warn!(reconciler = RECONCILER, error = %Causes(&error), "reconciler failed, trying again");
                sleep(RETRY_INTERVAL).await;
                "failure"
            }
        };
        context.metrics.reconciled(RECONCILER, result);
        sleep(pause(reconciler.work)).await;
        if result == "success" {
            let next = next_full.min(reconciler.next_resolution());
            tokio::select! {
                () = reconciler.cluster.changed() => {}
                () = reconciler.credentials.changed() => {}
                () = sleep_until(next) => {}
            }
        }
    }
}

/// Returns the pause after a pass that worked for this time.
fn pause(work: Duration) -> Duration {
    (work * PAUSE_FACTOR).clamp(MIN_PAUSE, MAX_PAUSE)
}

/// Reads the report of the previous leader, and retries until the API server responds. Without the report, Spillway would repeat all Events.
async fn previous_report(context: &Context) -> Option<String> {
    loop {
        match timeout(API_TIMEOUT, maps(context).get_opt(REPORT_NAME)).await {
            Ok(Ok(map)) => return map.and_then(content),
            Ok(Err(error)) => {
                tracing::warn!(error = %Causes(&error), "cannot read ConfigMap {REPORT_NAME}, retrying");
            }
            Err(_elapsed) => {
                tracing::warn!("cannot read ConfigMap {REPORT_NAME}: no response within {API_TIMEOUT:?}, retrying");
            }
        }
        sleep(RETRY_INTERVAL).await;
    }
}

/// Returns the API of the report.
fn maps(context: &Context) -> Api<ConfigMap> {
    Api::namespaced(context.client.clone(), &context.namespace)
}

fn content(map: ConfigMap) -> Option<String> {
    map.data?.remove(report::KEY)
}

impl Reconciler<'_> {
    /// Waits until all watches have listed their objects. Then waits for the sources of credentials, up to a timeout.
    async fn wait_for_inputs(&mut self) {
        while !self.cluster.pending().is_empty() {
            if timeout(API_TIMEOUT, self.cluster.changed()).await.is_err() {
                tracing::warn!(waiting_for = ?self.cluster.pending(), "identity checks wait for the first lists");
            }
        }
        self.credentials.set_client_ids(client_ids(&self.cluster.cluster().service_accounts, self.settings));
        let complete = async {
            while !self.credentials.is_complete() {
                self.credentials.changed().await;
            }
        };
        if timeout(INITIAL_READ_TIMEOUT, complete).await.is_err() {
            tracing::warn!("identity checks start before all sources of credentials have been read");
        }
    }

    /// Reads the inputs without a watch.
    async fn read_unwatched(&mut self) {
        if let Ok(status) = timeout(API_TIMEOUT, self.issuer_reader.read()).await {
            self.issuer = status;
        }
        // A user may have changed or deleted the report.
        if let Ok(Ok(map)) = timeout(API_TIMEOUT, maps(self.context).get_opt(REPORT_NAME)).await {
            self.written = map.and_then(content);
        }
    }

    /// Returns when the next absent finding counts as resolved even if nothing changes.
    fn next_resolution(&self) -> Instant {
        let next = plan::next_resolution(&self.reported).map(|at| at.duration_since(Timestamp::now()));
        let wait = next.map_or(FULL_PASS_INTERVAL, |wait| Duration::try_from(wait).unwrap_or_default());
        Instant::now() + wait.min(FULL_PASS_INTERVAL)
    }

    /// Runs one pass.
    async fn pass(&mut self) -> Result<(), PassError> {
        let began = Instant::now();
        let (observation, inputs, status) = self.observe();
        let (settings, reported) = (self.settings.clone(), self.reported.clone());
        // The checks of tens of thousands of pods would block a thread of the runtime for too long.
        let plan = tokio::task::spawn_blocking(move || {
            let covers = |namespace: &str| settings.covers(namespace);
            let mut findings = identity::check(&observation);
            findings.retain(|finding| plan::namespace(finding).is_none_or(covers));
            findings.retain(|finding| !coverage::is_premature(finding, &status));
            plan(&reported, &findings, &Coverage::of(&observation, status, covers), &inputs)
        });
        let plan = plan.await;
        self.work = began.elapsed();
        let Plan { events, reported, counts, report } = plan.map_err(PassError::Check)?;
        self.context.metrics.identity.found(counts);
        for event in events {
            self.publish(event).await;
        }
        // The Events exist even if the write of the report fails.
        self.reported = reported;
        self.write(report).await
    }

    fn observe(&self) -> (Observation, InputSummary, InputStatus) {
        let cluster = self.cluster.cluster();
        let client_ids = client_ids(&cluster.service_accounts, self.settings);
        let credentials = self.credentials.snapshot();
        let pending = cluster.service_accounts.iter().filter(|account| !credentials.covers(account));
        let status = InputStatus {
            has_credentials: credentials.is_complete,
            has_discovery: self.issuer.is_discovered,
            has_nodes: self.cluster.has_nodes(),
            pending_accounts: pending.map(|account| account.name.clone()).collect(),
        };
        let observation = Observation {
            cluster,
            issuers: self.issuer.issuers.clone(),
            cloud: self.settings.cloud,
            managed_identities: credentials.identities,
            at: Timestamp::now(),
        };
        let refused = self.cluster.refused();
        let of_azure = credential_failure(observation.managed_identities.as_ref(), &client_ids);
        let metrics = &self.context.metrics.identity;
        metrics.source("cluster", refused.is_empty() && self.cluster.pending().is_empty());
        metrics.source("issuer", !observation.issuers.is_empty());
        metrics.source("credentials", of_azure.is_none() && credentials.is_complete);
        self.credentials.set_client_ids(client_ids);
        let of_cluster = refused.into_iter().map(|failure| ("cluster", failure));
        let of_issuer = self.issuer.failure.clone().map(|failure| ("issuer", failure));
        let failures = of_cluster.chain(of_issuer).chain(of_azure.map(|failure| ("credentials", failure)));
        let issuer = observation.issuers.first().map(|issuer| issuer.url.clone());
        let inputs = InputSummary { failures: failures.collect(), issuer };
        (observation, inputs, status)
    }

    async fn publish(&self, PlannedEvent { account, uid, is_warning, reason, note }: PlannedEvent) {
        let (kind, namespace, name) = match account {
            Some(AccountName { namespace, name }) => ("ServiceAccount", namespace, name),
            None => ("ConfigMap", self.context.namespace.clone(), CONFIG_MAP.to_owned()),
        };
        let about = ObjectReference { uid, ..object_reference("v1", kind, Some(&namespace), &name) };
        let type_ = if is_warning { EventType::Warning } else { EventType::Normal };
        // Spillway does not retry, because the report has the finding too.
        if timeout(API_TIMEOUT, self.context.events.publish(&about, type_, &reason, note)).await.is_err() {
            tracing::warn!(reason, "cannot write an event: no response within {API_TIMEOUT:?}");
        }
    }

    /// Writes the report if it has changed.
    async fn write(&mut self, report: String) -> Result<(), PassError> {
        if self.written.as_ref() == Some(&report) {
            return Ok(());
        }
        let maps = maps(self.context);
        let patch = Patch::Merge(json!({"data": {report::KEY: report}}));
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let written = match timeout(API_TIMEOUT, maps.patch(REPORT_NAME, &params, &patch)).await {
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                let map = ConfigMap {
                    metadata: ObjectMeta { name: Some(REPORT_NAME.to_owned()), ..ObjectMeta::default() },
                    data: Some([(report::KEY.to_owned(), report.clone())].into()),
                    ..ConfigMap::default()
                };
                let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                timeout(API_TIMEOUT, maps.create(&params, &map)).await
            }
            written => written,
        };
        written
            .map_err(|_elapsed| PassError::Timeout)?
            .map_err(|error| PassError::Api("write ConfigMap spillway-identity-report", error))?;
        self.written = Some(report);
        Ok(())
    }
}

/// Returns the client IDs of the service accounts that are checked.
fn client_ids(accounts: &[ServiceAccount], settings: &Identity) -> ClientIds {
    sources::client_ids(accounts.iter().filter(|account| settings.covers(&account.name.namespace)))
}

/// Returns why credentials could not be read. Ignores identities without a service account, and that custom resources never show all.
fn credential_failure(all: Option<&ManagedIdentities>, client_ids: &ClientIds) -> Option<ReadFailure> {
    let all = all?;
    let named = all.identities.iter().filter(|one| client_ids.contains_key(&one.client_id.to_ascii_lowercase()));
    let of_identities = named.filter_map(|one| one.credentials.as_ref().err());
    let of_list = all.incomplete.iter().filter(|failure| !custom_resources::is_incomplete_by_design(failure));
    of_list.chain(of_identities).next().cloned()
}

#[cfg(test)]
mod tests {
    use spillway_identity::managed_identity::{Completeness, FederatedCredential, ManagedIdentity};

    use super::*;

    fn failed(action: &str) -> ReadFailure {
        ReadFailure { reason: "it failed".to_owned(), action: action.to_owned(), scope: "s".to_owned() }
    }

    fn managed(client_id: &str, credentials: Result<Vec<FederatedCredential>, ReadFailure>) -> ManagedIdentity {
        ManagedIdentity {
            client_id: client_id.to_owned(),
            principal_id: None,
            tenant_id: None,
            id: None,
            credentials,
            completeness: Completeness::Complete,
            source: String::new(),
        }
    }

    #[test]
    fn a_read_failure_counts_with_and_without_a_missing_permission() {
        let client_ids: ClientIds = [("named".to_owned(), [].into())].into();
        for action in ["", "some/read"] {
            let down = ManagedIdentities { incomplete: Some(failed(action)), ..ManagedIdentities::default() };
            assert_eq!(credential_failure(Some(&down), &client_ids), Some(failed(action)));
            let half = ManagedIdentities {
                identities: vec![managed("NAMED", Err(failed(action)))],
                ..ManagedIdentities::default()
            };
            assert_eq!(credential_failure(Some(&half), &client_ids), Some(failed(action)));
            assert_eq!(
                credential_failure(Some(&half), &ClientIds::new()),
                None,
                "no service account names the identity"
            );
        }
        let all =
            ManagedIdentities { identities: vec![managed("named", Ok(Vec::new()))], ..ManagedIdentities::default() };
        assert_eq!(credential_failure(Some(&all), &client_ids), None);
        assert_eq!(credential_failure(None, &client_ids), None);
    }

    #[test]
    fn a_pause_depends_on_the_work_and_is_bounded() {
        assert_eq!(pause(Duration::ZERO), MIN_PAUSE);
        assert_eq!(pause(Duration::from_millis(100)), Duration::from_secs(2));
        assert_eq!(pause(Duration::from_secs(60)), MAX_PAUSE);
    }
}
