//! The pace of all commands of an app together.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwapOption, Guard};
use governor::clock::Clock;

use super::rate_limiter::{CommandLimiter, LimitShare};
use super::shared_quota::part_of;
use crate::fleet::Fleet;

/// The pace, if the app has one.
#[derive(Debug)]
pub(super) struct AppQuota<C: Clock> {
    pacer: ArcSwapOption<CommandLimiter<C>>,
    /// Calls a second; 0: no bound.
    per_second: AtomicU32,
    fleet: Option<Arc<Fleet>>,
    /// That the pacer was made for.
    epoch: AtomicU64,
    changing: Mutex<()>,
    clock: C,
}

impl<C: Clock + Clone> AppQuota<C> {
    pub(super) fn new(per_second: Option<NonZeroU32>, fleet: Option<Arc<Fleet>>, clock: C) -> Self {
        let epoch = fleet.as_ref().map_or(0, |fleet| fleet.epoch());
        let pacer = per_second.map(|per_second| match &fleet {
            None => CommandLimiter::new(per_second, clock.clone()),
            Some(fleet) => CommandLimiter::part(per_second, part_of(fleet, epoch), clock.clone()),
        });
        Self {
            pacer: ArcSwapOption::new(pacer.map(Arc::new)),
            per_second: AtomicU32::new(per_second.map_or(0, NonZeroU32::get)),
            fleet,
            epoch: AtomicU64::new(epoch),
            changing: Mutex::new(()),
            clock,
        }
    }

    /// Calls a second.
    pub(super) fn per_second(&self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.per_second.load(Ordering::Acquire))
    }

    /// The pacer that holds alone, as things are.
    pub(super) fn pacer(&self) -> Guard<Option<Arc<CommandLimiter<C>>>> {
        if let Some(fleet) = &self.fleet
            && fleet.epoch() != self.epoch.load(Ordering::Acquire)
        {
            self.begin_anew(self.per_second(), false);
        }
        self.pacer.load()
    }

    /// Another number. What takes a pacer's place has nothing to spend.
    pub(super) fn configure(&self, per_second: Option<NonZeroU32>) {
        self.begin_anew(per_second, true);
    }

    fn begin_anew(&self, per_second: Option<NonZeroU32>, always: bool) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = self.fleet.as_ref().map_or(0, |fleet| fleet.epoch());
        if !always && epoch == self.epoch.load(Ordering::Acquire) {
            return;
        }
        let part = self.fleet.as_ref().map_or(LimitShare::Whole, |fleet| part_of(fleet, epoch));
        self.per_second.store(per_second.map_or(0, NonZeroU32::get), Ordering::Release);
        let pacer = per_second.map(|per_second| Arc::new(CommandLimiter::part(per_second, part, self.clock.clone())));
        self.pacer.store(pacer);
        self.epoch.store(epoch, Ordering::Release);
    }
}
