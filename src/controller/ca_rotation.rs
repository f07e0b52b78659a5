//! Keeps the certificate authority in Secret `spillway-ca`: creates it, rotates it, and replaces it if it is unusable.

use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
};
use kube::{
    Api, Client, Resource,
    api::{ObjectMeta, PostParams},
    runtime::events::EventType,
};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{
    clock::{ClockError, server_time},
    context::Context,
    events::EventRecorder,
    names::{FIELD_MANAGER, NAME},
    reconcile::{Outcome, run_rounds},
};
use crate::{
    certs::{
        authority::{AuthorityError, CaCertificate, CaSecret, RotationReason, RotationStep, SecretError, next_step},
        bundle_trust::BundleTrust,
        self_managed::{CA_SECRET_NAME, WEBHOOK_CONFIGURATION_NAME, read_ca_secret},
    },
    cluster::Inventory,
    kubernetes::is_conflict,
    telemetry::{Causes, ControllerMetrics},
};

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotationError {
    /// The API server refused to read or write an object.
    #[error("cannot {0}")]
    Api(&'static str, #[source] kube::Error),
    /// The time is unknown.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// No authority could be created.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Runs rounds until the future is dropped.
pub(super) async fn run(context: &Context, inventory: &Inventory) {
    let Context { client, namespace, events, metrics, .. } = context;
    let mut reconciler = AuthorityReconciler::new(client.clone(), namespace, events.clone(), metrics.clone());
    let round = async || if context.is_self_managed() { reconciler.round().await } else { Ok(Outcome::UpToDate) };
    Box::pin(run_rounds("authority", metrics, context.certificate_changes(inventory), round)).await;
}

/// Creates, rotates and replaces the authority.
pub struct AuthorityReconciler {
    client: Client,
    secrets: Api<Secret>,
    namespace: String,
    events: EventRecorder,
    metrics: ControllerMetrics,
    trusted: BundleTrust,
    /// The certificates that the Secret last held. If the Secret and the bundle are both lost, replicas still serve with these.
    known: Vec<CaCertificate>,
}

struct Observation {
    secret: Option<Secret>,
    stored: Result<CaSecret, SecretError>,
    now: OffsetDateTime,
}

impl AuthorityReconciler {
    /// Returns a reconciler that has observed nothing yet.
    pub fn new(client: Client, namespace: &str, events: EventRecorder, metrics: ControllerMetrics) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            client,
            namespace: namespace.to_owned(),
            events,
            metrics,
            trusted: BundleTrust::default(),
            known: Vec::new(),
        }
    }

    /// Observes once, and takes at most one step. The write applies to the observed version only, so no change of another client is
    /// overwritten.
    ///
    /// # Errors
    ///
    /// If the API server does not respond or refuses the request, or if no authority can be created.
    pub async fn round(&mut self) -> Result<Outcome, RotationError> {
        let Observation { secret, stored, now } = self.observe().await?;
        let next = stored.as_ref().ok().and_then(|stored| stored.next.as_ref());
        let is_trusted = next.is_some_and(|next| self.trusted.is_propagated(next.certificate(), Instant::now()));
        let step = next_step(stored.as_ref(), is_trusted, now);
        let Some(wanted) = self.plan(step, stored, now)? else { return Ok(Outcome::UpToDate) };
        let Some(written) = self.apply(secret, &wanted).await? else { return Ok(Outcome::Conflict) };
        self.report(&written, step, &wanted).await;
        Ok(Outcome::Changed)
    }

    async fn observe(&mut self) -> Result<Observation, RotationError> {
        let now = server_time(&self.client).await?;
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let read_error = |error| RotationError::Api("read MutatingWebhookConfiguration aci-spillway", error);
        let configuration = configurations.get_opt(WEBHOOK_CONFIGURATION_NAME).await.map_err(read_error)?;
        self.trusted.observe(configuration.as_ref(), Instant::now());
        let secret = self.secrets.get_opt(CA_SECRET_NAME).await;
        let secret = secret.map_err(|error| RotationError::Api("read Secret spillway-ca", error))?;
        let stored = read_ca_secret(secret.as_ref());
        match &stored {
            Ok(stored) => self.remember(stored),
            Err(SecretError::Missing) => {}
            Err(malformed) => {
                let error = Causes(malformed);
                tracing::warn!(%error, namespace = self.namespace, name = CA_SECRET_NAME, "no usable certificate authority");
            }
        }
        Ok(Observation { secret, stored, now })
    }

    fn remember(&mut self, stored: &CaSecret) {
        self.known = stored.certificates().cloned().collect();
        let old = stored.old.as_ref().map_or(0, |old| old.certificates.len());
        let next = stored.next.iter().count();
        self.metrics.authority(stored.current.certificate().not_after(), next, old);
    }

    /// Returns the desired content of the Secret. Returns `None` if the Secret needs no change.
    fn plan(
        &self,
        step: RotationStep,
        stored: Result<CaSecret, SecretError>,
        now: OffsetDateTime,
    ) -> Result<Option<CaSecret>, AuthorityError> {
        let wanted = match (step, stored) {
            (RotationStep::Replace(_), _) => {
                let trusted = [self.known.as_slice(), &self.trusted.certificates()].concat();
                CaSecret::replace(&trusted, now)?
            }
            (RotationStep::Prepare(_), Ok(stored)) => stored.prepare(now)?,
            (RotationStep::Promote(_), Ok(stored)) => stored.promote(now),
            (RotationStep::Retire, Ok(stored)) => stored.retire(),
            // The other steps need a stored authority.
            (RotationStep::Keep, _) | (_, Err(_)) => return Ok(None),
        };
        Ok(Some(wanted))
    }

    /// Creates the Secret, or replaces the observed version. Returns `None` if another client was faster.
    async fn apply(&self, observed: Option<Secret>, wanted: &CaSecret) -> Result<Option<Secret>, RotationError> {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let data = wanted.data().into_iter().map(|(key, value)| (key, ByteString(value.into_bytes())));
        let data = Some(data.collect());
        let written = if let Some(observed) = observed {
            // The API server compares the observed resourceVersion.
            self.secrets.replace(CA_SECRET_NAME, &params, &Secret { data, ..observed }).await
        } else {
            let labels = [("app.kubernetes.io/name", "spillway"), ("app.kubernetes.io/managed-by", NAME)];
            let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
            let metadata = ObjectMeta {
                name: Some(CA_SECRET_NAME.to_owned()),
                labels: Some(labels.into()),
                ..ObjectMeta::default()
            };
            let type_ = Some("kubernetes.io/tls".to_owned());
            self.secrets.create(&params, &Secret { metadata, data, type_, ..Secret::default() }).await
        };
        match written {
            Ok(written) => Ok(Some(written)),
            Err(error) if is_conflict(&error) => Ok(None),
            Err(error) => Err(RotationError::Api("write Secret spillway-ca", error)),
        }
    }

    async fn report(&mut self, written: &Secret, step: RotationStep, wanted: &CaSecret) {
        self.remember(wanted);
        let not_after = wanted.current.certificate().not_after();
        tracing::info!(step = ?step, notAfter = %not_after, "wrote the certificate authority");
        let (type_, reason, note) = match step {
            RotationStep::Keep => return,
            RotationStep::Replace(RotationReason::Missing) => {
                (EventType::Normal, "AuthorityCreated", "the Secret did not exist".to_owned())
            }
            RotationStep::Replace(why) => {
                (EventType::Warning, "AuthorityReplaced", format!("the former authority was unusable: {why}"))
            }
            RotationStep::Prepare(why) => {
                (EventType::Normal, "AuthorityRotating", format!("created a successor: {why}"))
            }
            RotationStep::Promote(why) => {
                (EventType::Normal, "AuthorityRotated", format!("the successor signs now: {why}"))
            }
            RotationStep::Retire => {
                (EventType::Normal, "AuthorityRetired", "former authorities are no longer trusted".to_owned())
            }
        };
        self.events.publish(&written.object_ref(&()), type_, reason, note).await;
    }
}
