//! The issuer of the cluster's service account tokens, from Spillway's own token and from the API server's discovery
//! document.

use std::path::{Path, PathBuf};

use kube::Client;
use serde::Deserialize;
use spillway_identity::{managed_identity::ReadFailure, observation::Issuer, preflight::payload};

use crate::telemetry::Causes;

/// The token of a pod's service account (kubernetes.io/docs/tasks/run-application/access-api-from-pod).
const TOKEN_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// The path of the discovery document (OpenID Connect Discovery 1.0, section 4). The ClusterRole
/// `system:service-account-issuer-discovery` permits all service accounts to read it
/// (kubernetes.io/docs/tasks/configure-pod-container/configure-service-account, service account issuer discovery).
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Reads the issuers of a cluster.
#[derive(Clone)]
pub struct IssuerReader {
    client: Client,
    token: PathBuf,
}

/// The issuers that could be read.
#[derive(Debug, Clone, Default)]
pub struct IssuerStatus {
    /// The issuer in the token comes first, because Entra compares it. The discovered issuer follows if it differs.
    pub issuers: Vec<Issuer>,
    /// The reason why no issuer is known.
    pub failure: Option<ReadFailure>,
    /// `true` if the discovery document was read. Its issuer may differ from the issuer in tokens.
    pub is_discovered: bool,
}

/// The fields of a discovery document that Spillway reads.
#[derive(Debug, Deserialize)]
pub struct Discovery {
    issuer: String,
    id_token_signing_alg_values_supported: Option<Vec<String>>,
}

impl Discovery {
    /// Returns the issuer.
    pub fn issuer(self, source: &str) -> Issuer {
        Issuer { url: self.issuer, source: source.to_owned(), algorithms: self.id_token_signing_alg_values_supported }
    }
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
}

impl IssuerReader {
    /// Creates a reader of this cluster. It also reads the token of the pod if the process runs in one.
    pub fn new(client: Client) -> Self {
        Self { client, token: PathBuf::from(TOKEN_FILE) }
    }

    /// Reads the issuers. They can change, because kubelet renews tokens and AKS can change the issuer.
    pub async fn read(&self) -> IssuerStatus {
        let discovery = self.discover().await;
        let in_token = issuer_in_token(&self.token);
        let failure = match (&discovery, &in_token) {
            (Err(error), None) => Some(ReadFailure {
                reason: Causes(error).to_string(),
                action: format!("get {DISCOVERY}"),
                scope: "the cluster".to_owned(),
            }),
            _ => None,
        };
        let is_discovered = discovery.is_ok();
        IssuerStatus { issuers: merge_issuers(in_token, discovery.ok()), failure, is_discovered }
    }

    async fn discover(&self) -> kube::Result<Discovery> {
        let request = axum::http::Request::get(DISCOVERY).body(Vec::new()).map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }
}

/// Returns the `iss` of a token. No other part of the token leaves this function, not even in errors.
fn issuer_in_token(file: &Path) -> Option<String> {
    let token = std::fs::read_to_string(file).ok()?;
    serde_json::from_slice::<Claims>(&payload(token.trim())?).ok().map(|claims| claims.iss)
}

fn merge_issuers(in_token: Option<String>, discovery: Option<Discovery>) -> Vec<Issuer> {
    let is_same = in_token.as_ref().zip(discovery.as_ref()).is_some_and(|(iss, discovery)| *iss == discovery.issuer);
    let of_token = |url| Issuer { url, source: "the token of Spillway's service account".to_owned(), algorithms: None };
    let mut issuers: Vec<_> = in_token.map(of_token).into_iter().collect();
    let Some(discovered) = discovery.map(|discovery| discovery.issuer(DISCOVERY)) else { return issuers };
    match issuers.first_mut().filter(|_| is_same) {
        Some(first) => first.algorithms = discovered.algorithms,
        None => issuers.push(discovered),
    }
    issuers
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::http;
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use kube::client::Body;

    use super::*;

    const HERE: &str = "https://westeurope.oic.prod-aks.azure.com/t/c/";
    const SECRET: &str = "c2lnbmF0dXJl";

    /// An API server with this issuer, or without a discovery document.
    fn server(issuer: Option<&'static str>) -> Client {
        let response = tower::service_fn(move |request: http::Request<Body>| async move {
            assert_eq!(request.uri().path(), DISCOVERY);
            let (status, body) = match issuer {
                Some(issuer) => {
                    (200, format!(r#"{{"issuer":"{issuer}","id_token_signing_alg_values_supported":["RS256"]}}"#))
                }
                None => (403, r#"{"code":403,"message":"no","reason":"Forbidden","status":"Failure"}"#.to_owned()),
            };
            Ok::<_, Infallible>(http::Response::builder().status(status).body(Body::from(body.into_bytes())).unwrap())
        });
        Client::new(response, "default")
    }

    async fn read(token: Option<&str>, issuer: Option<&'static str>) -> IssuerStatus {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        if let Some(token) = token {
            std::fs::write(&file, token).unwrap();
        }
        IssuerReader { client: server(issuer), token: file }.read().await
    }

    fn token(claims: &str) -> String {
        format!("e30.{}.{SECRET}\n", URL_SAFE_NO_PAD.encode(claims))
    }

    fn urls(read: &IssuerStatus) -> Vec<(&str, bool)> {
        read.issuers.iter().map(|issuer| (issuer.url.as_str(), issuer.algorithms.is_some())).collect()
    }

    #[tokio::test]
    async fn the_token_comes_first_and_discovery_is_added_if_it_differs() {
        let ours = token(&format!(r#"{{"iss":"{HERE}","sub":"system:serviceaccount:a:b"}}"#));
        assert_eq!(urls(&read(Some(&ours), Some(HERE)).await), [(HERE, true)]);
        let other = "https://kubernetes.default.svc.cluster.local";
        assert_eq!(urls(&read(Some(&ours), Some(other)).await), [(HERE, false), (other, true)]);
        assert!(read(Some(&ours), Some(other)).await.is_discovered);
        let half = read(Some(&ours), None).await;
        assert_eq!(urls(&half), [(HERE, false)]);
        assert!(!half.is_discovered, "the issuer of the API server is unknown");
        assert_eq!(urls(&read(None, Some(HERE)).await), [(HERE, true)]);
    }

    #[tokio::test]
    async fn an_unreadable_token_is_ignored_and_never_printed() {
        for broken in ["", "a", &format!("a.b.{SECRET}"), &format!("e30.{SECRET}.x"), &token("{}"), "\u{0}..\u{0}"] {
            let read = read(Some(broken), None).await;
            assert!(read.issuers.is_empty());
            let failure = read.failure.unwrap();
            assert!(failure.action.ends_with(DISCOVERY) && !failure.reason.contains(SECRET), "{failure:?}");
        }
    }
}
