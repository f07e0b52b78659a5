//! The loop of a reconciler. Runs a round after each change and every 30 s, with a minimum interval, and with backoff after a failure.

use std::{error::Error, panic::AssertUnwindSafe, time::Duration};

use futures_util::{
    FutureExt, Stream, StreamExt,
    stream::{self, BoxStream},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use crate::telemetry::{Causes, ControllerMetrics};

/// The most time between two rounds, if nothing changes.
const RESYNC_PERIOD: Duration = Duration::from_secs(30);

/// The least time between two rounds. Limits the load while another client keeps undoing the controller's writes.
const MIN_INTERVAL: Duration = Duration::from_millis(250);

/// The time between two rounds while an input has not arrived.
const SYNC_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The most time between two failed rounds.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The timeout of a round. The API server usually responds in milliseconds, or not at all.
const ROUND_TIMEOUT: Duration = Duration::from_secs(10);

/// The result of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing had to change.
    UpToDate,
    /// The round wrote an object. Another round may be necessary.
    Changed,
    /// Another client wrote at the same time. The next round observes again.
    Conflict,
    /// An input has not arrived yet, so the round did nothing.
    NotSynced,
}

impl Outcome {
    /// Label of metric `spillway_reconciles`; a closed set.
    fn label(self) -> &'static str {
        match self {
            Self::UpToDate | Self::Changed => "success",
            Self::Conflict => "conflict",
            Self::NotSynced => "early",
        }
    }
}

/// The outcome of a round over many objects: its first error, or else a conflict, or else a change.
#[derive(Debug)]
pub(super) struct CombinedOutcome<E>(Result<Outcome, E>);

impl<E> Default for CombinedOutcome<E> {
    fn default() -> Self {
        Self(Ok(Outcome::UpToDate))
    }
}

impl<E> CombinedOutcome<E> {
    pub(super) fn add(&mut self, outcome: Result<Outcome, E>) {
        match (&self.0, outcome) {
            (Err(_), _) | (_, Ok(Outcome::UpToDate)) | (Ok(Outcome::Conflict), Ok(_)) => {}
            (_, outcome) => self.0 = outcome,
        }
    }

    pub(super) fn outcome(self) -> Result<Outcome, E> {
        self.0
    }
}

/// Starts a round at the time that the previous round requested.
#[derive(Debug, Default)]
pub(super) struct Requeue(watch::Sender<Option<Instant>>);

impl Requeue {
    /// Sets the time of the next round, and replaces any earlier request.
    pub(super) fn after(&self, duration: Duration) {
        self.0.send_replace(Some(Instant::now() + duration));
    }

    /// Returns a stream with an item each time that a round is due.
    pub(super) fn due(&self) -> BoxStream<'static, ()> {
        let due = stream::unfold((self.0.subscribe(), None), async |(mut requested, last)| {
            loop {
                // Each requested time starts one round.
                let next = (*requested.borrow_and_update()).filter(|next| Some(*next) != last);
                let reached = async {
                    match next {
                        Some(next) => sleep_until(next).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = reached => return Some(((), (requested, next))),
                    changed = requested.changed() => changed.ok()?,
                }
            }
        });
        due.boxed()
    }
}

/// Runs rounds until `changes` ends.
///
/// A round that panics counts as failed, so that the other reconcilers continue. The panic hook counts and logs the panic.
pub(super) async fn run_rounds<E: Error + 'static>(
    reconciler: &'static str,
    metrics: &ControllerMetrics,
    changes: impl Stream<Item = ()>,
    mut round: impl AsyncFnMut() -> Result<Outcome, E>,
) {
    let mut changes = std::pin::pin!(changes);
    let mut backoff = MIN_INTERVAL;
    loop {
        let started = Instant::now();
        let outcome = run_round(reconciler, &mut round).await;
        metrics.reconciled(reconciler, outcome.map_or("failure", Outcome::label));
        backoff = match outcome {
            Some(Outcome::UpToDate | Outcome::Changed) => MIN_INTERVAL,
            Some(Outcome::NotSynced) => SYNC_POLL_INTERVAL,
            Some(Outcome::Conflict) | None => MAX_BACKOFF.min(backoff * 2),
        };
        sleep_until(started + backoff).await;
        if outcome == Some(Outcome::UpToDate) {
            tokio::select! {
                change = changes.next() => if change.is_none() { return },
                () = sleep_until(started + RESYNC_PERIOD) => {}
            }
        }
    }
}

