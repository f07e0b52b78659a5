//! Metrics of the identity checks.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use super::{
    gauges::now,
    labels::{NoLabels, labels},
};

/// Labels of a finding. The namespace is that of the service account or object, and empty for cluster-wide findings.
/// The number of namespaces with findings bounds the number of samples.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub struct FindingLabels {
    /// The check.
    pub id: &'static str,
    /// The severity.
    pub severity: &'static str,
    /// The namespace.
    pub namespace: String,
}

labels!(SourceLabels { source });

/// Metrics of the identity checks. Only the leader sets them.
#[derive(Debug, Clone)]
pub struct IdentityMetrics {
    findings: Family<FindingLabels, Gauge>,
    counted: Arc<Mutex<BTreeMap<FindingLabels, i64>>>,
    last_full_pass: Family<NoLabels, Gauge>,
    pass: Histogram,
    sources: Family<SourceLabels, Gauge>,
}

impl Default for IdentityMetrics {
    fn default() -> Self {
        Self {
            findings: Family::default(),
            counted: Arc::default(),
            last_full_pass: Family::default(),
            // From 1 ms to 16 s.
            pass: Histogram::new(exponential_buckets(0.001, 4.0, 8)),
            sources: Family::default(),
        }
    }
}

impl IdentityMetrics {
    /// Registers the metrics, without the samples that only a leader has.
    pub fn new(r: &mut Registry) -> Self {
        let metrics = Self::default();
        r.register(
            "identity_findings",
            "Findings of the identity checks, by check, severity and namespace; only on the leader",
            metrics.findings.clone(),
        );
        r.register_with_unit(
            "identity_last_full_pass_timestamp",
            "Time of the last full pass over the issuer, the cluster and Azure; only on the leader",
            Unit::Seconds,
            metrics.last_full_pass.clone(),
        );
        r.register_with_unit(
            "identity_pass_duration",
            "Duration of a pass of the identity checks",
            Unit::Seconds,
            metrics.pass.clone(),
        );
        r.register(
            "identity_source_up",
            "1 if an input of the identity checks could be read completely: cluster, issuer, credentials; only on the leader",
            metrics.sources.clone(),
        );
        metrics
    }

    /// Sets the number of findings, and removes the samples of fixed findings.
    pub fn found(&self, counts: BTreeMap<FindingLabels, i64>) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in counted.keys().filter(|labels| !counts.contains_key(labels)) {
            self.findings.remove(gone);
        }
        for (labels, count) in &counts {
            self.findings.get_or_create(labels).set(*count);
        }
        *counted = counts;
    }

    /// Records a finished pass.
    pub fn passed(&self, took: Duration, is_full: bool) {
        self.pass.observe(took.as_secs_f64());
        if is_full {
            self.last_full_pass.get_or_create(&NoLabels::new()).set(now());
        }
    }

    /// Sets whether a source could be read. Its name comes from a closed set.
    pub fn source(&self, source: &'static str, is_up: bool) {
        self.sources.get_or_create(&SourceLabels { source }).set(is_up.into());
    }

    /// Removes all samples.
    pub fn reset(&self) {
        self.found(BTreeMap::new());
        self.last_full_pass.clear();
        self.sources.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_findings_and_former_leaders_have_no_samples() {
        let mut registry = crate::telemetry::registry();
        let metrics = IdentityMetrics::new(&mut registry);
        let labels = |id| FindingLabels { id, severity: "error", namespace: "shop".to_owned() };
        metrics.found([(labels("F2"), 1), (labels("F3"), 2)].into());
        metrics.found([(labels("F3"), 1)].into());
        metrics.passed(Duration::from_millis(2), true);
        metrics.source("issuer", false);
        let text = crate::telemetry::encode(&registry);
        for line in [
            r#"spillway_identity_findings{id="F3",severity="error",namespace="shop"} 1"#,
            r#"spillway_identity_source_up{source="issuer"} 0"#,
            "spillway_identity_pass_duration_seconds_count 1",
            "spillway_identity_last_full_pass_timestamp_seconds{}",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("F2"), "{text}");
        metrics.reset();
        let text = crate::telemetry::encode(&registry);
        assert!(
            !text.contains("F3") && !text.contains("pass_timestamp_seconds{") && !text.contains("issuer\""),
            "{text}"
        );
    }
}
