//! Where users find reasons: warnings of kubectl, the audit log, and `spillway explain` on a running cluster.

use serde_json::{Value, json};

use crate::{
    admission::pod,
    harness::{Namespace, control_plane, eventually, spillway, spillway_command},
};

/// Returns the warnings that kubectl prints for a creation.
fn warnings(namespace: &Namespace, object: &Value) -> Vec<String> {
    let args = ["-n", &namespace.name, "create", "-f", "-"];
    let output = control_plane().try_kubectl(&args, &object.to_string());
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    text.lines().filter_map(|line| line.strip_prefix("Warning: ")).map(str::to_owned).collect()
}

#[test]
fn users_are_warned_about_problems_they_can_fix() {
    spillway();
    let namespace = control_plane().namespace(Some("enabled"));
    let arm = json!({"metadata": {"annotations": {"spillway.dev/late-after": "soon"}},
        "spec": {"nodeSelector": {"kubernetes.io/arch": "arm64"}}});
    let shown = warnings(&namespace, &pod("arm", &arm));
    assert_eq!(
        shown,
        [
            "spillway: pod annotation spillway.dev/late-after ignored: invalid duration \"soon\", expected from 0s to 24h, such as 90…",
            "spillway: stays on VMs: Architecture: virtual nodes run amd64 only (arm64)",
            "spillway: stays on VMs: NoMatchingVirtualNode: no virtual node has the labels that the pod requires (nodeSelector kube…",
        ]
    );
    assert!(shown.iter().all(|warning| warning.chars().count() < 120));
    assert_eq!(warnings(&namespace, &pod("fine", &json!({}))), [""; 0]);
    let windows = json!({"spec": {"os": {"name": "windows"}}});
    assert_eq!(warnings(&namespace, &pod("windows", &windows)), [""; 0], "there is nothing to fix");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_get_no_warnings() {
    let https = spillway().https();
    let namespace = control_plane().namespace(Some("enabled"));
    let owned = json!({"metadata": {"ownerReferences": [{"kind": "ReplicaSet", "controller": true}]}});
    for (user, more, expected) in [
        ("alice", json!({}), true),
        ("system:serviceaccount:kube-system:replicaset-controller", json!({}), false),
        ("system:node:vm-1", json!({}), false),
        ("system:serviceaccount:argo:workflows", owned, false),
    ] {
        let mut object = pod("web", &more);
        object["spec"]["nodeSelector"] = json!({"kubernetes.io/arch": "arm64"});
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
                "namespace": namespace.name, "userInfo": {"username": user}, "object": object},
        });
        let (_, answer) = https.review(review.to_string()).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["response"]["warnings"].is_array(), expected, "{user}: {answer:#}");
    }
}

#[test]
fn the_audit_log_holds_decision_reasons_and_settings() {
    spillway();
    let namespace = control_plane().annotated_namespace(Some("high-scale"), &json!({"spillway.dev/mode": "late"}));
    namespace.create(&pod("web", &json!({"spec": {"nodeSelector": {"kubernetes.io/arch": "arm64"}}})));
    let annotations = eventually("the audit event", || {
        let log = std::fs::read_to_string(control_plane().dir.join("audit.log")).unwrap();
        let mut events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let event = events.find(|event| event["objectRef"]["namespace"] == namespace.name.as_str())?;
        Some(event["annotations"].clone())
    });
    assert_eq!(annotations["pods.spillway.dev/decision"], "stay: Architecture,NoMatchingVirtualNode");
    let reasons = annotations["pods.spillway.dev/reasons"].as_str().unwrap();
    assert!(
        reasons.starts_with("Architecture: virtual nodes run amd64 only (arm64); NoMatchingVirtualNode: "),
        "{reasons}"
    );
    assert_eq!(
        annotations["pods.spillway.dev/settings"],
        "mode=late (namespace), late-after=180s (default), kube-proxy=opt-out (profile), dns=auto (default), identity-label=auto (default)"
    );
}

#[test]
fn explain_reads_workload_and_context_from_the_cluster() {
    spillway();
    let plane = control_plane();
    let namespace = plane.namespace(Some("high-scale"));
    namespace.known_identity("web");
    namespace.kubectl(&["create", "service", "clusterip", "orders", "--tcp=80"], "");
    namespace.create(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"serviceAccountName": "web", "containers": [{"name": "c", "image": "registry.example/c"}]}}},
    }));
    let explain = |args: &[&str]| {
        let kubeconfig = plane.dir.join("admin.kubeconfig");
        let output = spillway_command().arg("explain").args(args).env("KUBECONFIG", kubeconfig).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, text, errors) = explain(&["deploy/web", "-n", &namespace.name]);
    assert_eq!(code, 0, "{errors}");
    for line in [
        &format!("Deployment {}/web: prefer", namespace.name),
        "identity-label  added",
        "profile high-scale: ",
        "the pod cannot reach these Services without kube-proxy: orders",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let (code, _, errors) = explain(&["deploy/none", "-n", &namespace.name]);
    assert_eq!(code, 2);
    assert!(errors.contains("cannot get Deployment none in namespace") && errors.contains("not found"), "{errors}");
    let (code, _, errors) = explain(&["service/orders"]);
    assert_eq!((code, errors.contains("unknown kind \"service\"")), (2, true), "{errors}");
}

#[test]
fn explain_names_the_node_of_a_running_pod_and_why() {
    spillway();
    let plane = control_plane();
    let namespace = plane.namespace(Some("enabled"));
    let node = format!("explained-{}", namespace.name);
    let taints = json!([
        {"key": "virtual-kubelet.io/provider", "value": "azure", "effect": "NoSchedule"},
        {"key": "spillway.dev/full", "effect": "NoSchedule"},
    ]);
    let labels = json!({"type": "virtual-kubelet", "virtualization": "virtualnode2"});
    plane.kubectl_with(
        &["create", "-f", "-"],
        &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}, "spec": {"taints": taints}})
            .to_string(),
    );
    namespace.create(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"schedulerName": "none", "containers": [{"name": "c", "image": "registry.example/c"}]},
    }));
    let path = format!("/api/v1/namespaces/{}/pods/web/binding", namespace.name);
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "web"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    plane.kubectl_with(&["create", "--raw", &path, "-f", "-"], &binding.to_string());
    let explain = |args: &[&str]| {
        let kubeconfig = plane.dir.join("admin.kubeconfig");
        let output = spillway_command().arg("explain").args(args).env("KUBECONFIG", kubeconfig).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = explain(&["pod/web", "-n", &namespace.name]);
    let head = format!(
        "Pod {}/web: prefer\n  on virtual node {node}: the pod may overflow, and was scheduled at ",
        namespace.name
    );
    assert!(text.starts_with(&head), "{text}");
    assert!(text.contains("the node has no last-resort taint, so VMs may have had room"), "{text}");
    assert_eq!(code, 0);
    let (_, text) = explain(&["pod/web", "-n", &namespace.name, "-o", "json"]);
    let explained: Value = serde_json::from_str(&text).unwrap();
    let placement = &explained[0]["placement"];
    assert_eq!((&placement["node"], &placement["isVirtual"]), (&json!(node), &json!(true)));
    plane.kubectl(&["delete", "node", &node]);
}
