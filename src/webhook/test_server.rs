//! A server on a real socket, and a client for tests.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use clap::Parser;
use prometheus_client::registry::Registry;
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Semaphore, oneshot},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::server::{Server, ServerArgs};
use crate::{
    certs::{self, DevCertificates, Leaf, ServingCertificate},
    telemetry,
};

pub(super) struct TestServer {
    pub(super) address: SocketAddr,
    pub(super) ca: String,
    registry: Registry,
    /// One permit for each request to `/slow` that has arrived.
    pub(super) slow_requests: Arc<Semaphore>,
    /// Each permit completes one request to `/slow`.
    pub(super) slow_responses: Arc<Semaphore>,
    stop: Option<oneshot::Sender<()>>,
    pub(super) task: JoinHandle<()>,
}

pub(super) fn certificates() -> DevCertificates {
    certs::generate(&[], OffsetDateTime::now_utc()).unwrap()
}

impl TestServer {
    pub(super) async fn start(flags: &[&str]) -> Self {
        let args = ["server", "--bind=127.0.0.1:0"].iter().chain(flags);
        let made = certificates();
        let serving = ServingCertificate::default();
        let pair = certs::parse_key_pair(made.certificate.as_bytes(), made.key.as_bytes()).unwrap();
        serving.replace(Leaf::new(pair).unwrap());
        let mut registry = telemetry::registry();
        let server = Server::bind(&ServerArgs::parse_from(args), serving, &mut registry).await.unwrap();
        let address = server.address().unwrap();
        let slow_responses = Arc::new(Semaphore::new(0));
        let slow_requests = Arc::new(Semaphore::new(0));
        let (arrived, permitted) = (slow_requests.clone(), slow_responses.clone());
        let slow = async move || {
            arrived.add_permits(1);
            permitted.acquire().await.unwrap().forget();
            "slow\n"
        };
        let routes = Router::new().route("/", get(async || "ok\n")).route("/slow", get(slow));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.serve(routes, async { drop(stopped.await) }));
        Self { address, ca: made.ca, registry, slow_requests, slow_responses, stop: Some(stop), task }
    }

    pub(super) fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    /// Returns the value of a metric, or 0 if the metric has no such sample.
    pub(super) fn metric(&self, name: &str) -> u64 {
        let text = telemetry::encode(&self.registry);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    pub(super) async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Returns the options of a client of this server.
    pub(super) fn client_options(&self) -> ClientOptions {
        let (address, ca) = (self.address, self.ca.clone());
        ClientOptions { address, ca, versions: rustls::ALL_VERSIONS, certificate: None, protocol: b"http/1.1" }
    }

    pub(super) async fn client(&self) -> Client {
        self.client_options().connect().await.unwrap()
    }
}

pub(super) struct ClientOptions {
    pub(super) address: SocketAddr,
    pub(super) ca: String,
    pub(super) versions: &'static [&'static SupportedProtocolVersion],
    pub(super) certificate: Option<DevCertificates>,
    pub(super) protocol: &'static [u8],
}

impl ClientOptions {
    pub(super) async fn connect(self) -> std::io::Result<Client> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut settings = match self.certificate {
            None => builder.with_no_client_auth(),
            Some(made) => {
                let chain = vec![CertificateDer::from_pem_slice(made.certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        settings.alpn_protocols = vec![self.protocol.to_vec()];
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(settings)).connect(name, tcp).await.map(Client)
    }
}

/// A client with one connection.
#[derive(Debug)]
pub(super) struct Client(pub(super) TlsStream<TcpStream>);

impl Client {
    /// Sends a request and returns the whole response. Returns `None` if the server closes the connection.
    pub(super) async fn get(&mut self, path: &str) -> Option<String> {
        self.send(path).await?;
        self.read_response().await
    }

    pub(super) async fn send(&mut self, path: &str) -> Option<()> {
        self.0.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await.ok()
    }

    pub(super) async fn read_response(&mut self) -> Option<String> {
        let mut response = String::new();
        loop {
            let mut bytes = [0; 1024];
            let read = self.0.read(&mut bytes).await.ok().filter(|read| *read > 0)?;
            response.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
            let (head, body) = response.split_once("\r\n\r\n").unwrap_or_default();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if length.is_some_and(|length| length.parse() == Ok(body.len())) {
                return Some(response);
            }
        }
    }

    /// Returns the time until the server closes the connection. The paused clock advances while all tasks are idle.
    pub(super) async fn time_until_closed(&mut self) -> Duration {
        time_until_closed(&mut self.0).await
    }
}

pub(super) async fn time_until_closed(stream: &mut (impl AsyncReadExt + Unpin)) -> Duration {
    let start = Instant::now();
    tokio::time::pause();
    // The server may send an alert first.
    let closed = async { while stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {} };
    timeout(Duration::from_secs(600), closed).await.expect("closed in time");
    tokio::time::resume();
    start.elapsed()
}
