//! One AdmissionReview, from body to answer: read, look up, decide, write, count.
//!
//! Whatever goes wrong, the pod is admitted unchanged. A body from which not even a UID can be read gets a 4xx, which the
//! webhook's `failurePolicy: Ignore` turns into the same.

use std::sync::Arc;

use axum::{
    extract::{self, State},
    response::Response,
};

use super::{
    App, body,
    guard::{self, json},
    remarks,
};
use crate::{
    admission::{self, Remarks, Request},
    burst::{self, Decision, Outcome, Part, ServiceAccount, Verdict},
    cluster::Lookup,
    config::{Configuration, Overrides, Settings},
    pod::Pod,
    telemetry::Resource,
};

/// `POST /mutate-v1-pod`
pub(super) async fn mutate_pod(State(app): State<Arc<App>>, request: extract::Request) -> Response {
    body::serve(&app, request, Resource::Pods, guard::BUDGET, async |body| match admission::parse(body) {
        Ok(request) => json(answer(&app, &request).await),
        Err(why) => body::unusable(&app, body, &why),
    })
    .await
}

async fn answer(app: &App, request: &Request<'_>) -> Vec<u8> {
    // Taken once: what is decided here rests on one configuration.
    let configuration = app.configuration.borrow().clone();
    if let Some(old) = &request.old {
        return answer_update(app, &configuration, request, old);
    }
    let Some(namespace) = app.cluster.namespace(&request.namespace).await else {
        app.metrics.namespace_missed();
        app.metrics.decided(Resource::Pods, "none");
        tracing::warn!(uid = &*request.uid, namespace = &*request.namespace, "namespace not known to have opted in");
        return admission::allow(&request.uid, None, &Remarks::default());
    };
    let pod = &request.pod;
    let overrides = Overrides::read(pod.annotations());
    let settings = configuration.settings(&namespace.profile, &namespace.overrides, &overrides);
    let service_account = service_account(app, request, settings.as_known()).await;
    let snapshot = app.cluster.snapshot();
    let facts = snapshot.facts(&request.namespace, &namespace, service_account);
    let decision = burst::decide(pod, &settings, &facts);
    let patch = burst::json_patch(pod, &decision).as_ref().map(admission::encode);
    report(app, request, settings.as_known(), &decision);
    app.metrics.patched(patch.as_deref());
    admission::allow(&request.uid, patch.as_deref(), &remarks(request, settings.as_known(), &decision))
}

/// Puts back what a re-applied pod has dropped.
fn answer_update(app: &App, configuration: &Configuration, request: &Request<'_>, old: &Pod<'_>) -> Vec<u8> {
    let Some(patch) = burst::restore(&request.pod, old, &configuration.virtual_nodes) else {
        app.metrics.decided(Resource::Pods, "none");
        return admission::allow(&request.uid, None, &Remarks::default());
    };
    app.metrics.decided(Resource::Pods, "restore");
    let added = old.annotation(burst::ADDED).unwrap_or_default().to_owned();
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
    let remarks = Remarks { warnings: Vec::new(), audit: vec![("restored", added)] };
    admission::allow(&request.uid, Some(&patch), &remarks)
}

/// Looks the service account up if the decision depends on it. On failure the pod goes without the label, and that is counted.
async fn service_account(app: &App, request: &Request<'_>, settings: Option<&Settings<'_>>) -> ServiceAccount {
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
            tracing::warn!(uid = &**uid, namespace = &**namespace, name, error, "service account unknown");
            ServiceAccount::Unknown
        }
    }
}

/// Counts the decision, and writes one line for a pod that is changed or held back.
fn report(app: &App, request: &Request<'_>, settings: Option<&Settings<'_>>, decision: &Decision<'_>) {
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
        super::body::{BODY_BUDGET, BODY_LIMIT, BODY_TIME},
        *,
    };
    use crate::{
        cluster::Cluster,
        telemetry::{Admission, Caches},
    };

    /// An app whose API server never answers, and its routes.
    fn app() -> (Arc<App>, Router) {
        let never = tower::service_fn(|_: HttpRequest<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, Infallible>>()
        });
        let (_, configuration) = watch::channel(Arc::default());
        let client = kube::Client::new(never, "default");
        let cluster = Cluster::follow(client, configuration.clone(), &Caches::default());
        let app = Arc::new(App::new(configuration, cluster, Admission::default()));
        (app.clone(), super::super::routes(app))
    }

    fn post(body: Body) -> HttpRequest<Body> {
        HttpRequest::post("/mutate-v1-pod").header(header::CONTENT_TYPE, "application/json").body(body).unwrap()
    }

    const REVIEW: &str = r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u-1",
        "kind":{"group":"","version":"v1","kind":"Pod"},"operation":"CREATE","namespace":"shop",
        "object":{"metadata":{},"spec":{"containers":[]}}}}"#;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_given_up_before_the_api_server_gives_up() {
        let (_app, routes) = app();
        let trickle = futures_util::stream::unfold((), async |()| {
            time::sleep(Duration::from_millis(100)).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), ()))
        });
        let start = Instant::now();
        let answer = routes.oneshot(post(Body::from_stream(trickle))).await.unwrap();
        assert_eq!((answer.status(), start.elapsed()), (StatusCode::REQUEST_TIMEOUT, BODY_TIME));
    }

    #[tokio::test(start_paused = true)]
    async fn announced_megabytes_that_never_come_do_not_hold_up_ordinary_reviews() {
        let (_app, routes) = app();
        for _ in 0..16 {
            let never = Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>());
            let mut request = post(never);
            request.headers_mut().insert(header::CONTENT_LENGTH, BODY_LIMIT.into());
            tokio::spawn(routes.clone().oneshot(request));
        }
        time::sleep(Duration::from_millis(1)).await;
        let mut request = post(REVIEW.into());
        request.headers_mut().insert(header::CONTENT_LENGTH, REVIEW.len().into());
        let start = Instant::now();
        let answer = routes.oneshot(request).await.unwrap();
        assert_eq!((answer.status(), start.elapsed().as_millis()), (StatusCode::OK, 100), "the namespace's wait alone");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_panic_the_next_request_is_served() {
        let (app, routes) = app();
        let panics = async {
            let _seen = app.cluster.snapshot();
            let _share = app.body_budget.acquire_many(u32::try_from(BODY_BUDGET).unwrap()).await;
            panic!("a bug")
        };
        guard::answered(&app.metrics, Resource::Pods, REVIEW.as_bytes(), Instant::now() + guard::BUDGET, panics).await;
        let start = Instant::now();
        let answer = routes.oneshot(post(REVIEW.into())).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(start.elapsed().as_millis(), 100, "waited for the namespace only");
        let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains(r#""uid":"u-1","allowed":true"#));
    }
}
