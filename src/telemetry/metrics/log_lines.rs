//! Metrics of the log.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
    registry::Registry,
};
use tracing_appender::non_blocking::ErrorCounter;

/// Registers the counter of log lines that were dropped because their queue was full.
pub(in crate::telemetry) fn count_dropped_lines(r: &mut Registry, dropped: ErrorCounter) {
    r.register_collector(Box::new(DroppedLines(dropped)));
}

/// Reads the counter of `tracing_appender` at each scrape.
#[derive(Debug)]
struct DroppedLines(ErrorCounter);

impl Collector for DroppedLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let count = ConstCounter::new(u64::try_from(self.0.dropped_lines()).unwrap_or(u64::MAX));
        let help = "Log lines that were dropped because standard error did not accept them in time";
        count.encode(encoder.encode_descriptor("log_lines_dropped", help, None, MetricType::Counter)?)
    }
}

#[cfg(test)]
mod tests {
    use tracing_appender::non_blocking::NonBlocking;

    use super::*;

    #[test]
    fn the_counter_of_dropped_lines_starts_at_zero() {
        let mut registry = crate::telemetry::registry();
        let (queue, _guard) = NonBlocking::new(std::io::sink());
        count_dropped_lines(&mut registry, queue.error_counter());
        let text = crate::telemetry::encode(&registry);
        assert!(text.contains("\nspillway_log_lines_dropped_total 0\n"), "{text}");
    }
}
