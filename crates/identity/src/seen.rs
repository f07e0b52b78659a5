//! What is known of the cluster, as plain values: nothing in here asks for more.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;

use spillway_core::azure::Cloud;

use super::{
    azure::Azure,
    finding::{AccountName, Object},
    keys,
};

/// Labels or annotations that concern identities.
pub type Keys = BTreeMap<String, String>;

/// Everything that the checks are made on.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The cluster.
    pub cluster: Cluster,
    /// Where its tokens come from; the first is what tokens say.
    pub issuers: Vec<Issuer>,
    /// Its cloud.
    pub cloud: Cloud,
    /// What is known of managed identities; nothing when nobody was asked.
    pub azure: Option<Azure>,
    /// When this was seen; without it nothing is taken for fresh.
    pub at: Timestamp,
}

/// Everything that is known of the cluster. What could not be read is absent, not empty.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// The service accounts.
    pub service_accounts: Vec<ServiceAccount>,
    /// Whether the lists that are there are whole, so that what is not in them does not exist.
    pub is_whole: bool,
    /// Pods, and the templates of what makes pods.
    pub pods: Vec<Pod>,
    /// Other objects that carry a key of workload identity themselves, such as a Deployment or a Service.
    pub bearers: Vec<Bearer>,
    /// Namespaces by name, as far as they are known.
    pub namespaces: BTreeMap<String, Namespace>,
    /// The names of virtual nodes of the first generation.
    pub v1_virtual_nodes: BTreeSet<String>,
    /// The mutating webhook configurations.
    pub webhooks: Option<Vec<WebhookConfiguration>>,
    /// Namespace and name of a Service → how many endpoints are ready.
    pub endpoints: Option<BTreeMap<(String, String), usize>>,
    /// Who may use which identity through an identity binding.
    pub grants: Option<Vec<Grant>>,
}

/// A service account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its names.
    pub name: AccountName,
    /// `metadata.uid`, of one that exists.
    pub uid: Option<String>,
    /// Its labels that concern identities.
    pub labels: Keys,
    /// Its annotations that concern identities.
    pub annotations: Keys,
}

impl ServiceAccount {
    /// The annotation with the client id, whatever stands there.
    pub fn client_id(&self) -> Option<&str> {
        self.annotations.get(keys::CLIENT_ID).map(String::as_str)
    }

    /// The subject of its tokens.
    pub fn subject(&self) -> String {
        format!("{}{}:{}", super::difference::SUBJECT_PREFIX, self.name.namespace, self.name.name)
    }

    pub(super) fn object(&self) -> Object {
        Object::namespaced("ServiceAccount", &self.name.namespace, &self.name.name)
    }
}

/// A pod, or what the pods of a workload will look like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`; empty for a template.
    pub name: String,
    /// What makes it: a Deployment rather than its ReplicaSet; the pod itself if nothing does.
    pub maker: Object,
    /// Whether the API server has been over it, so that what webhooks inject is there.
    pub is_admitted: bool,
    /// `spec.serviceAccountName`
    pub service_account: String,
    /// Its labels that concern identities.
    pub labels: Keys,
    /// Its annotations that concern identities.
    pub annotations: Keys,
    /// Whether Spillway has added the identity label.
    pub is_labelled_by_us: bool,
    /// `spec.hostNetwork`
    pub host_network: bool,
    /// `spec.nodeName`
    pub node: Option<String>,
    /// Init containers and containers.
    pub containers: Vec<Container>,
    /// Projected tokens of the service account that have an audience of their own.
    pub tokens: Vec<Token>,
}

impl Pod {
    /// Whether the label asks for a token.
    pub fn is_labelled(&self) -> bool {
        self.labels.get(keys::USE).is_some_and(|value| value == "true")
    }

