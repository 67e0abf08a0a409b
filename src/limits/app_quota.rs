//! The quota of an app: calls per second of all commands together (`quota.total`).

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arc_swap::{ArcSwapOption, Guard};
use governor::clock::Clock;
use parking_lot::Mutex;

use super::rate_limiter::{CommandLimiter, LimitShare};
use super::shared_quota::share_in;
use crate::domain::caller::{ByClass, Class};
use crate::fleet::Fleet;

/// The total quota of an app, if it has one.
#[derive(Debug)]
pub(super) struct AppQuota<C: Clock> {
    limiter: ArcSwapOption<CommandLimiter<C>>,
    /// Calls per second; 0 means unlimited.
    per_second: AtomicU32,
    fleet: Option<Arc<Fleet>>,
    /// The epoch of the fleet that the limiter was made for.
    epoch: AtomicU64,
    replacing: Mutex<()>,
    /// How many calls of each class wait for the total quota, and for nothing else, or lease permits of the fleet.
    waiting: ByClass<AtomicUsize>,
    clock: C,
}

/// Whether [`AppQuota::replace_limiter`] has anything to do.
#[derive(Clone, Copy, PartialEq)]
enum Replace {
    Always,
    IfEpochChanged,
}

impl<C: Clock + Clone> AppQuota<C> {
    pub(super) fn new(per_second: Option<NonZeroU32>, fleet: Option<Arc<Fleet>>, clock: C) -> Self {
        let epoch = fleet.as_ref().map_or(0, |fleet| fleet.epoch());
        let limiter = per_second.map(|per_second| match &fleet {
            None => CommandLimiter::new(per_second, clock.clone()),
            Some(fleet) => CommandLimiter::exhausted(per_second, share_in(fleet, epoch), clock.clone()),
        });
        Self {
            limiter: ArcSwapOption::new(limiter.map(Arc::new)),
            per_second: AtomicU32::new(per_second.map_or(0, NonZeroU32::get)),
            fleet,
            epoch: AtomicU64::new(epoch),
            replacing: Mutex::new(()),
            waiting: ByClass::default(),
            clock,
        }
    }

    /// Returns the configured calls per second; `None` if unlimited.
    pub(super) fn per_second(&self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.per_second.load(Ordering::Acquire))
    }

    /// Returns the limiter of this replica for the current epoch of the fleet.
    pub(super) fn limiter(&self) -> Guard<Option<Arc<CommandLimiter<C>>>> {
        if let Some(fleet) = &self.fleet
            && fleet.epoch() != self.epoch.load(Ordering::Acquire)
        {
            self.replace_limiter(self.per_second(), Replace::IfEpochChanged);
        }
        self.limiter.load()
    }

    /// Sets another rate. The new limiter starts without a burst.
    pub(super) fn configure(&self, per_second: Option<NonZeroU32>) {
        self.replace_limiter(per_second, Replace::Always);
    }

    /// Returns whether a call of an earlier class waits for the total quota, whatever its command.
    pub(super) fn is_preceded(&self, class: Class) -> bool {
        class.earlier().any(|earlier| self.waiting[earlier].load(Ordering::SeqCst) > 0)
    }

    /// Counts a call that waits for the total quota while the guard lives.
    pub(super) fn count_waiting(&self, class: Class) -> WaitsForTotal<'_> {
        self.waiting[class].fetch_add(1, Ordering::SeqCst);
        WaitsForTotal(&self.waiting[class])
    }

    fn replace_limiter(&self, per_second: Option<NonZeroU32>, when: Replace) {
        let _replacing = self.replacing.lock();
        let epoch = self.fleet.as_ref().map_or(0, |fleet| fleet.epoch());
        if when == Replace::IfEpochChanged && epoch == self.epoch.load(Ordering::Acquire) {
            return;
        }
        let share = self.fleet.as_ref().map_or(LimitShare::Whole, |fleet| share_in(fleet, epoch));
        self.per_second.store(per_second.map_or(0, NonZeroU32::get), Ordering::Release);
        let limiter = per_second.map(|per_second| CommandLimiter::exhausted(per_second, share, self.clock.clone()));
        self.limiter.store(limiter.map(Arc::new));
        self.epoch.store(epoch, Ordering::Release);
    }
}

/// A call that waits for the total quota.
pub(super) struct WaitsForTotal<'a>(&'a AtomicUsize);

impl Drop for WaitsForTotal<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
