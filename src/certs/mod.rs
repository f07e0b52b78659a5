//! Serving certificates: read from files, or made for development.

mod dev;
mod files;
mod serving;

pub use dev::{DevCertificates, generate, server_name};
pub use files::{KeyPairError, from_files, from_pem};
pub use serving::{Leaf, Serving};
