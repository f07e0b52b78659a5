//! Cached pods, reduced to the fields that their readers need.
//!
//! A pod without a node is full if it has a decision, and a pod on a virtual node is always full: the cache keeps the
//! fields that scheduling depends on. Other pods are minimal. The cache keeps the metadata of a minimal pod only if it
//! has no decision.

mod cached;
mod meta;
mod object;
mod reduce;
mod view;

pub(crate) use cached::{
    CachedPod, NodeKind, PodState, Requests, ScheduledPod, UndecidedPod, UnscheduledPod, VirtualPod,
};
pub(crate) use meta::PodMeta;
pub(crate) use object::PodObject;
pub(crate) use reduce::identity_part;
