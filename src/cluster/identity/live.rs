//! Lists the current objects of a cluster, for the command line.

use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration, core::v1 as core, rbac::v1::ClusterRole,
};
use kube::{
    Api, Client, Resource,
    api::{ListParams, PartialObjectMeta},
    core::NamespaceResourceScope,
};

use super::{
    super::{
        inventory::services,
        node::{Node, NodeObject},
        pod::identity_part,
    },
    inputs::{Endpoints, Inputs, binding, ready, role, slices_of},
};
use crate::{
    identity::{
        managed_identity::ReadFailure,
        observation::{Cluster, Namespace, Pod, ServiceAccount, WebhookConfiguration},
    },
    kubernetes::{Object, ObjectKey, Refusal, Store, list},
};

/// The label of first-generation virtual nodes. Second-generation nodes may have it too.
const V1_VIRTUAL_NODES: &str = "type=virtual-kubelet";

/// The current state of a cluster.
#[derive(Debug)]
pub struct Live {
    /// The cluster. Kinds that the API server forbids to list are absent, not empty.
    pub cluster: Cluster,
    /// The lists that the API server forbids.
    pub refused: Vec<ReadFailure>,
}

/// Reads a cluster. With a namespace, reads only the service accounts and pods of that namespace, and marks the cluster
/// as incomplete.
///
/// # Errors
///
/// When a list fails. A forbidden list is not an error.
pub async fn read(client: &Client, namespace: Option<&str>) -> kube::Result<Live> {
    let all = ListParams::default;
    let service_account =
        |account: PartialObjectMeta<core::ServiceAccount>| Some(ServiceAccount::from(&account.metadata));
    let of_namespace = |namespace: PartialObjectMeta<core::Namespace>| Some(Namespace::from(&namespace.metadata));
    let webhook = |configuration: MutatingWebhookConfiguration| Some(WebhookConfiguration::from(&configuration));
    let v1_virtual_nodes = all().labels(V1_VIRTUAL_NODES);
    let (accounts, pods, namespaces, v1_virtual_nodes, webhooks) = tokio::try_join!(
        store("serviceaccounts", scoped(client, namespace), all(), namespace, service_account),
        store("pods", scoped(client, namespace), all(), namespace, |pod| identity_part(&pod)),
        store("namespaces", Api::all(client.clone()), all(), None, of_namespace),
        store("nodes", Api::all(client.clone()), v1_virtual_nodes, None, v1_virtual_node),
        store("mutatingwebhookconfigurations", Api::all(client.clone()), all(), None, webhook),
    )?;
    let mut endpoints = Endpoints::new();
    for service in services(webhooks.values()) {
        let (api, params) = (Api::namespaced(client.clone(), &service.namespace), all().labels(&slices_of(&service)));
        let namespace = Some(service.namespace.as_str());
        let slices = store("endpointslices", api, params, namespace, |slice| ready(&slice)).await?;
        endpoints.insert(service, slices);
    }
    let uses_bindings = pods.values().any(Pod::uses_binding);
    let (roles, bindings) = if uses_bindings {
        tokio::try_join!(
            store("clusterroles", Api::<ClusterRole>::all(client.clone()), all(), None, role),
            store("clusterrolebindings", Api::all(client.clone()), all(), None, |one| Some(binding(one))),
        )?
    } else {
        Default::default()
    };
    let inputs = Inputs {
        accounts: accounts.listing(),
        pods: pods.listing(),
        namespaces: namespaces.listing(),
        v1_virtual_nodes: v1_virtual_nodes.listing(),
        webhooks: webhooks.listing(),
        endpoints: &endpoints,
        roles: roles.listing(),
        bindings: bindings.listing(),
    };
    let mut cluster = inputs.cluster();
    cluster.is_complete &= namespace.is_none();
    Ok(Live { cluster, refused: inputs.refused() })
}

fn v1_virtual_node(node: NodeObject) -> Option<()> {
    Node::read(node)?.is_first_generation().then_some(())
}

