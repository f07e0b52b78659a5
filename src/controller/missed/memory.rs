//! State that the reconciler of missed pods keeps between rounds.

use std::{collections::HashMap, sync::Arc};

use super::eviction::Evictions;
use crate::{
    cluster::{OptedIn, PodMeta},
    config::Configuration,
    eligibility::VirtualNode,
    kubernetes::{Backoff, ObjectKey, Store},
};

/// State that is kept between rounds. A new leader starts without it.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The opted-in namespaces that the assessments rest on, by name.
    opted_in: HashMap<String, Arc<OptedIn>>,
    /// Assessments of missed pods that have a node, by uid.
    pub(super) assessed: HashMap<String, Assessment>,
    /// The configuration and the virtual nodes that the assessments rest on.
    basis: Option<(Arc<Configuration>, Vec<VirtualNode>)>,
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
    /// Whether the pod may be evicted, so that its owner recreates it.
    pub(super) may_evict: bool,
}

impl Assessment {
    /// Of a pod whose decision is unknown.
    pub(super) fn unknown(pod: &PodMeta) -> Self {
        Self { namespace: pod.namespace.clone(), label: "unknown", may_evict: false }
    }
}

impl Memory {
    /// Forgets assessments that rest on another configuration or other virtual nodes.
    pub(super) fn set_basis(&mut self, configuration: &Arc<Configuration>, virtual_nodes: &[VirtualNode]) {
        let is_same = self
            .basis
            .as_ref()
            .is_some_and(|(before, nodes)| Arc::ptr_eq(before, configuration) && nodes == virtual_nodes);
        if !is_same {
            self.assessed.clear();
            self.basis = Some((configuration.clone(), virtual_nodes.to_vec()));
        }
    }

    /// Forgets the assessments of pods whose namespace has changed.
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
    fn an_assessment_is_forgotten_when_its_basis_changes() {
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
        let mut memory = Memory::default();
        let assess = |memory: &mut Memory| {
            memory.assessed = ["shop", "bar"].map(assessment).into();
        };
        let left = |memory: &Memory| memory.assessed.keys().cloned().collect::<Vec<_>>();
        memory.set_basis(&configuration, &[]);
        assess(&mut memory);
        memory.set_basis(&configuration, &[]);
        assert_eq!(left(&memory).len(), 2);
        memory.set_opted_in(&store([("shop", &shop), ("bar", &bar)]));
        assess(&mut memory);
        memory.set_opted_in(&store([("shop", &shop), ("bar", &bar)]));
        assert_eq!(left(&memory).len(), 2);
        memory.set_opted_in(&store([("shop", &opted_in(2)), ("bar", &bar)]));
        assert_eq!(left(&memory), ["bar"], "the namespace has changed");
        memory.set_basis(&configuration, std::slice::from_ref(&node));
        assert!(left(&memory).is_empty(), "there is another virtual node");
        assess(&mut memory);
        memory.set_basis(&Arc::default(), &[node]);
        assert!(left(&memory).is_empty(), "another configuration");
    }
}
