//! The issuer of the cluster's tokens: what our own token says, and what the API server says of itself.

use std::path::{Path, PathBuf};

use kube::Client;
use serde::Deserialize;

use crate::{
    identity::{azure::Unread, preflight::payload, seen::Issuer},
    telemetry::Causes,
};

/// Where a pod has the token of its service account (kubernetes.io/docs/tasks/run-application/access-api-from-pod).
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// OpenID Connect Discovery 1.0, section 4. Every service account may read it: ClusterRole `system:service-account-issuer-discovery`
/// (kubernetes.io/docs/tasks/configure-pod-container/configure-service-account, service account issuer discovery).
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Where issuers are read.
#[derive(Clone)]
pub struct Issuers {
    client: Client,
    token: PathBuf,
}

/// What could be read.
#[derive(Debug, Clone, Default)]
pub struct Read {
    /// What the token says first, for that is what Entra compares; another one only if it differs.
    pub issuers: Vec<Issuer>,
    /// Why nothing is known, if so.
    pub unread: Option<Unread>,
    /// Whether the API server has said what it takes for its issuer: that may differ from what tokens say.
    pub is_discovered: bool,
}

/// What is read of a discovery document.
#[derive(Debug, Deserialize)]
pub struct Discovery {
    issuer: String,
    id_token_signing_alg_values_supported: Option<Vec<String>>,
}

impl Discovery {
    /// The issuer that it names.
    pub fn issuer(self, source: &str) -> Issuer {
        Issuer { url: self.issuer, source: source.to_owned(), algorithms: self.id_token_signing_alg_values_supported }
    }
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
}

impl Issuers {
    /// Those of a cluster, and of the pod that this may be.
    pub fn new(client: Client) -> Self {
        Self { client, token: PathBuf::from(TOKEN) }
    }

    /// Reads them anew: tokens are renewed, and the issuer changes when AKS is told to show it.
    pub async fn read(&self) -> Read {
        let discovery = self.discover().await;
        let in_token = of_token(&self.token);
        let unread = match (&discovery, &in_token) {
            (Err(error), None) => Some(Unread {
                because: Causes(error).to_string(),
                action: format!("get {DISCOVERY}"),
                scope: "the cluster".to_owned(),
            }),
            _ => None,
        };
        let is_discovered = discovery.is_ok();
        Read { issuers: together(in_token, discovery.ok()), unread, is_discovered }
    }

    async fn discover(&self) -> kube::Result<Discovery> {
        let request = axum::http::Request::get(DISCOVERY).body(Vec::new()).map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }
}

/// The `iss` of a token. Neither the token nor what else is in it goes any further, into errors neither.
fn of_token(file: &Path) -> Option<String> {
    let token = std::fs::read_to_string(file).ok()?;
    serde_json::from_slice::<Claims>(&payload(token.trim())?).ok().map(|claims| claims.iss)
}

fn together(in_token: Option<String>, discovery: Option<Discovery>) -> Vec<Issuer> {
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

    /// An API server with this issuer, or without any.
    fn server(issuer: Option<&'static str>) -> Client {
        let answer = tower::service_fn(move |request: http::Request<Body>| async move {
            assert_eq!(request.uri().path(), DISCOVERY);
            let (status, body) = match issuer {
                Some(issuer) => {
                    (200, format!(r#"{{"issuer":"{issuer}","id_token_signing_alg_values_supported":["RS256"]}}"#))
                }
                None => (403, r#"{"code":403,"message":"no","reason":"Forbidden","status":"Failure"}"#.to_owned()),
            };
            Ok::<_, Infallible>(http::Response::builder().status(status).body(Body::from(body.into_bytes())).unwrap())
        });
        Client::new(answer, "default")
    }

    async fn read(token: Option<&str>, issuer: Option<&'static str>) -> Read {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        if let Some(token) = token {
            std::fs::write(&file, token).unwrap();
        }
        Issuers { client: server(issuer), token: file }.read().await
    }

    fn token(claims: &str) -> String {
        format!("e30.{}.{SECRET}\n", URL_SAFE_NO_PAD.encode(claims))
    }

    fn urls(read: &Read) -> Vec<(&str, bool)> {
        read.issuers.iter().map(|issuer| (issuer.url.as_str(), issuer.algorithms.is_some())).collect()
    }

    #[tokio::test]
    async fn the_token_counts_and_discovery_is_shown_beside_it_if_it_differs() {
        let ours = token(&format!(r#"{{"iss":"{HERE}","sub":"system:serviceaccount:a:b"}}"#));
        assert_eq!(urls(&read(Some(&ours), Some(HERE)).await), [(HERE, true)]);
        let other = "https://kubernetes.default.svc.cluster.local";
        assert_eq!(urls(&read(Some(&ours), Some(other)).await), [(HERE, false), (other, true)]);
        assert!(read(Some(&ours), Some(other)).await.is_discovered);
        let half = read(Some(&ours), None).await;
        assert_eq!(urls(&half), [(HERE, false)]);
        assert!(!half.is_discovered, "whether the API server differs cannot be told");
        assert_eq!(urls(&read(None, Some(HERE)).await), [(HERE, true)]);
    }

    #[tokio::test]
    async fn an_unreadable_token_is_as_none_and_stands_in_no_message() {
        for broken in ["", "a", &format!("a.b.{SECRET}"), &format!("e30.{SECRET}.x"), &token("{}"), "\u{0}..\u{0}"] {
            let read = read(Some(broken), None).await;
            assert!(read.issuers.is_empty());
            let unread = read.unread.unwrap();
            assert!(unread.action.ends_with(DISCOVERY) && !unread.because.contains(SECRET), "{unread:?}");
        }
    }
}
