//! Tasks that run until the process ends.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use tokio::time;

const RESTART_DELAY: Duration = Duration::from_secs(5);

/// Runs a task, and restarts it after a panic. Without a restart, the cache of a panicked watch would become stale
/// unnoticed. The panic hook counts and logs the panic.
pub(crate) async fn restart_on_panic(task: impl AsyncFn()) {
    while AssertUnwindSafe(task()).catch_unwind().await.is_err() {
        time::sleep(RESTART_DELAY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_is_restarted_after_a_panic() {
        let starts = Cell::new(0);
        restart_on_panic(async || {
            starts.set(starts.get() + 1);
            assert!(starts.get() > 2, "a bug");
        })
        .await;
        assert_eq!(starts.get(), 3);
    }
}
