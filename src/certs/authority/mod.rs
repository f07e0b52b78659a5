//! The certificate authority that all replicas share: what is stored of it, and what is to be done about it. Pure: time is a
//! parameter, and reading and writing is the business of others.
//!
//! Rotation overlaps, so that at no moment a certificate is served that the API server does not trust:
//!
//! 1. *Prepare*: after two thirds of its life the current authority gets a successor, stored beside it. Nobody signs with it yet.
//! 2. The `caBundle` then carries both, and each replica that has seen this for [`SETTLED`] signs its next certificate with the
//!    successor.
//! 3. *Promote*: the successor becomes the current one. The former one's key is gone, its certificate stays in the bundle.
//! 4. *Retire*: after [`RETENTION`] nothing is served any more that the former one signed, and it leaves the bundle.

mod assess;
mod certificate;
mod stored;

pub use assess::{Step, Why, assess};
pub use certificate::{Authority, AuthorityError, CaCertificate, certificates};
pub use stored::{Lacking, Malformed, Retiring, Stored};
use time::Duration;

/// How long an authority lives. Renewed after two thirds, which leaves four months in which somebody may notice that it was not.
pub const LIFETIME: Duration = Duration::days(365);

/// How long a serving certificate lives: it is signed anew after two thirds, so a replica may be without its authority for 8 h.
pub const LEAF_LIFETIME: Duration = Duration::hours(24);

/// Clocks of two machines differ.
pub const SKEW: Duration = Duration::hours(1);

/// How long a former authority stays trusted: the longest life of what it signed, with room for clocks that differ.
pub const RETENTION: Duration = Duration::hours(26);

/// How long a bundle must have been seen to carry an authority before anything that it signed is served: every API server of the
/// cluster learns of the bundle by a watch of its own.
pub const SETTLED: std::time::Duration = std::time::Duration::from_secs(10);
