//! Tokens for Azure Resource Manager. Spillway requests them rarely, keeps them only in memory, and never prints them.

use std::{env, sync::Arc, time::Duration};

use azure_core::{
    cloud::CloudConfiguration,
    credentials::{Secret, TokenCredential},
    http::{ClientOptions, ExponentialRetryOptions, RetryOptions, Transport},
};
use azure_identity::{
    ClientAssertionCredentialOptions, DeveloperToolsCredential, WorkloadIdentityCredential,
    WorkloadIdentityCredentialOptions,
};
use futures_util::{FutureExt, future::BoxFuture};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use spillway_core::azure::Cloud;
use tokio::{
    sync::Mutex,
    time::{self, Instant},
};

/// Minimum remaining lifetime of a token. A request takes time, and clocks differ.
const MIN_REMAINING_LIFETIME: SignedDuration = SignedDuration::from_mins(5);
/// Maximum time in which Entra or the Azure CLI must return a token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Backoff after a failed token request. All requests of a pass would fail in the same way.
const FAILURE_BACKOFF: Duration = Duration::from_secs(30);
/// Maximum length of a message of Entra or the Azure CLI.
const MAX_MESSAGE_CHARS: usize = 400;

/// A token. `Debug` does not print it.
#[derive(Debug, Clone)]
pub struct Token {
    /// The bearer token.
    pub secret: Secret,
    /// The expiry of the token.
    pub expires: Timestamp,
}

/// Error of a token request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TokenError(pub String);

/// A source of tokens.
pub trait TokenProvider: Send + Sync {
    /// Requests a new token.
    fn token(&self) -> BoxFuture<'_, Result<Token, TokenError>>;
}

/// Tokens of Entra. Uses workload identity if it is injected, and otherwise a developer's login such as `az login`.
pub struct EntraTokens {
    cloud: Cloud,
    http: reqwest::Client,
}

impl EntraTokens {
    pub(super) fn new(cloud: Cloud, http: reqwest::Client) -> Self {
        Self { cloud, http }
    }

    /// Creates a new credential for each request. A credential caches its token until shortly before the expiry, even if
    /// Azure refused the token (Azure/azure-sdk-for-rust sdk/identity/azure_identity/src/cache.rs).
    fn credential(&self) -> azure_core::Result<Arc<dyn TokenCredential>> {
        Ok(if env::var_os("AZURE_FEDERATED_TOKEN_FILE").is_some() {
            WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                credential_options: options(self.cloud, Transport::new(Arc::new(self.http.clone()))),
                ..WorkloadIdentityCredentialOptions::default()
            }))?
        } else {
            DeveloperToolsCredential::new(None)?
        })
    }
}

impl TokenProvider for EntraTokens {
    fn token(&self) -> BoxFuture<'_, Result<Token, TokenError>> {
        request(self.cloud, self.credential()).boxed()
    }
}

async fn request(cloud: Cloud, credential: azure_core::Result<Arc<dyn TokenCredential>>) -> Result<Token, TokenError> {
    let response = async { credential?.get_token(&[scope(cloud)], None).await };
    let Ok(response) = time::timeout(TOKEN_TIMEOUT, response).await else {
        return Err(TokenError(format!("no response within {} s", TOKEN_TIMEOUT.as_secs())));
    };
    let token = response.map_err(|error| TokenError(short_message(&error.to_string())))?;
    // A time out of range means that the token does not expire.
    let expires = Timestamp::from_second(token.expires_on.unix_timestamp()).unwrap_or(Timestamp::MAX);
    Ok(Token { secret: token.token, expires })
}

/// Returns the scope of the cloud (Azure/azure-sdk-for-go sdk/azcore/arm/runtime/runtime.go, and for the public cloud
/// learn.microsoft.com/rest/api/azure).
const fn scope(cloud: Cloud) -> &'static str {
    match cloud {
        Cloud::Public => "https://management.azure.com/.default",
        Cloud::UsGovernment => "https://management.core.usgovcloudapi.net/.default",
        Cloud::China => "https://management.core.chinacloudapi.cn/.default",
    }
}

fn options(cloud: Cloud, transport: Transport) -> ClientAssertionCredentialOptions {
    let cloud = match cloud {
        // azure-workload-identity sets AZURE_AUTHORITY_HOST.
        Cloud::Public => None,
        Cloud::UsGovernment => Some(CloudConfiguration::AzureGovernment),
        Cloud::China => Some(CloudConfiguration::AzureChina),
    };
    let retry = ExponentialRetryOptions { max_retries: 2, ..ExponentialRetryOptions::default() };
    ClientAssertionCredentialOptions {
        client_options: ClientOptions {
            cloud: cloud.map(Arc::new),
            retry: RetryOptions::exponential(retry),
            transport: Some(transport),
            ..ClientOptions::default()
        },
    }
}

