//! Logs and metrics. Every metric of the program is declared here, with the prefix `spillway_`, in base units, and with labels from
//! closed sets only.

mod admission;
mod caches;
mod causes;
mod certificates;
mod configuration;
mod connections;
mod controller;
mod identity;
pub mod logs;
mod overflow;
mod panics;

pub use admission::{Admission, Resource};
pub use caches::{CacheMetrics, Caches};
pub(crate) use causes::Causes;
pub use certificates::Certificates;
pub use configuration::ConfigurationMetrics;
pub use connections::{ConnectionError, Connections, Open};
pub use controller::ControllerMetrics;
pub use identity::{FindingLabels, IdentityMetrics};
pub use overflow::{Advice, Late, OverflowMetrics};
pub use panics::count_panics;
use prometheus_client::{encoding::text, metrics::info::Info, registry::Registry};

/// Labels with words of closed sets.
macro_rules! labels {
    ($name:ident { $($field:ident),+ }) => {
        #[derive(Debug, Clone, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelSet)]
        struct $name { $($field: &'static str),+ }
    };
}
use labels;

labels!(BuildLabels { version });

/// The time for a gauge, in seconds since 1970.
fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

/// A registry that only says which program this is.
pub fn registry() -> Registry {
    let mut registry = Registry::with_prefix("spillway");
    let build = Info::new(BuildLabels { version: env!("CARGO_PKG_VERSION") });
    registry.register("build", "Version of the program", build);
    registry
}

/// Everything that is registered, in the OpenMetrics text format.
pub fn encode(registry: &Registry) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = text::encode(&mut out, registry);
    out
}
