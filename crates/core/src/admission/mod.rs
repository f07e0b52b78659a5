//! The wire format between the API server and Spillway: AdmissionReview requests and responses.
//!
//! The types are those of `admission.k8s.io/v1`. Spillway does not use the types of `kube`. They build the whole pod,
//! and write the patch as an array of numbers (kube-rs/kube#1781).

mod response;
mod review;

pub use response::{ResponseExtras, allow, encode};
pub use review::{BindingRequest, Request, ReviewError, parse, parse_binding, recover_uid};
