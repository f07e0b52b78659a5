//! An HTTPS client that trusts one certificate authority and connects to one server, as the API server does.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{Method, Request, StatusCode, header},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};

pub(crate) struct Https {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    address: SocketAddr,
}

impl Https {
    pub(crate) fn new(address: SocketAddr, ca: &str) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        Self { client: Client::builder(TokioExecutor::new()).build(connector), address }
    }

    /// Posts a JSON body to the webhook for pods.
    pub(crate) async fn review(&self, body: impl Into<Bytes>) -> (StatusCode, Bytes) {
        self.send("/mutate-v1-pod", "application/json", body.into()).await.unwrap()
    }

    pub(crate) async fn send(&self, path: &str, kind: &str, body: Bytes) -> Option<(StatusCode, Bytes)> {
        const TIMEOUT: Duration = Duration::from_secs(30);
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://{}{path}", self.address))
            .header(header::CONTENT_TYPE, kind)
            .body(Body::from(body))
            .unwrap();
        let answer =
            tokio::time::timeout(TIMEOUT, self.client.request(request)).await.expect("a response in time").ok()?;
        let status = answer.status();
        Some((status, to_bytes(Body::new(answer.into_body()), usize::MAX).await.ok()?))
    }
}
