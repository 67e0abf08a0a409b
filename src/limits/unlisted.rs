//! Quotas of commands outside the built-in table: bounded in number, and dropped only when they no longer matter.
//!
//! At every instant a command has at most one quota that matters, and no event slows down another command. The rules:
//!
//! - A quota leaves the map only if [`CommandQuota::retire`] agrees: no caller holds it, no call is queued, its limit
//!   is the configured one, and its burst is whole. A new quota in its place then behaves exactly like it.
//! - A quota is capped only if it is a command's own: the rest serves other commands, which a cap must not slow down.
//! - While the map is full, further commands share one quota, the *rest*. As long as the rest matters, no new quota is
//!   created: a command that used the rest a moment ago would get a second one.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use parking_lot::Mutex;

use super::command_quota::CommandQuota;
use crate::domain::tick::Tick;

/// The shortest time between two sweeps of a full map. A sweep of 1024 quotas took 0.13 ms in a debug build.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum number of quotas that are capped at the same time. A rate-limit alert names its command, and invented names
/// must not fill the map.
pub(super) const CAPPED_MAX: usize = 64;

/// The quotas of all unlisted commands of an app.
#[derive(Debug)]
pub(super) struct UnlistedQuotas<C: Clock = MonotonicClock> {
    max: usize,
    quotas: Mutex<Quotas<C>>,
}

#[derive(Debug)]
struct Quotas<C: Clock> {
    own: HashMap<Box<str>, Arc<CommandQuota<C>>>,
    /// Shared by the commands that found no place in `own`, while it matters.
    rest: Option<Arc<CommandQuota<C>>>,
    next_sweep_at: Tick,
}

/// What a quota is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QuotaOf<'a> {
    /// One command, by its name.
    Command(&'a str),
    /// All commands without a quota of their own.
    Rest,
}

impl<C: Clock + Clone> UnlistedQuotas<C> {
    /// Returns an empty map for up to `max` quotas.
    pub(super) fn new(max: usize) -> Self {
        let quotas = Quotas { own: HashMap::new(), rest: None, next_sweep_at: Tick::NEVER };
        Self { max, quotas: Mutex::new(quotas) }
    }

