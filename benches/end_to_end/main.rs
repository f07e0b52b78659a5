//! Measures the cost of a request over a TLS connection, and the cost of admission for a real API server.
//!
//! `make bench` runs this benchmark with a static release build of the program (see `benches/README.md`). The benchmark compares the
//! program with two handlers on the same server. With the argument `serve`, this binary serves such a handler.

#![allow(clippy::print_stdout)]

mod burst;
mod cluster;
mod load;
mod process;
mod report;
mod serve;

// The harness is written for tests, where a panic is a failure. This benchmark uses a part of it.
#[allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#[path = "../../tests/cluster/harness/mod.rs"]
mod harness;

use std::{env, fs, path::Path};

use anyhow::Context;
use load::Load;
use process::Server;
use report::{Report, Row};

/// Recorded from a real API server: see `benches/one_decision`.
const REVIEW: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/review.json");

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", handler, answer] => serve::serve(handler, Path::new(answer)),
        _ => measure(), // `cargo bench` passes --bench
    }
}

fn measure() -> anyhow::Result<()> {
    let [webhook, quiet] = cluster::webhooks()?;
    let answer = cluster::answer(&webhook)?;
    let (noop, tokeniser) = (Server::start("noop", &answer)?, Server::start("tokeniser", &answer)?);
    let servers = [
        ("noop", noop.pid, noop.address),
        ("tokeniser", tokeniser.pid, tokeniser.address),
        ("spillway", webhook.pid().parse()?, webhook.address),
        ("quiet", quiet.pid().parse()?, quiet.address),
    ];

    // The servers take turns, so that other load on the machine affects all of them.
    let mut rounds: [Vec<Row>; 4] = Default::default();
    for round in 1..=load::ROUNDS {
        println!("round {round} of {}: {} requests/s, then saturated", load::ROUNDS, report::RATE);
        for ((_, pid, address), rows) in servers.iter().zip(&mut rounds) {
            rows.push(Load { pid: *pid, address: *address }.row()?);
        }
    }
    let [noop, tokeniser, spillway, quiet] = rounds.map(|rows| report::median(&rows));
    let idle = burst::of_idle_connections(&webhook)?;
    let creation = cluster::creation(&webhook)?;
    let report = Report { noop, tokeniser, spillway, quiet, idle, creation };
    report.print();
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    // The result of benchmark `decide`, if it has run.
    let decision = fs::read(target.join("bench-decide.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let file = target.join("bench.json");
    fs::write(&file, format!("{:#}\n", report.json(&decision.unwrap_or_default())))
        .with_context(|| format!("write {}", file.display()))?;
    println!("\nwritten to {}", file.display());
    Ok(())
}
