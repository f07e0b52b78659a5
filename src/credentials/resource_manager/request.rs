//! Requests to Azure Resource Manager, with limits on their rate, number, duration and size.
//!
//! `governor` limits the rate. Spillway has its own retries, because `azure_core::http::Pipeline` (1.1) cannot enforce
//! these limits:
//!
//! * `Pipeline::send` reads a body of any size into memory. `Pipeline::stream` does not retry an incomplete body.
//! * The retry policy waits for the whole `Retry-After`, however long. `RetryPolicy::is_expired` does not get the wait,
//!   and `RetryPolicy::wait` does not get the deadline, so a pass could exceed its deadline.
//! * It delays only the request that got the `Retry-After`. Azure means all requests for the subscription or tenant.
//! * It does not replace a refused token (401).

use std::{mem, num::NonZeroU32, time::Duration};

use azure_core::credentials::Secret;
use k8s_openapi::jiff::{Timestamp, fmt::rfc2822};
use reqwest::{
    StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER},
};
use serde::de::DeserializeOwned;
use tokio::time::{self, Instant};

use super::{
    failure::Failure,
    model::Page,
    rate_limit::RateLimiter,
    token::{TokenCache, TokenError},
};

/// The limits of requests.
///
/// Per second, Azure permits 15 lists of federated credentials for a tenant, 5 for a subscription, 0.25 for an identity
/// (learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations). It permits 25 reads per
/// second for a subscription (learn.microsoft.com/azure/azure-resource-manager/management/request-limits-and-throttling).
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// Average time between two requests.
    pub(super) request_interval: Duration,
    /// Maximum number of concurrent requests.
    pub(super) burst: NonZeroU32,
    /// Maximum number of attempts at a request with transient failures.
    pub(super) max_attempts: u32,
    /// Time before the second attempt. It doubles for each further attempt.
    pub(super) initial_backoff: Duration,
    /// Maximum time for a response.
    pub(super) response_timeout: Duration,
    /// Maximum size of a response in bytes. A page of a list of identities has about 100 entries.
    pub(super) max_response_bytes: usize,
    /// Maximum number of pages of a list.
    pub(super) max_pages: usize,
    /// Maximum number of entries of a list.
    pub(super) max_entries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const BURST: NonZeroU32 = NonZeroU32::new(4).unwrap();
        Self {
            request_interval: Duration::from_millis(500),
            burst: BURST,
            max_attempts: 3,
            initial_backoff: Duration::from_secs(1),
            response_timeout: Duration::from_secs(30),
            max_response_bytes: 8 * 1024 * 1024,
            max_pages: 1_000,
            max_entries: 50_000,
        }
    }
}

pub(super) struct Client {
    http: reqwest::Client,
    endpoint: Url,
    api_version: String,
    token: TokenCache,
    rate_limiter: RateLimiter,
    limits: Limits,
}

impl Client {
    pub(super) fn new(
        http: reqwest::Client,
        endpoint: Url,
        api_version: String,
        token: TokenCache,
        limits: Limits,
    ) -> Self {
        let rate_limiter = RateLimiter::new(limits.request_interval, limits.burst);
        Self { http, endpoint, api_version, token, rate_limiter, limits }
    }

    /// Returns the maximum number of requests in flight.
    pub(super) fn max_concurrent(&self) -> usize {
        self.limits.burst.get() as usize
    }

