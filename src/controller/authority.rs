//! Keeps the certificate authority in Secret `spillway-ca`: creates it, rotates it, replaces it when it cannot be used.

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
    Context, FIELD_MANAGER, NAME,
    clock::{ClockError, server_time},
    events::Events,
    is_conflict,
    reconcile::{Outcome, repeat},
};
use crate::{
    certs::{
        authority::{AuthorityError, CaCertificate, CaSecret, RotationReason, RotationStep, SecretError, next_step},
        bundle_trust::BundleTrust,
        self_managed::{CA_SECRET_NAME, WEBHOOK_CONFIGURATION_NAME, read_ca_secret},
    },
    telemetry::{Causes, ControllerMetrics},
};

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeeperError {
    /// The API server did not give or take an object.
    #[error("cannot {0}")]
    Api(&'static str, #[source] kube::Error),
    /// The time is not known.
    #[error(transparent)]
    SteadyClock(#[from] ClockError),
    /// No authority could be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Rounds, for as long as it is asked to.
pub(super) async fn run(context: &Context) {
    let Context { client, namespace, events, metrics, .. } = context;
    let mut keeper = Keeper::new(client.clone(), namespace, events.clone(), metrics.clone());
    let round = async || if context.is_self_managed() { keeper.round().await } else { Ok(Outcome::Right) };
    Box::pin(repeat("authority", metrics, context.certificate_changes(), round)).await;
}

/// Keeps the authority.
pub struct Keeper {
    client: Client,
    secrets: Api<Secret>,
    namespace: String,
    events: Events,
    metrics: ControllerMetrics,
    trusted: BundleTrust,
    /// What the Secret last held: should it vanish together with the bundle, replicas still serve with these.
    known: Vec<CaCertificate>,
}

struct Seen {
    secret: Option<Secret>,
    stored: Result<CaSecret, SecretError>,
    now: OffsetDateTime,
}

impl Keeper {
    /// A keeper that has seen nothing yet.
    pub fn new(client: Client, namespace: &str, events: Events, metrics: ControllerMetrics) -> Self {
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

    /// Looks once, and does at most one thing about it. Every write is conditional on what was seen: whoever else writes
    /// meanwhile, nothing is lost.
    ///
    /// # Errors
    ///
    /// When the API server cannot be asked or refuses, or no authority can be made.
    pub async fn round(&mut self) -> Result<Outcome, KeeperError> {
        let Seen { secret, stored, now } = self.observe().await?;
        let next = stored.as_ref().ok().and_then(|stored| stored.next.as_ref());
        let is_trusted = next.is_some_and(|next| self.trusted.is_propagated(next.certificate(), Instant::now()));
        let step = next_step(stored.as_ref(), is_trusted, now);
        let Some(wanted) = self.plan(step, stored, now)? else { return Ok(Outcome::Right) };
        let Some(written) = self.apply(secret, &wanted).await? else { return Ok(Outcome::Conflict) };
        self.report(&written, step, &wanted).await;
        Ok(Outcome::Changed)
    }

    async fn observe(&mut self) -> Result<Seen, KeeperError> {
        let now = server_time(&self.client).await?;
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let read_error = |error| KeeperError::Api("read MutatingWebhookConfiguration aci-spillway", error);
        let configuration = configurations.get_opt(WEBHOOK_CONFIGURATION_NAME).await.map_err(read_error)?;
        self.trusted.observe(configuration.as_ref(), Instant::now());
        let secret = self.secrets.get_opt(CA_SECRET_NAME).await;
        let secret = secret.map_err(|error| KeeperError::Api("read Secret spillway-ca", error))?;
        let stored = read_ca_secret(secret.as_ref());
        match &stored {
            Ok(stored) => self.take_note(stored),
            Err(SecretError::Missing) => {}
            Err(malformed) => {
                let error = Causes(malformed);
                tracing::warn!(%error, namespace = self.namespace, name = CA_SECRET_NAME, "no usable certificate authority");
            }
        }
        Ok(Seen { secret, stored, now })
    }

    fn take_note(&mut self, stored: &CaSecret) {
        self.known = stored.certificates().cloned().collect();
        let old = stored.old.as_ref().map_or(0, |old| old.certificates.len());
        let next = stored.next.iter().count();
        self.metrics.authority(stored.current.certificate().not_after(), next, old);
    }

    /// What the Secret is to hold; nothing if it may stay as it is.
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
            // The others need something to be stored.
            (RotationStep::Keep, _) | (_, Err(_)) => return Ok(None),
        };
        Ok(Some(wanted))
    }

    /// Creates the Secret, or replaces what was seen; nothing if somebody else was faster, whose work is as good.
    async fn apply(&self, seen: Option<Secret>, wanted: &CaSecret) -> Result<Option<Secret>, KeeperError> {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let data = wanted.data().into_iter().map(|(key, value)| (key, ByteString(value.into_bytes())));
        let data = Some(data.collect());
        let written = if let Some(seen) = seen {
            // Carries the resourceVersion of what was seen, which the API server compares.
            self.secrets.replace(CA_SECRET_NAME, &params, &Secret { data, ..seen }).await
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
            Err(error) => Err(KeeperError::Api("write Secret spillway-ca", error)),
        }
    }

    async fn report(&mut self, written: &Secret, step: RotationStep, wanted: &CaSecret) {
        self.take_note(wanted);
        let not_after = wanted.current.certificate().not_after();
        tracing::info!(step = ?step, notAfter = %not_after, "wrote the certificate authority");
        let (type_, reason, note) = match step {
            RotationStep::Keep => return,
            RotationStep::Replace(RotationReason::Missing) => {
                (EventType::Normal, "AuthorityCreated", "there was none".to_owned())
            }
            RotationStep::Replace(why) => (EventType::Warning, "AuthorityReplaced", format!("it was of no use: {why}")),
            RotationStep::Prepare(why) => (EventType::Normal, "AuthorityRotating", format!("made a successor: {why}")),
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
