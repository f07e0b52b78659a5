//! The accept loop, which limits the number of open connections.

use std::{io, sync::Arc, time::Duration};

use hyper_util::server::graceful::GracefulShutdown;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time,
};

use super::{connection::ConnectionHandler, tls::CurrentTls};
use crate::telemetry::{ConnectionError, ConnectionMetrics};

/// Delay before the next accept after one failed for a local reason, such as too many open files.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Accepts connections while fewer than `--max-connections` are open.
pub(super) struct ConnectionLimiter {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    tls: CurrentTls,
    metrics: ConnectionMetrics,
}

impl ConnectionLimiter {
    pub(super) fn new(
        listener: TcpListener,
        slots: Arc<Semaphore>,
        tls: CurrentTls,
        metrics: ConnectionMetrics,
    ) -> Self {
        Self { listener, slots, tls, metrics }
    }

    /// Accepts connections until the returned future is dropped.
    pub(super) async fn accept_connections(&self, http: Arc<ConnectionHandler>, connections: &GracefulShutdown) {
        loop {
            let tcp = self.accept().await;
            // The semaphore is never closed. At the limit, idle connections time out earlier.
            let Ok(slot) = self.slots.clone().acquire_owned().await else { return };
            let (http, tls, watcher) = (http.clone(), self.tls.acceptor(), connections.watcher());
            let open = self.metrics.opened();
            tokio::spawn(async move {
                http.serve(tls, tcp, watcher).await;
                drop((open, slot));
            });
        }
    }

    async fn accept(&self) -> TcpStream {
        loop {
            match self.listener.accept().await {
                Ok((tcp, _peer)) => return tcp,
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
    use super::super::test_server::TestServer;

    #[tokio::test]
    async fn a_connection_over_the_limit_waits_for_a_free_slot() {
        let server = TestServer::start(&["--max-connections=2"]).await;
        let (mut one, mut two) = (server.client().await, server.client().await);
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
