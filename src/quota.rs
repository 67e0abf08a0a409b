//! Calls a second, as Chat counts them: for each app and command, and for an app in all.
//!
//! Chat does not say how its window is cut, so the promise is the strictest one: in *no* window of
//! one second do more than N calls leave. GCRA lets a burst of b pass at once and then one call each
//! interval, so a window of length W sees at most b + W / interval calls. Choosing
//! `interval = W / (N - b + 1)`, a hair longer, keeps that at N. W is one second and
//! some milliseconds, because the time between permit and socket varies.
//!
//! Whoever waits does so in the order of coming, and only if a turn comes before the deadline. The
//! permit is the last thing that a call takes: its connection is there already, so that calls reach
//! the wire as they were let go.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::clock;
use crate::config;
use crate::domain::command::{CommandName, KNOWN_COMMANDS};
use crate::domain::tick::Tick;

/// How much later than another a call may reach the wire after its permit.
const JITTER: Duration = Duration::from_millis(80);
/// One part in so many of a second's calls may go at once.
const BURST_PART: u32 = 50;
/// How many calls of one command may have a connection ready and wait for their permit.
const READY_MAX: usize = 8;
/// Most commands outside the built-in table that have a quota of their own at one time; further
/// ones share one. Each takes some 300 bytes.
const OTHERS_MAX: u64 = 1024;
/// After so long without a call a quota is full again and may be forgotten.
const OTHERS_IDLE: Duration = Duration::from_secs(10);

/// Burst and interval that keep every second at `per_second` calls or fewer.
fn pace(per_second: NonZeroU32) -> (NonZeroU32, Duration) {
    let burst = NonZeroU32::new(per_second.get() / BURST_PART).unwrap_or(NonZeroU32::MIN);
    let window = (Duration::from_secs(1) + JITTER).as_nanos() as u64;
    let intervals = u64::from(per_second.get() - burst.get()) + 1;
    (burst, Duration::from_nanos(window / intervals + 1))
}

/// GCRA for one rate.
#[derive(Debug)]
struct Pacer<C: Clock> {
    limiter: RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>,
    clock: C,
    interval: Duration,
}

impl<C: Clock + Clone> Pacer<C> {
    fn new(per_second: NonZeroU32, clock: C) -> Self {
        let (burst, interval) = pace(per_second);
        let quota = Quota::with_period(interval).expect("an interval is at least a nanosecond").allow_burst(burst);
        Self { limiter: RateLimiter::direct_with_clock(quota, clock.clone()), clock, interval }
    }

    /// Takes a permit, or says how long there will be none.
    fn take(&self) -> Result<(), Duration> {
        self.limiter.check().map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }
}

/// The quota of one command.
#[derive(Debug)]
pub struct CommandQuota<C: Clock = MonotonicClock> {
    own: Pacer<C>,
    total: Option<Arc<Pacer<C>>>,
    /// For those who get ready, in the order of coming.
    ready: Semaphore,
    /// Held by the one whose turn it is.
    turn: Mutex<()>,
    waiting: AtomicU32,
    /// When the one whose turn it is expects its permit, in ticks.
    next_at: AtomicU64,
}

/// Why a wait ended without a permit.
#[derive(Debug, PartialEq, Eq)]
pub enum NoPermit<E> {
    /// No turn before the deadline. There may be one after so long, from now.
    Late(Duration),
    /// It could not get ready.
    NotReady(E),
}

/// What a call has once it may go.
#[derive(Debug)]
pub struct Permit<T> {
    /// Room among the calls in flight.
    pub slot: OwnedSemaphorePermit,
    /// What it got ready.
    pub ready: T,
}

impl<C: Clock + Clone> CommandQuota<C> {
    fn new(per_second: NonZeroU32, total: Option<Arc<Pacer<C>>>, clock: C) -> Self {
        Self {
            own: Pacer::new(per_second, clock),
            total,
            ready: Semaphore::new(READY_MAX),
            turn: Mutex::new(()),
            waiting: AtomicU32::new(0),
            next_at: AtomicU64::new(0),
        }
    }

    /// Takes a permit for one call, or says how long there will be none.
    ///
    /// The app's total is asked second: if it has none, the command's permit is lost. That errs on
    /// the side of fewer calls, and only while the total is what holds calls back.
    ///
    /// # Errors
    /// The time after which to ask again.
    pub fn take(&self) -> Result<(), Duration> {
        self.own.take()?;
        self.total.as_ref().map_or(Ok(()), |total| total.take())
    }

