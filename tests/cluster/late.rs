//! Late burst on the real scheduler: pods wait for a VM, and overflow if no VM joins.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::harness::{ConfigVolume, ControlPlane, Controller, InstalledSandbox, Namespace, eventually};

const SINCE: &str = "spillway.dev/unschedulable-since";

/// Creates a namespace whose pods may overflow after this time.
fn namespace(plane: &'static ControlPlane, after: &str) -> Namespace {
    plane.annotated_namespace(Some("autoscaled"), &json!({"spillway.dev/late-after": after}))
}

/// Returns the annotations that the webhook adds to a pod in mode late.
fn annotations_of_webhook() -> Value {
    json!({"spillway.dev/decision": "late", "spillway.dev/added": "affinity"})
}

/// Returns the spec of a pod that is too large for the VMs of the example.
fn large_pod() -> Value {
    json!({"containers": [{"name": "c", "image": "registry.example/c", "resources": {"requests": {"cpu": "20"}}}]})
}

/// Creates a Deployment of such pods, as the webhook changes them.
fn deploy(namespace: &Namespace, replicas: u32, spec: &Value) {
    let mut pod = large_pod();
    pod.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let annotations = annotations_of_webhook();
    namespace.create(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}, "annotations": annotations}, "spec": pod}},
    }));
}

/// Waits until there are this many pods and the condition holds for all of them.
fn wait_for_all(namespace: &Namespace, count: usize, what: &str, is_so: impl Fn(&Value) -> bool) -> Vec<Value> {
    eventually(what, || Some(namespace.pods()).filter(|pods| pods.len() == count && pods.iter().all(&is_so)))
}

fn is_on(pod: &Value, node: &str) -> bool {
    pod["spec"]["nodeName"] == node
}

fn tolerations_for_virtual_nodes(pod: &Value) -> usize {
    let is_ours = |toleration: &&Value| toleration["key"] == "virtual-kubelet.io/provider";
    pod["spec"]["tolerations"].as_array().into_iter().flatten().filter(is_ours).count()
}

fn unschedulable_since(pod: &Value) -> Option<&str> {
    pod["metadata"]["annotations"][SINCE].as_str()
}

#[test]
fn pods_overflow_after_late_after_with_one_event_for_the_owner() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let namespace = namespace(plane, "3s");
    let controller = Controller::start(plane, "late", &[]);
    let start = Instant::now();
    deploy(&namespace, 12, &json!({}));
    wait_for_all(&namespace, 12, "the clocks to start", |pod| unschedulable_since(pod).is_some());
    let there = wait_for_all(&namespace, 12, "the pods to be on the virtual node", |pod| is_on(pod, "virtualnode-0"));
    assert!(start.elapsed() > Duration::from_secs(3), "{:?}", start.elapsed());
    for pod in &there {
        assert_eq!(tolerations_for_virtual_nodes(pod), 1, "{pod:#}");
        assert_eq!(pod["metadata"]["annotations"]["spillway.dev/added"], "toleration,affinity");
        let by_us = |entry: &Value| entry["manager"] == "spillway-controller";
        assert!(pod["metadata"]["managedFields"].as_array().unwrap().iter().any(by_us), "one field manager");
    }
    let events = eventually("the event", || Some(namespace.events("LateBurst")).filter(|events| !events.is_empty()));
    assert_eq!(events[0]["regarding"]["kind"], "ReplicaSet", "{events:#?}");
    assert!(events.len() <= 2, "twelve pods of one owner are not twelve events: {events:#?}");
    assert_eq!(controller.metric("spillway_actions_total{action=\"burst\",result=\"success\"}"), 12);
    assert_eq!(controller.metric("spillway_actions_total{action=\"start_clock\",result=\"success\"}"), 12);
}

#[test]
fn pods_that_a_vm_takes_in_time_get_no_toleration() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let namespace = namespace(plane, "30s");
    let _controller = Controller::start(plane, "late-vm", &[]);
    deploy(&namespace, 3, &json!({}));
    wait_for_all(&namespace, 3, "the clocks to start", |pod| unschedulable_since(pod).is_some());
    let capacity = json!({"cpu": "1000", "memory": "64Gi", "pods": "100"});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "late-vm"},
        "status": {"allocatable": capacity, "capacity": capacity}});
    plane.create(&node);
    let there = wait_for_all(&namespace, 3, "the pods to be on the VM", |pod| is_on(pod, "late-vm"));
    plane.delete_node("late-vm");
    assert!(there.iter().all(|pod| tolerations_for_virtual_nodes(pod) == 0), "{there:#?}");
}

