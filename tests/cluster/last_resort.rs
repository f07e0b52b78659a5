//! The controller restores the last-resort taint of virtual nodes, and changes no other field of a node.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use axum::http::Method;
use serde_json::{Value, json};

use crate::harness::{ConfigVolume, ControlPlane, Controller, InstalledSandbox, eventually};

const TAINT: &str = "spillway.dev/last-resort";

/// A virtual node for one test. Dropping it deletes the node.
struct VirtualNode {
    plane: &'static ControlPlane,
    name: &'static str,
}

impl VirtualNode {
    fn create(plane: &'static ControlPlane, name: &'static str) -> Self {
        let node = Self { plane, name };
        node.create_again();
        node
    }

    fn create_again(&self) {
        let taint = json!({"key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule"});
        let capacity = json!({"cpu": "100", "memory": "100Gi", "pods": "100"});
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": {"type": "virtual-kubelet"}},
            "spec": {"taints": [taint]}, "status": {"allocatable": capacity, "capacity": capacity},
        });
        self.plane.create(&node);
    }

    fn get(&self) -> Value {
        self.plane.get(&format!("/api/v1/nodes/{}", self.name))
    }

    /// Returns the taints in the notation of kubectl.
    fn taints(&self) -> Vec<String> {
        let text = |taint: &Value| {
            let field = |name: &str| taint[name].as_str().unwrap_or_default();
            format!("{}={}:{}", field("key"), field("value"), field("effect"))
        };
        self.get()["spec"]["taints"].as_array().into_iter().flatten().map(text).collect()
    }

    fn is_last_resort(&self) -> bool {
        self.taints().contains(&format!("{TAINT}=:PreferNoSchedule"))
    }

    /// Removes the taint by a conditional patch. `kubectl taint` replaces the list that it has read, so that two of them at once
    /// lose changes.
    fn try_remove_taint(&self) {
        let node = self.get();
        let taints = node["spec"]["taints"].as_array().unwrap();
        let Some(place) = taints.iter().position(|taint| taint["key"] == TAINT) else { return };
        let patch = json!([
            {"op": "test", "path": "/metadata/resourceVersion", "value": node["metadata"]["resourceVersion"]},
            {"op": "remove", "path": format!("/spec/taints/{place}")},
        ]);
        let _ = self.plane.send(Method::PATCH, &format!("/api/v1/nodes/{}", self.name), &patch);
    }

    fn becomes_last_resort(&self) {
        eventually("the node to be the last resort", || self.is_last_resort().then_some(()));
    }
}

impl Drop for VirtualNode {
    fn drop(&mut self) {
        self.plane.delete_node(self.name);
    }
}

#[test]
fn the_last_resort_taint_is_restored() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let node = VirtualNode::create(plane, "last-resort");
    let mut volume = ConfigVolume::new("last-resort-volume", "logging: {level: info}");
    let controller = Controller::start(plane, "last-resort", &["--config", &volume.file()]);
    node.becomes_last_resort();
    assert!(node.taints().contains(&"virtual-kubelet.io/provider=azure:NoSchedule".to_owned()), "{:?}", node.taints());
    let vms = plane.list("/api/v1/nodes?labelSelector=type!%3Dvirtual-kubelet");
    assert!(vms.len() >= 3, "{vms:#?}");
    assert!(
        !vms.iter().any(|vm| vm["spec"]["taints"].to_string().contains(TAINT)),
        "the controller does not change VMs: {vms:#?}"
    );
    plane.kubectl(&["taint", "node", node.name, &format!("{TAINT}:PreferNoSchedule-")]);
    node.becomes_last_resort();
    plane.delete_node(node.name);
    node.create_again();
    node.becomes_last_resort();
    // The last writer owns the list of taints, and other controllers write taints to a node that is not ready.
    eventually("the node to be written by our field manager", || {
        node.try_remove_taint();
        node.becomes_last_resort();
        node.get()["metadata"]["managedFields"].to_string().contains("spillway-controller").then_some(())
    });
    assert!(controller.metric("spillway_actions_total{action=\"add_taint\",result=\"success\"}") >= 3);
    eventually("the event", || {
        let events = plane.events("default");
        let mut events = events.iter();
        let is_it = |event: &&Value| event["reason"] == "LastResortTaint" && event["regarding"]["name"] == node.name;
        let event = events.find(is_it)?;
        assert_eq!(event["metadata"]["managedFields"][0]["manager"], "spillway-controller", "{event:#}");
        Some(())
    });

    volume.publish("virtualNodes: {lastResortTaint: false}");
    eventually("the taint to be gone", || (!node.is_last_resort()).then_some(()));
    volume.publish("");
    node.becomes_last_resort();
    // The controller does not manage a node that is no longer selected.
    volume.publish("virtualNodes: {selector: type=other}");
    eventually("the taint to be gone", || (!node.is_last_resort()).then_some(()));
}

