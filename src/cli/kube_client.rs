//! The connection to the cluster of the kubeconfig, and requests with a timeout.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use axum::http::{HeaderValue, header};
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Timeout for one request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the client configuration of a context of the kubeconfig, or of the current one. `program` is the user agent
/// in audit logs, and the field manager of writes without one (kubernetes `apiserver/pkg/endpoints/handlers/create.go`,
/// managerOrUserAgent).
pub(super) async fn config(context: Option<&str>, program: &str) -> anyhow::Result<kube::Config> {
    let mut config = match context {
        None => kube::Config::infer().await.context("cannot find a cluster")?,
        Some(context) => {
            let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
            let kubeconfig = Kubeconfig::read().context("cannot read the kubeconfig")?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.context("--context")?
        }
    };
    let agent = HeaderValue::try_from(format!("{program}/{}", env!("CARGO_PKG_VERSION")))?;
    config.headers.push((header::USER_AGENT, agent));
    Ok(config)
}

/// Waits for a response, with a timeout. An error has the message of the API server.
pub(super) async fn with_timeout<T>(request: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    with_timeout_result(request).await?.map_err(api_message)
}

/// Returns the message of the API server as the error, if it sent one.
pub(super) fn api_message(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow!("{}", status.message),
        other => other.into(),
    }
}

/// Waits for a response, with a timeout. For callers that inspect the error.
pub(super) async fn with_timeout_result<T>(
    request: impl Future<Output = kube::Result<T>>,
) -> anyhow::Result<kube::Result<T>> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => Ok(answer),
        Err(_elapsed) => bail!("no response within {} s", REQUEST_TIMEOUT.as_secs()),
    }
}
