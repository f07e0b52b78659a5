//! The Lease `spillway-controller`: at most one replica means to act.
//!
//! Taken, renewed and given back by kube-lease-manager. Two things it leaves to its caller are done here:
//!
//! - A holder that cannot renew stays a holder in its eyes, for as long as the API server cannot be reached or its clock was set back.
//!   Here it acts only while the Lease is *seen* to be renewed, by the monotonic clock, and so stops before anybody else takes over.
//! - It waits until the end of a lease that it has seen, even if the holder has given it back meanwhile. Here a free lease is noticed
//!   within two seconds.
//!
//! Both mean one GET every two seconds. A lease alone is no lock: whoever is paused at the wrong moment acts once more after it. So
//! every write of the controller is conditional all the same.

use std::time::Duration;

use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{Api, Client};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::NAME;
use crate::telemetry::Causes;

/// How long a lease is valid after a renewal, as in client-go.
const DURATION: Duration = Duration::from_secs(15);

/// It is renewed every five seconds: so long before its end.
const GRACE: Duration = Duration::from_secs(10);

/// How long the holder acts after a renewal was seen: two more may fail. Seen at most `POLL` and `ANSWER` late, so that it stops
/// before the lease ends.
const TENURE: Duration = Duration::from_secs(10);

/// How often the lease is looked at.
const POLL: Duration = Duration::from_secs(2);

/// How long one look may take.
const ANSWER: Duration = Duration::from_secs(2);

/// How long taking a free lease may take: the manager waits up to a second to avoid others, and backs off after conflicts.
const CAMPAIGN: Duration = Duration::from_secs(10);

/// Whether this replica acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The lease has not been seen yet.
    Unknown,
    /// Another replica acts, or none.
    StandingBy,
    /// This one does.
    Leading,
}

/// Why this replica no longer acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// Another replica, or nobody, holds the lease.
    Taken,
    /// No renewal was seen in time.
    Unseen,
}

/// One replica's part in the election.
pub(super) struct Election {
    client: Client,
    leases: Api<Lease>,
    namespace: String,
    identity: String,
}

impl Election {
    pub(super) fn new(client: Client, namespace: &str, identity: &str) -> Self {
        let leases = Api::namespaced(client.clone(), namespace);
        Self { client, leases, namespace: namespace.to_owned(), identity: identity.to_owned() }
    }

    /// Waits until the lease is free, and takes it. `seen` is told when the lease has been looked at.
    pub(super) async fn win(&self, seen: impl Fn()) -> Tenure<'_> {
        let mut watched = Watched::default();
        loop {
            match self.look().await {
                Ok(lease) => {
                    seen();
                    if watched.is_free(lease.as_ref(), &self.identity, Instant::now()) {
                        match timeout(CAMPAIGN, self.campaign()).await {
                            Ok(Ok(tenure)) => return tenure,
                            Ok(Err(error)) => warn(&error),
                            Err(_elapsed) => tracing::debug!("another replica was faster"),
                        }
                    }
                }
                Err(error) => tracing::warn!(error = %Causes(&*error), "cannot see the lease"),
            }
            sleep(POLL).await;
        }
    }

    async fn look(&self) -> Result<Option<Lease>, Box<dyn std::error::Error>> {
        Ok(timeout(ANSWER, self.leases.get_opt(NAME)).await??)
    }

    async fn campaign(&self) -> Result<Tenure<'_>, LeaseManagerError> {
        let manager = self.manager().await?;
        // One that this replica still holds may be from a clock that has been set back since: taken anew, it is dated anew.
        manager.release().await?;
        while !manager.changed().await? {}
        Ok(Tenure { election: self, manager, since: Instant::now() })
    }

    async fn manager(&self) -> Result<LeaseManager, LeaseManagerError> {
        LeaseManagerBuilder::new(self.client.clone(), NAME)
            .with_namespace(&self.namespace)
            .with_identity(&self.identity)
            .with_duration(DURATION.as_secs())
            .with_grace(GRACE.as_secs())
            .build()
            .await
    }

    /// Gives the lease back if this replica holds it, so that another one need not wait for its end.
    pub(super) async fn give_back(&self) {
        let given_back = timeout(ANSWER, async {
            let held = self.look().await?;
            if held.as_ref().and_then(holder) == Some(&self.identity) {
                self.manager().await?.release().await?;
                tracing::info!("gave the lease back");
            }
            Ok::<_, Box<dyn std::error::Error>>(())
        });
        if given_back.await.map_or(true, |result| result.is_err()) {
            tracing::warn!("could not give the lease back, it ends by itself");
        }
    }
}

