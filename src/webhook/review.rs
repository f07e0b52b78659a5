//! Handles the AdmissionReview of a pod.
//!
//! After every failure, the response admits the pod unchanged. If the body has no readable UID, the response is a 4xx,
//! and the webhook's `failurePolicy: Ignore` admits the pod.

use std::sync::Arc;

use axum::{
    extract::{self, State},
    response::Response,
};

use super::{
    app::App,
    body,
    extras::response_extras,
    fail_open::{self, json_response},
};
use crate::{
    admission::{self, Request, ResponseExtras},
    burst::{self, Added, Decision, Outcome, Part, ServiceAccount, Verdict},
    cluster::Lookup,
    config::{Configuration, Overrides, Settings},
    excerpt::{self, excerpt},
    pod::Pod,
    telemetry::Resource,
};

/// `POST /mutate-v1-pod`
pub(super) async fn mutate_pod(State(app): State<Arc<App>>, request: extract::Request) -> Response {
    body::serve(&app, request, Resource::Pods, fail_open::POD_REVIEW_TIMEOUT, async |body| {
        match admission::parse(body) {
            Ok(request) => json_response(respond(&app, &request).await),
            Err(why) => body::respond_to_unusable(&app, body, &why),
        }
    })
    .await
}

async fn respond(app: &App, request: &Request<'_>) -> Vec<u8> {
    // A reload must not change the configuration during a decision.
    let configuration = app.configuration.borrow().clone();
    if let Some(old) = &request.old {
        return respond_to_update(app, &configuration, request, old);
    }
    let Some(namespace) = app.cluster.namespace(&request.namespace).await else {
        app.metrics.namespace_missed();
        app.metrics.decided(Resource::Pods, "none");
        tracing::warn!(
            uid = &*request.uid,
            namespace = &*request.namespace,
            "namespace not in the cache, admitting the pod unchanged"
        );
        return admission::allow(&request.uid, None, &ResponseExtras::default());
    };
    let pod = &request.pod;
    let overrides = Overrides::read(pod.annotations());
    let settings = configuration.settings(&namespace.profile, &namespace.overrides, &overrides);
    let service_account = look_up_service_account(app, request, settings.as_known()).await;
    let snapshot = app.cluster.snapshot();
    let context = snapshot.cluster_context(&request.namespace, &namespace, service_account);
    let decision = burst::decide(pod, &settings, &context);
    let patch = burst::json_patch(pod, &decision).as_ref().map(admission::encode);
    record_decision(app, request, settings.as_known(), &decision);
    app.metrics.patched(patch.as_deref());
    admission::allow(&request.uid, patch.as_deref(), &response_extras(request, settings.as_known(), &decision))
}

/// Restores the fields that a second `kubectl apply` of a bare pod removed.
fn respond_to_update(app: &App, configuration: &Configuration, request: &Request<'_>, old: &Pod<'_>) -> Vec<u8> {
    let Some(patch) = burst::restore(&request.pod, old, &configuration.virtual_nodes) else {
        app.metrics.decided(Resource::Pods, "none");
        return admission::allow(&request.uid, None, &ResponseExtras::default());
    };
    app.metrics.decided(Resource::Pods, "restore");
    let added = excerpt(Added::text(old), excerpt::DETAIL).into_owned();
    tracing::info!(
        uid = &*request.uid,
        namespace = &*request.namespace,
        pod = request.pod.metadata.name.as_deref(),
        restored = added,
        dry_run = request.dry_run,
        "pod restored",
    );
    let patch = admission::encode(&patch);
    app.metrics.patched(Some(&patch));
    let extras = ResponseExtras { warnings: Vec::new(), audit_annotations: vec![("restored", added)] };
    admission::allow(&request.uid, Some(&patch), &extras)
}

/// Looks up the service account if the decision needs it. After a failure, the pod does not get the identity label, and
/// a metric counts the failure.
async fn look_up_service_account(app: &App, request: &Request<'_>, settings: Option<&Settings<'_>>) -> ServiceAccount {
    let Request { uid, namespace, pod, .. } = request;
    if !settings.is_some_and(|settings| burst::needs_service_account(pod, settings)) {
        return ServiceAccount::Unknown;
    }
    let name = pod.service_account();
    match app.cluster.service_account(namespace, name).await {
        Lookup::Cached(known) => known,
        Lookup::Read(Ok(known)) => {
            app.metrics.service_account_looked_up("found");
            known
        }
        Lookup::Read(Err(error)) => {
            app.metrics.service_account_looked_up(error.result());
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                uid = &**uid,
                namespace = &**namespace,
                name,
                error,
                "cannot get the service account, not adding the identity label"
            );
            ServiceAccount::Unknown
        }
    }
}

