//! The ports for operators and the kubelet, over plain HTTP: metrics on one port, probes on another.
//!
//! Any pod can reach both ports in a cluster that enforces no NetworkPolicy. The probes have a port and a thread of their
//! own, so that neither clients of the metrics nor a busy runtime make the kubelet restart a healthy process.

mod connections;

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::oneshot};

use crate::telemetry;

/// Addresses of the ports.
#[derive(Debug, Clone, clap::Args)]
pub struct AdminArgs {
    /// Address for metrics and readiness (plain HTTP)
    #[arg(long, env = "SPILLWAY_ADMIN_BIND", default_value = "[::]:8080", value_name = "ADDRESS")]
    pub admin_bind: SocketAddr,

    /// Address for the probes of the kubelet (plain HTTP)
    #[arg(long, env = "SPILLWAY_HEALTH_PROBE_BIND", default_value = "[::]:8081", value_name = "ADDRESS")]
    pub health_probe_bind: SocketAddr,
}

/// The address is in use or not local.
#[derive(Debug, thiserror::Error)]
#[error("{flag}: cannot listen on {address}")]
pub struct BindError {
    /// The flag with the address.
    pub flag: &'static str,
    /// The address.
    pub address: SocketAddr,
    /// The cause.
    pub source: io::Error,
}

/// A server whose ports are bound.
pub struct AdminServer {
    admin: TcpListener,
    probes: TcpListener,
}

/// Binds the ports.
///
/// # Errors
///
/// [`BindError`], which names the flag at fault.
pub async fn bind(args: &AdminArgs) -> Result<AdminServer, BindError> {
    let listen =
        async |flag, address| TcpListener::bind(address).await.map_err(|source| BindError { flag, address, source });
    let admin = listen("--admin-bind", args.admin_bind).await?;
    Ok(AdminServer { admin, probes: listen("--health-probe-bind", args.health_probe_bind).await? })
}

/// Returns the reasons why a process is not ready. Empty when it is ready. The reasons come from a closed set.
type NotReadyReasons = dyn Fn() -> Vec<&'static str> + Send + Sync;

#[derive(Clone)]
struct AdminState {
    not_ready_reasons: Arc<NotReadyReasons>,
    registry: Arc<Registry>,
}

impl AdminServer {
    /// Returns the address of the admin port. Tests bind port 0.
    ///
    /// # Errors
    ///
    /// When the operating system does not return the address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Returns the address of the probes.
    ///
    /// # Errors
    ///
    /// When the operating system does not return the address.
    pub fn probe_address(&self) -> io::Result<SocketAddr> {
        self.probes.local_addr()
    }

    /// Serves until the future is dropped. Each readiness probe calls `not_ready_reasons`. The liveness probe does not.
    pub async fn serve(
        self,
        not_ready_reasons: impl Fn() -> Vec<&'static str> + Send + Sync + 'static,
        registry: impl Into<Arc<Registry>>,
    ) {
        let state = AdminState { not_ready_reasons: Arc::new(not_ready_reasons), registry: registry.into() };
        let probes = Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(ready));
        let admin = probes.clone().route("/metrics", get(metrics)).with_state(state.clone());
        let _running = serve_on_own_thread(self.probes, probes.with_state(state));
        connections::serve(self.admin, admin).await;
    }
}

/// Serves on a new thread until the returned sender is dropped.
fn serve_on_own_thread(listener: TcpListener, routes: Router) -> oneshot::Sender<()> {
    let (running, stopped) = oneshot::channel();
    let serve = move || -> io::Result<()> {
        let listener = listener.into_std()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener)?;
            tokio::select! {
                () = connections::serve(listener, routes) => {}
                _ = stopped => {}
            }
            Ok(())
        })
    };
    let logged = move || {
        if let Err(error) = serve() {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot serve probes");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("probes".to_owned()).spawn(logged) {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot start the thread of the probes");
    }
    running
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
    use std::time::{Duration, Instant};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        response
    }

    #[tokio::test]
    async fn silent_clients_block_neither_the_probes_nor_the_metrics() {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = bind(&AdminArgs { admin_bind: any, health_probe_bind: any }).await.unwrap();
        let (admin, probes) = (server.address().unwrap(), server.probe_address().unwrap());
        tokio::spawn(server.serve(Vec::new, Registry::default()));
        let mut clients = Vec::new();
        for i in 0..8 {
            for address in [admin, probes].into_iter().cycle().take(400) {
                clients.push(TcpStream::connect(address).await.unwrap());
            }
            let start = Instant::now();
            for (address, path) in [(probes, "/healthz"), (probes, "/readyz"), (admin, "/metrics")] {
                let response = get(address, path).await;
                assert!(response.starts_with("HTTP/1.1 200"), "{path} in round {i}: {response}");
            }
            // The timeout of the kubelet's probes is a second.
            assert!(start.elapsed() < Duration::from_secs(1), "round {i}: {:?}", start.elapsed());
        }
    }

    #[tokio::test]
    async fn the_probes_respond_while_the_runtime_is_busy() {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = bind(&AdminArgs { admin_bind: any, health_probe_bind: any }).await.unwrap();
        let probes = server.probe_address().unwrap();
        tokio::spawn(server.serve(Vec::new, Registry::default()));
        // The server starts, and then its runtime stops working.
        tokio::task::yield_now().await;
        let response = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(get(probes, "/healthz"))
        });
        assert!(response.join().unwrap().starts_with("HTTP/1.1 200"));
    }
}
