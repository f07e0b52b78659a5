//! Leader election by a Lease, modelled on client-go (`tools/leaderelection`).
//!
//! 1. A candidate acquires a Lease that does not exist, has no holder, or is its own. It acquires the Lease of another
//!    holder if that Lease did not change for [`LEASE_DURATION`].
//! 2. The leader renews the Lease every [`RETRY_PERIOD`]. It stops leading [`RENEW_DEADLINE`] after the start of its last
//!    successful renewal, before another candidate can acquire the Lease.
//! 3. On shutdown the leader releases the Lease, and another candidate acquires it within [`RETRY_PERIOD`].
//!
//! Each replica measures time with its own monotonic clock. It only checks whether the timestamps in a Lease change. So a
//! wrong clock of the leader neither shortens nor extends its term.
//!
//! A Lease is not a lock: a suspended leader that resumes may still send a write. So every write of the leader must be
//! conditional. Writes of the Lease are conditional too, so only one of several candidates wins.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, jsonptr::PointerBuf};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::conditional::{conditional_patch, is_conflict};
use crate::telemetry::Causes;

/// Time without a change of the Lease after which a candidate acquires it.
const LEASE_DURATION: Duration = Duration::from_secs(15);

/// [`LEASE_DURATION`] as the field of the Lease.
const LEASE_DURATION_SECONDS: i32 = 15;

/// Time without a successful renewal after which the leader stops leading.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// Interval at which the leader renews the Lease, and other candidates read it.
const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// Maximum time for one request. Half of the renew deadline, so that a slow request leaves time for another one.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time for the release of the Lease on shutdown.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// The role of this replica in the election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// This replica has not read the Lease yet.
    Unknown,
    /// This replica does not lead.
    StandingBy,
    /// This replica leads.
    Leading,
}

/// Why a term ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LossReason {
    /// This replica no longer holds the Lease.
    NotHolder,
    /// No renewal succeeded in time.
    RenewDeadline,
}

/// Why a request of the election failed.
#[derive(Debug, thiserror::Error)]
enum ElectionError {
    #[error("cannot read the Lease")]
    Read(#[source] kube::Error),
    #[error("cannot write the Lease")]
    Write(#[source] kube::Error),
    #[error("no response from the API server within {REQUEST_TIMEOUT:?}")]
    Timeout,
}

/// A candidate in the election.
pub(crate) struct LeaderElector {
    leases: Api<Lease>,
    /// The name of the Lease, and the field manager of its writes.
    name: &'static str,
    /// The holder name of this replica.
    identity: String,
}

impl LeaderElector {
    pub(crate) fn new(client: Client, namespace: &str, name: &'static str, identity: &str) -> Self {
        Self { leases: Api::namespaced(client, namespace), name, identity: identity.to_owned() }
    }

    /// Waits until this replica has the Lease. Calls `on_observed` after each read of the Lease.
    pub(crate) async fn acquire(&self, on_observed: impl Fn()) -> LeaderTerm<'_> {
        let mut observed = ObservedLease::default();
        let mut attempt = 0;
        loop {
            match self.try_acquire(&mut observed, &on_observed).await {
                Ok(Some(term)) => return term,
                Ok(None) => {}
                Err(error) => tracing::warn!(error = %Causes(&error), "cannot acquire the lease, retrying"),
            }
            sleep(self.jittered_period(attempt)).await;
            attempt += 1;
        }
    }

    async fn try_acquire(
        &self,
        observed: &mut ObservedLease,
        on_observed: impl Fn(),
    ) -> Result<Option<LeaderTerm<'_>>, ElectionError> {
        let lease = self.read().await?;
        on_observed();
        if !observed.is_available(lease.as_ref(), &self.identity, Instant::now()) {
            return Ok(None);
        }
        let started = Instant::now();
        let written = match lease {
            None => self.create().await?,
            Some(lease) => self.update(&lease, self.next_spec(&lease)).await?,
        };
        Ok(written.map(|lease| LeaderTerm { elector: self, lease, renewed: started }))
    }

    /// Returns 50% to 100% of the retry period, so that candidates do not act at the same time.
    fn jittered_period(&self, attempt: u32) -> Duration {
        let mut hasher = DefaultHasher::new();
        (&self.identity, attempt).hash(&mut hasher);
        let permille = u32::try_from(hasher.finish() % 500).unwrap_or_default();
        RETRY_PERIOD * (1000 - permille) / 1000
    }

