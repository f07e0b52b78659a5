//! What identity checks read from a cluster: once by lists, or from the stores of the controller.

mod inputs;
mod live;
mod watched;

pub use live::{Live, read};
pub(crate) use watched::IdentityInputs;
