//! An error code of Entra, and the findings that lead to it.

use std::fmt::Write;

use anyhow::anyhow;

use crate::{config::did_you_mean, identity::entra};

/// What is known of the code in a text.
pub(super) fn code(text: &str) -> anyhow::Result<String> {
    let Some(code) = entra::find(text) else {
        let codes: Vec<_> = entra::codes().map(|code| code.code).collect();
        let hint = did_you_mean(text, &codes);
        return Err(anyhow!("--explain: nothing is known of {text:?}{hint}\nknown are {}", codes.join(", ")));
    };
    let mut out = format!("{}: {}\n", code.code, code.meaning);
    let mut causes = entra::causes(code).peekable();
    if causes.peek().is_none() {
        writeln!(out, "\nNo finding of \"spillway identity check\" leads to it.")?;
    } else {
        writeln!(out, "\nFindings of \"spillway identity check\" that lead to it:")?;
    }
    for check in causes {
        writeln!(out, "\n  {:<4} {}", check.id, check.title)?;
        writeln!(out, "       cure: {}", check.cure)?;
    }
    writeln!(
        out,
        "\nMicrosoft's own words: https://login.microsoftonline.com/error?code={}",
        code.code.trim_start_matches("AADSTS")
    )?;
    Ok(out)
}
