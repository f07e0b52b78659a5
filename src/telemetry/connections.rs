//! What is counted of the connections to the webhook's port.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::labels;

labels!(ReasonLabels { reason });

/// Metrics of the connections.
#[derive(Debug, Clone, Default)]
pub struct Connections {
    open: Gauge,
    errors: Family<ReasonLabels, Counter>,
}

/// Why a connection came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionError {
    /// It could not be accepted, for a reason of our own, such as no descriptors left.
    Accept,
    /// The TLS handshake failed.
    Handshake,
    /// The TLS handshake took too long.
    HandshakeTimeout,
    /// No request came after the handshake.
    NoRequest,
    /// What came was no HTTP.
    Protocol,
}

impl ConnectionError {
    const ALL: [Self; 5] = [Self::Accept, Self::Handshake, Self::HandshakeTimeout, Self::NoRequest, Self::Protocol];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Handshake => "handshake",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::NoRequest => "no_request",
            Self::Protocol => "protocol",
        }
    }
}

impl Connections {
    /// Registered, and all at zero.
    pub fn new(r: &mut Registry) -> Self {
        let metrics = Self::default();
        // There from the start, or an alert would not see the first.
        for why in ConnectionError::ALL {
            let _ = metrics.errors.get_or_create(&ReasonLabels { reason: why.as_str() });
        }
        r.register("connections", "Connections that are open, those in their handshake included", metrics.open.clone());
        r.register("connection_errors", "Connections that came to nothing, by reason", metrics.errors.clone());
        metrics
    }

    /// A connection is open for as long as the value lives.
    pub fn opened(&self) -> Open {
        Open::one_more(&self.open)
    }

    /// A connection came to nothing.
    pub fn failed(&self, why: ConnectionError) {
        self.errors.get_or_create(&ReasonLabels { reason: why.as_str() }).inc();
    }
}

/// One of those that a gauge counts, for as long as this value lives.
#[derive(Debug)]
pub struct Open(Gauge);

impl Open {
    pub(super) fn one_more(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
