//! What the checks are made on, read from a live cluster: once by lists, or kept by watches.

mod known;
mod list;
mod watch;

pub use list::{Live, read};
pub use watch::Following;

use std::fmt::Debug;

use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    core::v1 as core,
    discovery::v1::EndpointSlice,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use known::{Known, Listing};
use kube::{
    Resource,
    api::{ObjectMeta, PartialObjectMeta},
};
use serde::de::DeserializeOwned;

use crate::{
    identity::{
        PodSpec, PodStatus, is_v1_virtual_node,
        managed_identity::ReadFailure,
        observation::{Namespace, Pod, ServiceAccount, WebhookConfiguration},
        ready_endpoints,
    },
    lean::Lean,
};

/// A Pod of the API, decoded as far as identities are concerned.
pub type LeanPod = Lean<core::Pod, Option<PodSpec>, Option<PodStatus>>;

/// The pod as the checks see it; nothing for one that has ended or is about to.
pub fn running(pod: &LeanPod) -> Option<Pod> {
    Pod::running(&pod.metadata, pod.spec.as_ref(), pod.status.as_ref())
}

/// Namespace, empty for what has none, and name.
type Name = (String, String);

/// What can be listed and watched.
trait Listed: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {}

impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static> Listed for K {}

/// A kind of object, and what is kept of it.
struct Kind<O, V> {
    /// As RBAC spells it.
    plural: &'static str,
    labels: Option<&'static str>,
    /// Nothing for what does not count.
    read: fn(&O) -> Option<V>,
    slot: fn(&mut Known) -> &mut Listing<V>,
}

type Meta<K> = PartialObjectMeta<K>;

const ACCOUNTS: Kind<Meta<core::ServiceAccount>, ServiceAccount> = Kind {
    plural: "serviceaccounts",
    labels: None,
    read: |account| Some(ServiceAccount::from(&account.metadata)),
    slot: |known| &mut known.accounts,
};

const PODS: Kind<LeanPod, Pod> = Kind { plural: "pods", labels: None, read: running, slot: |known| &mut known.pods };

const NAMESPACES: Kind<Meta<core::Namespace>, Namespace> = Kind {
    plural: "namespaces",
    labels: None,
    read: |namespace| Some(Namespace::from(&namespace.metadata)),
    slot: |known| &mut known.namespaces,
};

/// All virtual nodes, whatever the configuration selects: those of the first generation carry this label.
const NODES: Kind<Meta<core::Node>, ()> = Kind {
    plural: "nodes",
    labels: Some("type=virtual-kubelet"),
    read: |node| is_v1_virtual_node(&node.metadata).then_some(()),
    slot: |known| &mut known.v1_virtual_nodes,
};

const WEBHOOKS: Kind<MutatingWebhookConfiguration, WebhookConfiguration> = Kind {
    plural: "mutatingwebhookconfigurations",
    labels: None,
    read: |configuration| Some(WebhookConfiguration::from(configuration)),
    slot: |known| &mut known.webhooks,
};

const ROLES: Kind<ClusterRole, ClusterRole> = Kind {
    plural: "clusterroles",
    labels: None,
    read: |role| {
        crate::identity::grants_identities(role)
            .then(|| ClusterRole { metadata: named(&role.metadata), ..role.clone() })
    },
    slot: |known| &mut known.roles,
};

const BINDINGS: Kind<ClusterRoleBinding, ClusterRoleBinding> = Kind {
    plural: "clusterrolebindings",
    labels: None,
    read: |binding| Some(ClusterRoleBinding { metadata: named(&binding.metadata), ..binding.clone() }),
    slot: |known| &mut known.bindings,
};

/// The slices of one Service: how many of its endpoints are ready.
fn ready(slice: &EndpointSlice) -> Option<usize> {
    ready_endpoints(slice).map(|(_service, count)| count)
}

/// Nothing but the name.
fn named(meta: &ObjectMeta) -> ObjectMeta {
    ObjectMeta { name: meta.name.clone(), ..ObjectMeta::default() }
}

fn name(object: &impl Resource) -> Name {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The label that picks the slices of a Service.
fn slices_of(service: &str) -> String {
    format!("kubernetes.io/service-name={service}")
}

/// Why a kind is not known, if the answer is that we may not.
fn refusal(error: &kube::Error, plural: &str, namespace: Option<&str>) -> Option<ReadFailure> {
    let kube::Error::Api(status) = error else { return None };
    (status.code == 403).then(|| ReadFailure {
        reason: format!("403 {}", status.reason),
        action: format!("list {plural}"),
        scope: namespace.map_or_else(|| "the cluster".to_owned(), |namespace| format!("namespace {namespace}")),
    })
}