/// Runs one round, and logs any failure. Returns `None` if the round failed.
async fn run_round<E: Error + 'static>(
    reconciler: &'static str,
    round: &mut impl AsyncFnMut() -> Result<Outcome, E>,
) -> Option<Outcome> {
    match timeout(ROUND_TIMEOUT, AssertUnwindSafe(round()).catch_unwind()).await {
        Ok(Ok(Ok(outcome))) => {
            if outcome == Outcome::Conflict {
                tracing::info!(reconciler, "another client wrote at the same time, retrying");
            }
            Some(outcome)
        }
        Ok(Ok(Err(error))) => {
            tracing::warn!(reconciler, error = %Causes(&error), "reconciler failed, trying again");
            None
        }
        Ok(Err(_panic)) => {
            tracing::warn!(reconciler, "reconciler panicked, trying again");
            None
        }
        Err(_elapsed) => {
            tracing::warn!(reconciler, "no response from the API server within {ROUND_TIMEOUT:?}, retrying");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io};

    use super::*;

    /// Returns the number of rounds in just under a minute, if each round has this outcome.
    async fn rounds(changes: impl Stream<Item = ()>, outcome: impl Fn() -> Result<Outcome, io::Error>) -> u32 {
        let (metrics, rounds) = (ControllerMetrics::default(), Cell::new(0));
        let round = async || {
            rounds.set(rounds.get() + 1);
            outcome()
        };
        let _ = timeout(Duration::from_secs(59), run_rounds("test", &metrics, changes, round)).await;
        rounds.get()
    }

    #[tokio::test(start_paused = true)]
    async fn rounds_follow_changes_and_the_resync_period_within_limits() {
        let four_a_second = 230..240;
        assert_eq!(rounds(stream::pending(), || Ok(Outcome::UpToDate)).await, 2);
        assert!(four_a_second.contains(&rounds(stream::repeat(()), || Ok(Outcome::UpToDate)).await));
        // After a change the next round starts at once, because more changes may be necessary.
        assert!(four_a_second.contains(&rounds(stream::pending(), || Ok(Outcome::Changed)).await));
        for outcome in [|| Ok(Outcome::Conflict), || Err(io::Error::other("down")), || panic!("a bug")] {
            let failing = rounds(stream::repeat(()), outcome).await;
            assert!((6..=8).contains(&failing), "{failing}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_requeue_is_due_once_at_the_time_set_last() {
        let requeue = Requeue::default();
        let (mut due, start) = (requeue.due(), Instant::now());
        requeue.after(Duration::from_secs(60));
        requeue.after(Duration::from_secs(7));
        due.next().await;
        assert_eq!(start.elapsed().as_secs(), 7);
        assert!(timeout(Duration::from_secs(600), due.next()).await.is_err());
        requeue.after(Duration::from_secs(1));
        assert!(timeout(Duration::from_secs(2), due.next()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_that_hangs_times_out() {
        let (metrics, rounds) = (ControllerMetrics::default(), Cell::new(0));
        let round = async || {
            rounds.set(rounds.get() + 1);
            std::future::pending::<Result<Outcome, io::Error>>().await
        };
        let _ = timeout(Duration::from_secs(60), run_rounds("test", &metrics, stream::pending(), round)).await;
        assert!(rounds.get() >= 3, "{}", rounds.get());
    }

    #[test]
    fn a_combined_outcome_is_the_first_error_or_conflict_or_change() {
        let combine = |outcomes: &[Result<Outcome, u8>]| {
            let mut combined = CombinedOutcome::default();
            for outcome in outcomes {
                combined.add(*outcome);
            }
            combined.outcome()
        };
        let (unchanged, changed, conflict) = (Ok(Outcome::UpToDate), Ok(Outcome::Changed), Ok(Outcome::Conflict));
        assert_eq!(combine(&[unchanged, unchanged]), unchanged);
        assert_eq!(combine(&[unchanged, changed, unchanged]), changed);
        assert_eq!(combine(&[changed, conflict, changed]), conflict);
        assert_eq!(combine(&[conflict, Err(1), changed, Err(2)]), Err(1));
    }
}
