//! Files of identities and credentials as `az` prints them, read again each time: they may be mounted, and change.

use std::path::PathBuf;

use futures_util::{FutureExt, future::BoxFuture};

use super::{Source, Wanted};
use crate::identity::{
    azure::{Azure, Unread},
    file,
};

/// Files as [`crate::identity::file`] describes them.
#[derive(Debug)]
pub struct Files(Vec<PathBuf>);

impl Files {
    /// These.
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self(files)
    }

    async fn azure(&self) -> Azure {
        let mut all = file::Files::default();
        let mut unread = None;
        for path in &self.0 {
            let name = path.display().to_string();
            let because = match tokio::fs::read_to_string(path).await {
                Ok(text) => all.add(&name, &text).err().map(|error| error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(because) = because {
                tracing::warn!(file = name, because, "cannot read a file of credentials");
                unread = Some(Unread { because: format!("{name}: {because}"), action: String::new(), scope: name });
            }
        }
        let azure = all.finish();
        Azure { unseen: unread.or(azure.unseen), ..azure }
    }
}

impl Source for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn read<'a>(&'a self, _wanted: &'a Wanted) -> BoxFuture<'a, Azure> {
        self.azure().boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn files_are_read_each_time_and_one_that_cannot_be_read_hides_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let [good, bad] = ["good.json", "bad.json"].map(|name| folder.path().join(name));
        fs::write(&good, r#"[{"clientId": "c1", "id": null}]"#).unwrap();
        let source = Files::new(vec![bad.clone(), good.clone()]);
        let wanted = Wanted::new();
        let azure = source.read(&wanted).await;
        assert_eq!(azure.identities.len(), 1);
        let unread = azure.unseen.unwrap();
        assert!(unread.because.contains("bad.json: No such file"), "{unread:?}");
        fs::write(&bad, "{").unwrap();
        let unread = source.read(&wanted).await.unseen.unwrap();
        assert!(unread.because.contains("bad.json: 1:1: expected JSON"), "{unread:?}");
        fs::write(&bad, r#"{"clientId": "c2"}"#).unwrap();
        let azure = source.read(&wanted).await;
        assert_eq!((azure.identities.len(), azure.unseen), (2, None));
    }
}
