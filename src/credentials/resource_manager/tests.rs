//! The source against a server on this machine that answers as Azure Resource Manager documents it, or worse.

use std::{
    io,
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
use tokio::{
    net::{TcpListener, TcpSocket},
    time,
};
use tracing_subscriber::{fmt::MakeWriter, util::SubscriberInitExt};

use super::{held::FLOOR, *};

/// What is logged, to the last detail.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

/// Who hears nothing. As long as there is one listener only, the thread that first comes to an event decides for all whether anybody
/// listens (tokio-rs/tracing tracing-core/src/callsite.rs, has_just_one), and the other tests have threads of their own.
static SECOND_LISTENER: LazyLock<tracing::Dispatch> = LazyLock::new(|| {
    tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(io::sink).finish().into()
});

impl Log {
    pub(super) fn listen(&self) -> tracing::subscriber::DefaultGuard {
        LazyLock::force(&SECOND_LISTENER);
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(self.clone()).set_default()
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Log {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

const TOKEN: &str = "eyJ-the-token-of-entra";
const SUBSCRIPTION: &str = "99999999-8888-4777-8666-555555555555";

struct FixedTokens;

impl Tokens for FixedTokens {
    fn token(&self) -> BoxFuture<'_, Result<Token, TokenError>> {
        std::future::ready(Ok(Token { secret: Secret::new(TOKEN), expires: Timestamp::MAX })).boxed()
    }
}

/// Azure Resource Manager, as far as it is asked; paths are in small letters, and come with what is after the api-version.
#[derive(Clone)]
struct Arm {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Arm {
    async fn new(answer: impl Fn(&str) -> Response + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let arm = Self { endpoint, asked: Arc::default() };
        let (asked, answer) = (Arc::clone(&arm.asked), Arc::new(answer));
        let handler = move |request: Request| {
            assert_eq!(request.method(), "GET");
            let is_ours = request.headers()["authorization"] == format!("Bearer {TOKEN}");
            let uri = request.uri().to_string().to_ascii_lowercase();
            let path = uri.replace("?api-version=2024-11-30", "");
            assert!(is_ours && path != uri, "{uri}");
            asked.lock().unwrap().push(path.clone());
            std::future::ready(answer(&path))
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(handler)).await });
        arm
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// The source that asks this server; `set` may change its settings and limits.
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
        patience: Duration::from_secs(10),
    };
    let mut limits = Limits {
        every: Duration::from_millis(1),
        wait: Duration::from_millis(5),
        answer: Duration::from_secs(5),
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

/// The first service accounts of a namespace.
fn accounts(count: usize) -> BTreeSet<AccountName> {
    let account = |i| AccountName { namespace: "shop".to_owned(), name: format!("web-{i}") };
    (0..count).map(account).collect()
}

fn wanted(numbers: impl IntoIterator<Item = usize>) -> Wanted {
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

fn of(azure: &Azure, number: usize) -> &Identity {
    let mut all = azure.identities.iter();
    all.find(|one| one.client_id.eq_ignore_ascii_case(&client_id(number))).unwrap_or_else(|| panic!("{azure:?}"))
}

fn names(azure: &Azure, number: usize) -> Vec<&str> {
    of(azure, number).credentials.as_ref().unwrap().iter().map(|one| one.name.as_str()).collect()
}

#[tokio::test]
async fn lists_are_read_to_their_last_page_and_credentials_only_of_identities_that_are_wanted() {
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
    let mut wanted = wanted([1]);
    // What stands where the client id should be, by mistake: a principal id, a resource id, a name.
    let others = ["ffffffff-aaaa-4000-8000-000000000002".to_owned(), id(5).to_ascii_lowercase(), "id-3".to_owned()];
    wanted.extend(others.map(|name| (name, accounts(1))));
    let azure = source.read(&wanted).await;
    assert_eq!(azure.unseen, None);
    assert_eq!(azure.identities.len(), 5);
    assert_eq!(names(&azure, 1), ["a", "b"]);
    for number in [2, 3, 5] {
        assert_eq!(names(&azure, number), ["c"]);
    }
    assert_eq!(of(&azure, 4).credentials.as_ref().unwrap_err().because, "no service account names it");
    let first = &of(&azure, 1).credentials.as_ref().unwrap()[0];
    assert_eq!((first.subject.as_deref(), first.issuer.as_str()), (Some("system:serviceaccount:ns:a"), "https://i/"));
    assert_eq!(arm.asked().len(), 3 + 2 + 3);
    let again = source.read(&wanted).await;
    assert_eq!((again.identities.len(), arm.asked().len()), (5, 0), "answers are kept");
    assert!(source.read(&Wanted::new()).await.identities.len() == 5 && arm.asked().is_empty(), "nobody wants to know");
}

#[tokio::test]
async fn of_identities_that_are_set_by_resource_id_nothing_else_is_asked() {
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
    let azure = source.read(&wanted([1, 2, 3, 4, 6, 9])).await;
    assert_eq!(names(&azure, 1), ["a"]);
    let absent: Vec<_> = azure.absent.iter().cloned().collect();
    assert_eq!(absent, [client_id(2), client_id(4)], "deleted, or made again under the same name");
    assert_eq!(
        of(&azure, 3).credentials,
        Err(Unread {
            because: "403 AuthorizationFailed".to_owned(),
            action: READ_IDENTITIES.to_owned(),
            scope: ResourceId::parse(&id(3)).unwrap().to_string(),
        })
    );
    let unread = of(&azure, 6).credentials.as_ref().unwrap_err();
    assert_eq!(unread.because, "404 SubscriptionNotFound: The subscription 's' could not be found.");
    assert!(azure.unseen.is_some(), "of others nothing is known");
    let asked = arm.asked();
    assert!(asked.len() == 6 && asked.iter().all(|path| path.contains("/resourcegroups/rg/")), "{asked:?}");
}

/// Every error that is documented, and what becomes of it.
#[tokio::test]
async fn every_failure_becomes_what_it_means_and_none_is_taken_for_an_empty_list() {
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
        ("405 MethodNotAllowed: federated credentials are not to be had in the identity's region", false, 1, || {
            refusal(405, "MethodNotAllowed", "Support for federated identity credentials not enabled.")
        }),
        ("409 ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity: Too many", false, 3, || {
            refusal(409, "ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity", "Too many")
        }),
        ("429 TooManyRequests: slow down", false, 3, || refusal(429, "TooManyRequests", "slow down")),
        ("500 InternalServerError: oops", false, 3, || refusal(500, "InternalServerError", "oops")),
        ("503 Service Unavailable", false, 3, || (StatusCode::SERVICE_UNAVAILABLE, "<html>").into_response()),
        ("302 Found", false, 1, || (StatusCode::FOUND, [("location", "http://127.0.0.1:1/")], "").into_response()),
        ("the answer is not what the API describes: .: missing field `value` at line 1 column 2", false, 1, || {
            "{}".into_response()
        }),
        (
            "the answer is not what the API describes: value[0].properties.issuer: invalid type: integer `5`, expected a string at line 1 column 54",
            false,
            1,
            || r#"{"value": [{"name": "x", "properties": {"issuer":    5}}]}"#.into_response(),
        ),
        ("the answer is not what the API describes: .: expected value at line 1 column 1", false, 1, || {
            "<html>".into_response()
        }),
        ("the answer was cut short", false, 3, || {
            let half = [Ok(Bytes::from(r#"{"value": ["#)), Err(io::Error::other("cut"))];
            Body::from_stream(stream::iter(half)).into_response()
        }),
        ("the answer has more than 1000 bytes", false, 1, || " ".repeat(1_001).into_response()),
    ];
    let nth = Arc::new(AtomicUsize::new(0));
    let case = Arc::clone(&nth);
    let arm = Arm::new(move |path| match path {
        _ if is_credentials(path) => cases[case.load(Ordering::SeqCst)].3(),
        _ => list(&[identity(1)], None),
    })
    .await;
    for (number, (because, is_permission, tries, _)) in cases.iter().enumerate() {
        nth.store(number, Ordering::SeqCst);
        let source = arm.source(|_, limits| limits.bytes = 1_000);
        let azure = source.read(&wanted([1])).await;
        let unread = of(&azure, 1).credentials.as_ref().unwrap_err();
        assert!(unread.because.starts_with(because), "{because}: {unread:?}");
        assert_eq!(unread.action, if *is_permission { READ_CREDENTIALS } else { "" }, "{because}");
        assert!(unread.scope.eq_ignore_ascii_case(&id(1)), "{unread:?}");
        assert_eq!(arm.asked().len() - 1, *tries, "{because}");
        assert_eq!(azure.unseen, None);
    }
}

#[tokio::test]
async fn a_subscription_that_may_not_be_listed_is_named_with_the_permission_that_is_missing() {
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
    let azure = source.read(&wanted([1, 2])).await;
    assert_eq!(names(&azure, 1), [""; 0]);
    let scope = format!("/subscriptions/{other}");
    let action = READ_IDENTITIES.to_owned();
    assert_eq!(azure.unseen, Some(Unread { because: "403 AuthorizationFailed".to_owned(), action, scope }));
}

#[tokio::test]
async fn who_cannot_be_reached_or_does_not_answer_in_time_is_said_to() {
    // A port that is taken, and where nobody listens.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed_source = source(&format!("http://{}", closed.local_addr().unwrap()), |_, _| {});
    let azure = closed_source.read(&wanted([1])).await;
    assert_eq!(azure.unseen.unwrap().because, "cannot connect: Connection refused (os error 111)");
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_source = source(&format!("http://{}", silent.local_addr().unwrap()), |_, limits| {
        limits.answer = Duration::from_secs(1);
    });
    let azure = silent_source.read(&wanted([1])).await;
    assert_eq!(azure.unseen.unwrap().because, "no answer within 1 s");
    let arm = Arm::new(|_| {
        let drip = stream::unfold((), |()| async {
            time::sleep(Duration::from_millis(50)).await;
            Some((Ok::<_, io::Error>(Bytes::from_static(b" ")), ()))
        });
        Body::from_stream(drip).into_response()
    })
    .await;
    let slow = arm.source(|_, limits| limits.answer = Duration::from_secs(1));
    assert_eq!(slow.read(&wanted([1])).await.unseen.unwrap().because, "no answer within 1 s");
}

#[tokio::test]
async fn while_azure_asks_for_a_pause_nothing_is_asked_and_then_it_goes_on() {
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
    let source = arm.source(|_, limits| (limits.every, limits.at_once) = (Duration::from_millis(20), 1));
    let start = Instant::now();
    let azure = source.read(&wanted(0..8)).await;
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(count.load(Ordering::SeqCst), 9);
    for number in 0..8 {
        assert_eq!(names(&azure, number), [""; 0]);
    }
}

#[tokio::test]
async fn a_pause_that_is_longer_than_a_pass_ends_it_and_what_was_not_asked_is_unread() {
    let arm = Arm::new(|path| match path {
        _ if is_credentials(path) => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "3600")], "").into_response(),
        _ => list(&(0..3).map(identity).collect::<Vec<_>>(), None),
    })
    .await;
    let source = arm.source(|settings, limits| (settings.patience, limits.at_once) = (Duration::from_secs(60), 1));
    let start = Instant::now();
    let azure = source.read(&wanted(0..3)).await;
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    assert_eq!(arm.asked().len(), 2);
    let unread: BTreeSet<_> =
        (0..3).map(|number| of(&azure, number).credentials.as_ref().unwrap_err().because.clone()).collect();
    let expected = ["429 Too Many Requests", "there was no time to ask: few requests are made at a time"];
    assert!(unread.iter().eq(expected), "{unread:?}");
    source.read(&wanted(0..3)).await;
    assert_eq!(arm.asked().len(), 0, "the next pass keeps to it");
}

#[tokio::test]
async fn the_token_goes_nowhere_else_and_no_list_is_endless() {
    let next = Arc::new(Mutex::new(String::new()));
    let link = Arc::clone(&next);
    let arm = Arm::new(move |_| list(&[identity(1)], Some(&link.lock().unwrap()))).await;
    let thief = Arm::new(|_| list(&[], None)).await;
    let host = arm.endpoint.trim_start_matches("http://");
    for (link, place) in [
        (format!("{}/x", thief.endpoint), thief.endpoint.clone()),
        (format!("http://{host}@127.0.0.1:1/x"), "http://127.0.0.1:1".to_owned()),
        (format!("http://user:pass@{host}/x"), arm.endpoint.clone()),
        (format!("https://{host}/x"), format!("https://{host}")),
        ("//127.0.0.1:1/x".to_owned(), "http://127.0.0.1:1".to_owned()),
        ("data:,x".to_owned(), "null".to_owned()),
    ] {
        next.lock().unwrap().clone_from(&link);
        let azure = arm.source(|_, _| {}).read(&wanted([1])).await;
        let because = azure.unseen.unwrap().because;
        assert_eq!(because, format!("the list goes on at {place}, where the token is not sent"), "{link}");
        assert_eq!(arm.asked().len(), 1);
    }
    assert_eq!(thief.asked().len(), 0);
    *next.lock().unwrap() = "/again?api-version=2024-11-30".to_owned();
    let azure = arm.source(|_, _| {}).read(&wanted([1])).await;
    assert_eq!((azure.unseen.unwrap().because.as_str(), arm.asked().len()), ("the list does not end", 2));
    let count = AtomicUsize::new(0);
    let endless = Arm::new(move |_| {
        let next = format!("/x?api-version=2024-11-30&p={}", count.fetch_add(1, Ordering::SeqCst));
        list(&[identity(1), identity(2)], Some(&next))
    })
    .await;
    let azure = endless.source(|_, limits| limits.pages = 7).read(&wanted([1])).await;
    assert_eq!((azure.unseen.unwrap().because.as_str(), endless.asked().len()), ("the list does not end", 7));
    let azure = endless.source(|_, limits| limits.entries = 9).read(&wanted([1])).await;
    assert_eq!((azure.unseen.unwrap().because.as_str(), endless.asked().len()), ("the list does not end", 5));
}

#[tokio::test]
async fn the_token_is_in_no_log_no_error_and_no_debug_output_whatever_happens() {
    let log = Log::default();
    let _guard = log.listen();
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
    let azure = source.read(&wanted(0..8)).await;
    let closed = self::source("http://127.0.0.1:1", |_, _| {});
    let nobody = closed.read(&wanted([1])).await;
    let all = format!("{azure:?} {nobody:?} {source:?} {}", log.text());
    assert!(all.contains("cannot read all that was asked of Azure Resource Manager"), "{all}");
    assert!(all.contains("hyper"), "the libraries are heard too");
    assert!(!all.contains(TOKEN), "{all}");
}

#[tokio::test]
async fn a_credential_is_new_when_it_was_not_there_before_but_at_first_none_is() {
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
    let since = |azure: &Azure| {
        let credentials = of(azure, 1).credentials.as_ref().unwrap().iter();
        credentials.map(|one| (one.name.clone(), one.since)).collect::<BTreeMap<_, _>>()
    };
    let (start, changed_at) = (Timestamp::now(), "2026-01-02T00:00:00Z".parse().unwrap());
    let first = since(&source.read(&wanted([1])).await);
    assert_eq!((first["old"], first["changed"], first["dated"]), (None, None, Some(changed_at)));
    step.store(1, Ordering::SeqCst);
    let second = since(&source.read(&wanted([1])).await);
    assert_eq!((second["old"], second["dated"]), (None, Some(changed_at)));
    assert!(second["new"] >= Some(start) && second["changed"] >= Some(start), "{second:?}");
    let third = since(&source.read(&wanted([1])).await);
    assert_eq!(third, second, "it does not stay new for ever");
}

#[tokio::test]
async fn credentials_are_read_again_for_a_service_account_that_names_a_known_identity() {
    let fails = Arc::new(AtomicBool::new(false));
    let does_fail = Arc::clone(&fails);
    let arm = Arm::new(move |path| match path {
        _ if is_credentials(path) && does_fail.load(Ordering::SeqCst) => refusal(500, "InternalServerError", "oops"),
        _ if is_credentials(path) => list(&[], None),
        _ => list(&[identity(1)], None),
    })
    .await;
    let source = arm.source(|_, _| {});
    let wanted_by = |count| [(client_id(1), accounts(count))].into();
    source.read(&wanted_by(2)).await;
    assert_eq!(arm.asked().len(), 2);
    source.read(&wanted_by(1)).await;
    assert_eq!(arm.asked().len(), 0, "one less changes nothing");
    source.read(&wanted_by(2)).await;
    assert_eq!(arm.asked().len(), 1, "its credential may have been made with it");
    fails.store(true, Ordering::SeqCst);
    source.read(&wanted_by(3)).await;
    let tries = arm.asked().len();
    assert!(tries >= 1);
    source.read(&wanted_by(4)).await;
    assert_eq!(arm.asked().len(), 0, "what failed is not asked for so soon");
}

#[tokio::test]
async fn a_new_client_id_is_looked_for_at_once_but_lists_are_not_read_again_and_again() {
    let arm = Arm::new(|path| match path {
        _ if is_credentials(path) => list(&[], None),
        _ => list(&[identity(1), identity(2)], None),
    })
    .await;
    let source = arm.source(|_, _| {});
    source.read(&wanted([1])).await;
    assert_eq!(arm.asked().len(), 2);
    source.read(&wanted([1, 2])).await;
    assert_eq!(arm.asked().len(), 1, "it is in the list that is known");
    let azure = source.read(&wanted([1, 2, 3])).await;
    assert_eq!(arm.asked().len(), 0, "too soon");
    assert_eq!(azure.unseen.unwrap().because, Failure::Older.to_string(), "it may have been made since");
    source.known.lock().await.lists.values_mut().for_each(|held| held.asked -= FLOOR);
    let azure = source.read(&wanted([1, 2, 3])).await;
    assert_eq!((arm.asked().len(), azure.unseen), (1, None), "it does not exist");
    let azure = source.read(&wanted([1, 2, 3, 4])).await;
    assert!(azure.unseen.is_some(), "of another that is not known yet");
    assert!(azure.absent.iter().eq([&client_id(3)]), "{azure:?}");
    let azure = source.read(&wanted([1, 2, 3])).await;
    assert_eq!((arm.asked().len(), azure.unseen), (0, None));
    source.known.lock().await.lists.values_mut().for_each(|held| held.asked -= FLOOR);
    source.read(&wanted([1, 2, 3])).await;
    assert_eq!(arm.asked().len(), 0, "it does not exist; the list is read again when it is old");
}

#[tokio::test]
async fn what_nobody_wants_is_not_asked_for_and_forgotten_once_it_is_old() {
    let arm = Arm::new(|path| match path {
        _ if is_credentials(path) => list(&[credential("a", "")], None),
        _ if path.ends_with("/id-2") => identity(2).into_response(),
        _ => list(&[identity(1)], None),
    })
    .await;
    let source = arm.source(|settings, _| {
        settings.identities.insert(client_id(2), ResourceId::parse(&id(2)).unwrap());
    });
    source.read(&wanted([1, 2])).await;
    assert_eq!(arm.asked().len(), 4);
    let nobody = source.read(&Wanted::new()).await;
    assert_eq!(of(&nobody, 1).credentials.as_ref().unwrap_err().because, "no service account names it");
    let azure = source.read(&wanted([1, 2])).await;
    assert_eq!((names(&azure, 1), names(&azure, 2)), (vec!["a"], vec!["a"]));
    assert_eq!(arm.asked().len(), 2, "service accounts came after the answer: their credentials alone are asked for");
    source.known.lock().await.credentials.values_mut().for_each(|held| held.due = Instant::now());
    source.read(&wanted([1])).await;
    assert_eq!(arm.asked().len(), 1, "what nobody wants is not asked for");
    assert_eq!(source.known.lock().await.credentials.len(), 1, "nor kept for ever");
}

#[tokio::test]
async fn of_an_identity_that_is_only_just_being_made_it_cannot_be_told_whether_it_exists() {
    let arm = Arm::new(|_| format!(r#"{{"id": "{}", "properties": {{}}}}"#, id(1)).into_response()).await;
    let source = arm.source(|settings, _| {
        settings.subscriptions.clear();
        settings.identities.insert(client_id(1), ResourceId::parse(&id(1)).unwrap());
    });
    let azure = source.read(&wanted([1])).await;
    assert_eq!(azure.absent.len(), 0);
    assert_eq!(of(&azure, 1).credentials.as_ref().unwrap_err().because, "it is only just being made");
    let due = source.known.lock().await.named[&client_id(1)].due;
    assert!(due <= Instant::now() + FLOOR, "it is soon looked for again");
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_at_once() {
    let count = AtomicUsize::new(0);
    let arm = Arm::new(move |path| match path {
        _ if count.fetch_add(1, Ordering::SeqCst) == 0 => refusal(401, "ExpiredAuthenticationToken", "expired"),
        _ if is_credentials(path) => list(&[credential("a", "")], None),
        _ => list(&[identity(1)], None),
    })
    .await;
    let azure = arm.source(|_, _| {}).read(&wanted([1])).await;
    assert_eq!((names(&azure, 1), azure.unseen.clone(), arm.asked().len()), (vec!["a"], None, 3));
}

#[tokio::test]
async fn what_is_known_outlasts_an_outage_of_azure() {
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
    let make_old = || async {
        let mut known = source.known.lock().await;
        known.lists.values_mut().for_each(|held| held.due = Instant::now());
        known.credentials.values_mut().for_each(|held| held.due = Instant::now());
    };
    source.read(&wanted([1])).await;
    is_down.store(1, Ordering::SeqCst);
    make_old().await;
    let azure = source.read(&wanted([1])).await;
    assert_eq!((names(&azure, 1), azure.unseen.clone()), (vec!["a"], None));
    assert_eq!(arm.asked().len(), 2 + 2 * 3);
    source.read(&wanted([1])).await;
    assert_eq!(arm.asked().len(), 0, "not again within the floor");
    is_down.store(2, Ordering::SeqCst);
    make_old().await;
    let azure = source.read(&wanted([1])).await;
    assert_eq!((names(&azure, 1), azure.unseen.clone()), (vec!["a"], None), "that is nothing about identities");
    assert_eq!(arm.asked().len(), 3, "once more with a new token, which is not asked for again and again");
    source.read(&wanted([1])).await;
    assert_eq!(arm.asked().len(), 0, "not again within the floor");
    is_down.store(3, Ordering::SeqCst);
    make_old().await;
    let azure = source.read(&wanted([1])).await;
    assert!(azure.unseen.is_some_and(|unread| unread.because == "403 AuthorizationFailed"), "that is an answer");
}

/// In optimised builds it takes some tenths of a second; the bounds are wide for slow machines.
#[test]
fn ten_thousand_identities_are_read_in_bounded_time_memory_and_number_of_requests() {
    const ALL: usize = 10_000;
    const PAGE: usize = 100;
    let (most, under_way) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let most_at_once = Arc::clone(&most);
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
                let now = under_way.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                let under_way = Arc::clone(&under_way);
                let body = stream::once(async move {
                    time::sleep(Duration::from_millis(2)).await;
                    under_way.fetch_sub(1, Ordering::SeqCst);
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
        limits.every = Duration::from_micros(10);
        settings.patience = Duration::from_secs(120);
    });
    let wanted = wanted((0..ALL).step_by(50));
    let start = std::time::Instant::now();
    let mut azure = None;
    let used = allocation_counter::measure(|| azure = Some(runtime.block_on(source.read(&wanted))));
    let (azure, took) = (azure.unwrap(), start.elapsed());
    assert_eq!(azure.identities.len(), ALL);
    assert_eq!(azure.identities.iter().filter(|one| one.credentials.is_ok()).count(), wanted.len());
    assert_eq!(arm.asked().len(), ALL / PAGE + wanted.len());
    assert!(most_at_once.load(Ordering::SeqCst) <= 4, "{most_at_once:?}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert!(used.bytes_max < 40 * 1024 * 1024, "{} bytes", used.bytes_max);
    println!("{took:?}, at most {} KiB", used.bytes_max / 1024);
}
