//! Reading the cluster: the workloads that are asked about, and what decisions on their pods rest on.

use anyhow::Context;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use serde_json::Value;

use crate::{
    cli::{
        cluster::{self, patiently},
        manifest::Document,
    },
    config::Selector,
};

/// Kinds that make pods: what kubectl calls them, and group, version, kind, plural.
const KINDS: &[(&[&str], &str, &str, &str, &str)] = &[
    (&["pod", "pods", "po"], "", "v1", "Pod", "pods"),
    (&["deployment", "deployments", "deploy"], "apps", "v1", "Deployment", "deployments"),
    (&["statefulset", "statefulsets", "sts"], "apps", "v1", "StatefulSet", "statefulsets"),
    (&["replicaset", "replicasets", "rs"], "apps", "v1", "ReplicaSet", "replicasets"),
    (&["daemonset", "daemonsets", "ds"], "apps", "v1", "DaemonSet", "daemonsets"),
    (&["job", "jobs"], "batch", "v1", "Job", "jobs"),
    (&["cronjob", "cronjobs", "cj"], "batch", "v1", "CronJob", "cronjobs"),
];

/// A workload by kind and name, as `deploy/web`.
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

/// A cluster, as kubectl finds it.
pub(super) struct Live {
    client: Client,
    pub(super) namespace: String,
}

impl Live {
    /// Connects with a kubeconfig's context, or with the current one.
    pub(super) async fn connect(context: Option<&str>, namespace: Option<&str>) -> anyhow::Result<Self> {
        let config = cluster::find(context).await?;
        let namespace = namespace.map_or_else(|| config.default_namespace.clone(), str::to_owned);
        Ok(Self { client: Client::try_from(config)?, namespace })
    }

    /// The configuration that the installation runs with; nothing when it cannot be read.
    pub(super) async fn configuration(&self) -> Option<String> {
        let map = resource("", "v1", "ConfigMap", "configmaps");
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), "spillway-system", &map);
        let found = patiently(api.get("spillway-config")).await.ok()?;
        found.data.get("data")?.get("config.yaml")?.as_str().map(str::to_owned)
    }

    /// The workloads.
    pub(super) async fn workloads(&self, targets: &[Target]) -> anyhow::Result<Vec<Document>> {
        let mut documents = Vec::new();
        for Target { resource, name } in targets {
            let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.namespace, resource);
            let what = || format!("cannot get {} {name} in namespace {}", resource.kind, self.namespace);
            documents.push(document(resource, patiently(api.get(name)).await.with_context(what)?)?);
        }
        Ok(documents)
    }

    /// What decisions in this namespace rest on, and the kinds of it that could not be read, by their plurals.
    pub(super) async fn surroundings(&self, virtual_nodes: &Selector) -> anyhow::Result<(Vec<Document>, Vec<String>)> {
        let namespace = resource("", "v1", "Namespace", "namespaces");
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &namespace);
        let found = patiently(api.get(&self.namespace)).await;
        let mut documents =
            vec![document(&namespace, found.with_context(|| format!("cannot get namespace {}", self.namespace))?)?];
        let mut unread = Vec::new();
        let nodes = ListParams::default().labels(&String::from(virtual_nodes.clone()));
        for (resource, is_namespaced, params) in [
            (resource("", "v1", "ServiceAccount", "serviceaccounts"), true, ListParams::default()),
            (resource("", "v1", "Node", "nodes"), false, nodes),
            (resource("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"), true, ListParams::default()),
            (resource("", "v1", "Service", "services"), true, ListParams::default()),
        ] {
            let client = self.client.clone();
            let api: Api<DynamicObject> = if is_namespaced {
                Api::namespaced_with(client, &self.namespace, &resource)
            } else {
                Api::all_with(client, &resource)
            };
            match patiently(api.list(&params)).await {
                Ok(list) => {
                    for object in list {
                        documents.push(document(&resource, object)?);
                    }
                }
                Err(error) => {
                    eprintln!("not taken into account: {} ({error})", resource.plural);
                    unread.push(resource.plural);
                }
            }
        }
        Ok((documents, unread))
    }
}

/// Objects of a list do not say their kind.
fn document(resource: &ApiResource, object: DynamicObject) -> anyhow::Result<Document> {
    let mut value = serde_json::to_value(object)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("kind".to_owned(), Value::from(resource.kind.as_str()));
        object.insert("apiVersion".to_owned(), Value::from(resource.api_version.as_str()));
    }
    Ok(Document { source: "cluster".to_owned(), value })
}
