//! The self-managed certificate of one replica. The replica watches the CA Secret and the `caBundle`, and signs its own
//! serving certificate. It does not write to the cluster.

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
    authority::{CaSecret, SecretError},
    bundle_trust::BundleTrust,
    leaf_signer::{LeafSigner, SteadyClock},
    serving_certificate::{Leaf, ServingCertificate},
};
use crate::{
    kubernetes::{ObjectKey, Store, Watch},
    telemetry::{Causes, CertificateMetrics},
};

/// Name of the CA Secret, in the namespace of the program.
pub(crate) const CA_SECRET_NAME: &str = "spillway-ca";

/// Name of the MutatingWebhookConfiguration, whose `caBundle` the API server trusts.
pub(crate) const WEBHOOK_CONFIGURATION_NAME: &str = "aci-spillway";

/// Interval of checks of the wall clock. Timers stop while a machine is suspended, and ignore changes of the clock.
const WALL_CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Keeps a certificate in `serving` that the API server trusts. Never returns. On failure, it keeps the last certificate.
pub async fn self_managed(client: Client, namespace: String, serving: ServingCertificate, metrics: CertificateMetrics) {
    let secret = Watch::namespaced(&client, "secrets", &namespace).named(CA_SECRET_NAME);
    let configuration = Watch::all(&client, "mutatingwebhookconfigurations").named(WEBHOOK_CONFIGURATION_NAME);
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
    serving: ServingCertificate,
    metrics: CertificateMetrics,
    mut secrets: watch::Receiver<Store<Secret>>,
    mut configurations: watch::Receiver<Store<MutatingWebhookConfiguration>>,
) {
    let mut ticks = clock::interval(WALL_CLOCK_CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut certificate = SelfManagedCertificate::new(&namespace, serving, metrics);
    let (secret, configuration) =
        (ObjectKey::new(namespace, CA_SECRET_NAME), ObjectKey::cluster_scoped(WEBHOOK_CONFIGURATION_NAME));
    loop {
        // Ignores a watch that cannot list.
        tokio::select! {
            Ok(()) = secrets.changed() => {
                let secrets = secrets.borrow_and_update();
                if secrets.is_listed() {
                    certificate.observe_secret(secrets.get(&secret));
                }
            }
            Ok(()) = configurations.changed() => {
                let configurations = configurations.borrow_and_update();
                if configurations.is_listed() {
                    certificate.signer.trusted.observe(configurations.get(&configuration), Instant::now());
                }
            }
            _ = ticks.tick() => {}
        }
        certificate.renew(OffsetDateTime::now_utc(), Instant::now());
    }
}

/// Reads the data of the CA Secret.
pub(crate) fn read_ca_secret(secret: Option<&Secret>) -> Result<CaSecret, SecretError> {
    let data = secret.ok_or(SecretError::Missing)?.data.as_ref();
    let data = data.into_iter().flatten().map(|(key, ByteString(value))| (key.clone(), value));
    Ok(CaSecret::read(&data.collect())?)
}

struct SelfManagedCertificate {
    signer: LeafSigner,
    names: Vec<String>,
    clock: SteadyClock,
    serving: ServingCertificate,
    metrics: CertificateMetrics,
    namespace: String,
    /// The last logged reason. Each reason is logged once.
    waiting_for: Option<&'static str>,
}

impl SelfManagedCertificate {
    fn new(namespace: &str, serving: ServingCertificate, metrics: CertificateMetrics) -> Self {
        Self {
            signer: LeafSigner::default(),
            names: server_names(namespace),
            clock: SteadyClock::start(OffsetDateTime::now_utc(), Instant::now()),
            serving,
            metrics,
            namespace: namespace.to_owned(),
            waiting_for: None,
        }
    }

    fn observe_secret(&mut self, secret: Option<&Secret>) {
        let read = read_ca_secret(secret);
        if let Err(SecretError::Malformed(error)) = &read {
            tracing::warn!(error = %Causes(error), namespace = self.namespace, name = CA_SECRET_NAME, "malformed Secret");
        }
        self.signer.stored = Some(read);
    }

    fn renew(&mut self, wall: OffsetDateTime, at: Instant) {
        let now = self.clock.read(wall, at);
        match self.signer.sign_if_due(&self.names, now, at).map(|key| key.map(Leaf::new)) {
            Ok(None) => {}
            Ok(Some(Ok(leaf))) => {
                tracing::info!(notAfter = %leaf.not_after(), "signed a serving certificate");
                self.metrics.loaded(leaf.not_after());
                self.serving.replace(leaf);
            }
            Ok(Some(Err(error))) => self.log_failure(&error),
            Err(error) => self.log_failure(&error),
        }
        self.log_waiting_reason();
    }

    fn log_failure(&self, error: &dyn std::error::Error) {
        tracing::error!(error = %Causes(error), "cannot sign a serving certificate");
        self.metrics.load_failed();
    }

    fn log_waiting_reason(&mut self) {
        let reason = waiting_reason(&self.signer);
        if let Some(reason) = reason {
            self.serving.set_waiting_reason(reason);
        }
        if reason != self.waiting_for {
            let namespace = &self.namespace;
            match (reason, self.serving.current()) {
                (Some(waiting), None) => tracing::info!(waiting, namespace, "waiting for a serving certificate"),
                (Some(waiting), Some(_)) => {
                    tracing::warn!(waiting, namespace, "keeping the last certificate authority");
                }
                (None, _) => tracing::info!("serving certificate is up to date"),
            }
            self.waiting_for = reason;
        }
    }
}

/// Returns the missing condition for signing a certificate that the API server trusts. `None` if the replica can sign.
fn waiting_reason(signer: &LeafSigner) -> Option<&'static str> {
    let stored = match (&signer.stored, &signer.trusted) {
        (None, _) => return Some("certificate: cannot read Secret spillway-ca"),
        (_, BundleTrust::Unknown) => {
            return Some("certificate: cannot read MutatingWebhookConfiguration aci-spillway");
        }
        (Some(Err(SecretError::Missing)), _) => {
            return Some("certificate: waiting for Secret spillway-ca, which spillway-controller writes");
        }
        (Some(Err(SecretError::Malformed(_))), _) => {
            return Some("certificate: Secret spillway-ca is malformed, spillway-controller replaces it");
        }
        (Some(Ok(stored)), _) => stored,
    };
    let mut signing = [Some(&stored.current), stored.next.as_ref()].into_iter().flatten();
    let is_trusted = signing.any(|authority| signer.trusted.trusts(authority.certificate()));
    (!is_trusted).then_some("certificate: waiting for the caBundle of aci-spillway, which spillway-controller writes")
}

