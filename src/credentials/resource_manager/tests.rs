//! Tests of the source with a fake Azure Resource Manager, with documented responses and failures.

use std::{
    io,
    num::NonZeroU32,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use azure_core::credentials::Secret;
use k8s_openapi::jiff::Timestamp;
use spillway_identity::{
    AccountName,
    managed_identity::{ManagedIdentity, ReadFailure},
};
use tokio::{
    net::{TcpListener, TcpSocket},
    time,
};
use tracing_subscriber::{fmt::MakeWriter, util::SubscriberInitExt};

use super::{
    entry::MIN_REFRESH_INTERVAL,
    result::{READ_CREDENTIALS, READ_IDENTITIES},
    *,
};

/// Captures the log at level `trace`.
#[derive(Clone, Default)]
pub(super) struct CapturedLog(Arc<Mutex<Vec<u8>>>);

/// A subscriber that discards all events. With a single subscriber, the thread that first reaches an event decides for
/// all threads whether the event is enabled (tokio-rs/tracing tracing-core/src/callsite.rs, has_just_one). Other tests
/// run in other threads.
static SECOND_SUBSCRIBER: LazyLock<tracing::Dispatch> = LazyLock::new(|| {
    tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(io::sink).finish().into()
});

impl CapturedLog {
    pub(super) fn capture(&self) -> tracing::subscriber::DefaultGuard {
        LazyLock::force(&SECOND_SUBSCRIBER);
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(self.clone()).set_default()
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for CapturedLog {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

const TOKEN: &str = "eyJ-the-token-of-entra";
const SUBSCRIPTION: &str = "99999999-8888-4777-8666-555555555555";

struct FixedTokens;

impl TokenProvider for FixedTokens {
    fn token(&self) -> BoxFuture<'_, Result<Token, TokenError>> {
        std::future::ready(Ok(Token { secret: Secret::new(TOKEN), expires: Timestamp::MAX })).boxed()
    }
}

/// A fake Azure Resource Manager. Paths are in lower case and without the api-version, but with other query parameters.
#[derive(Clone)]
struct Arm {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Arm {
    async fn new(response: impl Fn(&str) -> Response + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let arm = Self { endpoint, requests: Arc::default() };
        let (requests, response) = (Arc::clone(&arm.requests), Arc::new(response));
        let handler = move |request: Request| {
            assert_eq!(request.method(), "GET");
            let is_ours = request.headers()["authorization"] == format!("Bearer {TOKEN}");
            let uri = request.uri().to_string().to_ascii_lowercase();
            let path = uri.replace("?api-version=2024-11-30", "");
            assert!(is_ours && path != uri, "{uri}");
            requests.lock().unwrap().push(path.clone());
            std::future::ready(response(&path))
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(handler)).await });
        arm
    }

    /// Returns the paths of the requests since the last call.
    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }

    /// Returns a source that reads from this server. `set` may change its settings and limits.
    fn source(&self, set: impl FnOnce(&mut Settings, &mut Limits)) -> ResourceManager {
        source(&self.endpoint, set)
    }
}

fn source(endpoint: &str, set: impl FnOnce(&mut Settings, &mut Limits)) -> ResourceManager {
    let mut settings = Settings {
        cloud: Cloud::Public,
        endpoint: endpoint.to_owned(),
        api_version: "2024-11-30".to_owned(),
        subscriptions: [SUBSCRIPTION.to_owned()].into(),
        identities: BTreeMap::new(),
        refresh: Duration::from_secs(600),
        pass_timeout: Duration::from_secs(10),
    };
    let mut limits = Limits {
        request_interval: Duration::from_millis(1),
        initial_backoff: Duration::from_millis(5),
        response_timeout: Duration::from_secs(5),
        ..Limits::default()
    };
    set(&mut settings, &mut limits);
    let http = reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none()).retry(retry::never());
    ResourceManager::with(settings, http.build().unwrap(), Box::new(FixedTokens), limits).unwrap()
}

fn client_id(number: usize) -> String {
    format!("00000000-aaaa-4000-8000-{number:012}")
}

fn id(number: usize) -> String {
    format!(
        "/subscriptions/{SUBSCRIPTION}/resourcegroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id-{number}"
    )
}

/// Names of service accounts.
fn accounts(count: usize) -> BTreeSet<AccountName> {
    let account = |i| AccountName { namespace: "shop".to_owned(), name: format!("web-{i}") };
    (0..count).map(account).collect()
}

