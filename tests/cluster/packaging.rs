//! The kustomization, the chart and manifests/install.yaml have the same objects, which can be installed, upgraded and removed.

pub(crate) mod helm;

use std::{collections::BTreeMap, fs, sync::OnceLock};

use serde_json::{Value, json};

use crate::harness::{ControlPlane, control_plane, eventually, sandbox};

pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/");
pub(crate) const NAMESPACE: &str = "spillway-system";

pub(crate) fn manifests(path: &str) -> String {
    format!("{ROOT}{path}")
}

/// Returns the manifest of the webhook configuration.
pub(crate) fn shipped_configuration() -> String {
    fs::read_to_string(manifests("base/mutatingwebhookconfiguration.yaml")).unwrap()
}

/// Removes Spillway, whichever way it was installed. The namespace stays, because its deletion takes long.
pub(crate) fn remove_everything(plane: &ControlPlane) {
    plane.try_helm(&["uninstall", "spillway", "--namespace", NAMESPACE, "--ignore-not-found"]);
    static RENDERED: OnceLock<String> = OnceLock::new();
    let rendered = RENDERED.get_or_init(|| plane.kubectl(&["kustomize", &manifests("base")]));
    let rest: Vec<_> = rendered.split("\n---\n").filter(|document| !document.contains("kind: Namespace\n")).collect();
    plane.kubectl_with(&["delete", "--ignore-not-found", "--wait", "-f", "-"], &rest.join("\n---\n"));
}

/// Returns the rendered objects by kind and name, without the labels that helm adds, and with the configuration parsed, because
/// its comments do not matter.
fn objects(rendered: &str) -> BTreeMap<String, Value> {
    let documents = rendered.split("\n---\n").map(|document| serde_saphyr::from_str::<Value>(document).unwrap());
    let mut objects = BTreeMap::new();
    for mut object in documents.filter(|object| object.is_object() && object["kind"] != "Namespace") {
        let labels = object["metadata"]["labels"].as_object_mut().unwrap();
        for of_helm in ["helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version"] {
            labels.remove(of_helm);
        }
        if let Some(text) = object.pointer("/data/config.yaml").and_then(Value::as_str) {
            object["data"]["config.yaml"] = serde_saphyr::from_str(text).unwrap();
        }
        let name = format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        assert!(objects.insert(name.clone(), object).is_none(), "{name} exists twice");
    }
    objects
}

#[test]
fn the_chart_and_kustomize_render_the_same_objects() {
    let plane = control_plane();
    let settings = json!({"mode": "prefer"}); // the cert-manager overlay leaves the rest to the defaults
    for (overlay, values) in [
        ("base", &[][..]),
        ("overlays/cert-manager", &["--set", "certificates.source=cert-manager"]),
        ("overlays/metrics", &["--set", "metrics.serviceMonitor.enabled=true"]),
        ("overlays/azure", &["--set", "controller.workloadIdentity.clientId=00000000-0000-0000-0000-000000000000"]),
    ] {
        let mut kustomize = objects(&plane.kubectl(&["kustomize", &manifests(overlay)]));
        let chart = manifests("chart");
        let mut chart =
            objects(&plane.helm(&[&["template", "spillway", &chart, "--namespace", NAMESPACE], values].concat()));
        // The chart has neither alerts nor a dashboard: users apply manifests/monitoring.
        kustomize
            .retain(|name, _| !["PrometheusRule spillway", "ConfigMap spillway-dashboard"].contains(&name.as_str()));
        if overlay == "overlays/cert-manager" {
            for rendering in [&mut kustomize, &mut chart] {
                let configuration = &mut rendering.get_mut("ConfigMap spillway-config").unwrap()["data"]["config.yaml"];
                assert_eq!(configuration["certificates"], json!({"source": "cert-manager"}));
                *configuration = settings.clone();
            }
        }
        assert!(kustomize.keys().eq(chart.keys()), "{overlay}: {:?} {:?}", kustomize.keys(), chart.keys());
        for (name, object) in &kustomize {
            assert_eq!(*object, chart[name], "{overlay}: {name}");
        }
    }
}

#[test]
fn the_chart_refuses_values_that_it_does_not_know() {
    let plane = control_plane();
    let chart = manifests("chart");
    for (value, words) in [
        ("replicaz=3", "replicaz"),
        ("replicas=many", "replicas"),
        ("controller.replicaz=3", "replicaz"),
        ("controller.workloadIdentity.clientId=web", "clientId"),
        ("image.repo=x", "repo"),
        ("certificates.source=vault", "source"),
        ("configuration.certificates.source=files", "source"),
        ("configuration.kind=ConfigMap", "kind"),
        ("podAnnotations.a=1", "podAnnotations"),
        ("metrics.serviceMonitor.interval=often", "interval"),
    ] {
        let rendered = plane.try_helm(&["template", "spillway", &chart, "--namespace", NAMESPACE, "--set", value]);
        let stderr = String::from_utf8_lossy(&rendered.stderr);
        assert!(!rendered.status.success() && stderr.contains("schema") && stderr.contains(words), "{value}: {stderr}");
    }
    let elsewhere = plane.try_helm(&["template", "spillway", &chart, "--namespace", "shop"]);
    assert!(String::from_utf8_lossy(&elsewhere.stderr).contains("belongs in namespace spillway-system"));
}

