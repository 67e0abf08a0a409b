//! The quota of one command: its limit, and the permits of this replica or of the fleet.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::clock::{Clock, MonotonicClock};
use parking_lot::Mutex;

use super::adaptive::AdaptiveLimit;
use super::app_quota::AppQuota;
use super::lane::Lanes;
use super::rate_limiter::{CommandLimiter, LimitShare};
use super::reserve::{CommandRate, TakenPermits};
use super::shared_quota::{Leased, SharedQuota};
use crate::clock;
use crate::domain::caller::{ByClass, Class};
use crate::domain::tick::Tick;

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
    /// The configured rates.
    rate: Mutex<CommandRate>,
    /// The total quota of the app.
    pub(super) total: Arc<AppQuota<C>>,
    /// The permits of the fleet, if there is one.
    shared: Option<SharedQuota>,
    /// Calls in front of the quota.
    pub(super) lanes: Lanes,
    /// The permits taken so far. Locked while a permit is taken.
    taken: Mutex<TakenPermits>,
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
    /// How many calls of each class are queued.
    pub waiting: ByClass<usize>,
}

impl QuotaStats {
    /// Returns how many calls are queued.
    pub(crate) fn waiting(&self) -> usize {
        Class::ALL.into_iter().map(|class| self.waiting[class]).sum()
    }
}

/// What a call has to do for a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotYet {
    /// Retry after this time. Until then, no call of the command gets a permit.
    RetryAfter(Duration),
    /// The same, because of the app's total quota.
    TotalExhausted(Duration),
    /// Retry after this time. Until then, only calls of earlier classes get a permit.
    Reserved(Duration),
    /// Lease permits.
    NeedsLease,
}

