//! Which pods may overflow to virtual nodes, and the patch that carries the decision out.
//!
//! ```text
//! AdmissionReview ─▶ admission::parse ─▶ pod view ─┐
//!                                                  ▼
//! config::Settings, what is known of the cluster ─▶ burst::decide ─▶ Decision ─▶ burst::json_patch ─▶ admission::allow
//! ```
//!
//! Pure: no network, no files, no clock, no log. The manifest of this crate holds that.

pub mod admission;
pub mod azure;
pub mod burst;
pub mod config;
pub mod eligibility;
pub mod keys;
pub mod pod;
pub mod suggestions;
mod words;
pub mod workload_identity;
