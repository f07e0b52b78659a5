//! Serving under bad conditions: slow and malicious clients, no file descriptors, no API server yet, and shutdown.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::body::Bytes;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    harness::{Webhook, control_plane, directory, eventually},
    unusable::{review, webhook_account_and_namespace},
};

fn is_decided(answer: &[u8]) -> bool {
    String::from_utf8_lossy(answer).contains("JSONPatch")
}

async fn tls(webhook: &Webhook) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(webhook.ca.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(webhook.address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap()
}

/// Sends the head of a review and then its body, one byte at a time. Returns the head of the response.
async fn trickle(mut client: TlsStream<TcpStream>) -> String {
    let head =
        "POST /mutate-v1-pod HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9000\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let (mut read, mut write) = tokio::io::split(client);
    let trickle = async {
        while write.write_all(b" ").await.is_ok() && write.flush().await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = [0; 64];
    tokio::select! {
        () = trickle => unreachable!(),
        read = read.read(&mut answer) => String::from_utf8_lossy(&answer[..read.unwrap_or_default()]).into_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_are_cut_off_and_delay_no_others() {
    const CLIENTS: usize = 50;
    const REVIEWS: u32 = 20;
    let (kubeconfig, namespace) = webhook_account_and_namespace();
    let webhook = Arc::new(Webhook::start("trickled", &kubeconfig).ready());
    let is_over = Arc::new(AtomicBool::new(false));
    let mut slow = JoinSet::new();
    for _ in 0..CLIENTS {
        let (webhook, is_over, first) = (webhook.clone(), is_over.clone(), tls(&webhook).await);
        slow.spawn(async move {
            let mut answers = vec![trickle(first).await];
            while !is_over.load(Ordering::Relaxed) {
                answers.push(trickle(tls(&webhook).await).await);
            }
            answers
        });
    }
    let https = webhook.https();
    let start = Instant::now();
    let mut decided = 0;
    while decided < REVIEWS {
        let (status, answer) = https.review(review(&namespace).to_string()).await;
        // On a machine that stalls, any client may be slow.
        assert!(is_decided(&answer) || status == 408, "{status}");
        decided += u32::from(is_decided(&answer));
        // A slow client lasts one second. A review that waited for a slow client would take as long.
        assert!(start.elapsed() < REVIEWS * Duration::from_secs(1), "{decided} in {:?}", start.elapsed());
    }
    is_over.store(true, Ordering::Relaxed);
    let answers = slow.join_all().await.concat();
    assert!(answers.iter().all(|answer| answer.starts_with("HTTP/1.1 408")), "{answers:?}");
    let cut_off = webhook.metric(r#"spillway_unusable_requests_total{reason="slow_body"}"#);
    assert!(cut_off >= answers.len() as u64, "{cut_off} of {}", answers.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_garbage_requests_change_nothing() {
    let (kubeconfig, namespace) = webhook_account_and_namespace();
    let webhook = Webhook::start("garbage", &kubeconfig).ready();
    webhook.https().review(review(&namespace).to_string()).await;
    let before = webhook.peak_memory();
    let mut clients = JoinSet::new();
    for client in 0..16 {
        let (https, address) = (webhook.https(), webhook.address);
        let half = Bytes::from(review(&namespace).to_string().split_off(client));
        clients.spawn(async move {
            for _ in 0..600 {
                let (status, _) = https.review(half.clone()).await;
                assert!(status.is_client_error() || client == 0, "{status}");
            }
            for _ in 0..25 {
                let mut tcp = TcpStream::connect(address).await.unwrap();
                let _ = tcp.write_all(b"GET /mutate-v1-pod HTTP/1.1\r\n\r\n").await;
                let _ = tcp.read_to_end(&mut Vec::new()).await;
            }
        });
    }
    clients.join_all().await;
    let unusable = webhook.metric(r#"spillway_unusable_requests_total{reason="json"}"#);
    assert_eq!(unusable, 15 * 600);
    assert_eq!(webhook.metric(r#"spillway_connection_errors_total{reason="handshake"}"#), 400);
    let grown = webhook.peak_memory() - before;
    assert!(grown < 10 * 1024, "the peak grew by {grown} KiB");
    let (_, answer) = webhook.https().review(review(&namespace).to_string()).await;
    assert!(is_decided(&answer), "it still decides");
    eventually("all connections to be closed", || (webhook.metric("spillway_connections") <= 1).then_some(()));
    assert_eq!((webhook.metric("spillway_admission_in_flight"), webhook.metric("spillway_panics_total")), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_webhook_recovers_from_a_lack_of_file_descriptors() {
    let (kubeconfig, namespace) = webhook_account_and_namespace();
    let few = ["sh", "-c", "ulimit -n 48; exec \"$0\" \"$@\""];
    let webhook = Webhook::start_as(&few, "no-descriptors", &kubeconfig, &[]).ready();
    let mut connections = Vec::new();
    for _ in 0..100 {
        connections.push(TcpStream::connect(webhook.address).await.unwrap());
    }
    let is_logged = |line: &Value| line["message"] == "cannot accept connections";
    eventually("the limit to take effect", || webhook.log().iter().any(is_logged).then_some(()));
    drop(connections);
    let (_, answer) = webhook.https().review(review(&namespace).to_string()).await;
    assert!(is_decided(&answer));
    let logged = webhook.log().iter().filter(|line| is_logged(line)).count();
    assert!((1..10).contains(&logged), "logged {logged} times: it pauses");
    assert_eq!(webhook.metric(r#"spillway_connection_errors_total{reason="accept"}"#), logged as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_started_before_the_api_server_becomes_ready() {
    let (kubeconfig, namespace) = webhook_account_and_namespace();
    // The port is reserved, and nothing listens on it yet.
    let port = TcpSocket::new_v4().unwrap();
    port.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let plane = control_plane();
    let through_port = plane.dir.join("too-early.kubeconfig");
    let through = format!("https://{}", port.local_addr().unwrap());
    fs::write(&through_port, fs::read_to_string(kubeconfig).unwrap().replace(&plane.server, &through)).unwrap();
    let webhook = Webhook::start("too-early", &through_port);
    let missing = "not ready: namespaces, service accounts, virtual nodes, network policies\n";
    assert_eq!(webhook.admin("/readyz"), (503, missing.to_owned()));
    assert_eq!(webhook.admin("/healthz").0, 200);
    let (status, answer) = webhook.https().review(review(&namespace).to_string()).await;
    assert!(status == 200 && !is_decided(&answer), "the pod is admitted unchanged in the meantime");
    let errors = r#"spillway_cache_watch_errors_total{cache="namespaces"}"#;
    eventually("the first attempt to have failed", || (webhook.metric(errors) > 0).then_some(()));
    assert_eq!(webhook.metric(r#"spillway_cache_synced{cache="namespaces"}"#), 0);

    let listener = port.listen(64).unwrap();
    let server = plane.server.strip_prefix("https://").unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = TcpStream::connect(server).await.unwrap();
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    let webhook = webhook.ready();
    assert_eq!(webhook.metric(r#"spillway_cache_synced{cache="namespaces"}"#), 1);
    let (_, answer) = webhook.https().review(review(&namespace).to_string()).await;
    assert!(is_decided(&answer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_webhook_waits_for_its_certificate_and_reloads_it() {
    let (kubeconfig, namespace) = webhook_account_and_namespace();
    let (name, mounted) = ("uncertified", directory("uncertified").join("mounted"));
    fs::create_dir_all(&mounted).unwrap();
    let file = directory(name).join("config.yaml");
    let config = format!(
        "apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\ncertificates: {{source: files, directory: {}}}\n",
        mounted.display()
    );
    fs::write(&file, config).unwrap();
    let mut webhook = Webhook::start_configured(name, &kubeconfig, &["--config", file.to_str().unwrap()]);
    let only_that = (503, "not ready: certificate\n".to_owned());
    eventually("everything else", || (webhook.admin("/readyz") == only_that).then_some(()));
    let body = Bytes::from(review(&namespace).to_string());
    let refused = webhook.https().send("/mutate-v1-pod", "application/json", body.clone()).await;
    assert_eq!(refused, None, "no handshake without a certificate");

    for pair in ["first", "second"] {
        let made = spillway::certs::generate(&[], time::OffsetDateTime::now_utc()).unwrap();
        fs::write(mounted.join("tls.crt"), made.certificate).unwrap();
        fs::write(mounted.join("tls.key"), made.key).unwrap();
        webhook.ca = made.ca;
        let answer = async || webhook.https().send("/mutate-v1-pod", "application/json", body.clone()).await;
        let decides = async {
            while answer().await.is_none_or(|(_, answer)| !is_decided(&answer)) {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(Duration::from_secs(60), decides).await.unwrap_or_else(|_| panic!("the {pair} pair was never served"));
        assert_eq!(webhook.admin("/readyz").0, 200, "{pair}");
    }
    assert_eq!(webhook.metric(r#"spillway_certificate_reloads_total{result="success"}"#), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_sigterm_the_webhook_serves_until_the_grace_time_ends() {
    let (kubeconfig, namespace) = webhook_account_and_namespace();
    let mut webhook = Webhook::start_with("ending", &kubeconfig, &["--drain-grace=10s"]).ready();
    let start = Instant::now();
    webhook.terminate();
    let unready = (503, "not ready: shutting down\n".to_owned());
    eventually("the webhook to be unready", || (webhook.admin("/readyz") == unready).then_some(()));
    let (_, answer) = webhook.https().review(review(&namespace).to_string()).await;
    assert!(is_decided(&answer));
    assert_eq!(webhook.exit_code(), 0);
    assert!(start.elapsed() >= Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_second_signal_ends_the_webhook_at_once() {
    let (kubeconfig, _) = webhook_account_and_namespace();
    let mut webhook = Webhook::start_with("hurried", &kubeconfig, &["--drain-grace=1h"]).ready();
    webhook.terminate();
    eventually("the webhook to be unready", || (webhook.admin("/readyz").0 == 503).then_some(()));
    webhook.terminate();
    assert_eq!(webhook.exit_code(), 0);
}
