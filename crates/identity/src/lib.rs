//! Checks every link from a pod to the federated credential that it signs in with, and names the fix for each break.
//!
//! ```text
//! pod ── label ──▶ azure-workload-identity ── token ──▶ issuer, subject, audience ══ federated credential ── managed identity
//!  └── service account ── client id ─────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The crate is pure: no network, no files, no clock. Its manifest enforces that. [`check`] turns an [`Observation`] into [`Finding`]s.
//!
//! Each check is one function, and each family of checks is one file. Checks compare texts byte for byte, as Entra does, and explain the
//! difference. If an input could not be read, a check reports *unknown*, never an error. `docs/identity.md` is generated from the checks.

pub mod az_output;
mod bindings;
pub mod catalogue;
mod cause;
mod check;
mod command;
mod convert;
mod credential_match;
mod credentials;
pub mod difference;
mod draft;
pub mod entra;
mod finding;
mod identity_credentials;
mod index;
mod issuer;
mod key_placement;
mod keys;
mod lookup;
pub mod managed_identity;
mod object;
pub mod observation;
mod pods;
pub mod preflight;
mod registry;
mod service_account;
mod webhooks;

pub use check::{Check, Input};
pub use command::quoted;
pub use convert::{PodSpec, grants, grants_identities, is_v1_virtual_node, ready_endpoints};
pub use draft::{Evidence, Severity};
pub use finding::Finding;
pub use object::{AccountName, Object};
pub use observation::Observation;
pub use registry::{check, check_of, checks};
