//! The `spillway` binary.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // If two providers are linked and none is installed, rustls panics at the first handshake.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: another TLS provider is already installed");
        return ExitCode::from(2);
    }
    spillway::cli::run(spillway::cli::Cli::parse())
}