/// DNS names and IP addresses of the webhook: its Service, or this machine.
fn server_names(namespace: &str) -> Vec<String> {
    let service = format!("spillway-webhook.{namespace}.svc");
    let cluster = format!("{service}.cluster.local");
    [service.as_str(), &cluster, "localhost", "127.0.0.1", "::1"].map(str::to_owned).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> SelfManagedCertificate {
        SelfManagedCertificate::new("spillway-system", ServingCertificate::default(), CertificateMetrics::default())
    }

    fn secret(stored: &CaSecret) -> Secret {
        let data = stored.data().into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))).collect();
        Secret { data: Some(data), ..Secret::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_reports_the_missing_condition() {
        let (mut signer, now) = (signer(), OffsetDateTime::now_utc());
        let stored = CaSecret::replace(&[], now).unwrap();
        let mut step = |change: &dyn Fn(&mut SelfManagedCertificate)| {
            change(&mut signer);
            signer.renew(now, Instant::now());
            signer.serving.not_ready_reason(now).unwrap_or("nothing")
        };
        assert_eq!(step(&|_| {}), "certificate: cannot read Secret spillway-ca");
        let missing = step(&|signer| signer.observe_secret(None));
        assert_eq!(missing, "certificate: cannot read MutatingWebhookConfiguration aci-spillway");
        let trust = |bundle: &str| {
            let bundle = bundle.to_owned();
            move |signer: &mut SelfManagedCertificate| {
                signer.signer.trusted.observe_bundles(&[bundle.as_bytes()], Instant::now());
            }
        };
        let missing = step(&trust(""));
        assert_eq!(missing, "certificate: waiting for Secret spillway-ca, which spillway-controller writes");
        let missing = step(&|signer| signer.observe_secret(Some(&Secret::default())));
        assert_eq!(missing, "certificate: Secret spillway-ca is malformed, spillway-controller replaces it");
        let missing = step(&|signer| signer.observe_secret(Some(&secret(&stored))));
        assert_eq!(missing, "certificate: waiting for the caBundle of aci-spillway, which spillway-controller writes");
        assert_eq!(step(&trust(&stored.bundle())), "nothing");
        assert_eq!(step(&|signer| signer.observe_secret(None)), "nothing", "the replica keeps the last certificate");
    }

    #[tokio::test(start_paused = true)]
    async fn renewal_follows_the_wall_clock_while_timers_are_frozen() {
        let (mut signer, now) = (signer(), OffsetDateTime::now_utc());
        let stored = CaSecret::replace(&[], now).unwrap();
        signer.observe_secret(Some(&secret(&stored)));
        signer.signer.trusted.observe(None, Instant::now());
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
