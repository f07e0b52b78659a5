//! The immutable picture that decisions are made on.
//!
//! Only what a decision needs is kept: an own map of names costs a sixth of a reflector store of service accounts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::{api::networking::v1 as networking, apimachinery::pkg::apis::meta::v1 as meta};
use kube::api::ObjectMeta;

use crate::{
    burst::{Facts, ServiceAccount},
    config::{BURST_LABEL, Overrides},
    eligibility::{LabelSelector, NAMESPACE_ANNOTATIONS, NAMESPACE_LABELS, NetworkPolicy, Requirement, VirtualNode},
};

/// A namespace that has opted in.
#[derive(Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The profile that its label names; it need not exist.
    pub profile: String,
    /// What its annotations override.
    pub overrides: Overrides,
    /// The labels that decisions rest on.
    pub labels: BTreeMap<String, String>,
    /// The annotations that decisions rest on.
    pub annotations: BTreeMap<String, String>,
}

pub(super) type Namespaces = HashMap<String, Arc<Namespace>>;
/// Namespace → name → what its annotations say. The inner maps are shared, so that a change copies one of them.
pub(super) type ServiceAccounts = HashMap<String, Arc<HashMap<Box<str>, ServiceAccount>>>;
/// By namespace.
pub(super) type NetworkPolicies = HashMap<String, Arc<Vec<NetworkPolicy>>>;

/// What is known of the cluster. A cache that has not been filled yet is absent, not empty.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(super) namespaces: Option<Arc<Namespaces>>,
    pub(super) service_accounts: Option<Arc<ServiceAccounts>>,
    pub(super) virtual_nodes: Option<Arc<Vec<VirtualNode>>>,
    pub(super) network_policies: Option<Arc<NetworkPolicies>>,
}

impl Snapshot {
    /// A namespace that has opted in.
    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.namespaces.as_ref()?.get(name).cloned()
    }

    /// The same, if everything but service accounts, which can be read one by one, has been filled.
    pub(super) fn decidable(&self, name: &str) -> Option<Arc<Namespace>> {
        let is_filled = self.virtual_nodes.is_some() && self.network_policies.is_some();
        self.namespace(name).filter(|_| is_filled)
    }

    /// What the annotations of a service account say; nothing if it is not known.
    pub fn service_account(&self, namespace: &str, name: &str) -> Option<ServiceAccount> {
        self.service_accounts.as_ref()?.get(namespace)?.get(name).copied()
    }

    /// The virtual nodes of the cluster.
    pub fn virtual_nodes(&self) -> &[VirtualNode] {
        self.virtual_nodes.as_ref().map(|nodes| nodes.as_slice()).unwrap_or_default()
    }

    /// The NetworkPolicies of a namespace.
    pub fn network_policies(&self, namespace: &str) -> &[NetworkPolicy] {
        let policies = self.network_policies.as_ref().and_then(|policies| policies.get(namespace));
        policies.map(|policies| policies.as_slice()).unwrap_or_default()
    }

    /// The namespaces that have opted in, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = (&str, &Namespace)> {
        let all = self.namespaces.iter().flat_map(|all| all.iter());
        all.map(|(name, namespace)| (name.as_str(), namespace.as_ref()))
    }

    /// What the decision on a pod of this namespace rests on.
    pub fn facts<'s>(&'s self, name: &'s str, namespace: &'s Namespace, service_account: ServiceAccount) -> Facts<'s> {
        Facts {
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
    /// With namespaces that have opted in, by name and profile, and nothing else.
    pub(crate) fn of_namespaces(namespaces: &[(&str, &str)]) -> Self {
        let read = |(name, profile): &(&str, &str)| {
            let labels = [(BURST_LABEL.to_owned(), (*profile).to_owned())].into();
            Some(((*name).to_owned(), Arc::new(Namespace::read(labels, BTreeMap::new())?)))
        };
        Self { namespaces: Some(Arc::new(namespaces.iter().filter_map(read).collect())), ..Self::default() }
    }
}

