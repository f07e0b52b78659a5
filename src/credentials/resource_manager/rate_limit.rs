//! The rate limit of requests.

use std::{
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use governor::{
    Quota,
    clock::Clock,
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};
use tokio::time::{self, Instant};

/// Limits the rate of requests, and delays all of them after a `Retry-After`.
///
/// Azure throttles a subscription or a tenant, so a `Retry-After` applies to every later request.
pub(super) struct RateLimiter {
    quota: governor::RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Duration>>,
    clock: TokioClock,
    paused_until: Mutex<Instant>,
}

/// The clock of tokio, which tests can pause.
#[derive(Clone, Copy)]
struct TokioClock {
    start: Instant,
}

impl Clock for TokioClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

impl RateLimiter {
    /// Creates a limiter that allows one request per interval, and bursts. An interval of zero means no limit.
    pub(super) fn new(interval: Duration, burst: NonZeroU32) -> Self {
        let quota = Quota::with_period(interval).unwrap_or_else(|| Quota::per_second(NonZeroU32::MAX));
        let clock = TokioClock { start: Instant::now() };
        Self {
            quota: governor::RateLimiter::direct_with_clock(quota.allow_burst(burst), clock),
            clock,
            paused_until: Mutex::new(clock.start),
        }
    }

    /// Waits until a request is allowed. Returns `false` without waiting if this time is after the deadline.
    pub(super) async fn acquire(&self, deadline: Instant) -> bool {
        loop {
            let now = Instant::now();
            let mut allowed_at = self.paused_until().max(now);
            if allowed_at == now && now <= deadline {
                match self.quota.check() {
                    Ok(()) => return true,
                    Err(not_until) => allowed_at += not_until.wait_time_from(self.clock.now()),
                }
            }
            if allowed_at > deadline {
                return false;
            }
            time::sleep_until(allowed_at).await;
        }
    }

    /// Delays all requests for this time.
    pub(super) fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut paused_until = self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        *paused_until = until.max(*paused_until);
    }

    fn paused_until(&self) -> Instant {
        *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(burst: u32) -> RateLimiter {
        RateLimiter::new(Duration::from_millis(500), NonZeroU32::new(burst).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_allowed_and_then_a_steady_rate() {
        let (limiter, start) = (limiter(4), Instant::now());
        let deadline = start + Duration::from_secs(60);
        let mut times = Vec::new();
        for _ in 0..8 {
            assert!(limiter.acquire(deadline).await);
            times.push(start.elapsed().as_millis());
        }
        let in_a_second = |from: u128| times.iter().filter(|time| (from..from + 1_000).contains(*time)).count();
        assert_eq!((in_a_second(0), in_a_second(1_000)), (5, 2), "{times:?}");
        time::sleep(Duration::from_secs(20)).await;
        let idle_until = Instant::now();
        for _ in 0..5 {
            assert!(limiter.acquire(deadline).await);
        }
        assert!(
            idle_until.elapsed() >= Duration::from_millis(490),
            "a burst does not grow: {:?}",
            idle_until.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_request_is_allowed_during_a_pause_or_after_the_deadline() {
        let (limiter, start) = (limiter(1), Instant::now());
        let deadline = start + Duration::from_secs(10);
        assert!(limiter.acquire(deadline).await);
        let waiting = limiter.acquire(deadline);
        let pausing = async {
            limiter.pause(Duration::from_secs(7));
            start.elapsed()
        };
        let (is_allowed, _) = tokio::join!(waiting, pausing);
        assert!(is_allowed && start.elapsed() >= Duration::from_secs(7), "{:?}", start.elapsed());
        limiter.pause(Duration::from_secs(60));
        assert!(!limiter.acquire(deadline).await);
        assert!(start.elapsed() < Duration::from_secs(8), "the limiter refuses without waiting");
    }
}
