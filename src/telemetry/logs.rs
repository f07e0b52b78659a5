//! Logs: lines on standard error, as text or JSON.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::config::nearest;

/// How much to log, from nothing to everything.
const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// How to log.
#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// What to log: error, warn, info, debug or trace; also per module, such as `info,kube=debug`
    #[arg(long, env = "SPILLWAY_LOG", default_value = "info", value_name = "LEVEL", value_parser = parse_level)]
    pub log_level: String,

    /// How to write it
    #[arg(long, env = "SPILLWAY_LOG_FORMAT", default_value = "json", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object for each line.
    Json,
    /// For people.
    Text,
}

/// EnvFilter would take a mistyped level for the name of a module of which everything is to be logged, and so nothing else.
fn parse_level(text: &str) -> Result<String, String> {
    for directive in text.split(',').filter(|directive| !directive.contains(['[', ']', '{', '}'])) {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        if !LEVELS.contains(&level.to_lowercase().as_str()) {
            let hint = nearest(level, LEVELS).map(|hint| format!("; did you mean \"{hint}\"?")).unwrap_or_default();
            return Err(format!("unknown level \"{level}\", expected one of {}{hint}", LEVELS.join(", ")));
        }
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Starts logging. Called once; a second call changes nothing.
pub fn start(args: &LogArgs) {
    let LogArgs { log_level, log_format } = args;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(log_level))
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let started = match log_format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_does_not_exist_is_refused_with_the_nearest_that_does() {
        for level in ["info", "WARN", "off", "info,kube=debug", "warn,spillway::webhook=trace", "info,kube[span]=debug"]
        {
            assert_eq!(parse_level(level).as_deref(), Ok(level));
        }
        for (level, message) in [
            (
                "inof",
                "unknown level \"inof\", expected one of off, error, warn, info, debug, trace; did you mean \"info\"?",
            ),
            (
                "info,kube=debgu",
                "unknown level \"debgu\", expected one of off, error, warn, info, debug, trace; did you mean \"debug\"?",
            ),
            ("info,kube", "unknown level \"kube\", expected one of off, error, warn, info, debug, trace"),
            ("", "unknown level \"\", expected one of off, error, warn, info, debug, trace"),
        ] {
            assert_eq!(parse_level(level).unwrap_err(), message);
        }
    }
}
