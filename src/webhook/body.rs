//! The body of a call: read within bounds of size and time, and answered within a bound of time, whatever it is about.

use std::time::Duration;

use axum::{
    body::{Bytes, to_bytes},
    extract,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::{
    sync::SemaphorePermit,
    time::{self, Instant},
};

use super::{
    App,
    guard::{self, shown, unchanged},
};
use crate::{
    admission::{self, Unusable},
    telemetry::Resource,
};

/// Objects of 3 MiB at most reach a webhook, a review carries two of them (object and oldObject), and JSON's escapes and the
/// envelope take some more: kubernetes-sigs/controller-runtime `pkg/webhook/admission/http.go` comes to the same figure.
pub(super) const BODY_LIMIT: usize = 7 * 1024 * 1024;

/// How long a body may take: a part of [`guard::BUDGET`]. 7 MiB in a second is 60 Mbit/s.
pub(super) const BODY_TIME: Duration = Duration::from_secs(1);

/// What large bodies may take together from their first byte to their answer, in units of [`SMALL`]: 32 MiB, twice that while they
/// are joined. It keeps the memory bounded when many of them come at once.
pub(super) const BODY_BUDGET: usize = 32 * 1024 * 1024 / SMALL;

/// Bodies that say they are no larger take no part in that: ordinary reviews have some ten kilobytes, and must not stand in line
/// behind somebody who announces megabytes and sends nothing. The cap of connections bounds them.
const SMALL: usize = 64 * 1024;

/// Reads the body, and answers within the budget, which begins with the end of the request's head.
pub(super) async fn serve(
    app: &App,
    request: extract::Request,
    resource: Resource,
    budget: Duration,
    review: impl AsyncFnOnce(&[u8]) -> Response,
) -> Response {
    let started = Instant::now();
    let _in_flight = app.metrics.in_flight();
    let response = match read(app, request).await {
        Err(refusal) => refuse(app, refusal),
        Ok((body, _share)) => guard::answered(&app.metrics, resource, &body, started + budget, review(&body)).await,
    };
    app.metrics.answered(started.elapsed());
    response
}

/// A request that is refused before its body is looked at.
type Refusal = (StatusCode, &'static str, &'static str);

/// The body, with its share of the budget.
async fn read(app: &App, request: extract::Request) -> Result<(Bytes, Option<SemaphorePermit<'_>>), Refusal> {
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
pub(super) fn unusable(app: &App, body: &[u8], why: &Unusable) -> Response {
    app.metrics.unusable(why.reason());
    let uid = admission::recover_uid(body);
    let shown = uid.as_deref().map(shown);
    tracing::warn!(reason = why.reason(), error = why as &dyn std::error::Error, uid = shown, "unusable request");
    match uid {
        Some(uid) => unchanged(&uid),
        None => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}
