//! Serving certificates: signed by an authority that all replicas share, read from files, or made for development.

pub mod authority;
mod dev;
mod files;
mod follow;
mod replica;
pub(crate) mod self_managed;
mod serving;
pub(crate) mod trusted;
#[cfg(test)]
mod years;

pub use dev::{DevCertificates, generate, server_name};
pub use files::{KeyPairError, KeyPairFilesError, from_files, from_pem};
pub use follow::{KeyPairFiles, follow_files};
pub use self_managed::self_managed;
pub use serving::{Leaf, Serving};