impl Namespace {
    /// What the labels and annotations of a namespace say; nothing if it names no profile.
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

pub(super) fn put_namespace(namespaces: &mut Namespaces, meta: ObjectMeta) {
    let Some(name) = meta.name else { return };
    let read = Namespace::read(meta.labels.unwrap_or_default(), meta.annotations.unwrap_or_default());
    if let Some(namespace) = read {
        namespaces.insert(name, Arc::new(namespace));
    }
}

pub(super) fn remove_namespace(namespaces: &mut Namespaces, meta: &ObjectMeta) {
    if let Some(name) = &meta.name {
        namespaces.remove(name);
    }
}

pub(super) fn put_service_account(accounts: &mut ServiceAccounts, meta: ObjectMeta) {
    let account = service_account(&meta);
    let (Some(namespace), Some(name)) = (meta.namespace, meta.name) else { return };
    Arc::make_mut(accounts.entry(namespace).or_default()).insert(name.into(), account);
}

pub(super) fn remove_service_account(accounts: &mut ServiceAccounts, meta: &ObjectMeta) {
    let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else { return };
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

/// In the order of their names: nodes are written all the time, and what has not changed is the same list.
pub(super) fn put_node(nodes: &mut Vec<VirtualNode>, meta: ObjectMeta) {
    remove_node(nodes, &meta);
    let Some(name) = meta.name else { return };
    let place = nodes.partition_point(|node| node.name < name);
    nodes.insert(place, VirtualNode::new(name, meta.labels.unwrap_or_default().into_iter().collect()));
}

pub(super) fn remove_node(nodes: &mut Vec<VirtualNode>, meta: &ObjectMeta) {
    nodes.retain(|node| Some(&node.name) != meta.name.as_ref());
}

pub(super) fn put_network_policy(policies: &mut NetworkPolicies, policy: networking::NetworkPolicy) {
    remove_network_policy(policies, &policy);
    let Some(namespace) = policy.metadata.namespace.clone() else { return };
    let Some(policy) = network_policy(policy) else { return };
    Arc::make_mut(policies.entry(namespace).or_default()).push(policy);
}

/// A NetworkPolicy by whom it selects; nothing if it has no name.
pub fn network_policy(policy: networking::NetworkPolicy) -> Option<NetworkPolicy> {
    let pod_selector = label_selector(policy.spec.and_then(|spec| spec.pod_selector).unwrap_or_default());
    Some(NetworkPolicy { name: policy.metadata.name?, pod_selector })
}

/// A label selector as rules read it.
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

pub(super) fn remove_network_policy(policies: &mut NetworkPolicies, policy: &networking::NetworkPolicy) {
    let Some(namespace) = &policy.metadata.namespace else { return };
    let Some(all) = policies.get_mut(namespace) else { return };
    Arc::make_mut(all).retain(|other| Some(&other.name) != policy.metadata.name.as_ref());
    if all.is_empty() {
        policies.remove(namespace);
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

    #[test]
    fn a_node_that_is_written_without_a_change_leaves_the_list_as_it_is() {
        let mut nodes = Vec::new();
        for name in ["b", "a", "c"] {
            put_node(&mut nodes, meta(name, "type", "virtual-kubelet"));
        }
        let before = nodes.clone();
        put_node(&mut nodes, meta("a", "type", "virtual-kubelet"));
        assert_eq!(nodes, before);
        put_node(&mut nodes, meta("a", "type", "another"));
        assert_ne!(nodes, before);
    }

    #[test]
    fn an_empty_cache_is_not_an_unfilled_one() {
        let mut snapshot = Snapshot::default();
        assert_eq!(snapshot.unsynced(), ["namespaces", "service accounts", "virtual nodes", "network policies"]);
        snapshot.namespaces = Some(Arc::default());
        assert_eq!(snapshot.unsynced(), ["service accounts", "virtual nodes", "network policies"]);
    }

    #[test]
    fn a_service_account_without_a_client_id_is_known_all_the_same() {
        let mut accounts = ServiceAccounts::new();
        put_service_account(&mut accounts, meta("web", CLIENT_ID, "0000"));
        put_service_account(&mut accounts, meta("blank", CLIENT_ID, " "));
        put_service_account(&mut accounts, meta("batch", "other", "x"));
        let snapshot = Snapshot { service_accounts: Some(Arc::new(accounts.clone())), ..Snapshot::default() };
        assert_eq!(snapshot.service_account("shop", "web"), Some(ServiceAccount::WithClientId));
        assert_eq!(snapshot.service_account("shop", "blank"), Some(ServiceAccount::WithoutClientId));
        assert_eq!(snapshot.service_account("shop", "batch"), Some(ServiceAccount::WithoutClientId));
        assert_eq!(snapshot.service_account("shop", "none"), None);
        for name in ["web", "blank", "batch"] {
            remove_service_account(&mut accounts, &meta(name, "", ""));
        }
        assert!(accounts.is_empty(), "a namespace that is gone leaves nothing behind");
    }

    #[test]
    fn only_namespaces_with_the_label_are_kept() {
        let mut namespaces = Namespaces::new();
        put_namespace(&mut namespaces, meta("shop", BURST_LABEL, "enabled"));
        put_namespace(&mut namespaces, meta("plain", "team", "x"));
        assert_eq!(namespaces.keys().collect::<Vec<_>>(), ["shop"]);
    }

    #[test]
    fn a_node_that_changes_its_labels_is_still_one_node() {
        let mut nodes = Vec::new();
        put_node(&mut nodes, meta("virtual", "type", "virtual-kubelet"));
        put_node(&mut nodes, meta("virtual", "virtualization", "virtualnode2"));
        assert_eq!(nodes.len(), 1);
        assert_eq!(nodes[0].view().label("virtualization"), Some("virtualnode2"));
        remove_node(&mut nodes, &meta("virtual", "", ""));
        assert!(nodes.is_empty());
    }
}
