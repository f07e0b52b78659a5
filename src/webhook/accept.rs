//! The accept loop: TCP, TLS, HTTP, each with its limit.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    time,
};
use tokio_rustls::TlsAcceptor;

/// A handshake takes a millisecond of CPU and two round trips; who needs seconds is not an API server.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// hyper's timeout for reading a head also runs while a connection idles between two requests. The API server keeps idle
/// connections for 90 s (Go's http.DefaultTransport): it has to be the one that closes them, or a request is lost in between.
const IDLE: Duration = Duration::from_secs(120);

/// After a failed accept that is our own fault, such as no descriptors left: not to spin.
const PAUSE: Duration = Duration::from_secs(1);

/// Accepts until `stop` is done. Returns the connections that are still open.
pub(super) async fn serve(
    listener: &TcpListener,
    tls: Arc<ServerConfig>,
    routes: Router,
    stop: impl Future<Output = ()>,
) -> GracefulShutdown {
    let tls = TlsAcceptor::from(tls);
    let connections = GracefulShutdown::new();
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    http.http2().timer(TokioTimer::new());
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => return connections,
        };
        let tcp = match accepted {
            Ok((tcp, _peer)) => tcp,
            Err(error) if is_the_peers(&error) => continue,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot accept connections");
                time::sleep(PAUSE).await;
                continue;
            }
        };
        let (tls, http, routes, watcher) = (tls.clone(), http.clone(), routes.clone(), connections.watcher());
        tokio::spawn(async move {
            let Some(stream) = handshake(&tls, tcp).await else { return };
            let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
            if let Err(error) = watcher.watch(connection.into_owned()).await {
                tracing::debug!(%error, "connection ended early");
            }
        });
    }
}

async fn handshake(tls: &TlsAcceptor, tcp: TcpStream) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    // An answer is one small write; waiting to fill a segment costs up to 40 ms.
    let _ = tcp.set_nodelay(true);
    match time::timeout(HANDSHAKE, tls.accept(tcp)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "handshake failed");
            None
        }
        Err(_elapsed) => {
            tracing::debug!("handshake timed out");
            None
        }
    }
}

/// Errors of a connection that was gone before it was accepted: nothing is wrong with the listener.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
