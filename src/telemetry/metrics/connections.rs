//! Metrics of the connections to the webhook's port.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{gauges::GaugeGuard, labels::labels};

labels!(ReasonLabels { reason });

/// Metrics of the connections.
#[derive(Debug, Clone, Default)]
pub struct ConnectionMetrics {
    open: Gauge,
    limit: Gauge,
    errors: Family<ReasonLabels, Counter>,
}

/// Why a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionError {
    /// Accepting the connection failed for a local reason, such as too many open files.
    Accept,
    /// The TLS handshake failed.
    Handshake,
    /// The TLS handshake timed out.
    HandshakeTimeout,
    /// The client sent no request after the handshake.
    NoRequest,
    /// The client did not send valid HTTP.
    Protocol,
    /// The connection had no review, and made room for another one or was refused.
    Crowded,
}

impl ConnectionError {
    const ALL: [Self; 6] =
        [Self::Accept, Self::Handshake, Self::HandshakeTimeout, Self::NoRequest, Self::Protocol, Self::Crowded];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Handshake => "handshake",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::NoRequest => "no_request",
            Self::Protocol => "protocol",
            Self::Crowded => "crowded",
        }
    }
}

impl ConnectionMetrics {
    /// Registers the metrics, all at zero, and the maximum number of connections.
    pub fn new(r: &mut Registry, max_connections: u32) -> Self {
        let metrics = Self::default();
        metrics.limit.set(max_connections.into());
        // Without a sample at zero, alerts would miss the first increase.
        for why in ConnectionError::ALL {
            let _ = metrics.errors.get_or_create(&ReasonLabels { reason: why.as_str() });
        }
        r.register("connections", "Open connections, including those in their handshake", metrics.open.clone());
        r.register("connections_limit", "Maximum number of open connections", metrics.limit.clone());
        r.register("connection_errors", "Failed connections, by reason", metrics.errors.clone());
        metrics
    }

    /// Counts a connection as open until the guard is dropped.
    pub fn opened(&self) -> GaugeGuard {
        GaugeGuard::increment(&self.open)
    }

    /// Counts a failed connection.
    pub fn failed(&self, why: ConnectionError) {
        self.errors.get_or_create(&ReasonLabels { reason: why.as_str() }).inc();
    }
}
