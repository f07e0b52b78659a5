//! Whatever becomes of a decision, its request is answered in time, and the object is admitted.

use std::{panic::AssertUnwindSafe, time::Duration};

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tokio::time::{self, Instant};

use crate::{
    admission::{self, Remarks},
    telemetry::{Admission, Resource},
};

/// From the end of a request's head to its answer. The API server waits two seconds (`timeoutSeconds`), and counts from before it
/// connects: half a second is left for the way here, a handshake and the way back.
///
/// Of this, the body takes one second at most. The decision then waits at most 100 ms each for a namespace and for a service account.
pub(super) const BUDGET: Duration = Duration::from_millis(1500);

/// The answer that a decision comes to, or that the object is admitted unchanged, if it panics or is not there by the deadline.
///
/// A panic costs this request only: nothing that requests share is left half changed by one, as they only read the caches, and what
/// they count is atomic.
pub(super) async fn answered(
    metrics: &Admission,
    resource: Resource,
    body: &[u8],
    deadline: Instant,
    decision: impl Future<Output = Response>,
) -> Response {
    let failure = match time::timeout_at(deadline, AssertUnwindSafe(decision).catch_unwind()).await {
        Ok(Ok(answer)) => return answer,
        Ok(Err(_payload)) => "panic",
        Err(_elapsed) => "timeout",
    };
    metrics.decided(resource, failure);
    let uid = admission::recover_uid(body);
    tracing::error!(uid = uid.as_deref().map(shown), failure, "no decision, object admitted unchanged");
    match uid {
        Some(uid) => unchanged(&uid),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The answer that admits an object as it is.
pub(super) fn unchanged(uid: &str) -> Response {
    json(admission::allow(uid, None, &Remarks::default()))
}

pub(super) fn json(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// A UID for the log. It has 36 characters; what a stranger sends may have millions.
pub(super) fn shown(uid: &str) -> &str {
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
        let answer =
            r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"u-1","allowed":true}}"#;
        (200, answer.to_owned())
    }

    fn soon() -> Instant {
        Instant::now() + BUDGET
    }

    #[tokio::test]
    async fn a_panic_costs_one_request_which_is_admitted() {
        let mut registry = crate::telemetry::registry();
        let metrics = Admission::new(&mut registry);
        let panics = async { panic!("a bug") };
        assert_eq!(body(answered(&metrics, Resource::Pods, REVIEW, soon(), panics).await).await, admitted());
        let works = async { unchanged("u-1") };
        assert_eq!(body(answered(&metrics, Resource::Pods, REVIEW, soon(), works).await).await, admitted());
        assert_eq!(
            body(answered(&metrics, Resource::Pods, b"{", soon(), async { panic!("a bug") }).await).await.0,
            500
        );
        let text = crate::telemetry::encode(&registry);
        assert!(text.contains(r#"admission_requests_total{resource="pods",decision="panic"} 2"#), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_decision_that_never_comes_is_not_waited_for() {
        let mut registry = crate::telemetry::registry();
        let metrics = Admission::new(&mut registry);
        let start = Instant::now();
        let never = std::future::pending();
        assert_eq!(body(answered(&metrics, Resource::Pods, REVIEW, start + BUDGET, never).await).await, admitted());
        assert_eq!(start.elapsed(), BUDGET);
        let text = crate::telemetry::encode(&registry);
        assert!(text.contains(r#"admission_requests_total{resource="pods",decision="timeout"} 1"#), "{text}");
    }

    #[test]
    fn what_a_stranger_sends_as_a_uid_does_not_flood_the_log() {
        assert_eq!(shown("u-1"), "u-1");
        assert_eq!(shown(&"ü".repeat(1_000_000)), "ü".repeat(64).as_str());
    }
}