fn scoped<K: Object + Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
    client: &Client,
    namespace: Option<&str>,
) -> Api<K> {
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Lists the objects of a kind. A forbidden list is a result, not an error.
async fn store<K: Object, V>(
    resource: &'static str,
    api: Api<K>,
    params: ListParams,
    namespace: Option<&str>,
    read: impl Fn(K) -> Option<V>,
) -> kube::Result<Store<V>> {
    let listed = list(&api, params, |object| {
        let key = ObjectKey::of(&object);
        Some((key, read(object)?))
    });
    match listed.await {
        Ok(all) => Ok(all.into_iter().collect()),
        Err(error) => Refusal::of(&error, resource, namespace).map(Store::Refused).ok_or(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use axum::http;
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// An API server that responds by path and query, and records the requests.
    fn server(
        response: impl Fn(&str, &str) -> (u16, Value) + Send + Sync + 'static,
    ) -> (Client, Arc<Mutex<Vec<String>>>) {
        let (requests, response) = (Arc::new(Mutex::new(Vec::new())), Arc::new(response));
        let recorded = requests.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let (recorded, response) = (recorded.clone(), response.clone());
            async move {
                let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
                recorded.lock().unwrap().push(format!("{path}?{query}"));
                let (status, body) = response(path, query);
                let body = Body::from(body.to_string().into_bytes());
                Ok::<_, Infallible>(http::Response::builder().status(status).body(body).unwrap())
            }
        });
        (Client::new(service, "default"), requests)
    }

    fn page(items: impl Into<Value>, next: &str) -> (u16, Value) {
        (200, json!({"metadata": {"resourceVersion": "1", "continue": next}, "items": items.into()}))
    }

    fn failure(code: u16, reason: &str) -> (u16, Value) {
        (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": ""}))
    }

    fn account(name: &str) -> Value {
        json!([{"metadata": {"namespace": "shop", "name": name, "annotations": {"azure.workload.identity/client-id": "x"}}}])
    }

    #[tokio::test]
    async fn an_expired_list_starts_over() {
        let expired = Mutex::new(true);
        let (client, requests) = server(move |path, query| match (path, query.contains("continue=")) {
            ("/api/v1/serviceaccounts", false) => page(account("a"), "more"),
            ("/api/v1/serviceaccounts", true) if std::mem::take(&mut *expired.lock().unwrap()) => {
                failure(410, "Expired")
            }
            ("/api/v1/serviceaccounts", true) => page(account("b"), ""),
            _ => page(json!([]), ""),
        });
        let Live { cluster, refused } = read(&client, None).await.unwrap();
        let names: Vec<_> = cluster.service_accounts.iter().map(|account| account.name.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(cluster.is_complete && refused.is_empty());
        let requests = requests.lock().unwrap();
        assert_eq!(requests.iter().filter(|request| request.starts_with("/api/v1/serviceaccounts?")).count(), 4);
        assert!(requests.iter().all(|request| request.contains("limit=250")), "{requests:?}");
        assert!(
            !requests.iter().any(|request| request.contains("endpointslices") || request.contains("rbac")),
            "{requests:?}"
        );
    }

    #[tokio::test]
    async fn forbidden_lists_are_absent_and_reported() {
        let (client, _) = server(|path, _| match path {
            "/api/v1/nodes" | "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations" => {
                failure(403, "Forbidden")
            }
            "/api/v1/namespaces/shop/serviceaccounts" => page(account("a"), ""),
            _ => page(json!([]), ""),
        });
        let Live { cluster, refused } = read(&client, Some("shop")).await.unwrap();
        assert_eq!((cluster.service_accounts.len(), cluster.is_complete), (1, false), "one namespace only");
        assert!(cluster.webhooks.is_none());
        let said: Vec<_> = refused.iter().map(|unread| format!("{}: {}", unread.action, unread.reason)).collect();
        assert_eq!(said, ["list nodes: 403 Forbidden", "list mutatingwebhookconfigurations: 403 Forbidden"]);

        let (client, _) = server(|_, _| failure(500, "InternalError"));
        assert!(read(&client, None).await.is_err());
    }

    #[tokio::test]
    async fn only_needed_endpoints_and_roles_are_read() {
        let (client, requests) = server(|path, _| match path {
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations" => {
                let webhook = |name: &str, label: &str| {
                    json!({"name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
                        "objectSelector": {"matchLabels": {label: "true"}},
                        "clientConfig": {"service": {"namespace": "kube-system", "name": name}}})
                };
                let webhooks = [webhook("wi", "azure.workload.identity/use"), webhook("other", "inject")];
                page(json!([{"metadata": {"name": "all"}, "webhooks": webhooks}]), "")
            }
            "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices" => {
                let meta =
                    json!({"namespace": "kube-system", "name": "wi-1", "labels": {"kubernetes.io/service-name": "wi"}});
                page(json!([{"metadata": meta, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]}]), "")
            }
            "/api/v1/pods" => {
                let annotations = json!({"azure.workload.identity/use-identity-binding": "true"});
                page(
                    json!([{"metadata": {"namespace": "a", "name": "a", "annotations": annotations}, "spec": {"containers": []}}]),
                    "",
                )
            }
            _ => page(json!([]), ""),
        });
        let cluster = read(&client, None).await.unwrap().cluster;
        let wi =
            crate::identity::observation::ServiceName { namespace: "kube-system".to_owned(), name: "wi".to_owned() };
        assert_eq!(cluster.endpoints, Some([(wi, 1)].into()));
        assert!(cluster.grants.is_some());
        let requests = requests.lock().unwrap();
        let slices: Vec<_> = requests.iter().filter(|request| request.contains("endpointslices")).collect();
        assert!(matches!(slices.as_slice(), [one] if one.contains("service-name%3Dwi")), "{slices:?}");
    }
}
