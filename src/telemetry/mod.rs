//! Logs and metrics. Every metric of the program is declared here.

pub mod logs;
mod metrics;

pub use metrics::{Metrics, Resource};
