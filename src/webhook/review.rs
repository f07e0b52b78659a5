//! One AdmissionReview, from body to answer: read, look up, decide, write, count.
//!
//! Whatever goes wrong, the pod is admitted unchanged. A body from which not even a UID can be read gets a 4xx, which the
//! webhook's `failurePolicy: Ignore` turns into the same.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Bytes, to_bytes},
    extract::{self, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::{
    sync::SemaphorePermit,
    time::{self, Instant},
};

use super::{
    App,
    guard::{self, json, shown, unchanged},
    remarks,
};
use crate::{
    admission::{self, Remarks, Request, Unusable},
    burst::{self, Decision, Facts, Outcome, Part, ServiceAccount, Verdict},
    cluster::Lookup,
    config::{Configuration, Overrides, Settings},
    pod::Pod,
    telemetry::Resource,
};

/// Objects of 3 MiB at most reach a webhook, a review carries two of them (object and oldObject), and JSON's escapes and the
/// envelope take some more: kubernetes-sigs/controller-runtime `pkg/webhook/admission/http.go` comes to the same figure.
const BODY_LIMIT: usize = 7 * 1024 * 1024;

/// How long a body may take: a part of [`guard::BUDGET`]. 7 MiB in a second is 60 Mbit/s.
const BODY_TIME: Duration = Duration::from_secs(1);

/// What large bodies may take together from their first byte to their answer, in units of [`SMALL`]: 32 MiB, twice that while they
/// are joined. It keeps the memory bounded when many of them come at once.
pub(super) const BODY_BUDGET: usize = 32 * 1024 * 1024 / SMALL;

/// Bodies that say they are no larger take no part in that: ordinary reviews have some ten kilobytes, and must not stand in line
/// behind somebody who announces megabytes and sends nothing. The cap of connections bounds them.
const SMALL: usize = 64 * 1024;

/// `POST /mutate-v1-pod`
pub(super) async fn mutate_pod(State(app): State<Arc<App>>, request: extract::Request) -> Response {
    let started = Instant::now();
    let _in_flight = app.metrics.in_flight();
    let response = match read_body(&app, request).await {
        Err(refusal) => refuse(&app, refusal),
        Ok((body, _share)) => guard::answered(&app.metrics, &body, started + guard::BUDGET, review(&app, &body)).await,
    };
    app.metrics.answered(started.elapsed());
    response
}

async fn review(app: &App, body: &[u8]) -> Response {
    match admission::parse(body) {
        Ok(request) => json(answer(app, &request).await),
        Err(why) => unusable(app, body, &why),
    }
}

/// A request that is refused before its body is looked at.
type Refusal = (StatusCode, &'static str, &'static str);

/// The body, with its share of the budget.
async fn read_body(app: &App, request: extract::Request) -> Result<(Bytes, Option<SemaphorePermit<'_>>), Refusal> {
    if !is_json(request.headers()) {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", "expected content type application/json\n"));
    }
    let length = expected_length(request.headers()).min(BODY_LIMIT);
    let read = async {
        if length <= SMALL {
            return Ok((to_bytes(request.into_body(), SMALL).await?, None));
        }
        let units = u32::try_from(length.div_ceil(SMALL)).unwrap_or(u32::MAX);
        // The budget is never closed; without a permit the body would only be read without its share.
        let share = app.body_budget.acquire_many(units).await.ok();
        Ok((to_bytes(request.into_body(), BODY_LIMIT).await?, share))
    };
    match time::timeout(BODY_TIME, read).await {
        Err(_elapsed) => Err((StatusCode::REQUEST_TIMEOUT, "slow_body", "the body took longer than 1 s\n")),
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if is_length_limit(&error) => {
            Err((StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is larger than 7 MiB\n"))
        }
        Ok(Err(_broken)) => Err((StatusCode::BAD_REQUEST, "broken_body", "the body broke off\n")),
    }
}

/// How long the body says that it is; one that does not say may be as long as any.
fn expected_length(headers: &HeaderMap) -> usize {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    length.unwrap_or(BODY_LIMIT)
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn is_length_limit(error: &axum::Error) -> bool {
    use std::error::Error;
    error.source().is_some_and(<dyn Error>::is::<http_body_util::LengthLimitError>)
}

fn refuse(app: &App, (status, reason, message): Refusal) -> Response {
    app.metrics.unusable(reason);
    tracing::warn!(reason, "refused a request");
    (status, message).into_response()
}

/// Admits what cannot be decided, if the answer can name it.
fn unusable(app: &App, body: &[u8], why: &Unusable) -> Response {
    app.metrics.unusable(why.reason());
    let uid = admission::recover_uid(body);
    let shown = uid.as_deref().map(shown);
    tracing::warn!(reason = why.reason(), error = why as &dyn std::error::Error, uid = shown, "unusable request");
    match uid {
        Some(uid) => unchanged(&uid),
        None => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
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
    let service_account = service_account(app, request, settings.as_ref()).await;
    let snapshot = app.cluster.snapshot();
    let facts = Facts {
        service_account,
        namespace: &request.namespace,
        virtual_nodes: snapshot.virtual_nodes(),
        namespace_labels: &namespace.labels,
        namespace_annotations: &namespace.annotations,
        network_policies: snapshot.network_policies(&request.namespace),
    };
    let decision = burst::decide(pod, settings.as_ref(), &facts);
    let patch = burst::json_patch(pod, &decision);
    report(app, request, settings.as_ref(), &decision);
    app.metrics.patched(patch.as_deref());
    admission::allow(&request.uid, patch.as_deref(), &remarks(request, settings.as_ref(), &decision))
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
    use std::convert::Infallible;

    use axum::{
        Router,
        body::Body,
        http::{self, Request as HttpRequest},
    };
    use tokio::sync::watch;
    use tower::ServiceExt;

    use super::*;
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
        guard::answered(&app.metrics, REVIEW.as_bytes(), Instant::now() + guard::BUDGET, panics).await;
        let start = Instant::now();
        let answer = routes.oneshot(post(REVIEW.into())).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(start.elapsed().as_millis(), 100, "waited for the namespace only");
        let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains(r#""uid":"u-1","allowed":true"#));
    }
}
