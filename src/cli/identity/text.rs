//! A report for people: a table of service accounts, then every finding with its evidence and its fix.

use std::fmt::{self, Write};

use anstyle::Style;

use super::report::{Account, Report};
use crate::{
    azure::is_guid,
    cli::colors::Colors,
    identity::{
        Evidence, Finding, Severity,
        difference::{Difference, visible},
    },
};

const fn symbol(severity: Option<Severity>) -> &'static str {
    match severity {
        None => "✓",
        Some(Severity::Error) => "✗",
        Some(Severity::Warning) => "!",
        Some(Severity::Info) => "i",
        Some(Severity::Unknown) => "?",
    }
}

fn color(colors: &Colors, severity: Option<Severity>) -> Style {
    match severity {
        None => colors.success,
        Some(Severity::Error) => colors.error,
        Some(Severity::Warning | Severity::Unknown) => colors.warning,
        Some(Severity::Info) => colors.dim,
    }
}

pub(super) fn text(report: &Report<'_>) -> Result<String, fmt::Error> {
    let (colors, mut out) = (Colors::of_stdout(), String::new());
    table(&mut out, report, &colors)?;
    for finding in &report.findings {
        one(&mut out, finding, &colors)?;
    }
    let counts: Vec<_> = report.counts().iter().map(|(severity, count)| counted(*severity, *count)).collect();
    let accounts = report.accounts.len();
    let plural = if accounts == 1 { "" } else { "s" };
    let found = if counts.is_empty() { "no findings".to_owned() } else { counts.join(", ") };
    writeln!(out, "{accounts} service account{plural}: {found}")?;
    Ok(out)
}

fn counted(severity: Severity, count: usize) -> String {
    let plural = if count == 1 { "" } else { "s" };
    match severity {
        Severity::Error => format!("{count} error{plural}"),
        Severity::Warning => format!("{count} warning{plural}"),
        Severity::Info => format!("{count} info"),
        Severity::Unknown => format!("{count} unknown"),
    }
}

fn table(out: &mut String, report: &Report<'_>, colors: &Colors) -> fmt::Result {
    const HEAD: [&str; 5] = ["NAMESPACE", "SERVICE ACCOUNT", "WORKLOADS", "IDENTITY", "FINDINGS"];
    if report.accounts.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = report.accounts.iter().map(|account| (account.worst, cells(account))).collect();
    let mut widths = HEAD.map(str::len);
    for (_, cells) in &rows {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.len()); // all cells are ASCII
        }
    }
    let line = |cells: &[&str]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    writeln!(out, "  {0}{1}{0:#}", colors.bold, line(&HEAD))?;
    for (worst, cells) in &rows {
        let cells: Vec<_> = cells.iter().map(String::as_str).collect();
        writeln!(out, "{0}{1}{0:#} {2}", color(colors, *worst), symbol(*worst), line(&cells))?;
    }
    out.push('\n');
    Ok(())
}

fn cells(account: &Account<'_>) -> [String; 5] {
    let client_id = account.client_id.filter(|client_id| is_guid(client_id));
    let identity = account.identity.or(client_id).map_or_else(|| "-".to_owned(), visible);
    [
        visible(&account.name.namespace),
        visible(&account.name.name),
        account.workloads.to_string(),
        identity,
        account.ids.join(", "),
    ]
}

fn one(out: &mut String, finding: &Finding, colors: &Colors) -> fmt::Result {
    let Colors { bold, .. } = colors;
    let paint = color(colors, Some(finding.severity));
    let (id, object) = (finding.check.id, visible(&finding.object.to_string()));
    writeln!(
        out,
        "{paint}{} {id}{paint:#} {bold}{object}{bold:#}: {}",
        symbol(Some(finding.severity)),
        line(&finding.message)
    )?;
    for evidence in &finding.evidence {
        match evidence {
            Evidence::Fact { name, value } => writeln!(out, "    {name}: {}", line(value))?,
            Evidence::Difference(difference) => self::difference(out, difference, colors)?,
        }
    }
    writeln!(out, "    {bold}fix:{bold:#}")?;
    for part in finding.fix.lines() {
        writeln!(out, "      {}", line(part))?;
    }
    out.push('\n');
    Ok(())
}

/// Writes both texts, and a mark below the first difference.
pub(super) fn difference(out: &mut String, difference: &Difference, colors: &Colors) -> fmt::Result {
    let (expected, found, column) = difference.shown();
    let Colors { success, error, .. } = colors;
    writeln!(out, "    {} expected  {success}{expected}{success:#}", difference.what)?;
    let indent = " ".repeat(difference.what.len());
    writeln!(out, "    {indent} found     {error}{found}{error:#}")?;
    writeln!(out, "    {indent}           {}{error}^{error:#}", " ".repeat(column))
}

/// Escapes control characters, so that untrusted text cannot move the cursor.
pub(super) fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() { out.extend(character.escape_default()) } else { out.push(character) }
    }
    out
}
