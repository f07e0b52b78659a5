//! The controller: what one elected replica keeps right in the cluster. One reconciler a file, each in rounds of observe, plan, apply
//! and report; [`Controller::run`] names them all.

mod advice;
pub mod authority;
mod ca_bundle;
mod capacity;
mod clock;
pub mod events;
mod ghosts;
mod identity;
pub mod last_resort;
mod late;
mod missed;
mod observed;
mod pauses;
mod pods;
mod reconcile;
mod room;
mod taints;
mod tally;

use events::{Events, reference};
use futures_util::{
    Stream, StreamExt, future,
    stream::{self, BoxStream},
};
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret};
use kube::{
    Api, Client,
    api::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        events::EventType,
        watcher::{Error as WatchError, watch_object},
    },
};
use observed::Observed;
pub use reconcile::Outcome;
use tally::Tally;
use tokio::sync::{mpsc, watch};

pub use crate::kubernetes::Leadership;
use crate::{
    background::again_after_panic,
    certs::self_managed::{CONFIGURATION, SECRET},
    cluster::Cluster,
    config::CertificateSource,
    kubernetes::LeaderElector,
    reload::configuration::InForce,
    telemetry::{Causes, ControllerMetrics},
};

/// The name under which the controller is known: its Lease, its events, its requests and writes.
pub const NAME: &str = "spillway-controller";

/// Who wrote a field, as the API server records it.
const FIELD_MANAGER: &str = NAME;

/// The ConfigMap that the configuration file comes from.
const CONFIG_MAP: &str = "spillway-config";

/// What every reconciler needs.
struct Context {
    client: Client,
    namespace: String,
    configuration: InForce,
    events: Events,
    tally: Tally,
    metrics: ControllerMetrics,
}

impl Context {
    /// Whether the certificates are ours to keep.
    fn is_self_managed(&self) -> bool {
        self.configuration.borrow().certificates.source == CertificateSource::SelfManaged
    }

    /// An item for each change of what certificates rest on: the authority's Secret, the webhook configuration, the configuration.
    fn certificate_changes(&self) -> impl Stream<Item = ()> {
        let secrets: Api<PartialObjectMeta<Secret>> = Api::namespaced(self.client.clone(), &self.namespace);
        let webhooks: Api<PartialObjectMeta<MutatingWebhookConfiguration>> = Api::all(self.client.clone());
        let secret = changes("Secret", watch_object(secrets, SECRET).default_backoff());
        let webhook = changes("MutatingWebhookConfiguration", watch_object(webhooks, CONFIGURATION).default_backoff());
        stream::select(stream::select(secret, webhook), each(self.configuration.clone()))
    }
}

/// An item for each change of what is watched.
fn each<T: Send + Sync + 'static>(watched: watch::Receiver<T>) -> BoxStream<'static, ()> {
    let changes = stream::unfold(watched, async |mut watched| {
        watched.changed().await.ok()?;
        Some(((), watched))
    });
    changes.boxed()
}

fn changes<K>(
    kind: &'static str,
    watched: impl Stream<Item = Result<K, WatchError>> + Send + 'static,
) -> BoxStream<'static, ()> {
    let changes = watched.filter_map(move |seen| {
        let error = seen.err();
        if let Some(error) = &error {
            tracing::warn!(kind, error = %Causes(error), "watch interrupted, trying again");
        }
        future::ready(error.is_none().then_some(()))
    });
    changes.boxed()
}

/// The reconcilers, and what decides whether they run.
pub struct Controller {
    context: Context,
    elector: LeaderElector,
    leadership: watch::Sender<Leadership>,
}

impl Controller {
    /// A controller that has not begun. `pod_name` is its identity among the replicas.
    pub fn new(
        client: Client,
        namespace: &str,
        pod_name: &str,
        configuration: InForce,
        metrics: ControllerMetrics,
    ) -> Self {
        let events = Events::new(client.clone(), pod_name);
        let elector = LeaderElector::new(client.clone(), namespace, NAME, pod_name);
        let (namespace, tally) = (namespace.to_owned(), Tally::default());
        let context = Context { client, namespace, configuration, events, tally, metrics };
        Self { context, elector, leadership: watch::Sender::new(Leadership::Unknown) }
    }

    /// The role of this replica, as it changes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Takes part in the election, and reconciles while this replica leads. Ends when `stop` does, and releases the Lease.
    ///
    /// `refusals` brings the error of the configuration file each time that the file changes, or nothing if the file is valid.
    pub async fn run(self, stop: impl Future<Output = ()>, refusals: mpsc::Receiver<Option<String>>) {
        tokio::select! {
            () = stop => {}
            () = Box::pin(self.lead_when_elected()) => {}
            () = tell_of_configuration(&self.context, refusals) => {}
        }
        // All reconcilers have been dropped: nothing is written from here on.
        self.set_leadership(Leadership::StandingBy);
        self.elector.release().await;
    }

    async fn lead_when_elected(&self) {
        loop {
            let term = self.elector.acquire(|| self.set_leadership(Leadership::StandingBy)).await;
            self.set_leadership(Leadership::Leading);
            tokio::select! {
                reason = term.lost() => tracing::warn!(?reason, "lost leadership"),
                () = reconcile_all(&self.context) => {}
            }
            self.set_leadership(Leadership::StandingBy);
        }
    }

    fn set_leadership(&self, leadership: Leadership) {
        let has_changed = self.leadership.send_if_modified(|old| std::mem::replace(old, leadership) != leadership);
        if has_changed {
            tracing::info!(?leadership, "leadership changed");
            self.context.metrics.leads(leadership == Leadership::Leading);
        }
    }
}

/// Every reconciler.
async fn reconcile_all(context: &Context) {
    let observed = Observed::start(&context.client, &context.configuration);
    let cluster = Cluster::follow(context.client.clone(), context.configuration.clone(), &context.metrics.caches);
    tokio::join!(
        authority::run(context),
        ca_bundle::run(context),
        again_after_panic(async || identity::run(context).await),
        last_resort::run(context, &observed),
        late::run(context, &observed, &cluster),
        capacity::run(context, &observed),
        missed::run(context, &observed, &cluster),
        ghosts::run(context, &observed),
        advice::run(context, &observed, &cluster),
        again_after_panic(async || context.tally.tell(&context.events).await),
    );
}

/// Writes an event when the configuration file has become unusable, and when it is mended. Every replica says what it reads.
async fn tell_of_configuration(context: &Context, mut refusals: mpsc::Receiver<Option<String>>) {
    let about = reference("v1", "ConfigMap", Some(&context.namespace), CONFIG_MAP);
    let mut is_invalid = false;
    while let Some(refusal) = refusals.recv().await {
        let was_invalid = std::mem::replace(&mut is_invalid, refusal.is_some());
        let (type_, reason, note) = match refusal {
            Some(refusal) => (EventType::Warning, "ConfigurationInvalid", format!("kept the last good one: {refusal}")),
            None if was_invalid => (EventType::Normal, "ConfigurationReloaded", "it is good again".to_owned()),
            None => continue,
        };
        context.events.publish(&about, type_, reason, note).await;
    }
    // Without a file there is nothing to tell.
    std::future::pending::<()>().await;
}
