//! `spillway webhook`: serve the API server.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::builder::BoolishValueParser;
use kube::Client;
use time::OffsetDateTime;

use super::{Ended, cluster, pod::PodArgs, process};
use crate::{
    background::again_after_panic,
    certs::{self, KeyPairFiles, Leaf, Serving},
    cluster::Cluster,
    config::CertificateSource,
    reload::configuration::{ConfigReceiver, until},
    telemetry::{self, AdmissionMetrics, Caches, logs},
    webhook::{self, App, ListenArgs},
};

/// Serve the admission webhook
///
/// Finds the cluster as kubectl does: through KUBECONFIG or ~/.kube/config, and where there is none, in a pod, through its
/// service account. Needs to list and watch namespaces, nodes, service accounts and network policies, and to get service
/// accounts; and for a self-managed certificate to list and watch the Secret spillway-ca and the MutatingWebhookConfiguration
/// aci-spillway. Writes nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The SpillwayConfiguration file, which is followed; without one, the built-in defaults
    #[arg(long, env = "SPILLWAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    listen: ListenArgs,

    #[command(flatten)]
    certificate: CertificateArgs,

    #[command(flatten)]
    pod: PodArgs,

    #[command(flatten)]
    runtime: process::RuntimeArgs,

    #[command(flatten)]
    logs: logs::LogArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Ended> {
    let Args { config, listen, certificate, pod, runtime, logs } = args;
    let logs = logs::start(logs);
    let pod_name = pod.pod_name().context("--pod-name: cannot read the name of this host")?;
    runtime.start()?.block_on(async {
        let mut registry = telemetry::registry();
        telemetry::count_panics(&mut registry);
        logs.register(&mut registry);
        let configuration = process::configuration(config.as_deref(), logs, &mut registry, |_| {}).await?;
        let source = certificate.source()?;
        let serving = Serving::default();
        let bound = webhook::bind(listen, serving.clone(), &mut registry).await?;
        let client = Client::try_from(cluster::find(None, "spillway-webhook").await?)
            .context("cannot make a client of the cluster")?;
        let keeper = Keeper {
            configuration: configuration.clone(),
            client: client.clone(),
            namespace: pod.namespace.clone(),
            serving,
            metrics: telemetry::CertificateMetrics::new(&mut registry),
        };
        keeper.keep(source);
        let cluster = Cluster::follow(client, configuration.clone(), &Caches::new(&mut registry));
        let app = Arc::new(App::new(configuration, cluster, AdmissionMetrics::new(&mut registry)));
        let signals = process::Signals::listen()?;
        let (webhook, admin) = (bound.webhook_address()?, bound.admin_address()?);
        tracing::info!(%webhook, %admin, pod = pod_name, "listening");
        signals.end(|stop| bound.serve(app, registry, stop.asked())).await;
        Ok(Ended::Fine)
    })
}

/// Where the serving certificate comes from. The flags beat the configuration.
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

/// Where the serving certificate comes from.
enum Source {
    /// Made at this start.
    Made(Leaf),
    /// Files that flags name, which are followed.
    Files(KeyPairFiles),
    /// What the configuration says, which is followed.
    Configured,
}

impl CertificateArgs {
    /// Reads what the flags name, so that a wrong one is loud. What the configuration names may come later: the webhook waits for it.
    fn source(&self) -> anyhow::Result<Source> {
        let Self { tls_cert_file, tls_key_file, self_signed } = self;
        // Not left to clap, for which SPILLWAY_SELF_SIGNED=false is a flag that was given.
        match (tls_cert_file, tls_key_file) {
            (Some(certificate), Some(key)) if !self_signed => {
                let pair = certs::from_files(certificate, key)?;
                Leaf::new(pair).context("--tls-cert-file: cannot read the certificate")?;
                Ok(Source::Files(KeyPairFiles { certificate: certificate.clone(), key: key.clone() }))
            }
            (None, None) if *self_signed => self_signed_leaf().map(Source::Made),
            (None, None) => Ok(Source::Configured),
            _ => bail!("--self-signed cannot be used with --tls-cert-file and --tls-key-file"),
        }
    }
}

fn self_signed_leaf() -> anyhow::Result<Leaf> {
    let made = certs::generate(&[], OffsetDateTime::now_utc()).context("--self-signed: cannot make a certificate")?;
    tracing::info!(caBundle = STANDARD.encode(&made.ca), "serving a self-signed certificate, for development");
    Ok(Leaf::new(certs::from_pem(made.certificate.as_bytes(), made.key.as_bytes())?)?)
}

/// Keeps a certificate in `serving`.
struct Keeper {
    configuration: ConfigReceiver,
    client: Client,
    namespace: String,
    serving: Serving,
    metrics: telemetry::CertificateMetrics,
}

impl Keeper {
    /// Keeps it from now on.
    fn keep(self, source: Source) {
        match source {
            Source::Made(leaf) => {
                self.metrics.loaded(leaf.not_after());
                self.serving.replace(leaf);
            }
            Source::Files(files) => {
                drop(tokio::spawn(again_after_panic(async move || self.follow_files(files.clone()).await)));
            }
            Source::Configured => drop(tokio::spawn(again_after_panic(async move || self.as_configured().await))),
        }
    }

    /// The controller follows the configuration too: were the source read at the start only, the one would write a `caBundle` that
    /// the other's certificate does not belong to.
    async fn as_configured(&self) {
        loop {
            let configured = self.configuration.borrow().certificates.clone();
            let another = until(&self.configuration, |now| now.certificates != configured);
            let kept = async {
                match configured.source {
                    CertificateSource::SelfManaged => self.self_managed().await,
                    CertificateSource::CertManager | CertificateSource::Files => {
                        self.follow_files(KeyPairFiles::in_directory(&configured.directory)).await;
                    }
                }
            };
            tokio::select! {
                () = kept => return,
                () = another => tracing::info!("the serving certificate comes from elsewhere now"),
            }
        }
    }

    async fn self_managed(&self) {
        let Self { client, namespace, serving, metrics, .. } = self;
        certs::self_managed(client.clone(), namespace.clone(), serving.clone(), metrics.clone()).await;
    }

    async fn follow_files(&self, files: KeyPairFiles) {
        certs::follow_files(files, self.serving.clone(), self.metrics.clone()).await;
    }
}
