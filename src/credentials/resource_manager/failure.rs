//! Failed requests to Azure Resource Manager.

use std::{error::Error, time::Duration};

use reqwest::StatusCode;
use spillway_identity::managed_identity::ReadFailure;

use super::{
    model::CloudError,
    token::{TokenError, single_line},
};

/// The reason why a read failed. Findings contain the messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("no token for Azure: {0}")]
    Token(TokenError),
    #[error("{} {code}{}", .status.as_u16(), after_colon(.message))]
    Status { status: StatusCode, code: String, message: String, retry_after: Option<Duration> },
    #[error("no response within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("cannot connect: {0}")]
    Unreachable(String),
    #[error("incomplete response: {0}")]
    Truncated(String),
    #[error("unexpected response: {0}")]
    Malformed(String),
    #[error("the response has more than {0} bytes")]
    TooLarge(usize),
    #[error("the next page is at {0}, to which Spillway does not send its token")]
    ForeignNextLink(String),
    #[error("the list is too long or does not end")]
    UnboundedList,
    #[error("not read before the deadline of the pass, because Spillway limits its request rate")]
    DeadlineExceeded,
    #[error("Azure is still creating the identity")]
    BeingCreated,
    #[error("the cached result is older than the service account's annotation, and Spillway refreshes it soon")]
    Outdated,
}

fn after_colon(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl Failure {
    pub(super) fn of_response(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Self {
        let CloudError { error } = serde_json::from_slice(body).unwrap_or_default();
        let known = status.canonical_reason().unwrap_or("(unknown)");
        let code = if error.code.is_empty() { known.to_owned() } else { single_line(&error.code) };
        let message = match status {
            // The finding names the action and the scope. The message only adds advice.
            StatusCode::FORBIDDEN => String::new(),
            StatusCode::METHOD_NOT_ALLOWED => {
                "Azure does not support federated credentials in the identity's region".to_owned()
            }
            _ => single_line(&error.message),
        };
        Self::Status { status, code, message, retry_after }
    }

    pub(super) fn of_request(error: &reqwest::Error, timeout: Duration) -> Self {
        if error.is_timeout() {
            Self::Timeout(timeout)
        } else if error.is_connect() {
            Self::Unreachable(innermost(error))
        } else {
            Self::Truncated(innermost(error))
        }
    }

    /// Returns whether the failure is not about the resource, so that an older result may still be right.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => is_transient(*status) || self.is_unauthorized(),
            Self::Malformed(_) | Self::TooLarge(_) | Self::ForeignNextLink(_) | Self::UnboundedList => false,
            _ => true,
        }
    }

    /// Returns whether an immediate retry may succeed.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Status { status, .. } => is_transient(*status),
            Self::Unreachable(_) | Self::Truncated(_) => true,
            _ => false,
        }
    }

    /// Returns whether Azure refused the token, so that a new token may work.
    pub(super) fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Status { status: StatusCode::UNAUTHORIZED, .. })
    }

    /// Returns whether the resource does not exist. A subscription that is not found often belongs to another tenant.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status: StatusCode::NOT_FOUND, code, .. } if code != "SubscriptionNotFound")
    }

    /// Converts to the input of the checks. A permission is missing only if Azure responds with 403.
    pub(super) fn to_read_failure(&self, action: &str, scope: String) -> ReadFailure {
        let is_forbidden = matches!(self, Self::Status { status: StatusCode::FORBIDDEN, .. });
        let action = if is_forbidden { action.to_owned() } else { String::new() };
        ReadFailure { reason: self.to_string(), action, scope }
    }
}

fn is_transient(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS)
        || status.is_server_error()
}

/// Returns the innermost cause. The outer errors only name the URL and the library.
fn innermost(error: &reqwest::Error) -> String {
    let mut inner: &dyn Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    single_line(&inner.to_string())
}
