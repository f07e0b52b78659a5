//! Where the stories play: two clusters of the same three VMs and one virtual node, one as it is, one with Spillway installed as a
//! user installs it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    harness::{
        ControlPlane, Controller, Namespace, Sandbox, Webhook, control_plane, eventually, install,
        installed_configuration, sandbox,
    },
    timeline::Timeline,
};

/// How many pods of half a CPU the three VMs have room for.
pub(crate) const ROOM: usize = 24;

/// Who takes care that pods may overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// The owner: toleration and preferred affinity in the manifest.
    ByHand,
    /// The manifest says nothing of virtual nodes.
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
pub(crate) struct Stage {
    by_hand: Sandbox,
    spillway: &'static ControlPlane,
    webhook: Option<Webhook>,
    controller: Option<Controller>,
    starts: usize,
}

impl Stage {
    pub(crate) fn set() -> Self {
        let mut stage =
            Self { by_hand: sandbox(), spillway: control_plane(), webhook: None, controller: None, starts: 0 };
        install(stage.spillway);
        stage.start_controller();
        stage.start_webhook();
        for group in Group::BOTH {
            stage.nodes_are_ready(group);
        }
        eventually("the virtual node to be the last resort", || {
            stage.keys_of_taints(Group::Spillway).contains("spillway.dev/last-resort").then_some(())
        });
        stage
    }

    pub(crate) fn plane(&self, group: Group) -> &'static ControlPlane {
        match group {
            Group::ByHand => self.by_hand.plane,
            Group::Spillway => self.spillway,
        }
    }

    /// A new namespace; with Spillway of this profile and with these annotations.
    pub(crate) fn namespace(&self, group: Group, profile: &str, annotations: &Value) -> Namespace {
        match group {
            Group::ByHand => self.by_hand.plane.namespace(None),
            Group::Spillway => {
                let namespace = self.spillway.annotated_namespace(Some(profile), annotations);
                if self.webhook.is_some() {
                    decides(&namespace);
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

    /// Starts a webhook, and tells the API server where it is, as a Service does.
    pub(crate) fn start_webhook(&mut self) {
        let name = self.name("webhook");
        let webhook = Webhook::start_self_managed(self.spillway, &name, &[]);
        let configuration = installed_configuration(self.spillway, webhook.address);
        self.spillway.kubectl_with(&["apply", "-f", "-"], &configuration);
        self.webhook = Some(webhook.ready());
        decides(&self.spillway.namespace(Some("enabled")));
    }

    pub(crate) fn stop_webhook(&mut self) {
        self.webhook = None;
    }

    /// As a kubelet does it: the lease is given back.
    pub(crate) fn stop_controller(&mut self) {
        let mut controller = self.controller.take().expect("the controller runs");
        controller.signal("TERM");
        eventually("the controller to end", || (!controller.is_alive()).then_some(()));
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

    /// A node begins as not ready. If one was ready before the others, pods would go there for that alone.
    fn nodes_are_ready(&self, group: Group) {
        eventually("the nodes to be ready", || (!self.keys_of_taints(group).contains("not-ready")).then_some(()));
    }
}

/// Waits until the webhook decides about pods of this namespace.
fn decides(namespace: &Namespace) {
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
    /// Of the preferred affinity by which the owner keeps away from virtual nodes; with Spillway, nothing if the owner says nothing.
    pub(crate) weight: Option<u32>,
    /// Whether the owner spreads the pods over hosts as well as it goes.
    pub(crate) is_spread: bool,
}

impl Web {
    /// So many pods of half a CPU.
    pub(crate) fn of(replicas: usize) -> Self {
        Self { replicas, cpu: "500m", memory: "256Mi", weight: None, is_spread: false }
    }

    /// What its owner applies.
    fn manifest(&self, group: Group) -> Value {
        let mut spec = json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "web", "image": "registry.example/web",
                "resources": {"requests": {"cpu": self.cpu, "memory": self.memory}}}],
        });
        if group == Group::ByHand {
            // As the documentation of AKS has it.
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

    /// Creates it in this namespace, and follows its pods from before that.
    pub(crate) fn create(&self, stage: &Stage, group: Group, namespace: &Namespace) -> Timeline {
        let timeline = Timeline::follow(stage.plane(group), &namespace.name);
        namespace.create(&self.manifest(group));
        timeline
    }
}

/// Takes everything away, and waits until it is gone: the next scene begins with empty nodes.
pub(crate) fn clear(namespace: &Namespace, timeline: &Timeline) {
    namespace.kubectl(&["delete", "deployment", "web", "--cascade=foreground", "--wait=true"], "");
    timeline.wait("the pods to be gone", |counts| counts.total() == 0);
}

/// Waits until something is older than this.
pub(crate) fn wait_for_age(since: Instant, age: Duration) {
    eventually("time to pass", || (since.elapsed() > age).then_some(()));
}
