//! How fast requests follow each other.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{self, Instant};

/// Lets requests through at a steady pace, a few at once at first, and none while Azure asks for a pause.
pub(super) struct Pace {
    every: Duration,
    at_once: u32,
    times: Mutex<Times>,
}

#[derive(Clone, Copy)]
struct Times {
    /// When the requests let through so far are paid for.
    paid: Instant,
    paused_until: Instant,
}

impl Pace {
    pub(super) fn new(every: Duration, at_once: u32) -> Self {
        let now = Instant::now();
        Self { every, at_once, times: Mutex::new(Times { paid: now, paused_until: now }) }
    }

    /// Waits for its turn; false if that would be after the deadline.
    pub(super) async fn turn(&self, deadline: Instant) -> bool {
        let Some(mut start) = self.book(deadline) else { return false };
        loop {
            time::sleep_until(start).await;
            // Somebody may have been asked for a pause meanwhile.
            start = self.times().paused_until;
            if start <= Instant::now() {
                return true;
            }
            if start > deadline {
                return false;
            }
        }
    }

    /// Nobody asks for this long.
    pub(super) fn pause(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.paused_until = times.paused_until.max(until);
    }

    fn book(&self, deadline: Instant) -> Option<Instant> {
        let now = Instant::now();
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let paid = times.paid.max(now);
        let earliest = paid.checked_sub(self.every * self.at_once.saturating_sub(1)).unwrap_or(now);
        let start = earliest.max(now).max(times.paused_until);
        if start > deadline {
            return None;
        }
        times.paid = paid + self.every;
        Some(start)
    }

    fn times(&self) -> Times {
        *self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_go_at_once_and_the_others_at_a_steady_pace() {
        let (pace, start) = (Pace::new(Duration::from_millis(500), 4), Instant::now());
        let deadline = start + Duration::from_secs(60);
        let mut times = Vec::new();
        for _ in 0..8 {
            assert!(pace.turn(deadline).await);
            times.push(start.elapsed().as_millis());
        }
        let in_a_second = |from: u128| times.iter().filter(|time| (from..from + 1_000).contains(*time)).count();
        assert_eq!((in_a_second(0), in_a_second(1_000)), (5, 2), "{times:?}");
        time::sleep(Duration::from_secs(20)).await;
        let rested = Instant::now();
        for _ in 0..5 {
            assert!(pace.turn(deadline).await);
        }
        assert!(rested.elapsed() >= Duration::from_millis(490), "rest is not saved up: {:?}", rested.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_goes_during_a_pause_nor_after_the_deadline() {
        let (pace, start) = (Pace::new(Duration::from_millis(500), 1), Instant::now());
        let deadline = start + Duration::from_secs(10);
        assert!(pace.turn(deadline).await);
        let waiting = pace.turn(deadline);
        let pausing = async {
            pace.pause(Duration::from_secs(7));
            start.elapsed()
        };
        let (went, _) = tokio::join!(waiting, pausing);
        assert!(went && start.elapsed() >= Duration::from_secs(7), "{:?}", start.elapsed());
        pace.pause(Duration::from_secs(60));
        assert!(!pace.turn(deadline).await);
        assert!(start.elapsed() < Duration::from_secs(8), "it is told at once");
    }
}
