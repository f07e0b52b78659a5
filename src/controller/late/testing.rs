//! A cluster with late pods, for tests.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    in_flight::InFlight,
    observation::Observation,
    plan::{Plan, plan},
};
use crate::{
    burst::{DECISION, UNSCHEDULABLE_SINCE},
    cluster::{Node, PodStore, ScaleUps, Snapshot},
    config::{Configuration, parse},
    kubernetes::{Backoff, ObjectKey, Store},
};

pub(super) fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

pub(super) fn before(seconds: u64) -> Timestamp {
    now() - Duration::from_secs(seconds)
}

/// A cluster with namespace `shop` of profile `autoscaled` and a virtual node.
pub(super) struct Cluster {
    pub(super) configuration: Configuration,
    pub(super) snapshot: Snapshot,
    pub(super) waiting: BTreeMap<ObjectKey, Value>,
    pub(super) nodes: Vec<Value>,
    pub(super) on_virtual: Vec<Value>,
    pub(super) in_flight: InFlight,
    pub(super) scale_up_signals: Vec<(ObjectKey, Timestamp)>,
    pub(super) backoff: Backoff,
    pub(super) may_apply: bool,
}

impl Cluster {
    pub(super) fn new() -> Self {
        Self {
            configuration: Configuration::default(),
            snapshot: Snapshot::of_namespaces(&[("shop", "autoscaled"), ("other", "autoscaled"), ("plain", "enabled")]),
            waiting: BTreeMap::new(),
            nodes: vec![node("virtual", &json!({"type": "virtual-kubelet"}), 3600)],
            on_virtual: Vec::new(),
            in_flight: InFlight::default(),
            scale_up_signals: Vec::new(),
            backoff: Backoff::default(),
            may_apply: true,
        }
    }

    pub(super) fn configured(text: &str) -> Self {
        let file = format!("apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n{text}");
        Self { configuration: parse(&file).unwrap(), ..Self::new() }
    }

    /// Adds a pod. `since` is the recorded number of seconds for which the pod has been unschedulable, if any.
    pub(super) fn pod(
        mut self,
        namespace: &str,
        name: &str,
        since: Option<u64>,
        change: impl FnOnce(&mut Value),
    ) -> Self {
        let mut pod = json!({
            "metadata": {"namespace": namespace, "name": name, "uid": name, "resourceVersion": "7",
                "creationTimestamp": before(since.unwrap_or_default()),
                "annotations": {DECISION: "late", "spillway.dev/added": "affinity"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true}]},
            "spec": {"containers": [{"name": "c"}], "tolerations": []},
            "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]},
        });
        if let Some(since) = since {
            pod["metadata"]["annotations"][UNSCHEDULABLE_SINCE] = before(since).to_string().into();
        }
        change(&mut pod);
        self.waiting.insert(ObjectKey::new(namespace, name), pod);
        self
    }

    pub(super) fn plan(&self) -> Plan {
        self.plan_without("").unwrap()
    }

    /// Returns the plan while one of the inputs has not arrived.
    pub(super) fn plan_without(&self, unknown: &str) -> Option<Plan> {
        let nodes = self.nodes.iter().map(|node| {
            let node = Node::read(serde_json::from_value(node.clone()).unwrap()).unwrap();
            (ObjectKey::cluster_scoped(&node.name), node)
        });
        let mut pods: Vec<_> = self.on_virtual.clone();
        for pod in &mut pods {
            pod["spec"]["nodeName"] = "virtual".into();
        }
        pods.extend(self.waiting.values().cloned());
        let mut observation = Observation {
            now: now(),
            instant: Instant::now(),
            configuration: &self.configuration,
            snapshot: &self.snapshot,
            pods: &PodStore::of(&pods, &["virtual"]),
            nodes: &nodes.collect(),
            in_flight: &self.in_flight,
            scale_up_signals: &self.scale_up_signals.iter().cloned().collect(),
            backoff: &self.backoff,
            may_apply: self.may_apply,
        };
        let (no_pods, no_nodes, signals) = (PodStore::default(), Store::default(), ScaleUps::default());
        let (unlisted, incomplete) =
            (PodStore::of(&pods, &[]), PodStore::of(&pods, &["virtual"]).with_incomplete_virtual_pods());
        match unknown {
            "waiting" => observation.pods = &no_pods,
            "nodes" => observation.nodes = &no_nodes,
            "the pods of a virtual node" => observation.pods = &unlisted,
            "all pods of a virtual node" => observation.pods = &incomplete,
            "scale-up signals" => observation.scale_up_signals = &signals,
            _ => {}
        }
        plan(&observation)
    }

    /// Returns the names of the pods that get the toleration.
    pub(super) fn due(&self) -> Vec<String> {
        self.plan().due.into_iter().map(|pod| pod.key.name).collect()
    }
}

pub(super) fn node(name: &str, labels: &Value, ready_for: u64) -> Value {
    let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": before(ready_for)});
    json!({"metadata": {"name": name, "labels": labels}, "status": {"conditions": [ready]}})
}

/// A change of a pod that changes nothing.
pub(super) fn unchanged(_: &mut Value) {}