    /// The time from one permit to the next once the burst is used up.
    pub fn interval(&self) -> Duration {
        self.own.interval
    }

    /// In what time the one whose turn it is expects its permit.
    pub fn next_permit(&self) -> Duration {
        Tick::from_micros(self.next_at.load(Ordering::Relaxed)).since(clock::tick())
    }

    /// How long somebody who came now would wait, if nobody leaves.
    fn predicted_wait(&self) -> Duration {
        match self.waiting.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            ahead => self.next_permit() + self.interval().saturating_mul(ahead),
        }
    }

    /// Waits in line: gets ready, then takes room among the calls in flight and a permit together, so
    /// that a permit is used at once and a call that waits holds no room. When its turn comes and
    /// `wanted` says that the call is no longer, it gets `None` and takes nothing.
    ///
    /// Dropping the future gives the place up.
    ///
    /// # Errors
    /// [`NoPermit::Late`] at once if the turn would come after the deadline, else when the deadline
    /// passes; [`NoPermit::NotReady`] with what `get_ready` says.
    pub async fn wait<T, E>(
        &self,
        room: &Arc<Semaphore>,
        deadline: Instant,
        get_ready: impl Future<Output = Result<T, E>>,
        wanted: impl Fn() -> bool,
    ) -> Result<Option<Permit<T>>, NoPermit<E>> {
        let predicted = self.predicted_wait();
        let _waiting = Waiting::new(&self.waiting);
        if clock::now() + predicted > deadline {
            return Err(NoPermit::Late(predicted));
        }
        let in_line = async {
            let _place = self.ready.acquire().await.expect("nobody closes it");
            let ready = get_ready.await.map_err(NoPermit::NotReady)?;
            let _turn = self.turn.lock().await;
            loop {
                let slot = Arc::clone(room).acquire_owned().await.expect("nobody closes it");
                if !wanted() {
                    return Ok(None);
                }
                let Err(wait) = self.take() else { return Ok(Some(Permit { slot, ready })) };
                drop(slot);
                if clock::now() + wait > deadline {
                    return Err(NoPermit::Late(wait));
                }
                self.next_at.store(clock::tick().after(wait).micros(), Ordering::Relaxed);
                tokio::time::sleep(wait).await;
            }
        };
        let waited = tokio::time::timeout_at(deadline.into(), in_line).await;
        waited.unwrap_or_else(|_| Err(NoPermit::Late(self.interval())))
    }
}

/// Counts a waiter as long as it waits.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The quotas of one app.
#[derive(Debug)]
pub struct AppQuotas {
    config: config::Quota,
    total: Option<Arc<Pacer<MonotonicClock>>>,
    known: HashMap<CommandName<'static>, Arc<CommandQuota>>,
    /// Commands nobody listed, by name. Those not called for a while leave by themselves.
    others: moka::sync::Cache<String, Arc<CommandQuota>>,
    /// Shared by commands that find no place among `others`.
    rest: Arc<CommandQuota>,
}

impl AppQuotas {
    /// From the configured numbers and the vendor's own lower ones.
    pub fn new(config: config::Quota) -> Self {
        let total = config.total.map(|total| Arc::new(Pacer::new(total, MonotonicClock)));
        let quota = |limit| Arc::new(CommandQuota::new(limit, total.clone(), MonotonicClock));
        Self {
            known: KNOWN_COMMANDS.iter().map(|known| (known.name, quota(config.limit(known.name)))).collect(),
            others: moka::sync::Cache::builder().max_capacity(OTHERS_MAX).time_to_idle(OTHERS_IDLE).build(),
            rest: quota(config.per_command),
            total,
            config,
        }
    }

