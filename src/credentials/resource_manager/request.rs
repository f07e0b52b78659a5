//! Requests to Azure Resource Manager: few, patient, and bounded in every way.

use std::{mem, time::Duration};

use azure_core::credentials::Secret;
use k8s_openapi::jiff::{Timestamp, fmt::rfc2822};
use reqwest::{
    StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER},
};
use serde::de::DeserializeOwned;
use tokio::time::{self, Instant};

use super::{failure::Failure, model::Page, pace::Pace, token::Kept};

/// What a pass may cost. Azure documents, per second, 15 lists of federated credentials for a tenant, 5 for a subscription and 0.25
/// for an identity (learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations), and 25 reads for a
/// subscription (learn.microsoft.com/azure/azure-resource-manager/management/request-limits-and-throttling).
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// A request every so often,
    pub(super) every: Duration,
    /// of which so many at once.
    pub(super) at_once: u32,
    /// How often a request is made that fails in passing.
    pub(super) tries: u32,
    /// How long to wait before the second try; twice as long before the third.
    pub(super) wait: Duration,
    /// How long an answer may take.
    pub(super) answer: Duration,
    /// How many bytes it may have. A list of identities has some 100 entries on a page.
    pub(super) bytes: usize,
    /// How many pages a list may have,
    pub(super) pages: usize,
    /// and how many entries.
    pub(super) entries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            every: Duration::from_millis(500),
            at_once: 4,
            tries: 3,
            wait: Duration::from_secs(1),
            answer: Duration::from_secs(30),
            bytes: 8 * 1024 * 1024,
            pages: 1_000,
            entries: 50_000,
        }
    }
}

pub(super) struct Client {
    http: reqwest::Client,
    endpoint: Url,
    api_version: String,
    token: Kept,
    pace: Pace,
    limits: Limits,
}

impl Client {
    pub(super) fn new(http: reqwest::Client, endpoint: Url, api_version: String, token: Kept, limits: Limits) -> Self {
        Self { http, endpoint, api_version, token, pace: Pace::new(limits.every, limits.at_once), limits }
    }

    /// How many requests may be under way.
    pub(super) fn at_once(&self) -> usize {
        self.limits.at_once as usize
    }

    /// A resource.
    pub(super) async fn one<T: DeserializeOwned>(&self, path: &str, deadline: Instant) -> Result<T, Failure> {
        self.get(&self.url(path), deadline).await
    }

    /// A list, from its first page to its last; each page is kept as `keep` makes it.
    pub(super) async fn all<T: DeserializeOwned, K>(
        &self,
        path: &str,
        deadline: Instant,
        keep: impl Fn(T) -> K,
    ) -> Result<Vec<K>, Failure> {
        let mut all = Vec::new();
        let mut url = self.url(path);
        for _ in 0..self.limits.pages {
            let page: Page<T> = self.get(&url, deadline).await?;
            all.extend(page.value.into_iter().map(&keep));
            if all.len() > self.limits.entries {
                break;
            }
            let Some(next) = page.next_link.filter(|next| !next.is_empty()) else { return Ok(all) };
            let next = self.own(&next)?;
            if next == url {
                break;
            }
            url = next;
        }
        Err(Failure::Endless)
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.endpoint.clone();
        // Not set_path alone: a name may hold what means something in a URL.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/').filter(|segment| !segment.is_empty()));
        }
        url.query_pairs_mut().append_pair("api-version", &self.api_version);
        url
    }

    /// Where a list goes on. The token is sent there, so it must be where it was sent before.
    fn own(&self, next: &str) -> Result<Url, Failure> {
        let elsewhere = |place: &str| Failure::Elsewhere(place.chars().take(100).collect());
        let url = self.endpoint.join(next).map_err(|_| elsewhere(next))?;
        let is_own = url.origin() == self.endpoint.origin() && url.username().is_empty() && url.password().is_none();
        if is_own { Ok(url) } else { Err(elsewhere(&url.origin().ascii_serialization())) }
    }

    async fn get<T: DeserializeOwned>(&self, url: &Url, deadline: Instant) -> Result<T, Failure> {
        let body = self.patiently(url, deadline).await?;
        let mut reader = serde_json::Deserializer::from_slice(&body);
        serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let (path, inner) = (error.path().to_string(), error.inner());
            Failure::Malformed(format!("{path}: {inner}"))
        })
    }

    async fn patiently(&self, url: &Url, deadline: Instant) -> Result<Vec<u8>, Failure> {
        let mut wait = self.limits.wait;
        let mut last = Failure::OutOfTime;
        let mut is_refused = false;
        for left in (0..self.limits.tries).rev() {
            let secret = self.token.get().await.map_err(Failure::Token)?;
            if !self.pace.turn(deadline).await {
                break;
            }
            let failure = match self.once(url, &secret, deadline).await {
                Ok(body) => return Ok(body),
                Err(failure) => failure,
            };
            if failure.is_about_the_token() && !mem::replace(&mut is_refused, true) && self.token.forget(&secret).await
            {
                last = failure;
                continue;
            }
            let asked = if let Failure::Status { retry_after, .. } = &failure { *retry_after } else { None };
            if let Some(pause) = asked {
                self.pace.pause(pause);
            }
            if !failure.is_worth_another_try() || left == 0 {
                return Err(failure);
            }
            tracing::debug!(%url, %failure, "asking again");
            last = failure;
            let until = Instant::now() + if asked.is_some() { Duration::ZERO } else { wait };
            if until > deadline {
                break;
            }
            time::sleep_until(until).await;
            wait *= 2;
        }
        Err(last)
    }

    async fn once(&self, url: &Url, secret: &Secret, deadline: Instant) -> Result<Vec<u8>, Failure> {
        let patience = self.limits.answer.min(deadline.saturating_duration_since(Instant::now()));
        let failed = |error: reqwest::Error| Failure::of_request(&error, patience);
        let request = self.http.get(url.clone()).header(AUTHORIZATION, authorization(secret)?);
        let request = request.header(ACCEPT, "application/json").timeout(patience);
        let mut response = request.send().await.map_err(failed)?;
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > self.limits.bytes {
                return Err(Failure::TooLarge(self.limits.bytes));
            }
            body.extend_from_slice(&chunk);
        }
        if status == StatusCode::OK { Ok(body) } else { Err(Failure::of_answer(status, retry_after, &body)) }
    }
}

/// Sensitive: neither Debug nor a log of headers shows it.
fn authorization(secret: &Secret) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", secret.secret()))
        .map_err(|_| Failure::Token(super::TokenError("it cannot stand in a header".to_owned())))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Nobody is taken at a word that is longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Seconds, or a time (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = if let Ok(seconds) = text.parse() {
        Duration::from_secs(seconds)
    } else {
        let at = rfc2822::parse(text).ok()?.timestamp();
        Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
    };
    Some(pause.min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_understood_in_seconds_and_as_a_time() {
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
