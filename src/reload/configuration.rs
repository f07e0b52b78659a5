//! The configuration file: loaded at the start, followed from then on, and swapped as one value.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::Utf8Error,
    sync::Arc,
};

use tokio::sync::watch;

use super::{Files, ReadError};
use crate::{
    config::{self, ConfigError, Configuration},
    telemetry::ConfigurationMetrics,
};

/// The configuration in force. A decision borrows it once, so that it rests on one configuration.
pub type ConfigReceiver = watch::Receiver<Arc<Configuration>>;

/// Waits until the configuration in force meets a condition. Waits for good if nothing can change the configuration any more.
pub async fn until(configuration: &ConfigReceiver, condition: impl Fn(&Configuration) -> bool) {
    if configuration.clone().wait_for(|now| condition(now)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It is not UTF-8.
    #[error("{}: not UTF-8", path.display())]
    Utf8 {
        /// The file.
        path: PathBuf,
        /// Where.
        source: Utf8Error,
    },
    /// It is no SpillwayConfiguration.
    #[error("{}", Located(path, error))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        error: ConfigError,
    },
}

/// As compilers write it: `FILE:LINE:COLUMN: what is wrong`.
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

/// Reads a configuration from the text of a file.
///
/// # Errors
///
/// [`LoadError::Invalid`].
pub fn parse(path: &Path, text: &str) -> Result<Configuration, LoadError> {
    config::parse(text).map_err(|error| LoadError::Invalid { path: path.to_owned(), error })
}

/// A configuration and the file that it came from.
pub struct ConfigurationFile {
    path: PathBuf,
    files: Files,
    in_force: watch::Sender<Arc<Configuration>>,
    metrics: ConfigurationMetrics,
}

impl ConfigurationFile {
    /// Loads the file.
    ///
    /// # Errors
    ///
    /// When it cannot be used. There is nothing to fall back to then: the built-in defaults may be wrong for the cluster.
    pub async fn load(path: &Path, metrics: ConfigurationMetrics) -> Result<Self, LoadError> {
        let mut files = Files::new([path.to_owned()]);
        let configuration = read(path, &mut files).await?;
        metrics.replaced();
        Ok(Self { path: path.to_owned(), files, in_force: watch::Sender::new(Arc::new(configuration)), metrics })
    }

    /// The configuration in force, from now on.
    pub fn in_force(&self) -> ConfigReceiver {
        self.in_force.subscribe()
    }

    /// Follows the file for as long as it is asked to. What cannot be used changes nothing. `told` hears of each change of the file.
    pub async fn follow(mut self, mut told: impl FnMut(Result<(), &LoadError>)) {
        loop {
            match read(&self.path, &mut self.files).await {
                Ok(configuration) => {
                    self.replace(configuration);
                    told(Ok(()));
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "configuration kept: the file cannot be used"
                    );
                    self.metrics.failed();
                    told(Err(&error));
                }
            }
        }
    }

    fn replace(&self, new: Configuration) {
        self.metrics.succeeded();
        if **self.in_force.borrow() == new {
            tracing::info!("the configuration file says what is in force");
            return;
        }
        self.in_force.send_replace(Arc::new(new));
        let generation = self.metrics.replaced();
        tracing::info!(generation, "configuration replaced");
    }
}

async fn read(path: &Path, files: &mut Files) -> Result<Configuration, LoadError> {
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
    async fn a_broken_file_changes_nothing_and_a_mended_one_takes_effect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(&path, "mode: prefer").unwrap();
        let path_of_next = dir.path().join("next");
        // As kubelet does it: never half a file.
        let publish = |text: &[u8]| {
            fs::write(&path_of_next, text).unwrap();
            fs::rename(&path_of_next, &path).unwrap();
        };
        publish(head("mode: require").as_bytes());
        let mut registry = telemetry::registry();
        let file = ConfigurationFile::load(&path, ConfigurationMetrics::new(&mut registry)).await.unwrap();
        let in_force = file.in_force();
        let errors = Arc::new(Mutex::new(Vec::new()));
        let told = errors.clone();
        tokio::spawn(file.follow(move |change| told.lock().unwrap().extend(change.err().map(ToString::to_string))));

        let metric = |name: &str, value: u64| {
            let text = telemetry::encode(&registry);
            assert!(text.contains(&format!("spillway_configuration_{name} {value}\n")), "{name} {value}: {text}");
        };
        let state = |wanted: Mode, generation, successes, failures, failed| {
            assert_eq!(mode(&in_force.borrow()), wanted);
            metric("generation", generation);
            metric("reloads_total{result=\"success\"}", successes);
            metric("reloads_total{result=\"failure\"}", failures);
            metric("last_reload_failed", failed);
        };
        let look = async || time::sleep(Duration::from_secs(5)).await;
        look().await;
        state(Mode::Require, 1, 0, 0, 0);
        publish(head("modus: off").as_bytes());
        look().await;
        state(Mode::Require, 1, 0, 1, 1);
        publish(b"\xff");
        look().await;
        state(Mode::Require, 1, 0, 2, 1);
        fs::remove_file(&path).unwrap();
        look().await;
        state(Mode::Require, 1, 0, 3, 1);
        publish(head("mode: require # as before").as_bytes());
        look().await;
        state(Mode::Require, 1, 1, 3, 0);
        publish(head("mode: \"off\"").as_bytes());
        look().await;
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
