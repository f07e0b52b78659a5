//! The input of the checks, as plain values.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;

use spillway_core::azure::Cloud;

use super::{
    keys,
    managed_identity::ManagedIdentities,
    object::{AccountName, Object},
};

/// Labels or annotations of Azure Workload Identity.
pub type KeyValues = BTreeMap<String, String>;

/// Everything that the checks read.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// The cluster.
    pub cluster: Cluster,
    /// The issuers of the cluster's tokens. Tokens name the first one.
    pub issuers: Vec<Issuer>,
    /// The cloud of the cluster.
    pub cloud: Cloud,
    /// The managed identities. `None` if no source of credentials is configured.
    pub managed_identities: Option<ManagedIdentities>,
    /// Time of the observation, from which the age of a credential is computed.
    pub at: Timestamp,
}

/// The objects of the cluster. A kind that could not be read is absent, not empty.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Service accounts.
    pub service_accounts: Vec<ServiceAccount>,
    /// `true` if the lists are complete. An object that is not listed then does not exist.
    pub is_complete: bool,
    /// Pods, and the pod templates of workloads.
    pub pods: Vec<Pod>,
    /// Other objects with workload identity keys in their own metadata, such as a Deployment or a Service.
    pub annotated_objects: Vec<AnnotatedObject>,
    /// Namespaces by name, if they are known.
    pub namespaces: BTreeMap<String, Namespace>,
    /// The names of virtual nodes of the first generation.
    pub v1_virtual_nodes: BTreeSet<String>,
    /// Mutating webhook configurations.
    pub webhooks: Option<Vec<WebhookConfiguration>>,
    /// Number of ready endpoints by Service.
    pub endpoints: Option<BTreeMap<ServiceName, usize>>,
    /// The service accounts that may use an identity through an identity binding.
    pub grants: Option<Vec<Grant>>,
}

/// A service account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Namespace and name.
    pub name: AccountName,
    /// `metadata.uid`, if the object exists in a cluster.
    pub uid: Option<String>,
    /// Labels that concern identities.
    pub labels: KeyValues,
    /// Annotations that concern identities.
    pub annotations: KeyValues,
}

impl ServiceAccount {
    /// Returns the annotation with the client ID, whether or not it is valid.
    pub fn client_id(&self) -> Option<&str> {
        self.annotations.get(keys::CLIENT_ID).map(String::as_str)
    }

    /// Returns the subject of the service account's tokens.
    pub fn subject(&self) -> String {
        format!("{}{}:{}", super::difference::SUBJECT_PREFIX, self.name.namespace, self.name.name)
    }

    pub(super) fn object(&self) -> Object {
        Object::namespaced("ServiceAccount", &self.name.namespace, &self.name.name)
    }
}

/// A pod, or the pod template of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`. Empty for a template.
    pub name: String,
    /// The top-level owner: a Deployment rather than its ReplicaSet. The pod itself if it has no owner.
    pub owner: Object,
    /// `true` if the pod has passed admission, so that webhooks have changed it.
    pub is_admitted: bool,
    /// `spec.serviceAccountName`
    pub service_account: String,
    /// Labels that concern identities.
    pub labels: KeyValues,
    /// Annotations that concern identities.
    pub annotations: KeyValues,
    /// `true` if Spillway has added the identity label.
    pub is_labelled_by_spillway: bool,
    /// `spec.hostNetwork`
    pub host_network: bool,
    /// `spec.nodeName`
    pub node: Option<String>,
    /// Init containers and containers.
    pub containers: Vec<Container>,
    /// Projected service account tokens with an explicit audience.
    pub tokens: Vec<Token>,
}

impl Pod {
    /// Returns whether the label requests a token.
    pub fn is_labelled(&self) -> bool {
        self.labels.get(keys::USE).is_some_and(|value| value == keys::USE_VALUE)
    }

