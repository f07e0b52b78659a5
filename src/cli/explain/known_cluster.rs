//! The known part of a cluster, from flags and documents: namespaces, service accounts, virtual nodes, policies,
//! Services.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::networking::v1 as networking;
use serde_json::Value;

use crate::{
    burst::{self, ServiceAccount},
    cli::manifest::Document,
    cluster,
    config::{BURST_LABEL, FULL_TAINT, LAST_RESORT_TAINT, Selector},
    eligibility::{NetworkPolicy, VirtualNode},
    pod::StringMap,
};

type Strings = BTreeMap<String, String>;

/// The kinds that describe the cluster, with their groups.
const KINDS: &[(&str, &str)] =
    &[("", "Namespace"), ("", "ServiceAccount"), ("", "Node"), ("networking.k8s.io", "NetworkPolicy"), ("", "Service")];

/// Returns whether an object describes the cluster and is not a workload.
pub(super) fn is_cluster_object(document: &Document) -> bool {
    KINDS.iter().any(|(group, kind)| document.is(group, kind))
}

/// A namespace.
#[derive(Debug, Clone, Default)]
pub(super) struct Namespace {
    labels: Strings,
    pub(super) annotations: Strings,
}

impl Namespace {
    /// Returns the value of a label.
    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }
}

/// A service account.
#[derive(Debug, Clone, Copy)]
struct Account {
    /// The identity in its annotations.
    identity: ServiceAccount,
    /// `true` if its pods mount its token by default.
    mounts_token: bool,
}

/// The known part of a cluster.
pub(super) struct KnownCluster {
    /// The namespace of the flags, for namespaces without a document.
    assumed: Namespace,
    selector: Selector,
    namespaces: BTreeMap<String, Namespace>,
    /// By namespace (none: any) and name.
    service_accounts: BTreeMap<(Option<String>, String), Account>,
    virtual_nodes: Vec<VirtualNode>,
    /// Names of the virtual nodes that accept pods with Spillway's toleration.
    open: BTreeSet<String>,
    /// Names of the virtual nodes that the scheduler avoids while pods fit on VMs.
    last_resorts: BTreeSet<String>,
    /// By namespace (none: any).
    network_policies: BTreeMap<Option<String>, Vec<NetworkPolicy>>,
    /// Namespace (none: any) and name of each Service with a ClusterIP.
    services: Vec<(Option<String>, String)>,
    /// Number of pods on virtual nodes by namespace.
    pub(super) on_virtual: BTreeMap<String, usize>,
}

impl KnownCluster {
    /// Creates a cluster from the flags.
    pub(super) fn new(profile: &str, annotations: &[(String, String)], selector: &Selector) -> Self {
        let labels = Strings::from([(BURST_LABEL.to_owned(), profile.to_owned())]);
        let annotations = annotations.iter().cloned().collect();
        Self {
            assumed: Namespace { labels, annotations },
            selector: selector.clone(),
            namespaces: BTreeMap::new(),
            service_accounts: BTreeMap::new(),
            virtual_nodes: Vec::new(),
            open: BTreeSet::new(),
            last_resorts: BTreeSet::new(),
            network_policies: BTreeMap::new(),
            services: Vec::new(),
            on_virtual: BTreeMap::new(),
        }
    }

