//! Tests without a cluster: the decision on pods of all shapes, and the command line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod alerts;
mod budget;
mod cli;
mod cost;
mod decision;
mod golden;
mod golden_identity;
mod identity_check;
mod prose;
mod scripts;

#[path = "../generated_pods/mod.rs"]
mod generated_pods;
#[path = "../../benches/one_decision/mod.rs"]
mod one_decision;