#[test]
fn the_values_of_the_chart_arrive() {
    let plane = control_plane();
    let values = json!({
        "image": {"repository": "registry.example/spillway", "tag": "9", "pullPolicy": "Always"},
        "replicas": 5, "resources": {"requests": {"cpu": "1"}},
        "controller": {"replicas": 4, "resources": {"limits": {"memory": "1Gi"}}},
        "priorityClassName": "system-cluster-critical", "podAnnotations": {"a": "1"}, "nodeSelector": {"b": "c"},
        "tolerations": [{"key": "d", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "configuration": {"mode": "off", "certificates": {"directory": "/elsewhere"}, "profiles": {"mine": {"mode": "require"}}},
        "networkPolicy": {"enabled": false},
        "metrics": {"serviceMonitor": {"enabled": true, "interval": "1m", "labels": {"release": "x"}}},
    });
    let file = plane.dir.join("values.json");
    std::fs::write(&file, values.to_string()).unwrap();
    let args =
        ["template", "spillway", &manifests("chart"), "--namespace", NAMESPACE, "--values", file.to_str().unwrap()];
    let rendered = objects(&plane.helm(&args));
    assert!(!rendered.keys().any(|name| name.starts_with("NetworkPolicy")));
    for (name, replicas, resources) in [
        ("webhook", 5, json!({"requests": {"cpu": "1", "memory": "32Mi"}, "limits": {"memory": "256Mi"}})),
        ("controller", 4, json!({"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}})),
    ] {
        let deployment = &rendered[&format!("Deployment spillway-{name}")]["spec"];
        let pod = &deployment["template"]["spec"];
        assert_eq!(deployment["replicas"], replicas);
        assert_eq!(deployment["template"]["metadata"]["annotations"], json!({"a": "1"}));
        assert_eq!(pod["containers"][0]["resources"], resources);
        assert_eq!(pod["containers"][0]["image"], "registry.example/spillway:9");
        assert_eq!(pod["containers"][0]["imagePullPolicy"], "Always");
        assert_eq!(pod["priorityClassName"], "system-cluster-critical");
        assert_eq!(pod["nodeSelector"], json!({"b": "c"}));
        assert_eq!(pod["tolerations"], json!([{"key": "d", "operator": "Exists"}]));
        let both = pod["affinity"].as_object().unwrap();
        assert!(
            both.contains_key("podAntiAffinity") && both.contains_key("nodeAffinity"),
            "never on virtual nodes still"
        );
    }
    let configuration = &rendered["ConfigMap spillway-config"]["data"]["config.yaml"];
    assert_eq!(configuration["mode"], "off");
    assert_eq!(configuration["certificates"], json!({"source": "self-managed", "directory": "/elsewhere"}));
    assert_eq!(configuration["profiles"]["mine"], json!({"mode": "require"}));
    assert_eq!(rendered["ServiceMonitor spillway"]["spec"]["endpoints"][0]["interval"], "1m");
    assert_eq!(rendered["ServiceMonitor spillway"]["metadata"]["labels"]["release"], "x");
    // The value must be quoted: YAML 1.1 reads `off` as a boolean.
    let text = plane.helm(&args);
    assert!(text.contains("mode: \"off\""), "{text}");
}

/// Returns the foreign kinds of two overlays, without their schemas.
fn foreign_kinds() -> Value {
    let kinds = [
        ("cert-manager.io", "v1", "Certificate", "certificates"),
        ("cert-manager.io", "v1", "Issuer", "issuers"),
        ("monitoring.coreos.com", "v1", "PrometheusRule", "prometheusrules"),
        ("monitoring.coreos.com", "v1", "ServiceMonitor", "servicemonitors"),
    ];
    let definitions = kinds.map(|(group, version, kind, plural)| {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {
                "group": group, "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                "versions": [{"name": version, "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}],
            },
        })
    });
    json!({"apiVersion": "v1", "kind": "List", "items": definitions})
}

#[test]
fn the_api_server_accepts_every_overlay_without_a_warning() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    plane.kubectl_with(&["apply", "-f", "-"], &foreign_kinds().to_string());
    let names = "certificates.cert-manager.io issuers.cert-manager.io prometheusrules.monitoring.coreos.com \
                 servicemonitors.monitoring.coreos.com";
    let definitions: Vec<_> = names.split(' ').map(|name| format!("crd/{name}")).collect();
    let definitions: Vec<_> = definitions.iter().map(String::as_str).collect();
    plane.kubectl(&[&["wait", "--for=condition=Established"], &definitions[..]].concat());
    remove_everything(plane);
    // kubectl warns once about a namespace that helm created.
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    plane.kubectl_with(&["apply", "-f", "-"], &namespace.to_string());
    for overlay in ["base", "overlays/azure", "overlays/cert-manager", "overlays/high-availability", "overlays/metrics"]
    {
        // Unknown fields are errors, and so are warnings, such as those of Pod Security.
        let args = ["apply", "-k", &manifests(overlay), "--validate=strict", "--warnings-as-errors"];
        let applied = plane.try_kubectl(&args, "");
        let stderr = String::from_utf8_lossy(&applied.stderr);
        assert!(applied.status.success() && stderr.is_empty(), "{overlay}: {stderr}");
    }
    let policies = eventually("the expressions to be checked", || {
        let items = plane.list("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies");
        items.iter().all(|policy| policy["status"]["typeChecking"].is_object()).then_some(items)
    });
    for policy in policies {
        assert_eq!(policy["status"]["typeChecking"], json!({}), "{}", policy["metadata"]["name"]);
    }
    let ours = ["delete", "issuer,certificate,prometheusrule,servicemonitor", "--all", "--namespace", NAMESPACE];
    plane.kubectl(&ours);
    plane.kubectl(&["delete", "service/spillway-metrics", "configmap/spillway-dashboard", "--namespace", NAMESPACE]);
}
