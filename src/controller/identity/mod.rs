//! Keeps an eye on workload identity: every link from pods to federated credentials is checked when something changes, and all of them
//! every five minutes. It writes events, metrics and ConfigMap `spillway-identity-report`, and nothing in Azure.
//!
//! A round is observe (watches, the issuer, the sources of credentials), check and plan (both pure), apply (events) and report. After
//! each there is a pause, so that a change in every second costs no more than 5 % of a CPU.

mod credentials;
mod plan;
mod report;

use std::time::Duration;

use credentials::Credentials;
use k8s_openapi::{
    api::core::v1::{ConfigMap, ObjectReference},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::events::EventType,
};
use plan::{Basis, Grounds, Plan, Planned, plan};
use report::{Memory, Sources};
use serde_json::json;
use tokio::{
    task::JoinError,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{CONFIG_MAP, Context, FIELD_MANAGER};
use crate::{
    cluster::{Inventory, identity::IdentityInputs},
    config::Identity,
    credentials::{
        Wanted, custom_resources,
        issuer::{self, Issuers},
    },
    identity::{
        self, AccountName, Seen,
        azure::{Azure, Unread},
        seen::ServiceAccount,
    },
    kubernetes::object_reference,
    reload::configuration::until,
    telemetry::Causes,
};

/// The ConfigMap with the report.
const REPORT: &str = "spillway-identity-report";

const RECONCILER: &str = "identity";

/// How often everything is looked at, whether or not something has changed: the issuer, credentials that are no longer fresh, the
/// report itself.
const FULL_PASS: Duration = Duration::from_secs(300);

/// The least time between two passes, by how much a pause is longer than the work before it, and how long it is at the most.
const PAUSE: Duration = Duration::from_secs(1);
const REST: u32 = 20;
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long the first pass waits for the sources of credentials: without them it would call nothing wrong that is.
const FIRST_ANSWERS: Duration = Duration::from_secs(15);

/// How long the API server may take for one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error("cannot {0}")]
    Api(&'static str, #[source] kube::Error),
    #[error("no answer from the API server within {PATIENCE:?}")]
    Timeout,
    #[error("the checks panicked")]
    Check(#[source] JoinError),
}

/// Checks for as long as the configuration says so.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    loop {
        let settings = context.configuration.borrow().identity.clone();
        let another = until(&context.configuration, |now| now.identity != settings);
        if settings.enabled {
            tokio::select! {
                () = Box::pin(follow(context, inventory, &settings)) => {}
                () = another => tracing::info!("identity is checked by other settings now, beginning anew"),
            }
        } else {
            tracing::info!("identity is not checked: it is switched off");
            another.await;
        }
        context.metrics.identity.reset();
    }
}

/// What passes rest on, and what they remember.
struct Watch<'c> {
    context: &'c Context,
    settings: &'c Identity,
    cluster: IdentityInputs<'c>,
    credentials: Credentials,
    issuers: Issuers,
    issuer: issuer::Read,
    told: Memory,
    /// The report as it is in the cluster.
    written: Option<String>,
    /// What the last pass took without waiting for the API server.
    worked: Duration,
}

async fn follow(context: &Context, inventory: &Inventory, settings: &Identity) {
    // Until the first pass says otherwise, or there is none.
    context.metrics.identity.source("cluster", false);
    let written = known_report(context).await;
    let told = written.as_deref().map(report::told).unwrap_or_default();
    let mut watch = Watch {
        context,
        settings,
        cluster: IdentityInputs::start(inventory, settings),
        credentials: Credentials::follow(&context.client, settings),
        issuers: Issuers::new(context.client.clone()),
        issuer: issuer::Read::default(),
        told,
        written,
        worked: Duration::ZERO,
    };
    watch.first_answers().await;
    let mut next_full = Instant::now();
    loop {
        let began = Instant::now();
        let is_full = next_full <= began;
        if is_full {
            watch.look_again().await;
        }
        let result = match watch.pass().await {
            Ok(()) => {
                if is_full {
                    next_full = began + FULL_PASS;
                }
                context.metrics.identity.passed(began.elapsed(), is_full);
                "success"
            }
            Err(error) => {
                tracing::warn!(reconciler = RECONCILER, error = %Causes(&error), "reconciler failed, trying again");
                sleep(PATIENCE).await;
                "failure"
            }
        };
        context.metrics.reconciled(RECONCILER, result);
        sleep(pause(watch.worked)).await;
        if result == "success" {
            let next = next_full.min(watch.next_mended());
            tokio::select! {
                () = watch.cluster.changed() => {}
                () = watch.credentials.changed() => {}
                () = sleep_until(next) => {}
            }
        }
    }
}

