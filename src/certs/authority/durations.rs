//! Durations of certificates and of their rotation.

use time::Duration;

/// Validity of a CA. It rotates after two thirds, which leaves four months to notice a failed rotation.
pub const CA_LIFETIME: Duration = Duration::days(365);

/// Validity of a leaf certificate. A replica signs the next one after two thirds, so it can miss its CA for 8 h.
pub const LEAF_LIFETIME: Duration = Duration::hours(24);

/// Maximum difference between the clocks of two machines.
pub const MAX_CLOCK_SKEW: Duration = Duration::hours(1);

/// Time for which a former CA stays trusted: the validity of its leaf certificates, and room for clock skew.
pub const OLD_CA_RETENTION: Duration = Duration::hours(26);

/// Time for which the bundle must have a CA before a leaf of that CA is served. Each API server of the cluster reads
/// the bundle with its own watch.
pub const BUNDLE_PROPAGATION_TIME: std::time::Duration = std::time::Duration::from_secs(10);
