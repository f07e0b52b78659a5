//! Pods, reduced on arrival to what their readers need.
//!
//! Pods that wait for a node and pods on virtual nodes are kept with all that scheduling depends on. All others are slim: their node,
//! their requests, and who they are only if they have no decision.

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
