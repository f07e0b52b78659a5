//! The admin port: probes and metrics, plain HTTP, away from the port that the API server calls.

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

/// Connections at once, and how long each may take: strangers must not use up the memory or the descriptors of the process, nor keep
/// out the kubelet for long.
const CONNECTIONS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(2);

/// After a failed accept, such as without descriptors left: not to spin.
const PAUSE: Duration = Duration::from_millis(100);

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
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // Never closed.
            let Ok(slot) = connections.clone().acquire_owned().await else { return };
            let tcp = match self.0.accept().await {
                Ok((tcp, _peer)) => tcp,
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "cannot accept on the admin port");
                    time::sleep(PAUSE).await;
                    continue;
                }
            };
            let service = TowerToHyperService::new(routes.clone());
            tokio::spawn(async move {
                // One answer a connection: whoever asks is a probe or a collector, and comes every few seconds.
                let mut http = http1::Builder::new();
                http.keep_alive(false).header_read_timeout(None);
                let _ = timeout(PATIENCE, http.serve_connection(TokioIo::new(tcp), service)).await;
                drop(slot);
            });
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        time::Instant,
    };

    use super::*;

    #[tokio::test]
    async fn strangers_who_say_nothing_do_not_keep_the_probes_out() {
        let admin = bind(&AdminArgs { admin_bind: "127.0.0.1:0".parse().unwrap() }).await.unwrap();
        let address = admin.address().unwrap();
        tokio::spawn(admin.serve(Vec::new, Registry::default()));
        let mut strangers = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            strangers.push(TcpStream::connect(address).await.unwrap());
        }
        let mut probe = TcpStream::connect(address).await.unwrap();
        probe.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let start = Instant::now();
        time::pause();
        let mut answer = String::new();
        probe.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(start.elapsed() <= 3 * PATIENCE, "{:?}", start.elapsed());
    }
}
