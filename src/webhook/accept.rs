//! The accept loop: who gets in, and how many.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::server::graceful::GracefulShutdown;
use prometheus_client::registry::Registry;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time,
};

use super::{
    connection::Http,
    drain::{DrainArgs, Draining},
    tls::{Acceptor, Tls, TlsArgs, TlsError},
};
use crate::{
    certs::Serving,
    telemetry::{ConnectionError, Connections},
};

/// The HTTPS side of the webhook.
#[derive(Debug, Clone, clap::Parser)]
pub struct ServerArgs {
    /// Address for the API server's calls (HTTPS)
    #[arg(long, env = "SPILLWAY_BIND", default_value = "[::]:9443", value_name = "ADDRESS")]
    pub bind: SocketAddr,

    /// Connections that may be open at once; more have to wait
    // A connection costs some 42 KiB, up to 64 more while a head or a small body is read, and 64 for that body: 170 MiB for all of
    // them, beside 15 at rest and 64 for large bodies, in a container of 256 MiB. An API server keeps as many connections as it has
    // calls at a time, a few dozen when pods are created by the thousand.
    #[arg(long, env = "SPILLWAY_MAX_CONNECTIONS", default_value = "1024", value_name = "NUMBER")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,

    #[allow(missing_docs)]
    #[command(flatten)]
    pub tls: TlsArgs,

    #[allow(missing_docs)]
    #[command(flatten)]
    pub drain: DrainArgs,
}

/// Why the port could not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address is taken or not ours.
    #[error("--bind: cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// After a failed accept that is our own fault, such as no descriptors left: not to spin.
const PAUSE: Duration = Duration::from_secs(1);

/// HTTPS with every limit of this program, for any routes. The port is taken: nothing is left that can fail.
pub struct Server {
    listener: TcpListener,
    tls: Tls,
    slots: Arc<Semaphore>,
    drain: DrainArgs,
    draining: Draining,
    metrics: Connections,
}

impl Server {
    /// Takes the port and prepares TLS. Handshakes fail until there is a certificate.
    ///
    /// # Errors
    ///
    /// [`ServerError`], which names the flag at fault.
    pub async fn bind(args: &ServerArgs, certificate: Serving, registry: &mut Registry) -> Result<Self, ServerError> {
        let ServerArgs { bind: address, max_connections, tls, drain } = args;
        let tls = Tls::new(tls, certificate).await?;
        let listener = TcpListener::bind(address).await;
        Ok(Self {
            listener: listener.map_err(|source| ServerError::Listen { address: *address, source })?,
            tls,
            slots: Arc::new(Semaphore::new(*max_connections as usize)),
            drain: drain.clone(),
            draining: Draining::default(),
            metrics: Connections::new(registry),
        })
    }

    /// Where it listens; tests bind port 0.
    ///
    /// # Errors
    ///
    /// When the operating system cannot tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Tells whether `stop` is done, for the probe of readiness.
    pub fn draining(&self) -> Draining {
        self.draining.clone()
    }

    /// Serves until `stop` is done, goes on for the grace time, and then finishes what is in flight, within the deadline.
    pub async fn serve(self, routes: Router, stop: impl Future<Output = ()>) {
        let Self { listener, tls, slots, drain, draining, metrics } = self;
        let connections = GracefulShutdown::new();
        let door = Door { listener, slots, tls: tls.acceptor(), metrics };
        let http = Http::new(routes, draining.clone(), door.slots.clone(), door.metrics.clone());
        tokio::select! {
            () = door.admit(Arc::new(http), &connections) => {}
            () = tls.follow() => {}
            () = drain.until_grace_is_over(stop, &draining) => {}
        }
        drop(door);
        drain.finish(connections).await;
    }
}

/// Where connections come in.
struct Door {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    tls: Acceptor,
    metrics: Connections,
}

impl Door {
    /// Lets connections in for as long as it is asked to.
    async fn admit(&self, http: Arc<Http>, connections: &GracefulShutdown) {
        loop {
            let tcp = self.next().await;
            // Never closed. While there is no room, quiet connections are closed sooner.
            let Ok(slot) = self.slots.clone().acquire_owned().await else { return };
            let (http, tls, watcher) = (http.clone(), self.tls.current(), connections.watcher());
            let open = self.metrics.opened();
            tokio::spawn(async move {
                http.serve(tls, tcp, watcher).await;
                drop((open, slot));
            });
        }
    }

    async fn next(&self) -> TcpStream {
        loop {
            match self.listener.accept().await {
                Ok((tcp, _peer)) => return tcp,
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    self.metrics.failed(ConnectionError::Accept);
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot accept connections");
                    time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Errors of a connection that was gone before it was accepted: nothing is wrong with the listener.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Served;

    #[tokio::test]
    async fn who_finds_no_room_waits_until_a_connection_ends() {
        let served = Served::start(&["--max-connections=2"]).await;
        let (mut one, mut two) = (served.client().await, served.client().await);
        let third = served.client();
        let mut third = std::pin::pin!(third);
        // Two answers take longer than a handshake, had it been begun.
        for client in [&mut one, &mut two] {
            tokio::select! {
                _ = &mut third => panic!("there was room"),
                answer = client.get("/") => assert!(answer.is_some()),
            }
        }
        assert_eq!(served.metric("spillway_connections"), 2);
        drop(one);
        assert!(third.await.get("/").await.is_some());
        assert!(two.get("/").await.is_some(), "who was busy a moment ago stays");
    }

    #[tokio::test]
    async fn idle_strangers_do_not_keep_the_api_server_out() {
        let served = Served::start(&["--max-connections=1"]).await;
        let mut stranger = served.client().await;
        assert!(stranger.get("/").await.is_some());
        let third = served.caller().connect();
        let third = tokio::spawn(async { third.await.unwrap().get("/").await });
        let after = stranger.closed_after().await;
        assert!(after.as_secs() <= 10, "{after:?}");
        assert!(third.await.unwrap().is_some());
    }
}
