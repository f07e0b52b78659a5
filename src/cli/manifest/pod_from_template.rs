//! Creates the pod of a pod template as the webhook receives it, with the fields that its controller and the API server
//! add. Adds only fields that the rules read.

use serde_json::{Map, Value, json};

use super::document::{Document, name_of};

/// Returns the pod of a Pod manifest, or the pod that a controller creates from its template.
pub(super) fn pod_from_template(owner: &Document, mut pod: Map<String, Value>) -> Value {
    if let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) {
        set_name(owner, metadata);
        if owner.kind() == "DaemonSet" {
            let owner_reference = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "controller": true});
            metadata.insert("ownerReferences".to_owned(), json!([owner_reference]));
        }
    }
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        set_service_account_name(spec);
        if owner.kind() == "StatefulSet" {
            mount_claims(owner, spec);
        }
    }
    Value::Object(pod)
}

/// Sets the name as the controller does, and ignores the name in the template. A StatefulSet numbers its pods, and the API
/// server generates the end of all other names. Generated characters are `x`, at their maximum length: ten for the hash
/// of a Deployment's ReplicaSet, eight for the minute of a CronJob's Job.
fn set_name(owner: &Document, metadata: &mut Map<String, Value>) {
    let known = |field: &str| owner.value.get("metadata")?.get(field)?.as_str().filter(|text| !text.is_empty());
    let generated = || known("generateName").map(|prefix| format!("{prefix}xxxxx"));
    let Some(name) = known("name").map(str::to_owned).or_else(generated) else { return };
    let (field, name) = match owner.kind() {
        "Pod" => return,
        "StatefulSet" => ("name", format!("{name}-0")),
        "Deployment" => ("generateName", format!("{name}-xxxxxxxxxx-")),
        "CronJob" => {
            ("generateName", job_prefix(&format!("{name}-xxxxxxxx"), owner.value.pointer("/spec/jobTemplate")))
        }
        "Job" => ("generateName", job_prefix(&name, Some(&owner.value))),
        _ => ("generateName", format!("{name}-")),
    };
    metadata.remove("name");
    metadata.remove("generateName");
    metadata.insert(field.to_owned(), Value::String(name));
}

/// Returns the generateName of a Job's pods. An indexed Job adds the index, and the last index is the longest
/// (kubernetes `pkg/controller/job/indexed_job_utils.go`, `podGenerateNameWithIndex`).
fn job_prefix(name: &str, job: Option<&Value>) -> String {
    const MAX_NAME_CHARS: usize = 58;
    let spec = job.and_then(|job| job.get("spec"));
    let field = |name: &str| spec.and_then(|spec| spec.get(name));
    if field("completionMode").is_none_or(|mode| mode != "Indexed") {
        return format!("{name}-");
    }
    let last = field("completions").and_then(Value::as_u64).unwrap_or(1).saturating_sub(1);
    let end = format!("-{last}-");
    let name: String = name.chars().take(MAX_NAME_CHARS.saturating_sub(end.len())).collect();
    name + &end
}

/// Sets `serviceAccountName` from its deprecated alias `serviceAccount`, as the API server does.
fn set_service_account_name(spec: &mut Map<String, Value>) {
    let is_named = spec.get("serviceAccountName").is_some_and(|name| !name.is_null() && name != "");
    if let (false, Some(old)) = (is_named, spec.get("serviceAccount").filter(|old| !old.is_null()).cloned()) {
        spec.insert("serviceAccountName".to_owned(), old);
    }
}

/// Adds a volume for each of a StatefulSet's `volumeClaimTemplates`. It replaces a volume with the same name
/// (kubernetes `pkg/controller/statefulset/stateful_set_utils.go`, `updateStorage`).
fn mount_claims(owner: &Document, spec: &mut Map<String, Value>) {
    let templates = owner.value.pointer("/spec/volumeClaimTemplates").and_then(Value::as_array);
    let names: Vec<_> = templates.into_iter().flatten().map(name_of).collect();
    if names.is_empty() {
        return;
    }
    let set = name_of(&owner.value);
    let claim =
        |name: &String| json!({"name": name, "persistentVolumeClaim": {"claimName": format!("{name}-{set}-0")}});
    let mut volumes: Vec<_> = names.iter().map(claim).collect();
    let own = spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    volumes.extend(own.filter(|volume| !names.iter().any(|name| volume["name"] == **name)).cloned());
    spec.insert("volumes".to_owned(), Value::Array(volumes));
}

