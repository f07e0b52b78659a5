//! Converts API objects to the input of the checks. Keeps only the fields that checks read.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    discovery::v1::EndpointSlice,
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Subject},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};
use spillway_core::{
    eligibility::{Generation, VirtualNode},
    keys::{ADDED, BURST_LABEL, DISABLED},
};

use super::{
    keys,
    object::{AccountName, Object},
    observation::{
        AnnotatedObject, Container, EnvValue, Grant, Grantee, KeyValues, Namespace, Pod, ServiceAccount, ServiceName,
        Token, Webhook, WebhookConfiguration,
    },
};

/// The fields of a pod's `spec` that concern identities.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    service_account_name: Option<String>,
    service_account: Option<String>,
    host_network: Option<bool>,
    node_name: Option<String>,
    init_containers: Option<Vec<PodContainer>>,
    containers: Option<Vec<PodContainer>>,
    volumes: Option<Vec<Volume>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodContainer {
    #[serde(default)]
    name: String,
    env: Option<Vec<EnvVar>>,
    volume_mounts: Option<Vec<VolumeMount>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EnvVar {
    #[serde(default)]
    name: String,
    value: Option<String>,
    value_from: Option<IgnoredAny>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeMount {
    #[serde(default)]
    mount_path: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Volume {
    projected: Option<Projected>,
}

#[derive(Debug, Clone, Deserialize)]
struct Projected {
    sources: Option<Vec<VolumeProjection>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeProjection {
    service_account_token: Option<ServiceAccountToken>,
}

#[derive(Debug, Clone, Deserialize)]
struct ServiceAccountToken {
    audience: Option<String>,
    #[serde(default)]
    path: String,
}

fn workload_identity_keys(map: Option<&BTreeMap<String, String>>) -> KeyValues {
    let entries = map.into_iter().flatten().filter(|(key, _)| keys::is_workload_identity_key(key));
    entries.map(|(key, value)| (key.clone(), value.clone())).collect()
}

impl From<&ObjectMeta> for ServiceAccount {
    fn from(meta: &ObjectMeta) -> Self {
        let name = AccountName {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        };
        Self {
            name,
            uid: meta.uid.clone(),
            labels: workload_identity_keys(meta.labels.as_ref()),
            annotations: workload_identity_keys(meta.annotations.as_ref()),
        }
    }
}

impl AnnotatedObject {
    /// Reads the metadata of an object. `None` if it has no workload identity key.
    pub fn from_metadata(kind: &str, meta: &ObjectMeta) -> Option<Self> {
        let (labels, annotations) =
            (workload_identity_keys(meta.labels.as_ref()), workload_identity_keys(meta.annotations.as_ref()));
        let name = meta.name.as_deref().unwrap_or_default();
        let object = Object::namespaced(kind, meta.namespace.as_deref().unwrap_or_default(), name);
        (!labels.is_empty() || !annotations.is_empty()).then_some(Self { object, labels, annotations })
    }
}

impl Pod {
    /// Reads a pod of the cluster in this phase. `None` if the pod has terminated or is being deleted.
    pub fn running(meta: &ObjectMeta, spec: &PodSpec, phase: Option<&str>) -> Option<Self> {
        if matches!(phase, Some("Succeeded" | "Failed")) || meta.deletion_timestamp.is_some() {
            return None;
        }
        let name = meta.name.clone().unwrap_or_default();
        Some(Self { name, is_admitted: true, ..Self::of(top_level_owner(meta), meta, spec) })
    }

    /// Reads the pod template of a workload, or the manifest of a pod.
    pub fn template(owner: Object, meta: &ObjectMeta, spec: &PodSpec) -> Self {
        Self::of(owner, meta, spec)
    }

    fn of(owner: Object, meta: &ObjectMeta, spec: &PodSpec) -> Self {
        let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty());
        let old = spec.service_account.as_deref().filter(|name| !name.is_empty());
        let added = meta.annotations.iter().flatten().find(|(key, _)| *key == ADDED);
        Self {
            namespace: owner.namespace.clone().unwrap_or_default(),
            name: String::new(),
            owner,
            is_admitted: false,
            service_account: account.or(old).unwrap_or("default").to_owned(),
            labels: workload_identity_keys(meta.labels.as_ref()),
            annotations: workload_identity_keys(meta.annotations.as_ref()),
            is_labelled_by_spillway: added
                .is_some_and(|(_, names)| names.split(',').any(|name| name == "identity-label")),
            host_network: spec.host_network == Some(true),
            node: spec.node_name.clone().filter(|name| !name.is_empty()),
            containers: [&spec.init_containers, &spec.containers]
                .into_iter()
                .flatten()
                .flatten()
                .map(container)
                .collect(),
            tokens: spec.volumes.iter().flatten().flat_map(tokens).collect(),
        }
    }
}

/// Returns the top-level owner of a pod. The name of a Deployment is its ReplicaSet's name without `pod-template-hash`.
fn top_level_owner(meta: &ObjectMeta) -> Object {
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let Some(owner) = owner else {
        return Object::namespaced("Pod", namespace, meta.name.as_deref().unwrap_or_default());
    };
    let hash = meta.labels.iter().flatten().find(|(key, _)| *key == "pod-template-hash").map(|(_, hash)| hash);
    let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    match deployment.filter(|_| owner.kind == "ReplicaSet") {
        Some(name) => Object::namespaced("Deployment", namespace, name),
        None => Object::namespaced(&owner.kind, namespace, &owner.name),
    }
}

fn container(container: &PodContainer) -> Container {
    let env = container.env.iter().flatten().filter(|variable| keys::ENV.contains(&variable.name.as_str()));
    let value = |variable: &EnvVar| match variable.value_from {
        Some(_) => EnvValue::ValueFrom,
        None => EnvValue::Literal(variable.value.clone().unwrap_or_default()),
    };
    let env: Vec<_> = env.map(|variable| (variable.name.clone(), value(variable))).collect();
    let mounts =
        container.volume_mounts.iter().flatten().filter(|_| env.iter().any(|(name, _)| name == keys::ENV_TOKEN_FILE));
    let mounts = mounts.map(|mount| mount.mount_path.clone()).collect();
    Container { name: container.name.clone(), env, mounts }
}

fn tokens(volume: &Volume) -> impl Iterator<Item = Token> {
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    sources.filter_map(|source| {
        let token = source.service_account_token.as_ref()?;
        let audience = token.audience.clone().filter(|audience| !audience.is_empty())?;
        Some(Token { audience, path: token.path.clone() })
    })
}

impl From<&ObjectMeta> for Namespace {
    fn from(meta: &ObjectMeta) -> Self {
        let find = |map: &Option<BTreeMap<String, String>>, key: &str| map.as_ref()?.get(key).cloned();
        let is_off = find(&meta.annotations, "spillway.dev/identity-label").is_some_and(|value| value == "off");
        let burst = find(&meta.labels, BURST_LABEL);
        let excluded = [("control-plane", "true"), ("kubernetes.azure.com/managedby", "aks")];
        let excluded_by = excluded.iter().find(|(key, value)| find(&meta.labels, key).as_deref() == Some(value));
        Self {
            is_opted_in: burst.is_some_and(|profile| profile != DISABLED) && !is_off,
            excluded_by: excluded_by.map(|(key, value)| format!("{key}: {value:?}")),
        }
    }
}

/// Returns whether a node is a virtual node of the first generation.
pub fn is_v1_virtual_node(meta: &ObjectMeta) -> bool {
    let labels: Vec<_> = meta.labels.clone().into_iter().flatten().collect();
    let is_virtual = labels.iter().any(|(key, value)| key == "type" && value == "virtual-kubelet");
    is_virtual && VirtualNode::new(String::new(), labels).generation == Generation::V1
}

impl From<&MutatingWebhookConfiguration> for WebhookConfiguration {
    fn from(configuration: &MutatingWebhookConfiguration) -> Self {
        let webhooks = configuration.webhooks.iter().flatten().map(|webhook| {
            let selector = webhook.object_selector.as_ref();
            let labels = selector.and_then(|selector| selector.match_labels.as_ref());
            let expressions = selector.and_then(|selector| selector.match_expressions.as_ref());
            let wants = expressions.into_iter().flatten().any(|requirement| {
                let values = requirement.values.as_deref().unwrap_or_default();
                requirement.key == keys::USE && requirement.operator == "In" && values.iter().any(|v| v == "true")
            });
            let service = webhook.client_config.service.as_ref();
            Webhook {
                name: webhook.name.clone(),
                wants_label: wants || labels.is_some_and(|l| l.get(keys::USE).is_some_and(|v| v == "true")),
                service: service
                    .map(|service| ServiceName { namespace: service.namespace.clone(), name: service.name.clone() }),
                has_ca_bundle: webhook.client_config.ca_bundle.as_ref().is_some_and(|bundle| !bundle.0.is_empty()),
            }
        });
        Self { name: configuration.metadata.name.clone().unwrap_or_default(), webhooks: webhooks.collect() }
    }
}

/// Returns the Service of an EndpointSlice, and the number of its ready endpoints. An endpoint without the condition `ready` is ready.
pub fn ready_endpoints(slice: &EndpointSlice) -> Option<(ServiceName, usize)> {
    let service = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
    let is_ready = |conditions: &Option<k8s_openapi::api::discovery::v1::EndpointConditions>| {
        conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    };
    let count = slice.endpoints.iter().flatten().filter(|endpoint| is_ready(&endpoint.conditions)).count();
    let namespace = slice.metadata.namespace.clone().unwrap_or_default();
    Some((ServiceName { namespace, name: service.clone() }, count))
}

/// The API group of identity bindings. The names of its resources are client IDs
/// (learn.microsoft.com/azure/aks/identity-bindings-concepts).
const BINDING_GROUP: &str = "cid.wi.aks.azure.com";

/// Returns the permissions to use identity bindings from cluster roles and their bindings.
pub fn grants(cluster_roles: &[ClusterRole], bindings: &[ClusterRoleBinding]) -> Vec<Grant> {
    let by_name: BTreeMap<_, _> = cluster_roles
        .iter()
        .map(|role| (role.metadata.name.as_deref().unwrap_or_default(), role.rules.as_deref().unwrap_or_default()))
        .collect();
    let of_binding = |binding: &ClusterRoleBinding| {
        let rules = by_name.get(binding.role_ref.name.as_str()).copied().unwrap_or_default();
        let client_ids: Vec<_> = rules.iter().filter(|rule| grants_use(rule)).flat_map(client_ids).collect();
        let grantees: Vec<_> = binding.subjects.iter().flatten().filter_map(grantee).collect();
        let pair = move |client_id: String| grantees.clone().into_iter().map(move |to| (client_id.clone(), to));
        client_ids.into_iter().flat_map(pair).map(|(client_id, to)| Grant { client_id, to }).collect::<Vec<_>>()
    };
    bindings.iter().filter(|binding| binding.role_ref.kind == "ClusterRole").flat_map(of_binding).collect()
}

/// Returns whether a cluster role grants the use of an identity.
pub fn grants_identities(role: &ClusterRole) -> bool {
    role.rules.iter().flatten().any(grants_use)
}

fn grants_use(rule: &PolicyRule) -> bool {
    let has = |list: &[String], word: &str| list.iter().any(|entry| entry == word || entry == "*");
    has(rule.api_groups.as_deref().unwrap_or_default(), BINDING_GROUP) && has(&rule.verbs, "use-managed-identity")
}

fn client_ids(rule: &PolicyRule) -> Vec<String> {
    rule.resources.clone().unwrap_or_default()
}

fn grantee(subject: &Subject) -> Option<Grantee> {
    let account = |namespace: &str, name: &str| {
        Grantee::Account(AccountName { namespace: namespace.to_owned(), name: name.to_owned() })
    };
    match subject.kind.as_str() {
        "ServiceAccount" => Some(account(subject.namespace.as_deref()?, &subject.name)),
        "User" => {
            let (namespace, name) = subject.name.strip_prefix(super::difference::SUBJECT_PREFIX)?.split_once(':')?;
            Some(account(namespace, name))
        }
        "Group" if ["system:serviceaccounts", "system:authenticated"].contains(&subject.name.as_str()) => {
            Some(Grantee::Everyone)
        }
        "Group" => Some(Grantee::Namespace(subject.name.strip_prefix("system:serviceaccounts:")?.to_owned())),
        _ => None,
    }
}
