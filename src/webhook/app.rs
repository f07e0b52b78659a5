//! The state of the webhook.

use tokio::sync::Semaphore;

use super::body_limits::LARGE_BODY_PERMITS;
use crate::{cluster::Cluster, reload::configuration::ConfigReceiver, telemetry::AdmissionMetrics};

/// State that all requests share.
pub struct App {
    /// The current configuration.
    pub configuration: ConfigReceiver,
    /// The cache of cluster objects.
    pub cluster: Cluster,
    /// The metrics of requests.
    pub metrics: AdmissionMetrics,
    pub(super) large_body_permits: Semaphore,
}

impl App {
    /// Creates the state of a new server.
    pub fn new(configuration: ConfigReceiver, cluster: Cluster, metrics: AdmissionMetrics) -> Self {
        Self { configuration, cluster, metrics, large_body_permits: Semaphore::new(LARGE_BODY_PERMITS) }
    }
}
