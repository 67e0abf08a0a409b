//! The rate limiter under every quota: GCRA with a burst and an interval that keep each second within the limit.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::domain::fleet::lease::{self, Pace};
use crate::domain::tick::Tick;

/// How much the delay from permit to socket may vary between calls.
const JITTER: Duration = Duration::from_millis(50);
/// The burst is this fraction of the calls of a second: one fiftieth, and at least 1.
const BURST_DIVISOR: u32 = 50;

/// Returns the burst and the interval that keep every second at `per_second` calls or fewer.
pub(crate) fn pace(per_second: NonZeroU32) -> (NonZeroU32, Duration) {
    pace_with(per_second, JITTER)
}

/// Returns the pace of a whole fleet, where a permit may be used up to a lease's lifetime after its instant.
pub(super) fn fleet_pace(per_second: NonZeroU32) -> Pace {
    let (burst, interval) = pace_with(per_second, JITTER + lease::LIFE);
    Pace { interval, burst: burst.get() }
}

/// Returns burst and interval if calls may leave up to `delay` after their instant.
fn pace_with(per_second: NonZeroU32, delay: Duration) -> (NonZeroU32, Duration) {
    let burst = NonZeroU32::new(per_second.get() / BURST_DIVISOR).unwrap_or(NonZeroU32::MIN);
    let window = (Duration::from_secs(1) + delay).as_nanos() as u64;
    let intervals = u64::from(per_second.get() - burst.get()) + 1;
    (burst, Duration::from_nanos(window / intervals + 1))
}

/// The part of a limit that a limiter of this replica grants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum LimitShare {
    /// The whole limit: there is no fleet.
    Whole,
    /// The fraction for a disconnected replica, above 0 and up to 1.
    Share(f64),
    /// The pace of the fleet. Redis grants the permits; the limiter only predicts waits.
    Fleet,
}

impl LimitShare {
    /// Returns the pace of this share of a limit. A share below one call per second has longer intervals, so that many
    /// disconnected replicas never add up to more than the limit.
    pub(super) fn pace(self, per_second: NonZeroU32) -> Pace {
        let (burst, interval) = pace(per_second);
        match self {
            LimitShare::Whole => Pace { interval, burst: burst.get() },
            LimitShare::Share(share) => {
                let burst = (f64::from(burst.get()) * share) as u32;
                Pace { interval: interval.div_f64(share), burst: burst.max(1) }
            }
            LimitShare::Fleet => fleet_pace(per_second),
        }
    }
}

/// Returns when the next permit is available if one was available at `next` and one is taken at `now`.
pub(super) fn next_after(pace: Pace, next: Tick, now: Tick) -> Tick {
    next.max(now.before(pace.interval.saturating_mul(pace.burst - 1))).after(pace.interval)
}

/// GCRA with one rate.
#[derive(Debug)]
pub(super) struct CommandLimiter<C: Clock> {
    limiter: RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>,
    clock: C,
    burst: NonZeroU32,
    interval: Duration,
}

impl<C: Clock + Clone> CommandLimiter<C> {
    /// Returns a limiter with its whole burst available.
    pub(super) fn new(per_second: NonZeroU32, clock: C) -> Self {
        let (burst, interval) = pace(per_second);
        Self::with_pace(burst, interval, clock)
    }

