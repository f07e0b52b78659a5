//! Which pods were missed.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    burst::DECISION,
    cluster::{GRACE, OptedIn, PodMeta, PodStore, Reach, Scope, UndecidedPod},
    kubernetes::{ObjectKey, Store},
};

/// The pods that were missed.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    /// Those that no node has been found for.
    pub(super) waiting: Vec<PodMeta>,
    /// Those that have one.
    pub(super) scheduled: Vec<Scheduled>,
    /// A matchCondition that nobody here can evaluate, where it decides.
    pub(super) depends: Option<String>,
}

/// A pod that was missed and has a node.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scheduled {
    pub(super) meta: PodMeta,
    pub(super) node: String,
}

impl Scheduled {
    pub(super) fn key(&self) -> ObjectKey {
        self.meta.key()
    }
}

/// A pod without a decision.
struct Undecided<'u> {
    meta: &'u PodMeta,
    labels: &'u BTreeMap<String, String>,
    annotations: &'u BTreeMap<String, String>,
    /// Nothing while it waits.
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

/// The pods without a decision that the API server should have called for, and that are younger than the opt-in of their namespace.
pub(super) fn missed(scope: &Scope, pods: &PodStore, opted_in: &Store<Arc<OptedIn>>) -> Found {
    let mut found = Found::default();
    for Undecided { meta, labels, annotations, node } in undecided(pods) {
        let namespace = opted_in.get(&ObjectKey::cluster_scoped(&meta.namespace));
        let Some(namespace) = namespace.filter(|namespace| meta.created >= namespace.since + GRACE) else { continue };
        match (scope.reaches(&namespace.labels, labels, annotations), node) {
            (Reach::NotCalled, _) => {}
            (Reach::Depends(condition), _) => found.depends = Some(condition),
            (Reach::Called, None) => found.waiting.push(meta.clone()),
            (Reach::Called, Some(node)) => {
                found.scheduled.push(Scheduled { meta: meta.clone(), node: node.to_owned() });
            }
        }
    }
    found
}

/// What would be decided → how many; `unknown` for those that have not been judged yet.
pub(super) fn counts(
    scheduled: &[Scheduled],
    word: impl Fn(&str) -> Option<&'static str>,
) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for pod in scheduled {
        *counts.entry(word(&pod.meta.uid).unwrap_or("unknown")).or_default() += 1;
    }
    counts
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

    fn found(pods: &[Value]) -> Found {
        missed(&scope(), &PodStore::of(pods, &[]), &opted_in())
    }

    fn waiting(changes: &Value) -> bool {
        !found(&[pod("p", changes)]).waiting.is_empty()
    }

    #[test]
    fn a_pod_was_missed_that_has_no_decision_although_the_webhook_should_have_been_called() {
        assert!(waiting(&json!({})));
        assert!(!waiting(&json!({"metadata": {"annotations": {DECISION: "prefer"}}})), "it was seen");
        assert!(!waiting(&json!({"metadata": {"namespace": "plain"}})), "its namespace is not opted in");
        assert!(!waiting(&json!({"metadata": {"labels": {"spillway.dev/burst": "disabled"}}})), "opted out");
        assert!(!waiting(&json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}})), "a mirror");
        assert!(!waiting(&json!({"metadata": {"deletionTimestamp": "2026-01-01T12:06:00Z"}})), "on its way out");
    }

    #[test]
    fn pods_that_are_older_than_the_opt_in_of_their_namespace_were_not_missed() {
        let created = |time: &str| waiting(&json!({"metadata": {"creationTimestamp": time}}));
        assert!(!created("2026-01-01T11:59:59Z") && !created("2026-01-01T12:00:00Z"));
        assert!(!created("2026-01-01T12:00:01Z"), "the webhook may not have heard of it yet");
        assert!(created("2026-01-01T12:00:02Z"));
    }

    #[test]
    fn those_that_have_a_node_are_told_apart_and_counted_by_what_would_be_decided() {
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
}
