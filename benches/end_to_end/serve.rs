//! The handlers with which the benchmark compares the program, on the program's own server.

use std::{fs, io, path::Path, thread};

use anyhow::{Context, bail};
use axum::{Router, body::Bytes, http::header, response::IntoResponse, routing::post};
use clap::Parser;
use serde::de::IgnoredAny;
use spillway::{
    certs::{self, Leaf, ServingCertificate},
    telemetry,
    webhook::{Server, ServerArgs},
};
use time::OffsetDateTime;

/// Serves a handler on this thread until standard input closes. Prints the address.
pub(crate) fn serve(handler: &str, answer: &Path) -> anyhow::Result<()> {
    let answer = Bytes::from(fs::read(answer).context("read the answer")?);
    let fixed = move || ([(header::CONTENT_TYPE, "application/json")], answer.clone()).into_response();
    let handler = match handler {
        // Only reads the body.
        "noop" => post(async move |_: Bytes| fixed()),
        // Also walks the JSON once, which is the least work of a correct webhook.
        "tokeniser" => post(async move |body: Bytes| match serde_json::from_slice::<IgnoredAny>(&body) {
            Ok(IgnoredAny) => fixed(),
            Err(error) => error.to_string().into_response(),
        }),
        other => bail!("unknown handler {other}"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let made = certs::generate(&[], OffsetDateTime::now_utc())?;
        let certificate = ServingCertificate::default();
        certificate.replace(Leaf::new(certs::parse_key_pair(made.certificate.as_bytes(), made.key.as_bytes())?)?);
        let args = ServerArgs::parse_from(["server", "--bind=127.0.0.1:0", "--drain-grace=0s"]);
        let server = Server::bind(&args, certificate, &mut telemetry::registry()).await?;
        println!("{}", server.address()?);
        thread::spawn(|| {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            std::process::exit(0);
        });
        server.serve(Router::new().route("/mutate-v1-pod", handler), std::future::pending()).await;
        Ok(())
    })
}
