//! Serves one connection: TLS handshake, HTTP, and timeouts.

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
    time::{self, Instant},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{drain::Draining, open_connections::Slot};
use crate::telemetry::{ConnectionError, ConnectionMetrics};

/// Time for the TLS handshake, which takes a millisecond of CPU and two round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Idle timeout. The API server closes idle connections after 90 s (Go's http.DefaultTransport). If Spillway closed a
/// connection first, a request that the API server has just sent would be lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Idle timeout before the first request, after a request that was not successful, and while the connection limit is
/// reached. It keeps idle clients from blocking the API server. Go's client may open a connection that it does not need, which Spillway can close without harm. Each
/// connection checks its idle time at this interval.
const SHORT_IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum size of buffered request headers, and of a buffered body that is not read yet. The API server's headers have
/// about 300 bytes.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// Maximum concurrent requests of one HTTP/2 client. All streams share one window of [`MAX_BUFFER_BYTES`], so the
/// number of streams does not change the memory of a connection.
const MAX_CONCURRENT_STREAMS: u32 = 64;

/// Interval of HTTP/2 pings, and the time to respond to one. The sum bounds how long an unreachable client stays connected.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves connections. All connections share one handler.
pub(super) struct ConnectionHandler {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    routes: TowerToHyperService<Router>,
    draining: Draining,
    metrics: ConnectionMetrics,
}

