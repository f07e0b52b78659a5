//! Metrics of the serving certificate.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use time::OffsetDateTime;

use super::labels::labels;

labels!(ResultLabels { result });

/// Metrics of the serving certificate.
#[derive(Debug, Clone, Default)]
pub struct CertificateMetrics {
    expiry: Gauge,
    reloads: Family<ResultLabels, Counter>,
    last_reload_failed: Gauge,
}

impl CertificateMetrics {
    /// Registers the metrics, without a served certificate.
    pub fn new(r: &mut Registry) -> Self {
        let metrics = Self::default();
        r.register_with_unit(
            "certificate_expiry_timestamp",
            "Expiry of the served certificate; 0 without a certificate",
            Unit::Seconds,
            metrics.expiry.clone(),
        );
        r.register("certificate_reloads", "Loads of a new certificate, by result", metrics.reloads.clone());
        r.register(
            "certificate_last_reload_failed",
            "1 if the last certificate could not be loaded and an older one is served",
            metrics.last_reload_failed.clone(),
        );
        metrics
    }

    /// Records that the webhook serves a new certificate.
    pub fn loaded(&self, not_after: OffsetDateTime) {
        self.expiry.set(not_after.unix_timestamp());
        self.last_reload_failed.set(0);
        self.reloads.get_or_create(&ResultLabels { result: "success" }).inc();
    }

    /// Records that a new certificate could not be loaded.
    pub fn load_failed(&self) {
        self.last_reload_failed.set(1);
        self.reloads.get_or_create(&ResultLabels { result: "failure" }).inc();
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_expiry_is_that_of_the_served_certificate() {
        let mut registry = crate::telemetry::registry();
        let metrics = CertificateMetrics::new(&mut registry);
        metrics.loaded(datetime!(2026-01-02 00:00 UTC));
        metrics.load_failed();
        let text = crate::telemetry::encode(&registry);
        for line in [
            "spillway_certificate_expiry_timestamp_seconds 1767312000",
            r#"spillway_certificate_reloads_total{result="success"} 1"#,
            r#"spillway_certificate_reloads_total{result="failure"} 1"#,
            "spillway_certificate_last_reload_failed 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        metrics.loaded(datetime!(2026-01-02 00:00 UTC));
        assert!(crate::telemetry::encode(&registry).contains("spillway_certificate_last_reload_failed 0"));
    }
}
