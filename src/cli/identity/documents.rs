//! Reads a cluster from manifests.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::Hash,
    mem,
};

use anyhow::anyhow;
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    core::v1::{Endpoints, Node, Pod},
    discovery::v1::EndpointSlice,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::api::ObjectMeta;
use serde::Deserialize;

use crate::{
    cli::manifest::Document,
    identity::{
        Object, PodSpec, grants, is_v1_virtual_node,
        observation::{self, AnnotatedObject, Cluster, ServiceAccount, ServiceName, WebhookConfiguration},
        ready_endpoints,
    },
    kubernetes::PartialObject,
};

/// The fields of a Pod that the identity checks read.
type PodManifest = PartialObject<Pod, Option<PodSpec>, Option<PodPhase>>;

/// The fields of a Pod status that are read.
#[derive(Debug, Clone, Deserialize)]
struct PodPhase {
    phase: Option<String>,
}

/// The objects of the manifests, and the file of each object.
pub(super) struct Documents {
    /// The namespace of objects without one.
    namespace: String,
    cluster: Cluster,
    roles: Vec<ClusterRole>,
    bindings: Vec<ClusterRoleBinding>,
    files: HashMap<Object, String>,
    skipped: BTreeSet<String>,
}

impl Documents {
    pub(super) fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            cluster: Cluster::default(),
            roles: Vec::new(),
            bindings: Vec::new(),
            files: HashMap::new(),
            skipped: BTreeSet::new(),
        }
    }

    /// Adds documents.
    ///
    /// # Errors
    ///
    /// When a field has a type that differs from the API's. The error names file, object and path.
    pub(super) fn add(&mut self, documents: &[Document]) -> anyhow::Result<()> {
        documents.iter().try_for_each(|document| self.add_document(document))
    }

    fn add_document(&mut self, document: &Document) -> anyhow::Result<()> {
        let is = |group: &str, kind: &str| document.is(group, kind);
        if is("", "ServiceAccount") {
            let meta = self.metadata(document)?;
            self.record_file("ServiceAccount", document);
            self.cluster.service_accounts.push(ServiceAccount::from(&meta));
        } else if is("", "Namespace") {
            let meta = self.metadata(document)?;
            let namespace = observation::Namespace::from(&meta);
            self.cluster.namespaces.insert(meta.name.unwrap_or_default(), namespace);
        } else if is("", "Node") {
            let node: Node = document.typed()?;
            let name = node.metadata.name.clone().filter(|_| is_v1_virtual_node(&node.metadata));
            self.cluster.v1_virtual_nodes.extend(name);
        } else if is("", "Service") {
            let meta = self.metadata(document)?;
            self.record_file("Service", document);
            self.cluster.annotated_objects.extend(AnnotatedObject::from_metadata("Service", &meta));
        } else if is("admissionregistration.k8s.io", "MutatingWebhookConfiguration") {
            let configuration: MutatingWebhookConfiguration = document.typed()?;
            self.record_file("MutatingWebhookConfiguration", document);
            self.cluster.webhooks.get_or_insert_default().push(WebhookConfiguration::from(&configuration));
        } else if is("discovery.k8s.io", "EndpointSlice") {
            self.add_endpoints(ready_endpoints(&document.typed::<EndpointSlice>()?));
        } else if is("", "Endpoints") {
            let endpoints: Endpoints = document.typed()?;
            let ready = endpoints.subsets.iter().flatten().filter_map(|subset| Some(subset.addresses.as_ref()?.len()));
            let meta = &endpoints.metadata;
            let (namespace, name) = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
            self.add_endpoints(Some((ServiceName { namespace, name }, ready.sum())));
        } else if is("rbac.authorization.k8s.io", "ClusterRole") {
            self.roles.push(document.typed()?);
        } else if is("rbac.authorization.k8s.io", "ClusterRoleBinding") {
            self.bindings.push(document.typed()?);
        } else {
            self.add_pods(document)?;
        }
        Ok(())
    }

    fn add_endpoints(&mut self, ready: Option<(ServiceName, usize)>) {
        let all = self.cluster.endpoints.get_or_insert_default();
        if let Some((service, count)) = ready {
            *all.entry(service).or_default() += count;
        }
    }

    fn add_pods(&mut self, document: &Document) -> anyhow::Result<()> {
        let Some(template) = document.pod_template()? else {
            self.skipped.insert(document.kind().to_owned());
            return Ok(());
        };
        // Ignores the old ReplicaSets of a Deployment, and the Jobs of a CronJob.
        if template.kind != "Pod" && document.has_controller() {
            return Ok(());
        }
        let mut pod: PodManifest = template.typed()?;
        let namespace = template.namespace.clone().unwrap_or_else(|| self.namespace.clone());
        pod.metadata.namespace = Some(namespace.clone());
        let owner = Object::namespaced(&template.kind, &namespace, &template.name);
        self.files.insert(owner.clone(), document.source.clone());
        // Objects from the API server have a uid.
        if template.kind == "Pod" && pod.metadata.uid.is_some() {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            let running = pod.spec.as_ref().and_then(|spec| observation::Pod::running(&pod.metadata, spec, phase));
            self.cluster.pods.extend(running);
            return Ok(());
        }
        if template.kind != "Pod" {
            let meta = self.metadata(document)?;
            self.cluster.annotated_objects.extend(AnnotatedObject::from_metadata(&template.kind, &meta));
        }
        let spec = pod.spec.as_ref().ok_or_else(|| anyhow!("{}: expected spec", document.source))?;
        self.cluster.pods.push(observation::Pod::template(owner, &pod.metadata, spec));
        Ok(())
    }

    /// Decodes the metadata of an object.
    fn metadata(&self, document: &Document) -> anyhow::Result<ObjectMeta> {
        let read = document.metadata()?;
        let owned = |map: Option<&crate::pod::StringMap<'_>>| {
            map.map(|map| map.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>())
        };
        Ok(ObjectMeta {
            name: document.name().map(str::to_owned),
            namespace: Some(document.namespace().unwrap_or(&self.namespace).to_owned()),
            labels: owned(read.labels.as_ref()),
            annotations: owned(read.annotations.as_ref()),
            ..ObjectMeta::default()
        })
    }

    fn record_file(&mut self, kind: &str, document: &Document) {
        let name = document.name().unwrap_or_default();
        let object = match kind {
            "MutatingWebhookConfiguration" => Object::global(kind, name),
            _ => Object::namespaced(kind, document.namespace().unwrap_or(&self.namespace), name),
        };
        self.files.insert(object, document.source.clone());
    }

    /// Returns the cluster. The caller must call this only once.
    pub(super) fn cluster(&mut self) -> Cluster {
        if !self.skipped.is_empty() {
            let kinds: Vec<_> = mem::take(&mut self.skipped).into_iter().collect();
            eprintln!("skipped kinds without identities: {}", kinds.join(", "));
        }
        let mut cluster = mem::take(&mut self.cluster);
        keep_last(&mut cluster.service_accounts, |account| account.name.clone());
        keep_last(&mut cluster.pods, |pod| (pod.owner.clone(), pod.name.clone()));
        keep_last(&mut cluster.annotated_objects, |object| object.object.clone());
        if let Some(webhooks) = &mut cluster.webhooks {
            keep_last(webhooks, |configuration| configuration.name.clone());
        }
        let knows_grants = !self.roles.is_empty() || !self.bindings.is_empty();
        cluster.grants = knows_grants.then(|| grants(&self.roles, &self.bindings));
        cluster
    }

    /// Returns the file of an object.
    pub(super) fn file(&self, object: &Object) -> Option<&str> {
        self.files.get(object).map(String::as_str)
    }
}

/// Keeps the last of several objects with the same key.
fn keep_last<T, K: Eq + Hash>(all: &mut Vec<T>, key: impl Fn(&T) -> K) {
    let mut once = HashSet::new();
    all.reverse();
    all.retain(|one| once.insert(key(one)));
    all.reverse();
}
