//! The configuration file of a running program.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use super::control_plane::work_dir;

/// A ConfigMap volume with a configuration file, as the kubelet makes it: the file is a link through `..data`, which is replaced as a
/// whole.
pub(crate) struct ConfigVolume {
    dir: PathBuf,
    revision: u32,
}

impl ConfigVolume {
    /// Creates a volume with this name and these settings.
    pub(crate) fn new(name: &str, settings: &str) -> Self {
        let dir = work_dir("").join(name);
        fs::create_dir_all(&dir).unwrap();
        symlink("..data/config.yaml", dir.join("config.yaml")).unwrap();
        let mut volume = Self { dir, revision: 0 };
        volume.publish(settings);
        volume
    }

    /// Replaces the settings.
    pub(crate) fn publish(&mut self, settings: &str) {
        self.revision += 1;
        let revision = format!("..revision-{}", self.revision);
        fs::create_dir(self.dir.join(&revision)).unwrap();
        let text = format!("apiVersion: spillway.dev/v1alpha1\nkind: SpillwayConfiguration\n{settings}\n");
        fs::write(self.dir.join(&revision).join("config.yaml"), text).unwrap();
        symlink(&revision, self.dir.join("..next")).unwrap();
        fs::rename(self.dir.join("..next"), self.dir.join("..data")).unwrap();
    }

    /// Returns the path of the configuration file.
    pub(crate) fn file(&self) -> String {
        self.dir.join("config.yaml").display().to_string()
    }
}
