//! The quota of one command: its limit, and the permits of this replica or of the fleet.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::clock::{Clock, MonotonicClock};
use parking_lot::Mutex;

use super::adaptive::AdaptiveLimit;
use super::app_quota::AppQuota;
use super::fair_queue::FairQueue;
use super::rate_limiter::{CommandLimiter, LimitShare};
use super::shared_quota::{Leased, SharedQuota};
use crate::clock;
use crate::domain::tick::Tick;

/// How many calls of one command may hold a connection while they wait for their permit.
const READY_MAX: usize = 8;
/// The longest time for which calls of the past matter: a window of one second with its jitter, rounded up.
const MEMORY: Duration = Duration::from_secs(2);

/// The quota of one command.
#[derive(Debug)]
pub(crate) struct CommandQuota<C: Clock = MonotonicClock> {
    clock: C,
    limiter: ArcSwap<CommandLimiter<C>>,
    /// The limit that `limiter` enforces.
    adaptive: Mutex<AdaptiveLimit>,
    /// When the adaptive limit may change without a call, in ticks; `u64::MAX` if it does not.
    next_change_at: AtomicU64,
    /// The total quota of the app.
    total: Arc<AppQuota<C>>,
    /// The permits of the fleet, if there is one.
    shared: Option<SharedQuota>,
    /// Calls in front of the quota. Those that have their turn connect and take a permit.
    pub(super) queue: Arc<FairQueue>,
    /// How many calls hold a connection and wait for their permit.
    pub(super) ready: AtomicUsize,
    /// Held by the call that takes the next permit.
    pub(super) taking: tokio::sync::Mutex<()>,
    /// When the next permit is or was available, in ticks.
    next_at: AtomicU64,
}

/// A change of a command's limit, in calls per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LimitChange {
    pub(crate) old: u32,
    pub(crate) new: u32,
    /// Whether nothing but a cap had lowered the limit before.
    pub(crate) is_first: bool,
}

/// A snapshot of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuotaStats {
    /// The configured limit, in calls per second.
    pub configured: u32,
    /// The current limit, in calls per second. Throttled calls and rate-limit alerts lower it.
    pub limit: u32,
    /// The time until the next permit.
    pub next_permit: Duration,
    /// How many calls are queued.
    pub waiting: usize,
}

/// What a call has to do for a permit.
pub(super) enum NotYet {
    /// Retry after this time.
    RetryAfter(Duration),
    /// Lease permits.
    NeedsLease,
}

impl<C: Clock + Clone> CommandQuota<C> {
    pub(super) fn new(per_second: NonZeroU32, total: Arc<AppQuota<C>>, shared: Option<SharedQuota>, clock: C) -> Self {
        let limiter = match &shared {
            None => CommandLimiter::new(per_second, clock.clone()),
            Some(shared) => CommandLimiter::exhausted(per_second, shared.limit_share(), clock.clone()),
        };
        Self {
            limiter: ArcSwap::from_pointee(limiter),
            shared,
            ready: AtomicUsize::new(0),
            clock,
            adaptive: Mutex::new(AdaptiveLimit::new(per_second.get())),
            next_change_at: AtomicU64::new(u64::MAX),
            total,
            queue: FairQueue::new(READY_MAX),
            taking: tokio::sync::Mutex::new(()),
            next_at: AtomicU64::new(0),
        }
    }

    /// Caps the limit until an instant. A cap above the configured limit has no effect.
    pub(super) fn cap_until(&self, limit: NonZeroU32, until: Tick) {
        self.change_limit(|adaptive| adaptive.cap_until(limit.get(), until));
    }

    /// Returns whether a cap lowers the limit.
    pub(super) fn is_capped(&self, now: Tick) -> bool {
        self.adaptive.lock().is_capped(now)
    }

    /// Lowers the limit after Chat throttled a call. It recovers slowly. Returns the change, if there is one.
    pub(crate) fn on_throttled(&self) -> Option<LimitChange> {
        self.on_throttled_at(clock::tick())
    }

    pub(super) fn on_throttled_at(&self, now: Tick) -> Option<LimitChange> {
        self.change_limit(|adaptive| adaptive.on_throttled(now))
    }

    /// Sets the configured limit. An unchanged limit has no effect.
    pub(super) fn configure(&self, per_second: NonZeroU32) {
        self.change_limit(|adaptive| adaptive.configure(per_second.get()));
    }

    /// Returns the current limit, in calls per second.
    pub(crate) fn limit(&self) -> u32 {
        self.adaptive.lock().limit()
    }

    /// Whether the quota no longer matters: a new one in its place grants exactly what this one would.
    ///
    /// Exclusive access proves that no call is queued and that no caller holds the quota. Apart from that, the limit
    /// must be the configured one, no permit may be younger than [`MEMORY`], and the burst must be whole. The last
    /// check takes the burst, so a quota that returns `true` must be dropped.
    pub(super) fn retire(&mut self, now: Tick) -> bool {
        self.on_tick(now);
        let last_matters_until = self.next_at().after(MEMORY);
        self.adaptive.get_mut().is_settled(now) && last_matters_until <= now && self.limiter.load().take_burst()
    }

