//! What every part that talks to an API server needs: conditional writes, backoff and leader election.

mod backoff;
mod conditional;
mod election;

pub(crate) use backoff::Backoff;
pub(crate) use conditional::{conditional_patch, is_conflict, is_unanswered};
pub(crate) use election::LeaderElector;
pub use election::Leadership;
