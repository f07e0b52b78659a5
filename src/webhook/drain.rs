//! Graceful shutdown. The replica becomes not ready, serves for a grace period, and then drains requests in flight.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper_util::server::graceful::GracefulShutdown;
use tokio::time;

use crate::config::Wait;

/// Options of the graceful shutdown.
#[derive(Debug, Clone, clap::Args)]
pub struct DrainArgs {
    /// Time to keep serving after SIGTERM, while the cluster removes this replica from its Service
    // The EndpointSlice controller writes within a second. kube-proxy syncs every second, or every 10 s in a large
    // cluster. The API server keeps its connections (kubernetes/kubernetes#127335) until a response asks it to close
    // them. With the deadline below, shutdown takes up to 20 s of the pod's 30 s.
    #[arg(long, env = "SPILLWAY_DRAIN_GRACE", default_value = "10s", value_name = "TIME", value_parser = duration)]
    pub drain_grace: Duration,

    /// Time for requests in flight to finish after the grace period
    // A request takes at most 1.5 s. The rest is for connections in their handshake, and for a node that is slow
    // because it terminates many pods.
    #[arg(long, env = "SPILLWAY_DRAIN_DEADLINE", default_value = "10s", value_name = "TIME", value_parser = duration)]
    pub drain_deadline: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    Wait::try_from(text.to_owned()).map(|Wait(duration)| duration)
}

/// `true` while the process shuts down. Clones share the value.
#[derive(Debug, Clone, Default)]
pub struct Draining(Arc<AtomicBool>);

impl Draining {
    /// Returns whether the shutdown has started.
    pub fn has_started(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl DrainArgs {
    /// Waits for `stop` and then for the grace period. After `stop`, every HTTP/1.1 response asks the client to
    /// close its connection (see [`super::connection`]). The server still accepts new connections.
    pub(super) async fn wait_for_grace_period(&self, stop: impl Future<Output = ()>, draining: &Draining) {
        stop.await;
        draining.0.store(true, Ordering::Relaxed);
        tracing::info!(
            grace_seconds = self.drain_grace.as_secs_f64(),
            "shutting down: not ready, still serving requests"
        );
        time::sleep(self.drain_grace).await;
    }

    /// Closes idle connections immediately, and other connections after their current request.
    pub(super) async fn shut_down(&self, connections: GracefulShutdown) {
        let open = connections.count();
        tracing::info!(open, "stopped accepting connections");
        if time::timeout(self.drain_deadline, connections.shutdown()).await.is_err() {
            tracing::warn!(
                deadline_seconds = self.drain_deadline.as_secs_f64(),
                "shutdown deadline exceeded, aborting requests in flight"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{self, Instant};

    use super::super::test_server::TestServer;

    fn has_close_header(response: &str) -> bool {
        response.to_lowercase().contains("\r\nconnection: close\r\n")
    }

    #[tokio::test]
    async fn the_grace_period_serves_and_closes_connections() {
        let mut server = TestServer::start(&["--drain-grace=1h"]).await;
        let (mut old, mut idle) = (server.client().await, server.client().await);
        assert!(!has_close_header(&old.get("/").await.unwrap()));
        assert!(idle.get("/").await.is_some());
        server.stop();
        tokio::task::yield_now().await;
        assert!(has_close_header(&old.get("/").await.unwrap()));
        assert_eq!(old.get("/").await, None, "closed after the response");
        let mut new = server.client().await;
        assert!(has_close_header(&new.get("/").await.unwrap()));
        assert!(!server.task.is_finished());
        assert!(has_close_header(&idle.get("/").await.unwrap()), "idle connections stay open");
    }

    #[tokio::test]
    async fn shutdown_finishes_requests_and_closes_idle_connections() {
        let mut server = TestServer::start(&["--drain-grace=0s", "--drain-deadline=1h"]).await;
        let (mut busy, mut idle) = (server.client().await, server.client().await);
        assert!(idle.get("/").await.is_some());
        busy.send("/slow").await.unwrap();
        server.slow_requests.acquire().await.unwrap().forget();
        server.stop();
        assert_eq!(idle.read_response().await, None);
        assert!(tokio::net::TcpStream::connect(server.address).await.is_err(), "no longer accepting");
        assert!(!server.task.is_finished());
        server.slow_responses.add_permits(1);
        let response = busy.read_response().await.unwrap();
        assert!(response.ends_with("slow\n") && has_close_header(&response), "{response}");
        server.task.await.unwrap();
    }

    #[tokio::test]
    async fn shutdown_ends_at_the_deadline() {
        let mut server = TestServer::start(&["--drain-grace=10s", "--drain-deadline=10s"]).await;
        let mut busy = server.client().await;
        busy.send("/slow").await.unwrap();
        server.slow_requests.acquire().await.unwrap().forget();
        let start = Instant::now();
        time::pause();
        server.stop();
        server.task.await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 20);
        assert!(start.elapsed() < Duration::from_secs(21));
    }
}
