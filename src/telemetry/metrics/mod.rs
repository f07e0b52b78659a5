//! All metrics of the program. They have the prefix `spillway_`, base units, and labels from closed sets.

mod admission;
mod caches;
mod certificates;
mod configuration;
mod connections;
mod controller;
mod gauges;
mod identity;
mod labels;
mod log_lines;
mod overflow;
mod panics;

pub use admission::{AdmissionMetrics, Resource};
pub use caches::{CacheMetrics, UndecodableObjects, WatchMetrics};
pub use certificates::CertificateMetrics;
pub use configuration::ConfigurationMetrics;
pub use connections::{ConnectionError, ConnectionMetrics};
pub use controller::ControllerMetrics;
pub use gauges::GaugeGuard;
pub use identity::{FindingLabels, IdentityMetrics};
use labels::labels;
pub(super) use log_lines::count_dropped_lines;
pub use overflow::{AdviceCounts, LatePodCounts, OverflowMetrics};
pub use panics::count_panics;
use prometheus_client::{encoding::text, metrics::info::Info, registry::Registry};

labels!(BuildLabels { version });

/// Creates a registry with the version of the program.
pub fn registry() -> Registry {
    let mut registry = Registry::with_prefix("spillway");
    let build = Info::new(BuildLabels { version: env!("CARGO_PKG_VERSION") });
    registry.register("build", "Version of the program", build);
    registry
}

/// Encodes all metrics in the OpenMetrics text format.
pub fn encode(registry: &Registry) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = text::encode(&mut out, registry);
    out
}
