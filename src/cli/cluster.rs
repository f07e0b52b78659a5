//! The cluster that a person's commands talk to, found as kubectl finds it.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};

/// A cluster that does not answer within this time is not there.
const PATIENCE: Duration = Duration::from_secs(30);

/// The cluster of a kubeconfig's context, or of the current one.
pub(super) async fn find(context: Option<&str>) -> anyhow::Result<kube::Config> {
    match context {
        None => kube::Config::infer().await.context("cannot find a cluster"),
        Some(context) => {
            let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
            let kubeconfig = Kubeconfig::read().context("cannot read the kubeconfig")?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.context("--context")
        }
    }
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
