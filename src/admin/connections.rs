//! Connections of clients that send one request each: probes and collectors of metrics.

use std::{collections::VecDeque, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::{self, timeout},
};

/// Maximum number of open connections. Above it, the oldest makes room for a new one. A client that sends its request
/// immediately has its response long before 64 others connect.
const MAX_CONNECTIONS: usize = 64;

/// Maximum time for a connection, from the first byte to the last. It is the kubelet's default timeout of a probe.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Delay before the next accept after one failed, such as with too many open files.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Serves until the future is dropped. Accepts every connection immediately, so that silent clients cannot keep others out.
pub(super) async fn serve(listener: TcpListener, routes: Router) {
    let mut open: VecDeque<AbortHandle> = VecDeque::with_capacity(MAX_CONNECTIONS);
    loop {
        let tcp = match listener.accept().await {
            Ok((tcp, _peer)) => tcp,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot accept a connection");
                time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        if open.len() >= MAX_CONNECTIONS {
            open.retain(|connection| !connection.is_finished());
        }
        if open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(tokio::spawn(serve_connection(tcp, routes.clone())).abort_handle());
    }
}

/// Sends one response. Clients connect every few seconds, so that keeping the connection has no benefit.
async fn serve_connection(tcp: TcpStream, routes: Router) {
    let mut http = http1::Builder::new();
    http.keep_alive(false).header_read_timeout(None);
    let connection = http.serve_connection(TokioIo::new(tcp), TowerToHyperService::new(routes));
    let _ = timeout(CONNECTION_TIMEOUT, connection).await;
}