    /// The quota of a command.
    pub fn of(&self, name: CommandName<'_>) -> Arc<CommandQuota> {
        if let Some(known) = self.known.get(&name) {
            return Arc::clone(known);
        }
        let key = name.to_string();
        if let Some(other) = self.others.get(&key) {
            return other;
        }
        // A place must never be given up while its quota counts, so a full house takes nobody in.
        if self.others.entry_count() >= OTHERS_MAX / 2 {
            return Arc::clone(&self.rest);
        }
        let limit = self.config.limit(name);
        self.others.get_with(key, || Arc::new(CommandQuota::new(limit, self.total.clone(), MonotonicClock)))
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
        let pacer = Pacer::new(number(per_second), clock.clone());
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
    fn any_rate_that_can_be_configured_has_a_pace() {
        for per_second in [1, 7, 1_000_000, 10_000_000, u32::MAX] {
            let (burst, interval) = pace(number(per_second));
            assert!(burst.get() <= per_second && interval > Duration::ZERO);
            Pacer::new(number(per_second), FakeRelativeClock::default()).take().expect("a first permit");
        }
    }

    #[test]
    fn the_total_holds_back_every_command() {
        let clock = FakeRelativeClock::default();
        let total = Arc::new(Pacer::new(number(1), clock.clone()));
        let one = CommandQuota::new(number(100), Some(Arc::clone(&total)), clock.clone());
        let two = CommandQuota::new(number(100), Some(total), clock.clone());
        assert!(one.take().is_ok());
        let wait = two.take().expect_err("the total is used up");
        assert!(wait > Duration::from_secs(1));
        clock.advance(wait);
        assert!(two.take().is_ok());
    }

    async fn ready() -> Result<(), ()> {
        Ok(())
    }

    #[tokio::test]
    async fn who_would_come_too_late_is_refused_at_once_and_told_when() {
        let quota = CommandQuota::new(number(1), None, MonotonicClock);
        let room = Arc::new(Semaphore::new(1));
        let deadline = clock::now() + Duration::from_millis(300);
        drop(quota.wait(&room, deadline, ready(), || true).await.expect("the first"));
        let Err(NoPermit::Late(retry_after)) = quota.wait(&room, deadline, ready(), || true).await else {
            panic!("there was a turn")
        };
        assert!(retry_after > Duration::from_millis(900), "{retry_after:?}");
        assert!(clock::now() < deadline, "it waited");
        assert_eq!(room.available_permits(), 1, "who is refused holds no room");
    }

    #[tokio::test]
    async fn those_in_line_count_for_who_comes_after_them() {
        let quota = Arc::new(CommandQuota::new(number(1), None, MonotonicClock));
        let room = Arc::new(Semaphore::new(9));
        let deadline = clock::now() + Duration::from_millis(2500);
        drop(quota.wait(&room, deadline, ready(), || true).await.expect("the first"));
        let waits = |quota: &Arc<CommandQuota>| {
            let (quota, room) = (Arc::clone(quota), Arc::clone(&room));
            tokio::spawn(async move { quota.wait(&room, deadline, ready(), || true).await.map(drop) })
        };
        let in_line = [waits(&quota), waits(&quota)];
        while quota.waiting.load(Ordering::Relaxed) < 2 || quota.next_at.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let begun = clock::now();
        assert!(matches!(quota.wait(&room, deadline, ready(), || true).await, Err(NoPermit::Late(_))));
        assert!(clock::now() - begun < Duration::from_millis(500), "the third was kept waiting");
        in_line.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn what_is_no_longer_wanted_or_cannot_get_ready_takes_no_permit() {
        let quota = CommandQuota::new(number(1), None, MonotonicClock);
        let room = Arc::new(Semaphore::new(1));
        let deadline = clock::now() + Duration::from_millis(300);
        assert!(quota.wait(&room, deadline, ready(), || false).await.expect("no error").is_none());
        let broken = async { Err::<(), _>("no connection") };
        assert_eq!(quota.wait(&room, deadline, broken, || true).await.err(), Some(NoPermit::NotReady("no connection")));
        assert!(quota.wait(&room, deadline, ready(), || true).await.expect("the permit is there").is_some());
    }

    #[tokio::test]
    async fn commands_outside_the_table_have_quotas_of_their_own_up_to_a_bound() {
        let config = config::Quota { per_command: number(5), total: None, commands: HashMap::new() };
        let quotas = AppQuotas::new(config);
        let name = |n: usize| format!("future/command_{n}");
        for n in 0..5000 {
            let text = name(n);
            let _ = quotas.of(CommandName::parse(&text).expect("a name"));
            quotas.others.run_pending_tasks();
        }
        assert!(quotas.others.entry_count() <= OTHERS_MAX);
        let (a, b) = (name(1), name(2));
        let (a, b) = (CommandName::parse(&a).expect("a name"), CommandName::parse(&b).expect("a name"));
        assert!(Arc::ptr_eq(&quotas.of(a), &quotas.of(a)));
        assert!(!Arc::ptr_eq(&quotas.of(a), &quotas.of(b)));
    }
}
