//! Streams of changes that start rounds.

use futures_util::{
    Stream, StreamExt, future,
    stream::{self, BoxStream},
};
use kube::runtime::watcher::Error as WatchError;
use tokio::sync::watch;

use crate::telemetry::Causes;

/// An item for each change of a value.
pub(super) fn changes_of<T: Send + Sync + 'static>(value: watch::Receiver<T>) -> BoxStream<'static, ()> {
    let changes = stream::unfold(value, async |mut value| {
        value.changed().await.ok()?;
        Some(((), value))
    });
    changes.boxed()
}

/// An item for each event of a watch.
pub(super) fn watch_changes<K>(
    kind: &'static str,
    watched: impl Stream<Item = Result<K, WatchError>> + Send + 'static,
) -> BoxStream<'static, ()> {
    let changes = watched.filter_map(move |seen| {
        let error = seen.err();
        if let Some(error) = &error {
            tracing::warn!(kind, error = %Causes(error), "watch interrupted, trying again");
        }
        future::ready(error.is_none().then_some(()))
    });
    changes.boxed()
}
