//! The state of the reconciler of missed pods between rounds.

use std::{collections::HashMap, sync::Arc};

use super::eviction::Evictions;
use crate::{
    cluster::{OptedIn, PodMeta},
    config::Configuration,
    eligibility::VirtualNode,
    kubernetes::{Backoff, ObjectKey, Store},
};

/// The state between rounds. A new leader starts with an empty state.
#[derive(Debug, Default)]
pub(super) struct ReconcilerState {
    /// The opted-in namespaces of the assessments, by name.
    opted_in: HashMap<String, Arc<OptedIn>>,
    /// Assessments of missed pods that have a node, by uid.
    pub(super) assessed: HashMap<String, Assessment>,
    /// The configuration and the virtual nodes of the assessments.
    inputs: Option<(Arc<Configuration>, Vec<VirtualNode>)>,
    pub(super) evictions: Evictions,
    /// Pods whose repair failed.
    pub(super) backoff: Backoff,
}

/// The decision that a missed pod would get if it were recreated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assessment {
    pub(super) namespace: String,
    /// Label of metric `spillway_missed_pods`; a closed set.
    pub(super) label: &'static str,
    /// `true` if the pod may be evicted, so that its owner recreates it.
    pub(super) may_evict: bool,
}

impl Assessment {
    /// Returns the assessment of a pod whose decision is unknown.
    pub(super) fn unknown(pod: &PodMeta) -> Self {
        Self { namespace: pod.namespace.clone(), label: "unknown", may_evict: false }
    }
}

impl ReconcilerState {
    /// Removes all assessments if the configuration or the virtual nodes have changed.
    pub(super) fn set_inputs(&mut self, configuration: &Arc<Configuration>, virtual_nodes: &[VirtualNode]) {
        let is_same = self
            .inputs
            .as_ref()
            .is_some_and(|(before, nodes)| Arc::ptr_eq(before, configuration) && nodes == virtual_nodes);
        if !is_same {
            self.assessed.clear();
            self.inputs = Some((configuration.clone(), virtual_nodes.to_vec()));
        }
    }

    /// Removes the assessments of pods whose namespace has changed.
    pub(super) fn set_opted_in(&mut self, opted_in: &Store<Arc<OptedIn>>) {
        let is_same = |name: &str| {
            let (before, now) = (self.opted_in.get(name), opted_in.get(&ObjectKey::cluster_scoped(name)));
            before.zip(now).is_some_and(|(before, now)| Arc::ptr_eq(before, now))
        };
        self.assessed.retain(|_, assessment| is_same(&assessment.namespace));
        self.opted_in = opted_in.iter().map(|(key, namespace)| (key.name.clone(), namespace.clone())).collect();
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::cluster::Snapshot;

    #[test]
    fn an_assessment_is_removed_when_its_inputs_change() {
        let assessment = |namespace: &str| {
            (
                namespace.to_owned(),
                Assessment::unknown(&PodMeta { namespace: namespace.to_owned(), ..PodMeta::default() }),
            )
        };
        let opted_in = |since: i64| {
            let namespace = Snapshot::of_namespaces(&[("shop", "enabled")]).namespace("shop").unwrap();
            Arc::new(OptedIn { namespace, since: Timestamp::from_second(since).unwrap(), labels: [].into() })
        };
        let store = |namespaces: [(&str, &Arc<OptedIn>); 2]| {
            namespaces.map(|(name, one)| (ObjectKey::cluster_scoped(name), one.clone())).into_iter().collect()
        };
        let (shop, bar) = (opted_in(1), opted_in(1));
        let configuration = Arc::<Configuration>::default();
        let node = VirtualNode::new("v".to_owned(), Vec::new());
        let mut state = ReconcilerState::default();
        let assess = |state: &mut ReconcilerState| {
            state.assessed = ["shop", "bar"].map(assessment).into();
        };
        let left = |state: &ReconcilerState| state.assessed.keys().cloned().collect::<Vec<_>>();
        state.set_inputs(&configuration, &[]);
        assess(&mut state);
        state.set_inputs(&configuration, &[]);
        assert_eq!(left(&state).len(), 2);
        state.set_opted_in(&store([("shop", &shop), ("bar", &bar)]));
        assess(&mut state);
        state.set_opted_in(&store([("shop", &shop), ("bar", &bar)]));
        assert_eq!(left(&state).len(), 2);
        state.set_opted_in(&store([("shop", &opted_in(2)), ("bar", &bar)]));
        assert_eq!(left(&state), ["bar"], "the namespace has changed");
        state.set_inputs(&configuration, std::slice::from_ref(&node));
        assert!(left(&state).is_empty(), "a virtual node was added");
        assess(&mut state);
        state.set_inputs(&Arc::default(), &[node]);
        assert!(left(&state).is_empty(), "the configuration has changed");
    }
}
