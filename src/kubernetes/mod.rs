//! Helpers for the Kubernetes API: watches and their stores, paged lists, partial objects, conditional writes, backoff and
//! leader election.

mod backoff;
mod conditional;
mod decoded;
mod election;
mod list;
mod managed;
mod object;
mod partial;
mod store;
#[cfg(test)]
pub(crate) mod testing;
mod undecodable;
mod watch;

pub(crate) use backoff::Backoff;
pub(crate) use conditional::{conditional_patch, is_conflict, is_unanswered};
pub(crate) use decoded::Decoded;
pub(crate) use election::LeaderElector;
pub use election::Leadership;
pub(crate) use list::{list, list_metadata};
pub(crate) use managed::ManagedObject;
pub(crate) use object::{Object, annotation, object_reference};
pub(crate) use partial::PartialObject;
pub(crate) use store::{Listing, ObjectKey, Refusal, Store};
pub(crate) use watch::{Sink, Watch};
