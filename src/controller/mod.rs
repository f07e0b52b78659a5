//! The controller: reconcilers that only the elected leader runs. Each reconciler has its own file or folder, and runs in rounds: observe,
//! plan, apply, report. `reconcile_all` lists the reconcilers.

mod advice;
mod ca_bundle;
pub mod ca_rotation;
mod capacity;
mod changes;
mod clock;
mod context;
pub mod events;
mod free_capacity;
mod ghosts;
mod identity;
pub mod last_resort;
mod late;
mod missed;
mod names;
mod pod_writes;
mod reconcile;
mod start_failures;
mod taints;

use context::Context;
use events::{EventAggregator, EventRecorder};
use kube::{Client, runtime::events::EventType};
use names::CONFIG_MAP;
pub use names::NAME;
pub use reconcile::Outcome;
use tokio::sync::{mpsc, watch};

pub use crate::kubernetes::Leadership;
use crate::{
    background::restart_on_panic,
    cluster::Inventory,
    kubernetes::{LeaderElector, object_reference},
    reload::configuration::ConfigReceiver,
    telemetry::ControllerMetrics,
};

/// The reconcilers, and the election of the leader that runs them.
pub struct Controller {
    context: Context,
    elector: LeaderElector,
    leadership: watch::Sender<Leadership>,
}

impl Controller {
    /// Returns a controller that has not started. `pod_name` is the identity of this replica in the election.
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

    /// Returns a watch of this replica's role.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Takes part in the election, and reconciles while this replica is the leader. Releases the Lease and returns when `stop` completes.
    ///
    /// `refusals` receives an item for each change of the configuration file: its error, or `None` if the file is valid.
    pub async fn run(self, stop: impl Future<Output = ()>, refusals: mpsc::Receiver<Option<String>>) {
        tokio::select! {
            () = stop => {}
            () = Box::pin(self.lead_when_elected()) => {}
            () = report_configuration(&self.context, refusals) => {}
        }
        // All reconcilers have been dropped, so the controller writes nothing from here on.
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
    let Context { client, namespace, configuration, metrics, .. } = context;
    let inventory = Inventory::start(client, namespace, configuration, &metrics.caches);
    tokio::join!(
        ca_rotation::run(context, &inventory),
        ca_bundle::run(context, &inventory),
        restart_on_panic(async || identity::run(context, &inventory).await),
        last_resort::run(context, &inventory),
        late::run(context, &inventory),
        capacity::run(context, &inventory),
        missed::run(context, &inventory),
        ghosts::run(context, &inventory),
        advice::run(context, &inventory),
        restart_on_panic(async || context.event_aggregator.publish(&context.events).await),
    );
}

/// Writes an event when the configuration file becomes invalid, and when the file is valid again. Each replica reports its own file.
async fn report_configuration(context: &Context, mut refusals: mpsc::Receiver<Option<String>>) {
    let about = object_reference("v1", "ConfigMap", Some(&context.namespace), CONFIG_MAP);
    let mut is_invalid = false;
    while let Some(refusal) = refusals.recv().await {
        let was_invalid = std::mem::replace(&mut is_invalid, refusal.is_some());
        let (type_, reason, note) = match refusal {
            Some(refusal) => (
                EventType::Warning,
                "ConfigurationInvalid",
                format!("the last valid configuration stays in force: {refusal}"),
            ),
            None if was_invalid => {
                (EventType::Normal, "ConfigurationReloaded", "the configuration file is valid again".to_owned())
            }
            None => continue,
        };
        context.events.publish(&about, type_, reason, note).await;
    }
    // A controller without a file has nothing to report.
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc, time::Duration};

    use serde_json::json;

    use super::*;
    use crate::kubernetes::testing::FakeApi;

    const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

    /// Returns the watches that the reconcilers start in some minutes, with the number of starts.
    async fn watches(api: &FakeApi) -> BTreeMap<String, usize> {
        let context = Context {
            client: api.client(),
            namespace: "spillway-system".to_owned(),
            configuration: watch::Sender::new(Arc::default()).subscribe(),
            events: EventRecorder::new(api.client(), "test"),
            event_aggregator: EventAggregator::default(),
            metrics: ControllerMetrics::default(),
        };
        let ran = tokio::time::timeout(Duration::from_secs(200), reconcile_all(&context)).await;
        assert!(ran.is_err(), "reconcilers never end");
        api.watches()
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_opens_one_watch_for_each_kind() {
        let api = FakeApi::default();
        // This cluster needs every optional watch: a webhook injects identities, and a pod has an identity binding.
        let service = json!({"namespace": "kube-system", "name": "wi"});
        let webhook = json!({
            "name": "wi", "admissionReviewVersions": ["v1"], "sideEffects": "None", "clientConfig": {"service": service},
            "objectSelector": {"matchLabels": {"azure.workload.identity/use": "true"}},
        });
        api.apply(WEBHOOKS, json!({"metadata": {"name": "azure-wi"}, "webhooks": [webhook]}));
        api.apply("/api/v1/nodes", json!({"metadata": {"name": "virtual", "labels": {"type": "virtual-kubelet"}}}));
        let annotations = json!({"azure.workload.identity/use-identity-binding": "true"});
        api.apply(
            "/api/v1/pods",
            json!({"metadata": {"namespace": "shop", "name": "web", "annotations": annotations}, "spec": {"nodeName": "virtual"}}),
        );
        let watches = watches(&api).await;
        let watches: Vec<_> = watches.iter().map(|(watch, count)| (watch.as_str(), *count)).collect();
        assert_eq!(
            watches,
            [
                ("/api/v1/events fieldSelector=reason%3DNominated%2CinvolvedObject.kind%3DPod", 1),
                ("/api/v1/events fieldSelector=reason%3DTriggeredScaleUp%2CinvolvedObject.kind%3DPod", 1),
                ("/api/v1/namespaces", 1),
                ("/api/v1/namespaces/spillway-system/secrets fieldSelector=metadata.name%3Dspillway-ca", 1),
                ("/api/v1/nodes", 1),
                ("/api/v1/pods", 1),
                ("/api/v1/serviceaccounts", 1),
                (WEBHOOKS, 1),
                (
                    "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices labelSelector=kubernetes.io%2Fservice-name%3Dwi",
                    1
                ),
                ("/apis/networking.k8s.io/v1/networkpolicies", 1),
                ("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", 1),
                ("/apis/rbac.authorization.k8s.io/v1/clusterroles", 1),
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_and_grants_are_watched_only_if_necessary() {
        let watches = watches(&FakeApi::default()).await;
        let is_watched = |word: &str| watches.keys().any(|watch| watch.contains(word));
        assert!(is_watched("pods") && !is_watched("endpointslices") && !is_watched("rbac"), "{watches:?}");
    }
}
