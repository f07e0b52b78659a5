//! `make prove`: scenarios on the real scheduler. The control group follows the usual advice: a toleration and a preferred affinity in
//! every manifest.
//!
//! Each scenario makes claims. If all claims hold, the run writes a table and a chart of each scenario to `docs/proof`. Otherwise the run
//! fails and does not change `docs/proof`. With the letters of some scenarios as arguments, only these scenarios run, and the results
//! are in `target/proof`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]

mod chart;
mod clusters;
mod late;
mod outage;
mod proof;
mod scale_in;
mod timeline;
mod vm_first;

#[allow(dead_code, unused_imports)] // this test uses a part of the harness
#[path = "../cluster/harness/mod.rs"]
mod harness;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clusters::Clusters;
use proof::Scenario;

/// The letter of a scenario, and its function.
type NamedScenario = (&'static str, fn(&mut Clusters) -> Scenario);

const SCENARIOS: [NamedScenario; 4] =
    [("A", vm_first::run), ("B", scale_in::run), ("D", late::run), ("E", outage::run)];

fn main() -> ExitCode {
    let chosen: Vec<String> = env::args().skip(1).collect();
    let is_chosen = |letter: &str| chosen.is_empty() || chosen.iter().any(|one| one.eq_ignore_ascii_case(letter));
    let mut clusters = Clusters::start();
    let scenarios = SCENARIOS.iter().filter(|(letter, _)| is_chosen(letter));
    let scenarios: Vec<Scenario> = scenarios
        .map(|(letter, run)| {
            println!("scenario {letter}");
            let scenario = run(&mut clusters);
            scenario.print();
            scenario
        })
        .collect();
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_confirmed = scenarios.iter().all(Scenario::is_confirmed);
    let is_complete = scenarios.len() == SCENARIOS.len();
    let target: PathBuf = project.join(if is_confirmed && is_complete { "docs/proof" } else { "target/proof" });
    fs::create_dir_all(&target).unwrap();
    proof::write(&scenarios, &target);
    println!("written to {}", target.display());
    if is_confirmed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
