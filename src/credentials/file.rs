//! Files of identities and credentials in the output format of `az`. Each read opens the files again, because mounted
//! files can change.

use std::path::PathBuf;

use futures_util::{FutureExt, future::BoxFuture};
use spillway_identity::{
    az_output,
    managed_identity::{ManagedIdentities, ReadFailure},
};

use super::source::{ClientIds, Source};

/// Files as [`az_output`] describes them.
#[derive(Debug)]
pub struct Files(Vec<PathBuf>);

impl Files {
    /// Creates a source that reads these files.
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self(files)
    }

    async fn read_all(&self) -> ManagedIdentities {
        let mut all = az_output::Files::default();
        let mut failure = None;
        for path in &self.0 {
            let name = path.display().to_string();
            let reason = match tokio::fs::read_to_string(path).await {
                Ok(text) => all.add(&name, &text).err().map(|error| error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(reason) = reason {
                tracing::warn!(file = name, reason, "cannot read a credential file");
                failure = Some(ReadFailure { reason: format!("{name}: {reason}"), action: String::new(), scope: name });
            }
        }
        let identities = all.finish();
        ManagedIdentities { incomplete: failure.or(identities.incomplete), ..identities }
    }
}

impl Source for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn read<'a>(&'a self, _client_ids: &'a ClientIds) -> BoxFuture<'a, ManagedIdentities> {
        self.read_all().boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn files_are_read_again_and_an_invalid_one_hides_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let [good, bad] = ["good.json", "bad.json"].map(|name| folder.path().join(name));
        fs::write(&good, r#"[{"clientId": "c1", "id": null}]"#).unwrap();
        let source = Files::new(vec![bad.clone(), good.clone()]);
        let client_ids = ClientIds::new();
        let read = source.read(&client_ids).await;
        assert_eq!(read.identities.len(), 1);
        let failure = read.incomplete.unwrap();
        assert!(failure.reason.contains("bad.json: No such file"), "{failure:?}");
        fs::write(&bad, "{").unwrap();
        let failure = source.read(&client_ids).await.incomplete.unwrap();
        assert!(failure.reason.contains("bad.json: 1:1: expected JSON"), "{failure:?}");
        fs::write(&bad, r#"{"clientId": "c2"}"#).unwrap();
        let read = source.read(&client_ids).await;
        assert_eq!((read.identities.len(), read.incomplete), (2, None));
    }
}
