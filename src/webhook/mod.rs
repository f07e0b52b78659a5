//! Serving: HTTPS for the API server, and a plain admin port for probes and metrics.

mod accept;
mod remarks;
mod review;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::post};
use prometheus_client::registry::Registry;
pub use remarks::remarks;
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    admin::{self, Admin, AdminArgs},
    certs::Serving,
    cluster::Cluster,
    config::Configuration,
    telemetry::{self, Admission},
};

/// What the requests need.
pub struct App {
    /// The configuration in force.
    pub configuration: Configuration,
    /// What is known of the cluster.
    pub cluster: Cluster,
    /// Where requests are counted.
    pub metrics: Admission,
    registry: Arc<Registry>,
    draining: AtomicBool,
    body_budget: Semaphore,
}

impl App {
    /// An app that is not draining.
    pub fn new(configuration: Configuration, cluster: Cluster) -> Self {
        let mut registry = telemetry::registry();
        let metrics = Admission::new(&mut registry);
        let body_budget = Semaphore::new(review::BODY_BUDGET);
        Self {
            configuration,
            cluster,
            metrics,
            registry: Arc::new(registry),
            draining: AtomicBool::new(false),
            body_budget,
        }
    }

    /// What is missing before requests can be decided; empty when the webhook is ready.
    fn missing(&self) -> Vec<&'static str> {
        let mut missing = self.cluster.unsynced();
        if self.draining.load(Ordering::Relaxed) {
            missing.push("shutting down");
        }
        missing
    }
}

/// Where to listen.
#[derive(Debug, Clone, clap::Args)]
pub struct ListenArgs {
    /// Address for the API server's calls (HTTPS)
    #[arg(long, env = "SPILLWAY_BIND", default_value = "[::]:9443", value_name = "ADDRESS")]
    pub bind: SocketAddr,

    #[command(flatten)]
    admin: AdminArgs,
}

/// Why the webhook could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address is taken or not ours.
    #[error("--bind: cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The admin port could not be taken.
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    /// The TLS settings do not fit together.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
}

/// A webhook whose ports are taken and whose certificate is good: nothing is left that can fail.
pub struct Bound {
    webhook: TcpListener,
    admin: Admin,
    tls: Arc<ServerConfig>,
}

/// How long requests in flight may take to finish after the end was asked for.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// Takes the ports and prepares TLS.
///
/// # Errors
///
/// [`BindError`], which names the flag at fault.
pub async fn bind(args: &ListenArgs, certificate: Serving) -> Result<Bound, BindError> {
    let ListenArgs { bind: address, admin } = args;
    let mut tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificate));
    // The API server calls webhooks over HTTP/1.1 only (kubernetes/kubernetes#82090); other callers may choose.
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Bound {
        webhook: TcpListener::bind(address).await.map_err(|source| BindError::Listen { address: *address, source })?,
        admin: admin::bind(admin).await?,
        tls: Arc::new(tls),
    })
}

impl Bound {
    /// Where the API server is served; tests bind port 0.
    ///
    /// # Errors
    ///
    /// When the operating system cannot tell.
    pub fn webhook_address(&self) -> std::io::Result<SocketAddr> {
        self.webhook.local_addr()
    }

    /// Where probes and metrics are served.
    ///
    /// # Errors
    ///
    /// When the operating system cannot tell.
    pub fn admin_address(&self) -> std::io::Result<SocketAddr> {
        self.admin.address()
    }

    /// Serves until `stop` is done, then finishes what is in flight, for ten seconds at most.
    pub async fn serve(self, app: Arc<App>, stop: impl Future<Output = ()>) {
        let routes = Router::new().route("/mutate-v1-pod", post(review::mutate_pod)).with_state(app.clone());
        let missing = app.clone();
        let admin = tokio::spawn(self.admin.serve(move || missing.missing(), app.registry.clone()));
        let connections = accept::serve(&self.webhook, self.tls, routes, stop).await;
        app.draining.store(true, Ordering::Relaxed);
        drop(self.webhook);
        if tokio::time::timeout(DRAIN_DEADLINE, connections.shutdown()).await.is_err() {
            tracing::warn!("gave up on requests in flight");
        }
        admin.abort();
    }
}