impl<C: Clock + Clone> CommandQuota<C> {
    pub(super) fn new(rate: CommandRate, total: Arc<AppQuota<C>>, shared: Option<SharedQuota>, clock: C) -> Self {
        let per_second = rate.per_second;
        let limiter = match &shared {
            None => CommandLimiter::new(per_second, clock.clone()),
            Some(shared) => CommandLimiter::exhausted(per_second, shared.limit_share(), clock.clone()),
        };
        Self {
            limiter: ArcSwap::from_pointee(limiter),
            shared,
            clock,
            adaptive: Mutex::new(AdaptiveLimit::new(per_second.get())),
            next_change_at: AtomicU64::new(u64::MAX),
            rate: Mutex::new(rate),
            total,
            lanes: Lanes::new(),
            taken: Mutex::new(TakenPermits::new()),
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

    /// Sets the configured rates. An unchanged limit keeps its state.
    pub(super) fn configure(&self, rate: CommandRate) {
        *self.rate.lock() = rate;
        self.change_limit(|adaptive| adaptive.configure(rate.per_second.get()));
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
        let last_matters_until = self.next_at().max(self.taken.get_mut().next_at(Class::Batch)).after(MEMORY);
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
        self.limiter.store(Arc::new(CommandLimiter::exhausted(limit, self.share(), self.clock.clone())));
    }

    fn share(&self) -> LimitShare {
        self.shared.as_ref().map_or(LimitShare::Whole, SharedQuota::limit_share)
    }

    fn on_tick(&self, now: Tick) {
        if now.micros() >= self.next_change_at.load(Ordering::Acquire) {
            self.change_limit(|adaptive| adaptive.on_tick(now));
        }
    }

    /// Takes a permit of the fleet, or of this replica if it is disconnected or there is no fleet.
    pub(super) fn try_take(&self, class: Class) -> Result<(), NotYet> {
        let now = clock::tick();
        let Some(shared) = &self.shared else { return self.take_at(class, now) };
        self.on_tick(now);
        if shared.epoch_changed() {
            let adaptive = self.adaptive.lock();
            if shared.sync_epoch() {
                self.reset_limiter(&adaptive);
            }
        }
        let mut taken = self.taken.lock();
        let reserved = taken.next_at(class).since(now);
        if !reserved.is_zero() {
            return Err(NotYet::Reserved(reserved));
        }
        match shared.draw(now) {
            Leased::Permit => {
                self.record(&mut taken, class, now);
                self.next_at.fetch_max(now.micros(), Ordering::Relaxed);
                Ok(())
            }
            Leased::From(at) => Err(self.not_before(at.since(now))),
            Leased::Empty => match &*self.total.limiter() {
                // What this call would lease is what they wait for.
                Some(total) if self.total.is_preceded(class) => Err(NotYet::Reserved(total.interval())),
                _ => Err(NotYet::NeedsLease),
            },
            Leased::Disconnected => {
                drop(taken);
                self.take_at(class, now)
            }
        }
    }

    /// Returns why a leased permit is not usable yet. If the app has a total quota, Redis grants ahead only what that quota
    /// delays.
    fn not_before(&self, wait: Duration) -> NotYet {
        match self.total.per_second() {
            Some(_) => NotYet::TotalExhausted(wait),
            None => NotYet::RetryAfter(wait),
        }
    }

    /// Leases permits for the calls of a class that are ready. Returns what to wait for if Redis granted none, and `None`
    /// if it granted some or the replica is disconnected.
    pub(super) async fn lease(&self, class: Class) -> Option<NotYet> {
        let shared = self.shared.as_ref()?;
        // So that no call of a later class leases meanwhile.
        let _waiting = self.total.count_waiting(class);
        let limit = NonZeroU32::new(self.limit()).unwrap_or(NonZeroU32::MIN);
        shared.lease(limit, self.total.per_second(), self.lanes.ready(class)).await
    }

    /// Takes a permit of this replica for one call.
    ///
    /// The command's limit, the app's total, and for batch calls the reserve must all have one. A permit that is taken and
    /// not used is lost, so the command's limit is checked first and taken last.
    ///
    /// # Errors
    /// The time after which to retry.
    pub(super) fn take_at(&self, class: Class, now: Tick) -> Result<(), NotYet> {
        self.on_tick(now);
        let mut taken = self.taken.lock();
        let reserved = taken.next_at(class).since(now);
        if !reserved.is_zero() {
            return Err(NotYet::Reserved(reserved));
        }
        let limiter = self.limiter.load();
        if let Some(total) = &*self.total.limiter() {
            let wait = self.next_at().since(now);
            if wait > Duration::ZERO {
                return Err(NotYet::RetryAfter(wait));
            }
            if self.total.is_preceded(class) {
                return Err(NotYet::Reserved(total.interval()));
            }
            total.take().map_err(NotYet::TotalExhausted)?;
        }
        limiter.take().map_err(NotYet::RetryAfter)?;
        self.record(&mut taken, class, now);
        let next_at = |next| Some(limiter.next_after(Tick::from_micros(next), now).micros());
        let _ = self.next_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next_at);
        Ok(())
    }

    fn record(&self, taken: &mut TakenPermits, class: Class, now: Tick) {
        let rate = *self.rate.lock();
        taken.record(class, rate, self.limit(), self.share(), now);
    }

    /// Notes that no permit is available before `at`. The app's total may delay a command longer than its own limit.
    pub(super) fn no_permit_before(&self, at: Tick) {
        self.next_at.fetch_max(at.micros(), Ordering::Relaxed);
    }

    /// Returns the expected time between two permits of a class once the burst is used up.
    pub(crate) fn interval(&self, class: Class) -> Duration {
        let (interval, limit, rate) = (self.limiter.load().interval(), self.limit(), *self.rate.lock());
        self.taken.lock().interval(class, rate, limit, interval, clock::tick())
    }

    /// Returns the time until the next permit of a class.
    pub(crate) fn next_permit(&self, class: Class) -> Duration {
        self.next_at_for(class).since(clock::tick())
    }

    /// Returns a snapshot of the quota.
    pub(crate) fn stats(&self) -> QuotaStats {
        let (configured, limit) = {
            let adaptive = self.adaptive.lock();
            (adaptive.configured(), adaptive.limit())
        };
        let waiting = ByClass::new(|class| self.lanes.waiting(class));
        QuotaStats { configured, limit, next_permit: self.next_permit(Class::Interactive), waiting }
    }

    /// Returns when the next permit may be granted, as far as is known.
    fn next_at(&self) -> Tick {
        Tick::from_micros(self.next_at.load(Ordering::Relaxed))
    }

    /// Returns when the next permit of a class may be granted, as far as is known.
    pub(crate) fn next_at_for(&self, class: Class) -> Tick {
        self.next_at().max(self.taken.lock().next_at(class))
    }

    /// Returns how long an entry of a class with this number of entries ahead waits, if none of them leaves.
    pub(super) fn predicted_wait(&self, class: Class, ahead: usize) -> Duration {
        match u32::try_from(ahead).unwrap_or(u32::MAX) {
            0 => Duration::ZERO,
            ahead => self.next_permit(class) + self.interval(class).saturating_mul(ahead),
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
        let rate = CommandRate { per_second: number(per_second), reserve: 0 };
        CommandQuota::new(rate, total, None, clock.clone())
    }

    fn without_total(per_second: u32, clock: &FakeRelativeClock) -> CommandQuota<FakeRelativeClock> {
        quota(per_second, Arc::new(AppQuota::new(None, None, clock.clone())), clock)
    }

    fn take(quota: &CommandQuota<FakeRelativeClock>) -> Result<(), Duration> {
        quota.take_at(Class::Interactive, clock::tick()).map_err(|not_yet| match not_yet {
            NotYet::RetryAfter(wait) | NotYet::TotalExhausted(wait) | NotYet::Reserved(wait) => wait,
            NotYet::NeedsLease => panic!("there is no fleet"),
        })
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
    fn total_is_left_to_waiting_calls_of_an_earlier_class() {
        let clock = FakeRelativeClock::default();
        let total = total(100, &clock);
        let quota = quota(100, Arc::clone(&total), &clock);
        let waiting = total.count_waiting(Class::Interactive);
        let not_yet = quota.take_at(Class::Batch, clock::tick());
        assert!(matches!(not_yet, Err(NotYet::Reserved(wait)) if !wait.is_zero()), "{not_yet:?}");
        assert_eq!(quota.take_at(Class::Interactive, clock::tick()), Ok(()), "nothing was taken");
        drop(waiting);
        assert_eq!(quota.take_at(Class::Batch, clock::tick()), Ok(()));
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
        let configured = quota.interval(Class::Interactive);
        quota.cap_until(number(10), clock::tick().after(Duration::from_secs(3600)));
        assert!(take(&quota).is_err(), "the change grants no burst");
        assert!(quota.interval(Class::Interactive) > configured * 8);
        quota.cap_until(number(5000), clock::tick().after(Duration::from_secs(3600)));
        assert_eq!(quota.interval(Class::Interactive), configured);
        quota.cap_until(number(10), clock::tick());
        let _ = take(&quota);
        assert_eq!(quota.interval(Class::Interactive), configured, "the cap has ended");
    }

    #[test]
    fn only_an_idle_quota_at_its_configured_limit_retires() {
        let clock = FakeRelativeClock::default();
        let start = clock::tick();
        let at = |secs| start.after(Duration::from_secs(secs));
        let mut quota = without_total(100, &clock);
        quota.take_at(Class::Interactive, at(0)).expect("a full burst");
        clock.advance(Duration::from_secs(1));
        assert!(!quota.retire(at(1)), "a call of the last second");
        quota.cap_until(number(50), at(600));
        clock.advance(Duration::from_secs(599));
        assert!(!quota.retire(at(599)), "the cap applies");
        assert!(!quota.retire(at(600)), "the new limiter has no burst yet");
        clock.advance(Duration::from_secs(2));
        assert!(quota.retire(at(602)));
    }

    #[test]
    fn reserve_is_left_to_interactive_calls() {
        let (clock, start) = (FakeRelativeClock::default(), clock::tick());
        let total = Arc::new(AppQuota::new(None, None, clock.clone()));
        let quota = CommandQuota::new(CommandRate { per_second: number(200), reserve: 50 }, total, None, clock.clone());
        let mut granted = ByClass::new(|_| 0);
        for milli in 0..10_000 {
            let now = start.after(Duration::from_millis(milli));
            if quota.take_at(Class::Batch, now).is_ok() {
                granted[Class::Batch] += 1;
            }
            // An interactive call every 500 ms never waits: the reserve has filled the burst again.
            if milli % 500 == 499 {
                assert_eq!(quota.take_at(Class::Interactive, now), Ok(()), "{milli}");
                granted[Class::Interactive] += 1;
            }
            clock.advance(Duration::from_millis(1));
        }
        assert!((1300..=1500).contains(&granted[Class::Batch]) && granted[Class::Interactive] == 20, "{granted:?}");
        let late = start.after(Duration::from_secs(10));
        assert_eq!(quota.predicted_wait(Class::Batch, 0), Duration::ZERO);
        assert!(quota.take_at(Class::Batch, late).is_err_and(|not_yet| matches!(not_yet, NotYet::Reserved(_))));
    }
}
