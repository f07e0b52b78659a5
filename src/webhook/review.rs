//! One AdmissionReview, from body to answer: read, look up, decide, write, count.
//!
//! Whatever goes wrong, the pod is admitted unchanged. A body from which not even a UID can be read gets a 4xx, which the
//! webhook's `failurePolicy: Ignore` turns into the same.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::App;
use crate::{
    admission::{self, Unusable},
    burst::{self, Decision, Part, ServiceAccount, Verdict},
    cluster::{Lookup, Namespace},
    config::{Overrides, Settings},
    pod::Pod,
    telemetry::Resource,
};

/// Objects of 3 MiB at most reach a webhook, a review carries two of them (object and oldObject), and JSON's escapes and the
/// envelope take some more: kubernetes-sigs/controller-runtime `pkg/webhook/admission/http.go` comes to the same figure.
const BODY_LIMIT: usize = 7 * 1024 * 1024;

/// The API server waits two seconds for the whole answer (`timeoutSeconds`), so a body that takes longer is not worth having.
const BODY_TIME: Duration = Duration::from_secs(2);

/// `POST /mutate-v1-pod`
pub(super) async fn mutate_pod(State(app): State<Arc<App>>, request: Request) -> Response {
    let started = Instant::now();
    let response = match read_body(request).await {
        Err(refusal) => refuse(&app, refusal),
        Ok(body) => match admission::parse(&body) {
            Ok(review) => json(answer(&app, &review).await),
            Err(why) => unusable(&app, &body, &why),
        },
    };
    app.metrics.answered(started.elapsed());
    response
}

/// A request that is refused before its body is looked at.
type Refusal = (StatusCode, &'static str, &'static str);

async fn read_body(request: Request) -> Result<Bytes, Refusal> {
    if !is_json(request.headers()) {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", "expected content type application/json\n"));
    }
    match tokio::time::timeout(BODY_TIME, to_bytes(request.into_body(), BODY_LIMIT)).await {
        Err(_elapsed) => Err((StatusCode::REQUEST_TIMEOUT, "slow_body", "the body took longer than 2 s\n")),
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if is_length_limit(&error) => {
            Err((StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is larger than 7 MiB\n"))
        }
        Ok(Err(_broken)) => Err((StatusCode::BAD_REQUEST, "broken_body", "the body broke off\n")),
    }
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
    tracing::warn!(
        reason = why.reason(),
        error = why as &dyn std::error::Error,
        uid = uid.as_deref(),
        "unusable request"
    );
    match uid {
        Some(uid) => json(admission::allow(&uid, None)),
        None => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}

fn json(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn answer(app: &App, review: &admission::Request<'_>) -> Vec<u8> {
    let Some(namespace) = app.cluster.namespace(&review.namespace).await else {
        app.metrics.namespace_missed();
        app.metrics.decided(Resource::Pods, "none");
        tracing::warn!(uid = &*review.uid, namespace = &*review.namespace, "namespace not known to have opted in");
        return admission::allow(&review.uid, None);
    };
    let pod = &review.pod;
    let settings = settings(app, &namespace, pod);
    let account = service_account(app, &review.namespace, pod, settings.as_ref()).await;
    let decision = burst::decide(pod, settings.as_ref(), account);
    let patch = burst::json_patch(pod, &decision);
    report(app, review, &decision);
    admission::allow(&review.uid, patch.as_deref())
}

fn settings<'a>(app: &'a App, namespace: &Namespace, pod: &Pod<'_>) -> Option<Settings<'a>> {
    let overrides = Overrides::read(pod.annotations());
    app.configuration.settings(&namespace.profile, &namespace.overrides, &overrides)
}

/// Looks the service account up if the decision depends on it. On failure the pod goes without the label, and that is counted.
async fn service_account(app: &App, namespace: &str, pod: &Pod<'_>, settings: Option<&Settings<'_>>) -> ServiceAccount {
    if !settings.is_some_and(|settings| burst::needs_service_account(pod, settings)) {
        return ServiceAccount::Unknown;
    }
    let name = pod.service_account();
    let known = match app.cluster.has_client_id(namespace, name).await {
        Lookup::Cached(known) => Some(known),
        Lookup::Read(Ok(known)) => {
            app.metrics.service_account_looked_up("found");
            Some(known)
        }
        Lookup::Read(Err(error)) => {
            app.metrics.service_account_looked_up(error.result());
            tracing::warn!(namespace, name, error = &error as &dyn std::error::Error, "service account unknown");
            None
        }
    };
    match known {
        Some(true) => ServiceAccount::WithClientId,
        Some(false) => ServiceAccount::WithoutClientId,
        None => ServiceAccount::Unknown,
    }
}

/// Counts the decision, and writes one line for a pod that is changed or held back.
fn report(app: &App, review: &admission::Request<'_>, decision: &Decision<'_>) {
    let word = match &decision.verdict {
        Verdict::Burst(mode) => mode.as_str(),
        Verdict::Stay(reasons) => {
            for reason in reasons {
                app.metrics.stays(reason.as_str());
            }
            "stay"
        }
        Verdict::OptedOut => "opted_out",
    };
    app.metrics.decided(Resource::Pods, word);
    if decision.verdict == Verdict::OptedOut || !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    let added: Vec<_> = decision.added().map(Part::as_str).collect();
    let metadata = &review.pod.metadata;
    tracing::info!(
        uid = &*review.uid,
        namespace = &*review.namespace,
        pod = metadata.name.as_deref().or(metadata.generate_name.as_deref()),
        decision = %decision.verdict,
        added = added.join(","),
        dry_run = review.dry_run,
        "pod reviewed",
    );
}
