//! Spillway lets the pods of opted-in namespaces overflow from a cluster's VMs to Azure virtual nodes, as a last resort.
//!
//! ```text
//! kube-apiserver ── AdmissionReview (HTTPS) ─▶ webhook ─▶ admission::parse ─▶ pod view ─┐
//!                                                                                      ▼
//!     cluster snapshot (namespaces, service accounts,  ─▶ burst::decide(pod, settings, cluster)
//!     virtual nodes, network policies)                                                 │ Decision {verdict, steps, notes}
//! kube-apiserver ◀─ AdmissionReview ◀─ admission::allow ◀─ burst::json_patch ◀──────────┘
//!
//! kube-apiserver ── Binding to a virtual node ─▶ webhook ─▶ one read of the pod ─▶ burst::binding_patch ─▶ kube-apiserver
//!
//! kube-apiserver ◀─ watch, patch, evict ─▶ controller, only the leader:
//!     of nodes: last-resort taint · caps and breaker · ghosts          of pods: late burst · missed pods (the same burst::decide)
//!     reports only: advice · identity                                  of certificates: authority · caBundle
//!
//! a person ─▶ cli: explain · identity check · config · certs      (the same burst::decide, burst::json_patch and identity::check)
//! ```
//!
//! Data flows one way. `spillway-core` (the decision) and `spillway-identity` (the identity checks) are pure: no async runtime, no
//! Kubernetes client, no clock, no files. The modules of this crate do the I/O.

pub mod admin;
mod background;
pub mod certs;
pub mod cli;
pub mod cluster;
pub mod controller;
pub mod credentials;
mod kubernetes;
pub mod reload;
pub mod telemetry;
pub mod webhook;

/// The pure parts are separate crates, so that the compiler keeps I/O out of them.
pub use spillway_core::{admission, azure, burst, config, eligibility, excerpt, keys, pod, suggestions};
pub use spillway_identity as identity;
