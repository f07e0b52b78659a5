//! The immutable snapshot that decisions read.
//!
//! It has only the fields that a decision needs. Its map of service accounts uses a sixth of the memory of a reflector
//! store.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use kube::api::ObjectMeta;

use crate::{
    burst::{ClusterContext, ServiceAccount},
    config::{BURST_LABEL, DISABLED, Overrides},
    eligibility::{LabelSelector, NAMESPACE_ANNOTATIONS, NAMESPACE_LABELS, NetworkPolicy, Requirement, VirtualNode},
    kubernetes::ObjectKey,
};

/// An opted-in namespace.
#[derive(Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The profile that its label names. The profile need not exist.
    pub profile: String,
    /// The overrides in its annotations.
    pub overrides: Overrides,
    /// The labels that decisions need.
    pub labels: BTreeMap<String, String>,
    /// The annotations that decisions need.
    pub annotations: BTreeMap<String, String>,
}

pub(super) type Namespaces = HashMap<String, Arc<Namespace>>;
/// Service accounts by namespace and name. The inner maps are shared, so a change copies only one of them.
pub(super) type ServiceAccounts = HashMap<String, Arc<HashMap<Box<str>, ServiceAccount>>>;
/// By namespace.
pub(super) type NetworkPolicies = HashMap<String, Arc<Vec<NetworkPolicy>>>;

/// The cluster objects that decisions read. A cache without an initial list is `None`, not empty.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(super) namespaces: Option<Arc<Namespaces>>,
    pub(super) service_accounts: Option<Arc<ServiceAccounts>>,
    pub(super) virtual_nodes: Option<Arc<Vec<VirtualNode>>>,
    pub(super) network_policies: Option<Arc<NetworkPolicies>>,
}

impl Snapshot {
    /// Returns an opted-in namespace.
    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.namespaces.as_ref()?.get(name).cloned()
    }

    /// Returns an opted-in namespace if its pods can be decided. Service accounts may be missing, because Spillway can
    /// read a single one.
    pub(super) fn decidable_namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        let is_filled = self.virtual_nodes.is_some() && self.network_policies.is_some();
        self.namespace(name).filter(|_| is_filled)
    }

    /// Returns the state of a service account. Returns `None` if it is not in the cache.
    pub fn service_account(&self, namespace: &str, name: &str) -> Option<ServiceAccount> {
        self.service_accounts.as_ref()?.get(namespace)?.get(name).copied()
    }

    /// Returns the virtual nodes of the cluster.
    pub fn virtual_nodes(&self) -> &[VirtualNode] {
        self.virtual_nodes.as_ref().map(|nodes| nodes.as_slice()).unwrap_or_default()
    }

    /// Returns the NetworkPolicies of a namespace.
    pub fn network_policies(&self, namespace: &str) -> &[NetworkPolicy] {
        let policies = self.network_policies.as_ref().and_then(|policies| policies.get(namespace));
        policies.map(|policies| policies.as_slice()).unwrap_or_default()
    }

    /// Returns the opted-in namespaces by name.
    pub fn namespaces(&self) -> impl Iterator<Item = (&str, &Namespace)> {
        let all = self.namespaces.iter().flat_map(|all| all.iter());
        all.map(|(name, namespace)| (name.as_str(), namespace.as_ref()))
    }

    /// Returns the cluster context of the decision on a pod of this namespace.
    pub fn cluster_context<'s>(
        &'s self,
        name: &'s str,
        namespace: &'s Namespace,
        service_account: ServiceAccount,
    ) -> ClusterContext<'s> {
        ClusterContext {
            service_account,
            namespace: name,
            virtual_nodes: self.virtual_nodes(),
            namespace_labels: &namespace.labels,
            namespace_annotations: &namespace.annotations,
            network_policies: self.network_policies(name),
        }
    }

    pub(super) fn unsynced(&self) -> Vec<&'static str> {
        let caches = [
            ("namespaces", self.namespaces.is_none()),
            ("service accounts", self.service_accounts.is_none()),
            ("virtual nodes", self.virtual_nodes.is_none()),
            ("network policies", self.network_policies.is_none()),
        ];
        caches.into_iter().filter_map(|(name, missing)| missing.then_some(name)).collect()
    }
}

#[cfg(test)]
impl Snapshot {
    /// Creates a snapshot with opted-in namespaces, by name and profile, and no other cache.
    pub(crate) fn of_namespaces(namespaces: &[(&str, &str)]) -> Self {
        let read = |(name, profile): &(&str, &str)| {
            let labels = [(BURST_LABEL.to_owned(), (*profile).to_owned())].into();
            Some(((*name).to_owned(), Arc::new(Namespace::read(labels, BTreeMap::new())?)))
        };
        Self { namespaces: Some(Arc::new(namespaces.iter().filter_map(read).collect())), ..Self::default() }
    }
}

