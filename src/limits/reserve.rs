//! What callers of class `batch` leave to interactive callers: the reserve of a command's rate (`app.quota.reserve`).
//!
//! Batch calls and refreshes together never exceed the rate without the reserve, in any second. They keep a pace of their
//! own for that, next to the pace of all calls, which all classes share.

use std::num::NonZeroU32;
use std::time::Duration;

use super::rate_limiter::{LimitShare, next_after};
use crate::domain::caller::Class;
use crate::domain::tick::Tick;

/// The rates of one command, in calls per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CommandRate {
    /// Of all calls.
    pub(crate) per_second: NonZeroU32,
    /// The part that batch calls leave alone; less than `per_second`.
    pub(crate) reserve: u32,
}

impl CommandRate {
    /// Returns the rate of batch calls while the limit is `limit`. A lowered limit lowers the reserve in proportion.
    fn of_batch(self, limit: u32) -> NonZeroU32 {
        let reserve = u64::from(self.reserve) * u64::from(limit) / u64::from(self.per_second.get());
        let left = u64::from(limit).saturating_sub(reserve);
        u32::try_from(left).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN)
    }
}

/// The permits that classes have taken, as far as they matter for batch calls.
#[derive(Debug)]
pub(super) struct TakenPermits {
    /// When the next batch call may go, as far as the reserve is concerned.
    next_batch: Tick,
    interactive: RecentRate,
}

impl TakenPermits {
    pub(super) fn new() -> Self {
        Self { next_batch: Tick::NEVER, interactive: RecentRate::default() }
    }

    /// Returns when the reserve lets the next call of this class go.
    pub(super) fn next_at(&self, class: Class) -> Tick {
        match class {
            Class::Interactive => Tick::NEVER,
            Class::Batch | Class::Refresh => self.next_batch,
        }
    }

    /// Records a permit.
    pub(super) fn record(&mut self, class: Class, rate: CommandRate, limit: u32, share: LimitShare, now: Tick) {
        match class {
            Class::Interactive => self.interactive.count(now),
            Class::Batch | Class::Refresh if rate.reserve > 0 => {
                self.next_batch = next_after(share.pace(rate.of_batch(limit)), self.next_batch, now);
            }
            Class::Batch | Class::Refresh => {}
        }
    }

    /// Returns the expected time between two permits of a class, if `interval` is the time between any two at `limit`.
    /// Batch calls get what the reserve, or the interactive calls of the last second, leave of the limit.
    pub(super) fn interval(
        &self,
        class: Class,
        rate: CommandRate,
        limit: u32,
        interval: Duration,
        now: Tick,
    ) -> Duration {
        if class == Class::Interactive {
            return interval;
        }
        let left = limit.saturating_sub(self.interactive.per_second(now)).min(rate.of_batch(limit).get()).max(1);
        interval.saturating_mul(limit) / left
    }
}

/// How many events there were in about the last second.
#[derive(Debug, Default)]
struct RecentRate {
    /// When the current second began.
    begun: Tick,
    current: u32,
    previous: u32,
}

impl RecentRate {
    const SECOND: Duration = Duration::from_secs(1);

    fn count(&mut self, now: Tick) {
        let since = now.since(self.begun);
        if since >= Self::SECOND {
            self.previous = if since < 2 * Self::SECOND { self.current } else { 0 };
            (self.begun, self.current) = (now, 0);
        }
        self.current = self.current.saturating_add(1);
    }

    /// Returns the events of the current second, and the part of the previous ones that the last second still covers.
    fn per_second(&self, now: Tick) -> u32 {
        let since = now.since(self.begun);
        let (current, previous) = match since {
            _ if since < Self::SECOND => (self.current, self.previous),
            _ if since < 2 * Self::SECOND => (0, self.current),
            _ => return 0,
        };
        let into_second = since.as_secs_f64().fract();
        current.saturating_add((f64::from(previous) * (1.0 - into_second)) as u32)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: u32, reserve: u32) -> CommandRate {
        CommandRate { per_second: NonZeroU32::new(per_second).expect("not 0"), reserve }
    }

