//! One connection: handshake, HTTP, and when it has been quiet for too long.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, Version, header},
};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::{HttpService, Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::Watcher,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{self, Instant},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::drain::Draining;
use crate::telemetry::{ConnectionError, Connections};

/// A handshake takes a millisecond of CPU and two round trips; who needs seconds is not an API server.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// The API server closes connections that were idle for 90 s (Go's http.DefaultTransport). It has to be the one that closes, or a
/// request is on its way while we do, and is lost.
const IDLE: Duration = Duration::from_secs(120);

/// How long a connection may be quiet that has not asked anything yet, and any other while there is no room for new ones: so that
/// idle strangers cannot keep the API server out. (Go's client may open a connection and then not need it: that one is closed
/// here, without harm.) It is also how often a connection looks at itself.
const SHORT: Duration = Duration::from_secs(5);

/// The most that is buffered of a request's head, and of its body while nobody reads. The API server's heads have some 300 bytes.
const BUFFER: usize = 64 * 1024;

/// What one HTTP/2 client may ask at once. All streams share one window of [`BUFFER`], so that a connection of many streams costs
/// no more memory than another.
const STREAMS: u32 = 64;

/// A peer that vanished without a word is noticed after the sum of both.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What all connections have in common.
pub(super) struct Http {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    routes: TowerToHyperService<Router>,
    draining: Draining,
    /// One permit for each connection; the holders give them back.
    slots: Arc<Semaphore>,
    metrics: Connections,
}

impl Http {
    pub(super) fn new(routes: Router, draining: Draining, slots: Arc<Semaphore>, metrics: Connections) -> Self {
        let mut http1 = http1::Builder::new();
        // hyper's own timeout for heads also runs while a connection idles: one value for both would be too long for one of them.
        http1.header_read_timeout(None).max_buf_size(BUFFER);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        let window = u32::try_from(BUFFER).unwrap_or(u32::MAX);
        http2.timer(TokioTimer::new()).keep_alive_interval(PING_EVERY).keep_alive_timeout(PING_TIMEOUT);
        http2.max_concurrent_streams(STREAMS).initial_stream_window_size(window).initial_connection_window_size(window);
        Self { http1, http2, routes: TowerToHyperService::new(routes), draining, slots, metrics }
    }

    /// Serves one connection until it ends.
    pub(super) async fn serve(&self, tls: TlsAcceptor, tcp: TcpStream, watcher: Watcher) {
        let Some(stream) = self.handshake(tls, tcp).await else { return };
        let activity = Arc::new(Activity::default());
        let service = self.service(activity.clone());
        // Chosen here, not by hyper-util's `auto`, which would look at the first bytes again, and wrap every later read.
        if stream.get_ref().1.alpn_protocol() == Some(super::tls::HTTP2) {
            let connection = self.http2.serve_connection(TokioIo::new(stream), service);
            self.until_quiet(watcher.watch(connection), &activity).await;
        } else {
            let connection = self.http1.serve_connection(TokioIo::new(stream), service);
            self.until_quiet(watcher.watch(connection), &activity).await;
        }
    }

    async fn handshake(&self, tls: TlsAcceptor, tcp: TcpStream) -> Option<TlsStream<TcpStream>> {
        // An answer is one small write; waiting to fill a segment costs up to 40 ms.
        let _ = tcp.set_nodelay(true);
        // The socket outlives what is said of it: who sees it closed finds it counted.
        let mut accept = std::pin::pin!(tls.accept(tcp).into_fallible());
        match time::timeout(HANDSHAKE, accept.as_mut()).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err((error, _tcp))) => {
                self.metrics.failed(ConnectionError::Handshake);
                tracing::debug!(%error, "handshake failed");
                None
            }
            Err(_elapsed) => {
                self.metrics.failed(ConnectionError::HandshakeTimeout);
                tracing::debug!("handshake timed out");
                None
            }
        }
    }

    /// The routes, with what every answer needs besides.
    fn service(
        &self,
        activity: Arc<Activity>,
    ) -> impl HttpService<Incoming, ResBody = Body, Error = Infallible, Future: Send + 'static> + use<> {
        let (routes, draining) = (self.routes.clone(), self.draining.clone());
        service_fn(move |request: Request<Incoming>| {
            let busy = Activity::begin(&activity);
            let is_http1 = request.version() < Version::HTTP_2;
            let (answer, draining) = (routes.call(request), draining.clone());
            async move {
                let mut answer = answer.await?;
                // HTTP/2 has its own word for it, which hyper sends when the connection is shut down.
                if is_http1 && draining.has_begun() {
                    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                drop(busy);
                Ok(answer)
            }
        })
    }

    /// Drives a connection until it ends or has been quiet for too long.
    async fn until_quiet(&self, connection: impl Future<Output = hyper::Result<()>>, activity: &Activity) {
        let mut connection = std::pin::pin!(connection);
        loop {
            match time::timeout(SHORT, &mut connection).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => return self.ended_early(&error),
                Err(_elapsed) if activity.is_over(self.slots.available_permits() == 0) => break,
                Err(_elapsed) => {}
            }
        }
        if !activity.has_asked() {
            self.metrics.failed(ConnectionError::NoRequest);
        }
        tracing::debug!("closed a quiet connection");
    }

    fn ended_early(&self, error: &hyper::Error) {
        use std::error::Error;
        // A peer that goes away is its own affair.
        if !error.source().is_some_and(<dyn Error>::is::<std::io::Error>) && !error.is_incomplete_message() {
            self.metrics.failed(ConnectionError::Protocol);
        }
        tracing::debug!(error = error as &dyn Error, "connection ended early");
    }
}

