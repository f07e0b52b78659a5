//! The Admissions Enforcer of AKS adds two expressions to the namespaceSelector of every webhook, and adds them again when they
//! are removed (https://learn.microsoft.com/azure/aks/faq). Spillway's webhooks have them from the start, so there is no conflict.

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, PostParams},
};
use serde_json::{Value, json};

use crate::{
    harness::{ControlPlane, sandbox},
    packaging::{NAMESPACE, helm::chart_with, manifests, remove_everything},
};

const MANAGER: &str = "admissionsenforcer";

/// Plays the enforcer: reads, appends missing expressions, writes. Returns the object before and after.
async fn enforce(client: &Client) -> (DynamicObject, DynamicObject) {
    let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration");
    let resource = ApiResource::from_gvk_with_plural(&kind, "mutatingwebhookconfigurations");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let before = api.get("aci-spillway").await.unwrap();
    let mut enforced = before.clone();
    for webhook in enforced.data["webhooks"].as_array_mut().unwrap() {
        let selector = webhook["namespaceSelector"].as_object_mut().unwrap();
        let expressions = selector.entry("matchExpressions").or_insert(json!([])).as_array_mut().unwrap();
        for needed in [
            json!({"key": "control-plane", "operator": "NotIn", "values": ["true"]}),
            json!({"key": "kubernetes.azure.com/managedby", "operator": "NotIn", "values": ["aks"]}),
        ] {
            if !expressions.contains(&needed) {
                expressions.push(needed);
            }
        }
    }
    let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    let after = api.replace("aci-spillway", &params, &enforced).await.unwrap();
    (before, after)
}

fn is_manager(object: &DynamicObject, name: &str) -> bool {
    object.metadata.managed_fields.iter().flatten().any(|entry| entry.manager.as_deref() == Some(name))
}

/// Writes the bundle as the controller does.
fn write_bundle(plane: &ControlPlane) {
    let patch = json!([
        {"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "YQ=="},
        {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": "YQ=="},
        {"op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": "YQ=="},
    ]);
    let patch = ["--type=json", "--patch", &patch.to_string(), "--field-manager=spillway-controller"];
    plane.kubectl(&[&["patch", "mutatingwebhookconfiguration", "aci-spillway"], &patch[..]].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admissions_enforcer_has_nothing_to_add() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    let client = plane.client().await;
    let slower = |text: &str| {
        let other = |seconds| format!("timeoutSeconds: {seconds}");
        text.replace(&other(1), &other(3)).replace(&other(2), &other(3))
    };
    let (chart, changed_chart) = (manifests("chart"), chart_with(plane, slower));
    let rendered = plane.kubectl(&["kustomize", &manifests("base")]);
    let changed = slower(&rendered);
    for how in ["kubectl", "kubectl --server-side", "helm --server-side=true", "helm --server-side=false"] {
        let apply = |manifest: &str, chart: &str| match how.split_once(' ') {
            None => plane.kubectl_with(&["apply", "-f", "-"], manifest),
            Some(("kubectl", flag)) => plane.kubectl_with(&["apply", flag, "-f", "-"], manifest),
            Some((_, flag)) => plane.helm(&[
                "upgrade",
                "--install",
                "spillway",
                chart,
                flag,
                "--namespace",
                NAMESPACE,
                "--create-namespace",
            ]),
        };
        remove_everything(plane);
        apply(&rendered, &chart);
        write_bundle(plane);
        for _ in 0..2 {
            let (before, after) = enforce(&client).await;
            assert_eq!(before.metadata.resource_version, after.metadata.resource_version, "{how}");
            assert!(!is_manager(&after, MANAGER), "{how}: {:?}", after.metadata.managed_fields);
        }
        apply(&rendered, &chart);
        apply(&changed, &changed_chart);
        let (before, after) = enforce(&client).await;
        assert_eq!(before.metadata.resource_version, after.metadata.resource_version, "{how}");
        for webhook in after.data["webhooks"].as_array().unwrap() {
            let found = (&webhook["timeoutSeconds"], &webhook["clientConfig"]["caBundle"]);
            assert_eq!(found, (&json!(3), &json!("YQ==")), "{how}");
        }
    }
    remove_everything(plane);
}

/// Shows that the test above can fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_enforcer_changes_a_manifest_without_its_expressions() {
    let sandbox = sandbox();
    let plane = sandbox.plane;
    remove_everything(plane);
    let rendered = plane.kubectl(&["kustomize", &manifests("base")]);
    let configuration =
        rendered.split("\n---\n").find(|text| text.contains("kind: MutatingWebhookConfiguration")).unwrap();
    let mut configuration: Value = serde_saphyr::from_str(configuration).unwrap();
    for webhook in configuration["webhooks"].as_array_mut().unwrap() {
        let expressions = webhook["namespaceSelector"]["matchExpressions"].as_array_mut().unwrap();
        expressions.retain(|e| e["key"] != "control-plane" && e["key"] != "kubernetes.azure.com/managedby");
    }
    plane.kubectl_with(&["apply", "--server-side", "-f", "-"], &configuration.to_string());
    let (before, after) = enforce(&plane.client().await).await;
    assert_ne!(before.metadata.resource_version, after.metadata.resource_version);
    assert!(is_manager(&after, MANAGER));
    let again = plane.try_kubectl(&["apply", "--server-side", "-f", "-"], &configuration.to_string());
    let stderr = String::from_utf8_lossy(&again.stderr);
    assert!(!again.status.success() && stderr.contains(MANAGER), "{stderr}");
}