    /// Returns the quota of a command, which `create` makes if there is none.
    pub(super) fn get(
        &self,
        name: &str,
        now: Tick,
        create: impl FnOnce(QuotaOf<'_>) -> CommandQuota<C>,
    ) -> Arc<CommandQuota<C>> {
        self.quotas.lock().get(self.max, name, now, create)
    }

    /// Caps the quota of a command, which `create` makes if there is none. Returns `false`, without a cap, if
    /// [`CAPPED_MAX`] other quotas are capped or the command shares the rest.
    pub(super) fn cap(
        &self,
        name: &str,
        (limit, until): (NonZeroU32, Tick),
        now: Tick,
        create: impl FnOnce(QuotaOf<'_>) -> CommandQuota<C>,
    ) -> bool {
        let mut quotas = self.quotas.lock();
        let others = quotas.own.iter().filter(|(other, quota)| &***other != name && quota.is_capped(now));
        if others.count() >= CAPPED_MAX {
            return false;
        }
        let quota = quotas.get(self.max, name, now, create);
        let is_own = quotas.own.contains_key(name);
        if is_own {
            quota.cap_until(limit, until);
        }
        is_own
    }

    /// Calls `visit` with every quota.
    pub(super) fn for_each(&self, mut visit: impl FnMut(QuotaOf<'_>, &CommandQuota<C>)) {
        let quotas = self.quotas.lock();
        quotas.own.iter().for_each(|(name, quota)| visit(QuotaOf::Command(name), quota));
        if let Some(rest) = &quotas.rest {
            visit(QuotaOf::Rest, rest);
        }
    }
}

impl<C: Clock + Clone> Quotas<C> {
    fn get(
        &mut self,
        max: usize,
        name: &str,
        now: Tick,
        create: impl FnOnce(QuotaOf<'_>) -> CommandQuota<C>,
    ) -> Arc<CommandQuota<C>> {
        if let Some(quota) = self.own.get(name) {
            return Arc::clone(quota);
        }
        if self.rest.as_mut().is_some_and(|rest| retire(rest, now)) {
            self.rest = None;
        }
        if let Some(rest) = &self.rest {
            return Arc::clone(rest);
        }
        if self.own.len() >= max && now >= self.next_sweep_at {
            self.own.retain(|_, quota| !retire(quota, now));
            self.next_sweep_at = now.after(SWEEP_INTERVAL);
        }
        if self.own.len() >= max {
            return Arc::clone(self.rest.insert(Arc::new(create(QuotaOf::Rest))));
        }
        let quota = Arc::new(create(QuotaOf::Command(name)));
        self.own.insert(name.into(), Arc::clone(&quota));
        quota
    }
}

/// Whether the quota can be dropped. See [`CommandQuota::retire`].
fn retire<C: Clock + Clone>(quota: &mut Arc<CommandQuota<C>>, now: Tick) -> bool {
    Arc::get_mut(quota).is_some_and(|quota| quota.retire(now))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use governor::clock::FakeRelativeClock;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::app_quota::AppQuota;
    use super::super::reserve::CommandRate;
    use super::*;
    use crate::domain::caller::{CallerQueue, Class, QueueKey};

    const PER_SECOND: NonZeroU32 = NonZeroU32::new(5).expect("not 0");

    type Quota = CommandQuota<FakeRelativeClock>;

    /// A map on a clock of its own. Time passes only in [`Fixture::advance`].
    struct Fixture {
        quotas: UnlistedQuotas<FakeRelativeClock>,
        total: Arc<AppQuota<FakeRelativeClock>>,
        clock: FakeRelativeClock,
        now: Tick,
        created: Cell<usize>,
    }

    impl Fixture {
        fn new(max: usize) -> Self {
            let clock = FakeRelativeClock::default();
            let total = Arc::new(AppQuota::new(None, None, clock.clone()));
            let now = Tick::from_micros(1_000_000_000);
            Self { quotas: UnlistedQuotas::new(max), total, clock, now, created: Cell::new(0) }
        }

        fn get(&self, name: &str) -> Arc<Quota> {
            self.quotas.get(name, self.now, |_| self.create())
        }

        /// Caps a quota at one call per second.
        fn cap(&self, name: &str, span: Duration) -> bool {
            self.quotas.cap(name, (NonZeroU32::MIN, self.now.after(span)), self.now, |_| self.create())
        }

        fn create(&self) -> Quota {
            self.created.set(self.created.get() + 1);
            CommandQuota::new(
                CommandRate { per_second: PER_SECOND, reserve: 0 },
                Arc::clone(&self.total),
                None,
                self.clock.clone(),
            )
        }

        /// Uses other names until the map is full and has been swept.
        fn fill(&self) {
            (0..=self.quotas.max).for_each(|n| drop(self.get(&format!("filler/{n}"))));
        }

        fn advance(&mut self, span: Duration) {
            self.clock.advance(span);
            self.now = self.now.after(span);
        }

        fn is_rest(&self, quota: &Arc<Quota>) -> bool {
            self.quotas.quotas.lock().rest.as_ref().is_some_and(|rest| Arc::ptr_eq(rest, quota))
        }
    }

    #[test]
    fn lowered_limit_survives_idle_time() {
        let mut fixture = Fixture::new(4);
        let hold = Duration::from_secs(600);
        fixture.get("a/b").cap_until(NonZeroU32::MIN, fixture.now.after(hold));
        fixture.advance(Duration::from_secs(11));
        fixture.fill();
        assert_eq!(fixture.get("a/b").limit(), 1, "11 s later");
        fixture.advance(hold - Duration::from_secs(12));
        fixture.fill();
        assert_eq!(fixture.get("a/b").limit(), 1, "one second before the cap ends");
        // The end of the cap resets the limiter. Its burst is whole again after an interval.
        (0..2).for_each(|_| {
            fixture.advance(Duration::from_secs(3));
            fixture.fill();
        });
        assert_eq!(fixture.get("a/b").limit(), 5, "after the cap");
    }

    #[test]
    fn quota_in_use_is_returned_after_any_time() {
        let mut fixture = Fixture::new(4);
        // A queued call borrows the quota, as its caller holds it.
        let held = fixture.get("a/b");
        let _entry = held.lanes.join(CallerQueue::interactive(QueueKey(1)));
        for _ in 0..10 {
            fixture.advance(Duration::from_secs(3600));
            fixture.fill();
            assert!(Arc::ptr_eq(&held, &fixture.get("a/b")));
        }
    }

    #[test]
    fn commands_beyond_the_bound_share_the_rest() {
        let mut fixture = Fixture::new(3);
        let own: Vec<_> = (0..3).map(|n| fixture.get(&format!("a/{n}"))).collect();
        let (one, two) = (fixture.get("b/1"), fixture.get("b/2"));
        assert!(Arc::ptr_eq(&one, &two) && fixture.is_rest(&one));
        assert!(own.iter().all(|own| !Arc::ptr_eq(own, &one)));
        assert_eq!(fixture.created.get(), 4);
        drop(own);
        fixture.advance(Duration::from_secs(60));
        // All places are free now, but the rest is still in use.
        assert!(Arc::ptr_eq(&fixture.get("b/3"), &one));
        drop((one, two));
        assert!(!fixture.is_rest(&fixture.get("b/1")));
        assert!(fixture.quotas.quotas.lock().rest.is_none());
    }

    #[test]
    fn capped_quotas_are_bounded_and_leave_other_commands_alone() {
        let mut fixture = Fixture::new(1000);
        let hold = Duration::from_secs(600);
        let capped = (0..500).filter(|n| fixture.cap(&format!("invented/{n}"), hold)).count();
        assert_eq!((capped, fixture.created.get()), (CAPPED_MAX, CAPPED_MAX));
        assert!(fixture.cap("invented/7", hold), "it is among the capped ones");
        assert!(!fixture.cap("a/b", hold) && fixture.get("a/b").limit() == 5);
        fixture.advance(hold);
        assert!(fixture.cap("a/b", hold) && fixture.get("a/b").limit() == 1, "the caps have ended");
    }

    #[test]
    fn command_that_shares_the_rest_is_not_capped() {
        let fixture = Fixture::new(2);
        let held: Vec<_> = (0..2).map(|n| fixture.get(&format!("a/{n}"))).collect();
        assert!(!fixture.cap("b/1", Duration::from_secs(600)));
        assert_eq!(fixture.get("b/2").limit(), 5);
        assert!(fixture.cap("a/0", Duration::from_secs(600)) && held[0].limit() == 1);
    }

    #[test]
    fn idle_quotas_make_room_and_the_map_stays_bounded() {
        let mut fixture = Fixture::new(8);
        for n in 0..1000 {
            let quota = fixture.get(&format!("a/{n}"));
            let _ = quota.take_at(Class::Interactive, fixture.now);
            fixture.advance(Duration::from_millis(500));
            assert!(fixture.quotas.quotas.lock().own.len() <= 8);
        }
        assert!(fixture.created.get() > 500, "{} quotas", fixture.created.get());
    }

    /// A step of the property below, with the number of a name.
    #[derive(Debug, Clone)]
    enum Step {
        Take(usize),
        Hold(usize),
        Release(usize),
        Throttle(usize),
        Cap(usize, u64),
        Advance(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let name = 0..6_usize;
        let step = prop_oneof![
            6 => name.clone().prop_map(Step::Take),
            2 => name.clone().prop_map(Step::Hold),
            2 => name.clone().prop_map(Step::Release),
            1 => name.clone().prop_map(Step::Throttle),
            1 => (name, 1..20_000_u64).prop_map(|(name, millis)| Step::Cap(name, millis)),
            3 => (1..400_u64).prop_map(Step::Advance),
            2 => (1000..20_000_u64).prop_map(Step::Advance),
        ];
        vec(step, 1..200)
    }

    proptest! {
        /// Seen from outside: a held quota is always the one that is returned, a lowered limit is never forgotten, and
        /// no second has more calls of one name than its limit.
        #[test]
        fn name_never_has_two_quotas_that_matter(steps in steps(), max in 1..5_usize) {
            let mut fixture = Fixture::new(max);
            let mut held: [Vec<Arc<Quota>>; 6] = Default::default();
            let mut capped_until = [Tick::NEVER; 6];
            let mut taken: [Vec<Tick>; 6] = Default::default();
            for step in steps {
                let name = match step {
                    Step::Advance(millis) => {
                        fixture.advance(Duration::from_millis(millis));
                        continue;
                    }
                    Step::Take(name) | Step::Hold(name) | Step::Release(name) | Step::Throttle(name)
                    | Step::Cap(name, _) => name,
                };
                let quota = fixture.get(&format!("a/{name}"));
                prop_assert!(held[name].iter().all(|held| Arc::ptr_eq(held, &quota)), "two quotas of {name}");
                prop_assert!(fixture.now >= capped_until[name] || quota.limit() == 1, "{name} lost its cap");
                match step {
                    Step::Take(_) => if quota.take_at(Class::Interactive, fixture.now).is_ok() {
                        taken[name].push(fixture.now);
                    },
                    Step::Hold(_) => held[name].push(quota),
                    Step::Release(_) => held[name].clear(),
                    Step::Throttle(_) => drop(quota.on_throttled_at(fixture.now)),
                    // A later cap replaces the one before, for all names that share the quota: none ends earlier.
                    Step::Cap(_, millis) => {
                        let latest = capped_until.iter().max().copied().unwrap_or(Tick::NEVER);
                        let until = fixture.now.after(Duration::from_millis(millis)).max(latest);
                        quota.cap_until(NonZeroU32::MIN, until);
                        capped_until[name] = until;
                    }
                    Step::Advance(_) => {}
                }
            }
            for taken in taken {
                for (first, at) in taken.iter().enumerate() {
                    let in_a_second = taken[first..].iter().take_while(|other| other.since(*at) < Duration::from_secs(1));
                    prop_assert!(in_a_second.count() <= PER_SECOND.get() as usize);
                }
            }
        }
    }
}
