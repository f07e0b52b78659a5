//! Which pods the webhook has missed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;

use super::super::observed::{Assigned, Kept, Name, Owned, Waiting};
use crate::{
    burst::DECISION,
    cluster::{GRACE, Namespace, Reach, Scope, Snapshot},
};

/// The opt-in of a namespace.
#[derive(Debug)]
pub(super) struct OptIn {
    /// The namespace in the snapshot at that time. If the snapshot has another one now, the opt-in is read again.
    pub(super) seen: Arc<Namespace>,
    pub(super) since: Timestamp,
    /// All labels of the namespace.
    pub(super) labels: BTreeMap<String, String>,
}

/// The missed pods.
#[derive(Debug, Default, PartialEq)]
pub(super) struct MissedPods {
    /// Pods without a node.
    pub(super) waiting: Vec<Owned>,
    /// Pods with a node.
    pub(super) scheduled: Vec<Scheduled>,
    /// A matchCondition that decides, and that only the API server can evaluate.
    pub(super) unknown_condition: Option<String>,
}

/// A missed pod that has a node.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scheduled {
    pub(super) owned: Owned,
    pub(super) node: String,
}

impl Scheduled {
    pub(super) fn name(&self) -> Name {
        (self.owned.namespace.clone(), self.owned.name.clone())
    }
}

/// A pod without a decision.
struct Undecided<'u> {
    owned: &'u Owned,
    labels: &'u BTreeMap<String, String>,
    annotations: &'u BTreeMap<String, String>,
    /// Its node, if it has one.
    node: Option<&'u str>,
}

fn undecided<'u>(waiting: &'u Kept<Waiting>, assigned: &'u Kept<Assigned>) -> impl Iterator<Item = Undecided<'u>> {
    let waiting = waiting.values().filter(|pod| pod.annotation(DECISION).is_none()).map(|pod| Undecided {
        owned: &pod.owned,
        labels: &pod.labels,
        annotations: &pod.annotations,
        node: None,
    });
    let assigned = assigned.values().filter_map(|pod| {
        let undecided = pod.undecided.as_deref()?;
        let super::super::observed::Undecided { owned, labels, annotations } = undecided;
        Some(Undecided { owned, labels, annotations, node: Some(&pod.node) })
    });
    waiting.chain(assigned)
}

/// Returns the namespaces with pods without a decision whose opt-in is not known.
pub(super) fn unread_namespaces(
    waiting: &Kept<Waiting>,
    assigned: &Kept<Assigned>,
    snapshot: &Snapshot,
    known: &HashMap<String, OptIn>,
) -> Vec<String> {
    let names: BTreeSet<_> = undecided(waiting, assigned).map(|pod| pod.owned.namespace.as_str()).collect();
    let is_unread = |name: &&str| {
        let seen = snapshot.namespace(name);
        seen.is_some_and(|seen| known.get(*name).is_none_or(|known| !Arc::ptr_eq(&known.seen, &seen)))
    };
    names.into_iter().filter(is_unread).map(str::to_owned).collect()
}

/// Returns the pods without a decision that the API server should have sent to the webhook, and that are younger than the opt-in of
/// their namespace.
pub(super) fn missed(
    scope: &Scope,
    waiting: &Kept<Waiting>,
    assigned: &Kept<Assigned>,
    opted_in: &HashMap<String, OptIn>,
) -> MissedPods {
    let mut found = MissedPods::default();
    for Undecided { owned, labels, annotations, node } in undecided(waiting, assigned) {
        let Some(namespace) =
            opted_in.get(&owned.namespace).filter(|namespace| owned.created >= namespace.since + GRACE)
        else {
            continue;
        };
        match (scope.reaches(&namespace.labels, labels, annotations), node) {
            (Reach::NotCalled, _) => {}
            (Reach::Depends(condition), _) => found.unknown_condition = Some(condition),
            (Reach::Called, None) => found.waiting.push(owned.clone()),
            (Reach::Called, Some(node)) => {
                found.scheduled.push(Scheduled { owned: owned.clone(), node: node.to_owned() });
            }
        }
    }
    found
}

/// Number of missed pods by decision; `unknown` for pods that have not been assessed yet.
pub(super) fn counts(
    scheduled: &[Scheduled],
    label: impl Fn(&str) -> Option<&'static str>,
) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for pod in scheduled {
        *counts.entry(label(&pod.owned.uid).unwrap_or("unknown")).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const OPTED_IN: &str = "2026-01-01T12:00:00Z";

    fn scope() -> Scope {
        let manifest = include_str!("../../../manifests/base/mutatingwebhookconfiguration.yaml");
        Scope::read(serde_saphyr::from_str(manifest).unwrap())
    }

    fn opted_in() -> HashMap<String, OptIn> {
        let seen = Snapshot::of_namespaces(&[("shop", "enabled")]).namespace("shop").unwrap();
        let labels = [("spillway.dev/burst".to_owned(), "enabled".to_owned())].into();
        [("shop".to_owned(), OptIn { seen, since: OPTED_IN.parse().unwrap(), labels })].into()
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
        let waiting = pods.iter().filter(|pod| pod["spec"]["nodeName"].is_null()).filter_map(|pod| {
            let waiting = Waiting::read(serde_json::from_value(pod.clone()).unwrap())?;
            Some(((waiting.owned.namespace.clone(), waiting.owned.name.clone()), waiting))
        });
        let assigned = pods.iter().filter(|pod| !pod["spec"]["nodeName"].is_null()).filter_map(|pod| {
            let name = (pod["metadata"]["namespace"].to_string(), pod["metadata"]["name"].to_string());
            Some((name, Assigned::of(pod)?))
        });
        missed(&scope(), &waiting.collect(), &assigned.collect(), &opted_in())
    }

    fn waiting(changes: &Value) -> bool {
        !found(&[pod("p", changes)]).waiting.is_empty()
    }

    #[test]
    fn a_pod_in_scope_without_a_decision_was_missed() {
        assert!(waiting(&json!({})));
        assert!(!waiting(&json!({"metadata": {"annotations": {DECISION: "prefer"}}})), "it has a decision");
        assert!(!waiting(&json!({"metadata": {"namespace": "plain"}})), "its namespace is not opted in");
        assert!(!waiting(&json!({"metadata": {"labels": {"spillway.dev/burst": "disabled"}}})), "opted out");
        assert!(!waiting(&json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}})), "a mirror");
        assert!(!waiting(&json!({"metadata": {"deletionTimestamp": "2026-01-01T12:06:00Z"}})), "terminating");
    }

    #[test]
    fn pods_older_than_the_opt_in_were_not_missed() {
        let created = |time: &str| waiting(&json!({"metadata": {"creationTimestamp": time}}));
        assert!(!created("2026-01-01T11:59:59Z") && !created("2026-01-01T12:00:00Z"));
        assert!(!created("2026-01-01T12:00:01Z"), "the webhook may not know the opt-in yet");
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
        assert_eq!((scheduled.owned.name.as_str(), scheduled.node.as_str()), ("runs", "vm"));
        assert_eq!(counts(&found.scheduled, |_| None), [("unknown", 1)].into());
        assert_eq!(counts(&found.scheduled, |uid| (uid == "u").then_some("prefer")), [("prefer", 1)].into());
    }
}