impl Namespace {
    /// Reads the labels and annotations of a namespace. Returns `None` if no label names a profile.
    pub fn read(labels: BTreeMap<String, String>, annotations: BTreeMap<String, String>) -> Option<Self> {
        let profile = labels.get(BURST_LABEL)?.clone();
        let overrides = Overrides::read(annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        let keep = |mut all: BTreeMap<String, String>, keys: &[&str]| {
            all.retain(|key, _| keys.contains(&key.as_str()));
            all
        };
        Some(Self {
            profile,
            overrides,
            labels: keep(labels, NAMESPACE_LABELS),
            annotations: keep(annotations, NAMESPACE_ANNOTATIONS),
        })
    }
}

impl Namespace {
    /// Reads an opted-in namespace. Returns `None` if it has not opted in.
    pub(super) fn opted_in(meta: &ObjectMeta) -> Option<Arc<Self>> {
        let (labels, annotations) = (meta.labels.clone().unwrap_or_default(), meta.annotations.clone());
        let namespace = Self::read(labels, annotations.unwrap_or_default())?;
        (namespace.profile != DISABLED).then(|| Arc::new(namespace))
    }
}

pub(super) fn put_namespace(namespaces: &mut Namespaces, key: &ObjectKey, namespace: Option<Arc<Namespace>>) {
    match namespace {
        Some(namespace) => namespaces.insert(key.name.clone(), namespace),
        None => namespaces.remove(&key.name),
    };
}

pub(super) fn put_service_account(accounts: &mut ServiceAccounts, key: &ObjectKey, account: Option<ServiceAccount>) {
    let ObjectKey { namespace, name } = key;
    if let Some(account) = account {
        Arc::make_mut(accounts.entry(namespace.clone()).or_default()).insert(name.as_str().into(), account);
        return;
    }
    let Some(names) = accounts.get_mut(namespace) else { return };
    Arc::make_mut(names).remove(name.as_str());
    if names.is_empty() {
        accounts.remove(namespace);
    }
}

pub(super) fn service_account(meta: &ObjectMeta) -> ServiceAccount {
    let annotations = meta.annotations.iter().flatten();
    ServiceAccount::of_annotations(annotations.map(|(key, value)| (key.as_str(), value.as_str())))
}

pub(super) fn virtual_node(meta: ObjectMeta) -> Option<VirtualNode> {
    Some(VirtualNode::new(meta.name?, meta.labels.unwrap_or_default().into_iter().collect()))
}

/// Keeps the nodes sorted by name. Nodes are updated often, so an update without a relevant change must not change the
/// list.
pub(super) fn put_node(nodes: &mut Vec<VirtualNode>, key: &ObjectKey, node: Option<VirtualNode>) {
    nodes.retain(|node| node.name != key.name);
    if let Some(node) = node {
        let index = nodes.partition_point(|other| other.name < node.name);
        nodes.insert(index, node);
    }
}

pub(super) fn put_network_policy(policies: &mut NetworkPolicies, key: &ObjectKey, policy: Option<NetworkPolicy>) {
    if let Some(own) = policies.get_mut(&key.namespace) {
        Arc::make_mut(own).retain(|policy| policy.name != key.name);
        if own.is_empty() {
            policies.remove(&key.namespace);
        }
    }
    if let Some(policy) = policy {
        Arc::make_mut(policies.entry(key.namespace.clone()).or_default()).push(policy);
    }
}

/// Returns a NetworkPolicy with this name and pod selector.
///
/// A selector above 16 KiB counts as one that selects every pod. Then pods stay on VMs that the policy might cover.
pub fn network_policy(name: String, selector: meta::LabelSelector) -> NetworkPolicy {
    let selector = label_selector(selector);
    let is_small = size(&selector) <= MAX_SELECTOR_BYTES;
    NetworkPolicy { name, pod_selector: if is_small { selector } else { LabelSelector::default() } }
}

/// Maximum size of the selector of a NetworkPolicy, as its keys, operators and values. Each has a fixed overhead.
const MAX_SELECTOR_BYTES: usize = 16 << 10;

fn size(selector: &LabelSelector) -> usize {
    const OVERHEAD: usize = size_of::<String>();
    let labels = selector.match_labels.iter().map(|(key, value)| key.len() + value.len() + 2 * OVERHEAD);
    let requirements = selector.match_expressions.iter().map(|requirement| {
        let values = requirement.values.iter().map(|value| value.len() + OVERHEAD).sum::<usize>();
        requirement.key.len() + requirement.operator.len() + 2 * OVERHEAD + values
    });
    labels.sum::<usize>() + requirements.sum::<usize>()
}

/// Converts a label selector to the type that the rules use.
pub(super) fn label_selector(selector: meta::LabelSelector) -> LabelSelector {
    let expressions = selector.match_expressions.into_iter().flatten();
    let requirement = |e: meta::LabelSelectorRequirement| Requirement {
        key: e.key,
        operator: e.operator,
        values: e.values.unwrap_or_default(),
    };
    LabelSelector {
        match_labels: selector.match_labels.unwrap_or_default(),
        match_expressions: expressions.map(requirement).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT_ID: &str = "azure.workload.identity/client-id";

    fn meta(name: &str, key: &str, value: &str) -> ObjectMeta {
        let pairs = || Some([(key.to_owned(), value.to_owned())].into());
        ObjectMeta {
            name: Some(name.into()),
            namespace: Some("shop".into()),
            labels: pairs(),
            annotations: pairs(),
            ..ObjectMeta::default()
        }
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    fn node(name: &str, key: &str, value: &str) -> Option<VirtualNode> {
        virtual_node(meta(name, key, value))
    }

    #[test]
    fn a_node_update_without_a_change_keeps_the_list() {
        let mut nodes = Vec::new();
        for name in ["b", "a", "c"] {
            put_node(&mut nodes, &key(name), node(name, "type", "virtual-kubelet"));
        }
        let before = nodes.clone();
        put_node(&mut nodes, &key("a"), node("a", "type", "virtual-kubelet"));
        assert_eq!(nodes, before);
        put_node(&mut nodes, &key("a"), node("a", "type", "another"));
        assert_ne!(nodes, before);
    }

    #[test]
    fn an_empty_cache_is_synced() {
        let mut snapshot = Snapshot::default();
        assert_eq!(snapshot.unsynced(), ["namespaces", "service accounts", "virtual nodes", "network policies"]);
        snapshot.namespaces = Some(Arc::default());
        assert_eq!(snapshot.unsynced(), ["service accounts", "virtual nodes", "network policies"]);
    }

    #[test]
    fn a_service_account_without_a_client_id_is_cached() {
        let mut accounts = ServiceAccounts::new();
        for (name, annotation, value) in
            [("web", CLIENT_ID, "0000"), ("blank", CLIENT_ID, " "), ("batch", "other", "x")]
        {
            put_service_account(&mut accounts, &key(name), Some(service_account(&meta(name, annotation, value))));
        }
        let snapshot = Snapshot { service_accounts: Some(Arc::new(accounts.clone())), ..Snapshot::default() };
        assert_eq!(snapshot.service_account("shop", "web"), Some(ServiceAccount::WithClientId));
        assert_eq!(snapshot.service_account("shop", "blank"), Some(ServiceAccount::WithoutClientId));
        assert_eq!(snapshot.service_account("shop", "batch"), Some(ServiceAccount::WithoutClientId));
        assert_eq!(snapshot.service_account("shop", "none"), None);
        for name in ["web", "blank", "batch"] {
            put_service_account(&mut accounts, &key(name), None);
        }
        assert!(accounts.is_empty(), "an empty namespace is removed");
    }

    #[test]
    fn only_opted_in_namespaces_are_kept() {
        let mut namespaces = Namespaces::new();
        for (name, label, value) in
            [("shop", BURST_LABEL, "enabled"), ("plain", "team", "x"), ("out", BURST_LABEL, DISABLED)]
        {
            put_namespace(&mut namespaces, &key(name), Namespace::opted_in(&meta(name, label, value)));
        }
        assert_eq!(namespaces.keys().collect::<Vec<_>>(), ["shop"]);
        put_namespace(&mut namespaces, &key("shop"), Namespace::opted_in(&meta("shop", "team", "x")));
        assert!(namespaces.is_empty(), "the label was removed");
    }

    #[test]
    fn a_node_with_changed_labels_is_replaced() {
        let mut nodes = Vec::new();
        put_node(&mut nodes, &key("virtual"), node("virtual", "type", "virtual-kubelet"));
        put_node(&mut nodes, &key("virtual"), node("virtual", "virtualization", "virtualnode2"));
        assert_eq!(nodes.len(), 1);
        assert_eq!(nodes[0].view().label("virtualization"), Some("virtualnode2"));
        put_node(&mut nodes, &key("virtual"), None);
        assert!(nodes.is_empty());
    }
}
