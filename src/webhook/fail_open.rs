//! Fail open: every request gets a response in time, and a failed decision admits the object unchanged.

use std::{panic::AssertUnwindSafe, time::Duration};

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tokio::time::{self, Instant};

use crate::{
    admission::{self, ResponseExtras},
    telemetry::{AdmissionMetrics, Resource},
};

/// Time from the end of the request headers to the response. The API server's timeout of two seconds (`timeoutSeconds`)
/// starts before it connects. Half a second remains for the network and a handshake.
///
/// Reading the body takes at most one second of this time. The decision waits at most 100 ms each for a namespace and
/// for a service account.
pub(super) const POD_REVIEW_TIMEOUT: Duration = Duration::from_millis(1500);

/// Returns the response of `decision`. If it panics or misses the deadline, the response admits the object unchanged.
///
/// A panic affects only its own request. Requests share only read-only caches and atomic counters.
pub(super) async fn respond_in_time(
    metrics: &AdmissionMetrics,
    resource: Resource,
    body: &[u8],
    deadline: Instant,
    decision: impl Future<Output = Response>,
) -> Response {
    let failure = match time::timeout_at(deadline, AssertUnwindSafe(decision).catch_unwind()).await {
        Ok(Ok(response)) => return response,
        Ok(Err(_payload)) => "panic",
        Err(_elapsed) => "timeout",
    };
    metrics.decided(resource, failure);
    let uid = admission::recover_uid(body);
    tracing::error!(uid = uid.as_deref().map(truncate_uid), failure, "decision failed, admitting the object unchanged");
    match uid {
        Some(uid) => allow_unchanged(&uid),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Returns the response that admits an object unchanged.
pub(super) fn allow_unchanged(uid: &str) -> Response {
    json_response(admission::allow(uid, None, &ResponseExtras::default()))
}

pub(super) fn json_response(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Returns a UID for the log. A UID has 36 characters, but an untrusted client may send millions.
pub(super) fn truncate_uid(uid: &str) -> &str {
    let end = uid.char_indices().nth(64).map_or(uid.len(), |(end, _)| end);
    uid.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    const REVIEW: &[u8] = br#"{"request":{"uid":"u-1"}}"#;

    async fn body(response: Response) -> (u16, String) {
        let status = response.status().as_u16();
        (status, String::from_utf8(to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap())
    }

    fn admitted() -> (u16, String) {
        let response =
            r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"u-1","allowed":true}}"#;
        (200, response.to_owned())
    }

    fn soon() -> Instant {
        Instant::now() + POD_REVIEW_TIMEOUT
    }

    #[tokio::test]
    async fn a_request_whose_decision_panics_is_admitted() {
        let mut registry = crate::telemetry::registry();
        let metrics = AdmissionMetrics::new(&mut registry);
        let panics = async { panic!("a bug") };
        assert_eq!(body(respond_in_time(&metrics, Resource::Pods, REVIEW, soon(), panics).await).await, admitted());
        let works = async { allow_unchanged("u-1") };
        assert_eq!(body(respond_in_time(&metrics, Resource::Pods, REVIEW, soon(), works).await).await, admitted());
        assert_eq!(
            body(respond_in_time(&metrics, Resource::Pods, b"{", soon(), async { panic!("a bug") }).await).await.0,
            500
        );
        let text = crate::telemetry::encode(&registry);
        assert!(text.contains(r#"admission_requests_total{resource="pods",decision="panic"} 2"#), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_decision_that_takes_too_long_is_abandoned() {
        let mut registry = crate::telemetry::registry();
        let metrics = AdmissionMetrics::new(&mut registry);
        let start = Instant::now();
        let never = std::future::pending();
        assert_eq!(
            body(respond_in_time(&metrics, Resource::Pods, REVIEW, start + POD_REVIEW_TIMEOUT, never).await).await,
            admitted()
        );
        assert_eq!(start.elapsed(), POD_REVIEW_TIMEOUT);
        let text = crate::telemetry::encode(&registry);
        assert!(text.contains(r#"admission_requests_total{resource="pods",decision="timeout"} 1"#), "{text}");
    }

    #[test]
    fn long_uids_are_truncated_in_the_log() {
        assert_eq!(truncate_uid("u-1"), "u-1");
        assert_eq!(truncate_uid(&"ü".repeat(1_000_000)), "ü".repeat(64).as_str());
    }
}
