//! Reloads files that change while the program runs, such as the files of a ConfigMap or Secret volume.

pub mod configuration;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time;

/// Interval between reads. kubelet itself takes up to a minute to update the volume of a ConfigMap or Secret.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Files whose content is polled.
///
/// kubelet replaces the files of a volume by swapping the symbolic link `..data`. File events on the files do not show
/// this. So Spillway reads and compares the files periodically. kubernetes-sigs/controller-runtime `pkg/certwatcher`
/// reads on a timer for the same reason.
pub struct WatchedFiles {
    paths: Vec<PathBuf>,
    last_read: Option<LastRead>,
}

/// The result of the last read.
type LastRead = Result<Vec<Vec<u8>>, (io::ErrorKind, PathBuf)>;

/// A file that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct ReadError {
    /// The file.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

impl WatchedFiles {
    /// Creates a watch of files that have not been read yet.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { paths: paths.into_iter().collect(), last_read: None }
    }

    /// Waits until a file changes, becomes readable, or becomes unreadable. The first call returns immediately. Cancel
    /// safe.
    ///
    /// # Errors
    ///
    /// When a file can no longer be read, or the cause of the failure changes.
    pub async fn changed(&mut self) -> Result<Vec<Vec<u8>>, ReadError> {
        loop {
            if self.last_read.is_some() {
                time::sleep(POLL_INTERVAL).await;
            }
            let read = self.paths.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>();
            let key = read.as_ref().map(Clone::clone).map_err(|error| (error.source.kind(), error.path.clone()));
            if self.last_read.as_ref() != Some(&key) {
                self.last_read = Some(key);
                return read;
            }
        }
    }
}

// Reading a few kilobytes from a volume in memory needs no blocking thread.
fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    fs::read(path).map_err(|source| ReadError { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Updates a volume as kubelet does. The file is a link through `..data` into a directory that is never written again.
    fn publish(volume: &Path, revision: &str, content: &str) {
        fs::create_dir(volume.join(revision)).unwrap();
        fs::write(volume.join(revision).join("config.yaml"), content).unwrap();
        symlink(revision, volume.join("..next")).unwrap();
        fs::rename(volume.join("..next"), volume.join("..data")).unwrap();
        if !volume.join("config.yaml").exists() {
            symlink("..data/config.yaml", volume.join("config.yaml")).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changes_of_a_volume_are_reported_once() {
        let volume = tempfile::tempdir().unwrap();
        publish(volume.path(), "..one", "a");
        let mut files = WatchedFiles::new([volume.path().join("config.yaml")]);
        assert_eq!(files.changed().await.unwrap(), [b"a"]);
        publish(volume.path(), "..two", "a");
        assert!(time::timeout(Duration::from_secs(60), files.changed()).await.is_err(), "same content");
        publish(volume.path(), "..three", "b");
        assert_eq!(files.changed().await.unwrap(), [b"b"]);
        fs::remove_file(volume.path().join("..data")).unwrap();
        let error = files.changed().await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot read {}", volume.path().join("config.yaml").display()));
        assert!(time::timeout(Duration::from_secs(60), files.changed()).await.is_err(), "reported once");
        publish(volume.path(), "..four", "b");
        assert_eq!(files.changed().await.unwrap(), [b"b"]);
    }
}
