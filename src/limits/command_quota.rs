//! The quota of one command, and the line in front of it.

use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use governor::clock::{Clock, MonotonicClock};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use super::adaptive::AdaptiveLimit;
use super::app_quota::AppQuota;
use super::rate_limiter::{CommandLimiter, LimitShare};
use super::shared_quota::{Leased, SharedQuota};
use crate::clock;
use crate::domain::caller::QueueKey;
use crate::domain::tick::Tick;
use crate::limits::fair_queue::FairQueue;

/// How many calls of one command may have a connection ready and wait for their permit.
const READY_MAX: usize = 8;

/// The quota of one command.
#[derive(Debug)]
pub struct CommandQuota<C: Clock = MonotonicClock> {
    clock: C,
    limiter: ArcSwap<CommandLimiter<C>>,
    /// The limit that `own` keeps.
    adaptive: StdMutex<AdaptiveLimit>,
    /// When the limit may have to change by itself, in ticks; the largest number if it does not.
    next_change_at: AtomicU64,
    /// Of the whole app, which may change at a reload.
    total: Arc<AppQuota<C>>,
    /// Its part in the quota of the fleet, if there is one.
    shared: Option<SharedQuota>,
    /// Callers take turns in getting ready.
    queue: Arc<FairQueue>,
    /// Those that are ready and lack only a permit.
    ready: AtomicUsize,
    /// Held by the one that takes the next permit.
    turn: Mutex<()>,
    /// When the next permit is to be had, or was, in ticks.
    next_at: AtomicU64,
}

/// How a quota stands at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaStats {
    /// Calls a second, as configured.
    pub configured: u32,
    /// Calls a second that it is held to now; less than configured after alarms and refusals of Chat's.
    pub limit: u32,
    /// In what time the next permit is to be had.
    pub next_permit: Duration,
    /// Calls in line.
    pub waiting: usize,
}

/// Why a wait ended without a permit.
#[derive(Debug, PartialEq, Eq)]
pub enum AdmitError<E> {
    /// No turn before the deadline. There may be one after so long, from now.
    DeadlineTooShort(Duration),
    /// No room among the calls in flight before the deadline.
    InFlightFull,
    /// Not for want of quota: those before it took too long to get ready.
    QueueStalled,
    /// It could not get ready itself.
    Connect(E),
}

/// What a call has once it may go.
#[derive(Debug)]
pub struct Permit<T> {
    /// Room among the calls in flight.
    pub slot: OwnedSemaphorePermit,
    /// What it got ready.
    pub ready: T,
}

/// What becomes of a call whose turn has come.
#[derive(Debug)]
pub enum Admission<T> {
    /// It may go.
    Granted(Permit<T>),
    /// It is no longer wanted; here is what it got ready.
    Cancelled(T),
}

/// How a call waits.
#[derive(Debug, Clone, Copy)]
pub struct AdmitRequest<'a> {
    /// Whose turn it takes.
    pub caller: QueueKey,
    /// Room among the calls in flight.
    pub room: &'a Arc<Semaphore>,
    /// When it begins to wait: now.
    pub begun: Instant,
    /// When it must have its permit.
    pub deadline: Instant,
}

impl<C: Clock + Clone> CommandQuota<C> {
    pub(super) fn new(
        per_second: NonZeroU32,
        total: Arc<AppQuota<C>>,
        together: Option<SharedQuota>,
        clock: C,
    ) -> Self {
        let own = match &together {
            None => CommandLimiter::new(per_second, clock.clone()),
            Some(together) => CommandLimiter::part(per_second, together.limit_share(), clock.clone()),
        };
        Self {
            limiter: ArcSwap::from_pointee(own),
            shared: together,
            ready: AtomicUsize::new(0),
            clock,
            adaptive: StdMutex::new(AdaptiveLimit::new(per_second.get())),
            next_change_at: AtomicU64::new(u64::MAX),
            total,
            queue: FairQueue::new(READY_MAX),
            turn: Mutex::new(()),
            next_at: AtomicU64::new(0),
        }
    }

    /// Holds the command to `limit` until a moment, or to what is configured if that is less.
    pub(super) fn cap_until(&self, limit: NonZeroU32, until: Tick) {
        self.change(|learned| learned.cap_until(limit.get(), until));
    }

    /// Chat refused a call for its rate: fewer go out from now on, and slowly more again.
    pub fn on_throttled(&self) {
        self.change(|learned| learned.on_throttled(clock::tick()));
    }