impl ConnectionHandler {
    pub(super) fn new(routes: Router, draining: Draining, metrics: ConnectionMetrics) -> Self {
        let mut http1 = http1::Builder::new();
        // hyper's timeout for request headers also runs while a connection is idle. No single value fits both.
        http1.header_read_timeout(None).max_buf_size(MAX_BUFFER_BYTES);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        let window = u32::try_from(MAX_BUFFER_BYTES).unwrap_or(u32::MAX);
        http2.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE_INTERVAL).keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        http2
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .initial_stream_window_size(window)
            .initial_connection_window_size(window);
        Self { http1, http2, routes: TowerToHyperService::new(routes), draining, metrics }
    }

    /// Serves one connection until it ends.
    pub(super) async fn serve(&self, tls: TlsAcceptor, tcp: TcpStream, slot: Slot, watcher: Watcher) {
        let stream = tokio::select! {
            stream = self.handshake(tls, tcp) => stream,
            () = slot.evicted() => return self.metrics.failed(ConnectionError::Crowded),
        };
        let Some(stream) = stream else { return };
        let activity = Arc::new(Activity::new(slot));
        let service = self.service(activity.clone());
        // hyper-util's `auto` would read the first bytes again and wrap every later read.
        if stream.get_ref().1.alpn_protocol() == Some(super::tls::HTTP2) {
            let connection = self.http2.serve_connection(TokioIo::new(stream), service);
            self.until_idle(watcher.watch(connection), &activity).await;
        } else {
            let connection = self.http1.serve_connection(TokioIo::new(stream), service);
            self.until_idle(watcher.watch(connection), &activity).await;
        }
    }

    async fn handshake(&self, tls: TlsAcceptor, tcp: TcpStream) -> Option<TlsStream<TcpStream>> {
        // A response is one small write. Waiting for a full segment (Nagle) costs up to 40 ms.
        let _ = tcp.set_nodelay(true);
        // The socket is dropped after the metric is counted, so a client that sees it closed also sees the
        // metric.
        let mut accept = std::pin::pin!(tls.accept(tcp).into_fallible());
        match time::timeout(HANDSHAKE_TIMEOUT, accept.as_mut()).await {
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

    /// Returns the routes, with the tracking of requests in flight and the Connection header.
    fn service(
        &self,
        activity: Arc<Activity>,
    ) -> impl HttpService<Incoming, ResBody = Body, Error = Infallible, Future: Send + 'static> + use<> {
        let (routes, draining) = (self.routes.clone(), self.draining.clone());
        service_fn(move |request: Request<Incoming>| {
            let in_flight = Activity::start_request(&activity);
            let is_http1 = request.version() < Version::HTTP_2;
            let (response, draining) = (routes.call(request), draining.clone());
            async move {
                let mut response = response.await?;
                let is_rejected = response.status().is_client_error();
                in_flight.0.slot.responded(response.status().is_success());
                // HTTP/2 sends GOAWAY instead, which hyper does when the connection shuts down.
                if is_http1 && (is_rejected || draining.has_started()) {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                drop(in_flight);
                Ok(response)
            }
        })
    }

    /// Drives a connection until it ends or its idle timeout expires.
    async fn until_idle(&self, connection: impl Future<Output = hyper::Result<()>>, activity: &Activity) {
        let mut connection = std::pin::pin!(connection);
        loop {
            let event = tokio::select! {
                event = time::timeout(SHORT_IDLE_TIMEOUT, &mut connection) => event,
                () = activity.slot.evicted() => return self.metrics.failed(ConnectionError::Crowded),
            };
            match event {
                Ok(Ok(())) => return,
                Ok(Err(error)) => return self.record_error(&error),
                Err(_elapsed) if activity.has_timed_out() => break,
                Err(_elapsed) => {}
            }
        }
        if !activity.has_received_request() {
            self.metrics.failed(ConnectionError::NoRequest);
        }
        tracing::debug!("closed an idle connection");
    }

    fn record_error(&self, error: &hyper::Error) {
        use std::error::Error;
        // A client that disconnects is not an error.
        if !error.source().is_some_and(<dyn Error>::is::<std::io::Error>) && !error.is_incomplete_message() {
            self.metrics.failed(ConnectionError::Protocol);
        }
        tracing::debug!(error = error as &dyn Error, "connection ended early");
    }
}

/// The last activity of a connection.
struct Activity {
    slot: Slot,
    opened: Instant,
    in_flight: AtomicU32,
    /// Milliseconds from `opened` to the last response, at least 1. 0 before the first request.
    last_active_ms: AtomicU64,
}

impl Activity {
    fn new(slot: Slot) -> Self {
        Self { slot, opened: Instant::now(), in_flight: AtomicU32::new(0), last_active_ms: AtomicU64::new(0) }
    }

    fn start_request(activity: &Arc<Self>) -> InFlightGuard {
        activity.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlightGuard(activity.clone())
    }

    fn has_received_request(&self) -> bool {
        self.last_active_ms.load(Ordering::Relaxed) > 0
    }

    /// Returns whether the idle timeout has expired. Requests in flight have their own timeouts.
    fn has_timed_out(&self) -> bool {
        let is_short = self.slot.is_at_capacity() || self.slot.is_rejected() || !self.has_received_request();
        let limit = if is_short { SHORT_IDLE_TIMEOUT } else { IDLE_TIMEOUT };
        let last = Duration::from_millis(self.last_active_ms.load(Ordering::Relaxed));
        self.in_flight.load(Ordering::Relaxed) == 0 && self.opened.elapsed().saturating_sub(last) >= limit
    }
}

/// A request in flight, from its headers to its response or to the end of its connection.
struct InFlightGuard(Arc<Activity>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last_active_ms.store(now.max(1), Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use tokio::io::AsyncWriteExt;

    use super::{
        super::test_server::{ClientOptions, TestServer, time_until_closed},
        *,
    };

    const NO_REQUEST: &str = r#"spillway_connection_errors_total{reason="no_request"}"#;

    fn seconds(range: Range<u64>) -> Range<Duration> {
        Duration::from_secs(range.start)..Duration::from_secs(range.end)
    }

    #[tokio::test]
    async fn an_unfinished_handshake_times_out() {
        let server = TestServer::start(&[]).await;
        let mut tcp = server.tcp().await;
        tcp.write_all(b"\x16\x03\x01").await.unwrap();
        let after = time_until_closed(&mut tcp).await;
        assert!(seconds(5..6).contains(&after), "{after:?}");
        assert_eq!(server.metric(r#"spillway_connection_errors_total{reason="handshake_timeout"}"#), 1);
        let mut other = server.tcp().await;
        other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let after = time_until_closed(&mut other).await;
        assert!(after < Duration::from_secs(1), "{after:?}");
        assert_eq!(server.metric(r#"spillway_connection_errors_total{reason="handshake"}"#), 1);
    }

    #[tokio::test]
    async fn a_connection_without_a_request_is_closed_soon() {
        let server = TestServer::start(&[]).await;
        let after = server.client().await.time_until_closed().await;
        assert!(seconds(5..6).contains(&after), "{after:?}");
        assert_eq!(server.metric(NO_REQUEST), 1);
    }

    #[tokio::test]
    async fn slow_request_headers_do_not_hold_a_connection() {
        let server = TestServer::start(&[]).await;
        let mut slow = server.client().await;
        let start = Instant::now();
        time::pause();
        while slow.0.write_all(b"G").await.is_ok() && slow.0.flush().await.is_ok() {
            time::sleep(Duration::from_secs(1)).await;
            assert!(start.elapsed() < Duration::from_secs(60), "still open");
        }
        time::resume();
        assert_eq!(server.metric(NO_REQUEST), 1);
        assert!(server.client().await.get("/").await.is_some());
    }

    #[tokio::test]
    async fn idle_connections_outlive_the_api_servers_idle_timeout() {
        let server = TestServer::start(&[]).await;
        let mut client = server.client().await;
        for _ in 0..2 {
            assert!(client.get("/").await.unwrap().ends_with("ok\n"));
            time::pause();
            time::sleep(Duration::from_secs(95)).await;
            time::resume();
        }
        let response = client.get("/").await.unwrap();
        assert!(!response.to_lowercase().contains("connection: close"), "{response}");
        let after = client.time_until_closed().await;
        assert!(seconds(119..126).contains(&after), "{after:?}");
        assert_eq!(server.metric(NO_REQUEST), 0);
    }

    #[tokio::test]
    async fn a_connection_with_a_request_in_flight_is_not_idle() {
        let server = TestServer::start(&["--max-connections=1"]).await;
        let mut client = server.client().await;
        client.send("/slow").await.unwrap();
        server.slow_requests.acquire().await.unwrap().forget();
        time::pause();
        time::sleep(Duration::from_secs(600)).await;
        time::resume();
        server.slow_responses.add_permits(1);
        assert!(client.read_response().await.unwrap().ends_with("slow\n"));
    }

    #[tokio::test]
    async fn protocol_errors_are_counted() {
        let server = TestServer::start(&[]).await;
        let mut client = server.client().await;
        client.0.write_all(b"\x00\x01\x02 garbage\r\n\r\n").await.unwrap();
        client.read_response().await;
        assert_eq!(server.metric(r#"spillway_connection_errors_total{reason="protocol"}"#), 1);
    }

    #[tokio::test]
    async fn http2_clients_are_served_and_shut_down_gracefully() {
        use hyper::client::conn::http2;
        let mut server = TestServer::start(&["--drain-grace=0s", "--drain-deadline=1h"]).await;
        let stream = ClientOptions { protocol: b"h2", ..server.client_options() }.connect().await.unwrap();
        let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream.0)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = |path| Request::get(format!("https://localhost{path}")).body(Body::empty()).unwrap();
        let response = client.send_request(request("/")).await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
        let slow = tokio::spawn(client.send_request(request("/slow")));
        server.slow_requests.acquire().await.unwrap().forget();
        server.stop();
        server.slow_responses.add_permits(1);
        assert_eq!(slow.await.unwrap().unwrap().status().as_u16(), 200, "requests in flight finish");
        time::timeout(Duration::from_secs(60), connection).await.expect("GOAWAY").unwrap().unwrap();
        server.task.await.unwrap();
        drop(client);
    }
}
