//! Cached reads against a reference, step by step at random: no request gets a response from before a change that was
//! acknowledged before the request came.
//!
//! The steps are those of `src/gateway/reads`, split wherever another thread could run in between. Time often stays the
//! same between two steps, because clocks have a resolution.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::cache::{KeptResponse, ReadCache, ReadKey};
use super::calls::{CallId, JoinRequest, Progress, SharedCalls};
use super::fence::ReadFence;
use super::found::{Found, ReadOptions, may_keep};
use super::rules::CachedRead;
use super::scope::ReadScope;
use crate::domain::caller::Class;
use crate::domain::chat::command::CommandName;
use crate::domain::pairs::directives::CacheDirectives;
use crate::domain::tick::Tick;

/// A write, from its first mark to its acknowledgment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WriteStep {
    Marked,
    Applied,
    MarkedAgain,
}

struct Write {
    scope: ReadScope,
    step: WriteStep,
    /// The version that it made.
    made: u64,
}

/// A shared call, from its start to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CallStep {
    Queued,
    /// It has read the clock.
    Leaving(Tick),
    Sent,
    /// Chat has read this version.
    Answered(u64),
}

struct Call {
    key: ReadKey,
    id: CallId,
    progress: Arc<Progress>,
    step: CallStep,
    /// The lowest version that each waiting request may get.
    waiters: Vec<u64>,
}

