//! The admission webhook: an HTTPS port for the API server, and a plain HTTP port for probes and metrics.

mod app;
mod audit_annotations;
mod binding;
mod body;
mod body_limits;
mod connection;
mod connection_limiter;
mod drain;
mod extras;
mod fail_open;
mod open_connections;
mod review;
mod server;
#[cfg(test)]
mod test_server;
mod tls;
mod warnings;

use std::{io, net::SocketAddr, sync::Arc};

pub use app::App;
use axum::{Router, routing::post};
pub use drain::{DrainArgs, Draining};
pub use extras::response_extras;
use prometheus_client::registry::Registry;
pub use server::{Server, ServerArgs, ServerError};
use time::OffsetDateTime;
pub use tls::{MinVersion, TlsArgs, TlsError};

use crate::{
    admin::{self, AdminArgs, AdminServer},
    certs::ServingCertificate,
    cluster::Cluster,
};

/// Addresses and options of the ports.
#[derive(Debug, Clone, clap::Args)]
pub struct ListenArgs {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub server: ServerArgs,

    #[allow(missing_docs)]
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Error that keeps the webhook from starting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The port for the API server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The admin port or the port of the probes.
    #[error(transparent)]
    Admin(#[from] admin::BindError),
}

/// A webhook whose ports are bound. Serving cannot fail.
pub struct BoundWebhook {
    server: Server,
    admin: AdminServer,
    certificate: ServingCertificate,
}

/// Binds the ports and sets up TLS.
///
/// # Errors
///
/// [`BindError`], which names the flag at fault.
pub async fn bind(
    args: &ListenArgs,
    certificate: ServingCertificate,
    registry: &mut Registry,
) -> Result<BoundWebhook, BindError> {
    let ListenArgs { server, admin } = args;
    let server = Server::bind(server, certificate.clone(), registry).await?;
    Ok(BoundWebhook { server, admin: admin::bind(admin).await?, certificate })
}

impl BoundWebhook {
    /// Returns the address for the API server. Tests bind port 0.
    ///
    /// # Errors
    ///
    /// When the operating system does not return the address.
    pub fn webhook_address(&self) -> io::Result<SocketAddr> {
        self.server.address()
    }

    /// Returns the address of the kubelet's probes.
    ///
    /// # Errors
    ///
    /// When the operating system does not return the address.
    pub fn probe_address(&self) -> io::Result<SocketAddr> {
        self.admin.probe_address()
    }

    /// Returns the address of the metrics.
    ///
    /// # Errors
    ///
    /// When the operating system does not return the address.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin.address()
    }

    /// Serves until `stop` is done, and then shuts down as [`DrainArgs`] says.
    pub async fn serve(self, app: Arc<App>, registry: Registry, stop: impl Future<Output = ()>) {
        let Self { server, admin, certificate } = self;
        let (state, draining) = (app.clone(), server.draining());
        let not_ready_reasons = move || not_ready_reasons(&state.cluster, &certificate, &draining);
        let admin = tokio::spawn(admin.serve(not_ready_reasons, registry));
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

/// Returns the reasons why the webhook is not ready. The configuration is not one of them, because the webhook does not
/// start without it.
fn not_ready_reasons(cluster: &Cluster, certificate: &ServingCertificate, draining: &Draining) -> Vec<&'static str> {
    let mut reasons = cluster.unsynced();
    reasons.extend(certificate.not_ready_reason(OffsetDateTime::now_utc()));
    if draining.has_started() {
        reasons.push("shutting down");
    }
    reasons
}
