//! What every part that talks to an API server needs: conditional writes and leader election.

mod conditional;
mod election;

pub(crate) use conditional::{conditional_patch, is_conflict, is_unanswered};
pub(crate) use election::LeaderElector;
pub use election::Leadership;