    /// Returns a limiter without a burst, so that it can replace another one within a second.
    pub(super) fn exhausted(per_second: NonZeroU32, share: LimitShare, clock: C) -> Self {
        let Pace { burst, interval } = share.pace(per_second);
        let limiter = Self::with_pace(NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN), interval, clock);
        let was_full = limiter.take_burst();
        debug_assert!(was_full, "a new limiter has its whole burst");
        limiter
    }

    fn with_pace(burst: NonZeroU32, interval: Duration, clock: C) -> Self {
        let quota = Quota::with_period(interval).expect("an interval is at least a nanosecond").allow_burst(burst);
        Self { limiter: RateLimiter::direct_with_clock(quota, clock.clone()), clock, burst, interval }
    }

    /// Takes the whole burst at once. Returns `false`, and takes nothing, unless all of it is available.
    pub(super) fn take_burst(&self) -> bool {
        matches!(self.limiter.check_n(self.burst), Ok(Ok(())))
    }

    /// Takes a permit.
    ///
    /// # Errors
    /// The time until the next permit.
    pub(super) fn take(&self) -> Result<(), Duration> {
        self.limiter.check().map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }

    /// Returns when the next permit is available if one was available at `next` and one is taken at `now`.
    pub(super) fn next_after(&self, next: Tick, now: Tick) -> Tick {
        next_after(Pace { interval: self.interval, burst: self.burst.get() }, next, now)
    }

    /// Returns the time between two permits once the burst is used up.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn number(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).expect("not 0")
    }

    /// Takes every permit as soon as it is available, for a time of `span`. Returns the times of the permits.
    fn take_all(
        limiter: &CommandLimiter<FakeRelativeClock>,
        clock: &FakeRelativeClock,
        span: Duration,
    ) -> Vec<Duration> {
        let (mut now, mut permits) = (Duration::ZERO, Vec::new());
        while now < span {
            match limiter.take() {
                Ok(()) => permits.push(now),
                Err(wait) => {
                    let wait = wait.max(Duration::from_nanos(1));
                    clock.advance(wait);
                    now += wait;
                }
            }
        }
        permits
    }

    #[test]
    fn every_second_stays_within_the_limit_and_most_is_used() {
        for per_second in [1, 2, 3, 5, 10, 19, 20, 39, 40, 50, 100, 200, 1000, 5000] {
            let (clock, span) = (FakeRelativeClock::default(), Duration::from_secs(20));
            let permits = take_all(&CommandLimiter::new(number(per_second), clock.clone()), &clock, span);
            let window = Duration::from_secs(1) + JITTER;
            let mut first = 0;
            for (last, at) in permits.iter().enumerate() {
                while *at - permits[first] > window {
                    first += 1;
                }
                assert!(
                    last - first < per_second as usize,
                    "{} calls in a second, limit {per_second}",
                    last - first + 1
                );
            }
            let mean = permits.len() as f64 / span.as_secs_f64();
            assert!(mean >= 0.9 * f64::from(per_second), "{mean} a second of {per_second}");
        }
    }

    #[test]
    fn share_applies_to_any_limit_and_starts_without_burst() {
        for (per_second, share) in [(200, 0.25), (200, 1.0), (3, 0.1), (1, 0.25), (10_000, 0.01)] {
            let (clock, span) = (FakeRelativeClock::default(), Duration::from_secs(40));
            let limiter = CommandLimiter::exhausted(number(per_second), LimitShare::Share(share), clock.clone());
            assert!(limiter.take().is_err(), "{per_second}");
            let permits = take_all(&limiter, &clock, span).len() as f64;
            let most = f64::from(per_second) * share * span.as_secs_f64();
            assert!(permits <= most + 1.0, "{permits} of {per_second} at {share}");
            assert!(permits >= 0.9 * most - 1.0, "{permits} of {per_second} at {share}");
        }
    }

    /// `burst` and then one call per interval fill a window of `window` with exactly `per_second` calls: with an interval
    /// that is a nanosecond shorter, one more would fit.
    fn assert_fills(pace: Pace, per_second: u32, window: Duration) {
        let further = per_second - pace.burst + 1;
        assert!(pace.interval * further > window, "{pace:?} of {per_second}");
        assert!((pace.interval - Duration::from_nanos(1)) * further <= window, "{pace:?} of {per_second}");
    }

    #[test]
    fn pace_fills_a_second_with_its_delays() {
        for (per_second, burst) in [(1, 1), (3, 1), (49, 1), (99, 1), (100, 2), (200, 4), (1000, 20), (5000, 100)] {
            let alone = LimitShare::Whole.pace(number(per_second));
            let fleet = LimitShare::Fleet.pace(number(per_second));
            assert_eq!((alone.burst, fleet.burst), (burst, burst), "{per_second}");
            assert_fills(alone, per_second, Duration::from_millis(1050));
            assert_fills(fleet, per_second, Duration::from_millis(1090));
            assert_eq!(LimitShare::Share(1.0).pace(number(per_second)), alone);
            let quarter = LimitShare::Share(0.25).pace(number(per_second));
            assert_eq!((quarter.burst, quarter.interval), ((burst / 4).max(1), alone.interval * 4), "{per_second}");
        }
    }

    #[test]
    fn every_configurable_rate_has_a_pace() {
        for per_second in [1, 7, 1_000_000, 10_000_000, u32::MAX] {
            let (burst, interval) = pace(number(per_second));
            assert!(burst.get() <= per_second && interval > Duration::ZERO);
            CommandLimiter::new(number(per_second), FakeRelativeClock::default()).take().expect("a first permit");
        }
    }

    #[test]
    fn next_permit_is_predicted() {
        let limiter = CommandLimiter::new(number(150), FakeRelativeClock::default());
        assert_eq!(limiter.burst.get(), 3);
        let (now, mut next) = (Tick::from_micros(5_000_000), Tick::NEVER);
        for taken in 1..=5 {
            next = limiter.next_after(next, now);
            let wait = next.since(now);
            assert_eq!(wait.is_zero(), taken < 3, "{wait:?} after {taken}");
        }
        assert!(next.since(now) > limiter.interval * 2 && next.since(now) < limiter.interval * 4);
    }

    #[test]
    fn replacement_limiter_starts_without_burst() {
        let clock = FakeRelativeClock::default();
        let limiter = CommandLimiter::exhausted(number(200), LimitShare::Whole, clock.clone());
        let wait = limiter.take().expect_err("the burst is taken");
        clock.advance(wait);
        assert!(limiter.take().is_ok());
        assert!(limiter.take().is_err());
    }

    #[test]
    fn burst_is_taken_only_as_a_whole() {
        let clock = FakeRelativeClock::default();
        let limiter = CommandLimiter::new(number(200), clock.clone());
        assert!(limiter.take().is_ok());
        assert!(!limiter.take_burst(), "one permit is missing");
        clock.advance(limiter.interval());
        assert!(limiter.take_burst());
        assert!(limiter.take().is_err());
    }
}
