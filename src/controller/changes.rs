//! Streams of changes that start rounds.

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::sync::watch;

/// Returns a stream with an item for each change of a value.
pub(super) fn changes_of<T: Send + Sync + 'static>(value: watch::Receiver<T>) -> BoxStream<'static, ()> {
    let changes = stream::unfold(value, async |mut value| {
        value.changed().await.ok()?;
        Some(((), value))
    });
    changes.boxed()
}
