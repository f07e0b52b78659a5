//! The node of an existing pod, and the reason for this node. The webhook, the controller and the scheduler write it on
//! the pod.

use serde_json::Value;

use super::known_cluster::KnownCluster;
use crate::{
    burst::{ADDED, DECISION, Part, UNSCHEDULABLE_SINCE},
    config::{Mode, Settings},
    excerpt,
};

/// Maximum characters of a reason. The scheduler's message about many nodes has several hundred.
const MAX_WHY_CHARS: usize = 1024;

/// The node of a pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Placement {
    /// `None` while the pod is pending.
    pub(super) node: Option<String>,
    /// `None` if no virtual node is known.
    pub(super) is_virtual: Option<bool>,
    pub(super) why: String,
}

impl Placement {
    /// Returns the placement of a pod with a status. `is_called` is `true` if the API server would now call Spillway for
    /// the pod.
    pub(super) fn of(pod: &Value, cluster: &KnownCluster, is_called: bool, settings: Option<&Settings<'_>>) -> Self {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
        let annotation = |key: &str| pod.pointer("/metadata/annotations")?.get(key)?.as_str();
        let node = text("/spec/nodeName");
        let is_virtual = node.filter(|_| cluster.knows_virtual_nodes()).map(|node| cluster.is_virtual(node));
        let added = annotation(ADDED).unwrap_or_default();
        let is_ours = added.split(',').any(|part| part == Part::Toleration.as_str());
        let status = PodStatus {
            decided: annotation(DECISION),
            since: annotation(UNSCHEDULABLE_SINCE),
            is_ours,
            is_called,
            late_after: settings.map_or(0, |settings| settings.late_after.value.as_secs()),
        };
        let mut why = match (node, is_virtual) {
            (None, _) => status.why_waiting(condition(pod)),
            (Some(_), Some(true)) => {
                let at = condition(pod).and_then(|condition| condition.get("lastTransitionTime")?.as_str());
                status.why_virtual(at, node.is_some_and(|node| cluster.is_last_resort(node)))
            }
            (Some(_), Some(false)) => status.why_vm(),
            (Some(_), None) => "no virtual node is known, so the node may be a virtual node or a VM".to_owned(),
        };
        // The pod's owner can write the annotations. They must not command the terminal of an operator.
        excerpt::shorten(&mut why, MAX_WHY_CHARS);
        Self { node: node.map(str::to_owned), is_virtual, why }
    }
}

/// Returns the condition `PodScheduled`.
fn condition(pod: &Value) -> Option<&Value> {
    let conditions = pod.pointer("/status/conditions")?.as_array()?;
    conditions.iter().find(|condition| condition.get("type").and_then(Value::as_str) == Some("PodScheduled"))
}

/// Annotations and toleration of the pod.
struct PodStatus<'p> {
    /// The decision of the webhook, such as `prefer`.
    decided: Option<&'p str>,
    since: Option<&'p str>,
    /// `true` if Spillway added the toleration of virtual nodes.
    is_ours: bool,
    is_called: bool,
    /// In seconds.
    late_after: u64,
}

