//! The admin port: probes and metrics over plain HTTP, separate from the port for the API server.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{self, timeout},
};

use crate::telemetry;

/// Maximum number of open connections, and the maximum time for each. Untrusted clients must not exhaust memory or file
/// descriptors, or block the kubelet's probes for long.
const MAX_CONNECTIONS: usize = 64;
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(2);

/// Delay before the next accept after one failed, such as with too many open files.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Address of the admin port.
#[derive(Debug, Clone, clap::Args)]
pub struct AdminArgs {
    /// Address for probes and metrics (plain HTTP)
    #[arg(long, env = "SPILLWAY_ADMIN_BIND", default_value = "[::]:8080", value_name = "ADDRESS")]
    pub admin_bind: SocketAddr,
}

/// The address is in use or not local.
#[derive(Debug, thiserror::Error)]
#[error("--admin-bind: cannot listen on {address}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// The cause.
    pub source: std::io::Error,
}

/// An admin server whose port is bound.
pub struct AdminServer(TcpListener);

/// Binds the port.
///
/// # Errors
///
/// [`BindError`], which names the flag at fault.
pub async fn bind(&AdminArgs { admin_bind: address }: &AdminArgs) -> Result<AdminServer, BindError> {
    TcpListener::bind(address).await.map(AdminServer).map_err(|source| BindError { address, source })
}

/// Returns the reasons why a process is not ready. Empty when it is ready. The reasons come from a closed set.
type NotReadyReasons = dyn Fn() -> Vec<&'static str> + Send + Sync;

#[derive(Clone)]
struct AdminState {
    not_ready_reasons: Arc<NotReadyReasons>,
    registry: Arc<Registry>,
}

impl AdminServer {
    /// Returns the address of the server. Tests bind port 0.
    ///
    /// # Errors
    ///
    /// When the operating system does not return the address.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves until the process ends. Each readiness probe calls `not_ready_reasons`. The liveness probe does not.
    pub async fn serve(
        self,
        not_ready_reasons: impl Fn() -> Vec<&'static str> + Send + Sync + 'static,
        registry: impl Into<Arc<Registry>>,
    ) {
        let state = AdminState { not_ready_reasons: Arc::new(not_ready_reasons), registry: registry.into() };
        let routes = Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(state);
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(slot) = connections.clone().acquire_owned().await else { return };
            let tcp = match self.0.accept().await {
                Ok((tcp, _peer)) => tcp,
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "cannot accept on the admin port");
                    time::sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            };
            let service = TowerToHyperService::new(routes.clone());
            tokio::spawn(async move {
                // One response per connection: clients are probes and metrics collectors, which connect
                // every few seconds.
                let mut http = http1::Builder::new();
                http.keep_alive(false).header_read_timeout(None);
                let _ = timeout(CONNECTION_TIMEOUT, http.serve_connection(TokioIo::new(tcp), service)).await;
                drop(slot);
            });
        }
    }
}

/// Responds with 200 if the process is ready, and otherwise with 503 and the reasons.
async fn ready(State(state): State<AdminState>) -> (StatusCode, String) {
    match (state.not_ready_reasons)().as_slice() {
        [] => (StatusCode::OK, "ok\n".to_owned()),
        reasons => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join(", "))),
    }
}

async fn metrics(State(state): State<AdminState>) -> impl IntoResponse {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPEN_METRICS)], telemetry::encode(&state.registry))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        time::Instant,
    };

    use super::*;

    #[tokio::test]
    async fn silent_clients_do_not_block_the_probes() {
        let admin = bind(&AdminArgs { admin_bind: "127.0.0.1:0".parse().unwrap() }).await.unwrap();
        let address = admin.address().unwrap();
        tokio::spawn(admin.serve(Vec::new, Registry::default()));
        let mut clients = Vec::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let mut probe = TcpStream::connect(address).await.unwrap();
        probe.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let start = Instant::now();
        time::pause();
        let mut response = String::new();
        probe.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert!(start.elapsed() <= 3 * CONNECTION_TIMEOUT, "{:?}", start.elapsed());
    }
}
