//! Metrics of the configuration file.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{gauges::now, labels::labels};

labels!(ResultLabels { result });

/// Metrics of the configuration file.
#[derive(Debug, Clone)]
pub struct ConfigurationMetrics {
    generation: Gauge,
    last_success: Gauge,
    reloads: Family<ResultLabels, Counter>,
    last_reload_failed: Gauge,
}

impl ConfigurationMetrics {
    /// Registers the metrics, all at zero.
    pub fn new(r: &mut Registry) -> Self {
        let (generation, last_success, last_reload_failed) = (Gauge::default(), Gauge::default(), Gauge::default());
        let reloads = Family::default();
        for result in ["success", "failure"] {
            drop(reloads.get_or_create(&ResultLabels { result }));
        }
        r.register(
            "configuration_generation",
            "Number of different configurations since the start",
            generation.clone(),
        );
        r.register_with_unit(
            "configuration_last_success_timestamp",
            "Time when the configuration file was last valid",
            Unit::Seconds,
            last_success.clone(),
        );
        r.register("configuration_reloads", "Changes of the configuration file, by result", reloads.clone());
        r.register(
            "configuration_last_reload_failed",
            "1 if the current configuration file is invalid",
            last_reload_failed.clone(),
        );
        Self { generation, last_success, reloads, last_reload_failed }
    }

    /// Counts a new configuration. Returns the number of configurations.
    pub fn replaced(&self) -> i64 {
        self.last_success.set(now());
        self.generation.inc() + 1
    }

    /// Records a valid change of the file.
    pub fn succeeded(&self) {
        self.last_success.set(now());
        self.last_reload_failed.set(0);
        self.reloads.get_or_create(&ResultLabels { result: "success" }).inc();
    }

    /// Records an invalid change of the file.
    pub fn failed(&self) {
        self.last_reload_failed.set(1);
        self.reloads.get_or_create(&ResultLabels { result: "failure" }).inc();
    }
}
