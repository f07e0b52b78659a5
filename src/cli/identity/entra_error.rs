//! Explains an Entra error code, and the findings that cause it.

use std::fmt::Write;

use anyhow::anyhow;

use crate::{config::did_you_mean, identity::entra};

/// Explains the error code in a text.
pub(super) fn explain(text: &str) -> anyhow::Result<String> {
    let Some(code) = entra::find(text) else {
        let codes: Vec<_> = entra::codes().map(|code| code.code).collect();
        let hint = did_you_mean(text, &codes);
        return Err(anyhow!("--explain: unknown error code {text:?}{hint}\nknown codes: {}", codes.join(", ")));
    };
    let mut out = format!("{}: {}\n", code.code, code.meaning);
    let mut causes = entra::causes(code).peekable();
    if causes.peek().is_none() {
        writeln!(out, "\nNo finding of \"spillway identity check\" causes this error.")?;
    } else {
        writeln!(out, "\nFindings of \"spillway identity check\" that cause this error:")?;
    }
    for check in causes {
        writeln!(out, "\n  {:<4} {}", check.id, check.title)?;
        writeln!(out, "       fix: {}", check.fix)?;
    }
    writeln!(
        out,
        "\nMicrosoft documentation: https://login.microsoftonline.com/error?code={}",
        code.code.trim_start_matches("AADSTS")
    )?;
    Ok(out)
}
