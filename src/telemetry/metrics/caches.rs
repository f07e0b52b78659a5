//! Metrics of the caches of cluster objects.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{gauges::now, labels::labels};

labels!(CacheLabels { cache });
labels!(KindLabels { kind });

/// Metrics of all caches.
#[derive(Debug, Clone, Default)]
pub struct CacheMetrics {
    synced: Family<CacheLabels, Gauge>,
    last_event: Family<CacheLabels, Gauge>,
    watch_errors: Family<CacheLabels, Counter>,
    undecodable: Family<KindLabels, Gauge>,
}

/// Number of objects of one kind that cannot be decoded. Watches of the same kind share it.
#[derive(Debug, Clone, Default)]
pub struct UndecodableObjects(Gauge);

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
        r.register(
            "undecodable_objects",
            "Objects in the cluster that Spillway cannot decode and therefore skips, by resource",
            metrics.undecodable.clone(),
        );
        metrics
    }

    /// Creates the number of undecodable objects of a resource at zero. The name comes from a closed set.
    pub fn undecodable(&self, kind: &'static str) -> UndecodableObjects {
        UndecodableObjects(self.undecodable.get_or_create_owned(&KindLabels { kind }))
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

impl UndecodableObjects {
    /// Counts objects that cannot be decoded.
    pub fn add(&self, objects: usize) {
        self.0.inc_by(i64::try_from(objects).unwrap_or(i64::MAX));
    }

    /// Removes objects that were repaired or deleted.
    pub fn remove(&self, objects: usize) {
        self.0.dec_by(i64::try_from(objects).unwrap_or(i64::MAX));
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
