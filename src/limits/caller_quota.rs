//! A caller's share: calls to Chat that it may cause in a second.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::rate_limiter::pace;
use crate::domain::tick::Tick;

/// One caller's share, at the pace of a command's quota: in no second does it grant more.
///
/// Who wants a call reserves the next free moment and waits for it by himself, so there is no line to
/// keep and the longest wait is known at once. (GCRA, granted ahead of its time.) A moment that is
/// reserved and not used is lost.
#[derive(Debug)]
pub struct CallerQuota {
    per_second: NonZeroU32,
    /// In nanoseconds.
    interval: u64,
    /// How much may be granted at once after a rest, less one, in nanoseconds of interval.
    credit: u64,
    /// The next free moment, or one that has passed: nanoseconds on the clock of [`Tick`].
    next: AtomicU64,
}

impl CallerQuota {
    /// With its burst to spend.
    pub fn new(per_second: NonZeroU32) -> Self {
        let (burst, interval) = pace(per_second);
        let interval = nanos(interval);
        Self {
            per_second,
            interval,
            credit: interval.saturating_mul(u64::from(burst.get() - 1)),
            next: AtomicU64::new(0),
        }
    }

    /// With nothing to spend at `now`, to take the place of another share.
    pub fn spent(per_second: NonZeroU32, now: Tick) -> Self {
        let mut share = Self::new(per_second);
        let first = now.micros().saturating_mul(1000).saturating_add(share.interval);
        *share.next.get_mut() = first;
        share
    }

    /// Calls a second.
    pub fn per_second(&self) -> NonZeroU32 {
        self.per_second
    }

