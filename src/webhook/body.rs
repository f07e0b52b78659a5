//! Reads the body of a request within its limits, and responds within the time limit.

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
    app::App,
    body_limits::{BODY_READ_TIMEOUT, MAX_BODY_BYTES, SMALL_BODY_BYTES},
    fail_open::{self, allow_unchanged, truncate_uid},
};
use crate::{
    admission::{self, ReviewError},
    telemetry::Resource,
};

/// Reads the body and responds within `timeout`, which starts at the end of the request headers.
pub(super) async fn serve(
    app: &App,
    request: extract::Request,
    resource: Resource,
    timeout: Duration,
    respond: impl AsyncFnOnce(&[u8]) -> Response,
) -> Response {
    let started = Instant::now();
    let _in_flight = app.metrics.in_flight();
    let response = match read(app, request).await {
        Err(rejection) => reject(app, rejection),
        Ok((body, _permit)) => {
            fail_open::respond_in_time(&app.metrics, resource, &body, started + timeout, respond(&body)).await
        }
    };
    app.metrics.responded(started.elapsed());
    response
}

/// The status, the `reason` label and the message for a request that is rejected before its body is parsed.
type Rejection = (StatusCode, &'static str, &'static str);

/// Returns the body, with the permit of a large one.
async fn read(app: &App, request: extract::Request) -> Result<(Bytes, Option<SemaphorePermit<'_>>), Rejection> {
    if !is_json(request.headers()) {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", "expected content type application/json\n"));
    }
    let length = content_length_or_max(request.headers()).min(MAX_BODY_BYTES);
    let read = async {
        if length <= SMALL_BODY_BYTES {
            return Ok((to_bytes(request.into_body(), SMALL_BODY_BYTES).await?, None));
        }
        let units = u32::try_from(length.div_ceil(SMALL_BODY_BYTES)).unwrap_or(u32::MAX);
        // The semaphore is never closed. With a closed one, the body would be read without a permit.
        let permit = app.large_body_permits.acquire_many(units).await.ok();
        Ok((to_bytes(request.into_body(), MAX_BODY_BYTES).await?, permit))
    };
    match time::timeout(BODY_READ_TIMEOUT, read).await {
        Err(_elapsed) => Err((StatusCode::REQUEST_TIMEOUT, "slow_body", "the body took longer than 1 s\n")),
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if is_length_limit(&error) => {
            Err((StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is larger than 7 MiB\n"))
        }
        Ok(Err(_broken)) => Err((StatusCode::BAD_REQUEST, "broken_body", "the body ended early\n")),
    }
}

/// Returns the Content-Length, or the maximum for a body of unknown length.
fn content_length_or_max(headers: &HeaderMap) -> usize {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    length.unwrap_or(MAX_BODY_BYTES)
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn is_length_limit(error: &axum::Error) -> bool {
    use std::error::Error;
    error.source().is_some_and(<dyn Error>::is::<http_body_util::LengthLimitError>)
}

fn reject(app: &App, (status, reason, message): Rejection) -> Response {
    app.metrics.unusable(reason);
    tracing::warn!(reason, "rejected request");
    (status, message).into_response()
}

/// Admits the object of an unusable request unchanged if the body has a UID.
pub(super) fn respond_to_unusable(app: &App, body: &[u8], why: &ReviewError) -> Response {
    app.metrics.unusable(why.reason());
    let uid = admission::recover_uid(body);
    let shown_uid = uid.as_deref().map(truncate_uid);
    tracing::warn!(reason = why.reason(), error = why as &dyn std::error::Error, uid = shown_uid, "unusable request");
    match uid {
        Some(uid) => allow_unchanged(&uid),
        None => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}
