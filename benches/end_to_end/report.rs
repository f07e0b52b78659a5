//! The report, as tables and as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The results of one server in one round.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) paced: Paced,
    pub(crate) saturated_per_second: f64,
}

/// The results at the fixed rate, which is the same for all servers.
#[derive(Debug, Clone)]
pub(crate) struct Paced {
    pub(crate) requests_per_second: f64,
    pub(crate) cpu_us: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) rss_mib: f64,
}

/// Returns the median of each number.
pub(crate) fn median(rows: &[Row]) -> Row {
    let of = |number: fn(&Row) -> f64| {
        let mut numbers: Vec<_> = rows.iter().map(number).collect();
        numbers.sort_by(f64::total_cmp);
        numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
    };
    Row {
        paced: Paced {
            requests_per_second: of(|row| row.paced.requests_per_second),
            cpu_us: of(|row| row.paced.cpu_us),
            p50_ms: of(|row| row.paced.p50_ms),
            p99_ms: of(|row| row.paced.p99_ms),
            rss_mib: of(|row| row.paced.rss_mib),
        },
        saturated_per_second: of(|row| row.saturated_per_second),
    }
}

/// The results of many idle connections that all send a request at the same time.
#[derive(Debug)]
pub(crate) struct Idle {
    pub(crate) connections: usize,
    pub(crate) before_mib: f64,
    pub(crate) rss_mib: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// Pods created through the API server.
#[derive(Debug)]
pub(crate) struct Creation {
    pub(crate) pods: u32,
    pub(crate) per_minute_without: f64,
    pub(crate) per_minute_with: f64,
    pub(crate) admission: Admission,
}

/// The API server's metrics of its calls to the webhook.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    /// The number of calls within each limit in seconds. The keys are the bits of the limits, which have the same order.
    pub(crate) buckets: BTreeMap<u64, f64>,
    pub(crate) seconds: f64,
    pub(crate) calls: f64,
    /// Calls that failed, timed out or were refused, by the API server's metrics.
    pub(crate) failures: f64,
    /// Pods that the API server admitted without the webhook after such a call, by the audit log.
    pub(crate) failed_open: usize,
}

/// Requests per second, below the capacity of every server. Saturation keeps CPUs busy, which would favour the fast server.
pub(crate) const RATE: u32 = 4000;

impl Admission {
    pub(crate) fn plus(self, other: &Self) -> Self {
        self.combined(other, 1.0)
    }

    pub(crate) fn minus(self, other: &Self) -> Self {
        self.combined(other, -1.0)
    }

    fn combined(mut self, other: &Self, sign: f64) -> Self {
        for (limit, count) in &other.buckets {
            *self.buckets.entry(*limit).or_default() += sign * count;
        }
        self.seconds += sign * other.seconds;
        self.calls += sign * other.calls;
        self.failures += sign * other.failures;
        self
    }

    /// Returns the smallest limit that this percentage of calls did not exceed, in milliseconds.
    fn within_ms(&self, percent: f64) -> f64 {
        let kept = |(_, count): &(&u64, &f64)| **count >= self.calls * percent / 100.0;
        self.buckets.iter().find(kept).map_or(f64::NAN, |(limit, _)| f64::from_bits(*limit) * 1e3)
    }
}

/// All results.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) noop: Row,
    pub(crate) tokeniser: Row,
    pub(crate) spillway: Row,
    /// The webhook without a log line for each pod.
    pub(crate) quiet: Row,
    pub(crate) idle: Idle,
    pub(crate) creation: Creation,
}

impl Report {
    pub(crate) fn print(&self) {
        println!(
            "\nOne 9.6 kB review, TLS 1.3 keep-alive, 16 connections, one thread; CPU, latency and RSS at {RATE} requests/s\n"
        );
        println!(
            "{:<16} {:>12} {:>9} {:>9} {:>9} {:>16}",
            "", "CPU µs/req", "p50 ms", "p99 ms", "RSS MiB", "saturated req/s"
        );
        for (name, Row { paced, saturated_per_second }) in self.rows() {
            let Paced { cpu_us, p50_ms, p99_ms, rss_mib, .. } = paced;
            println!(
                "{name:<16} {cpu_us:>12.1} {p50_ms:>9.2} {p99_ms:>9.2} {rss_mib:>9.1} {saturated_per_second:>16.0}"
            );
        }
        println!("\nno-op / spillway     {:.2}", self.ratio_to(&self.noop));
        println!("tokeniser / spillway {:.2}   (goal: 0.80)", self.ratio_to(&self.tokeniser));
        let Idle { connections, before_mib, rss_mib, p50_ms, p99_ms } = &self.idle;
        println!(
            "\n{connections} connections, idle: {before_mib:.1} MiB; after one request from each at once: {rss_mib:.1} MiB, p50 {p50_ms:.0} ms, p99 {p99_ms:.0} ms"
        );
        let Creation { pods, per_minute_without, per_minute_with, admission } = &self.creation;
        println!(
            "\n{pods} pods of 20 Deployments through the API server: {per_minute_with:.0} a minute with the webhook, {per_minute_without:.0} without"
        );
        let Admission { seconds, calls, failures, failed_open, .. } = admission;
        println!(
            "the API server waited {:.2} ms for a response on average, 99 % within {:.1} ms; {calls} calls, {failures} failures, {failed_open} pods admitted without the webhook",
            seconds / calls * 1e3,
            admission.within_ms(99.0),
        );
    }

    fn rows(&self) -> [(&'static str, &Row); 4] {
        [
            ("no-op", &self.noop),
            ("tokeniser", &self.tokeniser),
            ("spillway", &self.spillway),
            ("  log level warn", &self.quiet),
        ]
    }

    /// Returns another handler's CPU time per request, divided by Spillway's.
    fn ratio_to(&self, other: &Row) -> f64 {
        other.paced.cpu_us / self.spillway.paced.cpu_us
    }

    pub(crate) fn json(&self, decision: &Value) -> Value {
        let row = |Row { paced, saturated_per_second }: &Row| {
            json!({
                "requests_per_cpu_second": 1e6 / paced.cpu_us,
                "cpu_us_per_request": paced.cpu_us,
                "paced_requests_per_second": paced.requests_per_second,
                "p50_ms": paced.p50_ms,
                "p99_ms": paced.p99_ms,
                "rss_mib": paced.rss_mib,
                "saturated_requests_per_second": saturated_per_second,
            })
        };
        let Idle { connections, before_mib, rss_mib, p50_ms, p99_ms } = &self.idle;
        let Creation { pods, per_minute_without, per_minute_with, admission } = &self.creation;
        json!({
            "noop": row(&self.noop),
            "spillway": row(&self.spillway),
            "spillway_log_level_warn": row(&self.quiet),
            "tokeniser": row(&self.tokeniser),
            "ratio_to_noop": self.ratio_to(&self.noop),
            "ratio_to_tokeniser": self.ratio_to(&self.tokeniser),
            "idle_connections": {
                "connections": connections, "idle_rss_mib": before_mib, "rss_mib": rss_mib, "p50_ms": p50_ms, "p99_ms": p99_ms,
            },
            "pod_creation": {
                "pods": pods,
                "per_minute_with_webhook": per_minute_with,
                "per_minute_without_webhook": per_minute_without,
                "admission_mean_ms": admission.seconds / admission.calls * 1e3,
                "admission_p99_within_ms": admission.within_ms(99.0),
                "calls": admission.calls,
                "failures": admission.failures,
                "failed_open": admission.failed_open,
            },
            "decision": decision,
        })
    }
}
