//! The configuration file: loaded at startup, reloaded when it changes, and swapped as one value.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::Utf8Error,
    sync::Arc,
};

use tokio::sync::watch;

use super::{ReadError, WatchedFiles};
use crate::{
    config::{self, ConfigError, Configuration},
    telemetry::ConfigurationMetrics,
};

/// The current configuration. Each decision reads it once, so a reload cannot change the configuration during a decision.
pub type ConfigReceiver = watch::Receiver<Arc<Configuration>>;

/// Waits until the current configuration meets a condition. Waits forever after its sender is dropped.
pub async fn until(configuration: &ConfigReceiver, condition: impl Fn(&Configuration) -> bool) {
    if configuration.clone().wait_for(|now| condition(now)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Error in a configuration file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file is not UTF-8.
    #[error("{}: not UTF-8", path.display())]
    Utf8 {
        /// The file.
        path: PathBuf,
        /// The position of the first invalid byte.
        source: Utf8Error,
    },
    /// The file is not a valid SpillwayConfiguration.
    #[error("{}", Located(path, error))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The error and its position.
        error: ConfigError,
    },
}

/// An error in the format of compilers: `FILE:LINE:COLUMN: message`.
struct Located<'a>(&'a Path, &'a ConfigError);

impl fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(path, error) = self;
        write!(f, "{}:", path.display())?;
        if let Some((line, column)) = error.position {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", ConfigError { position: None, ..(*error).clone() })
    }
}

/// Parses the text of a configuration file.
///
/// # Errors
///
/// [`LoadError::Invalid`].
pub fn parse(path: &Path, text: &str) -> Result<Configuration, LoadError> {
    config::parse(text).map_err(|error| LoadError::Invalid { path: path.to_owned(), error })
}

/// A configuration and its file.
pub struct ConfigurationFile {
    path: PathBuf,
    files: WatchedFiles,
    current: watch::Sender<Arc<Configuration>>,
    metrics: ConfigurationMetrics,
}

impl ConfigurationFile {
    /// Loads the file.
    ///
    /// # Errors
    ///
    /// When the file is invalid. There is no fallback, because the built-in defaults may be wrong for the cluster.
    pub async fn load(path: &Path, metrics: ConfigurationMetrics) -> Result<Self, LoadError> {
        let mut files = WatchedFiles::new([path.to_owned()]);
        let configuration = read(path, &mut files).await?;
        metrics.replaced();
        Ok(Self { path: path.to_owned(), files, current: watch::Sender::new(Arc::new(configuration)), metrics })
    }

    /// Returns a receiver of the current configuration.
    pub fn subscribe(&self) -> ConfigReceiver {
        self.current.subscribe()
    }

    /// Reloads the file when it changes. Never returns. An invalid file does not change the configuration. Calls
    /// `on_change` for each change of the file.
    pub async fn follow(mut self, mut on_change: impl FnMut(Result<(), &LoadError>)) {
        loop {
            match read(&self.path, &mut self.files).await {
                Ok(configuration) => {
                    self.replace(configuration);
                    on_change(Ok(()));
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "cannot reload the configuration, keeping the current one"
                    );
                    self.metrics.failed();
                    on_change(Err(&error));
                }
            }
        }
    }

    fn replace(&self, new: Configuration) {
        self.metrics.succeeded();
        if **self.current.borrow() == new {
            tracing::info!("configuration file changed, but the configuration is the same");
            return;
        }
        self.current.send_replace(Arc::new(new));
        let generation = self.metrics.replaced();
        tracing::info!(generation, "configuration replaced");
    }
}

async fn read(path: &Path, files: &mut WatchedFiles) -> Result<Configuration, LoadError> {
    let content = files.changed().await?.concat();
    let text = std::str::from_utf8(&content).map_err(|source| LoadError::Utf8 { path: path.to_owned(), source })?;
    parse(path, text)
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Mutex};

    use tokio::time::{self, Duration};

    use super::*;
    use crate::{config::Mode, telemetry};

    fn mode(configuration: &Configuration) -> Mode {
        let none = config::Overrides::default();
        configuration.settings("enabled", &none, &none).known().unwrap().mode.value
    }

    #[tokio::test(start_paused = true)]
    async fn only_valid_files_change_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(&path, "mode: prefer").unwrap();
        let path_of_next = dir.path().join("next");
        // Replaces the file atomically, as kubelet does.
        let publish = |text: &[u8]| {
            fs::write(&path_of_next, text).unwrap();
            fs::rename(&path_of_next, &path).unwrap();
        };
        publish(head("mode: require").as_bytes());
        let mut registry = telemetry::registry();
        let file = ConfigurationFile::load(&path, ConfigurationMetrics::new(&mut registry)).await.unwrap();
        let current = file.subscribe();
        let errors = Arc::new(Mutex::new(Vec::new()));
        let reported = errors.clone();
        tokio::spawn(file.follow(move |change| reported.lock().unwrap().extend(change.err().map(ToString::to_string))));

        let metric = |name: &str, value: u64| {
            let text = telemetry::encode(&registry);
            assert!(text.contains(&format!("spillway_configuration_{name} {value}\n")), "{name} {value}: {text}");
        };
        let state = |wanted: Mode, generation, successes, failures, failed| {
            assert_eq!(mode(&current.borrow()), wanted);
            metric("generation", generation);
            metric("reloads_total{result=\"success\"}", successes);
            metric("reloads_total{result=\"failure\"}", failures);
            metric("last_reload_failed", failed);
        };
        let wait_for_poll = async || time::sleep(Duration::from_secs(5)).await;
        wait_for_poll().await;
        state(Mode::Require, 1, 0, 0, 0);
        publish(head("modus: off").as_bytes());
        wait_for_poll().await;
        state(Mode::Require, 1, 0, 1, 1);
        publish(b"\xff");
        wait_for_poll().await;
        state(Mode::Require, 1, 0, 2, 1);
        fs::remove_file(&path).unwrap();
        wait_for_poll().await;
        state(Mode::Require, 1, 0, 3, 1);
        publish(head("mode: require # as before").as_bytes());
        wait_for_poll().await;
        state(Mode::Require, 1, 1, 3, 0);
        publish(head("mode: \"off\"").as_bytes());
        wait_for_poll().await;
        state(Mode::Off, 2, 2, 3, 0);

        let shown = path.display();
        let expected = [
            format!("{shown}:3:1: unknown field \"modus\""),
            format!("{shown}: not UTF-8"),
            format!("cannot read {shown}"),
        ];
        let errors = errors.lock().unwrap();
        assert_eq!(errors.len(), expected.len());
        for (error, expected) in errors.iter().zip(&expected) {
            assert!(error.starts_with(expected), "{error}");
        }
    }

    fn head(rest: &str) -> String {
        format!("apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n{rest}\n")
    }
}
