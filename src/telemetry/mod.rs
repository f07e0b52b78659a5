//! Logs and metrics. Every metric of the program is declared in `metrics/`.

mod causes;
pub mod logs;
mod metrics;

pub(crate) use causes::Causes;
pub use metrics::{
    AdmissionMetrics, Advice, CacheMetrics, Caches, CertificateMetrics, ConfigurationMetrics, ConnectionError,
    ConnectionMetrics, ControllerMetrics, FindingLabels, GaugeGuard, IdentityMetrics, Late, OverflowMetrics, Resource,
    count_panics, encode, registry,
};
