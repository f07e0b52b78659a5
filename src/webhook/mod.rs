//! Serving: HTTPS for the API server, and a plain admin port for probes and metrics.

mod accept;
mod binding;
mod body;
mod connection;
mod drain;
mod guard;
mod remarks;
mod review;
#[cfg(test)]
mod testing;
mod tls;

use std::{io, net::SocketAddr, sync::Arc};

pub use accept::{Server, ServerArgs, ServerError};
use axum::{Router, routing::post};
pub use drain::{DrainArgs, Draining};
use prometheus_client::registry::Registry;
pub use remarks::remarks;
use time::OffsetDateTime;
pub use tls::{MinVersion, TlsArgs, TlsError};
use tokio::sync::Semaphore;

use crate::{
    admin::{self, Admin, AdminArgs},
    certs::Serving,
    cluster::Cluster,
    reload::configuration::ConfigReceiver,
    telemetry::Admission,
};

/// What the requests need.
pub struct App {
    /// The configuration in force.
    pub configuration: ConfigReceiver,
    /// What is known of the cluster.
    pub cluster: Cluster,
    /// Where requests are counted.
    pub metrics: Admission,
    body_budget: Semaphore,
}

impl App {
    /// An app that has served no request yet.
    pub fn new(configuration: ConfigReceiver, cluster: Cluster, metrics: Admission) -> Self {
        Self { configuration, cluster, metrics, body_budget: Semaphore::new(body::BODY_BUDGET) }
    }
}

/// Where and how to listen.
#[derive(Debug, Clone, clap::Args)]
pub struct ListenArgs {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub server: ServerArgs,

    #[allow(missing_docs)]
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Why the webhook could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The port for the API server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The admin port.
    #[error(transparent)]
    Admin(#[from] admin::BindError),
}

/// A webhook whose ports are taken: nothing is left that can fail.
pub struct Bound {
    server: Server,
    admin: Admin,
    certificate: Serving,
}

/// Takes the ports and prepares TLS.
///
/// # Errors
///
/// [`BindError`], which names the flag at fault.
pub async fn bind(args: &ListenArgs, certificate: Serving, registry: &mut Registry) -> Result<Bound, BindError> {
    let ListenArgs { server, admin } = args;
    let server = Server::bind(server, certificate.clone(), registry).await?;
    Ok(Bound { server, admin: admin::bind(admin).await?, certificate })
}

impl Bound {
    /// Where the API server is served; tests bind port 0.
    ///
    /// # Errors
    ///
    /// When the operating system cannot tell.
    pub fn webhook_address(&self) -> io::Result<SocketAddr> {
        self.server.address()
    }

    /// Where probes and metrics are served.
    ///
    /// # Errors
    ///
    /// When the operating system cannot tell.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin.address()
    }

    /// Serves until `stop` is done, and then as long as [`DrainArgs`] says.
    pub async fn serve(self, app: Arc<App>, registry: Registry, stop: impl Future<Output = ()>) {
        let Self { server, admin, certificate } = self;
        let (asked, draining) = (app.clone(), server.draining());
        let missing = move || missing(&asked.cluster, &certificate, &draining);
        let admin = tokio::spawn(admin.serve(missing, registry));
        server.serve(routes(app), stop).await;
        admin.abort();
    }
}

fn routes(app: Arc<App>) -> Router {
    Router::new()
        .route("/mutate-v1-pod", post(review::mutate_pod))
        .route("/mutate-v1-binding", post(binding::mutate_binding))
        .with_state(app)
}

/// What is missing before requests can be decided. The configuration never is: without one the program does not start.
fn missing(cluster: &Cluster, certificate: &Serving, draining: &Draining) -> Vec<&'static str> {
    let mut missing = cluster.unsynced();
    missing.extend(certificate.missing(OffsetDateTime::now_utc()));
    if draining.has_begun() {
        missing.push("shutting down");
    }
    missing
}
