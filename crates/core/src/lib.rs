//! The decision core of Spillway: decides which pods may overflow to virtual nodes, and plans the patch.
//!
//! ```text
//! AdmissionReview ─▶ admission::parse ─▶ pod view ─┐
//!                                                  ▼
//! config::Settings, eligibility::ClusterContext ──▶ burst::decide ─▶ Decision ─▶ burst::json_patch ─▶ admission::allow
//! ```
//!
//! The crate is pure: it uses no network, files, clock or log. Its manifest has no dependency that does.

pub mod admission;
pub mod azure;
pub mod burst;
pub mod config;
pub mod eligibility;
pub mod excerpt;
pub mod keys;
pub mod pod;
pub mod suggestions;
mod words;
pub mod workload_identity;
