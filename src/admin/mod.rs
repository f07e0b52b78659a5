//! The admin port: probes and metrics, plain HTTP, away from the port that the API server calls.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::telemetry;

/// Where to listen.
#[derive(Debug, Clone, clap::Args)]
pub struct AdminArgs {
    /// Address for probes and metrics (plain HTTP)
    #[arg(long, env = "SPILLWAY_ADMIN_BIND", default_value = "[::]:8080", value_name = "ADDRESS")]
    pub admin_bind: SocketAddr,
}

/// The address is taken or not ours.
#[derive(Debug, thiserror::Error)]
#[error("--admin-bind: cannot listen on {address}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub source: std::io::Error,
}

/// An admin port that is taken.
pub struct Admin(TcpListener);

/// Takes the port.
///
/// # Errors
///
/// [`BindError`], which names the flag at fault.
pub async fn bind(&AdminArgs { admin_bind: address }: &AdminArgs) -> Result<Admin, BindError> {
    TcpListener::bind(address).await.map(Admin).map_err(|source| BindError { address, source })
}

/// What a process still lacks before it can do its work; empty when it is ready. Names from a closed set.
type Missing = dyn Fn() -> Vec<&'static str> + Send + Sync;

#[derive(Clone)]
struct Process {
    missing: Arc<Missing>,
    registry: Arc<Registry>,
}

impl Admin {
    /// Where it listens; tests bind port 0.
    ///
    /// # Errors
    ///
    /// When the operating system cannot tell.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves until the process ends. `missing` is asked at each probe of readiness; liveness asks nothing.
    pub async fn serve(
        self,
        missing: impl Fn() -> Vec<&'static str> + Send + Sync + 'static,
        registry: impl Into<Arc<Registry>>,
    ) {
        let process = Process { missing: Arc::new(missing), registry: registry.into() };
        let routes = Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(process);
        if let Err(error) = axum::serve(self.0, routes).await {
            tracing::error!(error = &error as &dyn std::error::Error, "the admin port stopped");
        }
    }
}

/// Ready when nothing is missing; otherwise says what is.
async fn ready(State(process): State<Process>) -> (StatusCode, String) {
    match (process.missing)().as_slice() {
        [] => (StatusCode::OK, "ok\n".to_owned()),
        missing => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", "))),
    }
}

async fn metrics(State(process): State<Process>) -> impl IntoResponse {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPEN_METRICS)], telemetry::encode(&process.registry))
}
