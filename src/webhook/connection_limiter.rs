//! The accept loop, which limits the number of open connections.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::server::graceful::GracefulShutdown;
use tokio::{
    net::{TcpListener, TcpStream},
    time,
};

use super::{
    connection::ConnectionHandler,
    open_connections::{Full, OpenConnections, Slot},
    tls::CurrentTls,
};
use crate::telemetry::{ConnectionError, ConnectionMetrics};

/// Delay before the next accept after one failed for a local reason, such as too many open files.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Accepts connections while [`OpenConnections`] has room for them.
pub(super) struct ConnectionLimiter {
    listener: TcpListener,
    open: Arc<OpenConnections>,
    tls: CurrentTls,
    metrics: ConnectionMetrics,
}

impl ConnectionLimiter {
    pub(super) fn new(
        listener: TcpListener,
        open: Arc<OpenConnections>,
        tls: CurrentTls,
        metrics: ConnectionMetrics,
    ) -> Self {
        Self { listener, open, tls, metrics }
    }

    /// Accepts connections until the returned future is dropped.
    pub(super) async fn accept_connections(&self, http: Arc<ConnectionHandler>, connections: &GracefulShutdown) {
        loop {
            let (tcp, peer) = self.accept().await;
            let Some(slot) = self.open(peer).await else { continue };
            let (http, tls, watcher) = (http.clone(), self.tls.acceptor(), connections.watcher());
            let open = self.metrics.opened();
            tokio::spawn(async move {
                http.serve(tls, tcp, slot, watcher).await;
                drop(open);
            });
        }
    }

    /// Waits for room for a connection. Returns `None` if the connection must close. At the maximum, idle connections time
    /// out earlier.
    async fn open(&self, peer: SocketAddr) -> Option<Slot> {
        loop {
            match self.open.open(peer.ip()) {
                Ok(slot) => return Some(slot),
                Err(Full::Wait) => self.open.freed().await,
                Err(Full::Refuse) => {
                    self.metrics.failed(ConnectionError::Crowded);
                    return None;
                }
            }
        }
    }

    async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) if is_peer_error(&error) => {}
                Err(error) => {
                    self.metrics.failed(ConnectionError::Accept);
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot accept connections");
                    time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    }
}

/// Returns whether the client closed the connection before it was accepted, which is not an error of the listener.
fn is_peer_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::net::{TcpSocket, TcpStream};

    use super::super::test_server::TestServer;

    #[tokio::test]
    async fn a_connection_over_the_limit_waits_for_a_free_slot() {
        let server = TestServer::start(&["--max-connections=2"]).await;
        let (mut one, mut two) = (server.client().await, server.client().await);
        for client in [&mut one, &mut two] {
            assert!(client.get("/").await.is_some());
        }
        let third = server.client();
        let mut third = std::pin::pin!(third);
        // Two responses take longer than the handshake of the third connection would.
        for client in [&mut one, &mut two] {
            tokio::select! {
                _ = &mut third => panic!("the limit was not enforced"),
                response = client.get("/") => assert!(response.is_some()),
            }
        }
        assert_eq!(server.metric("spillway_connections"), 2);
        drop(one);
        assert!(third.await.get("/").await.is_some());
        assert!(two.get("/").await.is_some(), "an active connection stays open");
    }

    /// Opens a connection from another address of the local host.
    async fn stranger(server: &TestServer) -> Option<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        socket.connect(server.address).await.ok()
    }

    #[tokio::test]
    async fn a_flood_of_strangers_does_not_block_a_caller() {
        let server = TestServer::start(&["--max-connections=32"]).await;
        assert!(server.client().await.get("/").await.is_some());
        let mut flood = Vec::new();
        for round in 0..8 {
            for _ in 0..64 {
                flood.extend(stranger(&server).await);
            }
            // A call to a Service uses a new connection.
            let start = Instant::now();
            let response = server.client().await.get("/").await;
            assert!(response.is_some() && start.elapsed() < Duration::from_secs(1), "{round}: {:?}", start.elapsed());
        }
        assert!(server.metric(r#"spillway_connection_errors_total{reason="crowded"}"#) > 0);
        assert_eq!(server.metric("spillway_connections_limit"), 32);
    }

    #[tokio::test]
    async fn a_connection_closes_after_a_request_that_is_not_for_spillway() {
        let server = TestServer::start(&[]).await;
        let mut client = server.client().await;
        let response = client.get("/unknown").await.unwrap();
        assert!(response.starts_with("HTTP/1.1 404") && response.contains("connection: close"), "{response}");
        assert!(client.get("/").await.is_none());
    }

    #[tokio::test]
    async fn idle_clients_do_not_block_the_api_server() {
        let server = TestServer::start(&["--max-connections=1"]).await;
        let mut idle = server.client().await;
        assert!(idle.get("/").await.is_some());
        let third = server.client_options().connect();
        let third = tokio::spawn(async { third.await.unwrap().get("/").await });
        let after = idle.time_until_closed().await;
        assert!(after.as_secs() <= 10, "{after:?}");
        assert!(third.await.unwrap().is_some());
    }
}
