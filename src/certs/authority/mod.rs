//! The certificate authority (CA) that all replicas share: the content of its Secret, and its rotation. Pure: time is a
//! parameter, and other modules read and write the Secret.
//!
//! Rotation overlaps, so that the API server always trusts the served certificates:
//!
//! 1. *Prepare*: after two thirds of its validity, the current CA gets a successor in the same Secret. The successor
//!    does not sign yet.
//! 2. The `caBundle` then has both. A replica that has seen this for [`BUNDLE_PROPAGATION_TIME`] signs its next
//!    certificate with the successor.
//! 3. *Promote*: the successor becomes the current CA. The key of the former CA is deleted. Its certificate stays in
//!    the bundle.
//! 4. *Retire*: after [`OLD_CA_RETENTION`] no certificate of the former CA is served any more, and the CA leaves the
//!    bundle.

mod ca_secret;
mod certificate;
mod rotation;

pub use ca_secret::{CaSecret, MalformedSecret, RetiredCas, SecretError};
pub use certificate::{Authority, AuthorityError, CaCertificate, certificates};
pub use rotation::{RotationReason, RotationStep, next_step};
use time::Duration;

/// Validity of a CA. It rotates after two thirds, which leaves four months to notice a failed rotation.
pub const CA_LIFETIME: Duration = Duration::days(365);

/// Validity of a leaf certificate. A replica signs the next one after two thirds, so it can be without its CA for 8 h.
pub const LEAF_LIFETIME: Duration = Duration::hours(24);

/// Maximum difference between the clocks of two machines.
pub const MAX_CLOCK_SKEW: Duration = Duration::hours(1);

/// Time that a former CA stays trusted: the validity of its leaf certificates, and room for clock skew.
pub const OLD_CA_RETENTION: Duration = Duration::hours(26);

/// Time that the bundle must have a CA before a leaf of that CA is served. Each API server of the cluster learns about
/// the bundle from its own watch.
pub const BUNDLE_PROPAGATION_TIME: std::time::Duration = std::time::Duration::from_secs(10);
