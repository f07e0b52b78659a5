//! Logs: lines on standard error, as text or JSON.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

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

fn parse_level(level: &str) -> Result<String, String> {
    EnvFilter::try_new(level).map(|_| level.to_owned()).map_err(|error| error.to_string())
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