    /// Whether the annotation asks for an identity binding.
    pub fn uses_binding(&self) -> bool {
        self.annotations.get(keys::USE_BINDING).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// Whether anything in the pod itself has to do with identities.
    pub fn concerns_identities(&self) -> bool {
        let is_set_up = |container: &Container| !container.env.is_empty();
        !self.labels.is_empty()
            || !self.annotations.is_empty()
            || !self.tokens.is_empty()
            || self.containers.iter().any(is_set_up)
    }

    /// Whether anything was injected.
    pub(super) fn is_injected(&self) -> bool {
        self.containers.iter().any(|container| container.env(keys::ENV_TOKEN_FILE).is_some())
    }

    /// The names after `skip-containers`.
    pub(super) fn skipped(&self) -> impl Iterator<Item = &str> {
        let text = self.annotations.get(keys::SKIP_CONTAINERS).map(String::as_str).unwrap_or_default();
        text.split(';').map(str::trim).filter(|name| !name.is_empty())
    }

    /// The containers that identity is injected into.
    pub(super) fn identified(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|container| !self.skipped().any(|name| name == container.name))
    }
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// `name`
    pub name: String,
    /// The environment variables that concern identities; the last of a name counts.
    pub env: Vec<(String, EnvValue)>,
    /// `volumeMounts[*].mountPath`, where a variable says that a token is in one of them.
    pub mounts: Vec<String>,
}

impl Container {
    /// The value of a variable, if it is set.
    pub(super) fn env(&self, name: &str) -> Option<&EnvValue> {
        self.env.iter().rev().find(|(own, _)| own == name).map(|(_, value)| value)
    }
}

/// The value of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// It is written down.
    Plain(String),
    /// It comes from elsewhere, such as a Secret.
    Elsewhere,
}

impl EnvValue {
    pub(super) fn plain(&self) -> Option<&str> {
        match self {
            Self::Plain(value) => Some(value),
            Self::Elsewhere => None,
        }
    }
}

/// A projected token of the service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// `audience`
    pub audience: String,
    /// `path`
    pub path: String,
}

/// An object that carries keys of workload identity in its own metadata.
#[derive(Debug, Clone)]
pub struct Bearer {
    /// The object.
    pub object: Object,
    /// Its labels that concern identities.
    pub labels: Keys,
    /// Its annotations that concern identities.
    pub annotations: Keys,
}

/// A namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Whether Spillway gives its pods the identity label.
    pub is_opted_in: bool,
    /// The label by which the Admissions Enforcer of AKS keeps webhooks out of it, as `key: value`.
    pub excluded_by: Option<String>,
}

/// A mutating webhook configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookConfiguration {
    /// `metadata.name`, which decides the order.
    pub name: String,
    /// Its webhooks.
    pub webhooks: Vec<Webhook>,
}

/// A webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// `name`
    pub name: String,
    /// Whether its objectSelector asks for the identity label, as azure-workload-identity's does.
    pub wants_label: bool,
    /// Namespace and name of its Service, unless it is called by URL.
    pub service: Option<(String, String)>,
    /// Whether it has a `caBundle`.
    pub has_ca_bundle: bool,
}

/// Where tokens come from.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// `iss`, as it is.
    pub url: String,
    /// Where this was read, such as `--issuer` or `token`.
    pub source: String,
    /// `id_token_signing_alg_values_supported` of its discovery document, if that was read.
    pub algorithms: Option<Vec<String>>,
}

/// That a service account may use an identity through an identity binding.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The client id; `*` for all.
    pub client_id: String,
    /// To whom.
    pub to: Grantee,
}

/// Whom a grant speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grantee {
    /// One service account.
    Account(AccountName),
    /// Those of a namespace.
    Namespace(String),
    /// All.
    Everyone,
}

impl Grant {
    pub(super) fn covers(&self, client_id: &str, account: &AccountName) -> bool {
        let is_meant = match &self.to {
            Grantee::Account(one) => one == account,
            Grantee::Namespace(name) => *name == account.namespace,
            Grantee::Everyone => true,
        };
        is_meant && (self.client_id == "*" || self.client_id.eq_ignore_ascii_case(client_id))
    }
}
