//! The wire between the API server and Spillway: a borrowed AdmissionReview in, an AdmissionReview response out.
//!
//! The types are those of `admission.k8s.io/v1`. `kube`'s own are not used here: they build the whole pod, and write the
//! patch as an array of numbers (kube-rs/kube#1781).

mod response;
mod review;

pub use response::{ResponseExtras, allow, encode};
pub use review::{BindingRequest, Request, ReviewError, parse, parse_binding, recover_uid};
