//! What a request costs from one end of a TLS connection to the other, and what admission costs a real API server.
//!
//! `make bench` runs this, with a static release of the program (`benches/README.md` says what is measured). The program is compared
//! with two handlers on the same server, which this binary serves itself when it is called with `serve`.

#![allow(clippy::print_stdout)]

mod burst;
mod cluster;
mod load;
mod process;
mod report;
mod serve;

// Written for tests, where a panic is an answer, and with more than is needed here.
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

    // In turns, so that what else the machine does meets all of them alike.
    let mut rounds: [Vec<Row>; 4] = Default::default();
    for round in 1..=load::ROUNDS {
        println!("round {round} of {}: {} requests/s, then as many as there can be", load::ROUNDS, report::RATE);
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
    // By the other benchmark, if it has run.
    let decision = fs::read(target.join("bench-decide.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let file = target.join("bench.json");
    fs::write(&file, format!("{:#}\n", report.json(&decision.unwrap_or_default())))
        .with_context(|| format!("write {}", file.display()))?;
    println!("\nwritten to {}", file.display());
    Ok(())
}
