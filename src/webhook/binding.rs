//! Handles the Binding of a pod to a node. Annotations on a Binding to a virtual node make scale-in delete that pod
//! first.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{self, State},
    response::Response,
};
use json_patch::Patch as JsonPatch;

use super::{app::App, body, fail_open::json_response};
use crate::{
    admission::{self, BindingRequest, ResponseExtras},
    burst::{DELETION_COST, binding_patch},
    config::{BURST_LABEL, DISABLED},
    telemetry::Resource,
};

/// Time from the end of the request headers to the response. The API server's timeout of one second (`timeoutSeconds`)
/// starts before it connects. Reading the pod takes at most 500 ms.
const BINDING_REVIEW_TIMEOUT: Duration = Duration::from_millis(750);

/// `POST /mutate-v1-binding`
pub(super) async fn mutate_binding(State(app): State<Arc<App>>, request: extract::Request) -> Response {
    body::serve(&app, request, Resource::Bindings, BINDING_REVIEW_TIMEOUT, async |body| match admission::parse_binding(
        body,
    ) {
        Ok(request) => json_response(respond(&app, &request).await),
        Err(why) => body::respond_to_unusable(&app, body, &why),
    })
    .await
}

async fn respond(app: &App, request: &BindingRequest<'_>) -> Vec<u8> {
    let (decision, patch) = decide_binding(app, request).await;
    app.metrics.decided(Resource::Bindings, decision);
    let patch = patch.as_ref().map(admission::encode);
    app.metrics.patched(patch.as_deref());
    admission::allow(&request.uid, patch.as_deref(), &ResponseExtras::default())
}

