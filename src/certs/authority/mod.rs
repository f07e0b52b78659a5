//! The certificate authority (CA) that all replicas share: the content of its Secret, and its rotation. Pure: time is a
//! parameter, and other modules access the Secret.
//!
//! Rotation overlaps, so that the API server always trusts the served certificates:
//!
//! 1. *Prepare*: after two thirds of its validity, the current CA gets a successor in the same Secret. The successor
//!    does not sign yet.
//! 2. The `caBundle` then has both. A replica that has seen this for [`BUNDLE_PROPAGATION_TIME`] signs its next
//!    certificate with the successor.
//! 3. *Promote*: the successor becomes the current CA. The key of the former CA is deleted. Its certificate stays in
//!    the bundle.
//! 4. *Retire*: after [`OLD_CA_RETENTION`] no replica serves a certificate of the former CA, and the CA leaves the
//!    bundle.

mod ca_secret;
mod certificate;
mod durations;
mod rotation;

pub use ca_secret::{CaSecret, MalformedSecret, RetiredCas, SecretError};
pub use certificate::{Authority, AuthorityError, CaCertificate, certificates};
pub use durations::{BUNDLE_PROPAGATION_TIME, CA_LIFETIME, LEAF_LIFETIME, MAX_CLOCK_SKEW, OLD_CA_RETENTION};
pub use rotation::{RotationReason, RotationStep, next_step};
