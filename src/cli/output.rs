//! Results of commands: the exit status, and standard output.

use std::io::{self, Write};

/// The result of a command without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExitStatus {
    /// No findings.
    Success,
    /// There are findings or refusals.
    Findings,
}

/// Writes a result to standard output.
pub(super) fn print_stdout(text: &[u8]) -> anyhow::Result<ExitStatus> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    out.flush()?;
    Ok(ExitStatus::Success)
}
