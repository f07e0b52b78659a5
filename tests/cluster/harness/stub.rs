//! A stub webhook with responses from the test. The stub serves HTTPS, and is registered on the real API server.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    response::Response,
    routing::post,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::{ServerConfig, sign::SingleCertAndKey};
use serde_json::{Value, json};
use spillway::certs;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{LONG_TIMEOUT_SECONDS, control_plane, manifest_webhooks};

pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    pub(crate) ca: String,
}

impl Stub {
    /// Serves on the runtime of the test until that ends. `answer` gets the body of each request.
    pub(crate) async fn start<A, F>(answer: A) -> Self
    where
        A: Fn(Bytes) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response> + Send + 'static,
    {
        let made = certs::generate(&[], OffsetDateTime::now_utc()).unwrap();
        let pair = certs::parse_key_pair(made.certificate.as_bytes(), made.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/", post(move |body: Bytes| answer(body)));
        tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), routes));
        Self { address, ca: made.ca }
    }

    /// Registers the stub for the pods of one namespace.
    pub(crate) fn register(&self, name: &str, namespace: &str) -> Registration {
        register(name, &format!("https://{}/", self.address), &self.ca, &in_namespace(namespace))
    }

    /// Registers the stub with the other settings of a webhook of the manifest.
    pub(crate) fn register_like(&self, name: &str, webhook: &Value) -> Registration {
        register(name, &format!("https://{}/", self.address), &self.ca, webhook)
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, routes: Router) {
    while let Ok((tcp, _)) = listener.accept().await {
        let (tls, routes) = (tls.clone(), routes.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(tcp).await else { return };
            let service = TowerToHyperService::new(routes);
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Returns a response that allows the request and changes nothing.
pub(crate) fn allowed(body: &[u8]) -> Response {
    let review: Value = serde_json::from_slice(body).unwrap();
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": {"uid": review["request"]["uid"], "allowed": true},
    });
    Response::builder().header("content-type", "application/json").body(Body::from(answer.to_string())).unwrap()
}

/// Returns the webhook for pods from the manifest, for one namespace and with a long timeout.
pub(crate) fn in_namespace(namespace: &str) -> Value {
    let mut webhook = manifest_webhooks().swap_remove(0);
    webhook["timeoutSeconds"] = LONG_TIMEOUT_SECONDS.into();
    webhook["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
    webhook
}

/// Registers a webhook by URL for the pods of one namespace.
pub(crate) fn register_url(name: &str, url: &str, ca: &str, namespace: &str) -> Registration {
    register(name, url, ca, &in_namespace(namespace))
}

fn register(name: &str, url: &str, ca: &str, webhook: &Value) -> Registration {
    let mut webhook = webhook.clone();
    webhook["clientConfig"] = json!({"url": url, "caBundle": STANDARD.encode(ca)});
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name}, "webhooks": [webhook],
    });
    control_plane().create_or_replace(None, &configuration);
    Registration(name.to_owned())
}

/// A registered webhook. Dropping it removes the registration.
pub(crate) struct Registration(String);

impl Drop for Registration {
    fn drop(&mut self) {
        control_plane()
            .delete(&format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{}", self.0));
    }
}