/// When a connection last did something.
struct Activity {
    opened: Instant,
    in_flight: AtomicU32,
    /// In milliseconds after `opened`, from 1; 0 while nothing has been asked.
    last: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self { opened: Instant::now(), in_flight: AtomicU32::new(0), last: AtomicU64::new(0) }
    }
}

impl Activity {
    fn begin(activity: &Arc<Self>) -> Busy {
        activity.in_flight.fetch_add(1, Ordering::Relaxed);
        Busy(activity.clone())
    }

    fn has_asked(&self) -> bool {
        self.last.load(Ordering::Relaxed) > 0
    }

    /// A request in flight is bounded by its own limits.
    fn is_over(&self, is_crowded: bool) -> bool {
        let limit = if is_crowded || !self.has_asked() { SHORT } else { IDLE };
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.in_flight.load(Ordering::Relaxed) == 0 && self.opened.elapsed().saturating_sub(last) >= limit
    }
}

/// A request in flight, from its head to its answer, or to the end of its connection.
struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last.store(now.max(1), Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use tokio::io::AsyncWriteExt;

    use super::{
        super::testing::{Caller, Served, closed_after},
        *,
    };

    const NO_REQUEST: &str = r#"spillway_connection_errors_total{reason="no_request"}"#;

    fn seconds(range: Range<u64>) -> Range<Duration> {
        Duration::from_secs(range.start)..Duration::from_secs(range.end)
    }

    #[tokio::test]
    async fn a_handshake_that_never_ends_is_cut_off() {
        let served = Served::start(&[]).await;
        let mut tcp = served.tcp().await;
        tcp.write_all(b"\x16\x03\x01").await.unwrap();
        let after = closed_after(&mut tcp).await;
        assert!(seconds(5..6).contains(&after), "{after:?}");
        assert_eq!(served.metric(r#"spillway_connection_errors_total{reason="handshake_timeout"}"#), 1);
        let mut other = served.tcp().await;
        other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let after = closed_after(&mut other).await;
        assert!(after < Duration::from_secs(1), "{after:?}");
        assert_eq!(served.metric(r#"spillway_connection_errors_total{reason="handshake"}"#), 1);
    }

    #[tokio::test]
    async fn a_connection_that_asks_nothing_is_closed_soon() {
        let served = Served::start(&[]).await;
        let after = served.client().await.closed_after().await;
        assert!(seconds(5..6).contains(&after), "{after:?}");
        assert_eq!(served.metric(NO_REQUEST), 1);
    }

    #[tokio::test]
    async fn a_head_that_trickles_does_not_hold_a_connection() {
        let served = Served::start(&[]).await;
        let mut slow = served.client().await;
        let start = Instant::now();
        time::pause();
        while slow.0.write_all(b"G").await.is_ok() && slow.0.flush().await.is_ok() {
            time::sleep(Duration::from_secs(1)).await;
            assert!(start.elapsed() < Duration::from_secs(60), "still open");
        }
        time::resume();
        assert_eq!(served.metric(NO_REQUEST), 1);
        assert!(served.client().await.get("/").await.is_some());
    }

    #[tokio::test]
    async fn a_connection_outlives_the_api_servers_patience() {
        let served = Served::start(&[]).await;
        let mut client = served.client().await;
        for _ in 0..2 {
            assert!(client.get("/").await.unwrap().ends_with("ok\n"));
            time::pause();
            time::sleep(Duration::from_secs(95)).await;
            time::resume();
        }
        let answer = client.get("/").await.unwrap();
        assert!(!answer.to_lowercase().contains("connection: close"), "{answer}");
        let after = client.closed_after().await;
        assert!(seconds(119..126).contains(&after), "{after:?}");
        assert_eq!(served.metric(NO_REQUEST), 0);
    }

    #[tokio::test]
    async fn who_waits_for_an_answer_is_not_quiet() {
        let served = Served::start(&["--max-connections=1"]).await;
        let mut client = served.client().await;
        client.send("/slow").await.unwrap();
        served.asked.acquire().await.unwrap().forget();
        time::pause();
        time::sleep(Duration::from_secs(600)).await;
        time::resume();
        served.gate.add_permits(1);
        assert!(client.answer().await.unwrap().ends_with("slow\n"));
    }

    #[tokio::test]
    async fn what_is_no_http_is_counted() {
        let served = Served::start(&[]).await;
        let mut client = served.client().await;
        client.0.write_all(b"\x00\x01\x02 garbage\r\n\r\n").await.unwrap();
        client.answer().await;
        assert_eq!(served.metric(r#"spillway_connection_errors_total{reason="protocol"}"#), 1);
    }

    #[tokio::test]
    async fn http2_is_spoken_to_who_asks_for_it_and_ended_in_its_own_way() {
        use hyper::client::conn::http2;
        let mut served = Served::start(&["--drain-grace=0s", "--drain-deadline=1h"]).await;
        let stream = Caller { protocol: b"h2", ..served.caller() }.connect().await.unwrap();
        let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream.0)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = |path| Request::get(format!("https://localhost{path}")).body(Body::empty()).unwrap();
        let answer = client.send_request(request("/")).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));
        let slow = tokio::spawn(client.send_request(request("/slow")));
        served.asked.acquire().await.unwrap().forget();
        served.stop();
        served.gate.add_permits(1);
        assert_eq!(slow.await.unwrap().unwrap().status().as_u16(), 200, "what was in flight is finished");
        time::timeout(Duration::from_secs(60), connection).await.expect("told to go away").unwrap().unwrap();
        served.server.await.unwrap();
        drop(client);
    }
}