    /// Reserves so many calls.
    ///
    /// # Errors
    /// How long to wait from `now` until the last of them could go, if that is longer than `patience`. Then
    /// nothing is reserved.
    pub fn reserve(&self, calls: u32, now: Tick, patience: Duration) -> Result<Reservation, Duration> {
        let Some(further) = calls.checked_sub(1) else { return Ok(Reservation::default()) };
        let now = now.micros().saturating_mul(1000);
        let last = |next: u64| {
            let first = next.max(now.saturating_sub(self.credit));
            first.saturating_add(self.interval.saturating_mul(u64::from(further)))
        };
        let wait = |next: u64| Duration::from_nanos(last(next).saturating_sub(now));
        let reserved = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            (wait(next) <= patience).then(|| last(next).saturating_add(self.interval))
        });
        let reserved = reserved.map_err(wait)?;
        let (first, next) =
            (reserved.max(now.saturating_sub(self.credit)), last(reserved).saturating_add(self.interval));
        Ok(Reservation { wait: wait(reserved), first, next })
    }

    /// Takes back what will not be used, unless more was reserved since: who reserved behind it keeps the moment
    /// that was promised, and granting the one before it twice would break the pace.
    pub fn give_back(&self, reserved: Reservation) {
        let Reservation { first, next, .. } = reserved;
        if next > 0 {
            let _ = self.next.compare_exchange(next, first, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whether so many calls could be had within `patience` after a rest.
    pub fn can_ever(&self, calls: u32, patience: Duration) -> bool {
        let needed = self.interval.saturating_mul(u64::from(calls.saturating_sub(1)));
        needed.saturating_sub(self.credit) <= nanos(patience)
    }
}

/// Calls that were reserved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reservation {
    /// How long to wait until the last of them may go.
    pub wait: Duration,
    /// The moment of the first of them, and the first free one behind them; 0 if there are none.
    first: u64,
    next: u64,
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn share(per_second: u32) -> CallerQuota {
        CallerQuota::new(NonZeroU32::new(per_second).expect("not 0"))
    }

    fn at(millis: u64) -> Tick {
        Tick::from_micros(10_000_000 + millis * 1000)
    }

    #[test]
    fn no_second_sees_more_than_the_share_and_most_of_it_is_used() {
        for per_second in [1, 2, 10, 50, 100, 1000] {
            let share = share(per_second);
            let waits: Vec<Duration> =
                (0..per_second * 5).map(|_| share.reserve(1, at(0), LONG).expect("a long patience").wait).collect();
            for (first, wait) in waits.iter().enumerate() {
                let in_a_second = waits[first..].iter().take_while(|other| **other - *wait <= Duration::from_secs(1));
                assert!(in_a_second.count() <= per_second as usize, "{per_second} from the {first}th on");
            }
            let span = waits[waits.len() - 1].as_secs_f64();
            assert!(waits.len() as f64 / span >= 0.9 * f64::from(per_second), "{per_second}: {span} s");
        }
    }

    #[test]
    fn after_a_rest_a_burst_may_go_at_once_and_no_more() {
        let share = share(150);
        assert_eq!(share.reserve(3, at(0), LONG).map(|reserved| reserved.wait), Ok(Duration::ZERO));
        let wait = share.reserve(1, at(0), LONG).expect("a long patience").wait;
        assert!(wait > Duration::ZERO && wait < Duration::from_millis(10), "{wait:?}");
        assert_eq!(share.reserve(3, at(60_000), LONG).map(|reserved| reserved.wait), Ok(Duration::ZERO));
        assert!(share.reserve(1, at(60_000), LONG).is_ok_and(|reserved| !reserved.wait.is_zero()));
    }

    #[test]
    fn what_comes_too_late_is_refused_at_once_and_reserves_nothing() {
        let share = share(1);
        assert_eq!(share.reserve(1, at(0), Duration::ZERO).map(|reserved| reserved.wait), Ok(Duration::ZERO));
        let wait = share.reserve(1, at(0), Duration::from_millis(500)).expect_err("a second");
        assert!(wait > Duration::from_secs(1) && wait < Duration::from_millis(1100), "{wait:?}");
        for _ in 0..1000 {
            assert_eq!(share.reserve(1, at(0), Duration::from_millis(500)), Err(wait));
        }
        assert!(share.reserve(5, at(0), LONG).expect("a long patience").wait > Duration::from_secs(5));
    }

    #[test]
    fn what_is_given_back_can_be_had_again_unless_somebody_reserved_behind_it() {
        let share = share(1);
        let first = share.reserve(1, at(0), LONG).expect("it is free");
        share.give_back(first);
        assert_eq!(share.reserve(1, at(0), Duration::ZERO), Ok(first));
        let second = share.reserve(3, at(0), LONG).expect("a long patience");
        share.give_back(second);
        assert_eq!(share.reserve(3, at(0), LONG), Ok(second));
        let third = share.reserve(1, at(0), LONG).expect("a long patience");
        share.give_back(second);
        assert!(share.reserve(1, at(0), LONG).is_ok_and(|fourth| fourth.wait > third.wait));
        share.give_back(Reservation::default());
        assert!(share.reserve(1, at(0), Duration::ZERO).is_err());
    }

    #[test]
    fn it_is_known_what_no_patience_of_that_length_can_ever_get() {
        let share = share(2);
        let patience = Duration::from_secs(2);
        for calls in 0..10 {
            let fresh = super::tests::share(2);
            assert_eq!(share.can_ever(calls, patience), fresh.reserve(calls, at(0), patience).is_ok(), "{calls}");
        }
    }

    #[test]
    fn nothing_costs_nothing() {
        let share = share(1);
        share.reserve(100, at(0), LONG).expect("a long patience");
        assert_eq!(share.reserve(0, at(0), Duration::ZERO), Ok(Reservation::default()));
    }

    #[test]
    fn no_rate_and_no_moment_overflows() {
        for per_second in [1, u32::MAX] {
            let share = share(per_second);
            let end = Tick::from_micros(u64::MAX);
            assert!(share.reserve(u32::MAX, end, LONG).is_ok() || share.reserve(1, end, LONG).is_ok());
            assert!(share.reserve(1, Tick::NEVER, Duration::ZERO).is_err());
        }
    }
}