/// Counts the decision and logs one line.
fn record_decision(app: &App, request: &Request<'_>, settings: Option<&Settings<'_>>, decision: &Decision<'_>) {
    let word = match &decision.verdict {
        Verdict::Burst(mode) => mode.as_str(),
        Verdict::Stay(findings) => {
            for finding in findings {
                app.metrics.stays(finding.reason.code);
            }
            "stay"
        }
        Verdict::OptedOut => "opted_out",
    };
    app.metrics.decided(Resource::Pods, word);
    for finding in &decision.notes {
        app.metrics.notes(finding.reason.code);
    }
    let ignored = settings.map_or(0, |settings| settings.ignored.len());
    if ignored > 0 {
        app.metrics.overrides_ignored(ignored);
    }
    if !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    let list = |outcome| decision.parts(outcome).map(Part::as_str).collect::<Vec<_>>().join(",");
    let withdrawn = list(Outcome::Withdrawn);
    let notes: Vec<_> = decision.notes.iter().map(|finding| finding.reason.code).collect();
    let metadata = &request.pod.metadata;
    tracing::info!(
        uid = &*request.uid,
        namespace = &*request.namespace,
        pod = metadata.name.as_deref().or(metadata.generate_name.as_deref()),
        decision = %decision.verdict,
        added = list(Outcome::Added),
        withdrawn = (!withdrawn.is_empty()).then_some(withdrawn),
        notes = (!notes.is_empty()).then(|| notes.join(",")),
        ignored_overrides = (ignored > 0).then_some(ignored),
        dry_run = request.dry_run,
        "pod reviewed",
    );
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use axum::{
        Router,
        body::{Body, Bytes, to_bytes},
        http::{self, Request as HttpRequest, StatusCode, header},
    };
    use tokio::{
        sync::watch,
        time::{self, Instant},
    };
    use tower::ServiceExt;

    use super::{
        super::body_limits::{BODY_READ_TIMEOUT, LARGE_BODY_PERMITS, MAX_BODY_BYTES},
        *,
    };
    use crate::{
        cluster::Cluster,
        telemetry::{AdmissionMetrics, CacheMetrics},
    };

    /// Returns an app whose API server never responds, and its routes.
    fn app() -> (Arc<App>, Router) {
        let never = tower::service_fn(|_: HttpRequest<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, Infallible>>()
        });
        let (_, configuration) = watch::channel(Arc::default());
        let client = kube::Client::new(never, "default");
        let cluster = Cluster::follow(client, configuration.clone(), &CacheMetrics::default());
        let app = Arc::new(App::new(configuration, cluster, AdmissionMetrics::default()));
        (app.clone(), super::super::routes(app))
    }

    fn post(body: Body) -> HttpRequest<Body> {
        HttpRequest::post("/mutate-v1-pod").header(header::CONTENT_TYPE, "application/json").body(body).unwrap()
    }

    const REVIEW: &str = r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u-1",
        "kind":{"group":"","version":"v1","kind":"Pod"},"operation":"CREATE","namespace":"shop",
        "object":{"metadata":{},"spec":{"containers":[]}}}}"#;

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_times_out_before_the_api_server_does() {
        let (_app, routes) = app();
        let trickle = futures_util::stream::unfold((), async |()| {
            time::sleep(Duration::from_millis(100)).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), ()))
        });
        let start = Instant::now();
        let response = routes.oneshot(post(Body::from_stream(trickle))).await.unwrap();
        assert_eq!((response.status(), start.elapsed()), (StatusCode::REQUEST_TIMEOUT, BODY_READ_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn large_bodies_that_never_arrive_do_not_block_small_ones() {
        let (_app, routes) = app();
        for _ in 0..16 {
            let never = Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>());
            let mut request = post(never);
            request.headers_mut().insert(header::CONTENT_LENGTH, MAX_BODY_BYTES.into());
            tokio::spawn(routes.clone().oneshot(request));
        }
        time::sleep(Duration::from_millis(1)).await;
        let mut request = post(REVIEW.into());
        request.headers_mut().insert(header::CONTENT_LENGTH, REVIEW.len().into());
        let start = Instant::now();
        let response = routes.oneshot(request).await.unwrap();
        assert_eq!(
            (response.status(), start.elapsed().as_millis()),
            (StatusCode::OK, 100),
            "only the wait for the namespace"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_served_after_a_panic() {
        let (app, routes) = app();
        let panics = async {
            let _seen = app.cluster.snapshot();
            let _permit = app.large_body_permits.acquire_many(u32::try_from(LARGE_BODY_PERMITS).unwrap()).await;
            panic!("a bug")
        };
        fail_open::respond_in_time(
            &app.metrics,
            Resource::Pods,
            REVIEW.as_bytes(),
            Instant::now() + fail_open::POD_REVIEW_TIMEOUT,
            panics,
        )
        .await;
        let start = Instant::now();
        let response = routes.oneshot(post(REVIEW.into())).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(start.elapsed().as_millis(), 100, "waited for the namespace only");
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains(r#""uid":"u-1","allowed":true"#));
    }
}