    /// Reads a resource.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str, deadline: Instant) -> Result<T, Failure> {
        self.get_url(&self.url(path), deadline).await
    }

    /// Reads all pages of a list, and converts each entry with `read`.
    pub(super) async fn list<T: DeserializeOwned, V>(
        &self,
        path: &str,
        deadline: Instant,
        read: impl Fn(T) -> V,
    ) -> Result<Vec<V>, Failure> {
        let mut all = Vec::new();
        let mut url = self.url(path);
        for _ in 0..self.limits.max_pages {
            let page: Page<T> = self.get_url(&url, deadline).await?;
            all.extend(page.value.into_iter().map(&read));
            if all.len() > self.limits.max_entries {
                break;
            }
            let Some(next) = page.next_link.filter(|next| !next.is_empty()) else { return Ok(all) };
            let next = self.next_url(&next)?;
            if next == url {
                break;
            }
            url = next;
        }
        Err(Failure::UnboundedList)
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.endpoint.clone();
        // Unlike `set_path`, this escapes special characters in names.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/').filter(|segment| !segment.is_empty()));
        }
        url.query_pairs_mut().append_pair("api-version", &self.api_version);
        url
    }

    /// Returns the URL of the next page. It must have the same origin as the endpoint, because the request has the token.
    fn next_url(&self, next: &str) -> Result<Url, Failure> {
        let foreign = |place: &str| Failure::ForeignNextLink(place.chars().take(100).collect());
        let url = self.endpoint.join(next).map_err(|_| foreign(next))?;
        let is_own = url.origin() == self.endpoint.origin() && url.username().is_empty() && url.password().is_none();
        if is_own { Ok(url) } else { Err(foreign(&url.origin().ascii_serialization())) }
    }

    async fn get_url<T: DeserializeOwned>(&self, url: &Url, deadline: Instant) -> Result<T, Failure> {
        let body = self.send_with_retries(url, deadline).await?;
        let mut reader = serde_json::Deserializer::from_slice(&body);
        serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let (path, inner) = (error.path().to_string(), error.inner());
            Failure::Malformed(format!("{path}: {inner}"))
        })
    }

    async fn send_with_retries(&self, url: &Url, deadline: Instant) -> Result<Vec<u8>, Failure> {
        let mut backoff = self.limits.initial_backoff;
        let mut last = Failure::DeadlineExceeded;
        let mut is_refused = false;
        for left in (0..self.limits.max_attempts).rev() {
            let secret = self.token.get().await.map_err(Failure::Token)?;
            if !self.rate_limiter.acquire(deadline).await {
                break;
            }
            let failure = match self.send(url, &secret, deadline).await {
                Ok(body) => return Ok(body),
                Err(failure) => failure,
            };
            if failure.is_unauthorized() && !mem::replace(&mut is_refused, true) && self.token.invalidate(&secret).await
            {
                last = failure;
                continue;
            }
            let retry_after = if let Failure::Status { retry_after, .. } = &failure { *retry_after } else { None };
            if let Some(pause) = retry_after {
                self.rate_limiter.pause(pause);
            }
            if !failure.is_retryable() || left == 0 {
                return Err(failure);
            }
            tracing::debug!(%url, %failure, "retrying a request");
            last = failure;
            // The rate limiter already waits for Retry-After.
            let until = Instant::now() + if retry_after.is_some() { Duration::ZERO } else { backoff };
            if until > deadline {
                break;
            }
            time::sleep_until(until).await;
            backoff *= 2;
        }
        Err(last)
    }

    async fn send(&self, url: &Url, secret: &Secret, deadline: Instant) -> Result<Vec<u8>, Failure> {
        let timeout = self.limits.response_timeout.min(deadline.saturating_duration_since(Instant::now()));
        let failed = |error: reqwest::Error| Failure::of_request(&error, timeout);
        let request = self.http.get(url.clone()).header(AUTHORIZATION, authorization(secret)?);
        let request = request.header(ACCEPT, "application/json").timeout(timeout);
        let mut response = request.send().await.map_err(failed)?;
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > self.limits.max_response_bytes {
                return Err(Failure::TooLarge(self.limits.max_response_bytes));
            }
            body.extend_from_slice(&chunk);
        }
        if status == StatusCode::OK { Ok(body) } else { Err(Failure::of_response(status, retry_after, &body)) }
    }
}

/// Returns the header, marked as sensitive so that neither `Debug` nor a log of headers prints it.
fn authorization(secret: &Secret) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", secret.secret()))
        .map_err(|_| Failure::Token(TokenError("the token contains invalid characters".to_owned())))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Maximum `Retry-After` that Spillway respects.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

/// Returns the time to wait, which is a number of seconds or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if let Ok(seconds) = text.parse() {
        Duration::from_secs(seconds)
    } else {
        let at = rfc2822::parse(text).ok()?.timestamp();
        Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_may_be_seconds_or_a_date() {
        let of = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).unwrap())]);
            retry_after(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(of("17"), Some(17));
        assert_eq!(of("Wed, 21 Oct 2015 07:28:00 GMT"), Some(0));
        let soon = (Timestamp::now() + Duration::from_secs(60)).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        assert!(of(&soon).is_some_and(|wait| (58..=60).contains(&wait)), "{soon}");
        assert_eq!(of(&u64::MAX.to_string()), Some(3_600));
        for text in ["", "soon", "-1"] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