/// Returns Entra's error without trace IDs, advice and the context of azure_identity. azure_identity 1.0 often cannot
/// parse a description with line breaks, and quotes it.
fn short_message(text: &str) -> String {
    let from_code = text.find("AADSTS").and_then(|start| text.get(start..)).unwrap_or(text);
    let ends = ["Trace ID", "To troubleshoot"].iter().filter_map(|end| from_code.find(end));
    let short = ends.min().and_then(|end| from_code.get(..end)).unwrap_or(from_code);
    single_line(&short.replace("\\r\\n", " "))
}

pub(super) fn single_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= MAX_MESSAGE_CHARS {
        return line;
    }
    line.chars().take(MAX_MESSAGE_CHARS).chain("...".chars()).collect()
}

/// Caches the current token until shortly before its expiry.
pub(super) struct TokenCache {
    provider: Box<dyn TokenProvider>,
    state: Mutex<TokenState>,
}

#[derive(Default)]
struct TokenState {
    token: Option<Token>,
    failure: Option<(TokenError, Instant)>,
    /// The time when Spillway last dropped a token that Azure refused.
    refused_at: Option<Instant>,
}

impl TokenCache {
    pub(super) fn new(provider: Box<dyn TokenProvider>) -> Self {
        Self { provider, state: Mutex::default() }
    }

    /// Returns the cached token, or requests a new one shortly before its expiry.
    pub(super) async fn get(&self) -> Result<Secret, TokenError> {
        let mut state = self.state.lock().await;
        if let Some(token) = &state.token
            && token.expires.duration_since(Timestamp::now()) > MIN_REMAINING_LIFETIME
        {
            return Ok(token.secret.clone());
        }
        if let Some((error, at)) = &state.failure
            && at.elapsed() < FAILURE_BACKOFF
        {
            return Err(error.clone());
        }
        match self.provider.token().await {
            Ok(token) => {
                let secret = token.secret.clone();
                (state.token, state.failure) = (Some(token), None);
                Ok(secret)
            }
            Err(error) => {
                (state.token, state.failure) = (None, Some((error.clone(), Instant::now())));
                Err(error)
            }
        }
    }

    /// Drops a refused token. Returns whether a retry with a new token may succeed. It may not if Azure also refused the
    /// previous token shortly before.
    pub(super) async fn invalidate(&self, refused: &Secret) -> bool {
        let mut state = self.state.lock().await;
        if state.token.as_ref().is_none_or(|token| token.secret != *refused) {
            return true;
        }
        if state.refused_at.is_some_and(|at| at.elapsed() < FAILURE_BACKOFF) {
            return false;
        }
        (state.token, state.refused_at) = (None, Some(Instant::now()));
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex as Lock,
        atomic::{AtomicUsize, Ordering},
    };

    use azure_core::{
        Bytes,
        http::{AsyncRawResponse, Body, HttpClient, Request, StatusCode, headers::Headers},
    };

    use super::*;
    use crate::credentials::resource_manager::tests::CapturedLog;

    const ASSERTION: &str = "assertion-of-the-service-account";
    const TOKEN: &str = "token-of-entra";

    /// The token endpoint of Entra.
    #[derive(Debug)]
    struct FakeEntra {
        status: StatusCode,
        body: String,
        requests: Lock<Vec<(String, String)>>,
    }

