//! Cached pods, reduced to the fields that their readers need.
//!
//! The cache keeps some pods full, with the fields that scheduling depends on. These are all pods on virtual nodes, and
//! pods without a node that have a decision. Other pods are minimal. A minimal pod has metadata only if it has no
//! decision.

mod cached;
mod meta;
mod object;
mod reduce;
mod view;

pub(crate) use cached::{
    CachedPod, NodeKind, PodState, Requests, ScheduledPod, UndecidedPod, UnscheduledPod, VirtualPod,
};
pub(crate) use meta::PodMeta;
pub(crate) use object::{FailureCause, PodObject};
pub(crate) use reduce::identity_part;
