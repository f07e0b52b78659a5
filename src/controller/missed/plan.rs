//! Finds the pods that the webhook missed.

use std::{collections::BTreeMap, sync::Arc};

use tokio::time::Instant;

use crate::{
    burst::DECISION,
    cluster::{GRACE, OptedIn, PodMeta, PodStore, Reach, Scope, UndecidedPod},
    kubernetes::{Backoff, ObjectKey, Store},
};

/// The most pods in one round. The next round follows at once.
pub(super) const MAX_PODS: usize = 200;

/// The missed pods.
#[derive(Debug, Default, PartialEq)]
pub(super) struct MissedPods {
    /// Pods without a node.
    pub(super) waiting: Vec<PodMeta>,
    /// Pods with a node.
    pub(super) scheduled: Vec<Scheduled>,
    /// A matchCondition that only the API server can evaluate, and that decides whether pods were missed.
    pub(super) unknown_condition: Option<String>,
}

/// A missed pod that has a node.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scheduled {
    pub(super) meta: PodMeta,
    pub(super) node: String,
}

/// A pod without a decision.
struct Undecided<'u> {
    meta: &'u PodMeta,
    labels: &'u BTreeMap<String, String>,
    annotations: &'u BTreeMap<String, String>,
    /// The pod's node, if the pod is scheduled.
    node: Option<&'u str>,
}

fn undecided(pods: &PodStore) -> impl Iterator<Item = Undecided<'_>> {
    let unscheduled = pods.unscheduled().filter(|(_, pod)| pod.annotation(DECISION).is_none());
    let unscheduled = unscheduled.map(|(_, pod)| Undecided {
        meta: &pod.meta,
        labels: &pod.labels,
        annotations: &pod.annotations,
        node: None,
    });
    let scheduled = pods.scheduled().filter_map(|pod| {
        let UndecidedPod { meta, labels, annotations } = pod.undecided.as_deref()?;
        Some(Undecided { meta, labels, annotations, node: Some(&pod.node) })
    });
    unscheduled.chain(scheduled)
}

/// Returns the pods without a decision that are in the scope of the webhook configuration and were created after the opt-in of their
/// namespace.
pub(super) fn missed(scope: &Scope, pods: &PodStore, opted_in: &Store<Arc<OptedIn>>) -> MissedPods {
    let mut found = MissedPods::default();
    for Undecided { meta, labels, annotations, node } in undecided(pods) {
        let namespace = opted_in.get(&ObjectKey::cluster_scoped(&meta.namespace));
        let Some(namespace) = namespace.filter(|namespace| meta.created - GRACE >= namespace.since) else { continue };
        match (scope.reaches(&namespace.labels, labels, annotations), node) {
            (Reach::NotCalled, _) => {}
            (Reach::Depends(condition), _) => found.unknown_condition = Some(condition),
            (Reach::Called, None) => found.waiting.push(meta.clone()),
            (Reach::Called, Some(node)) => {
                found.scheduled.push(Scheduled { meta: meta.clone(), node: node.to_owned() });
            }
        }
    }
    found
}

/// Returns the number of missed pods by decision, with `unknown` for pods that have not been assessed yet.
pub(super) fn counts(
    scheduled: &[Scheduled],
    label: impl Fn(&str) -> Option<&'static str>,
) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for pod in scheduled {
        *counts.entry(label(&pod.meta.uid).unwrap_or("unknown")).or_default() += 1;
    }
    counts
}