/// How long nothing is done after so much work.
fn pause(worked: Duration) -> Duration {
    (worked * REST).clamp(PAUSE, LONGEST_PAUSE)
}

/// The report that a leader before has written. Without an answer there is no beginning: everything would be told once more.
async fn known_report(context: &Context) -> Option<String> {
    loop {
        match timeout(PATIENCE, maps(context).get_opt(REPORT)).await {
            Ok(Ok(map)) => return map.and_then(content),
            Ok(Err(error)) => tracing::warn!(error = %Causes(&error), "cannot read ConfigMap {REPORT}, trying again"),
            Err(_elapsed) => {
                tracing::warn!("cannot read ConfigMap {REPORT}: no answer within {PATIENCE:?}, trying again");
            }
        }
        sleep(PATIENCE).await;
    }
}

/// Where the report is.
fn maps(context: &Context) -> Api<ConfigMap> {
    Api::namespaced(context.client.clone(), &context.namespace)
}

fn content(map: ConfigMap) -> Option<String> {
    map.data?.remove(report::KEY)
}

impl Watch<'_> {
    /// Waits until everything in the cluster has arrived, and a while for what is known of Azure.
    async fn first_answers(&mut self) {
        while !self.cluster.pending().is_empty() {
            if timeout(PATIENCE, self.cluster.changed()).await.is_err() {
                tracing::warn!(waiting_for = ?self.cluster.pending(), "identity is not checked before these have arrived");
            }
        }
        self.credentials.want(wanted(&self.cluster.cluster().service_accounts, self.settings));
        let complete = async {
            while !self.credentials.is_complete() {
                self.credentials.changed().await;
            }
        };
        if timeout(FIRST_ANSWERS, complete).await.is_err() {
            tracing::warn!("not all sources of credentials have answered yet, checking what is known");
        }
    }

    /// What no watch brings.
    async fn look_again(&mut self) {
        if let Ok(read) = timeout(PATIENCE, self.issuers.read()).await {
            self.issuer = read;
        }
        // Somebody may have changed or removed the report.
        if let Ok(Ok(map)) = timeout(PATIENCE, maps(self.context).get_opt(REPORT)).await {
            self.written = map.and_then(content);
        }
    }

    /// When there will be news without any change.
    fn next_mended(&self) -> Instant {
        let next = plan::next_mended(&self.told).map(|at| at.duration_since(Timestamp::now()));
        let wait = next.map_or(FULL_PASS, |wait| Duration::try_from(wait).unwrap_or_default());
        Instant::now() + wait.min(FULL_PASS)
    }

    /// One round.
    async fn pass(&mut self) -> Result<(), PassError> {
        let began = Instant::now();
        let (seen, sources, basis) = self.observe();
        let (settings, told) = (self.settings.clone(), self.told.clone());
        // Tens of thousands of pods take a while: not on the threads that serve.
        let decided = tokio::task::spawn_blocking(move || {
            let covers = |namespace: &str| settings.covers(namespace);
            let mut findings = identity::check(&seen);
            findings.retain(|finding| plan::namespace(finding).is_none_or(covers));
            findings.retain(|finding| !plan::is_premature(finding, &basis));
            plan(&told, &findings, &Grounds::of(&seen, basis, covers), &sources)
        });
        let decided = decided.await;
        self.worked = began.elapsed();
        let Plan { events, told, counts, report } = decided.map_err(PassError::Check)?;
        self.context.metrics.identity.found(counts);
        for event in events {
            self.tell(event).await;
        }
        // What was told is told, even if the report cannot be written.
        self.told = told;
        self.write(report).await
    }

    fn observe(&self) -> (Seen, Sources, Basis) {
        let cluster = self.cluster.cluster();
        let wanted = wanted(&cluster.service_accounts, self.settings);
        let known = self.credentials.known();
        let unasked = cluster.service_accounts.iter().filter(|account| !known.was_asked_for(account));
        let basis = Basis {
            has_credentials: known.is_complete,
            has_discovery: self.issuer.is_discovered,
            has_nodes: self.cluster.has_nodes(),
            unasked: unasked.map(|account| account.name.clone()).collect(),
        };
        let seen = Seen {
            cluster,
            issuers: self.issuer.issuers.clone(),
            cloud: self.settings.cloud.into(),
            azure: known.azure,
            at: Timestamp::now(),
        };
        let refused = self.cluster.refused();
        let of_azure = unread(seen.azure.as_ref(), &wanted);
        let metrics = &self.context.metrics.identity;
        metrics.source("cluster", refused.is_empty() && self.cluster.pending().is_empty());
        metrics.source("issuer", !seen.issuers.is_empty());
        metrics.source("credentials", of_azure.is_none() && known.is_complete);
        self.credentials.want(wanted);
        let of_cluster = refused.into_iter().map(|unread| ("cluster", unread));
        let of_issuer = self.issuer.unread.clone().map(|unread| ("issuer", unread));
        let unread = of_cluster.chain(of_issuer).chain(of_azure.map(|unread| ("credentials", unread)));
        let issuer = seen.issuers.first().map(|issuer| issuer.url.clone());
        let sources = Sources { unread: unread.collect(), issuer };
        (seen, sources, basis)
    }

    async fn tell(&self, Planned { about, uid, is_warning, reason, note }: Planned) {
        let (kind, namespace, name) = match about {
            Some(AccountName { namespace, name }) => ("ServiceAccount", namespace, name),
            None => ("ConfigMap", self.context.namespace.clone(), CONFIG_MAP.to_owned()),
        };
        let about = ObjectReference { uid, ..object_reference("v1", kind, Some(&namespace), &name) };
        let type_ = if is_warning { EventType::Warning } else { EventType::Normal };
        // An event is worth no more than that: it is in the report too.
        if timeout(PATIENCE, self.context.events.publish(&about, type_, &reason, note)).await.is_err() {
            tracing::warn!(reason, "cannot write an event: no answer within {PATIENCE:?}");
        }
    }

    /// Writes the report if it says something else than the one that is there.
    async fn write(&mut self, report: String) -> Result<(), PassError> {
        if self.written.as_ref() == Some(&report) {
            return Ok(());
        }
        let maps = maps(self.context);
        let patch = Patch::Merge(json!({"data": {report::KEY: report}}));
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let written = match timeout(PATIENCE, maps.patch(REPORT, &params, &patch)).await {
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                let map = ConfigMap {
                    metadata: ObjectMeta { name: Some(REPORT.to_owned()), ..ObjectMeta::default() },
                    data: Some([(report::KEY.to_owned(), report.clone())].into()),
                    ..ConfigMap::default()
                };
                let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                timeout(PATIENCE, maps.create(&params, &map)).await
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

/// What service accounts name, as far as they are checked.
fn wanted(accounts: &[ServiceAccount], settings: &Identity) -> Wanted {
    crate::credentials::wanted(accounts.iter().filter(|account| settings.covers(&account.name.namespace)))
}

/// Why something of Azure could not be read that matters: not of identities that no service account names, and not that it is in the
/// nature of custom resources to show a part.
fn unread(azure: Option<&Azure>, wanted: &Wanted) -> Option<Unread> {
    let azure = azure?;
    let named = azure.identities.iter().filter(|one| wanted.contains_key(&one.client_id.to_ascii_lowercase()));
    let of_identities = named.filter_map(|one| one.credentials.as_ref().err());
    let of_all = azure.unseen.iter().filter(|unread| !custom_resources::is_by_nature(unread));
    of_all.chain(of_identities).next().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::azure::{Extent, Identity as Managed};

    fn failed(action: &str) -> Unread {
        Unread { because: "it failed".to_owned(), action: action.to_owned(), scope: "s".to_owned() }
    }

    fn managed(client_id: &str, credentials: Result<Vec<identity::azure::Credential>, Unread>) -> Managed {
        Managed {
            client_id: client_id.to_owned(),
            principal_id: None,
            tenant_id: None,
            id: None,
            credentials,
            extent: Extent::Whole,
            source: String::new(),
        }
    }

    #[test]
    fn what_azure_does_not_answer_counts_with_and_without_a_missing_permission() {
        let wanted: Wanted = [("named".to_owned(), [].into())].into();
        for action in ["", "some/read"] {
            let down = Azure { unseen: Some(failed(action)), ..Azure::default() };
            assert_eq!(unread(Some(&down), &wanted), Some(failed(action)));
            let half = Azure { identities: vec![managed("NAMED", Err(failed(action)))], ..Azure::default() };
            assert_eq!(unread(Some(&half), &wanted), Some(failed(action)));
            assert_eq!(unread(Some(&half), &Wanted::new()), None, "no service account names it");
        }
        let all = Azure { identities: vec![managed("named", Ok(Vec::new()))], ..Azure::default() };
        assert_eq!(unread(Some(&all), &wanted), None);
        assert_eq!(unread(None, &wanted), None);
    }

    #[test]
    fn a_pause_rests_on_the_work_and_has_an_end() {
        assert_eq!(pause(Duration::ZERO), PAUSE);
        assert_eq!(pause(Duration::from_millis(100)), Duration::from_secs(2));
        assert_eq!(pause(Duration::from_secs(60)), LONGEST_PAUSE);
    }
}