    fn change_limit(&self, change: impl FnOnce(&mut AdaptiveLimit)) -> Option<LimitChange> {
        let mut adaptive = self.adaptive.lock();
        let (old, is_first) = (adaptive.limit(), !adaptive.is_cut());
        change(&mut adaptive);
        let new = adaptive.limit();
        let changed = (new != old).then_some(LimitChange { old, new, is_first });
        if changed.is_some() {
            self.reset_limiter(&adaptive);
        }
        self.next_change_at.store(adaptive.next_change_at().map_or(u64::MAX, Tick::micros), Ordering::Release);
        changed
    }

    /// Replaces the limiter. The new one starts without a burst, so that both together grant no more than either.
    fn reset_limiter(&self, adaptive: &AdaptiveLimit) {
        let limit = NonZeroU32::new(adaptive.limit()).unwrap_or(NonZeroU32::MIN);
        let share = self.shared.as_ref().map_or(LimitShare::Whole, SharedQuota::limit_share);
        self.limiter.store(Arc::new(CommandLimiter::exhausted(limit, share, self.clock.clone())));
    }

    fn on_tick(&self, now: Tick) {
        if now.micros() >= self.next_change_at.load(Ordering::Acquire) {
            self.change_limit(|adaptive| adaptive.on_tick(now));
        }
    }

    /// Takes a permit of the fleet, or of this replica if it is disconnected or there is no fleet.
    pub(super) fn try_take(&self) -> Result<(), NotYet> {
        let now = clock::tick();
        let Some(shared) = &self.shared else { return self.take_at(now).map_err(NotYet::RetryAfter) };
        self.on_tick(now);
        if shared.epoch_changed() {
            let adaptive = self.adaptive.lock();
            if shared.sync_epoch() {
                self.reset_limiter(&adaptive);
            }
        }
        match shared.draw(now) {
            Leased::Permit => {
                self.next_at.fetch_max(now.micros(), Ordering::Relaxed);
                Ok(())
            }
            Leased::From(at) => Err(NotYet::RetryAfter(at.since(now))),
            Leased::Empty => Err(NotYet::NeedsLease),
            Leased::Disconnected => self.take_at(now).map_err(NotYet::RetryAfter),
        }
    }

    /// Leases permits for the calls that are ready. Returns how long to wait if Redis granted none, and `None` if it
    /// granted some or the replica is disconnected.
    pub(super) async fn lease(&self) -> Option<Duration> {
        let shared = self.shared.as_ref()?;
        let limit = NonZeroU32::new(self.limit()).unwrap_or(NonZeroU32::MIN);
        shared.lease(limit, self.total.per_second(), self.ready.load(Ordering::Relaxed)).await
    }

