//! The cluster objects that the identity checks read, from lists or from the cache of the controller.

mod inputs;
mod live;
mod watched;

pub use live::{Live, read};
pub(crate) use watched::IdentityInputs;
