//! The one binary: `spillway webhook`, `spillway explain` and the rest.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // With one provider linked, rustls finds it by itself; with two it would panic at the first handshake unless told.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: a TLS provider was installed before ours");
        return ExitCode::from(2);
    }
    spillway::cli::run(spillway::cli::Cli::parse())
}
