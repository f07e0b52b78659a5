//! Serving certificates: signed by a CA that all replicas share, read from files, or generated for development.

pub mod authority;
pub(crate) mod bundle_trust;
mod certificate_files;
mod dev_certificates;
mod key_pair;
mod leaf_signer;
#[cfg(test)]
mod rotation_simulation;
pub(crate) mod self_managed;
mod serving_certificate;

pub use certificate_files::{KeyPairFiles, watch_certificate_files};
pub use dev_certificates::{DevCertificates, generate, server_name};
pub use key_pair::{KeyPairError, KeyPairFilesError, load_key_pair, parse_key_pair};
pub use self_managed::self_managed;
pub use serving_certificate::{Leaf, ServingCertificate};
