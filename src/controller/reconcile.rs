//! The rhythm of a reconciler: a round whenever something changed and every half minute, never faster than it is good for the API
//! server, and later and later while it fails.

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

/// A change that no watch brings, such as the passing of time, is seen after this.
const PERIOD: Duration = Duration::from_secs(30);

/// The least time between two rounds. Bounds what a fight with another writer costs.
const PAUSE: Duration = Duration::from_millis(250);

/// When it is looked again whether everything has arrived.
const SOON: Duration = Duration::from_secs(1);

/// The most time between two rounds that come to nothing.
const LONGEST: Duration = Duration::from_secs(30);

/// How long a round may take. The API server answers in milliseconds, or not at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was right already.
    Right,
    /// Something was written. It may not be the last thing to do.
    Changed,
    /// Somebody else wrote meanwhile: look again.
    Conflict,
    /// Not all of what it rests on has arrived yet: nothing was done.
    Early,
}

/// Brings a round at a time that only the round before knows.
#[derive(Debug, Default)]
pub(super) struct Alarm(watch::Sender<Option<Instant>>);

impl Alarm {
    /// Rings after this time, in place of any other time that was asked for.
    pub(super) fn set(&self, after: Duration) {
        self.0.send_replace(Some(Instant::now() + after));
    }

    /// An item for each time that it rings.
    pub(super) fn rings(&self) -> BoxStream<'static, ()> {
        let rings = stream::unfold((self.0.subscribe(), None), async |(mut asked, rung)| {
            loop {
                // Once for each time that is asked for.
                let next = (*asked.borrow_and_update()).filter(|next| Some(*next) != rung);
                let ring = async {
                    match next {
                        Some(next) => sleep_until(next).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = ring => return Some(((), (asked, next))),
                    changed = asked.changed() => changed.ok()?,
                }
            }
        });
        rings.boxed()
    }
}

/// Does round after round, for as long as it is asked to. Ends when `changes` does. A round that panics has failed: what one pod brings
/// about must not end the other reconcilers. The panic itself is counted and logged where all are.
pub(super) async fn repeat<E: Error + 'static>(
    reconciler: &'static str,
    metrics: &ControllerMetrics,
    changes: impl Stream<Item = ()>,
    mut round: impl AsyncFnMut() -> Result<Outcome, E>,
) {
    let mut changes = std::pin::pin!(changes);
    let mut backoff = PAUSE;
    loop {
        let began = Instant::now();
        let outcome = match timeout(PATIENCE, AssertUnwindSafe(round()).catch_unwind()).await {
            Ok(Ok(Ok(outcome))) => {
                if outcome == Outcome::Conflict {
                    tracing::info!(reconciler, "the API server has something else than was seen, looking again");
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
                tracing::warn!(reconciler, "no answer from the API server within {PATIENCE:?}, trying again");
                None
            }
        };
        let result = match outcome {
            Some(Outcome::Right | Outcome::Changed) => "success",
            Some(Outcome::Conflict) => "conflict",
            Some(Outcome::Early) => "early",
            None => "failure",
        };
        metrics.reconciled(reconciler, result);
        backoff = match result {
            "success" => PAUSE,
            "early" => SOON,
            _ => LONGEST.min(backoff * 2),
        };
        sleep_until(began + backoff).await;
        if outcome == Some(Outcome::Right) {
            tokio::select! {
                change = changes.next() => if change.is_none() { return },
                () = sleep_until(began + PERIOD) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io};

    use super::*;

    /// How many rounds there are in just under a minute that end as `outcome` says.
    async fn rounds(changes: impl Stream<Item = ()>, outcome: impl Fn() -> Result<Outcome, io::Error>) -> u32 {
        let (metrics, rounds) = (ControllerMetrics::default(), Cell::new(0));
        let round = async || {
            rounds.set(rounds.get() + 1);
            outcome()
        };
        let _ = timeout(Duration::from_secs(59), repeat("test", &metrics, changes, round)).await;
        rounds.get()
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_a_round_every_half_minute_and_at_each_change_but_never_a_hot_loop() {
        let four_a_second = 230..240;
        assert_eq!(rounds(stream::pending(), || Ok(Outcome::Right)).await, 2);
        assert!(four_a_second.contains(&rounds(stream::repeat(()), || Ok(Outcome::Right)).await));
        // What was changed is looked at again at once, for it may not be the last thing to do.
        assert!(four_a_second.contains(&rounds(stream::pending(), || Ok(Outcome::Changed)).await));
        for outcome in [|| Ok(Outcome::Conflict), || Err(io::Error::other("down")), || panic!("a bug")] {
            let in_vain = rounds(stream::repeat(()), outcome).await;
            assert!((6..=8).contains(&in_vain), "{in_vain}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_rings_once_at_the_time_that_was_asked_for_last() {
        let alarm = Alarm::default();
        let (mut rings, start) = (alarm.rings(), Instant::now());
        alarm.set(Duration::from_secs(60));
        alarm.set(Duration::from_secs(7));
        rings.next().await;
        assert_eq!(start.elapsed().as_secs(), 7);
        assert!(timeout(Duration::from_secs(600), rings.next()).await.is_err());
        alarm.set(Duration::from_secs(1));
        assert!(timeout(Duration::from_secs(2), rings.next()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_that_hangs_is_given_up() {
        let (metrics, rounds) = (ControllerMetrics::default(), Cell::new(0));
        let round = async || {
            rounds.set(rounds.get() + 1);
            std::future::pending::<Result<Outcome, io::Error>>().await
        };
        let _ = timeout(Duration::from_secs(60), repeat("test", &metrics, stream::pending(), round)).await;
        assert!(rounds.get() >= 3, "{}", rounds.get());
    }
}
