//! The quota of a caller: calls to Chat that it may cause per second.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::rate_limiter::pace;
use crate::domain::tick::Tick;

/// The quota of one caller, at the same pace as the quota of a command: no second exceeds it.
///
/// A request reserves the next free time slots and waits for them itself. There is no queue, and the wait is known in
/// advance. This is GCRA, granted ahead of time. A reserved slot that is not used is lost.
#[derive(Debug)]
pub(crate) struct CallerQuota {
    per_second: NonZeroU32,
    /// Nanoseconds between two calls.
    interval: u64,
    /// The burst less one, in nanoseconds of interval.
    credit: u64,
    /// The next free time slot, possibly in the past: nanoseconds on the clock of [`Tick`].
    next: AtomicU64,
}

impl CallerQuota {
    /// Returns a quota with its whole burst available.
    pub(crate) fn new(per_second: NonZeroU32) -> Self {
        let (burst, interval) = pace(per_second);
        let interval = nanos(interval);
        Self {
            per_second,
            interval,
            credit: interval.saturating_mul(u64::from(burst.get() - 1)),
            next: AtomicU64::new(0),
        }
    }

    /// Returns a quota without a burst at `now`, to replace another one.
    pub(crate) fn spent(per_second: NonZeroU32, now: Tick) -> Self {
        let mut quota = Self::new(per_second);
        let first = now.micros().saturating_mul(1000).saturating_add(quota.interval);
        *quota.next.get_mut() = first;
        quota
    }

    /// Returns the configured calls per second.
    pub(crate) fn per_second(&self) -> NonZeroU32 {
        self.per_second
    }

    /// Reserves `calls` calls.
    ///
    /// # Errors
    /// The time from `now` until the last call could go, if it exceeds `patience`. Then nothing is reserved.
    pub(crate) fn reserve(&self, calls: u32, now: Tick, patience: Duration) -> Result<Reservation, Duration> {
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

    /// Cancels a reservation, unless a later one exists. The later reservation keeps the slot that it was promised,
    /// and granting the canceled slots again would exceed the pace.
    pub(crate) fn cancel(&self, reservation: Reservation) {
        let Reservation { first, next, .. } = reservation;
        if next > 0 {
            let _ = self.next.compare_exchange(next, first, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whether an idle quota could grant `calls` calls within `patience`.
    pub(crate) fn can_ever(&self, calls: u32, patience: Duration) -> bool {
        let needed = self.interval.saturating_mul(u64::from(calls.saturating_sub(1)));
        needed.saturating_sub(self.credit) <= nanos(patience)
    }
}

/// Reserved calls of a caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reservation {
    /// The time until the last reserved call may go.
    pub(crate) wait: Duration,
    /// The slot of the first call, and the next free slot after the last one; 0 if nothing is reserved.
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

    fn quota(per_second: u32) -> CallerQuota {
        CallerQuota::new(NonZeroU32::new(per_second).expect("not 0"))
    }

    fn at(millis: u64) -> Tick {
        Tick::from_micros(10_000_000 + millis * 1000)
    }

    #[test]
    fn every_second_stays_within_the_quota_and_most_is_used() {
        for per_second in [1, 2, 10, 50, 100, 1000] {
            let quota = quota(per_second);
            let waits: Vec<Duration> =
                (0..per_second * 5).map(|_| quota.reserve(1, at(0), LONG).expect("a long patience").wait).collect();
            for (first, wait) in waits.iter().enumerate() {
                let in_a_second = waits[first..].iter().take_while(|other| **other - *wait <= Duration::from_secs(1));
                assert!(in_a_second.count() <= per_second as usize, "{per_second} from the {first}th on");
            }
            let span = waits[waits.len() - 1].as_secs_f64();
            assert!(waits.len() as f64 / span >= 0.9 * f64::from(per_second), "{per_second}: {span} s");
        }
    }

    #[test]
    fn idle_quota_grants_one_burst_at_once() {
        let quota = quota(150);
        assert_eq!(quota.reserve(3, at(0), LONG).map(|reserved| reserved.wait), Ok(Duration::ZERO));
        let wait = quota.reserve(1, at(0), LONG).expect("a long patience").wait;
        assert!(wait > Duration::ZERO && wait < Duration::from_millis(10), "{wait:?}");
        assert_eq!(quota.reserve(3, at(60_000), LONG).map(|reserved| reserved.wait), Ok(Duration::ZERO));
        assert!(quota.reserve(1, at(60_000), LONG).is_ok_and(|reserved| !reserved.wait.is_zero()));
    }

    #[test]
    fn reservation_beyond_patience_is_rejected_and_takes_nothing() {
        let quota = quota(1);
        assert_eq!(quota.reserve(1, at(0), Duration::ZERO).map(|reserved| reserved.wait), Ok(Duration::ZERO));
        let wait = quota.reserve(1, at(0), Duration::from_millis(500)).expect_err("a second");
        assert!(wait > Duration::from_secs(1) && wait < Duration::from_millis(1100), "{wait:?}");
        for _ in 0..1000 {
            assert_eq!(quota.reserve(1, at(0), Duration::from_millis(500)), Err(wait));
        }
        assert!(quota.reserve(5, at(0), LONG).expect("a long patience").wait > Duration::from_secs(5));
    }

    #[test]
    fn canceled_reservation_is_free_again_unless_a_later_one_exists() {
        let quota = quota(1);
        let first = quota.reserve(1, at(0), LONG).expect("a free slot");
        quota.cancel(first);
        assert_eq!(quota.reserve(1, at(0), Duration::ZERO), Ok(first));
        let second = quota.reserve(3, at(0), LONG).expect("a long patience");
        quota.cancel(second);
        assert_eq!(quota.reserve(3, at(0), LONG), Ok(second));
        let third = quota.reserve(1, at(0), LONG).expect("a long patience");
        quota.cancel(second);
        assert!(quota.reserve(1, at(0), LONG).is_ok_and(|fourth| fourth.wait > third.wait));
        quota.cancel(Reservation::default());
        assert!(quota.reserve(1, at(0), Duration::ZERO).is_err());
    }

    #[test]
    fn can_ever_agrees_with_an_idle_quota() {
        let quota = quota(2);
        let patience = Duration::from_secs(2);
        for calls in 0..10 {
            let idle = super::tests::quota(2);
            assert_eq!(quota.can_ever(calls, patience), idle.reserve(calls, at(0), patience).is_ok(), "{calls}");
        }
    }

    #[test]
    fn zero_calls_need_no_reservation() {
        let quota = quota(1);
        quota.reserve(100, at(0), LONG).expect("a long patience");
        assert_eq!(quota.reserve(0, at(0), Duration::ZERO), Ok(Reservation::default()));
    }

    #[test]
    fn extreme_rates_and_times_do_not_overflow() {
        for per_second in [1, u32::MAX] {
            let quota = quota(per_second);
            let end = Tick::from_micros(u64::MAX);
            assert!(quota.reserve(u32::MAX, end, LONG).is_ok() || quota.reserve(1, end, LONG).is_ok());
            assert!(quota.reserve(1, Tick::NEVER, Duration::ZERO).is_err());
        }
    }
}
