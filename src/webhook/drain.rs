//! The end: unready at once, still serving for a while, then finishing what is in flight.

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

/// How to end.
#[derive(Debug, Clone, clap::Args)]
pub struct DrainArgs {
    /// How long to go on serving after SIGTERM, while the cluster takes this replica out of its Service
    // The EndpointSlice controller writes within a second, kube-proxy syncs every second, in a large cluster every ten; and the
    // API server goes on using the connections that it has (kubernetes/kubernetes#127335) until it is told to close them. With
    // the deadline below this is 20 s of the 30 s that a pod has to end.
    #[arg(long, env = "SPILLWAY_DRAIN_GRACE", default_value = "10s", value_name = "TIME", value_parser = duration)]
    pub drain_grace: Duration,

    /// How long requests in flight may take to finish after that
    // A request takes 1.5 s at most; the rest is for connections in their handshake and for a machine that is busy ending pods.
    #[arg(long, env = "SPILLWAY_DRAIN_DEADLINE", default_value = "10s", value_name = "TIME", value_parser = duration)]
    pub drain_deadline: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    Wait::try_from(text.to_owned()).map(|Wait(duration)| duration)
}

/// Whether the process has been asked to end. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Draining(Arc<AtomicBool>);

impl Draining {
    /// Whether it has been asked to end.
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl DrainArgs {
    /// Done when nothing more is to be accepted: the grace time after `stop`. From `stop` on, HTTP/1.1 clients are told with every
    /// answer to close their connection (see [`super::connection`]), and new connections are welcome all the same.
    pub(super) async fn until_grace_is_over(&self, stop: impl Future<Output = ()>, draining: &Draining) {
        stop.await;
        draining.0.store(true, Ordering::Relaxed);
        tracing::info!(grace_seconds = self.drain_grace.as_secs_f64(), "asked to end: no longer ready, still serving");
        time::sleep(self.drain_grace).await;
    }

    /// Closes connections that are idle, and the others after the request they are busy with.
    pub(super) async fn finish(&self, connections: GracefulShutdown) {
        let open = connections.count();
        tracing::info!(open, "no longer accepting connections");
        if time::timeout(self.drain_deadline, connections.shutdown()).await.is_err() {
            tracing::warn!(deadline_seconds = self.drain_deadline.as_secs_f64(), "gave up on requests in flight");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{self, Instant};

    use super::super::testing::Served;

    fn says_close(answer: &str) -> bool {
        answer.to_lowercase().contains("\r\nconnection: close\r\n")
    }

    #[tokio::test]
    async fn connections_old_and_new_are_served_in_the_grace_time_and_told_to_close() {
        let mut served = Served::start(&["--drain-grace=1h"]).await;
        let (mut old, mut idle) = (served.client().await, served.client().await);
        assert!(!says_close(&old.get("/").await.unwrap()));
        assert!(idle.get("/").await.is_some());
        served.stop();
        tokio::task::yield_now().await;
        assert!(says_close(&old.get("/").await.unwrap()));
        assert_eq!(old.get("/").await, None, "closed after the answer");
        let mut new = served.client().await;
        assert!(says_close(&new.get("/").await.unwrap()));
        assert!(!served.server.is_finished());
        assert!(says_close(&idle.get("/").await.unwrap()), "nobody was cut off");
    }

    #[tokio::test]
    async fn a_request_in_flight_at_the_end_is_finished_and_idle_connections_are_closed() {
        let mut served = Served::start(&["--drain-grace=0s", "--drain-deadline=1h"]).await;
        let (mut busy, mut idle) = (served.client().await, served.client().await);
        assert!(idle.get("/").await.is_some());
        busy.send("/slow").await.unwrap();
        served.asked.acquire().await.unwrap().forget();
        served.stop();
        assert_eq!(idle.answer().await, None);
        assert!(tokio::net::TcpStream::connect(served.address).await.is_err(), "no longer accepting");
        assert!(!served.server.is_finished());
        served.gate.add_permits(1);
        let answer = busy.answer().await.unwrap();
        assert!(answer.ends_with("slow\n") && says_close(&answer), "{answer}");
        served.server.await.unwrap();
    }

    #[tokio::test]
    async fn who_does_not_finish_does_not_hold_up_the_end() {
        let mut served = Served::start(&["--drain-grace=10s", "--drain-deadline=10s"]).await;
        let mut busy = served.client().await;
        busy.send("/slow").await.unwrap();
        served.asked.acquire().await.unwrap().forget();
        let start = Instant::now();
        time::pause();
        served.stop();
        served.server.await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 20);
        assert!(start.elapsed() < Duration::from_secs(21));
    }
}
