//! Colours for a terminal, none elsewhere.

use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};

/// The styles that the commands use. Written before a text, and with `#` after it.
pub(super) struct Colours {
    pub(super) good: Style,
    pub(super) bad: Style,
    pub(super) doubtful: Style,
    pub(super) bold: Style,
    pub(super) dim: Style,
}

impl Colours {
    /// Those of standard output: none unless it is a terminal, and none with `NO_COLOR` (no-color.org).
    pub(super) fn of_stdout() -> Self {
        if !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
            let plain = Style::new();
            return Self { good: plain, bad: plain, doubtful: plain, bold: plain, dim: plain };
        }
        Self {
            good: AnsiColor::Green.on_default(),
            bad: AnsiColor::Red.on_default(),
            doubtful: AnsiColor::Yellow.on_default(),
            bold: Style::new().bold(),
            dim: Style::new().dimmed(),
        }
    }
}