/// Adds the volume with the token of the pod's service account, as the API server does before it calls a webhook. It
/// adds none if the pod or the account opts out, or if every container mounts another volume at that path (kubernetes
/// `plugin/pkg/admission/serviceaccount/admission.go`, `mountServiceAccountToken`).
pub(super) fn mount_token(spec: &mut Map<String, Value>, mounts_token: impl Fn(&str) -> bool) {
    let account = spec.get("serviceAccountName").and_then(Value::as_str).filter(|name| !name.is_empty());
    let automount = spec.get("automountServiceAccountToken").and_then(Value::as_bool);
    if !automount.unwrap_or_else(|| mounts_token(account.unwrap_or("default"))) || !needs_token(spec) {
        return;
    }
    let volumes = spec.entry("volumes").or_insert(Value::Null);
    if volumes.is_null() {
        *volumes = json!([]);
    }
    let Some(volumes) = volumes.as_array_mut() else { return }; // decoding the pod reports the error
    let is_api_access =
        |volume: &Value| volume["name"].as_str().is_some_and(|name| name.starts_with("kube-api-access-"));
    if !volumes.iter().any(is_api_access) {
        let namespace =
            json!({"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
        let sources = json!([
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [namespace]}},
        ]);
        volumes.push(json!({"name": "kube-api-access-xxxxx", "projected": {"defaultMode": 420, "sources": sources}}));
    }
}

fn needs_token(spec: &Map<String, Value>) -> bool {
    const PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let containers = ["initContainers", "containers"].into_iter().flat_map(|field| list(spec.get(field)));
    let has_own = |container: &Value| list(container.get("volumeMounts")).iter().any(|m| m["mountPath"] == PATH);
    containers.into_iter().any(|container| !has_own(&container))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(kind: &str, name: &str, spec: &Value) -> Value {
        let value = json!({"kind": kind, "metadata": {"name": name}, "spec": spec});
        let template = Document { source: "-".to_owned(), value }.pod_template().unwrap().unwrap();
        template.as_admitted(|account| account != "without")
    }

    #[test]
    fn pods_of_a_stateful_set_mount_its_claims() {
        let template =
            json!({"spec": {"volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}});
        let claims = json!([{"metadata": {"name": "data"}}, {"metadata": {"name": "log"}}]);
        let pod = admitted("StatefulSet", "db", &json!({"template": template, "volumeClaimTemplates": claims}));
        let claim = |name: &str| json!({"name": name, "persistentVolumeClaim": {"claimName": format!("{name}-db-0")}});
        assert_eq!(pod["spec"]["volumes"], json!([claim("data"), claim("log"), {"name": "tmp", "emptyDir": {}}]),);
    }

    #[test]
    fn pods_are_named_as_their_controllers_name_them() {
        let template = json!({"metadata": {"name": "ignored", "labels": {"a": "b"}}, "spec": {}});
        let plain = json!({"template": template});
        let indexed = json!({"template": template, "completionMode": "Indexed", "completions": 100});
        let long = "j".repeat(60);
        for (kind, name, spec, field, expected) in [
            ("Deployment", "web", &plain, "generateName", "web-xxxxxxxxxx-"),
            ("ReplicaSet", "web", &plain, "generateName", "web-"),
            ("DaemonSet", "web", &plain, "generateName", "web-"),
            ("Job", "web", &plain, "generateName", "web-"),
            ("Job", "web", &indexed, "generateName", "web-99-"),
            ("Job", &long, &indexed, "generateName", &format!("{}-99-", "j".repeat(54))),
            ("CronJob", "web", &json!({"jobTemplate": {"spec": plain}}), "generateName", "web-xxxxxxxx-"),
            ("CronJob", "web", &json!({"jobTemplate": {"spec": indexed}}), "generateName", "web-xxxxxxxx-99-"),
            ("StatefulSet", "web", &plain, "name", "web-0"),
            ("Pod", "web", &json!({}), "name", "web"),
        ] {
            let metadata = &admitted(kind, name, spec)["metadata"];
            let other = if field == "name" { "generateName" } else { "name" };
            assert_eq!((&metadata[field], &metadata[other]), (&json!(expected), &Value::Null), "{kind}");
            assert_eq!(metadata.get("labels").is_some(), kind != "Pod");
        }
    }

    #[test]
    fn the_token_is_mounted_as_by_the_api_server() {
        let own = json!([{"name": "t", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]);
        let is_token = |volume: &Value| volume["name"] == "kube-api-access-xxxxx";
        for (spec, is_mounted) in [
            (json!({"containers": [{}]}), true),
            (json!({"containers": [{}], "volumes": null}), true),
            (json!({"containers": []}), false),
            (json!({"containers": [{}], "automountServiceAccountToken": false}), false),
            (json!({"containers": [{}], "serviceAccountName": "without"}), false),
            (json!({"containers": [{}], "serviceAccount": "without"}), false),
            (json!({"containers": [{}], "serviceAccountName": "without", "automountServiceAccountToken": true}), true),
            (json!({"containers": [{"volumeMounts": own}]}), false),
            (json!({"containers": [{"volumeMounts": own}], "initContainers": [{}]}), true),
            (json!({"containers": [{}], "volumes": [{"name": "kube-api-access-7xk2p"}]}), false),
        ] {
            let pod = admitted("Deployment", "web", &json!({"template": {"spec": spec}}));
            let volumes = pod["spec"]["volumes"].as_array();
            assert_eq!(volumes.is_some_and(|volumes| volumes.iter().any(is_token)), is_mounted, "{spec}");
        }
    }
}