#[test]
fn a_gated_pod_waits_late_after_from_when_its_gate_opens() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let namespace = namespace(plane, "4s");
    let _controller = Controller::start(plane, "late-gate", &[]);
    let other = self::namespace(plane, "0s");
    deploy(&namespace, 1, &json!({"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}));
    wait_for_all(&namespace, 1, "the gate to be seen", |pod| {
        pod["status"]["conditions"].to_string().contains("SchedulingGated")
    });
    // The controller continues, and does not change the gated pod.
    deploy(&other, 1, &json!({}));
    wait_for_all(&other, 1, "another pod to overflow", |pod| is_on(pod, "virtualnode-0"));
    let held = namespace.pods().swap_remove(0);
    assert_eq!((unschedulable_since(&held), tolerations_for_virtual_nodes(&held)), (None, 0), "{held:#}");
    let name = held["metadata"]["name"].as_str().unwrap();
    let lifted = Instant::now();
    namespace.kubectl(
        &["patch", "pod", name, "--type=json", "-p", r#"[{"op": "remove", "path": "/spec/schedulingGates"}]"#],
        "",
    );
    wait_for_all(&namespace, 1, "the pod to overflow", |pod| is_on(pod, "virtualnode-0"));
    assert!(
        lifted.elapsed() > Duration::from_secs(3),
        "the clock has started when the gate was lifted: {:?}",
        lifted.elapsed()
    );
}

#[test]
fn a_new_leader_continues_the_clocks_of_pending_pods() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let namespace = namespace(plane, "20s");
    let first = Controller::start(plane, "late-first", &[]);
    deploy(&namespace, 2, &json!({}));
    let waiting = wait_for_all(&namespace, 2, "the clocks to start", |pod| unschedulable_since(pod).is_some());
    first.signal("TERM");
    let second = Controller::start(plane, "late-second", &[]);
    let there = wait_for_all(&namespace, 2, "the pods to be on the virtual node", |pod| is_on(pod, "virtualnode-0"));
    let clocks =
        |pods: &[Value]| pods.iter().map(|pod| unschedulable_since(pod).unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(clocks(&waiting), clocks(&there));
    assert_eq!(second.metric("spillway_actions_total{action=\"start_clock\",result=\"success\"}"), 0);
    assert!(there.iter().all(|pod| tolerations_for_virtual_nodes(pod) == 1));
}

#[test]
fn pending_pods_of_an_opted_out_namespace_do_not_overflow() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let (out, off, stays) = (namespace(plane, "1h"), namespace(plane, "1h"), namespace(plane, "1h"));
    let mut first = Controller::start(plane, "late-out-first", &[]);
    for namespace in [&out, &off, &stays] {
        deploy(namespace, 1, &json!({}));
    }
    for namespace in [&out, &off, &stays] {
        wait_for_all(namespace, 1, "the clock to start", |pod| unschedulable_since(pod).is_some());
    }
    // No controller runs while the namespaces change.
    first.signal("TERM");
    eventually("the first replica to end", || (!first.is_alive()).then_some(()));
    out.set_metadata(&json!({"labels": {"spillway.dev/burst": null}}));
    off.set_metadata(&json!({"annotations": {"spillway.dev/mode": "off"}}));
    for namespace in [&out, &off, &stays] {
        namespace.set_metadata(&json!({"annotations": {"spillway.dev/late-after": "1s"}}));
    }
    let _second = Controller::start(plane, "late-out-second", &[]);
    wait_for_all(&stays, 1, "the third pod to overflow", |pod| is_on(pod, "virtualnode-0"));
    for namespace in [&out, &off] {
        assert_eq!(tolerations_for_virtual_nodes(&namespace.pods()[0]), 0);
    }
}

/// Waits until every node has been Ready for longer than the settling time. Before, all pods wait for the new VMs.
fn wait_until_settled(plane: &ControlPlane) {
    let is_settled = |node: &Value| {
        let ready = node["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == "Ready")?;
        let since: Timestamp = ready["lastTransitionTime"].as_str()?.parse().ok()?;
        Some(ready["status"] == "True" && since < Timestamp::now() - Duration::from_secs(16))
    };
    eventually("the nodes to be settled", || {
        plane.list("/api/v1/nodes").iter().all(|node| is_settled(node) == Some(true)).then_some(())
    });
}

#[test]
fn a_scale_up_delays_overflow_until_late_max() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let volume = ConfigVolume::new("late-coming-volume", "late: {max: 20s}");
    let namespace = namespace(plane, "5s");
    wait_until_settled(plane);
    // The event is older than the pod, so that the controller sees it in time. Its clock is ahead.
    let promised = "promised";
    let at = (Timestamp::now() + Duration::from_secs(30)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "scale-up"}, "type": "Normal", "reason": "TriggeredScaleUp",
        "message": "pod triggered scale-up", "source": {"component": "cluster-autoscaler"},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace.name, "name": promised},
        "firstTimestamp": at, "lastTimestamp": at, "count": 1,
    });
    namespace.create(&event);
    let _controller = Controller::start(plane, "late-coming", &["--config", &volume.file()]);
    let start = Instant::now();
    for name in [promised, "other"] {
        namespace.create(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations_of_webhook()}, "spec": large_pod(),
        }));
    }
    let is_promised = |pod: &Value| pod["metadata"]["name"] == promised;
    let after_one = eventually("the other pod to overflow", || {
        let pods = namespace.pods();
        pods.iter().any(|pod| !is_promised(pod) && is_on(pod, "virtualnode-0")).then_some(pods)
    });
    assert!(after_one.iter().all(|pod| !is_promised(pod) || tolerations_for_virtual_nodes(pod) == 0), "{after_one:#?}");
    wait_for_all(&namespace, 2, "the pod with the scale-up signal to overflow", |pod| is_on(pod, "virtualnode-0"));
    assert!(start.elapsed() > Duration::from_secs(19), "{:?}", start.elapsed());
}

