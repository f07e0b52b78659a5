//! `spillway webhook`: serve the API server.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::builder::BoolishValueParser;
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;

use super::{Ended, process};
use crate::{
    certs::{self, Leaf, Serving},
    cluster::Cluster,
    telemetry::{self, Admission, Caches, logs},
    webhook::{self, App, ListenArgs},
};

/// Serve the admission webhook
///
/// Finds the cluster as kubectl does: through KUBECONFIG or ~/.kube/config, and where there is none, in a pod, through its
/// service account. Needs to list and watch namespaces, nodes, service accounts and network policies, and to get service
/// accounts.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The SpillwayConfiguration file; without one, the built-in defaults
    #[arg(long, env = "SPILLWAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    listen: ListenArgs,

    #[command(flatten)]
    certificate: CertificateArgs,

    #[command(flatten)]
    runtime: process::RuntimeArgs,

    #[command(flatten)]
    logs: logs::LogArgs,
}

#[derive(Debug, clap::Args)]
struct CertificateArgs {
    /// The serving certificate and its chain, PEM
    #[arg(long, env = "SPILLWAY_TLS_CERT_FILE", value_name = "FILE", requires = "tls_key_file")]
    tls_cert_file: Option<PathBuf>,

    /// Its private key, PEM
    #[arg(long, env = "SPILLWAY_TLS_KEY_FILE", value_name = "FILE", requires = "tls_cert_file")]
    tls_key_file: Option<PathBuf>,

    /// Make a certificate for development at every start, and log the caBundle that goes with it
    #[arg(long, env = "SPILLWAY_SELF_SIGNED", value_parser = BoolishValueParser::new())]
    self_signed: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Ended> {
    let Args { config, listen, certificate, runtime, logs } = args;
    let filter = logs::start(logs);
    runtime.start()?.block_on(async {
        let mut registry = telemetry::registry();
        telemetry::count_panics(&mut registry);
        let configuration = process::configuration(config.as_deref(), filter, &mut registry, |_| {}).await?;
        let serving = Serving::default();
        serving.replace(Leaf::new(certificate.load()?).context("--tls-cert-file: cannot read the certificate")?);
        let bound = webhook::bind(listen, serving, &mut registry).await?;
        let cluster = kube::Config::infer().await.context("cannot find a cluster")?;
        let client = kube::Client::try_from(cluster).context("cannot make a client of the cluster")?;
        let cluster = Cluster::follow(client, configuration.clone(), &Caches::new(&mut registry));
        let app = Arc::new(App::new(configuration, cluster, Admission::new(&mut registry)));
        let signals = process::Signals::listen()?;
        tracing::info!(webhook = %bound.webhook_address()?, admin = %bound.admin_address()?, "listening");
        signals.end(|stop| bound.serve(app, registry, stop.asked())).await;
        Ok(Ended::Fine)
    })
}

impl CertificateArgs {
    fn load(&self) -> anyhow::Result<CertifiedKey> {
        let Self { tls_cert_file, tls_key_file, self_signed } = self;
        // Not left to clap, for which SPILLWAY_SELF_SIGNED=false is a flag that was given.
        match (tls_cert_file, tls_key_file) {
            (Some(certificate), Some(key)) if !self_signed => return Ok(certs::from_files(certificate, key)?),
            (None, None) if *self_signed => {}
            _ if *self_signed => bail!("--self-signed cannot be used with --tls-cert-file and --tls-key-file"),
            _ => bail!("expected --tls-cert-file and --tls-key-file, or --self-signed"),
        }
        let made =
            certs::generate(&[], OffsetDateTime::now_utc()).context("--self-signed: cannot make a certificate")?;
        tracing::info!(caBundle = STANDARD.encode(&made.ca), "serving a self-signed certificate, for development");
        Ok(certs::from_pem(made.certificate.as_bytes(), made.key.as_bytes())?)
    }
}
