//! `spillway certs`: certificates for development.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Subcommand;
use time::OffsetDateTime;

use super::output::{ExitStatus, print_stdout};
use crate::certs;

/// Generate certificates
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Generate a CA and a serving certificate for development
    ///
    /// Writes ca.crt, tls.crt and tls.key. They are valid for 90 days, for the webhook's Service in namespace
    /// spillway-system, for localhost, and for the given names. It does not keep the CA's key. To renew, generate
    /// new files.
    Dev {
        /// Output directory, which is created if needed
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Additional DNS name or IP address; may be repeated
        #[arg(long = "name", value_name = "NAME", value_parser = certs::server_name)]
        names: Vec<String>,
    },
}

pub(super) fn run(command: &Command) -> anyhow::Result<ExitStatus> {
    let Command::Dev { out, names } = command;
    let generated = certs::generate(names, OffsetDateTime::now_utc()).context("cannot generate certificates")?;
    fs::create_dir_all(out).with_context(|| format!("--out: cannot create {}", out.display()))?;
    // The key is first. If its path is blocked, no file has been replaced yet.
    write(
        out,
        &[
            ("tls.key", &generated.key, 0o600),
            ("tls.crt", &generated.certificate, 0o644),
            ("ca.crt", &generated.ca, 0o644),
        ],
    )?;
    print_stdout(format!("wrote ca.crt, tls.crt and tls.key to {}\n", out.display()).as_bytes())
}

/// Writes all files under temporary names, and then renames them. A failure such as a full disk leaves the old set
/// complete. A new file never gets the permissions of an old one.
fn write(dir: &Path, files: &[(&str, &str, u32)]) -> anyhow::Result<()> {
    let temporary = |name: &str| dir.join(format!(".{name}.new"));
    let written = files
        .iter()
        .try_for_each(|(name, content, mode)| write_new(&temporary(name), content, *mode))
        .and_then(|()| files.iter().try_for_each(|(name, ..)| rename(&temporary(name), &dir.join(name))));
    if written.is_err() {
        for (name, ..) in files {
            // Ignores missing files, because the error above is more useful.
            let _ = fs::remove_file(temporary(name));
        }
    }
    written
}

fn write_new(path: &Path, content: &str, mode: u32) -> anyhow::Result<()> {
    let written = fs::remove_file(path)
        .or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
        .and_then(|()| OpenOptions::new().write(true).create_new(true).mode(mode).open(path))
        .and_then(|mut file| file.write_all(content.as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot write {}", to.display()))
}
