//! The clusters of the scenarios. Both have the same three VMs and one virtual node. Spillway is installed in one of them, as a user
//! installs it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    harness::{
        ControlPlane, Controller, Namespace, Sandbox, Webhook, control_plane, eventually, install,
        installed_configuration, sandbox,
    },
    timeline::Timeline,
};

/// The number of pods of half a CPU for which the three VMs have room.
pub(crate) const ROOM: usize = 24;

/// The way in which pods may overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// The manifest has a toleration and a preferred affinity.
    ByHand,
    /// The manifest does not mention virtual nodes.
    Spillway,
}

impl Group {
    pub(crate) const BOTH: [Self; 2] = [Self::ByHand, Self::Spillway];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::ByHand => "by hand",
            Self::Spillway => "with Spillway",
        }
    }
}

/// Both clusters.
pub(crate) struct Clusters {
    by_hand: Sandbox,
    spillway: &'static ControlPlane,
    webhook: Option<Webhook>,
    controller: Option<Controller>,
    starts: usize,
}

impl Clusters {
    pub(crate) fn start() -> Self {
        let mut clusters =
            Self { by_hand: sandbox(), spillway: control_plane(), webhook: None, controller: None, starts: 0 };
        install(clusters.spillway);
        clusters.start_controller();
        clusters.start_webhook();
        for group in Group::BOTH {
            clusters.nodes_are_ready(group);
        }
        eventually("the last-resort taint of the virtual node", || {
            clusters.keys_of_taints(Group::Spillway).contains("spillway.dev/last-resort").then_some(())
        });
        clusters
    }

    pub(crate) fn plane(&self, group: Group) -> &'static ControlPlane {
        match group {
            Group::ByHand => self.by_hand.plane,
            Group::Spillway => self.spillway,
        }
    }

    /// Creates a namespace. With Spillway, the namespace has this profile and these annotations.
    pub(crate) fn namespace(&self, group: Group, profile: &str, annotations: &Value) -> Namespace {
        match group {
            Group::ByHand => self.by_hand.plane.namespace(None),
            Group::Spillway => {
                let namespace = self.spillway.annotated_namespace(Some(profile), annotations);
                if self.webhook.is_some() {
                    wait_for_decisions(&namespace);
                }
                namespace
            }
        }
    }

    pub(crate) fn controller(&self) -> &Controller {
        self.controller.as_ref().expect("the controller runs")
    }

    pub(crate) fn start_controller(&mut self) {
        let name = self.name("controller");
        self.controller = Some(Controller::start(self.spillway, &name, &[]));
        eventually("the controller to lead", || self.controller().leads().then_some(()));
    }

    /// Starts a webhook, and registers its address, because the control plane has no Services.
    pub(crate) fn start_webhook(&mut self) {
        let name = self.name("webhook");
        let webhook = Webhook::start_self_managed(self.spillway, &name, &[]);
        let configuration = installed_configuration(self.spillway, webhook.address);
        self.spillway.kubectl_with(&["apply", "-f", "-"], &configuration);
        self.webhook = Some(webhook.ready());
        wait_for_decisions(&self.spillway.namespace(Some("enabled")));
    }

    pub(crate) fn stop_webhook(&mut self) {
        self.webhook = None;
    }

    /// Stops the controller as a kubelet does, so that it releases the lease.
    pub(crate) fn stop_controller(&mut self) {
        let mut controller = self.controller.take().expect("the controller runs");
        controller.signal("TERM");
        eventually("the controller to exit", || (!controller.is_alive()).then_some(()));
    }

    fn name(&mut self, program: &str) -> String {
        self.starts += 1;
        format!("{program}-{}", self.starts)
    }

    /// Adds a VM like the others.
    pub(crate) fn add_vm(&self, group: Group, name: &str) {
        let plane = self.plane(group);
        let vm: Value = serde_json::from_str(&plane.kubectl(&["get", "node", "vm-1", "-o", "json"])).unwrap();
        let mut labels = vm["metadata"]["labels"].clone();
        labels["kubernetes.io/hostname"] = name.into();
        let (capacity, allocatable) = (&vm["status"]["capacity"], &vm["status"]["allocatable"]);
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
            "status": {"capacity": capacity, "allocatable": allocatable},
        });
        plane.kubectl_with(&["create", "-f", "-"], &node.to_string());
    }

    pub(crate) fn remove_node(&self, group: Group, name: &str) {
        self.plane(group).kubectl(&["delete", "node", name]);
    }

    fn keys_of_taints(&self, group: Group) -> String {
        self.plane(group).kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].spec.taints[*].key}"])
    }

    /// Waits until all nodes are ready. New nodes are not ready, and all pods would be scheduled to the first ready node.
    fn nodes_are_ready(&self, group: Group) {
        eventually("the nodes to be ready", || (!self.keys_of_taints(group).contains("not-ready")).then_some(()));
    }
}

