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
mod lease;
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
use json_patch::{Patch as JsonPatch, PatchOperation, ReplaceOperation, jsonptr::PointerBuf};
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
use lease::Election;
pub use lease::Standing;
use observed::Observed;
pub use reconcile::Outcome;
use serde_json::json;
use tally::Tally;
use tokio::sync::{mpsc, watch};

use crate::{
    background::restart_on_panic,
    certs::self_managed::{CA_SECRET_NAME, WEBHOOK_CONFIGURATION_NAME},
    cluster::Cluster,
    config::CertificateSource,
    reload::configuration::ConfigReceiver,
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
    configuration: ConfigReceiver,
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
        let secret = changes("Secret", watch_object(secrets, CA_SECRET_NAME).default_backoff());
        let webhook = changes(
            "MutatingWebhookConfiguration",
            watch_object(webhooks, WEBHOOK_CONFIGURATION_NAME).default_backoff(),
        );
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

/// Whether a conditional write met what it did not expect: an object that is there already, is gone, or has changed.
fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

/// Whether there was no answer: then it is not about what was asked for, and the next request will do no better.
fn is_unanswered(error: &kube::Error) -> bool {
    matches!(error, kube::Error::HyperError(_) | kube::Error::Service(_))
}

/// A patch for this version of an object alone, which it was made for. To any other the answer is 409, as it is to an update with a
/// `resourceVersion` (kubernetes.io/docs/reference/using-api/api-concepts); a `test` that fails is answered by 422, as what an admission
/// policy or the validation refuses may be too.
fn guarded(resource_version: &str, patch: JsonPatch) -> JsonPatch {
    let version = PointerBuf::from_tokens(["metadata", "resourceVersion"]);
    let same = PatchOperation::Replace(ReplaceOperation { path: version, value: json!(resource_version) });
    JsonPatch(std::iter::once(same).chain(patch.0).collect())
}

/// The reconcilers, and what decides whether they run.
pub struct Controller {
    context: Context,
    election: Election,
    standing: watch::Sender<Standing>,
}

impl Controller {
    /// A controller that has not begun. `pod_name` is its identity among the replicas.
    pub fn new(
        client: Client,
        namespace: &str,
        pod_name: &str,
        configuration: ConfigReceiver,
        metrics: ControllerMetrics,
    ) -> Self {
        let events = Events::new(client.clone(), pod_name);
        let election = Election::new(client.clone(), namespace, pod_name);
        let (namespace, tally) = (namespace.to_owned(), Tally::default());
        let context = Context { client, namespace, configuration, events, tally, metrics };
        Self { context, election, standing: watch::Sender::new(Standing::Unknown) }
    }

    /// Whether this replica acts, from now on.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Takes part in the election, and reconciles while it has won it. Ends when `stop` does, and gives the lease back.
    ///
    /// `refusals` brings what is wrong with the configuration file each time that it changes, or that nothing is.
    pub async fn run(self, stop: impl Future<Output = ()>, refusals: mpsc::Receiver<Option<String>>) {
        tokio::select! {
            () = stop => {}
            () = Box::pin(self.lead_when_elected()) => {}
            () = tell_of_configuration(&self.context, refusals) => {}
        }
        // Whatever was under way has been dropped: from here on nothing is written.
        self.stand(Standing::StandingBy);
        self.election.give_back().await;
    }

    async fn lead_when_elected(&self) {
        loop {
            let tenure = self.election.win(|| self.stand(Standing::StandingBy)).await;
            self.stand(Standing::Leading);
            tokio::select! {
                lost = tenure.lost() => tracing::warn!(?lost, "standing by"),
                () = reconcile_all(&self.context) => {}
            }
            self.stand(Standing::StandingBy);
        }
    }

    fn stand(&self, standing: Standing) {
        let is_new = self.standing.send_if_modified(|old| std::mem::replace(old, standing) != standing);
        if is_new {
            tracing::info!(?standing, "the lease was seen");
            self.context.metrics.leads(standing == Standing::Leading);
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
        restart_on_panic(async || identity::run(context).await),
        last_resort::run(context, &observed),
        late::run(context, &observed, &cluster),
        capacity::run(context, &observed),
        missed::run(context, &observed, &cluster),
        ghosts::run(context, &observed),
        advice::run(context, &observed, &cluster),
        restart_on_panic(async || context.tally.tell(&context.events).await),
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