    /// Takes a permit of this replica for one call.
    ///
    /// Both the command's limit and the app's total must have one. A permit that is taken and not used is lost, so the
    /// command's limit is checked first and taken last. Calls come here one by one, so hardly any permit is lost.
    ///
    /// # Errors
    /// The time after which to retry.
    pub(super) fn take_at(&self, now: Tick) -> Result<(), Duration> {
        self.on_tick(now);
        let limiter = self.limiter.load();
        if let Some(total) = &*self.total.limiter() {
            let wait = self.next_at().since(now);
            if wait > Duration::ZERO {
                return Err(wait);
            }
            total.take()?;
        }
        limiter.take()?;
        let next_at = |next| Some(limiter.next_after(Tick::from_micros(next), now).micros());
        let _ = self.next_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next_at);
        Ok(())
    }

    /// Notes that no permit is available before `at`. The app's total may delay a command longer than its own limit.
    pub(super) fn no_permit_before(&self, at: Tick) {
        self.next_at.fetch_max(at.micros(), Ordering::Relaxed);
    }

    /// Returns the time between two permits once the burst is used up.
    pub(crate) fn interval(&self) -> Duration {
        self.limiter.load().interval()
    }

    /// Returns the time until the next permit.
    pub(crate) fn next_permit(&self) -> Duration {
        self.next_at().since(clock::tick())
    }

    /// Returns a snapshot of the quota.
    pub(crate) fn stats(&self) -> QuotaStats {
        let (configured, limit) = {
            let adaptive = self.adaptive.lock();
            (adaptive.configured(), adaptive.limit())
        };
        QuotaStats { configured, limit, next_permit: self.next_permit(), waiting: self.queue.waiting() }
    }

    /// Returns when the next permit may be granted, as far as is known.
    pub(crate) fn next_at(&self) -> Tick {
        Tick::from_micros(self.next_at.load(Ordering::Relaxed))
    }

    /// Returns how long an entry with this number of entries ahead waits, if none of them leaves.
    pub(super) fn predicted_wait(&self, ahead: usize) -> Duration {
        match u32::try_from(ahead).unwrap_or(u32::MAX) {
            0 => Duration::ZERO,
            ahead => self.next_permit() + self.interval().saturating_mul(ahead),
        }
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn number(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).expect("not 0")
    }

    fn total(per_second: u32, clock: &FakeRelativeClock) -> Arc<AppQuota<FakeRelativeClock>> {
        Arc::new(AppQuota::new(Some(number(per_second)), None, clock.clone()))
    }

    fn quota(
        per_second: u32,
        total: Arc<AppQuota<FakeRelativeClock>>,
        clock: &FakeRelativeClock,
    ) -> CommandQuota<FakeRelativeClock> {
        CommandQuota::new(number(per_second), total, None, clock.clone())
    }

    fn without_total(per_second: u32, clock: &FakeRelativeClock) -> CommandQuota<FakeRelativeClock> {
        quota(per_second, Arc::new(AppQuota::new(None, None, clock.clone())), clock)
    }

    fn take(quota: &CommandQuota<FakeRelativeClock>) -> Result<(), Duration> {
        quota.take_at(clock::tick())
    }

    #[test]
    fn total_quota_limits_every_command() {
        let clock = FakeRelativeClock::default();
        let total = total(1, &clock);
        let (one, two) = (quota(100, Arc::clone(&total), &clock), quota(100, total, &clock));
        assert!(take(&one).is_ok());
        let wait = take(&two).expect_err("the total is exhausted");
        assert!(wait > Duration::from_secs(1));
        clock.advance(wait);
        assert!(take(&two).is_ok());
    }

    #[test]
    fn exhausted_total_takes_no_permit_of_a_slow_command() {
        let clock = FakeRelativeClock::default();
        let total = total(50, &clock);
        let (fast, slow) = (quota(100, Arc::clone(&total), &clock), quota(1, total, &clock));
        assert!(take(&fast).is_ok());
        let wait = take(&slow).expect_err("the total is exhausted");
        assert!(wait < Duration::from_millis(100));
        clock.advance(wait);
        assert!(take(&slow).is_ok());
    }

    #[test]
    fn throttled_call_lowers_the_limit_and_grants_no_burst() {
        let clock = FakeRelativeClock::default();
        let quota = without_total(100, &clock);
        let change = quota.on_throttled();
        assert_eq!(change, Some(LimitChange { old: 100, new: 95, is_first: true }));
        assert!(take(&quota).is_err());
    }

    #[test]
    fn only_the_first_cut_until_recovery_is_first() {
        let clock = FakeRelativeClock::default();
        let quota = without_total(100, &clock);
        let start = clock::tick();
        let is_first = |secs| {
            let change = quota.on_throttled_at(start.after(Duration::from_secs(secs)));
            change.expect("the limit changes").is_first
        };
        quota.cap_until(number(50), start.after(Duration::from_secs(10)));
        assert!(is_first(0), "a cap is no cut");
        assert!(!is_first(1));
        assert!(!is_first(2));
        let mut adaptive = quota.adaptive.lock();
        (1..1000).for_each(|step| adaptive.on_tick(start.after(Duration::from_secs(step * 10))));
        assert!(!adaptive.is_cut());
        drop(adaptive);
        assert!(is_first(100_000), "the limit had recovered");
    }

    #[test]
    fn cap_ends_on_time_and_never_raises_the_limit() {
        let clock = FakeRelativeClock::default();
        let quota = without_total(100, &clock);
        let configured = quota.interval();
        quota.cap_until(number(10), clock::tick().after(Duration::from_secs(3600)));
        assert!(take(&quota).is_err(), "the change grants no burst");
        assert!(quota.interval() > configured * 8);
        quota.cap_until(number(5000), clock::tick().after(Duration::from_secs(3600)));
        assert_eq!(quota.interval(), configured);
        quota.cap_until(number(10), clock::tick());
        let _ = take(&quota);
        assert_eq!(quota.interval(), configured, "the cap has ended");
    }

    #[test]
    fn only_an_idle_quota_at_its_configured_limit_retires() {
        let clock = FakeRelativeClock::default();
        let start = clock::tick();
        let at = |secs| start.after(Duration::from_secs(secs));
        let mut quota = without_total(100, &clock);
        quota.take_at(at(0)).expect("a full burst");
        clock.advance(Duration::from_secs(1));
        assert!(!quota.retire(at(1)), "a call of the last second");
        quota.cap_until(number(50), at(600));
        clock.advance(Duration::from_secs(599));
        assert!(!quota.retire(at(599)), "the cap applies");
        assert!(!quota.retire(at(600)), "the new limiter has no burst yet");
        clock.advance(Duration::from_secs(2));
        assert!(quota.retire(at(602)));
    }
}