fn warn(error: &LeaseManagerError) {
    tracing::warn!(error = %Causes(error), "cannot take or renew the lease, trying again");
}

/// The time in which this replica may act.
pub(super) struct Tenure<'a> {
    election: &'a Election,
    manager: LeaseManager,
    since: Instant,
}

impl Tenure<'_> {
    /// Renews the lease; ends when this replica must not act any more.
    pub(super) async fn lost(&self) -> Lost {
        tokio::select! {
            lost = self.renew() => lost,
            lost = self.observe() => lost,
        }
    }

    async fn renew(&self) -> Lost {
        loop {
            match self.manager.changed().await {
                Ok(true) => {}
                Ok(false) => return Lost::Taken,
                Err(error) => {
                    warn(&error);
                    sleep(POLL).await;
                }
            }
        }
    }

    async fn observe(&self) -> Lost {
        let (mut renewed, mut last) = (None, self.since);
        loop {
            let looked = Instant::now();
            match timeout_at(last + TENURE, self.election.look()).await {
                Err(_elapsed) => return Lost::Unseen,
                Ok(Err(_)) => {}
                Ok(Ok(lease)) if lease.as_ref().and_then(holder) != Some(&self.election.identity) => {
                    return Lost::Taken;
                }
                Ok(Ok(lease)) => {
                    let renewal = lease.as_ref().and_then(renewal);
                    if renewal != renewed {
                        (renewed, last) = (renewal, looked);
                    }
                }
            }
            if timeout_at(last + TENURE, sleep(POLL)).await.is_err() {
                return Lost::Unseen;
            }
        }
    }
}

/// What a replica that stands by has seen of the lease.
#[derive(Debug, Default)]
struct Watched {
    renewal: Option<MicroTime>,
    since: Option<Instant>,
}

impl Watched {
    /// Whether nobody else holds the lease: it is not there, was given back, is this replica's own, or was not renewed for as long as
    /// it is valid, by this replica's monotonic clock.
    fn is_free(&mut self, lease: Option<&Lease>, identity: &str, now: Instant) -> bool {
        if lease.and_then(holder).is_none_or(|holder| holder == identity) {
            return true;
        }
        let renewal = lease.and_then(renewal);
        if renewal != self.renewal || self.since.is_none() {
            *self = Self { renewal, since: Some(now) };
        }
        self.since.is_some_and(|since| now >= since + DURATION)
    }
}

fn holder(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref()
}