    /// Another configured limit, as after a reload. Nothing changes if it is the same.
    pub(super) fn configure(&self, per_second: NonZeroU32) {
        self.change(|learned| learned.configure(per_second.get()));
    }

    /// Calls a second as things are.
    pub fn limit(&self) -> u32 {
        self.adaptive().limit()
    }

    fn adaptive(&self) -> MutexGuard<'_, AdaptiveLimit> {
        self.adaptive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut AdaptiveLimit)) {
        let mut learned = self.adaptive();
        let before = learned.limit();
        change(&mut learned);
        if learned.limit() != before {
            self.reset_limiter(&learned);
        }
        self.next_change_at.store(learned.next_change_at().map_or(u64::MAX, Tick::micros), Ordering::Release);
    }

    /// A new pacer begins with nothing, so that the two together give no more than either.
    fn reset_limiter(&self, learned: &AdaptiveLimit) {
        let limit = NonZeroU32::new(learned.limit()).unwrap_or(NonZeroU32::MIN);
        let part = self.shared.as_ref().map_or(LimitShare::Whole, SharedQuota::limit_share);
        self.limiter.store(Arc::new(CommandLimiter::part(limit, part, self.clock.clone())));
    }

    /// A permit that is at hand, or what to do for one.
    fn try_take(&self) -> Result<(), NotYet> {
        let Some(together) = &self.shared else { return self.take().map_err(NotYet::For) };
        let now = clock::tick();
        self.on_tick(now);
        if together.epoch_changed() {
            let learned = self.adaptive();
            if together.sync_epoch() {
                self.reset_limiter(&learned);
            }
        }
        match together.draw(now) {
            Leased::Permit => {
                self.next_at.fetch_max(now.micros(), Ordering::Relaxed);
                Ok(())
            }
            Leased::From(at) => Err(NotYet::For(at.since(now))),
            Leased::Nothing => Err(NotYet::Lease),
            Leased::Alone => self.take().map_err(NotYet::For),
        }
    }

    /// Leases permits for those that are ready. How long to wait if there are none, and none if Redis is away.
    async fn lease(&self) -> Option<Duration> {
        let together = self.shared.as_ref()?;
        let limit = NonZeroU32::new(self.limit()).unwrap_or(NonZeroU32::MIN);
        together.lease(limit, self.total.per_second(), self.ready.load(Ordering::Relaxed)).await
    }

    fn on_tick(&self, now: Tick) {
        if now.micros() >= self.next_change_at.load(Ordering::Acquire) {
            self.change(|learned| learned.on_tick(now));
        }
    }

    /// Takes a permit for one call, or says how long there will be none.
    ///
    /// Both limits must have one. The command's is looked at first and taken last, for what is taken
    /// and not used is lost; as those who wait come here one by one, hardly any is.
    ///
    /// # Errors
    /// The time after which to ask again.
    pub fn take(&self) -> Result<(), Duration> {
        let now = clock::tick();
        self.on_tick(now);
        let own = self.limiter.load();
        if let Some(total) = &*self.total.pacer() {
            let wait = self.next_at().since(now);
            if wait > Duration::ZERO {
                return Err(wait);
            }
            total.take()?;
        }
        own.take()?;
        let next_at = |next| Some(own.next_after(Tick::from_micros(next), now).micros());
        let _ = self.next_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next_at);
        Ok(())
    }

    /// The time from one permit to the next once the burst is used up.
    pub fn interval(&self) -> Duration {
        self.limiter.load().interval()
    }

    /// In what time the next permit is to be had.
    pub fn next_permit(&self) -> Duration {
        self.next_at().since(clock::tick())
    }

    /// How it stands.
    pub fn stats(&self) -> QuotaStats {
        let (configured, limit) = {
            let learned = self.adaptive();
            (learned.configured(), learned.limit())
        };
        QuotaStats { configured, limit, next_permit: self.next_permit(), waiting: self.queue.waiting() }
    }

    fn next_at(&self) -> Tick {
        Tick::from_micros(self.next_at.load(Ordering::Relaxed))
    }

    /// How long somebody waits who has so many before him, if nobody leaves.
    fn predicted_wait(&self, ahead: usize) -> Duration {
        match u32::try_from(ahead).unwrap_or(u32::MAX) {
            0 => Duration::ZERO,
            ahead => self.next_permit() + self.interval().saturating_mul(ahead),
        }
    }

    /// Waits in line, gets ready, and then takes room among the calls in flight and a permit together,
    /// so that a permit is used at once and a call that waits holds no room. When its turn comes and
    /// `wanted` says that the call is no longer, it takes nothing.
    ///
    /// Dropping the future gives the place up.
    ///
    /// # Errors
    /// [`AdmitError::DeadlineTooShort`] at once if the turn would come after the deadline. When the deadline
    /// passes: [`AdmitError::InFlightFull`] if there is no room, `DeadlineTooShort` if quota was what it waited for, else
    /// [`AdmitError::QueueStalled`]. And
    /// [`AdmitError::Connect`] with what `get_ready` says.
    pub async fn admit<T, E>(
        &self,
        AdmitRequest { caller, room, begun, deadline }: AdmitRequest<'_>,
        get_ready: impl Future<Output = Result<T, E>>,
        wanted: impl Fn() -> bool,
    ) -> Result<Admission<T>, AdmitError<E>> {
        let in_line = self.queue.join(caller);
        let predicted = self.predicted_wait(in_line.ahead);
        if begun + predicted > deadline {
            return Err(AdmitError::DeadlineTooShort(predicted));
        }
        let waiting = pin!(async {
            let _place = in_line.turn().await;
            let ready = get_ready.await.map_err(AdmitError::Connect)?;
            let _ready = Counted::one_more(&self.ready);
            let _turn = self.turn.lock().await;
            loop {
                let slot = Arc::clone(room).acquire_owned().await.expect("nobody closes it");
                if !wanted() {
                    return Ok(Admission::Cancelled(ready));
                }
                let wait = match self.try_take() {
                    Ok(()) => return Ok(Admission::Granted(Permit { slot, ready })),
                    Err(NotYet::For(wait)) => wait,
                    // It keeps its room meanwhile, so that what is leased is used at once.
                    Err(NotYet::Lease) => match Box::pin(self.lease()).await {
                        None => continue,
                        Some(wait) => wait,
                    },
                };
                drop(slot);
                if clock::now() + wait > deadline {
                    return Err(AdmitError::DeadlineTooShort(wait));
                }
                // The total may hold it back for longer than its own limit does.
                self.next_at.fetch_max(clock::tick().after(wait).micros(), Ordering::Relaxed);
                tokio::time::sleep(wait).await;
            }
        });
        clock::timeout_at_lazy(deadline, waiting).await.unwrap_or_else(|| {
            if room.available_permits() == 0 {
                return Err(AdmitError::InFlightFull);
            }
            let for_quota = self.next_at() >= clock::tick_at(begun);
            Err(if for_quota { AdmitError::DeadlineTooShort(self.interval()) } else { AdmitError::QueueStalled })
        })
    }
}