    impl HttpClient for FakeEntra {
        fn execute_request<'s, 'r, 'f>(
            &'s self,
            request: &'r Request,
        ) -> std::pin::Pin<Box<dyn Future<Output = azure_core::Result<AsyncRawResponse>> + Send + 'f>>
        where
            's: 'f,
            'r: 'f,
            Self: 'f,
        {
            let Body::Bytes(body) = request.body() else { panic!("a form") };
            let form = String::from_utf8(body.to_vec()).unwrap();
            self.requests.lock().unwrap().push((request.url().to_string(), form));
            let body = Bytes::from(self.body.clone());
            Box::pin(async move { Ok(AsyncRawResponse::from_bytes(self.status, Headers::new(), body)) })
        }
    }

    async fn response(cloud: Cloud, status: StatusCode, body: &str) -> (Result<Token, TokenError>, (String, String)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ASSERTION).unwrap();
        let fake = Arc::new(FakeEntra { status, body: body.to_owned(), requests: Lock::default() });
        let credential = WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
            credential_options: options(cloud, Transport::new(fake.clone())),
            client_id: Some("00000000-1111-4222-8333-444444444444".to_owned()),
            tenant_id: Some("11111111-2222-4333-8444-555555555555".to_owned()),
            token_file_path: Some(file.path().to_owned()),
        }));
        let response = request(cloud, Ok(credential.unwrap())).await;
        let requests = fake.requests.lock().unwrap().pop().unwrap();
        (response, requests)
    }

    #[tokio::test]
    async fn each_cloud_has_its_own_authority_and_resource() {
        let body = format!(r#"{{"token_type": "Bearer", "expires_in": 3600, "access_token": "{TOKEN}"}}"#);
        for (cloud, authority, resource) in [
            (Cloud::Public, "https://login.microsoftonline.com/", "management.azure.com"),
            (Cloud::UsGovernment, "https://login.microsoftonline.us/", "management.core.usgovcloudapi.net"),
            (Cloud::China, "https://login.chinacloudapi.cn/", "management.core.chinacloudapi.cn"),
        ] {
            let (response, (url, form)) = response(cloud, StatusCode::Ok, &body).await;
            let token = response.unwrap();
            assert_eq!(token.secret.secret(), TOKEN);
            let left = token.expires.duration_since(Timestamp::now());
            assert!((3_590..=3_600).contains(&left.as_secs()), "{left:?}");
            assert!(url.starts_with(authority), "{url}");
            assert!(form.contains(&format!("scope=https%3A%2F%2F{resource}%2F.default")), "{form}");
            assert!(form.contains(ASSERTION), "{form}");
        }
    }

    #[tokio::test]
    async fn no_response_of_entra_makes_spillway_print_a_secret() {
        let log = CapturedLog::default();
        let _guard = log.capture();
        let right = format!(r#"{{"token_type": "Bearer", "expires_in": 3600, "access_token": "{TOKEN}"}}"#);
        let refused = r#"{"error": "invalid_client", "error_description": "AADSTS700213: No matching federated identity record found.\r\nTrace ID: 1", "error_codes": [700213]}"#;
        let wrong = format!(r#"{{"access_token": "{TOKEN}", "expires_in": "soon"}}"#);
        let mut shown = String::new();
        for (status, body) in [
            (StatusCode::Ok, right.as_str()),
            (StatusCode::BadRequest, refused),
            (StatusCode::Ok, &wrong),
            (StatusCode::Ok, &right[..right.len() - 3]),
            (StatusCode::Ok, ""),
        ] {
            let (response, _) = response(Cloud::Public, status, body).await;
            shown += &response.map_or_else(|error| format!("{error} {error:?}\n"), |token| format!("{token:?}\n"));
        }
        assert!(shown.contains("AADSTS700213: No matching federated identity record found. TokenError"), "{shown}");
        let all = shown + &log.text();
        assert!(all.contains("login.microsoftonline.com"), "the test captures the log: {all}");
        assert!(!all.contains(TOKEN) && !all.contains(ASSERTION), "{all}");
    }

    struct Counted {
        requests: Arc<AtomicUsize>,
        response: Result<SignedDuration, TokenError>,
    }

    impl TokenProvider for Counted {
        fn token(&self) -> BoxFuture<'_, Result<Token, TokenError>> {
            let count = self.requests.fetch_add(1, Ordering::SeqCst);
            let token = |left| Token { secret: Secret::new(format!("{count}")), expires: Timestamp::now() + left };
            std::future::ready(self.response.clone().map(token)).boxed()
        }
    }

    fn counted(response: Result<SignedDuration, TokenError>) -> (TokenCache, Arc<AtomicUsize>) {
        let requests = Arc::new(AtomicUsize::new(0));
        (TokenCache::new(Box::new(Counted { requests: Arc::clone(&requests), response })), requests)
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_reused_until_it_nearly_expires_or_is_refused() {
        let (cache, requests) = counted(Ok(SignedDuration::from_mins(6)));
        let first = cache.get().await.unwrap();
        cache.get().await.unwrap();
        assert_eq!(requests.load(Ordering::SeqCst), 1);
        assert!(cache.invalidate(&Secret::new("another")).await);
        cache.get().await.unwrap();
        assert_eq!(requests.load(Ordering::SeqCst), 1);
        assert!(cache.invalidate(&first).await);
        let second = cache.get().await.unwrap();
        assert_eq!(requests.load(Ordering::SeqCst), 2);
        assert!(!cache.invalidate(&second).await, "Azure refuses the new token too");
        cache.get().await.unwrap();
        assert_eq!(requests.load(Ordering::SeqCst), 2);
        time::advance(FAILURE_BACKOFF).await;
        assert!(cache.invalidate(&second).await);
        cache.get().await.unwrap();
        assert_eq!(requests.load(Ordering::SeqCst), 3);
        let (cache, requests) = counted(Ok(SignedDuration::from_mins(4)));
        cache.get().await.unwrap();
        cache.get().await.unwrap();
        assert_eq!(requests.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_token_request_has_a_backoff() {
        let (cache, requests) = counted(Err(TokenError("no".to_owned())));
        for _ in 0..3 {
            assert_eq!(cache.get().await.unwrap_err().to_string(), "no");
        }
        assert_eq!(requests.load(Ordering::SeqCst), 1);
        time::advance(FAILURE_BACKOFF).await;
        cache.get().await.unwrap_err();
        assert_eq!(requests.load(Ordering::SeqCst), 2);
    }
}
