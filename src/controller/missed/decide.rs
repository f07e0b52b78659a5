//! Decides on missed pods with the function of the webhook. The input is the pod that the API server has now.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ObjectReference, Pod as ApiPod};
use kube::{Resource, api::Request};
use serde_json::Value;

use super::{
    eviction::may_evict,
    plan::{MAX_PODS, Scheduled},
    state::Assessment,
};
use crate::{
    burst::{self, DECISION, Decision, ServiceAccount, Verdict},
    cluster::{PodMeta, Snapshot},
    config::{Configuration, Overrides},
    controller::{
        context::Context,
        events::EventKind,
        pod_writes::{MAX_CONCURRENT_REQUESTS, PodError, patch_pod},
        reconcile::Outcome,
    },
    kubernetes::ObjectKey,
    pod::Pod,
};

const REPAIRED: EventKind = EventKind::action("MissedPodHealed");
const MISSED: EventKind = EventKind::problem("PodMissed");

/// Inputs of a decision.
pub(super) struct Decider<'d> {
    pub(super) context: &'d Context,
    pub(super) snapshot: &'d Snapshot,
    pub(super) configuration: &'d Configuration,
}

impl Decider<'_> {
    /// Reads a pod with all its fields, also fields of a newer Kubernetes. Returns `None` if the pod no longer exists.
    async fn read(&self, key: &ObjectKey) -> Result<Option<Value>, PodError> {
        let url = ApiPod::url_path(&(), Some(&key.namespace));
        let request = Request::new(url).get(&key.name, &kube::api::GetParams::default());
        let request = request.map_err(|error| PodError::new("read", key, kube::Error::BuildRequest(error)))?;
        match self.context.client.request(request).await {
            Ok(pod) => Ok(Some(pod)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(PodError::new("read", key, error)),
        }
    }

    /// Returns the decision of the webhook, or `None` if the namespace has opted out in the meantime.
    fn decide(&self, namespace: &str, pod: &Pod<'_>) -> Option<Decision<'_>> {
        let known = self.snapshot.namespace(namespace)?;
        let overrides = Overrides::read(pod.annotations());
        let settings = self.configuration.settings(&known.profile, &known.overrides, &overrides);
        let account = self.snapshot.service_account(namespace, pod.service_account());
        let cluster = self.snapshot.cluster_context(namespace, &known, account.unwrap_or(ServiceAccount::Unknown));
        Some(burst::decide(pod, &settings, &cluster))
    }

    /// Decides on a pod without a node, and adds the fields that an existing pod may still get.
    pub(super) async fn repair(&self, meta: &PodMeta) -> Result<Outcome, PodError> {
        let key = &meta.key();
        let Some(pod) = self.read(key).await? else { return Ok(Outcome::UpToDate) };
        let text = pod.to_string();
        let view = match serde_json::from_str::<Pod<'_>>(&text) {
            Ok(view) => view,
            Err(error) => {
                // The pod keeps its backoff.
                tracing::warn!(namespace = key.namespace, pod = key.name, %error, "cannot read a pod that the webhook missed");
                return Ok(Outcome::UpToDate);
            }
        };
        let has_node = pod.pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|node| !node.is_empty());
        if has_node || view.annotation(DECISION).is_some() {
            return Ok(Outcome::UpToDate);
        }
        let Some(decision) = self.decide(&key.namespace, &view) else { return Ok(Outcome::UpToDate) };
        let patch = burst::existing_pod_patch(&view, &decision);
        let version = pod.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        let (Some(patch), Some(version)) = (patch, version) else { return Ok(Outcome::UpToDate) };
        let outcome = patch_pod(self.context, key, version, "heal", patch).await?;
        if outcome == Outcome::Changed {
            let (ObjectKey { namespace, name }, verdict) = (key, &decision.verdict);
            tracing::info!(namespace, pod = name, decision = %verdict, "decided on a pod that the webhook missed");
            let note = format!("pod {name} was created without Spillway; the controller decided now: {verdict}");
            self.context.event_aggregator.record(owner(namespace, &pod), REPAIRED, note);
        }
        Ok(outcome)
    }

    /// Assesses missed pods that have a node, and reports them. Returns whether all had been assessed before. A pod that cannot be read    /// does not hold up the others.
    pub(super) async fn assess(
        &self,
        scheduled: &[Scheduled],
        assessed: &mut HashMap<String, Assessment>,
    ) -> Result<bool, PodError> {
        let uids: HashSet<_> = scheduled.iter().map(|pod| pod.meta.uid.as_str()).collect();
        assessed.retain(|uid, _| uids.contains(uid.as_str()));
        let mut new: Vec<_> = scheduled.iter().filter(|pod| !assessed.contains_key(&pod.meta.uid)).collect();
        let is_all = new.is_empty();
        new.truncate(MAX_PODS);
        let mut failure = None;
        let reads = new.into_iter().map(|pod| async move { (pod, self.read(&pod.meta.key()).await) });
        let read: Vec<_> = stream::iter(reads).buffer_unordered(MAX_CONCURRENT_REQUESTS).collect().await;
        for (scheduled, read) in read {
            match read {
                Ok(Some(pod)) => {
                    assessed.insert(scheduled.meta.uid.clone(), self.assess_one(scheduled, pod));
                }
                Ok(None) => {}
                Err(error) if error.is_unanswered() => return Err(error),
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(is_all),
        }
    }

    /// Assesses one pod. The result is `unknown` if no decision is possible: another read of the pod would not change that.
    fn assess_one(&self, Scheduled { meta, node }: &Scheduled, mut pod: Value) -> Assessment {
        // The scheduler set the node. A recreated pod has no node.
        if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove("nodeName");
        }
        let unknown = Assessment::unknown(meta);
        let text = pod.to_string();
        let Ok(view) = serde_json::from_str::<Pod<'_>>(&text) else { return unknown };
        let Some(decision) = self.decide(&meta.namespace, &view) else { return unknown };
        let (name, verdict) = (&meta.name, &decision.verdict);
        tracing::warn!(namespace = meta.namespace, pod = name, node, decision = %verdict, "the webhook missed a pod");
        let note = format!(
            "pod {name} was created without Spillway and runs on {node}; the decision on a new pod would be: {verdict}"
        );
        self.context.event_aggregator.record(meta.owner(), MISSED, note);
        let label = match verdict {
            Verdict::Burst(mode) => mode.as_str(),
            Verdict::Stay(_) => "stay",
            Verdict::OptedOut => "opted_out",
        };
        let may_evict = matches!(verdict, Verdict::Burst(_)) && may_evict(&pod, |key| view.annotation(key));
        Assessment { label, may_evict, ..unknown }
    }
}

/// Returns the controller of a pod, or the pod itself if it has no controller.
fn owner(namespace: &str, pod: &Value) -> ObjectReference {
    let metadata = pod.get("metadata").cloned().unwrap_or_default();
    let metadata = serde_json::from_value(metadata).unwrap_or_default();
    ObjectReference { namespace: Some(namespace.to_owned()), ..PodMeta::read(&metadata).owner() }
}
