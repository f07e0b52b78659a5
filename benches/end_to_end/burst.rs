//! A thousand idle connections that all send a request at the same time.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::{
    body::Body,
    http::{Method, Request, header},
};
use futures_util::future::try_join_all;
use http_body_util::BodyExt;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{REVIEW, harness::Webhook, process, report::Idle};

const CONNECTIONS: usize = 1000;
/// The idle time. Longer than the time after which a server closes a connection without a first request.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// Opens the connections with one request each, waits, and then measures one concurrent request on each connection.
pub(crate) fn of_idle_connections(webhook: &Webhook) -> anyhow::Result<Idle> {
    println!("{CONNECTIONS} idle connections, then a burst");
    let pid = webhook.pid().parse()?;
    let review = fs::read(REVIEW)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut connection = connect(webhook).await?;
            ask(&mut connection, review.clone()).await?;
            connections.push(connection);
        }
        tokio::time::sleep(IDLE_TIME).await;
        let before_mib = process::resident_mib(pid)?;
        let asked = connections.iter_mut().map(|connection| ask(connection, review.clone()));
        let mut latencies = try_join_all(asked).await?;
        latencies.sort();
        let at =
            |share: usize| latencies.get(CONNECTIONS * share / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
        Ok(Idle {
            connections: CONNECTIONS,
            before_mib,
            rss_mib: process::resident_mib(pid)?,
            p50_ms: at(50),
            p99_ms: at(99),
        })
    })
}

async fn connect(webhook: &Webhook) -> anyhow::Result<SendRequest<Body>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(webhook.ca.as_bytes())?)?;
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(webhook.address).await?;
    tcp.set_nodelay(true)?;
    let stream = TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from("localhost")?, tcp).await?;
    let (client, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Sends a review, and returns the time until the whole response has arrived.
async fn ask(connection: &mut SendRequest<Body>, review: Vec<u8>) -> anyhow::Result<Duration> {
    let request = Request::builder()
        .method(Method::POST)
        .uri("/mutate-v1-pod")
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(review))?;
    let started = Instant::now();
    let answer = connection.send_request(request).await.context("the connection was closed")?;
    anyhow::ensure!(answer.status() == 200, "the response has status {}", answer.status());
    answer.into_body().collect().await?;
    Ok(started.elapsed())
}