fn renewal(lease: &Lease) -> Option<MicroTime> {
    lease.spec.as_ref()?.renew_time.clone()
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc, Mutex,
            atomic::{AtomicBool, Ordering},
        },
    };

    use axum::{body::to_bytes, http};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// An API server that has one lease, as far as the manager looks into it.
    #[derive(Clone, Default)]
    struct Server {
        lease: Arc<Mutex<Value>>,
        refuses_patches: Arc<AtomicBool>,
        is_mute: Arc<AtomicBool>,
    }

    impl Server {
        fn new() -> Self {
            let server = Self::default();
            *server.lease.lock().unwrap() = json!({"metadata": {"name": NAME}, "spec": {}});
            server
        }

        fn client(&self) -> Client {
            let server = self.clone();
            Client::new(tower::service_fn(move |request| server.clone().answer(request)), "default")
        }

        async fn answer(self, request: http::Request<Body>) -> Result<http::Response<Body>, Infallible> {
            if self.is_mute.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            // As long as a network takes, so that paused time goes on.
            sleep(Duration::from_millis(5)).await;
            let is_patch = request.method() == http::Method::PATCH;
            let body = to_bytes(axum::body::Body::new(request.into_body()), usize::MAX).await.unwrap();
            let status = if is_patch && self.refuses_patches.load(Ordering::Relaxed) { 500 } else { 200 };
            let mut lease = self.lease.lock().unwrap();
            if is_patch && status == 200 {
                let patch: Value = serde_json::from_slice(&body).unwrap();
                for (field, value) in patch["spec"].as_object().unwrap() {
                    lease["spec"][field] = value.clone();
                }
            }
            let body = if status == 200 { lease.to_string() } else { r#"{"code":500,"message":"down"}"#.to_owned() };
            Ok(http::Response::builder().status(status).body(Body::from(body.into_bytes())).unwrap())
        }

        fn is_given_to(&self, holder: &str) {
            self.lease.lock().unwrap()["spec"]["holderIdentity"] = holder.into();
        }
    }

    /// How long it took until the tenure was lost that `happens` to, from when it does.
    async fn lost(happens: impl FnOnce(&Server)) -> (Lost, Duration) {
        let server = Server::new();
        let election = Election::new(server.client(), "spillway-system", "one");
        let tenure = election.win(|| {}).await;
        let minute = Instant::now() + Duration::from_secs(60);
        let event = async {
            sleep(minute - Instant::now()).await;
            happens(&server);
        };
        let (why, ()) = tokio::join!(tenure.lost(), event);
        (why, Instant::now().checked_duration_since(minute).expect("lost for no reason"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_cannot_reach_the_api_server_stops_before_its_lease_ends() {
        let (why, after) = lost(|server| server.is_mute.store(true, Ordering::Relaxed)).await;
        assert_eq!(why, Lost::Unseen);
        assert!(after < DURATION, "{after:?}");
        let (why, after) = lost(|server| server.refuses_patches.store(true, Ordering::Relaxed)).await;
        assert_eq!(why, Lost::Unseen, "the lease can be seen, but not renewed");
        assert!(after < DURATION, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_stops_when_it_sees_that_another_one_holds_the_lease() {
        let (why, after) = lost(|server| server.is_given_to("two")).await;
        assert_eq!(why, Lost::Taken);
        assert!(after <= POLL + ANSWER, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_given_back_can_be_taken_at_once() {
        let server = Server::new();
        let [one, two] = ["one", "two"].map(|name| Election::new(server.client(), "spillway-system", name));
        let tenure = one.win(|| {}).await;
        assert!(timeout(Duration::from_secs(5), two.win(|| {})).await.is_err(), "two holders at once");
        drop(tenure);
        two.give_back().await;
        assert_eq!(server.lease.lock().unwrap()["spec"]["holderIdentity"], "one", "not its own to give back");
        one.give_back().await;
        assert_eq!(server.lease.lock().unwrap()["spec"]["holderIdentity"], Value::Null);
        assert!(timeout(Duration::from_secs(5), two.win(|| {})).await.is_ok());
    }

    #[test]
    fn a_lease_that_is_not_renewed_for_as_long_as_it_is_valid_is_free_whatever_its_date() {
        let lease = |holder: &str, renewed: &str| -> Lease {
            serde_json::from_value(json!({"metadata": {}, "spec": {"holderIdentity": holder, "renewTime": renewed}}))
                .unwrap()
        };
        let (start, mut watched) = (Instant::now(), Watched::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        let far_off = lease("two", "2199-01-01T00:00:00.000000Z");
        assert!(watched.is_free(None, "one", start));
        assert!(watched.is_free(Some(&lease("one", "2026-01-01T00:00:00.000000Z")), "one", start), "its own");
        assert!(!watched.is_free(Some(&far_off), "one", start));
        assert!(!watched.is_free(Some(&far_off), "one", at(14)));
        assert!(watched.is_free(Some(&far_off), "one", at(15)));
        assert!(!watched.is_free(Some(&lease("two", "2199-01-01T00:00:05.000000Z")), "one", at(16)), "renewed");
    }
}
