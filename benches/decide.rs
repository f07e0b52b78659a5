//! Counts the instructions and allocations of a decision. These do not depend on the load of the machine.
//!
//! Without arguments, this program runs itself under valgrind, each path with two numbers of rounds. The difference is the cost of the
//! rounds, without start and exit. The program writes the numbers to `target/bench-decide.json`, and prints them beside those of
//! `benches/decide-baseline.json`. To set a new baseline, copy the first file to the second.

#![allow(clippy::print_stdout)]

mod one_decision;

use std::{env, fs, hint::black_box, io::ErrorKind, path::Path, process::Command};

use anyhow::{Context, bail, ensure};
use one_decision::{REVIEW, WebhookState, decide};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use spillway::admission;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", path, rounds] => run(path, rounds.parse()?),
        _ => report(), // `cargo bench` passes --bench
    }
}

/// Runs one path, under valgrind.
fn run(path: &str, rounds: u32) -> anyhow::Result<()> {
    let state = WebhookState::default();
    for _ in 0..rounds {
        match path {
            "whole" => drop(black_box(decide(&state, black_box(REVIEW))?)),
            "parse" => drop(black_box(admission::parse(black_box(REVIEW))?)),
            "floor" => drop(black_box(serde_json::from_slice::<IgnoredAny>(black_box(REVIEW))?)),
            other => bail!("unknown path {other}"),
        }
    }
    Ok(())
}

/// The cost of one decision.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Costs {
    /// The version of the compiler, on which the numbers depend.
    rustc: String,
    /// The size of the review.
    body_bytes: u32,
    /// From the request body to the response body.
    whole_instructions: u32,
    /// From the request body to the view of the pod.
    parse_instructions: u32,
    /// The least cost of reading the body: serde_json skips everything.
    floor_instructions: u32,
    /// Calls of the allocator in the whole path, including reallocations.
    allocations: u32,
    /// The bytes that these calls requested.
    allocated_bytes: u32,
}

impl Costs {
    fn measure() -> anyhow::Result<Self> {
        let rustc = Command::new("rustc").arg("--version").output().context("run rustc --version")?;
        Ok(Self {
            rustc: String::from_utf8(rustc.stdout)?.trim().to_owned(),
            body_bytes: u32::try_from(REVIEW.len())?,
            whole_instructions: per_round(|rounds| instructions("whole", rounds))?,
            parse_instructions: per_round(|rounds| instructions("parse", rounds))?,
            floor_instructions: per_round(|rounds| instructions("floor", rounds))?,
            allocations: per_round(|rounds| heap_usage("whole", rounds, "allocs"))?,
            allocated_bytes: per_round(|rounds| heap_usage("whole", rounds, "bytes"))?,
        })
    }

    /// Returns the rows of the report: name, number and unit.
    fn rows(&self) -> [(&'static str, f64, &'static str); 7] {
        let floors = |instructions: u32| f64::from(instructions) / f64::from(self.floor_instructions);
        [
            ("whole path", self.whole_instructions.into(), "instructions"),
            ("parse only", self.parse_instructions.into(), "instructions"),
            ("serde_json skips the body", self.floor_instructions.into(), "instructions"),
            ("whole path", floors(self.whole_instructions), "times the skip"),
            ("parse only", floors(self.parse_instructions), "times the skip"),
            ("whole path", self.allocations.into(), "allocations"),
            ("whole path", self.allocated_bytes.into(), "bytes allocated"),
        ]
    }
}

fn report() -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let baseline = folder.join("benches/decide-baseline.json");
    let baseline = fs::read_to_string(&baseline).with_context(|| format!("read {}", baseline.display()))?;
    let baseline: Costs = serde_json::from_str(&baseline).context("benches/decide-baseline.json")?;
    let now = Costs::measure()?;
    let file = folder.join("target/bench-decide.json");
    fs::create_dir_all(folder.join("target"))?;
    fs::write(&file, serde_json::to_string_pretty(&now)? + "\n")
        .with_context(|| format!("write {}", file.display()))?;

    println!("One decision on a review of {} bytes ({})", now.body_bytes, now.rustc);
    println!("{:<26} {:>12} {:>12} {:>8}   baseline: {}", "", "now", "baseline", "change", baseline.rustc);
    for ((what, new, unit), (_, old, _)) in now.rows().into_iter().zip(baseline.rows()) {
        let places = if unit == "times the skip" { 2 } else { 0 };
        let change = (new / old - 1.0) * 100.0;
        println!("{what:<26} {new:>12.places$} {old:>12.places$} {change:>+6.1} %   {unit}");
    }
    Ok(())
}

/// Returns the cost of one round, from the difference between many and few rounds.
fn per_round(cost: impl Fn(u32) -> anyhow::Result<u64>) -> anyhow::Result<u32> {
    const FEW: u32 = 200;
    const MANY: u32 = 1200;
    let difference = cost(MANY)?.checked_sub(cost(FEW)?).context("more rounds cost less")?;
    let rounds = u64::from(MANY - FEW);
    Ok(u32::try_from((difference + rounds / 2) / rounds)?)
}

fn instructions(path: &str, rounds: u32) -> anyhow::Result<u64> {
    // ==1== Collected : 123456
    let report = valgrind(&["--tool=callgrind", "--callgrind-out-file=/dev/null"], path, rounds)?;
    let count = report.lines().find_map(|line| line.split_once("Collected : ")).context("callgrind has no total")?.1;
    count.trim().parse().with_context(|| format!("not a number: {count}"))
}

fn heap_usage(path: &str, rounds: u32, unit: &str) -> anyhow::Result<u64> {
    // ==1==   total heap usage: 1,234 allocs, 1,234 frees, 56,789 bytes allocated
    let report = valgrind(&["--tool=memcheck", "--leak-check=no"], path, rounds)?;
    let usage =
        report.lines().find_map(|line| line.split_once("total heap usage: ")).context("memcheck has no total")?.1;
    let words: Vec<_> = usage.split([' ', '\n']).map(|word| word.replace(',', "")).collect();
    let before = words.windows(2).find_map(|pair| match pair {
        [number, word] if word == unit => Some(number),
        _ => None,
    });
    before.with_context(|| format!("no {unit} in: {usage}"))?.parse().context("not a number")
}

/// Runs one path of this program under valgrind, and returns the output of valgrind.
fn valgrind(tool: &[&str], path: &str, rounds: u32) -> anyhow::Result<String> {
    let program = env::current_exe()?;
    let started = Command::new("valgrind").args(tool).arg(program).args(["run", path, &rounds.to_string()]).output();
    let output = match started {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("valgrind, which counts the instructions, is not in PATH: install it (apt-get install valgrind)")
        }
        output => output.context("start valgrind")?,
    };
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "valgrind failed:\n{report}");
    Ok(report)
}