    fn at(millis: u64) -> Tick {
        Tick::from_micros(1_000_000 + millis * 1000)
    }

    #[test]
    fn lowered_limit_lowers_the_reserve_in_proportion() {
        let rate = rate(200, 20);
        let batch = [200, 100, 10, 5, 1].map(|limit| rate.of_batch(limit).get());
        assert_eq!(batch, [180, 90, 9, 5, 1]);
    }

    #[test]
    fn batch_calls_and_refreshes_share_one_pace_that_interactive_calls_leave_alone() {
        let reserved = rate(200, 100);
        for class in [Class::Batch, Class::Refresh] {
            let mut taken = TakenPermits::new();
            (0..50).for_each(|now| taken.record(Class::Interactive, reserved, 200, LimitShare::Whole, at(now)));
            assert!(taken.next_at(Class::Batch) <= at(0), "interactive calls count apart");
            (0..10).for_each(|_| taken.record(class, reserved, 200, LimitShare::Whole, at(50)));
            assert!(Class::ALL.map(|other| taken.next_at(other) > at(50)) == [false, true, true], "{class:?}");
        }
    }

    #[test]
    fn batch_interval_follows_reserve_and_recent_interactive_permits() {
        let (plain, reserved, interval) = (rate(200, 0), rate(200, 20), Duration::from_millis(5));
        let mut taken = TakenPermits::new();
        let of = |taken: &TakenPermits, rate, now| taken.interval(Class::Batch, rate, 200, interval, at(now));
        assert_eq!(of(&taken, plain, 0), interval);
        assert_eq!(of(&taken, reserved, 0), interval * 200 / 180);
        (0..1000).step_by(10).for_each(|now| taken.record(Class::Interactive, plain, 200, LimitShare::Whole, at(now)));
        assert_eq!(of(&taken, plain, 990), interval * 2, "100 a second are left");
        assert_eq!(of(&taken, reserved, 990), interval * 2, "they used the reserve");
        assert_eq!(of(&taken, plain, 1500), interval * 200 / 150, "the rate decays");
        assert_eq!(of(&taken, plain, 5000), interval);
        assert_eq!(taken.interval(Class::Interactive, reserved, 200, interval, at(990)), interval);
        (0..1000).for_each(|now| taken.record(Class::Interactive, plain, 200, LimitShare::Whole, at(6000 + now)));
        assert_eq!(of(&taken, plain, 6999), interval * 200, "one a second at least");
    }

    proptest! {
        /// Whenever batch calls ask, no second has more of them than the rate without the reserve, and calls that ask
        /// all the time get nearly all of it.
        #[test]
        fn batch_leaves_the_reserve_alone_in_every_second(
            per_second in 1..400_u32,
            part in 1..100_u32,
            pauses in proptest::collection::vec(0..200_u64, 0..20),
        ) {
            let rate = rate(per_second, per_second * part / 100);
            let left = rate.of_batch(per_second).get();
            let (mut taken, mut permits) = (TakenPermits::new(), Vec::new());
            let mut ask_until = |taken: &mut TakenPermits, from: u64, until: u64| {
                for now in from..until {
                    if taken.next_at(Class::Batch) <= at(now) {
                        taken.record(Class::Batch, rate, per_second, LimitShare::Whole, at(now));
                        permits.push(now);
                    }
                }
            };
            let mut now = 0;
            for pause in pauses {
                ask_until(&mut taken, now, now + 50);
                now += 50 + pause;
            }
            ask_until(&mut taken, now, now + 4000);
            if rate.reserve > 0 {
                for (first, at) in permits.iter().enumerate() {
                    let in_a_second = permits[first..].iter().take_while(|other| **other - at < 1000).count();
                    prop_assert!(in_a_second <= left as usize, "{in_a_second} of {left}");
                }
                let late = permits.iter().filter(|permit| **permit >= now).count();
                // A driver that asks once a millisecond loses up to that much of each interval.
                prop_assert!(late as f64 >= 4.0 * f64::from(left) / 1.05 / (1.0 + f64::from(left) / 1000.0) - 2.0, "{late} of {left}/s");
            }
        }
    }
}