/// Returns the pods that this round decides on. Pods that back off do not delay others.
pub(super) fn next_pods<'p>(waiting: &'p [PodMeta], backoff: &Backoff, now: Instant) -> Vec<&'p PodMeta> {
    waiting.iter().filter(|pod| backoff.remaining(&pod.uid, now).is_none()).take(MAX_PODS).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::Snapshot;

    const OPTED_IN: &str = "2026-01-01T12:00:00Z";

    fn scope() -> Scope {
        let manifest = include_str!("../../../manifests/base/mutatingwebhookconfiguration.yaml");
        Scope::read(serde_saphyr::from_str(manifest).unwrap())
    }

    fn opted_in() -> Store<Arc<OptedIn>> {
        let namespace = Snapshot::of_namespaces(&[("shop", "enabled")]).namespace("shop").unwrap();
        let labels = [("spillway.dev/burst".to_owned(), "enabled".to_owned())].into();
        let opted_in = OptedIn { namespace, since: OPTED_IN.parse().unwrap(), labels };
        [(ObjectKey::cluster_scoped("shop"), Arc::new(opted_in))].into_iter().collect()
    }

    fn pod(name: &str, changes: &Value) -> Value {
        let mut pod = json!({
            "metadata": {"namespace": "shop", "name": name, "creationTimestamp": "2026-01-01T12:05:00Z"},
            "spec": {"containers": [{"name": "c"}]},
        });
        json_patch::merge(&mut pod, changes);
        pod
    }

    fn found(pods: &[Value]) -> MissedPods {
        missed(&scope(), &PodStore::of(pods, &[]), &opted_in())
    }

    fn waiting(changes: &Value) -> bool {
        !found(&[pod("p", changes)]).waiting.is_empty()
    }

    #[test]
    fn a_pod_in_scope_without_a_decision_was_missed() {
        assert!(waiting(&json!({})));
        assert!(!waiting(&json!({"metadata": {"annotations": {DECISION: "prefer"}}})), "the pod has a decision");
        assert!(!waiting(&json!({"metadata": {"namespace": "plain"}})), "the namespace is not opted in");
        assert!(!waiting(&json!({"metadata": {"labels": {"spillway.dev/burst": "disabled"}}})), "opted out");
        assert!(!waiting(&json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}})), "a mirror");
        assert!(!waiting(&json!({"metadata": {"deletionTimestamp": "2026-01-01T12:06:00Z"}})), "terminating");
    }

    #[test]
    fn pods_older_than_the_opt_in_were_not_missed() {
        let created = |time: &str| waiting(&json!({"metadata": {"creationTimestamp": time}}));
        assert!(!created("2026-01-01T11:59:59Z") && !created("2026-01-01T12:00:00Z"));
        assert!(!created("2026-01-01T12:00:01Z"), "the webhook may not have seen the opt-in yet");
        assert!(created("2026-01-01T12:00:02Z"));
    }

    #[test]
    fn missed_pods_with_a_node_are_counted_by_decision() {
        let on_vm = json!({"spec": {"nodeName": "vm"}, "metadata": {"uid": "u"}});
        let decided = json!({"spec": {"nodeName": "vm"}, "metadata": {"annotations": {DECISION: "prefer"}}});
        let going = json!({"spec": {"nodeName": "vm"}, "metadata": {"deletionTimestamp": "2026-01-01T12:06:00Z"}});
        let found = found(&[pod("waits", &json!({})), pod("runs", &on_vm), pod("seen", &decided), pod("goes", &going)]);
        assert_eq!(found.waiting.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>(), ["waits"]);
        let [scheduled] = found.scheduled.as_slice() else { panic!("{found:?}") };
        assert_eq!((scheduled.meta.name.as_str(), scheduled.node.as_str()), ("runs", "vm"));
        assert_eq!(counts(&found.scheduled, |_| None), [("unknown", 1)].into());
        assert_eq!(counts(&found.scheduled, |uid| (uid == "u").then_some("prefer")), [("prefer", 1)].into());
    }

    #[test]
    fn pods_that_back_off_do_not_delay_others() {
        let pod = |number: usize| PodMeta { uid: number.to_string(), ..PodMeta::default() };
        let waiting: Vec<_> = (0..=MAX_PODS).map(pod).collect();
        let mut backoff = Backoff::default();
        let first = next_pods(&waiting, &backoff, Instant::now());
        assert_eq!(first.len(), MAX_PODS);
        for pod in first {
            backoff.start(&pod.uid, Instant::now());
        }
        assert_eq!(next_pods(&waiting, &backoff, Instant::now()), [&pod(MAX_PODS)]);
    }
}
