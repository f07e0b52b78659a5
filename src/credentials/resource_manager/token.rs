//! Tokens for Azure Resource Manager. They are requested rarely, kept in memory only, and never printed.

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

/// A token that expires sooner is not used: a request takes time, and clocks differ.
const MIN_REMAINING_LIFETIME: SignedDuration = SignedDuration::from_mins(5);
/// How long Entra or the Azure CLI may take for a token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long no token is requested after a failure: all requests of a pass would fail in the same way.
const FAILURE_BACKOFF: Duration = Duration::from_secs(30);
/// The longest message of Entra or the Azure CLI that is shown.
const MAX_MESSAGE_CHARS: usize = 400;

/// A token. `Debug` does not print it.
#[derive(Debug, Clone)]
pub struct Token {
    /// The bearer token.
    pub secret: Secret,
    /// When the token expires.
    pub expires: Timestamp,
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TokenError(pub String);

/// A source of tokens.
pub trait TokenProvider: Send + Sync {
    /// Requests a new token.
    fn token(&self) -> BoxFuture<'_, Result<Token, TokenError>>;
}

/// Tokens of Entra, by workload identity if it is injected, else by a developer's login such as `az login`.
pub struct EntraTokens {
    cloud: Cloud,
    http: reqwest::Client,
}

impl EntraTokens {
    pub(super) fn new(cloud: Cloud, http: reqwest::Client) -> Self {
        Self { cloud, http }
    }

    /// Creates a new credential each time: it would return the same token until shortly before that expires, even a refused one
    /// (Azure/azure-sdk-for-rust sdk/identity/azure_identity/src/cache.rs).
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
        return Err(TokenError(format!("no answer within {} s", TOKEN_TIMEOUT.as_secs())));
    };
    let token = response.map_err(|error| TokenError(short_message(&error.to_string())))?;
    // A time out of range belongs to a token that does not expire.
    let expires = Timestamp::from_second(token.expires_on.unix_timestamp()).unwrap_or(Timestamp::MAX);
    Ok(Token { secret: token.token, expires })
}

/// Returns the scope of the cloud (Azure/azure-sdk-for-go sdk/azcore/arm/runtime/runtime.go; for the public one also
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

/// Returns Entra's error without trace IDs, advice and the context that azure_identity adds. azure_identity 1.0 often cannot parse the
/// description because of line breaks in it, and quotes it.
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

/// The current token, until shortly before it expires.
pub(super) struct TokenCache {
    provider: Box<dyn TokenProvider>,
    state: Mutex<TokenState>,
}

#[derive(Default)]
struct TokenState {
    token: Option<Token>,
    failure: Option<(TokenError, Instant)>,
    /// When a token was dropped because Azure refused it.
    refused_at: Option<Instant>,
}

impl TokenCache {
    pub(super) fn new(provider: Box<dyn TokenProvider>) -> Self {
        Self { provider, state: Mutex::default() }
    }

    /// Returns a token that is valid for some minutes.
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

    /// Drops a refused token. Returns whether the request may succeed with another token: not if the previous one was refused just now.
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
        asked: Lock<Vec<(String, String)>>,
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
            self.asked.lock().unwrap().push((request.url().to_string(), form));
            let body = Bytes::from(self.body.clone());
            Box::pin(async move { Ok(AsyncRawResponse::from_bytes(self.status, Headers::new(), body)) })
        }
    }

    async fn answer(cloud: Cloud, status: StatusCode, body: &str) -> (Result<Token, TokenError>, (String, String)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ASSERTION).unwrap();
        let fake = Arc::new(FakeEntra { status, body: body.to_owned(), asked: Lock::default() });
        let credential = WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
            credential_options: options(cloud, Transport::new(fake.clone())),
            client_id: Some("00000000-1111-4222-8333-444444444444".to_owned()),
            tenant_id: Some("11111111-2222-4333-8444-555555555555".to_owned()),
            token_file_path: Some(file.path().to_owned()),
        }));
        let answer = request(cloud, Ok(credential.unwrap())).await;
        let asked = fake.asked.lock().unwrap().pop().unwrap();
        (answer, asked)
    }

    #[tokio::test]
    async fn each_cloud_has_its_own_authority_and_resource() {
        let body = format!(r#"{{"token_type": "Bearer", "expires_in": 3600, "access_token": "{TOKEN}"}}"#);
        for (cloud, authority, resource) in [
            (Cloud::Public, "https://login.microsoftonline.com/", "management.azure.com"),
            (Cloud::UsGovernment, "https://login.microsoftonline.us/", "management.core.usgovcloudapi.net"),
            (Cloud::China, "https://login.chinacloudapi.cn/", "management.core.chinacloudapi.cn"),
        ] {
            let (answer, (url, form)) = answer(cloud, StatusCode::Ok, &body).await;
            let token = answer.unwrap();
            assert_eq!(token.secret.secret(), TOKEN);
            let left = token.expires.duration_since(Timestamp::now());
            assert!((3_590..=3_600).contains(&left.as_secs()), "{left:?}");
            assert!(url.starts_with(authority), "{url}");
            assert!(form.contains(&format!("scope=https%3A%2F%2F{resource}%2F.default")), "{form}");
            assert!(form.contains(ASSERTION), "{form}");
        }
    }

    #[tokio::test]
    async fn no_secret_is_printed_whatever_entra_answers() {
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
            let (answer, _) = answer(Cloud::Public, status, body).await;
            shown += &answer.map_or_else(|error| format!("{error} {error:?}\n"), |token| format!("{token:?}\n"));
        }
        assert!(shown.contains("AADSTS700213: No matching federated identity record found. TokenError"), "{shown}");
        let all = shown + &log.text();
        assert!(all.contains("login.microsoftonline.com"), "the log is heard: {all}");
        assert!(!all.contains(TOKEN) && !all.contains(ASSERTION), "{all}");
    }

    struct Counted {
        asked: Arc<AtomicUsize>,
        answer: Result<SignedDuration, TokenError>,
    }

    impl TokenProvider for Counted {
        fn token(&self) -> BoxFuture<'_, Result<Token, TokenError>> {
            let count = self.asked.fetch_add(1, Ordering::SeqCst);
            let token = |left| Token { secret: Secret::new(format!("{count}")), expires: Timestamp::now() + left };
            std::future::ready(self.answer.clone().map(token)).boxed()
        }
    }

    fn counted(answer: Result<SignedDuration, TokenError>) -> (TokenCache, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        (TokenCache::new(Box::new(Counted { asked: Arc::clone(&asked), answer })), asked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_reused_until_it_nearly_expires_or_is_refused() {
        let (cache, asked) = counted(Ok(SignedDuration::from_mins(6)));
        let first = cache.get().await.unwrap();
        cache.get().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(cache.invalidate(&Secret::new("another")).await);
        cache.get().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(cache.invalidate(&first).await);
        let second = cache.get().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        assert!(!cache.invalidate(&second).await, "a new one is refused too");
        cache.get().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        time::advance(FAILURE_BACKOFF).await;
        assert!(cache.invalidate(&second).await);
        cache.get().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 3);
        let (cache, asked) = counted(Ok(SignedDuration::from_mins(4)));
        cache.get().await.unwrap();
        cache.get().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_no_token_is_requested_for_a_while() {
        let (cache, asked) = counted(Err(TokenError("no".to_owned())));
        for _ in 0..3 {
            assert_eq!(cache.get().await.unwrap_err().to_string(), "no");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        time::advance(FAILURE_BACKOFF).await;
        cache.get().await.unwrap_err();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}
