//! The self-managed certificate of one replica: follows the authority's Secret and what the API server trusts, and signs its own
//! serving certificate. Writes nothing into the cluster.

use std::time::Duration;

use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
};
use kube::Client;
use time::OffsetDateTime;
use tokio::{
    sync::watch,
    time::{self as clock, Instant, MissedTickBehavior},
};

use super::{
    Leaf, Serving,
    authority::{Lacking, Stored},
    replica::{Clock, Replica},
    trusted::Trusted,
};
use crate::{
    kubernetes::{ObjectKey, Store, Watch},
    telemetry::{Causes, CertificateMetrics},
};

/// The Secret of the authority, in the namespace of the program.
pub(crate) const SECRET: &str = "spillway-ca";

/// The configuration whose `caBundle` says what the API server trusts.
pub(crate) const CONFIGURATION: &str = "aci-spillway";

/// How often the wall clock is read: timers alone stand still while a machine is suspended, and do not hear of a clock that was
/// set.
const PERIOD: Duration = Duration::from_secs(10);

/// Keeps a certificate in `serving` that the API server trusts. Never ends; whatever fails, the last good one stays.
pub async fn self_managed(client: Client, namespace: String, serving: Serving, metrics: CertificateMetrics) {
    let secret = Watch::namespaced(&client, "secrets", &namespace).named(SECRET);
    let configuration = Watch::all(&client, "mutatingwebhookconfigurations").named(CONFIGURATION);
    let (publish_secret, secrets) = watch::channel(Store::default());
    let (publish_configuration, configurations) = watch::channel(Store::default());
    tokio::join!(
        secret.run(Some, &publish_secret),
        configuration.run(Some, &publish_configuration),
        sign(namespace, serving, metrics, secrets, configurations),
    );
}

async fn sign(
    namespace: String,
    serving: Serving,
    metrics: CertificateMetrics,
    mut secrets: watch::Receiver<Store<Secret>>,
    mut configurations: watch::Receiver<Store<MutatingWebhookConfiguration>>,
) {
    let mut ticks = clock::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut signer = Signer::new(&namespace, serving, metrics);
    let (secret, configuration) = (ObjectKey::new(namespace, SECRET), ObjectKey::cluster_scoped(CONFIGURATION));
    loop {
        // What may not be read changes nothing.
        tokio::select! {
            Ok(()) = secrets.changed() => {
                let secrets = secrets.borrow_and_update();
                if secrets.is_listed() {
                    signer.see_secret(secrets.get(&secret));
                }
            }
            Ok(()) = configurations.changed() => {
                let configurations = configurations.borrow_and_update();
                if configurations.is_listed() {
                    signer.replica.trusted.observe(configurations.get(&configuration), Instant::now());
                }
            }
            _ = ticks.tick() => {}
        }
        signer.renew(OffsetDateTime::now_utc(), Instant::now());
    }
}

/// What of the Secret is looked at.
pub(crate) fn read(secret: Option<&Secret>) -> Result<Stored, Lacking> {
    let data = secret.ok_or(Lacking::Missing)?.data.as_ref();
    let data = data.into_iter().flatten().map(|(key, ByteString(value))| (key.clone(), value));
    Ok(Stored::read(&data.collect())?)
}

struct Signer {
    replica: Replica,
    names: Vec<String>,
    clock: Clock,
    serving: Serving,
    metrics: CertificateMetrics,
    namespace: String,
    /// What was last said to be missing: each is logged once.
    missing: Option<&'static str>,
}

impl Signer {
    fn new(namespace: &str, serving: Serving, metrics: CertificateMetrics) -> Self {
        Self {
            replica: Replica::default(),
            names: names(namespace),
            clock: Clock::start(OffsetDateTime::now_utc(), Instant::now()),
            serving,
            metrics,
            namespace: namespace.to_owned(),
            missing: None,
        }
    }

    fn see_secret(&mut self, secret: Option<&Secret>) {
        let read = read(secret);
        if let Err(Lacking::Malformed(error)) = &read {
            tracing::warn!(error = %Causes(error), namespace = self.namespace, name = SECRET, "malformed Secret");
        }
        self.replica.stored = Some(read);
    }

    fn renew(&mut self, wall: OffsetDateTime, at: Instant) {
        let now = self.clock.read(wall, at);
        match self.replica.renew(&self.names, now, at).map(|key| key.map(Leaf::new)) {
            Ok(None) => {}
            Ok(Some(Ok(leaf))) => {
                tracing::info!(notAfter = %leaf.not_after(), "signed a serving certificate");
                self.metrics.loaded(leaf.not_after());
                self.serving.replace(leaf);
            }
            Ok(Some(Err(error))) => self.refuse(&error),
            Err(error) => self.refuse(&error),
        }
        self.say_what_is_missing();
    }