struct World {
    random: fastrand::Rng,
    now: u64,
    read: CachedRead,
    cache: ReadCache,
    keys: Vec<ReadKey>,
    fence: ReadFence,
    shared: SharedCalls<usize>,
    /// By handle.
    calls: Vec<Option<Call>>,
    writes: Vec<Write>,
    /// The version at Chat, and the latest one whose change was acknowledged.
    version: u64,
    acknowledged: u64,
    settle: Duration,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    hits: u64,
    joined: u64,
    fetched: u64,
    kept: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let name = CommandName::parse("profile/portrait_get").expect("a name");
        let read = CachedRead::new(name, Duration::from_micros(200)).expect("cacheable");
        let cache = ReadCache::new(1 << 20);
        let app = cache.add_app();
        let key = |number: u8| ReadKey { app, command: Arc::clone(&read.name), request: Bytes::from(vec![number]) };
        let keys = (0..3).map(key).collect();
        let settle = Duration::from_micros(random.u64(..3) * 5);
        Self {
            now: random.u64(1..50),
            random,
            read,
            cache,
            keys,
            fence: ReadFence::default(),
            shared: SharedCalls::default(),
            calls: Vec::new(),
            writes: Vec::new(),
            version: 0,
            acknowledged: 0,
            settle,
            counts: Counts::default(),
        }
    }

    fn tick(&self) -> Tick {
        Tick::from_micros(self.now)
    }

    fn last_mark(&self) -> Tick {
        self.fence.last_mark(&self.read.services)
    }

    fn step(&mut self) {
        // Often zero: two steps within the resolution of the clock.
        self.now += [0, 0, 1, 1, 3, 20][self.random.usize(..6)];
        match self.random.u8(..40) {
            0..=9 => self.request(),
            10..=34 => self.advance_call(),
            35 if self.writes.len() < 3 => self.begin_write(),
            36 => self.event(),
            _ => self.advance_write(),
        }
    }

    fn request(&mut self) {
        let key = self.keys[self.random.usize(..self.keys.len())].clone();
        let directives = match self.random.u8(..6) {
            0 => CacheDirectives { no_cache: true, ..CacheDirectives::default() },
            1 => CacheDirectives { max_stale: Some(Duration::from_secs(1)), ..CacheDirectives::default() },
            2 => CacheDirectives { max_age: Some(Duration::ZERO), ..CacheDirectives::default() },
            _ => CacheDirectives::default(),
        };
        let options = ReadOptions { directives, ttl: self.read.ttl, stale_if_error: Duration::from_secs(1) };
        let floor = self.acknowledged;
        let kept = self.cache.get(&key);
        if let Found::Usable { response, .. } = options.judge(kept, self.last_mark(), self.tick()) {
            self.counts.hits += 1;
            return check(version_of(&response), floor);
        }
        let (last_mark, may_join_sent) = (self.last_mark(), directives.may_join());
        let join = JoinRequest { class: Class::Interactive, last_mark, may_join_sent };
        if let Some(handle) = self.shared.join(&key, join).map(|(handle, _)| *handle) {
            self.counts.joined += 1;
            self.calls[handle].as_mut().expect("a running call").waiters.push(floor);
            return;
        }
        self.counts.fetched += 1;
        let (progress, handle) = (Arc::new(Progress::new(Class::Interactive)), self.calls.len());
        let id = self.shared.start(key.clone(), handle, Arc::clone(&progress)).expect("few calls");
        self.calls.push(Some(Call { key, id, progress, step: CallStep::Queued, waiters: vec![floor] }));
    }

    /// Advances a random call. A call may also fail, or lose all requests that wait for it.
    fn advance_call(&mut self) {
        let running: Vec<usize> = (0..self.calls.len()).filter(|handle| self.calls[*handle].is_some()).collect();
        let Some(handle) = self.random.choice(running) else { return };
        let mut call = self.calls[handle].take().expect("a running call");
        if self.random.u8(..12) == 0 {
            call.waiters.clear();
        }
        let fails = self.random.u8(..15) == 0;
        call.step = match call.step {
            CallStep::Queued if call.waiters.is_empty() => return self.shared.end(&call.key, call.id),
            _ if fails => return self.fail(call),
            CallStep::Queued => CallStep::Leaving(self.tick()),
            CallStep::Leaving(now) => {
                call.progress.record_sent(now);
                CallStep::Sent
            }
            CallStep::Sent => CallStep::Answered(self.version),
            CallStep::Answered(version) => return self.complete(&call, version),
        };
        self.calls[handle] = Some(call);
    }

    /// A failed call answers with what the cache has, if that is allowed.
    fn fail(&mut self, call: Call) {
        self.shared.end(&call.key, call.id);
        let options = ReadOptions {
            directives: CacheDirectives::default(),
            ttl: self.read.ttl,
            stale_if_error: Duration::from_secs(1),
        };
        let kept = self.cache.get(&call.key);
        let usable = kept.filter(|kept| options.may_answer_failure(kept, self.last_mark(), self.tick()));
        if let Some(kept) = usable {
            call.waiters.iter().for_each(|floor| check(version_of(&kept), *floor));
        }
    }

    fn complete(&mut self, call: &Call, version: u64) {
        let sent = call.progress.sent().expect("it was sent");
        if may_keep(sent, self.last_mark(), self.settle) {
            self.counts.kept += 1;
            let body = Bytes::copy_from_slice(&version.to_be_bytes());
            self.cache.insert(&call.key, &KeptResponse { content_type: None, body, sent });
        }
        self.shared.end(&call.key, call.id);
        call.waiters.iter().for_each(|floor| check(version, *floor));
    }

    fn begin_write(&mut self) {
        let scope = match self.random.u8(..4) {
            0 => ReadScope::All,
            1 => ReadScope::of_write(CommandName::parse("im_open_login_svc/account_import").expect("a name")),
            _ => ReadScope::of_write(CommandName::parse("profile/portrait_set").expect("a name")),
        };
        self.fence.mark(&scope, self.tick());
        self.writes.push(Write { scope, step: WriteStep::Marked, made: 0 });
    }

    fn advance_write(&mut self) {
        if self.writes.is_empty() {
            return;
        }
        let at = self.random.usize(..self.writes.len());
        let now = self.tick();
        let write = &mut self.writes[at];
        match write.step {
            WriteStep::Marked => {
                self.version += 1;
                (write.made, write.step) = (self.version, WriteStep::Applied);
            }
            // Also if it failed, or its caller left.
            WriteStep::Applied => {
                self.fence.mark(&write.scope, now);
                write.step = WriteStep::MarkedAgain;
            }
            WriteStep::MarkedAgain => {
                self.acknowledged = self.acknowledged.max(self.writes.swap_remove(at).made);
            }
        }
    }

    /// A client changes something, and the event is acknowledged.
    fn event(&mut self) {
        if self.random.u8(..4) == 0 {
            self.version += 1;
            let made = self.version;
            self.fence.mark(&ReadScope::of_event("Profile.CallbackPortraitSet").expect("a family"), self.tick());
            self.acknowledged = self.acknowledged.max(made);
        }
    }
}

fn version_of(kept: &KeptResponse) -> u64 {
    u64::from_be_bytes(kept.body[..].try_into().expect("eight bytes"))
}

fn check(seen: u64, floor: u64) {
    assert!(seen >= floor, "version {seen}, although {floor} was acknowledged before the request");
}

fn run(worlds: u64, steps: u64) {
    let mut total = Counts::default();
    for seed in 0..worlds {
        let mut world = World::new(seed);
        (0..steps).for_each(|_| world.step());
        let Counts { hits, joined, fetched, kept } = world.counts;
        total = Counts {
            hits: total.hits + hits,
            joined: total.joined + joined,
            fetched: total.fetched + fetched,
            kept: total.kept + kept,
        };
    }
    let few = worlds * steps / 1000;
    let Counts { hits, joined, fetched, kept } = total;
    assert!(hits > few && joined > few && fetched > few && kept > few, "too little happened: {total:?}");
}

#[test]
fn no_response_is_from_before_an_acknowledged_change() {
    run(100, 500);
}

#[test]
#[ignore = "a million steps: cargo test --release --lib -- --ignored reads::model"]
fn no_response_in_a_million_steps_is_from_before_an_acknowledged_change() {
    run(2000, 500);
}