    /// Adds the documents that describe the cluster. Workloads are ignored.
    ///
    /// # Errors
    ///
    /// When a label, an annotation or another field has a type that differs from the API's.
    pub(super) fn add_documents(&mut self, documents: &[Document]) -> anyhow::Result<()> {
        for document in documents.iter().filter(|document| is_cluster_object(document)) {
            let Some(name) = document.name().map(str::to_owned) else { continue };
            match document.kind() {
                "Namespace" => self.add_namespace(name, document)?,
                "ServiceAccount" => {
                    let metadata = document.metadata()?;
                    let annotations = metadata.annotations.iter().flat_map(StringMap::iter);
                    let mounts_token = document.value.get("automountServiceAccountToken").and_then(Value::as_bool);
                    let account = Account {
                        identity: ServiceAccount::of_annotations(annotations),
                        mounts_token: mounts_token.unwrap_or(true),
                    };
                    self.service_accounts.insert((document.namespace().map(str::to_owned), name), account);
                }
                "Node" => self.add_node(name, document)?,
                "NetworkPolicy" => self.add_policy(document)?,
                "Service" if document.has_cluster_ip() => {
                    self.services.push((document.namespace().map(str::to_owned), name));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn add_namespace(&mut self, name: String, document: &Document) -> anyhow::Result<()> {
        let metadata = document.metadata()?;
        let labels = owned(metadata.labels.as_ref());
        let mut annotations = owned(metadata.annotations.as_ref());
        annotations.extend(self.assumed.annotations.clone());
        self.namespaces.insert(name, Namespace { labels, annotations });
        Ok(())
    }

    fn add_node(&mut self, name: String, document: &Document) -> anyhow::Result<()> {
        let labels: Vec<_> = owned(document.metadata()?.labels.as_ref()).into_iter().collect();
        let Selector { key, value } = &self.selector;
        if labels.iter().any(|(k, v)| (k, v) == (key, value)) {
            let taints = document.value.pointer("/spec/taints").and_then(Value::as_array);
            let keys: Vec<_> = taints.into_iter().flatten().filter_map(|taint| taint.get("key")?.as_str()).collect();
            if !keys.contains(&FULL_TAINT) && accepts_pods(&document.value) {
                self.open.insert(name.clone());
            }
            if keys.contains(&LAST_RESORT_TAINT) {
                self.last_resorts.insert(name.clone());
            }
            self.virtual_nodes.push(VirtualNode::new(name, labels));
        }
        Ok(())
    }

    fn add_policy(&mut self, document: &Document) -> anyhow::Result<()> {
        let policy: networking::NetworkPolicy = document.typed()?;
        let selector = policy.spec.and_then(|spec| spec.pod_selector).unwrap_or_default();
        let name = policy.metadata.name.unwrap_or_default();
        let policies = self.network_policies.entry(policy.metadata.namespace).or_default();
        policies.push(cluster::network_policy(name, selector));
        Ok(())
    }

    /// Returns a namespace. Without a document, returns the namespace of the flags.
    pub(super) fn namespace(&self, name: &str) -> &Namespace {
        self.namespaces.get(name).unwrap_or(&self.assumed)
    }

    fn account(&self, namespace: &str, name: &str) -> Option<Account> {
        let of = |namespace: Option<&str>| self.service_accounts.get(&(namespace.map(str::to_owned), name.to_owned()));
        of(Some(namespace)).or_else(|| of(None)).copied()
    }

    /// Returns the identity of a service account.
    pub(super) fn service_account(&self, namespace: &str, name: &str) -> ServiceAccount {
        self.account(namespace, name).map_or(ServiceAccount::Unknown, |account| account.identity)
    }

    /// Returns whether pods of a service account mount its token by default. Returns `true` for an unknown service
    /// account.
    pub(super) fn mounts_token(&self, namespace: &str, name: &str) -> bool {
        self.account(namespace, name).is_none_or(|account| account.mounts_token)
    }

    /// Returns the facts for a decision on a pod in this namespace. The policies are those of
    /// [`KnownCluster::policies`].
    pub(super) fn facts<'f>(
        &'f self,
        name: &'f str,
        namespace: &'f Namespace,
        service_account: ServiceAccount,
        network_policies: &'f [NetworkPolicy],
    ) -> burst::ClusterContext<'f> {
        burst::ClusterContext {
            service_account,
            namespace: name,
            virtual_nodes: &self.virtual_nodes,
            namespace_labels: &namespace.labels,
            namespace_annotations: &namespace.annotations,
            network_policies,
        }
    }

    /// Returns whether a virtual node is known, and so its generation.
    pub(super) fn knows_virtual_nodes(&self) -> bool {
        !self.virtual_nodes.is_empty()
    }

    /// Returns whether this is a virtual node.
    pub(super) fn is_virtual(&self, node: &str) -> bool {
        self.virtual_nodes.iter().any(|one| one.name == node)
    }

    /// Returns whether the scheduler avoids this virtual node while pods fit on VMs.
    pub(super) fn is_last_resort(&self, node: &str) -> bool {
        self.last_resorts.contains(node)
    }

    /// Returns whether virtual nodes exist, and all of them are closed by a cap or the breaker, cordoned, or not
    /// Ready.
    pub(super) fn are_virtual_nodes_closed(&self) -> bool {
        self.knows_virtual_nodes() && self.open.is_empty()
    }

    /// Returns the NetworkPolicies of a namespace, and NetworkPolicies without a namespace.
    pub(super) fn policies(&self, namespace: &str) -> Vec<NetworkPolicy> {
        let of = |namespace: Option<String>| self.network_policies.get(&namespace).into_iter().flatten().cloned();
        of(Some(namespace.to_owned())).chain(of(None)).collect()
    }

    /// Returns the names of the namespace's Services with a ClusterIP.
    pub(super) fn cluster_ips(&self, namespace: &str) -> Vec<&str> {
        let is_in_namespace = |of: &Option<String>| of.as_deref().is_none_or(|of| of == namespace);
        self.services.iter().filter(|(of, _)| is_in_namespace(of)).map(|(_, name)| name.as_str()).collect()
    }
}

/// Returns whether a node is Ready and not cordoned. A node without status, as in a file, counts as Ready.
fn accepts_pods(node: &Value) -> bool {
    let is_cordoned = node.pointer("/spec/unschedulable").and_then(Value::as_bool).unwrap_or_default();
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let is_ready = |condition: &Value| {
        let field = |name: &str| condition.get(name).and_then(Value::as_str);
        (field("type"), field("status")) == (Some("Ready"), Some("True"))
    };
    !is_cordoned && conditions.is_none_or(|conditions| conditions.iter().any(is_ready))
}

fn owned(map: Option<&StringMap<'_>>) -> Strings {
    map.into_iter().flat_map(StringMap::iter).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn virtual_nodes_are_closed_if_none_accepts_pods() {
        let is_closed = |changes: Value| {
            let mut node = json!({"apiVersion": "v1", "kind": "Node",
                "metadata": {"name": "v", "labels": {"type": "virtual-kubelet"}},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
            json_patch::merge(&mut node, &changes);
            let selector = crate::config::Configuration::default().virtual_nodes.selector;
            let mut cluster = KnownCluster::new("enabled", &[], &selector);
            cluster.add_documents(&[Document { source: "test".to_owned(), value: node }]).unwrap();
            cluster.are_virtual_nodes_closed()
        };
        assert!(!is_closed(json!({})));
        assert!(!is_closed(json!({"status": null})), "a manifest has no status");
        assert!(is_closed(json!({"spec": {"taints": [{"key": FULL_TAINT, "effect": "NoSchedule"}]}})));
        assert!(is_closed(json!({"spec": {"unschedulable": true}})));
        assert!(is_closed(json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})));
    }
}
