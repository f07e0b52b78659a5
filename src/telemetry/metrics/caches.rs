//! Metrics of the caches of cluster objects.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{gauges::now, labels::labels};

labels!(CacheLabels { cache });

/// Metrics of all caches.
#[derive(Debug, Clone, Default)]
pub struct CacheMetrics {
    synced: Family<CacheLabels, Gauge>,
    last_event: Family<CacheLabels, Gauge>,
    watch_errors: Family<CacheLabels, Counter>,
}

/// Metrics of one cache.
#[derive(Debug, Clone)]
pub struct WatchMetrics {
    synced: Gauge,
    last_event: Gauge,
    watch_errors: Counter,
}

impl CacheMetrics {
    /// Registers the metrics, without any cache.
    pub fn new(r: &mut Registry) -> Self {
        let metrics = Self::default();
        r.register("cache_synced", "1 if the initial list of a cache is complete", metrics.synced.clone());
        r.register_with_unit(
            "cache_last_event_timestamp",
            "Time of the last event of a cache",
            Unit::Seconds,
            metrics.last_event.clone(),
        );
        r.register("cache_watch_errors", "Interruptions of a cache's watch", metrics.watch_errors.clone());
        metrics
    }

    /// Removes the samples of all caches, except the count of watch errors.
    pub fn reset(&self) {
        self.synced.clear();
        self.last_event.clear();
    }

    /// Creates the metrics of one cache at zero. The name comes from a closed set.
    pub fn for_cache(&self, cache: &'static str) -> WatchMetrics {
        let labels = CacheLabels { cache };
        WatchMetrics {
            synced: self.synced.get_or_create_owned(&labels),
            last_event: self.last_event.get_or_create_owned(&labels),
            watch_errors: self.watch_errors.get_or_create_owned(&labels),
        }
    }
}

impl WatchMetrics {
    /// Records that a list is complete.
    pub fn listed(&self) {
        self.synced.set(1);
        self.event();
    }

    /// Records that an object was added, changed or deleted.
    pub fn event(&self) {
        self.last_event.set(now());
    }

    /// Counts an interruption of the watch.
    pub fn watch_failed(&self) {
        self.watch_errors.inc();
    }
}
