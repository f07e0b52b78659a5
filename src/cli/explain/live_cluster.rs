//! Reads the cluster: the workloads to explain, and the context of their pods.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use k8s_openapi::{
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        core::v1::{Namespace, Pod},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use serde_json::Value;

use crate::{
    burst::DECISION,
    certs::self_managed::WEBHOOK_CONFIGURATION_NAME,
    cli::{
        kube_client::{self, api_message, with_timeout, with_timeout_result},
        manifest::Document,
    },
    cluster::{GRACE, Reach, Scope, opted_in_since},
    config::{BURST_LABEL, Selector},
    kubernetes::{list, list_metadata},
};

/// The kinds with pods: kubectl's names, and group, version, kind, plural.
const KINDS: &[(&[&str], &str, &str, &str, &str)] = &[
    (&["pod", "pods", "po"], "", "v1", "Pod", "pods"),
    (&["deployment", "deployments", "deploy"], "apps", "v1", "Deployment", "deployments"),
    (&["statefulset", "statefulsets", "sts"], "apps", "v1", "StatefulSet", "statefulsets"),
    (&["replicaset", "replicasets", "rs"], "apps", "v1", "ReplicaSet", "replicasets"),
    (&["daemonset", "daemonsets", "ds"], "apps", "v1", "DaemonSet", "daemonsets"),
    (&["job", "jobs"], "batch", "v1", "Job", "jobs"),
    (&["cronjob", "cronjobs", "cj"], "batch", "v1", "CronJob", "cronjobs"),
];

/// A workload by kind and name, such as `deploy/web`.
#[derive(Debug, Clone)]
pub(super) struct Target {
    resource: ApiResource,
    name: String,
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = text.split_once('/').ok_or("expected KIND/NAME, such as deploy/web")?;
        let known = KINDS.iter().find(|(names, ..)| names.contains(&kind.to_lowercase().as_str()));
        let Some((_, group, version, kind, plural)) = known else {
            let names: Vec<_> = KINDS.iter().filter_map(|(names, ..)| names.first().copied()).collect();
            return Err(format!("unknown kind \"{kind}\", expected one of {}", names.join(", ")));
        };
        Ok(Self { resource: resource(group, version, kind, plural), name: name.to_owned() })
    }
}

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// The cluster of the kubeconfig.
pub(super) struct LiveCluster {
    client: Client,
    pub(super) namespace: String,
}

impl LiveCluster {
    /// Connects with a context of the kubeconfig, or with the current one.
    pub(super) async fn connect(context: Option<&str>, namespace: Option<&str>) -> anyhow::Result<Self> {
        let config = kube_client::config(context, "spillway").await?;
        let namespace = namespace.map_or_else(|| config.default_namespace.clone(), str::to_owned);
        Ok(Self { client: Client::try_from(config)?, namespace })
    }

