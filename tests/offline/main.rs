//! Tests that need no cluster: the decision on pods of all shapes, and the command line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cli;
mod decision;

#[path = "../generated_pods/mod.rs"]
mod generated_pods;