/// Waits until the webhook decides on pods of this namespace.
fn wait_for_decisions(namespace: &Namespace) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"},
        "spec": {"containers": [{"name": "c", "image": "registry.example/c"}]},
    });
    eventually("the webhook to decide", || {
        namespace.dry_run(&pod)["metadata"]["annotations"]["spillway.dev/decision"].is_string().then_some(())
    });
}

/// A Deployment called `web`.
#[derive(Debug, Clone)]
pub(crate) struct Web {
    pub(crate) replicas: usize,
    pub(crate) cpu: &'static str,
    pub(crate) memory: &'static str,
    /// The weight of the manifest's preferred affinity against virtual nodes. The default is 100 by hand, and no affinity with Spillway.
    pub(crate) weight: Option<u32>,
    /// `true` if the manifest spreads the pods over hosts, if possible.
    pub(crate) is_spread: bool,
}

impl Web {
    /// Returns a Deployment with this number of pods of half a CPU.
    pub(crate) fn of(replicas: usize) -> Self {
        Self { replicas, cpu: "500m", memory: "256Mi", weight: None, is_spread: false }
    }

    /// Returns the manifest for a group.
    fn manifest(&self, group: Group) -> Value {
        let mut spec = json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "web", "image": "registry.example/web",
                "resources": {"requests": {"cpu": self.cpu, "memory": self.memory}}}],
        });
        if group == Group::ByHand {
            // As in the documentation of AKS.
            spec["tolerations"] = json!([{"key": "virtual-kubelet.io/provider", "operator": "Exists"}]);
        }
        let weight = self.weight.or((group == Group::ByHand).then_some(100));
        if let Some(weight) = weight {
            let apart = json!([{"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]}]);
            let preferred = json!([{"weight": weight, "preference": {"matchExpressions": apart}}]);
            spec["affinity"] = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}});
        }
        if self.is_spread {
            spec["topologySpreadConstraints"] = json!([{
                "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app": "web"}},
            }]);
        }
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"replicas": self.replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": spec}},
        })
    }

    /// Starts a timeline of this namespace, and then creates the Deployment.
    pub(crate) fn create(&self, clusters: &Clusters, group: Group, namespace: &Namespace) -> Timeline {
        let timeline = Timeline::follow(clusters.plane(group), &namespace.name);
        namespace.create(&self.manifest(group));
        timeline
    }
}

/// Deletes the Deployment and waits until its pods no longer exist, so that the next scene starts with empty nodes.
pub(crate) fn clear(namespace: &Namespace, timeline: &Timeline) {
    namespace.kubectl(&["delete", "deployment", "web", "--cascade=foreground", "--wait=true"], "");
    timeline.wait("the pods to be gone", |counts| counts.total() == 0);
}

/// Waits until something is older than this.
pub(crate) fn wait_for_age(since: Instant, age: Duration) {
    eventually("the time to pass", || (since.elapsed() > age).then_some(()));
}
