//! Tokens for Azure Resource Manager: asked for rarely, kept in memory only, and shown to nobody.

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
use tokio::{
    sync::Mutex,
    time::{self, Instant},
};

use crate::azure::Cloud;

/// A token that ends this soon is not used any more: a request takes its time, and clocks differ.
const SPARE: SignedDuration = SignedDuration::from_mins(5);
/// Who gives no token within this time gives none.
const PATIENCE: Duration = Duration::from_secs(30);
/// After a failure nobody is asked again for this long: all requests of a pass would fail alike.
const PAUSE: Duration = Duration::from_secs(30);
/// As long as a message of Entra or the Azure CLI may be.
const LONGEST: usize = 400;

/// A token, which Debug does not show.
#[derive(Debug, Clone)]
pub struct Token {
    /// What proves who asks.
    pub secret: Secret,
    /// Until when it holds.
    pub expires: Timestamp,
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TokenError(pub String);

/// Who gives tokens.
pub trait Tokens: Send + Sync {
    /// A new one.
    fn token(&self) -> BoxFuture<'_, Result<Token, TokenError>>;
}

/// Tokens of Entra: by workload identity where that is injected, else by what developers have logged in to, such as `az login`.
pub struct Entra {
    cloud: Cloud,
    http: reqwest::Client,
}

impl Entra {
    pub(super) fn new(cloud: Cloud, http: reqwest::Client) -> Self {
        Self { cloud, http }
    }

    /// Made anew each time: it would give the same token again until shortly before that ends, even one that was refused
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

impl Tokens for Entra {
    fn token(&self) -> BoxFuture<'_, Result<Token, TokenError>> {
        ask(self.cloud, self.credential()).boxed()
    }
}

async fn ask(cloud: Cloud, credential: azure_core::Result<Arc<dyn TokenCredential>>) -> Result<Token, TokenError> {
    let answer = async { credential?.get_token(&[scope(cloud)], None).await };
    let Ok(answer) = time::timeout(PATIENCE, answer).await else {
        return Err(TokenError(format!("no answer within {} s", PATIENCE.as_secs())));
    };
    let token = answer.map_err(|error| TokenError(in_short(&error.to_string())))?;
    // A time out of all range is that of a token that does not end.
    let expires = Timestamp::from_second(token.expires_on.unix_timestamp()).unwrap_or(Timestamp::MAX);
    Ok(Token { secret: token.token, expires })
}

/// Each cloud's resource (Azure/azure-sdk-for-go sdk/azcore/arm/runtime/runtime.go; for the public one also
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
        // Then AZURE_AUTHORITY_HOST counts, which azure-workload-identity sets.
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

/// What Entra says, without what azure_identity says about it, the numbers of the request and advice. Of Entra's errors azure_identity
/// 1.0 often cannot read the description, for the line breaks in it, and quotes it.
fn in_short(text: &str) -> String {
    let from_code = text.find("AADSTS").and_then(|start| text.get(start..)).unwrap_or(text);
    let ends = ["Trace ID", "To troubleshoot"].iter().filter_map(|end| from_code.find(end));
    let short = ends.min().and_then(|end| from_code.get(..end)).unwrap_or(from_code);
    in_one_line(&short.replace("\\r\\n", " "))
}

pub(super) fn in_one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= LONGEST {
        return line;
    }
    line.chars().take(LONGEST).chain("...".chars()).collect()
}

/// The token in use, until shortly before its end.
pub(super) struct Kept {
    tokens: Box<dyn Tokens>,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    token: Option<Token>,
    failure: Option<(TokenError, Instant)>,
    /// When a token was forgotten because it was refused.
    refused: Option<Instant>,
}

impl Kept {
    pub(super) fn new(tokens: Box<dyn Tokens>) -> Self {
        Self { tokens, last: Mutex::default() }
    }

    /// One that still holds for a while.
    pub(super) async fn get(&self) -> Result<Secret, TokenError> {
        let mut last = self.last.lock().await;
        if let Some(token) = &last.token
            && token.expires.duration_since(Timestamp::now()) > SPARE
        {
            return Ok(token.secret.clone());
        }
        if let Some((error, at)) = &last.failure
            && at.elapsed() < PAUSE
        {
            return Err(error.clone());
        }
        match self.tokens.token().await {
            Ok(token) => {
                let secret = token.secret.clone();
                (last.token, last.failure) = (Some(token), None);
                Ok(secret)
            }
            Err(error) => {
                (last.token, last.failure) = (None, Some((error.clone(), Instant::now())));
                Err(error)
            }
        }
    }

    /// Forgets this one, which was refused. Whether it is worth asking with another one: not if the one before was refused just now.
    pub(super) async fn forget(&self, refused: &Secret) -> bool {
        let mut last = self.last.lock().await;
        if last.token.as_ref().is_none_or(|token| token.secret != *refused) {
            return true;
        }
        if last.refused.is_some_and(|at| at.elapsed() < PAUSE) {
            return false;
        }
        (last.token, last.refused) = (None, Some(Instant::now()));
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
    use crate::credentials::resource_manager::tests::Log;

    const ASSERTION: &str = "assertion-of-the-service-account";
    const TOKEN: &str = "token-of-entra";

    /// Entra, as far as a token goes.
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
        let answer = ask(cloud, Ok(credential.unwrap())).await;
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
    async fn nothing_that_is_secret_is_shown_whatever_entra_answers() {
        let log = Log::default();
        let _guard = log.listen();
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

    impl Tokens for Counted {
        fn token(&self) -> BoxFuture<'_, Result<Token, TokenError>> {
            let count = self.asked.fetch_add(1, Ordering::SeqCst);
            let token = |left| Token { secret: Secret::new(format!("{count}")), expires: Timestamp::now() + left };
            std::future::ready(self.answer.clone().map(token)).boxed()
        }
    }

    fn counted(answer: Result<SignedDuration, TokenError>) -> (Kept, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        (Kept::new(Box::new(Counted { asked: Arc::clone(&asked), answer })), asked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_kept_until_shortly_before_its_end_unless_it_is_refused() {
        let (kept, asked) = counted(Ok(SignedDuration::from_mins(6)));
        let first = kept.get().await.unwrap();
        kept.get().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(kept.forget(&Secret::new("another")).await);
        kept.get().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(kept.forget(&first).await);
        let second = kept.get().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        assert!(!kept.forget(&second).await, "a new one is refused too");
        kept.get().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        time::advance(PAUSE).await;
        assert!(kept.forget(&second).await);
        kept.get().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 3);
        let (kept, asked) = counted(Ok(SignedDuration::from_mins(4)));
        kept.get().await.unwrap();
        kept.get().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_nobody_is_asked_for_a_while() {
        let (kept, asked) = counted(Err(TokenError("no".to_owned())));
        for _ in 0..3 {
            assert_eq!(kept.get().await.unwrap_err().to_string(), "no");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        time::advance(PAUSE).await;
        kept.get().await.unwrap_err();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}