#[test]
fn concurrent_changes_to_a_node_are_kept() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let node = VirtualNode::create(plane, "last-resort-race");
    let _controller = Controller::start(plane, "last-resort-race", &[]);
    node.becomes_last_resort();
    let is_over = AtomicBool::new(false);
    let written = thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                plane.kubectl(&["taint", "node", node.name, &format!("example.com/other-{count}=x:NoSchedule")]);
                count += 1;
            }
            count
        });
        for _ in 0..10 {
            node.try_remove_taint();
            node.becomes_last_resort();
        }
        is_over.store(true, Ordering::Relaxed);
        others.join().unwrap()
    });
    // The other writer may have written last, without this taint.
    node.becomes_last_resort();
    let taints = node.taints();
    for other in 0..written {
        assert!(
            taints.contains(&format!("example.com/other-{other}=x:NoSchedule")),
            "{other} of {written}: {taints:?}"
        );
    }
    assert_eq!(taints.iter().filter(|taint| taint.starts_with(TAINT)).count(), 1);
}

#[test]
fn cleanup_removes_only_the_taints_of_spillway() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let node = VirtualNode::create(plane, "last-resort-cleanup");
    plane.kubectl(&["taint", "node", node.name, &format!("{TAINT}:PreferNoSchedule"), "spillway.dev/full:NoSchedule"]);
    let kubeconfig = plane.kubeconfig_for("spillway-system", "spillway-controller");
    let clean_up = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spillway"));
        let output = command.args(["controller", "--cleanup"]).env("KUBECONFIG", &kubeconfig).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let stdout = clean_up();
    assert!(stdout.starts_with("removed Spillway's taints from ") && stdout.contains(node.name), "{stdout}");
    let left = node.taints();
    assert!(left.iter().all(|taint| !taint.starts_with("spillway.dev/")), "{left:?}");
    assert!(left.contains(&"virtual-kubelet.io/provider=azure:NoSchedule".to_owned()), "{left:?}");
    assert_eq!(clean_up(), "no node has a Spillway taint\n");
}

/// Returns a policy that removes the taint from every write, as another webhook might.
fn stripping() -> Value {
    let expression = format!(
        "[JSONPatch{{op: 'replace', path: '/spec/taints', value: object.spec.taints.filter(t, t.key != '{TAINT}')}}]"
    );
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy", "metadata": {"name": "strip-taint"},
        "spec": {
            "failurePolicy": "Fail", "reinvocationPolicy": "Never",
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["nodes"]}]},
            "matchConditions": [{"name": "has-it", "expression":
                format!("object.metadata.name == 'last-resort-stripped' && object.spec.?taints.orValue([]).exists(t, t.key == '{TAINT}')")}],
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": "strip-taint"}, "spec": {"policyName": "strip-taint"},
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [policy, binding]})
}

#[test]
fn a_policy_that_strips_the_taint_is_reported() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let node = VirtualNode::create(plane, "last-resort-stripped");
    plane.create_or_replace(None, &stripping());
    eventually("the policy to take effect", || {
        plane.kubectl(&["taint", "--overwrite", "node", node.name, &format!("{TAINT}:PreferNoSchedule")]);
        (!node.is_last_resort()).then_some(())
    });
    let controller = Controller::start(plane, "last-resort-stripped", &[]);
    let find_event = || {
        let mut events = plane.events("default").into_iter();
        events.find(|event| event["reason"] == "TaintStripped" && event["regarding"]["name"] == node.name)
    };
    let event = eventually("the event", find_event);
    assert_eq!((&event["type"], &event["regarding"]["kind"]), (&"Warning".into(), &"Node".into()), "{event:#}");
    let attempts = "spillway_actions_total{action=\"add_taint\",result=\"stripped\"}";
    assert!((1..=2).contains(&controller.metric(attempts)), "{}", controller.metric(attempts));
    plane.kubectl_with(&["delete", "-f", "-"], &stripping().to_string());
    node.becomes_last_resort();
}
