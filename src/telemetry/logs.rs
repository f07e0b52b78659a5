//! Logs: lines on standard error, as text or JSON.

mod batch_writer;

use std::{
    io::{self, IsTerminal},
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing_appender::non_blocking::{ErrorCounter, WorkerGuard};
use tracing_subscriber::{EnvFilter, reload::Handle};

use super::metrics::count_dropped_lines;
use crate::config::{Configuration, LogLevel, did_you_mean};

/// The guard of the writer thread. `None` if logging has not started.
static WRITER: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// The log levels, from silent to most verbose.
const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// Options of the log.
#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// Log level: error, warn, info, debug or trace; also for single modules, such as `info,kube=debug`
    #[arg(long, env = "SPILLWAY_LOG", default_value = "info", value_name = "LEVEL", value_parser = parse_level)]
    pub log_level: String,

    /// Log format
    #[arg(long, env = "SPILLWAY_LOG_FORMAT", default_value = "json", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Text for people.
    Text,
}

/// Checks the levels. `EnvFilter` would read a misspelled level as a module name, and log only that module.
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

/// Limits kube's client to errors. At lower levels, it logs whole responses that it cannot decode, and a user can make
/// them large (kube-client `src/client/mod.rs`).
fn without_bodies(filter: EnvFilter) -> EnvFilter {
    match "kube_client=error".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    }
}

/// The log level, which the configuration can change, and the counter of dropped lines.
pub struct Logs {
    filter_of_flag: EnvFilter,
    dropped: ErrorCounter,
    set_filter: Box<dyn Fn(EnvFilter) + Send>,
}

/// Starts logging. A second call has no effect.
pub fn start(args: &LogArgs) -> Logs {
    fn setter<S: 'static>(handle: Handle<EnvFilter, S>) -> Box<dyn Fn(EnvFilter) + Send> {
        // This fails only after logging has ended.
        Box::new(move |filter| drop(handle.reload(filter)))
    }
    let LogArgs { log_level, log_format } = args;
    let filter_of_flag = without_bodies(EnvFilter::new(log_level));
    let (lines, guard) = batch_writer::non_blocking(io::stderr());
    let dropped = lines.error_counter();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter_of_flag.clone())
        .with_ansi(io::stderr().is_terminal())
        .with_writer(lines);
    let (started, set_filter) = match log_format {
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
    if started.is_ok() {
        *WRITER.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    } else {
        tracing::debug!("logging was started before");
    }
    Logs { filter_of_flag, dropped, set_filter }
}

/// Writes the queued lines at the end of the process. Later lines are lost.
pub fn flush() {
    drop(WRITER.lock().unwrap_or_else(PoisonError::into_inner).take());
}

impl Logs {
    /// Registers the metrics of the log.
    pub fn register(&self, registry: &mut Registry) {
        count_dropped_lines(registry, self.dropped.clone());
    }

    /// Applies the log level of the configuration, or that of the flag if the configuration has none.
    pub async fn follow(self, mut configuration: watch::Receiver<Arc<Configuration>>) {
        let mut current = None;
        loop {
            let wanted = configuration.borrow_and_update().logging.level;
            if wanted != current {
                let filter = wanted.map(|level| without_bodies(EnvFilter::new(level.as_str())));
                (self.set_filter)(filter.unwrap_or_else(|| self.filter_of_flag.clone()));
                tracing::info!(level = wanted.map_or("by flag", LogLevel::as_str), "log level changed");
                current = wanted;
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
    fn responses_that_cannot_be_decoded_are_not_logged_at_any_level() {
        for level in ["trace", "info,kube_client=debug"] {
            let filter = without_bodies(EnvFilter::new(level)).to_string();
            assert!(filter.contains("kube_client=error") && !filter.contains("kube_client=debug"), "{filter}");
        }
    }

    #[test]
    fn unknown_levels_are_rejected_with_a_suggestion() {
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
