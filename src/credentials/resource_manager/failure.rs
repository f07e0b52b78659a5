//! What can go wrong between here and Azure Resource Manager, and what it means.

use std::{error::Error, time::Duration};

use reqwest::StatusCode;

use super::{
    model::CloudError,
    token::{TokenError, in_one_line},
};
use crate::identity::azure::Unread;

/// Why something could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("no token for Azure: {0}")]
    Token(TokenError),
    #[error("{} {code}{}", .status.as_u16(), after_colon(.message))]
    Status { status: StatusCode, code: String, message: String, retry_after: Option<Duration> },
    #[error("no answer within {} s", .0.as_secs())]
    Slow(Duration),
    #[error("cannot connect: {0}")]
    Unreachable(String),
    #[error("the answer was cut short: {0}")]
    Cut(String),
    #[error("the answer is not what the API describes: {0}")]
    Malformed(String),
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
    #[error("the list goes on at {0}, where the token is not sent")]
    Elsewhere(String),
    #[error("the list does not end")]
    Endless,
    #[error("there was no time to ask: few requests are made at a time")]
    OutOfTime,
    #[error("it is only just being made")]
    Unfinished,
    #[error("what was read is older than the service account that names it, and is soon read again")]
    Older,
}

fn after_colon(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl Failure {
    pub(super) fn of_answer(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Self {
        let CloudError { error } = serde_json::from_slice(body).unwrap_or_default();
        let known = status.canonical_reason().unwrap_or("(unknown)");
        let code = if error.code.is_empty() { known.to_owned() } else { in_one_line(&error.code) };
        let message = match status {
            // The action and the scope are told; the rest is advice and who asked.
            StatusCode::FORBIDDEN => String::new(),
            StatusCode::METHOD_NOT_ALLOWED => {
                "federated credentials are not to be had in the identity's region".to_owned()
            }
            _ => in_one_line(&error.message),
        };
        Self::Status { status, code, message, retry_after }
    }

    pub(super) fn of_request(error: &reqwest::Error, patience: Duration) -> Self {
        if error.is_timeout() {
            Self::Slow(patience)
        } else if error.is_connect() {
            Self::Unreachable(innermost(error))
        } else {
            Self::Cut(innermost(error))
        }
    }

    /// Whether it says nothing of what was asked for, so that what was known before may still hold.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Status { status, .. } => is_passing(*status) || self.is_about_the_token(),
            Self::Malformed(_) | Self::TooLarge(_) | Self::Elsewhere(_) | Self::Endless => false,
            _ => true,
        }
    }

    /// Whether it is worth asking again soon.
    pub(super) fn is_worth_another_try(&self) -> bool {
        match self {
            Self::Status { status, .. } => is_passing(*status),
            Self::Unreachable(_) | Self::Cut(_) => true,
            _ => false,
        }
    }

    /// Whether the token was refused, so that another one may do.
    pub(super) fn is_about_the_token(&self) -> bool {
        matches!(self, Self::Status { status: StatusCode::UNAUTHORIZED, .. })
    }

    /// Whether what was asked for does not exist. That a subscription is not found is often that of another tenant.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::Status { status: StatusCode::NOT_FOUND, code, .. } if code != "SubscriptionNotFound")
    }

    /// The same for those who look for a permission: it is missing only where Azure says so.
    pub(super) fn unread(&self, action: &str, scope: String) -> Unread {
        let is_forbidden = matches!(self, Self::Status { status: StatusCode::FORBIDDEN, .. });
        let action = if is_forbidden { action.to_owned() } else { String::new() };
        Unread { because: self.to_string(), action, scope }
    }
}

fn is_passing(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS)
        || status.is_server_error()
}

/// The outer ones name the URL and the library.
fn innermost(error: &reqwest::Error) -> String {
    let mut inner: &dyn Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    in_one_line(&inner.to_string())
}