    /// Renews the Lease. Returns `None` if this replica no longer holds it.
    async fn renew(&self, lease: &Lease) -> Result<Option<Lease>, ElectionError> {
        if let Some(renewed) = self.update(lease, self.next_spec(lease)).await? {
            return Ok(Some(renewed));
        }
        // The Lease has changed. The holder may be the same, for example if the response to a renewal was lost.
        match self.read().await? {
            Some(lease) if holder(&lease) == Some(&self.identity) => self.update(&lease, self.next_spec(&lease)).await,
            _ => Ok(None),
        }
    }

    /// Releases the Lease if this replica holds it, so that another replica need not wait until it expires.
    pub(crate) async fn release(&self) {
        match timeout(RELEASE_TIMEOUT, self.try_release()).await {
            Ok(Ok(true)) => tracing::info!("released the lease"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::warn!(error = %Causes(&error), "cannot release the lease, it will expire"),
            Err(_elapsed) => tracing::warn!("cannot release the lease within {RELEASE_TIMEOUT:?}, it will expire"),
        }
    }

    /// Returns whether this replica held the Lease.
    async fn try_release(&self) -> Result<bool, ElectionError> {
        loop {
            let Some(lease) = self.read().await?.filter(|lease| holder(lease) == Some(&self.identity)) else {
                return Ok(false);
            };
            let now = MicroTime(Timestamp::now());
            let released = LeaseSpec {
                holder_identity: None,
                lease_duration_seconds: Some(1),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                ..lease.spec.clone().unwrap_or_default()
            };
            // The update fails if an earlier renewal of this replica arrives late.
            if self.update(&lease, released).await?.is_some() {
                return Ok(true);
            }
        }
    }

    /// Returns the spec of the Lease after this replica acquires or renews it.
    fn next_spec(&self, lease: &Lease) -> LeaseSpec {
        let spec = lease.spec.clone().unwrap_or_default();
        let now = MicroTime(Timestamp::now());
        let is_renewal = spec.holder_identity.as_ref() == Some(&self.identity);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(LEASE_DURATION_SECONDS),
            acquire_time: spec.acquire_time.clone().filter(|_| is_renewal).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(spec.lease_transitions.unwrap_or_default().saturating_add((!is_renewal).into())),
            ..spec
        }
    }

    async fn read(&self) -> Result<Option<Lease>, ElectionError> {
        let read = timeout(REQUEST_TIMEOUT, self.leases.get_opt(self.name)).await;
        read.map_err(|_elapsed| ElectionError::Timeout)?.map_err(ElectionError::Read)
    }

    /// Creates the Lease. Returns `None` if another candidate created it first.
    async fn create(&self) -> Result<Option<Lease>, ElectionError> {
        let metadata = ObjectMeta { name: Some(self.name.to_owned()), ..ObjectMeta::default() };
        let mut lease = Lease { metadata, spec: None };
        lease.spec = Some(LeaseSpec { lease_transitions: Some(0), ..self.next_spec(&lease) });
        let params = PostParams { field_manager: Some(self.name.to_owned()), ..PostParams::default() };
        written(timeout(REQUEST_TIMEOUT, self.leases.create(&params, &lease)).await)
    }

    /// Updates this version of the Lease. Returns `None` if the Lease has changed or was deleted.
    async fn update(&self, lease: &Lease, spec: LeaseSpec) -> Result<Option<Lease>, ElectionError> {
        let value = serde_json::to_value(spec).unwrap_or_default();
        let add = AddOperation { path: PointerBuf::from_tokens(["spec"]), value };
        let change = JsonPatch(vec![PatchOperation::Add(add)]);
        let version = lease.metadata.resource_version.as_deref().unwrap_or_default();
        let patch = Patch::Json::<()>(conditional_patch(version, change));
        let params = PatchParams { field_manager: Some(self.name.to_owned()), ..PatchParams::default() };
        written(timeout(REQUEST_TIMEOUT, self.leases.patch(self.name, &params, &patch)).await)
    }
}

fn written<T, Elapsed>(response: Result<kube::Result<T>, Elapsed>) -> Result<Option<T>, ElectionError> {
    match response {
        Ok(Ok(lease)) => Ok(Some(lease)),
        Ok(Err(error)) if is_conflict(&error) => Ok(None),
        Ok(Err(error)) => Err(ElectionError::Write(error)),
        Err(_elapsed) => Err(ElectionError::Timeout),
    }
}

