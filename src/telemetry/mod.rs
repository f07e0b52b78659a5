//! Logs and metrics. Every metric of the program is declared in `metrics/`.

mod causes;
pub mod logs;
mod metrics;

pub(crate) use causes::Causes;
pub use metrics::{
    AdmissionMetrics, AdviceCounts, CacheMetrics, CertificateMetrics, ConfigurationMetrics, ConnectionError,
    ConnectionMetrics, ControllerMetrics, FindingLabels, GaugeGuard, IdentityMetrics, LatePodCounts, OverflowMetrics,
    Resource, UndecodableObjects, WatchMetrics, count_panics, encode, registry,
};