    fn refuse(&self, error: &dyn std::error::Error) {
        tracing::error!(error = %Causes(error), "cannot sign a serving certificate");
        self.metrics.load_failed();
    }

    fn say_what_is_missing(&mut self) {
        let missing = missing(&self.replica);
        if let Some(what) = missing {
            self.serving.wait_for(what);
        }
        if missing != self.missing {
            let namespace = &self.namespace;
            match (missing, self.serving.current()) {
                (Some(waiting), None) => tracing::info!(waiting, namespace, "no serving certificate yet"),
                (Some(waiting), Some(_)) => tracing::warn!(waiting, namespace, "going on with the last authority"),
                (None, _) => tracing::info!("nothing is missing for the serving certificate"),
            }
            self.missing = missing;
        }
    }
}

/// What a replica waits for before it can sign a certificate that the API server trusts.
fn missing(replica: &Replica) -> Option<&'static str> {
    let stored = match (&replica.stored, &replica.trusted) {
        (None, _) => return Some("certificate: cannot look for Secret spillway-ca"),
        (_, Trusted::Unknown) => return Some("certificate: cannot look for MutatingWebhookConfiguration aci-spillway"),
        (Some(Err(Lacking::Missing)), _) => {
            return Some("certificate: waiting for Secret spillway-ca, which spillway-controller writes");
        }
        (Some(Err(Lacking::Malformed(_))), _) => {
            return Some("certificate: Secret spillway-ca is malformed, spillway-controller replaces it");
        }
        (Some(Ok(stored)), _) => stored,
    };
    let mut signing = [Some(&stored.current), stored.next.as_ref()].into_iter().flatten();
    let is_carried = signing.any(|authority| replica.trusted.carries(authority.certificate()));
    (!is_carried).then_some("certificate: waiting for the caBundle of aci-spillway, which spillway-controller writes")
}

/// The names by which the API server reaches the webhook: through its Service, or on this machine.
fn names(namespace: &str) -> Vec<String> {
    let service = format!("spillway-webhook.{namespace}.svc");
    let cluster = format!("{service}.cluster.local");
    [service.as_str(), &cluster, "localhost", "127.0.0.1", "::1"].map(str::to_owned).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        Signer::new("spillway-system", Serving::default(), CertificateMetrics::default())
    }

    fn secret(stored: &Stored) -> Secret {
        let data = stored.data().into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))).collect();
        Secret { data: Some(data), ..Secret::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_says_what_the_certificate_waits_for() {
        let (mut signer, now) = (signer(), OffsetDateTime::now_utc());
        let stored = Stored::replace(&[], now).unwrap();
        let mut step = |change: &dyn Fn(&mut Signer)| {
            change(&mut signer);
            signer.renew(now, Instant::now());
            signer.serving.missing(now).unwrap_or("nothing")
        };
        assert_eq!(step(&|_| {}), "certificate: cannot look for Secret spillway-ca");
        let missing = step(&|signer| signer.see_secret(None));
        assert_eq!(missing, "certificate: cannot look for MutatingWebhookConfiguration aci-spillway");
        let trust = |bundle: &str| {
            let bundle = bundle.to_owned();
            move |signer: &mut Signer| signer.replica.trusted.observe_bundles(&[bundle.as_bytes()], Instant::now())
        };
        let missing = step(&trust(""));
        assert_eq!(missing, "certificate: waiting for Secret spillway-ca, which spillway-controller writes");
        let missing = step(&|signer| signer.see_secret(Some(&Secret::default())));
        assert_eq!(missing, "certificate: Secret spillway-ca is malformed, spillway-controller replaces it");
        let missing = step(&|signer| signer.see_secret(Some(&secret(&stored))));
        assert_eq!(missing, "certificate: waiting for the caBundle of aci-spillway, which spillway-controller writes");
        assert_eq!(step(&trust(&stored.bundle())), "nothing");
        assert_eq!(step(&|signer| signer.see_secret(None)), "nothing", "the last good one stays");
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_is_renewed_by_the_wall_clock_while_timers_stand_still() {
        let (mut signer, now) = (signer(), OffsetDateTime::now_utc());
        let stored = Stored::replace(&[], now).unwrap();
        signer.see_secret(Some(&secret(&stored)));
        signer.replica.trusted.observe(None, Instant::now());
        let frozen = Instant::now();
        let mut renewed = |wall: OffsetDateTime| {
            signer.renew(wall, frozen);
            signer.serving.current().unwrap().not_after().replace_nanosecond(0).unwrap()
        };
        let first = renewed(now);
        assert_eq!(renewed(now + time::Duration::hours(15)), first);
        assert_eq!(renewed(now + time::Duration::hours(16)), first + time::Duration::hours(16));
    }
}