/// The term of this replica as leader.
pub(crate) struct LeaderTerm<'e> {
    elector: &'e LeaderElector,
    /// The Lease as this replica last wrote it.
    lease: Lease,
    /// The start of the last successful write of the Lease. Other candidates cannot observe the write before that time.
    renewed: Instant,
}

impl LeaderTerm<'_> {
    /// Renews the Lease until this replica must stop leading. Returns the reason.
    pub(crate) async fn lost(mut self) -> LossReason {
        let mut started = self.renewed;
        loop {
            let deadline = self.renewed + RENEW_DEADLINE;
            sleep_until(deadline.min(started + RETRY_PERIOD)).await;
            started = Instant::now();
            match timeout_at(deadline, self.elector.renew(&self.lease)).await {
                Ok(Ok(Some(lease))) => (self.lease, self.renewed) = (lease, started),
                Ok(Ok(None)) => return LossReason::NotHolder,
                Ok(Err(error)) => tracing::warn!(error = %Causes(&error), "cannot renew the lease, retrying"),
                Err(_elapsed) => {}
            }
            if Instant::now() >= self.renewed + RENEW_DEADLINE {
                return LossReason::RenewDeadline;
            }
        }
    }
}

/// The Lease of another holder, with the time when this candidate observed its last change.
#[derive(Debug, Default)]
struct ObservedLease {
    spec: LeaseSpec,
    changed: Option<Instant>,
}

impl ObservedLease {
    /// Returns whether a candidate may acquire the Lease.
    fn is_available(&mut self, lease: Option<&Lease>, identity: &str, now: Instant) -> bool {
        let Some(lease) = lease else { return true };
        if holder(lease).is_none_or(|holder| holder == identity) {
            return true;
        }
        let spec = lease.spec.clone().unwrap_or_default();
        let changed = self.changed.filter(|_| self.spec == spec).unwrap_or(now);
        *self = Self { spec, changed: Some(changed) };
        now.duration_since(changed) >= LEASE_DURATION
    }
}

