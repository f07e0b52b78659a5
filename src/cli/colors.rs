//! Colors of the output on a terminal.

use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};

/// The styles of the output. `{style}` starts a style, and `{style:#}` ends it.
pub(super) struct Colors {
    pub(super) success: Style,
    pub(super) error: Style,
    pub(super) warning: Style,
    pub(super) bold: Style,
    pub(super) dim: Style,
}

impl Colors {
    /// Returns the styles for standard output. They are plain if it is not a terminal, or with `NO_COLOR`
    /// (no-color.org).
    pub(super) fn of_stdout() -> Self {
        if !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
            let plain = Style::new();
            return Self { success: plain, error: plain, warning: plain, bold: plain, dim: plain };
        }
        Self {
            success: AnsiColor::Green.on_default(),
            error: AnsiColor::Red.on_default(),
            warning: AnsiColor::Yellow.on_default(),
            bold: Style::new().bold(),
            dim: Style::new().dimmed(),
        }
    }
}
