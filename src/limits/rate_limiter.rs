//! The pace of calls under one limit.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::domain::fleet::lease;
use crate::domain::tick::Tick;
use crate::fleet::Pace;

/// How much later than another a call may reach the wire after its permit.
const JITTER: Duration = Duration::from_millis(50);
/// One part in so many of a second's calls may go at once.
const BURST_PART: u32 = 50;

/// Burst and interval that keep every second at `per_second` calls or fewer.
pub(crate) fn pace(per_second: NonZeroU32) -> (NonZeroU32, Duration) {
    pace_within(per_second, JITTER)
}

/// The pace that a whole fleet keeps: its permits are used within a life after their moment.
pub(super) fn fleet_pace(per_second: NonZeroU32) -> Pace {
    let (burst, interval) = pace_within(per_second, JITTER + lease::LIFE);
    Pace { interval, burst: burst.get() }
}

/// The same where calls may leave up to `late` after their moment.
fn pace_within(per_second: NonZeroU32, late: Duration) -> (NonZeroU32, Duration) {
    let burst = NonZeroU32::new(per_second.get() / BURST_PART).unwrap_or(NonZeroU32::MIN);
    let window = (Duration::from_secs(1) + late).as_nanos() as u64;
    let intervals = u64::from(per_second.get() - burst.get()) + 1;
    (burst, Duration::from_nanos(window / intervals + 1))
}

/// How much of a limit a pacer gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum LimitShare {
    /// All of it.
    Whole,
    /// What a replica has alone, above 0 and up to 1.
    Share(f64),
    /// The pace of the fleet, whose permits it does not give itself: it only foretells.
    Fleet,
}

/// GCRA for one rate.
#[derive(Debug)]
pub(super) struct CommandLimiter<C: Clock> {
    limiter: RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>,
    clock: C,
    burst: NonZeroU32,
    interval: Duration,
}

impl<C: Clock + Clone> CommandLimiter<C> {
    /// With its burst to spend.
    pub(super) fn new(per_second: NonZeroU32, clock: C) -> Self {
        Self::at(pace(per_second), clock)
    }

    /// With its burst spent, for a part of the limit. A share below one call a second makes its intervals
    /// longer: many replicas alone must not add up to more.
    pub(super) fn part(per_second: NonZeroU32, part: LimitShare, clock: C) -> Self {
        let (burst, interval) = pace(per_second);
        Self::at_rest(
            match part {
                LimitShare::Whole => (burst, interval),
                LimitShare::Share(share) => {
                    let burst = (f64::from(burst.get()) * share) as u32;
                    (NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN), interval.div_f64(share))
                }
                LimitShare::Fleet => {
                    let pace = fleet_pace(per_second);
                    (NonZeroU32::new(pace.burst).unwrap_or(NonZeroU32::MIN), pace.interval)
                }
            },
            clock,
        )
    }

    fn at((burst, interval): (NonZeroU32, Duration), clock: C) -> Self {
        let quota = Quota::with_period(interval).expect("an interval is at least a nanosecond").allow_burst(burst);
        Self { limiter: RateLimiter::direct_with_clock(quota, clock.clone()), clock, burst, interval }
    }

    /// With its burst spent, to take the place of another pacer in the middle of a second.
    #[cfg(test)]
    fn spent(per_second: NonZeroU32, clock: C) -> Self {
        Self::part(per_second, LimitShare::Whole, clock)
    }

    fn at_rest(pace: (NonZeroU32, Duration), clock: C) -> Self {
        let pacer = Self::at(pace, clock);
        let all = pacer.limiter.check_n(pacer.burst);
        debug_assert!(matches!(all, Ok(Ok(()))), "a new pacer has its whole burst");
        pacer
    }

    /// Takes a permit, or says how long there will be none.
    pub(super) fn take(&self) -> Result<(), Duration> {
        self.limiter.check().map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }

    /// When the next permit is to be had if one was to be had at `next` and one is taken `now`.
    pub(super) fn next_after(&self, next: Tick, now: Tick) -> Tick {
        let burst = self.interval.saturating_mul(self.burst.get() - 1);
        let earliest = Tick::from_micros(now.micros().saturating_sub(Tick::NEVER.after(burst).micros()));
        next.max(earliest).after(self.interval)
    }

    /// The time from one permit to the next once the burst is used up.
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

    /// When a caller that always wants more gets its permits, in a time of `span`.
    fn greedy(per_second: u32, span: Duration) -> Vec<Duration> {
        let clock = FakeRelativeClock::default();
        let pacer = CommandLimiter::new(number(per_second), clock.clone());
        let (mut now, mut permits) = (Duration::ZERO, Vec::new());
        while now < span {
            match pacer.take() {
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
    fn no_second_sees_more_than_the_limit_not_even_the_first_and_most_of_it_is_used() {
        for per_second in [1, 2, 3, 5, 10, 19, 20, 39, 40, 50, 100, 200, 1000, 5000] {
            let span = Duration::from_secs(20);
            let permits = greedy(per_second, span);
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
    fn a_share_is_a_share_of_any_limit_and_begins_with_nothing() {
        for (per_second, share) in [(200, 0.25), (200, 1.0), (3, 0.1), (1, 0.25), (10_000, 0.01)] {
            let clock = FakeRelativeClock::default();
            let pacer = CommandLimiter::part(number(per_second), LimitShare::Share(share), clock.clone());
            assert!(pacer.take().is_err(), "{per_second}");
            let (mut permits, span) = (0, Duration::from_secs(40));
            let mut now = Duration::ZERO;
            while now < span {
                match pacer.take() {
                    Ok(()) => permits += 1,
                    Err(wait) => {
                        let wait = wait.max(Duration::from_nanos(1));
                        clock.advance(wait);
                        now += wait;
                    }
                }
            }
            let most = f64::from(per_second) * share * span.as_secs_f64();
            assert!(f64::from(permits) <= most + 1.0, "{permits} of {per_second} at {share}");
            assert!(f64::from(permits) >= 0.9 * most - 1.0, "{permits} of {per_second} at {share}");
        }
    }

    #[test]
    fn any_rate_that_can_be_configured_has_a_pace() {
        for per_second in [1, 7, 1_000_000, 10_000_000, u32::MAX] {
            let (burst, interval) = pace(number(per_second));
            assert!(burst.get() <= per_second && interval > Duration::ZERO);
            CommandLimiter::new(number(per_second), FakeRelativeClock::default()).take().expect("a first permit");
        }
    }

    #[test]
    fn the_next_permit_is_foretold() {
        let pacer = CommandLimiter::new(number(150), FakeRelativeClock::default());
        assert_eq!(pacer.burst.get(), 3);
        let (now, mut next) = (Tick::from_micros(5_000_000), Tick::NEVER);
        for taken in 1..=5 {
            next = pacer.next_after(next, now);
            let wait = next.since(now);
            assert_eq!(wait.is_zero(), taken < 3, "{wait:?} after {taken}");
        }
        assert!(next.since(now) > pacer.interval * 2 && next.since(now) < pacer.interval * 4);
    }

    #[test]
    fn one_that_takes_another_s_place_has_no_burst_left() {
        let clock = FakeRelativeClock::default();
        let pacer = CommandLimiter::spent(number(200), clock.clone());
        let wait = pacer.take().expect_err("nothing is left");
        clock.advance(wait);
        assert!(pacer.take().is_ok());
        assert!(pacer.take().is_err());
    }
}
