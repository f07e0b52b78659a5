//! Requests that the test process sends to the API server itself.
//!
//! Each run of `kubectl` uses a tenth of a second of CPU. Tests that poll with `kubectl` keep a core busy and slow down the control plane.
//! Only tests of a user's commands, and of changes that kubectl computes, such as `scale` or `rollout`, use `kubectl`.

use std::{
    future::Future,
    path::Path,
    sync::{OnceLock, mpsc},
};

use axum::http::{Method, Request, header};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::Value;
use tokio::runtime::Runtime;

/// A client of one API server, for tests with and without a runtime of their own.
pub(crate) struct ApiClient(Client);

/// A failed request.
#[derive(Debug)]
pub(crate) struct ApiFailure {
    /// The HTTP status, if the API server responded.
    pub(crate) code: Option<u16>,
    pub(crate) message: String,
}

impl ApiClient {
    pub(crate) fn new(kubeconfig: &Path) -> Self {
        let kubeconfig = kubeconfig.to_owned();
        Self(block_on(async move { connect(&kubeconfig, None).await }))
    }

    /// Sends a request. Returns the response as JSON, or as a JSON string if the body is not JSON.
    pub(crate) fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value, ApiFailure> {
        let client = self.0.clone();
        let content = match (&method, body) {
            (&Method::PATCH, Value::Array(_)) => "application/json-patch+json",
            (&Method::PATCH, _) => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, content).body(body);
        let request = request.unwrap();
        match block_on(async move { client.request_text(request).await }) {
            Ok(text) => Ok(serde_json::from_str(&text).unwrap_or(Value::String(text))),
            Err(kube::Error::Api(status)) => {
                Err(ApiFailure { code: Some(status.code), message: status.message.clone() })
            }
            Err(other) => Err(ApiFailure { code: None, message: format!("{other:?}") }),
        }
    }
}

/// A client with the rights of the kubeconfig, or with those of a user whom it impersonates.
pub(crate) async fn connect(kubeconfig: &Path, user: Option<&str>) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.auth_info.impersonate = user.map(str::to_owned);
    Client::try_from(config).unwrap()
}

/// Returns the path for creations of objects of the same kind.
pub(crate) fn collection(namespace: Option<&str>, object: &Value) -> String {
    let text = |field: &str| object[field].as_str().unwrap_or_else(|| panic!("no {field}: {object:#}"));
    let api_version = text("apiVersion");
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let plural = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, text("kind"))).plural;
    let root = if group.is_empty() { "/api" } else { "/apis" };
    let namespace = namespace.map(|namespace| format!("/namespaces/{namespace}")).unwrap_or_default();
    format!("{root}/{api_version}{namespace}/{plural}")
}

/// Waits for a future on another thread, because a test with a runtime must not block on a second runtime.
fn block_on<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME
        .get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());
    let (sender, receiver) = mpsc::sync_channel(1);
    runtime.spawn(async move { sender.send(future.await) });
    receiver.recv().expect("the request to end")
}
