//! The controller: reconcilers that one elected replica runs. Each has a file or folder of its own, and runs in rounds: observe, plan,
//! apply, report. [`reconcile_all`] lists them.

mod advice;
pub mod authority;
mod ca_bundle;
mod capacity;
mod clock;
pub mod events;
mod free_capacity;
mod ghosts;
mod identity;
pub mod last_resort;
mod late;
mod missed;
mod observed;
mod pods;
mod reconcile;
mod taints;

use events::{EventAggregator, EventRecorder, reference};
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
use tokio::sync::{mpsc, watch};

pub use crate::kubernetes::Leadership;
use crate::{
    background::again_after_panic,
    certs::self_managed::{CONFIGURATION, SECRET},
    cluster::Cluster,
    config::CertificateSource,
    kubernetes::LeaderElector,
    reload::configuration::ConfigReceiver,
    telemetry::{Causes, ControllerMetrics},
};

/// The name of the controller: of its Lease, in its events, and as user agent and field manager.
pub const NAME: &str = "spillway-controller";

/// The field manager of all writes.
const FIELD_MANAGER: &str = NAME;

/// The ConfigMap that the configuration file comes from.
const CONFIG_MAP: &str = "spillway-config";

/// Dependencies of the reconcilers.
struct Context {
    client: Client,
    namespace: String,
    configuration: ConfigReceiver,
    events: EventRecorder,
    event_aggregator: EventAggregator,
    metrics: ControllerMetrics,
}

impl Context {
    /// Returns whether Spillway manages its certificates.
    fn is_self_managed(&self) -> bool {
        self.configuration.borrow().certificates.source == CertificateSource::SelfManaged
    }

    /// An item for each change of an input of the certificates: the authority's Secret, the webhook configuration, the configuration.
    fn certificate_changes(&self) -> impl Stream<Item = ()> {
        let secrets: Api<PartialObjectMeta<Secret>> = Api::namespaced(self.client.clone(), &self.namespace);
        let webhooks: Api<PartialObjectMeta<MutatingWebhookConfiguration>> = Api::all(self.client.clone());
        let secret = watch_changes("Secret", watch_object(secrets, SECRET).default_backoff());
        let webhook =
            watch_changes("MutatingWebhookConfiguration", watch_object(webhooks, CONFIGURATION).default_backoff());
        stream::select(stream::select(secret, webhook), changes_of(self.configuration.clone()))
    }
}

/// An item for each change of a value.
fn changes_of<T: Send + Sync + 'static>(value: watch::Receiver<T>) -> BoxStream<'static, ()> {
    let changes = stream::unfold(value, async |mut value| {
        value.changed().await.ok()?;
        Some(((), value))
    });
    changes.boxed()
}

/// An item for each event of a watch.
fn watch_changes<K>(
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

/// The reconcilers, and the election that decides which replica runs them.
pub struct Controller {
    context: Context,
    elector: LeaderElector,
    leadership: watch::Sender<Leadership>,
}

impl Controller {
    /// A controller that has not started. `pod_name` is its identity among the replicas.
    pub fn new(
        client: Client,
        namespace: &str,
        pod_name: &str,
        configuration: ConfigReceiver,
        metrics: ControllerMetrics,
    ) -> Self {
        let events = EventRecorder::new(client.clone(), pod_name);
        let elector = LeaderElector::new(client.clone(), namespace, NAME, pod_name);
        let event_aggregator = EventAggregator::default();
        let context =
            Context { client, namespace: namespace.to_owned(), configuration, events, event_aggregator, metrics };
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
            () = report_configuration(&self.context, refusals) => {}
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

/// Runs all reconcilers.
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
        again_after_panic(async || context.event_aggregator.publish(&context.events).await),
    );
}

/// Writes an event when the configuration file becomes invalid, and when it is valid again. Each replica reports its own file.
async fn report_configuration(context: &Context, mut refusals: mpsc::Receiver<Option<String>>) {
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
    // Without a file there is nothing to report.
    std::future::pending::<()>().await;
}