/// What to do for a permit.
enum NotYet {
    /// Wait so long.
    For(Duration),
    /// Lease some.
    Lease,
}

/// Counts one as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn one_more(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn total(per_second: u32, clock: &FakeRelativeClock) -> Arc<AppQuota<FakeRelativeClock>> {
        Arc::new(AppQuota::new(Some(number(per_second)), None, clock.clone()))
    }

    fn none<C: Clock + Clone>(clock: C) -> Arc<AppQuota<C>> {
        Arc::new(AppQuota::new(None, None, clock))
    }

    const MANY: QueueKey = QueueKey(1);
    const FEW: QueueKey = QueueKey(2);

    fn number(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).expect("not 0")
    }

    fn by(room: &Arc<Semaphore>, millis: u64) -> AdmitRequest<'_> {
        let begun = clock::now();
        AdmitRequest { caller: MANY, room, begun, deadline: begun + Duration::from_millis(millis) }
    }

    async fn ready() -> Result<(), ()> {
        Ok(())
    }

    #[test]
    fn the_total_holds_back_every_command() {
        let clock = FakeRelativeClock::default();
        let total = total(1, &clock);
        let one = CommandQuota::new(number(100), Arc::clone(&total), None, clock.clone());
        let two = CommandQuota::new(number(100), total, None, clock.clone());
        assert!(one.take().is_ok());
        let wait = two.take().expect_err("the total is used up");
        assert!(wait > Duration::from_secs(1));
        clock.advance(wait);
        assert!(two.take().is_ok());
    }

    #[test]
    fn while_the_total_is_used_up_no_permit_of_a_slow_command_is_lost() {
        let clock = FakeRelativeClock::default();
        let total = total(50, &clock);
        let fast = CommandQuota::new(number(100), Arc::clone(&total), None, clock.clone());
        let slow = CommandQuota::new(number(1), total, None, clock.clone());
        assert!(fast.take().is_ok());
        let wait = slow.take().expect_err("the total is used up");
        assert!(wait < Duration::from_millis(100));
        clock.advance(wait);
        assert!(slow.take().is_ok());
    }

    #[test]
    fn a_refusal_lowers_the_limit_and_gives_nothing_away() {
        let clock = FakeRelativeClock::default();
        let quota = CommandQuota::new(number(100), none(clock.clone()), None, clock);
        quota.on_throttled();
        assert_eq!(quota.limit(), 95);
        assert!(quota.take().is_err());
    }

    #[test]
    fn a_lowered_limit_holds_for_its_time_and_is_never_above_the_configured_one() {
        let clock = FakeRelativeClock::default();
        let quota = CommandQuota::new(number(100), none(clock.clone()), None, clock);
        let configured = quota.interval();
        quota.cap_until(number(10), clock::tick().after(Duration::from_secs(3600)));
        assert!(quota.take().is_err(), "the change itself gives nothing away");
        assert!(quota.interval() > configured * 8);
        quota.cap_until(number(5000), clock::tick().after(Duration::from_secs(3600)));
        assert_eq!(quota.interval(), configured);
        quota.cap_until(number(10), clock::tick());
        let _ = quota.take();
        assert_eq!(quota.interval(), configured, "its time is over");
    }

    #[tokio::test]
    async fn who_would_come_too_late_is_refused_at_once_and_told_when() {
        let quota = CommandQuota::new(number(1), none(MonotonicClock), None, MonotonicClock);
        let room = Arc::new(Semaphore::new(1));
        let wait = by(&room, 300);
        drop(quota.admit(wait, ready(), || true).await.expect("the first"));
        let Err(AdmitError::DeadlineTooShort(retry_after)) = quota.admit(wait, ready(), || true).await else {
            panic!("there was a turn")
        };
        assert!(retry_after > Duration::from_millis(900), "{retry_after:?}");
        assert!(clock::now() < wait.deadline, "it waited");
        assert_eq!(room.available_permits(), 1, "who is refused holds no room");
    }

    #[tokio::test]
    async fn those_in_line_count_for_who_comes_after_them_but_not_for_another_caller() {
        let quota = Arc::new(CommandQuota::new(number(2), none(MonotonicClock), None, MonotonicClock));
        let room = Arc::new(Semaphore::new(9));
        drop(quota.admit(by(&room, 9000), ready(), || true).await.expect("the first"));
        let flood: Vec<_> = (0..40)
            .map(|_| {
                let (quota, room) = (Arc::clone(&quota), Arc::clone(&room));
                tokio::spawn(async move { quota.admit(by(&room, 60_000), ready(), || true).await.map(drop) })
            })
            .collect();
        while quota.queue.ahead_of(MANY) < 40 || quota.next_permit() == Duration::ZERO {
            tokio::task::yield_now().await;
        }
        let begun = clock::now();
        let deadline = begun + Duration::from_secs(10);
        let refused = quota.admit(AdmitRequest { deadline, ..by(&room, 0) }, ready(), || true).await;
        assert!(matches!(refused, Err(AdmitError::DeadlineTooShort(_))));
        assert!(clock::now() - begun < Duration::from_secs(1), "it was kept waiting");
        let few = quota.predicted_wait(quota.queue.ahead_of(FEW));
        assert!(few < Duration::from_secs(8), "{few:?}");
        flood.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn what_is_no_longer_wanted_or_cannot_get_ready_takes_no_permit() {
        let quota = CommandQuota::new(number(1), none(MonotonicClock), None, MonotonicClock);
        let room = Arc::new(Semaphore::new(1));
        let wait = by(&room, 300);
        assert!(matches!(quota.admit(wait, ready(), || false).await, Ok(Admission::Cancelled(()))));
        let broken = async { Err::<(), _>("no connection") };
        assert!(matches!(quota.admit(wait, broken, || true).await, Err(AdmitError::Connect("no connection"))));
        let all_of_it = Arc::clone(&room).try_acquire_owned().expect("nobody has it");
        assert!(matches!(quota.admit(by(&room, 20), ready(), || true).await, Err(AdmitError::InFlightFull)));
        drop(all_of_it);
        let never = std::future::pending::<Result<(), ()>>();
        assert!(matches!(quota.admit(by(&room, 20), never, || true).await, Err(AdmitError::QueueStalled)));
        assert!(matches!(quota.admit(wait, ready(), || true).await, Ok(Admission::Granted(_))), "the permit is there");
    }
}
