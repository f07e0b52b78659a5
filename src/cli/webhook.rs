//! `spillway webhook`: serve the admission webhook.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::builder::BoolishValueParser;
use kube::Client;
use time::OffsetDateTime;

use super::{kube_client, output::ExitStatus, pod_args::PodArgs, process};
use crate::{
    background::restart_on_panic,
    certs::{self, KeyPairFiles, Leaf, ServingCertificate},
    cluster::Cluster,
    config::CertificateSource,
    reload::configuration::{ConfigReceiver, until},
    telemetry::{self, AdmissionMetrics, CacheMetrics, logs},
    webhook::{self, App, ListenArgs},
};

/// Serve the admission webhook
///
/// The webhook finds the cluster as kubectl does: through KUBECONFIG or ~/.kube/config. In a pod without these, it uses
/// the service account.
///
/// It needs to list and watch namespaces, nodes, service accounts and network policies, and to get service accounts.
/// For a self-managed certificate it needs to list and watch the Secret spillway-ca and the
/// MutatingWebhookConfiguration aci-spillway. It writes nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Path of the SpillwayConfiguration file, which is reloaded when it changes; by default the built-in
    /// configuration
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

pub(super) fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let Args { config, listen, certificate, pod, runtime, logs } = args;
    let logs = logs::start(logs);
    let pod_name = pod.pod_name().context("--pod-name: cannot read the host name")?;
    runtime.start()?.block_on(async {
        let mut registry = telemetry::registry();
        telemetry::count_panics(&mut registry);
        logs.register(&mut registry);
        let configuration = process::configuration(config.as_deref(), logs, &mut registry, |_| {}).await?;
        let source = certificate.source()?;
        let serving = ServingCertificate::default();
        let bound = webhook::bind(listen, serving.clone(), &mut registry).await?;
        let client = Client::try_from(kube_client::config(None, "spillway-webhook").await?)
            .context("cannot create a Kubernetes client")?;
        let certificates = CertificateSourceWatcher {
            configuration: configuration.clone(),
            client: client.clone(),
            namespace: pod.namespace.clone(),
            serving,
            metrics: telemetry::CertificateMetrics::new(&mut registry),
        };
        certificates.start(source);
        let cluster = Cluster::follow(client, configuration.clone(), &CacheMetrics::new(&mut registry));
        let app = Arc::new(App::new(configuration, cluster, AdmissionMetrics::new(&mut registry)));
        let signals = process::Signals::listen()?;
        let (webhook, admin, probes) = (bound.webhook_address()?, bound.admin_address()?, bound.probe_address()?);
        tracing::info!(%webhook, %admin, %probes, pod = pod_name, "listening");
        signals.run_until_signal(|stop| bound.serve(app, registry, stop.received())).await;
        Ok(ExitStatus::Success)
    })
}

/// Options of the serving certificate, which override the configuration.
#[derive(Debug, clap::Args)]
struct CertificateArgs {
    /// Serving certificate and its chain, PEM
    #[arg(long, env = "SPILLWAY_TLS_CERT_FILE", value_name = "FILE", requires = "tls_key_file")]
    tls_cert_file: Option<PathBuf>,

    /// Private key of the certificate, PEM
    #[arg(long, env = "SPILLWAY_TLS_KEY_FILE", value_name = "FILE", requires = "tls_cert_file")]
    tls_key_file: Option<PathBuf>,

    /// Generate a development certificate at every start, and log its caBundle
    #[arg(long, env = "SPILLWAY_SELF_SIGNED", value_parser = BoolishValueParser::new())]
    self_signed: bool,
}

/// The source of the serving certificate.
enum Source {
    /// Generated at this start.
    SelfSigned(Leaf),
    /// Files of the flags, which are reloaded.
    Files(KeyPairFiles),
    /// The source in the configuration, which can change.
    Configured,
}

impl CertificateArgs {
    /// Reads the files of the flags, so that a wrong flag fails at startup. The webhook waits for files of the
    /// configuration, because they may appear later.
    fn source(&self) -> anyhow::Result<Source> {
        let Self { tls_cert_file, tls_key_file, self_signed } = self;
        // clap would treat SPILLWAY_SELF_SIGNED=false as a given flag.
        match (tls_cert_file, tls_key_file) {
            (Some(certificate), Some(key)) if !self_signed => {
                let pair = certs::load_key_pair(certificate, key)?;
                Leaf::new(pair).context("--tls-cert-file: cannot read the certificate")?;
                Ok(Source::Files(KeyPairFiles { certificate: certificate.clone(), key: key.clone() }))
            }
            (None, None) if *self_signed => self_signed_leaf().map(Source::SelfSigned),
            (None, None) => Ok(Source::Configured),
            _ => bail!("--self-signed cannot be used with --tls-cert-file and --tls-key-file"),
        }
    }
}

fn self_signed_leaf() -> anyhow::Result<Leaf> {
    let generated =
        certs::generate(&[], OffsetDateTime::now_utc()).context("--self-signed: cannot generate a certificate")?;
    tracing::info!(caBundle = STANDARD.encode(&generated.ca), "serving a self-signed development certificate");
    Ok(Leaf::new(certs::parse_key_pair(generated.certificate.as_bytes(), generated.key.as_bytes())?)?)
}

/// Keeps the certificate in `serving` up to date.
struct CertificateSourceWatcher {
    configuration: ConfigReceiver,
    client: Client,
    namespace: String,
    serving: ServingCertificate,
    metrics: telemetry::CertificateMetrics,
}

impl CertificateSourceWatcher {
    /// Starts the background task of the source.
    fn start(self, source: Source) {
        match source {
            Source::SelfSigned(leaf) => {
                self.metrics.loaded(leaf.not_after());
                self.serving.replace(leaf);
            }
            Source::Files(files) => {
                drop(tokio::spawn(restart_on_panic(async move || self.watch_files(files.clone()).await)));
            }
            Source::Configured => drop(tokio::spawn(restart_on_panic(async move || self.follow_configuration().await))),
        }
    }

    /// Follows the source in the configuration, as the controller does. Otherwise the controller would write a `caBundle`
    /// that does not match the webhook's certificate.
    async fn follow_configuration(&self) {
        loop {
            let configured = self.configuration.borrow().certificates.clone();
            let another = until(&self.configuration, |now| now.certificates != configured);
            let kept = async {
                match configured.source {
                    CertificateSource::SelfManaged => self.self_managed().await,
                    CertificateSource::CertManager | CertificateSource::Files => {
                        self.watch_files(KeyPairFiles::in_directory(&configured.directory)).await;
                    }
                }
            };
            tokio::select! {
                () = kept => return,
                () = another => tracing::info!("source of the serving certificate changed"),
            }
        }
    }

    async fn self_managed(&self) {
        let Self { client, namespace, serving, metrics, .. } = self;
        certs::self_managed(client.clone(), namespace.clone(), serving.clone(), metrics.clone()).await;
    }

    async fn watch_files(&self, files: KeyPairFiles) {
        certs::watch_certificate_files(files, self.serving.clone(), self.metrics.clone()).await;
    }
}