/// Returns the holder of a Lease. A released Lease has no holder, or an empty one.
fn holder(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref().filter(|holder| !holder.is_empty())
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc, Mutex,
            atomic::{AtomicBool, AtomicUsize, Ordering},
        },
    };

    use axum::{body::to_bytes, http};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    const NAME: &str = "spillway-controller";

    /// A fake API server with one Lease, which is null if it does not exist.
    #[derive(Clone, Default)]
    struct Server {
        lease: Arc<Mutex<Value>>,
        patches: Arc<AtomicUsize>,
        refuses_patches: Arc<AtomicBool>,
        is_unresponsive: Arc<AtomicBool>,
    }

    impl Server {
        fn client(&self) -> Client {
            let server = self.clone();
            Client::new(tower::service_fn(move |request| server.clone().response(request)), "default")
        }

        fn elector(&self, identity: &str) -> LeaderElector {
            LeaderElector::new(self.client(), "spillway-system", NAME, identity)
        }

        async fn response(self, request: http::Request<Body>) -> Result<http::Response<Body>, Infallible> {
            if self.is_unresponsive.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            // The latency of a network. It also advances the paused clock.
            sleep(Duration::from_millis(5)).await;
            let method = request.method().clone();
            let body = to_bytes(axum::body::Body::new(request.into_body()), usize::MAX).await.unwrap();
            let (status, body) = self.handle(&method, &body);
            Ok(http::Response::builder().status(status).body(Body::from(body.to_string().into_bytes())).unwrap())
        }

        fn handle(&self, method: &http::Method, body: &[u8]) -> (u16, Value) {
            let failure = |code: u16| {
                let reason = if code == 404 { "NotFound" } else { "" };
                (code, json!({"status": "Failure", "code": code, "message": "", "reason": reason}))
            };
            let mut lease = self.lease.lock().unwrap();
            match (method, lease.is_null()) {
                (&http::Method::GET, false) => (200, lease.clone()),
                (&http::Method::POST, true) => {
                    *lease = serde_json::from_slice(body).unwrap();
                    lease["metadata"]["resourceVersion"] = "1".into();
                    (201, lease.clone())
                }
                (&http::Method::POST, false) => failure(409),
                (&http::Method::PATCH, false) => {
                    self.patches.fetch_add(1, Ordering::Relaxed);
                    if self.refuses_patches.load(Ordering::Relaxed) {
                        return failure(500);
                    }
                    let mut patched = lease.clone();
                    json_patch::patch(&mut patched, &serde_json::from_slice::<JsonPatch>(body).unwrap()).unwrap();
                    if patched["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"] {
                        return failure(409);
                    }
                    *lease = patched;
                    bump_version(&mut lease);
                    (200, lease.clone())
                }
                _ => failure(404),
            }
        }

        /// Changes the Lease as another client would.
        fn change(&self, change: impl FnOnce(&mut Value)) {
            let mut lease = self.lease.lock().unwrap();
            change(&mut lease);
            bump_version(&mut lease);
        }

        fn spec(&self, field: &str) -> Value {
            self.lease.lock().unwrap()["spec"][field].clone()
        }
    }

    fn bump_version(lease: &mut Value) {
        let version: u64 = lease["metadata"]["resourceVersion"].as_str().unwrap_or("0").parse().unwrap();
        lease["metadata"]["resourceVersion"] = (version + 1).to_string().into();
    }

    /// Returns the reason why a term ends after an event, and the time from the event to that end.
    async fn lost(event: impl FnOnce(&Server)) -> (LossReason, Duration) {
        let server = Server::default();
        let elector = server.elector("one");
        let term = elector.acquire(|| {}).await;
        let minute = Instant::now() + Duration::from_secs(60);
        let event = async {
            sleep_until(minute).await;
            event(&server);
        };
        let (reason, ()) = tokio::join!(term.lost(), event);
        (reason, Instant::now().checked_duration_since(minute).expect("the term ends after the event"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_cannot_renew_stops_before_its_lease_expires() {
        let (reason, after) = lost(|server| server.is_unresponsive.store(true, Ordering::Relaxed)).await;
        assert_eq!(reason, LossReason::RenewDeadline);
        assert!(after <= RENEW_DEADLINE && RENEW_DEADLINE < LEASE_DURATION, "{after:?}");
        let (reason, after) = lost(|server| server.refuses_patches.store(true, Ordering::Relaxed)).await;
        assert_eq!(reason, LossReason::RenewDeadline, "the lease can be read, but not renewed");
        assert!(after <= RENEW_DEADLINE, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_stops_when_another_replica_holds_the_lease() {
        let (reason, after) =
            lost(|server| server.change(|lease| lease["spec"]["holderIdentity"] = "two".into())).await;
        assert_eq!(reason, LossReason::NotHolder);
        assert!(after <= RETRY_PERIOD + Duration::from_secs(1), "{after:?}");
        let (reason, _) = lost(|server| *server.lease.lock().unwrap() = Value::Null).await;
        assert_eq!(reason, LossReason::NotHolder, "the lease was deleted");
    }

    #[tokio::test(start_paused = true)]
    async fn other_changes_of_the_lease_do_not_end_a_term() {
        let server = Server::default();
        let elector = server.elector("one");
        let term = elector.acquire(|| {}).await;
        server.change(|lease| lease["metadata"]["annotations"] = json!({"a": "b"}));
        assert!(timeout(Duration::from_secs(60), term.lost()).await.is_err());
        assert_eq!(server.lease.lock().unwrap()["metadata"]["annotations"]["a"], "b");
        assert!((30..=32).contains(&server.patches.load(Ordering::Relaxed)), "one renewal every two seconds");
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_that_hangs_does_not_end_a_term() {
        let server = Server::default();
        let elector = server.elector("one");
        let term = elector.acquire(|| {}).await;
        let hang = async {
            sleep(Duration::from_secs(20)).await;
            server.is_unresponsive.store(true, Ordering::Relaxed);
            sleep(Duration::from_secs(4)).await;
            server.is_unresponsive.store(false, Ordering::Relaxed);
            sleep(Duration::from_secs(60)).await;
        };
        tokio::select! {
            reason = term.lost() => panic!("{reason:?}"),
            () = hang => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_released_lease_can_be_acquired_immediately() {
        let server = Server::default();
        let [one, two] = ["one", "two"].map(|name| server.elector(name));
        let term = one.acquire(|| {}).await;
        assert!(timeout(Duration::from_secs(5), two.acquire(|| {})).await.is_err(), "two holders at once");
        drop(term);
        two.release().await;
        assert_eq!(server.spec("holderIdentity"), "one", "the lease of another holder is not released");
        one.release().await;
        assert_eq!(server.spec("holderIdentity"), Value::Null);
        assert_eq!(server.spec("leaseDurationSeconds"), 1);
        assert!(timeout(Duration::from_secs(5), two.acquire(|| {})).await.is_ok());
        assert_eq!((server.spec("leaseTransitions"), server.spec("leaseDurationSeconds")), (1.into(), 15.into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_is_retried_after_a_late_renewal() {
        let server = Server::default();
        let elector = server.elector("one");
        drop(elector.acquire(|| {}).await);
        // The renewal arrives between the read and the write of the release.
        let renewal = async {
            sleep(Duration::from_millis(7)).await;
            server.change(|lease| lease["spec"]["renewTime"] = "2026-01-01T00:00:00.000000Z".into());
        };
        tokio::join!(elector.release(), renewal);
        assert_eq!(server.spec("holderIdentity"), Value::Null);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_holder_is_replaced_even_if_its_clock_was_wrong() {
        for renewed in ["2199-01-01T00:00:00.000000Z", "1999-01-01T00:00:00.000000Z"] {
            let server = Server::default();
            let spec = json!({"holderIdentity": "killed", "leaseDurationSeconds": 15, "renewTime": renewed, "leaseTransitions": 3});
            *server.lease.lock().unwrap() = json!({"metadata": {"name": NAME, "resourceVersion": "7"}, "spec": spec});
            let (start, elector) = (Instant::now(), server.elector("next"));
            let term = elector.acquire(|| {}).await;
            let after = start.elapsed();
            assert!((LEASE_DURATION..=LEASE_DURATION + RETRY_PERIOD).contains(&after), "{renewed}: {after:?}");
            assert_eq!((server.spec("holderIdentity"), server.spec("leaseTransitions")), ("next".into(), 4.into()));
            assert!(timeout(Duration::from_secs(60), term.lost()).await.is_err(), "the new leader uses its own clock");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_of_many_candidates_wins() {
        let server = Server::default();
        let electors: Vec<_> = (0..20).map(|number| server.elector(&number.to_string())).collect();
        let acquired = electors.iter().map(|elector| timeout(Duration::from_secs(10), elector.acquire(|| {})));
        let acquired = futures_util::future::join_all(acquired).await;
        assert_eq!(acquired.iter().filter(|term| term.is_ok()).count(), 1);
        assert_eq!(server.spec("leaseTransitions"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_candidate_reports_that_it_has_read_the_lease() {
        let server = Server::default();
        server.is_unresponsive.store(true, Ordering::Relaxed);
        let (elector, observed) = (server.elector("one"), AtomicUsize::new(0));
        let on_observed = || {
            observed.fetch_add(1, Ordering::Relaxed);
        };
        assert!(timeout(Duration::from_secs(30), elector.acquire(on_observed)).await.is_err());
        assert_eq!(observed.load(Ordering::Relaxed), 0);
        server.is_unresponsive.store(false, Ordering::Relaxed);
        elector.acquire(on_observed).await;
        assert_eq!(observed.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_unchanged_lease_is_available_after_its_duration() {
        let lease = |holder: &str, renewed: &str| -> Lease {
            serde_json::from_value(json!({"metadata": {}, "spec": {"holderIdentity": holder, "renewTime": renewed}}))
                .unwrap()
        };
        let (start, mut observed) = (Instant::now(), ObservedLease::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        let in_future = lease("two", "2199-01-01T00:00:00.000000Z");
        assert!(observed.is_available(None, "one", start));
        assert!(observed.is_available(Some(&lease("", "2026-01-01T00:00:00.000000Z")), "one", start), "released");
        assert!(observed.is_available(Some(&lease("one", "2026-01-01T00:00:00.000000Z")), "one", start), "its own");
        assert!(!observed.is_available(Some(&in_future), "one", start));
        assert!(!observed.is_available(Some(&in_future), "one", at(14)));
        assert!(observed.is_available(Some(&in_future), "one", at(15)));
        assert!(!observed.is_available(Some(&lease("two", "2199-01-01T00:00:05.000000Z")), "one", at(16)), "renewed");
    }
}
