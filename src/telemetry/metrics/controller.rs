//! Metrics of the controller.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use time::OffsetDateTime;

use super::{
    caches::CacheMetrics,
    gauges::now,
    identity::IdentityMetrics,
    labels::{NoLabels, labels},
    overflow::OverflowMetrics,
};

labels!(ReconcileLabels { reconciler, result });
labels!(ReconcilerLabels { reconciler });
labels!(StateLabels { state });
labels!(ResultLabels { result });

/// Metrics of the controller.
#[derive(Debug, Clone, Default)]
pub struct ControllerMetrics {
    leader: Gauge,
    reconciles: Family<ReconcileLabels, Counter>,
    last_success: Family<ReconcilerLabels, Gauge>,
    ca_expiry: Family<NoLabels, Gauge>,
    ca_certificates: Family<StateLabels, Gauge>,
    ca_bundle_writes: Family<ResultLabels, Counter>,
    /// Metrics of the identity checks.
    pub identity: IdentityMetrics,
    /// Metrics of the overflow to virtual nodes.
    pub overflow: OverflowMetrics,
    /// Metrics of the caches of cluster objects.
    pub caches: CacheMetrics,
}

impl ControllerMetrics {
    /// Registers the metrics, all at zero.
    pub fn new(r: &mut Registry) -> Self {
        let (identity, overflow, caches) = (IdentityMetrics::new(r), OverflowMetrics::new(r), CacheMetrics::new(r));
        let metrics = Self { identity, overflow, caches, ..Self::default() };
        r.register("leader", "1 if this replica is the leader", metrics.leader.clone());
        r.register(
            "reconciles",
            "Rounds of the reconcilers, by result: success, conflict (another client wrote at the same time), early (its inputs are not complete yet), failure",
            metrics.reconciles.clone(),
        );
        r.register_with_unit(
            "reconcile_last_success_timestamp",
            "Time of the last successful round of a reconciler",
            Unit::Seconds,
            metrics.last_success.clone(),
        );
        r.register_with_unit(
            "ca_expiry_timestamp",
            "Expiry of the current CA; only on the leader",
            Unit::Seconds,
            metrics.ca_expiry.clone(),
        );
        r.register(
            "ca_certificates",
            "CA certificates in the caBundle, by state: current, next, old",
            metrics.ca_certificates.clone(),
        );
        r.register("ca_bundle_writes", "Writes of the caBundle, by result", metrics.ca_bundle_writes.clone());
        metrics
    }

    /// Sets whether this replica is the leader. When a replica stops leading, the metrics of the leader are reset.
    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
        if !leads {
            self.ca_expiry.clear();
            self.ca_certificates.clear();
            self.identity.reset();
            self.overflow.reset();
            self.caches.reset();
        }
    }

    /// Counts a finished round of a reconciler. Both labels come from closed sets.
    pub fn reconciled(&self, reconciler: &'static str, result: &'static str) {
        self.reconciles.get_or_create(&ReconcileLabels { reconciler, result }).inc();
        if result == "success" {
            self.last_success.get_or_create(&ReconcilerLabels { reconciler }).set(now());
        }
    }

    /// Sets the expiry and the number of the stored CA certificates.
    pub fn authority(&self, not_after: OffsetDateTime, next: usize, old: usize) {
        self.ca_expiry.get_or_create(&NoLabels::new()).set(not_after.unix_timestamp());
        for (state, count) in [("current", 1), ("next", next), ("old", old)] {
            let count = count.try_into().unwrap_or(i64::MAX);
            self.ca_certificates.get_or_create(&StateLabels { state }).set(count);
        }
    }

    /// Counts a write of the `caBundle`.
    pub fn bundle_written(&self, result: &'static str) {
        self.ca_bundle_writes.get_or_create(&ResultLabels { result }).inc();
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_failed_round_does_not_count_as_success() {
        let mut registry = crate::telemetry::registry();
        let metrics = ControllerMetrics::new(&mut registry);
        metrics.leads(true);
        metrics.reconciled("ca-bundle", "failure");
        metrics.authority(datetime!(2026-01-02 00:00 UTC), 0, 2);
        metrics.bundle_written("success");
        let text = crate::telemetry::encode(&registry);
        for line in [
            "spillway_leader 1",
            r#"spillway_reconciles_total{reconciler="ca-bundle",result="failure"} 1"#,
            "spillway_ca_expiry_timestamp_seconds{} 1767312000",
            r#"spillway_ca_certificates{state="old"} 2"#,
            r#"spillway_ca_bundle_writes_total{result="success"} 1"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("spillway_reconcile_last_success_timestamp_seconds{"), "{text}");
        metrics.reconciled("ca-bundle", "success");
        let text = crate::telemetry::encode(&registry);
        assert!(
            text.contains(r#"spillway_reconcile_last_success_timestamp_seconds{reconciler="ca-bundle"}"#),
            "{text}"
        );
    }

    #[test]
    fn a_former_leader_reports_no_caches() {
        let mut registry = crate::telemetry::registry();
        let metrics = ControllerMetrics::new(&mut registry);
        metrics.leads(true);
        let cache = metrics.caches.for_cache("namespaces");
        cache.listed();
        cache.watch_failed();
        assert!(crate::telemetry::encode(&registry).contains(r#"spillway_cache_synced{cache="namespaces"} 1"#));
        metrics.leads(false);
        let text = crate::telemetry::encode(&registry);
        assert!(
            !text.contains("spillway_cache_synced{") && !text.contains("_cache_last_event_timestamp_seconds{"),
            "{text}"
        );
        assert!(text.contains(r#"spillway_cache_watch_errors_total{cache="namespaces"} 1"#), "{text}");
    }
}
