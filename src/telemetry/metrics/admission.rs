//! Metrics of admission requests.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{gauges::GaugeGuard, labels::labels};

labels!(RequestLabels { resource, decision });
labels!(ReasonLabels { reason });
labels!(ResultLabels { result });

/// Subject of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// The creation of a pod.
    Pods,
    /// The binding of a pod to a node.
    Bindings,
}

impl Resource {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Bindings => "bindings",
        }
    }
}

/// Metrics of admission requests.
#[derive(Debug, Clone)]
pub struct AdmissionMetrics {
    requests: Family<RequestLabels, Counter>,
    stay_reasons: Family<ReasonLabels, Counter>,
    notes: Family<ReasonLabels, Counter>,
    ignored_overrides: Counter,
    unusable: Family<ReasonLabels, Counter>,
    duration: Histogram,
    in_flight: Gauge,
    patch: Histogram,
    service_account_lookups: Family<ResultLabels, Counter>,
    pod_lookups: Family<ResultLabels, Counter>,
    namespace_misses: Counter,
}

impl Default for AdmissionMetrics {
    fn default() -> Self {
        // From 0.1 ms, the duration of a decision, to the API server's timeout.
        const SECONDS: [f64; 10] = [0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 2.0];
        // The five parts of a patch have about 1,300 bytes. The patch that restores a pod with many tolerations is
        // larger.
        const BYTES: [f64; 6] = [128.0, 256.0, 512.0, 1024.0, 2048.0, 8192.0];
        Self {
            requests: Family::default(),
            stay_reasons: Family::default(),
            notes: Family::default(),
            ignored_overrides: Counter::default(),
            unusable: Family::default(),
            duration: Histogram::new(SECONDS),
            in_flight: Gauge::default(),
            patch: Histogram::new(BYTES),
            service_account_lookups: Family::default(),
            pod_lookups: Family::default(),
            namespace_misses: Counter::default(),
        }
    }
}

/// The reasons of [`AdmissionMetrics::unusable`], and the results of lookups.
const UNUSABLE: [&str; 11] = [
    "broken_body",
    "content_type",
    "json",
    "no_object",
    "no_request",
    "not_a_binding",
    "not_a_pod",
    "not_a_review",
    "slow_body",
    "too_large",
    "utf8",
];
const LOOKUPS: [&str; 4] = ["error", "found", "not_found", "timeout"];

impl AdmissionMetrics {
    /// Registers the metrics with every sample at zero. Otherwise alerts would miss the first increase.
    pub fn new(r: &mut Registry) -> Self {
        let metrics = Self::default();
        for reason in UNUSABLE {
            let _ = metrics.unusable.get_or_create(&ReasonLabels { reason });
        }
        for result in LOOKUPS {
            let _ = metrics.service_account_lookups.get_or_create(&ResultLabels { result });
            let _ = metrics.pod_lookups.get_or_create(&ResultLabels { result });
        }
        r.register(
            "admission_requests",
            "Admission requests by resource and decision; dry runs and second rounds count too",
            metrics.requests.clone(),
        );
        r.register("notes", "Notes for the owners of pods that may overflow, by reason", metrics.notes.clone());
        r.register(
            "ignored_overrides",
            "Override annotations that were invalid or not permitted",
            metrics.ignored_overrides.clone(),
        );
        r.register("stay_reasons", "Reasons why pods stay on VMs", metrics.stay_reasons.clone());
        r.register(
            "unusable_requests",
            "Requests to the webhook without a usable AdmissionReview, by reason",
            metrics.unusable.clone(),
        );
        r.register_with_unit(
            "admission_duration",
            "Time from the end of the request headers to the response",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        r.register("admission_in_flight", "Requests in flight", metrics.in_flight.clone());
        r.register_with_unit("admission_patch", "Size of the JSON patches", Unit::Bytes, metrics.patch.clone());
        r.register(
            "service_account_lookups",
            "Reads of a service account that was not in the cache, by result",
            metrics.service_account_lookups.clone(),
        );
        r.register(
            "pod_lookups",
            "Reads of a pod whose Binding is to a virtual node, by result",
            metrics.pod_lookups.clone(),
        );
        r.register(
            "namespace_misses",
            "Pods admitted unchanged because their namespace was not in the cache in time",
            metrics.namespace_misses.clone(),
        );
        metrics
    }

    /// Counts a decision, or an object that stays unchanged without a decision. `decision` comes from a closed set.
    pub fn decided(&self, resource: Resource, decision: &'static str) {
        self.requests.get_or_create(&RequestLabels { resource: resource.as_str(), decision }).inc();
    }

    /// Counts a reason why a pod stays on VMs.
    pub fn stays(&self, reason: &'static str) {
        self.stay_reasons.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts a note for the pod's owner.
    pub fn notes(&self, reason: &'static str) {
        self.notes.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts ignored overrides.
    pub fn overrides_ignored(&self, count: usize) {
        self.ignored_overrides.inc_by(count.try_into().unwrap_or(u64::MAX));
    }

    /// Counts an unusable request.
    pub fn unusable(&self, reason: &'static str) {
        self.unusable.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn in_flight(&self) -> GaugeGuard {
        GaugeGuard::increment(&self.in_flight)
    }

    /// Observes the size of a patch.
    pub fn patched(&self, patch: Option<&[u8]>) {
        if let Some(bytes) = patch.and_then(|patch| u32::try_from(patch.len()).ok()) {
            self.patch.observe(bytes.into());
        }
    }

    /// Observes the duration of a request.
    pub fn responded(&self, after: Duration) {
        self.duration.observe(after.as_secs_f64());
    }

    /// Counts a read of a service account from the API server.
    pub fn service_account_looked_up(&self, result: &'static str) {
        self.service_account_lookups.get_or_create(&ResultLabels { result }).inc();
    }

    /// Counts a read of a pod whose Binding is to a virtual node.
    pub fn pod_looked_up(&self, result: &'static str) {
        self.pod_lookups.get_or_create(&ResultLabels { result }).inc();
    }

    /// Counts a namespace that was not in the cache in time.
    pub fn namespace_missed(&self) {
        self.namespace_misses.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_carry_the_prefix_and_their_unit() {
        let mut registry = crate::telemetry::registry();
        let metrics = AdmissionMetrics::new(&mut registry);
        metrics.decided(Resource::Pods, "prefer");
        metrics.responded(Duration::from_micros(80));
        metrics.patched(Some(&[0; 300]));
        metrics.patched(None);
        let in_flight = metrics.in_flight();
        let text = crate::telemetry::encode(&registry);
        assert!(text.contains(r#"spillway_admission_requests_total{resource="pods",decision="prefer"} 1"#), "{text}");
        assert!(text.contains("spillway_admission_duration_seconds_count 1"), "{text}");
        assert!(text.contains("spillway_build_info{version="), "{text}");
        assert!(text.contains("spillway_admission_patch_bytes_sum 300"), "{text}");
        assert!(text.contains("spillway_admission_in_flight 1"), "{text}");
        drop(in_flight);
        assert!(crate::telemetry::encode(&registry).contains("spillway_admission_in_flight 0"));
    }
}
