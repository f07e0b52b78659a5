//! Logs: lines on standard error, as text or JSON.

mod together;

use std::{
    io::{self, IsTerminal},
    sync::{Arc, OnceLock},
};

use tokio::sync::watch;
use tracing_subscriber::{EnvFilter, reload::Handle};

use self::together::Together;
use crate::config::{Configuration, LogLevel, did_you_mean};

/// Where the lines go, once there are some.
static LINES: OnceLock<Together> = OnceLock::new();

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
            let hint = did_you_mean(level, LEVELS);
            return Err(format!("unknown level \"{level}\", expected one of {}{hint}", LEVELS.join(", ")));
        }
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// What is logged, as long as the program runs.
pub struct Filter {
    by_flag: EnvFilter,
    set: Box<dyn Fn(EnvFilter) + Send>,
}

/// Starts logging. Called once; a second call changes nothing.
///
/// # Errors
///
/// When there can be no thread for it.
pub fn start(args: &LogArgs) -> io::Result<Filter> {
    fn setter<S: 'static>(handle: Handle<EnvFilter, S>) -> Box<dyn Fn(EnvFilter) + Send> {
        // Fails only when logging has ended.
        Box::new(move |filter| drop(handle.reload(filter)))
    }
    let LogArgs { log_level, log_format } = args;
    let by_flag = EnvFilter::new(log_level);
    let lines = Together::start(io::stderr())?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(by_flag.clone())
        .with_ansi(io::stderr().is_terminal())
        .with_writer(LINES.get_or_init(|| lines).clone());
    let (started, set) = match log_format {
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_current_span(false).with_span_list(false);
            let builder = builder.with_filter_reloading();
            let set = setter(builder.reload_handle());
            (builder.try_init(), set)
        }
        LogFormat::Text => {
            let builder = builder.with_filter_reloading();
            let set = setter(builder.reload_handle());
            (builder.try_init(), set)
        }
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    Ok(Filter { by_flag, set })
}

/// Writes the lines that wait to be written with others: for whoever ends the process.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush();
    }
}

impl Filter {
    /// Does what the configuration says, for as long as it is asked to; where it says nothing, what the flag said.
    pub async fn follow(self, mut configuration: watch::Receiver<Arc<Configuration>>) {
        let mut in_force = None;
        loop {
            let wanted = configuration.borrow_and_update().logging.level;
            if wanted != in_force {
                (self.set)(wanted.map_or_else(|| self.by_flag.clone(), |level| EnvFilter::new(level.as_str())));
                tracing::info!(level = wanted.map_or("by flag", LogLevel::as_str), "log level changed");
                in_force = wanted;
            }
            if configuration.changed().await.is_err() {
                return;
            }
        }
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
