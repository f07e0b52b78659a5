//! Every metric of the program, with the prefix `spillway_`, in base units, and with labels from closed sets only.

mod admission;
mod caches;
mod certificates;
mod configuration;
mod connections;
mod controller;
mod identity;
mod log_lines;
mod overflow;
mod panics;

pub use admission::{AdmissionMetrics, Resource};
pub use caches::{CacheMetrics, WatchMetrics};
pub use certificates::CertificateMetrics;
pub use configuration::ConfigurationMetrics;
pub use connections::{ConnectionError, ConnectionMetrics, GaugeGuard};
pub use controller::ControllerMetrics;
pub use identity::{FindingLabels, IdentityMetrics};
pub(super) use log_lines::count_dropped_lines;
pub use overflow::{AdviceCounts, LatePodCounts, OverflowMetrics};
pub use panics::count_panics;
use prometheus_client::{encoding::text, metrics::info::Info, registry::Registry};

/// Declares a set of labels. Their values come from closed sets.
macro_rules! labels {
    ($name:ident { $($field:ident),+ }) => {
        #[derive(Debug, Clone, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelSet)]
        struct $name { $($field: &'static str),+ }
    };
}
use labels;

labels!(BuildLabels { version });

/// Returns the current time for a gauge, in seconds since 1970.
fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

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
