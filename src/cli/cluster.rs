//! The cluster that the commands talk to, found as kubectl finds it.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use axum::http::{HeaderValue, header};
use kube::config::{KubeConfigOptions, Kubeconfig};

/// A cluster that does not answer within this time is not there.
const PATIENCE: Duration = Duration::from_secs(30);

/// The cluster of a kubeconfig's context, or of the current one. Audit logs name the program that asks, and so does what it writes without
/// a field manager of its own (kubernetes `apiserver/pkg/endpoints/handlers/create.go`, managerOrUserAgent).
pub(super) async fn find(context: Option<&str>, program: &str) -> anyhow::Result<kube::Config> {
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

/// The answer to a request; an error is what the API server says of it.
pub(super) async fn patiently<T>(request: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    in_time(request).await?.map_err(told)
}

/// What the API server says, where it does.
pub(super) fn told(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow!("{}", status.message),
        other => other.into(),
    }
}

/// The same for those who look at the error themselves.
pub(super) async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> anyhow::Result<kube::Result<T>> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(answer) => Ok(answer),
        Err(_elapsed) => bail!("no answer within {} s", PATIENCE.as_secs()),
    }
}
