//! State that the reconciler of missed pods keeps between rounds.

use std::{collections::HashMap, sync::Arc};

use super::{eviction::Evictions, plan::OptIn};
use crate::{config::Configuration, controller::observed::Owned, eligibility::VirtualNode, kubernetes::Backoff};

/// State that is kept between rounds. A new leader starts without it.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Opt-ins by namespace.
    pub(super) opted_in: HashMap<String, OptIn>,
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
    pub(super) fn unknown(pod: &Owned) -> Self {
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

    /// Sets the opt-in of a namespace, and forgets the assessments of its pods.
    pub(super) fn set_opt_in(&mut self, name: String, opt_in: OptIn) {
        self.assessed.retain(|_, assessment| assessment.namespace != name);
        self.opted_in.insert(name, opt_in);
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
            (namespace.to_owned(), Assessment::unknown(&Owned { namespace: namespace.to_owned(), ..Owned::default() }))
        };
        let snapshot = Snapshot::of_namespaces(&[("shop", "enabled"), ("bar", "enabled")]);
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
        let seen = snapshot.namespace("shop").unwrap();
        memory.set_opt_in("shop".to_owned(), OptIn { seen, since: Timestamp::UNIX_EPOCH, labels: [].into() });
        assert_eq!(left(&memory), ["bar"], "the namespace has changed");
        memory.set_basis(&configuration, std::slice::from_ref(&node));
        assert!(left(&memory).is_empty(), "there is another virtual node");
        assess(&mut memory);
        memory.set_basis(&Arc::default(), &[node]);
        assert!(left(&memory).is_empty(), "another configuration");
    }
}
