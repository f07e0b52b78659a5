//! The HTTPS server: flags, binding the port, and serving until shutdown.

use std::{io, net::SocketAddr, sync::Arc};

use axum::Router;
use hyper_util::server::graceful::GracefulShutdown;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use super::{
    connection::ConnectionHandler,
    connection_limiter::ConnectionLimiter,
    drain::{DrainArgs, Draining},
    open_connections::OpenConnections,
    tls::{ReloadableTls, TlsArgs, TlsError},
};
use crate::{certs::ServingCertificate, telemetry::ConnectionMetrics};

/// Options of the HTTPS server.
#[derive(Debug, Clone, clap::Parser)]
pub struct ServerArgs {
    /// Address for requests of the API server (HTTPS)
    #[arg(long, env = "SPILLWAY_BIND", default_value = "[::]:9443", value_name = "ADDRESS")]
    pub bind: SocketAddr,

    /// Maximum number of open connections; the oldest without a review makes room for a new one
    // A connection uses about 42 KiB, up to 64 KiB more while headers or a small body are read, and 64 KiB for that
    // body. All connections use 170 MiB, the process at rest 15 MiB, and large bodies 64 MiB. The container has 256 MiB.
    // An API server keeps one connection for each concurrent call: a few dozen while it creates thousands of pods.
    #[arg(long, env = "SPILLWAY_MAX_CONNECTIONS", default_value = "1024", value_name = "NUMBER")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,

    #[allow(missing_docs)]
    #[command(flatten)]
    pub tls: TlsArgs,

    #[allow(missing_docs)]
    #[command(flatten)]
    pub drain: DrainArgs,
}

/// Error that keeps the HTTPS server from starting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address is in use or not local.
    #[error("--bind: cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// An HTTPS server for any routes, with the limits of the webhook. Its port is bound, and serving cannot fail.
pub struct Server {
    listener: TcpListener,
    tls: ReloadableTls,
    open: Arc<OpenConnections>,
    drain: DrainArgs,
    draining: Draining,
    metrics: ConnectionMetrics,
}

impl Server {
    /// Binds the port and sets up TLS. Handshakes fail until a certificate is available.
    ///
    /// # Errors
    ///
    /// [`ServerError`], which names the flag at fault.
    pub async fn bind(
        args: &ServerArgs,
        certificate: ServingCertificate,
        registry: &mut Registry,
    ) -> Result<Self, ServerError> {
        let ServerArgs { bind: address, max_connections, tls, drain } = args;
        let tls = ReloadableTls::new(tls, certificate).await?;
        let listener = TcpListener::bind(address).await;
        Ok(Self {
            listener: listener.map_err(|source| ServerError::Listen { address: *address, source })?,
            tls,
            open: OpenConnections::new(*max_connections as usize),
            drain: drain.clone(),
            draining: Draining::default(),
            metrics: ConnectionMetrics::new(registry, *max_connections),
        })
    }

    /// Returns the address of the server. Tests bind port 0.
    ///
    /// # Errors
    ///
    /// When the operating system does not return the address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Returns whether the server is shutting down, for the readiness probe.
    pub fn draining(&self) -> Draining {
        self.draining.clone()
    }

    /// Serves until `stop` is done. Then serves for the grace period, and drains requests in flight until the deadline.
    pub async fn serve(self, routes: Router, stop: impl Future<Output = ()>) {
        let Self { listener, tls, open, drain, draining, metrics } = self;
        let connections = GracefulShutdown::new();
        let limiter = ConnectionLimiter::new(listener, open, tls.current_tls(), metrics.clone());
        let http = ConnectionHandler::new(routes, draining.clone(), metrics);
        tokio::select! {
            () = limiter.accept_connections(Arc::new(http), &connections) => {}
            () = tls.reload_client_ca() => {}
            () = drain.wait_for_grace_period(stop, &draining) => {}
        }
        drop(limiter);
        drain.shut_down(connections).await;
    }
}