fn client_ids(numbers: impl IntoIterator<Item = usize>) -> ClientIds {
    numbers.into_iter().map(|number| (client_id(number), accounts(1))).collect()
}

fn identity(number: usize) -> String {
    let (client_id, id) = (client_id(number).to_ascii_uppercase(), id(number));
    format!(
        r#"{{"id": "{id}", "name": "id-{number}", "location": "westeurope", "tags": {{}}, "type": "Microsoft.ManagedIdentity/userAssignedIdentities", "properties": {{"clientId": "{client_id}", "principalId": "FFFFFFFF-aaaa-4000-8000-{number:012}", "tenantId": "t", "isolationScope": "None"}}}}"#
    )
}

fn credential(name: &str, more: &str) -> String {
    format!(
        r#"{{"id": "x", "name": "{name}", "type": "y", "properties": {{"issuer": "https://i/", "subject": "system:serviceaccount:ns:{name}", "audiences": ["api://AzureADTokenExchange"]}}{more}}}"#
    )
}

fn list(items: &[String], next: Option<&str>) -> Response {
    let next = next.map(|next| format!(r#", "nextLink": "{next}""#)).unwrap_or_default();
    format!(r#"{{"value": [{}]{next}}}"#, items.join(", ")).into_response()
}

fn refusal(status: u16, code: &str, message: &str) -> Response {
    let body = format!(r#"{{"error": {{"code": "{code}", "message": "{message}"}}}}"#);
    (StatusCode::from_u16(status).unwrap(), body).into_response()
}

fn is_credentials(path: &str) -> bool {
    path.ends_with("/federatedidentitycredentials")
}

fn identity_of(read: &ManagedIdentities, number: usize) -> &ManagedIdentity {
    let mut all = read.identities.iter();
    all.find(|one| one.client_id.eq_ignore_ascii_case(&client_id(number))).unwrap_or_else(|| panic!("{read:?}"))
}

fn names(read: &ManagedIdentities, number: usize) -> Vec<&str> {
    identity_of(read, number).credentials.as_ref().unwrap().iter().map(|one| one.name.as_str()).collect()
}

#[tokio::test]
async fn only_credentials_of_named_identities_are_read() {
    let endpoint = Arc::new(Mutex::new(String::new()));
    let own = Arc::clone(&endpoint);
    let arm = Arm::new(move |path| {
        let next = |rest: &str| {
            format!("{}{}?api-version=2024-11-30&{rest}", own.lock().unwrap(), path.split('&').next().unwrap())
        };
        match path {
            _ if path.ends_with("/id-1/federatedidentitycredentials") => {
                list(&[credential("a", "")], Some(&next("p=2")))
            }
            _ if path.ends_with("/id-1/federatedidentitycredentials&p=2") => list(&[credential("b", "")], Some("")),
            _ if is_credentials(path) => list(&[credential("c", "")], None),
            _ if path.ends_with("&p=3") => list(&[identity(5)], None),
            _ if path.ends_with("&p=2") => list(&[], Some(&next("p=3"))),
            _ => list(&[identity(1), identity(2), identity(3), identity(4)], Some(&next("p=2"))),
        }
    })
    .await;
    endpoint.lock().unwrap().clone_from(&arm.endpoint);
    let source = arm.source(|_, _| {});
    let mut client_ids = client_ids([1]);
    // By mistake, the annotation may also contain a principal ID, a resource ID or a name.
    let others = ["ffffffff-aaaa-4000-8000-000000000002".to_owned(), id(5).to_ascii_lowercase(), "id-3".to_owned()];
    client_ids.extend(others.map(|name| (name, accounts(1))));
    let read = source.read(&client_ids).await;
    assert_eq!(read.incomplete, None);
    assert_eq!(read.identities.len(), 5);
    assert_eq!(names(&read, 1), ["a", "b"]);
    for number in [2, 3, 5] {
        assert_eq!(names(&read, number), ["c"]);
    }
    assert_eq!(identity_of(&read, 4).credentials.as_ref().unwrap_err().reason, "no service account names it");
    let first = &identity_of(&read, 1).credentials.as_ref().unwrap()[0];
    assert_eq!((first.subject.as_deref(), first.issuer.as_str()), (Some("system:serviceaccount:ns:a"), "https://i/"));
    assert_eq!(arm.requests().len(), 3 + 2 + 3);
    let again = source.read(&client_ids).await;
    assert_eq!((again.identities.len(), arm.requests().len()), (5, 0), "results are cached");
    assert!(
        source.read(&ClientIds::new()).await.identities.len() == 5 && arm.requests().is_empty(),
        "no service account names a client ID"
    );
}

#[tokio::test]
async fn identities_configured_by_resource_id_need_no_list() {
    let arm = Arm::new(|path| match path {
        _ if is_credentials(path) => list(&[credential("a", "")], None),
        _ if path.ends_with("/id-1") => identity(1).into_response(),
        _ if path.ends_with("/id-2") => refusal(404, "ResourceNotFound", "The Resource 'id-2' was not found."),
        _ if path.ends_with("/id-3") => refusal(403, "AuthorizationFailed", "The client 'x' may not"),
        _ if path.ends_with("/id-4") => identity(5).into_response(),
        _ => refusal(404, "SubscriptionNotFound", "The subscription 's' could not be found."),
    })
    .await;
    let source = arm.source(|settings, _| {
        settings.subscriptions.clear();
        let all =
            (1..8).map(|number| (client_id(number).to_ascii_uppercase(), ResourceId::parse(&id(number)).unwrap()));
        settings.identities = all.collect();
    });
    let read = source.read(&client_ids([1, 2, 3, 4, 6, 9])).await;
    assert_eq!(names(&read, 1), ["a"]);
    let absent: Vec<_> = read.absent.iter().cloned().collect();
    assert_eq!(absent, [client_id(2), client_id(4)], "deleted, or recreated with the same name");
    assert_eq!(
        identity_of(&read, 3).credentials,
        Err(ReadFailure {
            reason: "403 AuthorizationFailed".to_owned(),
            action: READ_IDENTITIES.to_owned(),
            scope: ResourceId::parse(&id(3)).unwrap().to_string(),
        })
    );
    let failure = identity_of(&read, 6).credentials.as_ref().unwrap_err();
    assert_eq!(failure.reason, "404 SubscriptionNotFound: The subscription 's' could not be found.");
    assert!(read.incomplete.is_some(), "other identities are unknown");
    let requests = arm.requests();
    assert!(requests.len() == 6 && requests.iter().all(|path| path.contains("/resourcegroups/rg/")), "{requests:?}");
}

/// All documented errors, and their failures.
#[tokio::test]
async fn every_error_becomes_a_failure_and_never_an_empty_list() {
    type Answer = fn() -> Response;
    let cases: [(&str, bool, usize, Answer); 14] = [
        ("401 InvalidAuthenticationTokenTenant: The access token is from the wrong issuer", false, 2, || {
            refusal(401, "InvalidAuthenticationTokenTenant", "The access token is from the wrong issuer")
        }),
        ("403 AuthorizationFailed", true, 1, || {
            refusal(
                403,
                "AuthorizationFailed",
                "The client 'c' does not have authorization to perform action 'a' over scope 's'",
            )
        }),
        ("404 ResourceNotFound: The Resource was not found.", false, 1, || {
            refusal(404, "ResourceNotFound", "The Resource was not found.")
        }),
        (
            "405 MethodNotAllowed: Azure does not support federated credentials in the identity's region",
            false,
            1,
            || refusal(405, "MethodNotAllowed", "Support for federated identity credentials not enabled."),
        ),
        ("409 ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity: Too many", false, 3, || {
            refusal(409, "ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity", "Too many")
        }),
        ("429 TooManyRequests: slow down", false, 3, || refusal(429, "TooManyRequests", "slow down")),
        ("500 InternalServerError: oops", false, 3, || refusal(500, "InternalServerError", "oops")),
        ("503 Service Unavailable", false, 3, || (StatusCode::SERVICE_UNAVAILABLE, "<html>").into_response()),
        ("302 Found", false, 1, || (StatusCode::FOUND, [("location", "http://127.0.0.1:1/")], "").into_response()),
        ("unexpected response: .: missing field `value` at line 1 column 2", false, 1, || "{}".into_response()),
        (
            "unexpected response: value[0].properties.issuer: invalid type: integer `5`, expected a string at line 1 column 54",
            false,
            1,
            || r#"{"value": [{"name": "x", "properties": {"issuer":    5}}]}"#.into_response(),
        ),
        ("unexpected response: .: expected value at line 1 column 1", false, 1, || "<html>".into_response()),
        ("incomplete response", false, 3, || {
            let half = [Ok(Bytes::from(r#"{"value": ["#)), Err(io::Error::other("cut"))];
            Body::from_stream(stream::iter(half)).into_response()
        }),
        ("the response has more than 1000 bytes", false, 1, || " ".repeat(1_001).into_response()),
    ];
    let nth = Arc::new(AtomicUsize::new(0));
    let case = Arc::clone(&nth);
    let arm = Arm::new(move |path| match path {
        _ if is_credentials(path) => cases[case.load(Ordering::SeqCst)].3(),
        _ => list(&[identity(1)], None),
    })
    .await;
    for (number, (reason, is_permission, attempts, _)) in cases.iter().enumerate() {
        nth.store(number, Ordering::SeqCst);
        let source = arm.source(|_, limits| limits.max_response_bytes = 1_000);
        let read = source.read(&client_ids([1])).await;
        let failure = identity_of(&read, 1).credentials.as_ref().unwrap_err();
        assert!(failure.reason.starts_with(reason), "{reason}: {failure:?}");
        assert_eq!(failure.action, if *is_permission { READ_CREDENTIALS } else { "" }, "{reason}");
        assert!(failure.scope.eq_ignore_ascii_case(&id(1)), "{failure:?}");
        assert_eq!(arm.requests().len() - 1, *attempts, "{reason}");
        assert_eq!(read.incomplete, None);
    }
}

#[tokio::test]
async fn a_forbidden_list_names_subscription_and_permission() {
    let other = "88888888-8888-4777-8666-555555555555";
    let arm = Arm::new(move |path| match path {
        _ if path.contains(other) => refusal(403, "AuthorizationFailed", "no"),
        _ if is_credentials(path) => list(&[], None),
        _ => list(&[identity(1)], None),
    })
    .await;
    let source = arm.source(|settings, _| {
        settings.subscriptions.insert(other.to_owned());
    });
    let read = source.read(&client_ids([1, 2])).await;
    assert_eq!(names(&read, 1), [""; 0]);
    let scope = format!("/subscriptions/{other}");
    let action = READ_IDENTITIES.to_owned();
    assert_eq!(read.incomplete, Some(ReadFailure { reason: "403 AuthorizationFailed".to_owned(), action, scope }));
}

#[tokio::test]
async fn an_unreachable_or_slow_server_is_reported() {
    // A bound port without a listener.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed_source = source(&format!("http://{}", closed.local_addr().unwrap()), |_, _| {});
    let read = closed_source.read(&client_ids([1])).await;
    assert_eq!(read.incomplete.unwrap().reason, "cannot connect: Connection refused (os error 111)");
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_source = source(&format!("http://{}", silent.local_addr().unwrap()), |_, limits| {
        limits.response_timeout = Duration::from_secs(1);
    });
    let read = silent_source.read(&client_ids([1])).await;
    assert_eq!(read.incomplete.unwrap().reason, "no response within 1 s");
    let arm = Arm::new(|_| {
        let drip = stream::unfold((), |()| async {
            time::sleep(Duration::from_millis(50)).await;
            Some((Ok::<_, io::Error>(Bytes::from_static(b" ")), ()))
        });
        Body::from_stream(drip).into_response()
    })
    .await;
    let slow = arm.source(|_, limits| limits.response_timeout = Duration::from_secs(1));
    assert_eq!(slow.read(&client_ids([1])).await.incomplete.unwrap().reason, "no response within 1 s");
}

#[tokio::test]
async fn retry_after_stops_all_requests_for_that_time() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let arm = Arm::new(move |path| match path {
        _ if !is_credentials(path) => list(&(0..8).map(identity).collect::<Vec<_>>(), None),
        _ if counter.fetch_add(1, Ordering::SeqCst) == 0 => {
            (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")], r#"{"error": {"code": "TooManyRequests"}}"#)
                .into_response()
        }
        _ => list(&[], None),
    })
    .await;
    let source =
        arm.source(|_, limits| (limits.request_interval, limits.burst) = (Duration::from_millis(20), NonZeroU32::MIN));
    let start = Instant::now();
    let read = source.read(&client_ids(0..8)).await;
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(count.load(Ordering::SeqCst), 9);
    for number in 0..8 {
        assert_eq!(names(&read, number), [""; 0]);
    }
}

#[tokio::test]
async fn a_retry_after_beyond_the_deadline_ends_the_pass() {
    let arm = Arm::new(|path| match path {
        _ if is_credentials(path) => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "3600")], "").into_response(),
        _ => list(&(0..3).map(identity).collect::<Vec<_>>(), None),
    })
    .await;
    let source = arm
        .source(|settings, limits| (settings.pass_timeout, limits.burst) = (Duration::from_secs(60), NonZeroU32::MIN));
    let start = Instant::now();
    let read = source.read(&client_ids(0..3)).await;
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    assert_eq!(arm.requests().len(), 2);
    let reasons: BTreeSet<_> =
        (0..3).map(|number| identity_of(&read, number).credentials.as_ref().unwrap_err().reason.clone()).collect();
    let expected = ["429 Too Many Requests", &Failure::DeadlineExceeded.to_string()];
    assert!(reasons.iter().eq(expected), "{reasons:?}");
    source.read(&client_ids(0..3)).await;
    assert_eq!(arm.requests().len(), 0, "the next pass also waits for Retry-After");
}

#[tokio::test]
async fn the_token_stays_at_its_origin_and_lists_are_bounded() {
    let next = Arc::new(Mutex::new(String::new()));
    let link = Arc::clone(&next);
    let arm = Arm::new(move |_| list(&[identity(1)], Some(&link.lock().unwrap()))).await;
    let foreign = Arm::new(|_| list(&[], None)).await;
    let host = arm.endpoint.trim_start_matches("http://");
    for (link, place) in [
        (format!("{}/x", foreign.endpoint), foreign.endpoint.clone()),
        (format!("http://{host}@127.0.0.1:1/x"), "http://127.0.0.1:1".to_owned()),
        (format!("http://user:pass@{host}/x"), arm.endpoint.clone()),
        (format!("https://{host}/x"), format!("https://{host}")),
        ("//127.0.0.1:1/x".to_owned(), "http://127.0.0.1:1".to_owned()),
        ("data:,x".to_owned(), "null".to_owned()),
    ] {
        next.lock().unwrap().clone_from(&link);
        let read = arm.source(|_, _| {}).read(&client_ids([1])).await;
        let reason = read.incomplete.unwrap().reason;
        assert_eq!(reason, format!("the next page is at {place}, to which Spillway does not send its token"), "{link}");
        assert_eq!(arm.requests().len(), 1);
    }
    assert_eq!(foreign.requests().len(), 0);
    *next.lock().unwrap() = "/again?api-version=2024-11-30".to_owned();
    let read = arm.source(|_, _| {}).read(&client_ids([1])).await;
    assert_eq!(
        (read.incomplete.unwrap().reason.as_str(), arm.requests().len()),
        ("the list is too long or does not end", 2)
    );
    let count = AtomicUsize::new(0);
    let endless = Arm::new(move |_| {
        let next = format!("/x?api-version=2024-11-30&p={}", count.fetch_add(1, Ordering::SeqCst));
        list(&[identity(1), identity(2)], Some(&next))
    })
    .await;
    let read = endless.source(|_, limits| limits.max_pages = 7).read(&client_ids([1])).await;
    assert_eq!(
        (read.incomplete.unwrap().reason.as_str(), endless.requests().len()),
        ("the list is too long or does not end", 7)
    );
    let read = endless.source(|_, limits| limits.max_entries = 9).read(&client_ids([1])).await;
    assert_eq!(
        (read.incomplete.unwrap().reason.as_str(), endless.requests().len()),
        ("the list is too long or does not end", 5)
    );
}

#[tokio::test]
async fn the_token_is_in_no_log_error_or_debug_output() {
    let log = CapturedLog::default();
    let _guard = log.capture();
    let count = AtomicUsize::new(0);
    let arm = Arm::new(move |path| match path {
        _ if !is_credentials(path) => list(&(0..8).map(identity).collect::<Vec<_>>(), None),
        _ => match count.fetch_add(1, Ordering::SeqCst) {
            0 => refusal(401, "ExpiredAuthenticationToken", "expired"),
            1 => refusal(403, "AuthorizationFailed", "no"),
            2 => (StatusCode::FOUND, [("location", "/elsewhere")], "").into_response(),
            3 => "{".into_response(),
            4 => Body::from_stream(stream::iter([Err::<Bytes, _>(io::Error::other("cut"))])).into_response(),
            5 => refusal(503, "ServiceUnavailable", "no"),
            _ => list(&[credential("a", "")], Some("http://127.0.0.1:1/")),
        },
    })
    .await;
    let source = arm.source(|_, _| {});
    let read = source.read(&client_ids(0..8)).await;
    let closed = self::source("http://127.0.0.1:1", |_, _| {});
    let unreachable = closed.read(&client_ids([1])).await;
    let all = format!("{read:?} {unreachable:?} {source:?} {}", log.text());
    assert!(all.contains("cannot read everything from Azure Resource Manager"), "{all}");
    assert!(all.contains("hyper"), "the test captures the logs of libraries");
    assert!(!all.contains(TOKEN), "{all}");
}

#[tokio::test]
async fn a_credential_that_appears_later_is_new() {
    let step = Arc::new(AtomicUsize::new(0));
    let at = Arc::clone(&step);
    let dated = r#", "systemData": {"createdAt": "2026-01-01T00:00:00Z", "lastModifiedAt": "2026-01-02T00:00:00Z"}"#;
    let arm = Arm::new(move |path| match (is_credentials(path), at.load(Ordering::SeqCst)) {
        (false, _) => list(&[identity(1)], None),
        (_, 0) => list(&[credential("old", ""), credential("changed", ""), credential("dated", dated)], None),
        _ => {
            let changed = credential("changed", "").replace("https://i/", "https://other/");
            list(&[credential("old", ""), changed, credential("new", ""), credential("dated", dated)], None)
        }
    })
    .await;
    let source = arm.source(|settings, _| settings.refresh = Duration::ZERO);
    let since = |read: &ManagedIdentities| {
        let credentials = identity_of(read, 1).credentials.as_ref().unwrap().iter();
        credentials.map(|one| (one.name.clone(), one.since)).collect::<BTreeMap<_, _>>()
    };
    let (start, changed_at) = (Timestamp::now(), "2026-01-02T00:00:00Z".parse().unwrap());
    let first = since(&source.read(&client_ids([1])).await);
    assert_eq!((first["old"], first["changed"], first["dated"]), (None, None, Some(changed_at)));
    step.store(1, Ordering::SeqCst);
    let second = since(&source.read(&client_ids([1])).await);
    assert_eq!((second["old"], second["dated"]), (None, Some(changed_at)));
    assert!(second["new"] >= Some(start) && second["changed"] >= Some(start), "{second:?}");
    let third = since(&source.read(&client_ids([1])).await);
    assert_eq!(third, second, "an unchanged credential keeps its time");
}

#[tokio::test]
async fn credentials_are_read_again_for_a_new_service_account() {
    let fails = Arc::new(AtomicBool::new(false));
    let does_fail = Arc::clone(&fails);
    let arm = Arm::new(move |path| match path {
        _ if is_credentials(path) && does_fail.load(Ordering::SeqCst) => refusal(500, "InternalServerError", "oops"),
        _ if is_credentials(path) => list(&[], None),
        _ => list(&[identity(1)], None),
    })
    .await;
    let source = arm.source(|_, _| {});
    let named_by = |count| [(client_id(1), accounts(count))].into();
    source.read(&named_by(2)).await;
    assert_eq!(arm.requests().len(), 2);
    source.read(&named_by(1)).await;
    assert_eq!(arm.requests().len(), 0, "a removed service account needs no request");
    source.read(&named_by(2)).await;
    assert_eq!(arm.requests().len(), 1, "a new service account may have a new credential");
    fails.store(true, Ordering::SeqCst);
    source.read(&named_by(3)).await;
    let tries = arm.requests().len();
    assert!(tries >= 1);
    source.read(&named_by(4)).await;
    assert_eq!(arm.requests().len(), 0, "a failed read is not repeated immediately");
}

#[tokio::test]
async fn a_new_client_id_is_looked_up_at_a_limited_rate() {
    let arm = Arm::new(|path| match path {
        _ if is_credentials(path) => list(&[], None),
        _ => list(&[identity(1), identity(2)], None),
    })
    .await;
    let source = arm.source(|_, _| {});
    source.read(&client_ids([1])).await;
    assert_eq!(arm.requests().len(), 2);
    source.read(&client_ids([1, 2])).await;
    assert_eq!(arm.requests().len(), 1, "the cached list has the identity");
    let read = source.read(&client_ids([1, 2, 3])).await;
    assert_eq!(arm.requests().len(), 0, "too soon");
    assert_eq!(
        read.incomplete.unwrap().reason,
        Failure::Outdated.to_string(),
        "the identity may be newer than the list"
    );
    source.cache.lock().await.lists.values_mut().for_each(|entry| entry.attempted_at -= MIN_REFRESH_INTERVAL);
    let read = source.read(&client_ids([1, 2, 3])).await;
    assert_eq!((arm.requests().len(), read.incomplete), (1, None), "the identity does not exist");
    let read = source.read(&client_ids([1, 2, 3, 4])).await;
    assert!(read.incomplete.is_some(), "the list is too old for another client ID");
    assert!(read.absent.iter().eq([&client_id(3)]), "{read:?}");
    let read = source.read(&client_ids([1, 2, 3])).await;
    assert_eq!((arm.requests().len(), read.incomplete), (0, None));
    source.cache.lock().await.lists.values_mut().for_each(|entry| entry.attempted_at -= MIN_REFRESH_INTERVAL);
    source.read(&client_ids([1, 2, 3])).await;
    assert_eq!(arm.requests().len(), 0, "the list is not due, and the identity does not exist");
}

#[tokio::test]
async fn unneeded_credentials_are_not_read_and_expire() {
    let arm = Arm::new(|path| match path {
        _ if is_credentials(path) => list(&[credential("a", "")], None),
        _ if path.ends_with("/id-2") => identity(2).into_response(),
        _ => list(&[identity(1)], None),
    })
    .await;
    let source = arm.source(|settings, _| {
        settings.identities.insert(client_id(2), ResourceId::parse(&id(2)).unwrap());
    });
    source.read(&client_ids([1, 2])).await;
    assert_eq!(arm.requests().len(), 4);
    let unneeded = source.read(&ClientIds::new()).await;
    assert_eq!(identity_of(&unneeded, 1).credentials.as_ref().unwrap_err().reason, "no service account names it");
    let read = source.read(&client_ids([1, 2])).await;
    assert_eq!((names(&read, 1), names(&read, 2)), (vec!["a"], vec!["a"]));
    assert_eq!(arm.requests().len(), 2, "only credentials that are older than the references are read");
    source.cache.lock().await.credentials.values_mut().for_each(|entry| entry.refresh_at = Instant::now());
    source.read(&client_ids([1])).await;
    assert_eq!(arm.requests().len(), 1, "unneeded credentials are not read");
    assert_eq!(source.cache.lock().await.credentials.len(), 1, "unneeded credentials expire");
}

#[tokio::test]
async fn an_identity_that_azure_is_creating_is_unknown() {
    let arm = Arm::new(|_| format!(r#"{{"id": "{}", "properties": {{}}}}"#, id(1)).into_response()).await;
    let source = arm.source(|settings, _| {
        settings.subscriptions.clear();
        settings.identities.insert(client_id(1), ResourceId::parse(&id(1)).unwrap());
    });
    let read = source.read(&client_ids([1])).await;
    assert_eq!(read.absent.len(), 0);
    assert_eq!(identity_of(&read, 1).credentials.as_ref().unwrap_err().reason, "Azure is still creating the identity");
    let refresh_at = source.cache.lock().await.configured[&client_id(1)].refresh_at;
    assert!(refresh_at <= Instant::now() + MIN_REFRESH_INTERVAL, "the identity is read again soon");
}

#[tokio::test]
async fn a_refused_token_is_replaced_immediately() {
    let count = AtomicUsize::new(0);
    let arm = Arm::new(move |path| match path {
        _ if count.fetch_add(1, Ordering::SeqCst) == 0 => refusal(401, "ExpiredAuthenticationToken", "expired"),
        _ if is_credentials(path) => list(&[credential("a", "")], None),
        _ => list(&[identity(1)], None),
    })
    .await;
    let read = arm.source(|_, _| {}).read(&client_ids([1])).await;
    assert_eq!((names(&read, 1), read.incomplete.clone(), arm.requests().len()), (vec!["a"], None, 3));
}

#[tokio::test]
async fn results_outlast_an_outage_of_azure() {
    let is_down = Arc::new(AtomicUsize::new(0));
    let down = Arc::clone(&is_down);
    let arm = Arm::new(move |path| match path {
        _ if down.load(Ordering::SeqCst) == 1 => refusal(503, "ServerBusy", "later"),
        _ if down.load(Ordering::SeqCst) == 2 => refusal(401, "ExpiredAuthenticationToken", "no"),
        _ if down.load(Ordering::SeqCst) == 3 => refusal(403, "AuthorizationFailed", "no"),
        _ if is_credentials(path) => list(&[credential("a", "")], None),
        _ => list(&[identity(1)], None),
    })
    .await;
    let source = arm.source(|_, _| {});
    let expire = || async {
        let mut cache = source.cache.lock().await;
        cache.lists.values_mut().for_each(|entry| entry.refresh_at = Instant::now());
        cache.credentials.values_mut().for_each(|entry| entry.refresh_at = Instant::now());
    };
    source.read(&client_ids([1])).await;
    is_down.store(1, Ordering::SeqCst);
    expire().await;
    let read = source.read(&client_ids([1])).await;
    assert_eq!((names(&read, 1), read.incomplete.clone()), (vec!["a"], None));
    assert_eq!(arm.requests().len(), 2 + 2 * 3);
    source.read(&client_ids([1])).await;
    assert_eq!(arm.requests().len(), 0, "not again within the minimum interval");
    is_down.store(2, Ordering::SeqCst);
    expire().await;
    let read = source.read(&client_ids([1])).await;
    assert_eq!(
        (names(&read, 1), read.incomplete.clone()),
        (vec!["a"], None),
        "a refused token is not about the identity"
    );
    assert_eq!(arm.requests().len(), 3, "one retry with a new token, and no further token");
    source.read(&client_ids([1])).await;
    assert_eq!(arm.requests().len(), 0, "not again within the minimum interval");
    is_down.store(3, Ordering::SeqCst);
    expire().await;
    let read = source.read(&client_ids([1])).await;
    assert!(
        read.incomplete.is_some_and(|failure| failure.reason == "403 AuthorizationFailed"),
        "a missing permission is a permanent failure"
    );
}

/// An optimised build takes less than a second. The limits are high enough for slow machines.
#[test]
fn ten_thousand_identities_need_bounded_time_memory_and_requests() {
    const ALL: usize = 10_000;
    const PAGE: usize = 100;
    let (most, in_flight) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let most_in_flight = Arc::clone(&most);
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let arm = Arm::new(move |path| {
                if !is_credentials(path) {
                    let page: usize = path.split_once("&p=").map_or(0, |(_, page)| page.parse().unwrap());
                    let next = format!("{}?api-version=2024-11-30&p={}", path.split('&').next().unwrap(), page + 1);
                    let items: Vec<_> = (page * PAGE..(page + 1) * PAGE).map(identity).collect();
                    return list(&items, Some(next.as_str()).filter(|_| (page + 1) * PAGE < ALL));
                }
                let now = in_flight.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                let in_flight = Arc::clone(&in_flight);
                let body = stream::once(async move {
                    time::sleep(Duration::from_millis(2)).await;
                    in_flight.fetch_sub(1, Ordering::SeqCst);
                    Ok::<_, io::Error>(Bytes::from(format!(r#"{{"value": [{}]}}"#, credential("a", ""))))
                });
                Body::from_stream(body).into_response()
            })
            .await;
            send.send(arm).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let arm = receive.recv().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let source = arm.source(|settings, limits| {
        limits.request_interval = Duration::from_micros(10);
        settings.pass_timeout = Duration::from_secs(120);
    });
    let client_ids = client_ids((0..ALL).step_by(50));
    let start = std::time::Instant::now();
    let mut read = None;
    let used = allocation_counter::measure(|| read = Some(runtime.block_on(source.read(&client_ids))));
    let (read, took) = (read.unwrap(), start.elapsed());
    assert_eq!(read.identities.len(), ALL);
    assert_eq!(read.identities.iter().filter(|one| one.credentials.is_ok()).count(), client_ids.len());
    assert_eq!(arm.requests().len(), ALL / PAGE + client_ids.len());
    assert!(most_in_flight.load(Ordering::SeqCst) <= 4, "{most_in_flight:?}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert!(used.bytes_max < 40 * 1024 * 1024, "{} bytes", used.bytes_max);
    println!("{took:?}, at most {} KiB", used.bytes_max / 1024);
}