#[test]
fn pods_of_mode_prefer_count_toward_max_pods() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    wait_until_settled(plane);
    let volume = ConfigVolume::new("prefer-cap-volume", "profiles: {enabled: {maxPods: 2}}");
    let namespace = plane.namespace(Some("enabled"));
    let controller = Controller::start(plane, "prefer-cap", &["--config", &volume.file()]);
    let mut annotations = annotations_of_webhook();
    annotations["spillway.dev/mode"] = "prefer".into();
    for name in ["a", "b", "c"] {
        namespace.create(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations}, "spec": large_pod(),
        }));
    }
    eventually("a pod to be withheld", || {
        (controller.metric("spillway_late_pods{state=\"capped\"}") == 1).then_some(())
    });
    eventually("two pods to be on the virtual node", || {
        (namespace.pods().iter().filter(|pod| is_on(pod, "virtualnode-0")).count() == 2).then_some(())
    });
}

#[test]
fn a_namespace_at_max_pods_does_not_overflow() {
    let installed = InstalledSandbox::new();
    let plane = installed.plane();
    let volume = ConfigVolume::new("late-cap-volume", "profiles: {autoscaled: {maxPods: 4}}");
    let namespace = namespace(plane, "1s");
    let controller = Controller::start(plane, "late-cap", &["--config", &volume.file()]);
    deploy(&namespace, 6, &json!({}));
    let capped = "spillway_late_pods{state=\"capped\"}";
    eventually("two pods to be withheld", || (controller.metric(capped) == 2).then_some(()));
    let events = eventually("the event", || namespace.events("LateWithheld").pop());
    assert!(events["note"].as_str().unwrap().contains("maxPods is 4"), "{events:#}");
    let there = |node| namespace.pods().iter().filter(|pod| is_on(pod, node)).count();
    eventually("four pods to be on the virtual node", || (there("virtualnode-0") == 4).then_some(()));
    // When one pod is deleted, another may overflow.
    let gone = namespace.pods().into_iter().find(|pod| is_on(pod, "virtualnode-0")).unwrap();
    namespace.delete_pod(gone["metadata"]["name"].as_str().unwrap());
    eventually("a fifth pod to get the toleration", || {
        (controller.metric("spillway_actions_total{action=\"burst\",result=\"success\"}") == 5).then_some(())
    });
}