    /// Returns whether the annotation requests an identity binding.
    pub fn uses_binding(&self) -> bool {
        self.annotations.get(keys::USE_BINDING).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// Returns whether the pod has a field that concerns identities.
    pub fn concerns_identities(&self) -> bool {
        let is_set_up = |container: &Container| !container.env.is_empty();
        !self.labels.is_empty()
            || !self.annotations.is_empty()
            || !self.tokens.is_empty()
            || self.containers.iter().any(is_set_up)
    }

    /// Returns whether a webhook has injected an identity.
    pub(super) fn is_injected(&self) -> bool {
        self.containers.iter().any(|container| container.env(keys::ENV_TOKEN_FILE).is_some())
    }

    /// Returns the container names in the annotation `skip-containers`.
    pub(super) fn skipped_containers(&self) -> impl Iterator<Item = &str> {
        let text = self.annotations.get(keys::SKIP_CONTAINERS).map(String::as_str).unwrap_or_default();
        text.split(';').map(str::trim).filter(|name| !name.is_empty())
    }

    /// Returns the containers that get an identity.
    pub(super) fn containers_with_identity(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|container| !self.skipped_containers().any(|name| name == container.name))
    }
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// `name`
    pub name: String,
    /// Environment variables that concern identities. If a name occurs several times, the last value counts.
    pub env: Vec<(String, EnvValue)>,
    /// `volumeMounts[*].mountPath`, if a variable names the path of a token.
    pub mounts: Vec<String>,
}

impl Container {
    /// Returns the value of a variable, if it is set.
    pub(super) fn env(&self, name: &str) -> Option<&EnvValue> {
        self.env.iter().rev().find(|(own, _)| own == name).map(|(_, value)| value)
    }
}

/// The value of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// `value`
    Literal(String),
    /// `valueFrom`, such as a Secret.
    ValueFrom,
}

impl EnvValue {
    pub(super) fn literal(&self) -> Option<&str> {
        match self {
            Self::Literal(value) => Some(value),
            Self::ValueFrom => None,
        }
    }
}

/// A projected service account token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// `audience`
    pub audience: String,
    /// `path`
    pub path: String,
}

/// An object with workload identity keys in its own metadata.
#[derive(Debug, Clone)]
pub struct AnnotatedObject {
    /// Kind, namespace and name.
    pub object: Object,
    /// Labels that concern identities.
    pub labels: KeyValues,
    /// Annotations that concern identities.
    pub annotations: KeyValues,
}

/// A namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// `true` if Spillway adds the identity label to its pods.
    pub is_opted_in: bool,
    /// The label for which the Admissions Enforcer of AKS excludes the namespace from webhooks, as `key: value`.
    pub excluded_by: Option<String>,
}

/// Namespace and name of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
}

/// A mutating webhook configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookConfiguration {
    /// `metadata.name`, which determines the order of calls.
    pub name: String,
    /// `webhooks`
    pub webhooks: Vec<Webhook>,
}

/// A webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// `name`
    pub name: String,
    /// `true` if the objectSelector requires the identity label, as azure-workload-identity's does.
    pub wants_label: bool,
    /// The Service of the webhook. `None` if the API server calls it by URL.
    pub service: Option<ServiceName>,
    /// `true` if `clientConfig.caBundle` is set.
    pub has_ca_bundle: bool,
}

/// An issuer of service account tokens.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// `iss`, unchanged.
    pub url: String,
    /// The source of the issuer, for output, such as `--issuer`.
    pub source: String,
    /// `id_token_signing_alg_values_supported` of the discovery document, if it was read.
    pub algorithms: Option<Vec<String>>,
}

/// The permission of service accounts to use an identity through an identity binding.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The client ID, or `*` for all identities.
    pub client_id: String,
    /// The service accounts that have the permission.
    pub to: Grantee,
}

/// The service accounts of a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grantee {
    /// One service account.
    Account(AccountName),
    /// All service accounts of a namespace.
    Namespace(String),
    /// All service accounts.
    Everyone,
}

impl Grant {
    pub(super) fn covers(&self, client_id: &str, account: &AccountName) -> bool {
        let is_grantee = match &self.to {
            Grantee::Account(one) => one == account,
            Grantee::Namespace(name) => *name == account.namespace,
            Grantee::Everyone => true,
        };
        is_grantee && (self.client_id == "*" || self.client_id.eq_ignore_ascii_case(client_id))
    }
}