    /// Returns the configuration of the installation. `None` if it cannot be read.
    pub(super) async fn configuration(&self) -> Option<String> {
        let map = resource("", "v1", "ConfigMap", "configmaps");
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), "spillway-system", &map);
        let found = with_timeout(api.get("spillway-config")).await.ok()?;
        found.data.get("data")?.get("config.yaml")?.as_str().map(str::to_owned)
    }

    /// Reads the workloads.
    pub(super) async fn workloads(&self, targets: &[Target]) -> anyhow::Result<Vec<Document>> {
        let mut documents = Vec::new();
        for Target { resource, name } in targets {
            let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.namespace, resource);
            let what = || format!("cannot get {} {name} in namespace {}", resource.kind, self.namespace);
            documents.push(document(resource, with_timeout(api.get(name)).await.with_context(what)?)?);
        }
        Ok(documents)
    }

    /// Returns the pods that the webhook missed, in one namespace or in all opted-in namespaces. Skips and reports pods
    /// whose matchConditions only the API server can evaluate.
    pub(super) async fn missed(&self, namespace: Option<&str>) -> anyhow::Result<Vec<Document>> {
        let webhooks: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let scope = match with_timeout_result(webhooks.get(WEBHOOK_CONFIGURATION_NAME)).await? {
            Ok(configuration) => Scope::read(configuration),
            Err(kube::Error::Api(status)) if status.is_not_found() => {
                bail!(
                    "MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION_NAME} does not exist: the API server does not call Spillway"
                )
            }
            Err(error) => {
                return Err(api_message(error))
                    .context(format!("cannot get MutatingWebhookConfiguration {WEBHOOK_CONFIGURATION_NAME}"));
            }
        };
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let mut opted_in = ListParams::default().labels(BURST_LABEL);
        if let Some(name) = namespace {
            opted_in = opted_in.fields(&format!("metadata.name={name}"));
        }
        let mut missed = Vec::new();
        let namespaces =
            list_metadata(&namespaces, opted_in, Some).await.map_err(api_message).context("cannot list namespaces")?;
        for namespace in namespaces {
            missed.extend(self.missed_of(&namespace, &scope).await?);
        }
        Ok(missed)
    }

    async fn missed_of(&self, namespace: &impl ResourceExt, scope: &Scope) -> anyhow::Result<Vec<Document>> {
        let name = namespace.name_any();
        // Without managedFields of the label, the age of the opt-in is unknown.
        let Some(since) = opted_in_since(namespace.meta()) else {
            eprintln!(
                "namespace {name}: the time of its label {BURST_LABEL} is not recorded, so the list has all its pods"
            );
            return self.undecided(&name, namespace.labels(), scope, Timestamp::MIN).await;
        };
        self.undecided(&name, namespace.labels(), scope, since.checked_add(GRACE).unwrap_or(since)).await
    }

    async fn undecided(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        scope: &Scope,
        since: Timestamp,
    ) -> anyhow::Result<Vec<Document>> {
        let resource = resource("", "v1", "Pod", "pods");
        let pods: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let missed = list(&pods, ListParams::default(), |pod| {
            let is_older = pod.metadata.creation_timestamp.as_ref().is_none_or(|created| created.0 < since);
            if is_older || pod.metadata.deletion_timestamp.is_some() || pod.annotations().contains_key(DECISION) {
                return None;
            }
            match scope.reaches(labels, pod.labels(), pod.annotations()) {
                Reach::Called => Some(document(&resource, pod)),
                Reach::NotCalled => None,
                Reach::Depends(condition) => {
                    let name = pod.name_any();
                    eprintln!(
                        "skipped pod {namespace}/{name}: only the API server can evaluate the matchCondition {condition}"
                    );
                    None
                }
            }
        });
        let missed = missed.await.map_err(api_message).with_context(|| format!("cannot list pods of {namespace}"))?;
        missed.into_iter().collect()
    }

    /// Reads the objects that decisions in these namespaces depend on.
    pub(super) async fn cluster_objects(
        &self,
        namespaces: &BTreeSet<String>,
        virtual_nodes: &Selector,
    ) -> anyhow::Result<ClusterObjects> {
        let mut found = ClusterObjects::default();
        let nodes = ListParams::default().labels(&String::from(virtual_nodes.clone()));
        self.list(None, resource("", "v1", "Node", "nodes"), &nodes, &mut found).await?;
        let virtual_nodes: Vec<_> = found.documents.iter().filter_map(Document::name).map(str::to_owned).collect();
        let resource_of_namespace = resource("", "v1", "Namespace", "namespaces");
        let all: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource_of_namespace);
        for name in namespaces {
            let namespace =
                with_timeout(all.get(name)).await.with_context(|| format!("cannot get namespace {name}"))?;
            found.documents.push(document(&resource_of_namespace, namespace)?);
            for resource in [
                resource("", "v1", "ServiceAccount", "serviceaccounts"),
                resource("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
                resource("", "v1", "Service", "services"),
            ] {
                self.list(Some(name), resource, &ListParams::default(), &mut found).await?;
            }
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), name);
            for node in &virtual_nodes {
                let of_node = ListParams::default().fields(&on(node));
                match list_metadata(&pods, of_node, Some).await {
                    Ok(there) => *found.on_virtual.entry(name.clone()).or_default() += there.len(),
                    Err(error) => found.add_unread("pods", &api_message(error)),
                }
            }
        }
        Ok(found)
    }

    async fn list(
        &self,
        namespace: Option<&str>,
        resource: ApiResource,
        params: &ListParams,
        found: &mut ClusterObjects,
    ) -> anyhow::Result<()> {
        let client = self.client.clone();
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        match list(&api, params.clone(), Some).await {
            Ok(objects) => {
                for object in objects {
                    found.documents.push(document(&resource, object)?);
                }
            }
            Err(error) => found.add_unread(&resource.plural, &api_message(error)),
        }
        Ok(())
    }
}

/// Returns the field selector of pods on a node, as the controller counts them. Terminating pods are included.
fn on(node: &str) -> String {
    format!("spec.nodeName={node},status.phase!=Succeeded,status.phase!=Failed")
}

/// The objects that decisions depend on.
#[derive(Default)]
pub(super) struct ClusterObjects {
    pub(super) documents: Vec<Document>,
    /// The kinds that could not be read, as plurals.
    pub(super) unread: Vec<String>,
    /// Number of pods on virtual nodes by namespace.
    pub(super) on_virtual: BTreeMap<String, usize>,
}

impl ClusterObjects {
    fn add_unread(&mut self, plural: &str, error: &anyhow::Error) {
        if !self.unread.iter().any(|unread| unread == plural) {
            eprintln!("ignored {plural}: {error}");
            self.unread.push(plural.to_owned());
        }
    }
}

/// Converts an object. Objects in a list have no kind, so it is added.
fn document(resource: &ApiResource, object: DynamicObject) -> anyhow::Result<Document> {
    let mut value = serde_json::to_value(object)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("kind".to_owned(), Value::from(resource.kind.as_str()));
        object.insert("apiVersion".to_owned(), Value::from(resource.api_version.as_str()));
    }
    Ok(Document { source: "cluster".to_owned(), value })
}
