//! Tasks that go on for as long as the process does.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use tokio::time;

const PAUSE: Duration = Duration::from_secs(5);

/// Runs a task, and runs it anew when it ends in a panic: a watch that is gone would leave a cache behind that grows old in silence.
/// The panic itself is counted and logged where all are.
pub(crate) async fn again_after_panic(task: impl AsyncFn()) {
    while AssertUnwindSafe(task()).catch_unwind().await.is_err() {
        time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_begins_anew() {
        let begun = Cell::new(0);
        again_after_panic(async || {
            begun.set(begun.get() + 1);
            assert!(begun.get() > 2, "a bug");
        })
        .await;
        assert_eq!(begun.get(), 3);
    }
}