impl PodStatus<'_> {
    fn is_late(&self) -> bool {
        self.decided == Some(Mode::Late.as_str())
    }

    fn not_called_reason(&self) -> &'static str {
        if self.is_called {
            "the API server did not call Spillway when the pod was created"
        } else {
            "the API server does not call Spillway for this pod"
        }
    }

    fn why_virtual(&self, at: Option<&str>, is_last_resort: bool) -> String {
        let when = at.map_or_else(String::new, |at| format!(" at {at}"));
        match (self.decided, self.since) {
            (Some(_), Some(since)) if self.is_late() && self.is_ours => {
                format!("unschedulable since {since}, so Spillway added the toleration late; scheduled{when}")
            }
            (Some(_), _) if self.is_ours && is_last_resort => {
                format!(
                    "VMs come first, and no VM had room when the pod was scheduled{when}, if the node had the last-resort taint then"
                )
            }
            (Some(_), _) if self.is_ours => format!(
                "the pod may overflow, and was scheduled{when}; the node has no last-resort taint, so VMs may have had room"
            ),
            (Some(decided), _) => {
                format!("the decision was \"{decided}\", but the pod has its own toleration of virtual nodes")
            }
            (None, _) => format!("{}, but the pod has its own toleration of virtual nodes", self.not_called_reason()),
        }
    }

    fn why_vm(&self) -> String {
        match self.decided {
            Some(_) if self.is_late() && self.is_ours => {
                "scheduled to a VM after Spillway had added the toleration".to_owned()
            }
            Some(_) if self.is_late() => "scheduled to a VM before Spillway added the toleration".to_owned(),
            Some(_) if self.is_ours => "VMs come first, and this VM had room".to_owned(),
            Some(decided) => format!("the decision was \"{decided}\""),
            None => self.not_called_reason().to_owned(),
        }
    }

    fn why_waiting(&self, condition: Option<&Value>) -> String {
        let text = |field: &str| condition?.get(field)?.as_str();
        let scheduler = match (text("reason"), text("message")) {
            (Some(reason), Some(message)) => format!("{reason}: {message}"),
            (Some(reason), None) => reason.to_owned(),
            _ => "the scheduler has not tried the pod yet".to_owned(),
        };
        match self.since {
            Some(since) if self.is_late() && !self.is_ours => format!(
                "{scheduler}; unschedulable since {since}, Spillway adds the toleration after {}s (late.after)",
                self.late_after
            ),
            _ if self.decided.is_none() => format!("{scheduler}; {}", self.not_called_reason()),
            _ => scheduler,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        cli::manifest::Document,
        config::{BURST_LABEL, Configuration, Overrides},
    };

    /// Returns the placement of a pod with these annotations on this node.
    fn placement(annotations: &Value, node: &str) -> Placement {
        let (configuration, nothing) = (Configuration::default(), Overrides::default());
        let settings = configuration.settings("enabled", &nothing, &nothing).known();
        let mut cluster = KnownCluster::new("enabled", &[], &configuration.virtual_nodes.selector);
        let node_of = |name: &str, labels: Value, taints: Value| Document {
            source: String::new(),
            value: json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}}),
        };
        let last_resort = json!([{"key": "spillway.dev/last-resort", "effect": "PreferNoSchedule"}]);
        let label = json!({"type": "virtual-kubelet"});
        cluster
            .add_documents(&[
                node_of("vn", label.clone(), last_resort),
                node_of("bare", label, json!([])),
                node_of("vm", json!({BURST_LABEL: "x"}), json!([])),
            ])
            .unwrap();
        let status = if node.is_empty() {
            json!({"type": "PodScheduled", "reason": "Unschedulable", "message": "0/3 nodes are available"})
        } else {
            json!({"type": "PodScheduled", "lastTransitionTime": "2026-01-01T12:00:00Z"})
        };
        let pod = json!({
            "metadata": {"annotations": annotations}, "spec": {"nodeName": node}, "status": {"conditions": [status]},
        });
        Placement::of(&pod, &cluster, true, settings.as_ref())
    }

    #[test]
    fn an_annotation_cannot_command_the_terminal() {
        let why = placement(&json!({DECISION: "\u{1b}]0;owned\u{7}\n\u{202e}"}), "vn").why;
        assert!(why.contains("\\u{1b}]0;owned\\u{7}\\n\\u{202e}") && !why.contains(char::is_control), "{why}");
    }

    #[test]
    fn placements_are_explained_by_decision_and_scheduling() {
        let prefer = json!({DECISION: "prefer", ADDED: "toleration,affinity"});
        let waits = json!({DECISION: "late", ADDED: "affinity", UNSCHEDULABLE_SINCE: "2026-01-01T11:00:00Z"});
        let late = json!({DECISION: "late", ADDED: "toleration,affinity", UNSCHEDULABLE_SINCE: "2026-01-01T11:00:00Z"});
        for (annotations, node, is_virtual, why) in [
            (
                &prefer,
                "vn",
                Some(true),
                "VMs come first, and no VM had room when the pod was scheduled at 2026-01-01T12:00:00Z, if the node had the last-resort taint then",
            ),
            (&prefer, "bare", Some(true), "no last-resort taint"),
            (&prefer, "vm", Some(false), "VMs come first, and this VM had room"),
            (&prefer, "", None, "Unschedulable: 0/3 nodes are available"),
            (
                &late,
                "vn",
                Some(true),
                "unschedulable since 2026-01-01T11:00:00Z, so Spillway added the toleration late",
            ),
            (&late, "vm", Some(false), "after Spillway had added the toleration"),
            (&waits, "vm", Some(false), "before Spillway added the toleration"),
            (&waits, "", None, "unschedulable since 2026-01-01T11:00:00Z, Spillway adds the toleration after 180s"),
            (
                &json!({DECISION: "stay: HostPathVolume"}),
                "vm",
                Some(false),
                "the decision was \"stay: HostPathVolume\"",
            ),
            (
                &json!({}),
                "vn",
                Some(true),
                "the API server did not call Spillway when the pod was created, but the pod has its own toleration of virtual nodes",
            ),
            (&json!({}), "vm", Some(false), "the API server did not call Spillway when the pod was created"),
        ] {
            let placement = placement(annotations, node);
            assert!(placement.why.contains(why), "{placement:?}, expected {why}");
            assert_eq!((placement.is_virtual, placement.node.as_deref().unwrap_or_default()), (is_virtual, node));
        }
    }
}