/// Returns the `decision` label of the metric, and the patch.
async fn decide_binding(app: &App, request: &BindingRequest<'_>) -> (&'static str, Option<JsonPatch>) {
    let BindingRequest { uid, namespace, pod, dry_run, binding } = request;
    let snapshot = app.cluster.snapshot();
    let node = binding.node().filter(|node| snapshot.virtual_nodes().iter().any(|known| known.name == *node));
    let Some(node) = node else { return ("none", None) };
    // A Binding does not have the labels and annotations of its pod. The pod may be opted out, or have a deletion cost
    // that the Binding would overwrite. So the Binding stays unchanged if the pod cannot be read.
    let metadata = match app.cluster.pod(namespace, pod).await {
        Ok(metadata) => {
            app.metrics.pod_looked_up("found");
            metadata
        }
        Err(error) => {
            app.metrics.pod_looked_up(error.result());
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                uid = &**uid,
                namespace = &**namespace,
                pod = &**pod,
                error,
                "cannot get the pod, leaving the binding unchanged"
            );
            return ("unknown", None);
        }
    };
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(BURST_LABEL));
    if label.is_some_and(|label| label == DISABLED) {
        return ("opted_out", None);
    }
    let has_cost = metadata.annotations.is_some_and(|annotations| annotations.contains_key(DELETION_COST));
    let cost = app.configuration.borrow().scale_in.deletion_cost;
    tracing::info!(
        uid = &**uid,
        namespace = &**namespace,
        pod = &**pod,
        node,
        keeps_its_cost = has_cost.then_some(true),
        dry_run,
        "pod bound to a virtual node",
    );
    ("virtual", binding_patch(binding, has_cost, cost))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::{
        Router,
        body::{Body, to_bytes},
        http::{self, Request, header},
    };
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde_json::{Value, json};
    use tokio::{
        sync::watch,
        time::{Instant, timeout},
    };
    use tower::ServiceExt;

    use super::*;
    use crate::{
        cluster::Cluster,
        kubernetes::testing::NO_STREAMED_LISTS,
        telemetry::{AdmissionMetrics, CacheMetrics},
    };

    /// An API server with the virtual node `virtual`. It responds to requests for the pod with `pod`, or never.
    fn api_server(pod: Option<(u16, Value)>) -> kube::Client {
        let response = move |request: http::Request<kube::client::Body>| {
            let pod = pod.clone();
            async move {
                let query = request.uri().query().unwrap_or_default();
                let (status, body) = match request.uri().path() {
                    _ if query.contains("sendInitialEvents=true") => (422, NO_STREAMED_LISTS.clone()),
                    _ if query.contains("watch=true") => return std::future::pending().await,
                    "/api/v1/nodes" => (
                        200,
                        json!({"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "virtual"}}]}),
                    ),
                    "/api/v1/namespaces/shop/pods/web" => match pod {
                        Some(pod) => pod,
                        None => return std::future::pending().await,
                    },
                    _ => (200, json!({"metadata": {"resourceVersion": "1"}, "items": []})),
                };
                let body = kube::client::Body::from(body.to_string().into_bytes());
                Ok::<_, Infallible>(http::Response::builder().status(status).body(body).unwrap())
            }
        };
        kube::Client::new(tower::service_fn(response), "default")
    }

    async fn routes(pod: Option<(u16, Value)>) -> (Arc<App>, Router) {
        let (_, configuration) = watch::channel(Arc::default());
        let cluster = Cluster::follow(api_server(pod), configuration.clone(), &CacheMetrics::default());
        let app = Arc::new(App::new(configuration, cluster, AdmissionMetrics::default()));
        while app.cluster.snapshot().virtual_nodes().is_empty() {
            tokio::task::yield_now().await;
        }
        (app.clone(), super::super::routes(app))
    }

    /// Returns the annotations that the patch adds to the Binding.
    async fn annotations(routes: Router, node: &str) -> Option<Value> {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
                "uid": "u", "kind": {"group": "", "version": "v1", "kind": "Binding"},
                "resource": {"group": "", "version": "v1", "resource": "pods"}, "subResource": "binding",
                "name": "web", "namespace": "shop", "operation": "CREATE",
                "object": {"metadata": {"name": "web", "namespace": "shop"}, "target": {"kind": "Node", "name": node}},
            },
        });
        let request = Request::post("/mutate-v1-binding").header(header::CONTENT_TYPE, "application/json");
        let response = routes.oneshot(request.body(Body::from(review.to_string())).unwrap()).await.unwrap();
        let response: Value =
            serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap();
        assert_eq!((&response["response"]["uid"], &response["response"]["allowed"]), (&"u".into(), &true.into()));
        let patch = STANDARD.decode(response["response"]["patch"].as_str()?).unwrap();
        let mut binding = review["request"]["object"].clone();
        json_patch::patch(&mut binding, &serde_json::from_slice::<json_patch::Patch>(&patch).unwrap()).unwrap();
        Some(binding["metadata"]["annotations"].clone())
    }

    fn pod(metadata: &Value) -> (u16, Value) {
        (200, json!({"metadata": metadata}))
    }

    #[tokio::test(start_paused = true)]
    async fn only_bindings_to_virtual_nodes_are_annotated() {
        let (_app, routes) = routes(Some(pod(&json!({})))).await;
        let marks = json!({DELETION_COST: "-100", crate::burst::PLACED_ON: "virtual"});
        assert_eq!(annotations(routes, "virtual").await, Some(marks));
        // The API server never returns this pod, so a read of the pod would time out.
        let (_app, routes) = self::routes(None).await;
        let response = timeout(Duration::from_millis(1), annotations(routes, "vm")).await;
        assert_eq!(response.ok(), Some(None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_existing_deletion_cost_is_kept() {
        let (_app, routes) = routes(Some(pod(&json!({"annotations": {DELETION_COST: "5"}})))).await;
        assert_eq!(annotations(routes, "virtual").await, Some(json!({crate::burst::PLACED_ON: "virtual"})));
    }

    #[tokio::test(start_paused = true)]
    async fn the_binding_of_an_opted_out_pod_is_unchanged() {
        let (_app, routes) = routes(Some(pod(&json!({"labels": {BURST_LABEL: DISABLED}})))).await;
        assert_eq!(annotations(routes, "virtual").await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_binding_is_unchanged_if_its_pod_is_not_read_in_500_ms() {
        let forbidden =
            json!({"kind": "Status", "code": 403, "message": "", "reason": "Forbidden", "status": "Failure"});
        for (pod, waits) in [(None, 500), (Some((403, forbidden)), 0)] {
            let (_app, routes) = routes(pod).await;
            let start = Instant::now();
            assert_eq!(annotations(routes, "virtual").await, None);
            assert_eq!(start.elapsed().as_millis(), waits);
        }
    }
}
