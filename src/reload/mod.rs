//! Files that change under a running program, such as those of a ConfigMap or Secret volume.

pub mod configuration;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time;

/// How often the files are read. kubelet itself takes up to a minute to bring a change of a ConfigMap or Secret into a volume.
const PERIOD: Duration = Duration::from_secs(2);

/// Files that are followed by their content.
///
/// kubelet replaces a volume's files by swapping the symbolic link `..data`, which file events on the files miss
/// (kubernetes-sigs/controller-runtime `pkg/certwatcher` reads on a timer for that reason). So they are read again and again, and
/// compared.
pub struct Files {
    paths: Vec<PathBuf>,
    seen: Option<Seen>,
}

/// What the last reading brought.
type Seen = Result<Vec<Vec<u8>>, (io::ErrorKind, PathBuf)>;

/// A file that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct ReadError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl Files {
    /// Files that have not been read yet.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { paths: paths.into_iter().collect(), seen: None }
    }

    /// Waits until the content of any file, or whether it can be read at all, differs from the last time. The first call returns
    /// at once. Cancel safe.
    ///
    /// # Errors
    ///
    /// When a file could be read before and cannot now, or for another reason.
    pub async fn changed(&mut self) -> Result<Vec<Vec<u8>>, ReadError> {
        loop {
            if self.seen.is_some() {
                time::sleep(PERIOD).await;
            }
            let read = self.paths.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>();
            let key = read.as_ref().map(Clone::clone).map_err(|error| (error.source.kind(), error.path.clone()));
            if self.seen.as_ref() != Some(&key) {
                self.seen = Some(key);
                return read;
            }
        }
    }
}

// A few kilobytes from a volume in memory: not worth a thread.
fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    fs::read(path).map_err(|source| ReadError { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A volume as kubelet makes it: the file is a link through `..data` into a directory that is never written again.
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
    async fn a_change_in_a_volume_is_seen_and_an_unchanged_file_is_not_reported() {
        let volume = tempfile::tempdir().unwrap();
        publish(volume.path(), "..one", "a");
        let mut files = Files::new([volume.path().join("config.yaml")]);
        assert_eq!(files.changed().await.unwrap(), [b"a"]);
        publish(volume.path(), "..two", "a");
        assert!(time::timeout(Duration::from_secs(60), files.changed()).await.is_err(), "same content");
        publish(volume.path(), "..three", "b");
        assert_eq!(files.changed().await.unwrap(), [b"b"]);
        fs::remove_file(volume.path().join("..data")).unwrap();
        let error = files.changed().await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot read {}", volume.path().join("config.yaml").display()));
        assert!(time::timeout(Duration::from_secs(60), files.changed()).await.is_err(), "told once");
        publish(volume.path(), "..four", "b");
        assert_eq!(files.changed().await.unwrap(), [b"b"]);
    }
}
