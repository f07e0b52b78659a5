//! `make prove`: stories on the real scheduler, each beside a control group that does by hand what is usually advised, a toleration
//! and a preferred affinity in every manifest.
//!
//! Each story makes claims. A run in which one does not hold fails and leaves `docs/proof` as it is; one that confirms all of them
//! writes a table and a chart for each story there. With the letters of some stories as arguments only these run, and what they
//! show stays in `target/proof`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]

mod chart;
mod late;
mod outage;
mod proof;
mod scale_in;
mod stage;
mod timeline;
mod vm_first;

#[allow(dead_code, unused_imports)] // what is here is for all tests, and these use some of it
#[path = "../cluster/harness/mod.rs"]
mod harness;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use proof::Story;
use stage::Stage;

/// A story's letter, and what plays it.
type Play = (&'static str, fn(&mut Stage) -> Story);

const STORIES: [Play; 4] = [("A", vm_first::play), ("B", scale_in::play), ("D", late::play), ("E", outage::play)];

fn main() -> ExitCode {
    let chosen: Vec<String> = env::args().skip(1).collect();
    let is_chosen = |letter: &str| chosen.is_empty() || chosen.iter().any(|one| one.eq_ignore_ascii_case(letter));
    let mut stage = Stage::set();
    let stories = STORIES.iter().filter(|(letter, _)| is_chosen(letter));
    let stories: Vec<Story> = stories
        .map(|(letter, play)| {
            println!("story {letter}");
            let story = play(&mut stage);
            story.print();
            story
        })
        .collect();
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_confirmed = stories.iter().all(Story::is_confirmed);
    let is_complete = stories.len() == STORIES.len();
    let target: PathBuf = project.join(if is_confirmed && is_complete { "docs/proof" } else { "target/proof" });
    fs::create_dir_all(&target).unwrap();
    proof::write(&stories, &target);
    println!("written to {}", target.display());
    if is_confirmed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
