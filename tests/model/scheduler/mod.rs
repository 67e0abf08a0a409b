//! A seeded simulation of checks: readers, writes, and a simulated Chat under one scripted clock.
//!
//! Each seed is one interleaving, and a failing seed replays exactly. The simulation is larger and longer than the
//! exhaustive [`model`](super::model), but tries few of its interleavings. It drives the same code: [`CheckSession`],
//! [`LookupScheduler`], [`Waiters`], [`Fence`], and [`PairCache`].

mod chat;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::chat::{Chat, PAIRS, USERS, pair_index};
use super::super::cache::PairCache;
use super::super::check::{CheckOptions, CheckSession, CheckStep, LookupFailure, PairView};
use super::super::directives::CacheDirectives;
use super::super::fence::Fence;
use super::super::item::{Item, MissingReason};
use super::super::pair::UserHasher;
use super::super::scope::{Scope, ScopeKeys};
use super::*;
use crate::domain::policy::stale_gate::StaleGate;
use crate::domain::relation::FOLLOW;

/// Longer than a schedule: pairs do not expire.
const TTL: Duration = Duration::from_secs(3600);

/// One schedule. The seed decides every step.
struct Simulation {
    random: u64,
    now: u64,
    hasher: UserHasher,
    scheduler: LookupScheduler,
    waiters: Waiters<Ticket>,
    cache: PairCache,
    fence: Fence,
    /// A fence without marks, for [`Fault::JudgedOnce`].
    unmarked: Fence,
    /// Records no failure: nothing is served stale.
    stale_gate: StaleGate,
    chat: Chat,
    /// For each pair, the number of its writes that were acknowledged.
    acknowledged: [u64; 6],
    /// Writes whose callers have no response yet.
    writes: Vec<Write>,
    calls: Vec<Call>,
    waiting: BTreeMap<Ticket, Reader>,
    /// Readers with the results of all their pairs, which they have not applied yet.
    notified: Vec<(Reader, PairResults)>,
    fault: Option<Fault>,
    responses: u64,
}

/// A broken gateway, which the simulation must catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Writes mark once, before they are sent; events do not mark.
    NoSecondMark,
    /// Readers do not judge the answers that they have again when the rest arrives.
    JudgedOnce,
}

struct Write {
    change: Change,
    /// The versions that it gave its pairs; `None` until Chat has applied it.
    applied: Option<Vec<(usize, u64)>>,
}

struct Change {
    scope: ScopeKeys,
    /// The pairs that it changes. All of them are in the scope.
    pairs: Vec<usize>,
}

struct Call {
    batch: Batch,
    sent: Tick,
    was_read: bool,
}

/// A request that checks pairs.
struct Reader {
    from: usize,
    to: Vec<usize>,
    caller: QueueKey,
    session: CheckSession,
    /// The ticket of its lookup, and which of the wanted pairs joined a lookup.
    lookup: Option<(Ticket, Vec<bool>)>,
    /// The slots that have no result yet.
    open: BTreeSet<usize>,
    /// Its deadline has passed.
    was_late: bool,
}

fn holds(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

impl Simulation {
    fn new(seed: u64, fault: Option<Fault>) -> Self {
        Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            now: 1,
            hasher: UserHasher::new(&[3; 16]),
            scheduler: LookupScheduler::new(!seed.is_multiple_of(5), if seed.is_multiple_of(2) { 2 } else { 100 }),
            waiters: Waiters::default(),
            cache: PairCache::new(64),
            fence: Fence::default(),
            unmarked: Fence::with_slots(1, 1),
            stale_gate: StaleGate::default(),
            chat: Chat::default(),
            acknowledged: [0; 6],
            writes: Vec::new(),
            calls: Vec::new(),
            waiting: BTreeMap::new(),
            notified: Vec::new(),
            fault,
            responses: 0,
        }
    }

    /// Runs a schedule until all calls have ended, and returns the number of responses.
    fn run(seed: u64, fault: Option<Fault>) -> Result<u64, String> {
        let mut simulation = Self::new(seed, fault);
        for _ in 0..120 {
            simulation.step()?;
        }
        for _ in 0..400 {
            simulation.now += 1;
            simulation.send();
            simulation.chat_reads();
            simulation.arrive()?;
            simulation.apply_results()?;
        }
        simulation.check_end()?;
        Ok(simulation.responses)
    }

    /// Checks that each reader that did not disconnect has a response, and that nothing is left behind.
    fn check_end(&self) -> Result<(), String> {
        let waiting = self.waiting.len() + self.notified.len();
        holds(waiting == 0 && self.scheduler.waiting() == 0, || format!("{waiting} requests wait forever"))?;
        let LookupScheduler { edges, joinable, nodes, queues, turns, in_flight, tickets, waiting_by_caller, .. } =
            &self.scheduler;
        let empty = edges.is_empty() && joinable.is_empty() && nodes.is_empty() && queues.is_empty();
        let empty = empty && turns.is_empty() && in_flight.is_empty() && tickets.is_empty();
        let empty = empty && waiting_by_caller.is_empty() && self.waiters.is_empty();
        holds(empty, || "something is left behind".to_owned())
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % bound as u64) as usize
    }

    /// Chooses one of these indexes, if there are any.
    fn choose(&mut self, indexes: Vec<usize>) -> Option<usize> {
        if indexes.is_empty() { None } else { Some(indexes[self.below(indexes.len())]) }
    }

    fn step(&mut self) -> Result<(), String> {
        self.now += self.below(2) as u64;
        match self.below(10) {
            0 | 1 => self.start_check()?,
            2 => self.send(),
            3 => self.chat_reads(),
            4 => self.arrive()?,
            5 => self.start_write(),
            6 => self.chat_writes(),
            7 => self.end_write(),
            8 => self.event(),
            _ if self.below(4) == 0 => self.leave()?,
            _ => self.apply_results()?,
        }
        Ok(())
    }

    fn now(&self) -> Tick {
        Tick::from_micros(self.now)
    }

    fn pair(&self, from: usize, to: usize) -> Pair {
        Pair { from: self.hasher.user(USERS[from]), to: self.hasher.user(USERS[to]) }
    }

    fn view(&self) -> PairView<'_> {
        PairView { cache: &self.cache, fence: &self.fence, stale_gate: &self.stale_gate }
    }

    /// Returns the view of a reader that judges its answers.
    fn judging_view(&self) -> PairView<'_> {
        let fence = if self.fault == Some(Fault::JudgedOnce) { &self.unmarked } else { &self.fence };
        PairView { fence, ..self.view() }
    }

    fn start_check(&mut self) -> Result<(), String> {
        let from = self.below(4);
        let mut to: Vec<usize> = (0..4).filter(|to| *to != from).collect();
        to.truncate(1 + self.below(3));
        let kind = self.below(6);
        let directives = CacheDirectives { no_store: kind == 0, no_cache: kind == 1, ..CacheDirectives::default() };
        let options =
            CheckOptions { directives, ttl: TTL, stale_if_error: Duration::ZERO, partial: true, sides: Sides::Both };
        let mut session = CheckSession::new(to.iter().map(|to| self.pair(from, *to)), options);
        session.scan(self.view(), self.now());
        let caller = QueueKey(self.below(2) as u64);
        self.proceed(Reader { from, to, caller, session, lookup: None, open: BTreeSet::new(), was_late: false })
    }

    /// Corresponds to the loop of `AppWorker::check` in `src/gateway/pairs/check.rs`.
    fn proceed(&mut self, mut reader: Reader) -> Result<(), String> {
        loop {
            match reader.session.next(self.judging_view()) {
                CheckStep::Respond => return self.check_response(&reader),
                CheckStep::Lookup => {}
                step @ (CheckStep::NotCached | CheckStep::Fail) => return Err(format!("unexpected {step:?}")),
            }
            reader.session.scan(self.view(), self.now());
            if !reader.session.is_complete() {
                self.enqueue(reader);
                return Ok(());
            }
            reader.session.on_cached(self.now());
        }
    }

    /// Checks that a response reflects every acknowledged write of its pairs.
    fn check_response(&mut self, reader: &Reader) -> Result<(), String> {
        for (account, to) in reader.to.iter().enumerate() {
            let answer = reader.session.answer(account).ok_or("a response without an answer")?;
            if let Item::Missing(_) = answer.item {
                holds(reader.was_late, || format!("account {account} is missing before the deadline"))?;
                continue;
            }
            let pair = pair_index(reader.from, *to);
            let read = self.chat.reading(pair, answer.sent).ok_or("an answer that Chat did not give")?;
            if let Item::Known(relation) = answer.item {
                let expected = read.seen_from(reader.from, *to);
                holds(relation == expected, || format!("pair {pair}: {relation:?}, Chat returned {expected:?}"))?;
            }
            let (version, acknowledged) = (read.version, self.acknowledged[pair]);
            holds(version >= acknowledged, || format!("pair {pair}: version {version}, {acknowledged} acknowledged"))?;
        }
        self.responses += 1;
        Ok(())
    }

    /// Corresponds to `AppWorker::enqueue` in `src/gateway/pairs/check.rs`.
    fn enqueue(&mut self, mut reader: Reader) {
        let to = reader.to.clone();
        let wanted = reader.session.wanted(USERS[reader.from], |account| USERS[to[account]]);
        let options = reader.session.join_options(reader.caller);
        let last_mark = |pair| self.fence.last_mark(pair);
        let new = self.scheduler.new_among(options, &wanted, last_mark);
        let (ticket, joined) = self.scheduler.enqueue(options, &wanted, last_mark).expect("room");
        assert_eq!(new, joined.iter().filter(|joined| !**joined).count(), "new pairs are those that do not join");
        self.waiters.insert(ticket, wanted.len(), ticket);
        reader.open = wanted.iter().map(|one| one.slot).collect();
        reader.lookup = Some((ticket, joined));
        self.waiting.insert(ticket, reader);
    }

    /// The caller that has waited longest disconnects, or takes what is known at its deadline.
    fn leave(&mut self) -> Result<(), String> {
        let Some((ticket, mut reader)) = self.waiting.pop_first() else { return Ok(()) };
        self.waiters.remove(ticket);
        self.scheduler.cancel(ticket);
        if self.below(2) == 0 {
            return Ok(());
        }
        reader.was_late = true;
        let late = LookupFailure { allows_stale: false, missing: Some(MissingReason::NoTime) };
        reader.session.on_failure(late, self.now());
        self.proceed(reader)
    }

    fn send(&mut self) {
        if let Some(batch) = self.scheduler.next_batch(self.now()) {
            self.calls.push(Call { batch, sent: self.now(), was_read: false });
            self.now += 1;
        }
    }

    fn chat_reads(&mut self) {
        let unread = (0..self.calls.len()).filter(|at| !self.calls[*at].was_read).collect();
        let Some(which) = self.choose(unread) else { return };
        let Call { batch, sent, was_read } = &mut self.calls[which];
        *was_read = true;
        self.chat.read(batch, *sent);
    }

    /// The response of a call arrives. Corresponds to `App::apply_response` in `src/gateway/pairs/dispatcher.rs`.
    fn arrive(&mut self) -> Result<(), String> {
        let ready = (0..self.calls.len()).filter(|at| self.calls[*at].was_read).collect();
        let Some(which) = self.choose(ready) else { return Ok(()) };
        let call = self.calls.remove(which);
        let kind = self.below(8);
        let random = self.random;
        let fails = |account: usize| kind == 0 && (random >> account).is_multiple_of(3);
        let body = self.chat.response(&call.batch, call.sent, fails);
        let items = FOLLOW.parse_items(call.batch.sides, body.as_bytes()).expect("items");
        let outcome = match kind {
            1 => BatchOutcome::RejectedArguments,
            2 => BatchOutcome::Failed,
            _ => BatchOutcome::Answered(&items),
        };
        let last_mark = |pair| self.fence.last_mark(pair);
        let (results, cacheable) = self.scheduler.complete(call.batch.id, &outcome, last_mark);
        for pair in cacheable {
            pair.store(&self.cache, &self.fence, Duration::ZERO);
        }
        self.check_results(&call, &results)?;
        for (ticket, delivery) in self.waiters.deliver(results) {
            let mut reader = self.waiting.remove(&ticket).ok_or("a delivery without a reader")?;
            match delivery {
                Delivery::Results(results) => self.notified.push((reader, results)),
                Delivery::Failed | Delivery::Malformed => {
                    self.scheduler.cancel(ticket);
                    reader.session.on_failure(LookupFailure { allows_stale: false, missing: None }, self.now());
                    let step = reader.session.next(self.judging_view());
                    holds(step == CheckStep::Fail, || format!("a lookup failed, and then {step:?}"))?;
                }
            }
        }
        Ok(())
    }

    /// Checks that a call yields results only for readers that wait for its pairs, and for each pair once.
    fn check_results(&mut self, call: &Call, results: &[WaiterResult]) -> Result<(), String> {
        for WaiterResult { ticket, slot, .. } in results {
            let reader = self.waiting.get_mut(ticket).ok_or("a result for a request that does not wait")?;
            holds(reader.open.remove(slot), || "a second result for one pair".to_owned())?;
            // A request has no duplicate pairs here, so slots are accounts.
            let pair = pair_index(reader.from, reader.to[*slot]);
            holds(self.chat.reading(pair, call.sent).is_some(), || "a result from a call without the pair".to_owned())?;
        }
        Ok(())
    }

    /// A notified reader applies its results and proceeds.
    fn apply_results(&mut self) -> Result<(), String> {
        let Some(which) = self.choose((0..self.notified.len()).collect()) else { return Ok(()) };
        let (mut reader, results) = self.notified.remove(which);
        let (ticket, joined) = reader.lookup.take().ok_or("results without a lookup")?;
        self.scheduler.cancel(ticket);
        reader.session.on_results(&joined, results, self.now());
        self.proceed(reader)
    }

    /// Returns a random change.
    fn change(&mut self) -> Change {
        let (scope, pairs) = match self.below(8) {
            0 => {
                let user = self.below(4);
                let pairs = (0..6).filter(|pair| PAIRS[*pair].0 == user || PAIRS[*pair].1 == user).collect();
                (Scope::Users(vec![USERS[user].to_owned()]), pairs)
            }
            // A write whose body cannot be read: any pair may have changed.
            1 => (Scope::All, vec![self.below(6)]),
            _ => {
                let pair = self.below(6);
                let (from, to) = PAIRS[pair];
                (Scope::pairs_of(USERS[from], &[USERS[to]]), vec![pair])
            }
        };
        Change { scope: ScopeKeys::new(&scope, &self.hasher), pairs }
    }

    fn start_write(&mut self) {
        let change = self.change();
        change.scope.mark(&self.fence, self.now());
        self.now += 1;
        self.writes.push(Write { change, applied: None });
    }

    fn chat_writes(&mut self) {
        let pending = (0..self.writes.len()).filter(|at| self.writes[*at].applied.is_none()).collect();
        let Some(which) = self.choose(pending) else { return };
        let pairs = self.writes[which].change.pairs.clone();
        self.writes[which].applied = Some(self.apply(&pairs));
    }

    /// Chat changes pairs. Returns their new versions.
    fn apply(&mut self, pairs: &[usize]) -> Vec<(usize, u64)> {
        let mut versions = Vec::new();
        for &pair in pairs {
            let relation = self.below(4) as u8;
            versions.push((pair, self.chat.apply(pair, relation)));
        }
        versions
    }

    /// A write ends. If the gateway gives it up, Chat may never have applied it.
    fn end_write(&mut self) {
        let Some(which) = self.choose((0..self.writes.len()).collect()) else { return };
        let Write { change, applied } = self.writes.remove(which);
        self.acknowledge(&change, &applied.unwrap_or_default());
    }

    /// An event reports a change that was made elsewhere.
    fn event(&mut self) {
        let change = self.change();
        let versions = self.apply(&change.pairs);
        self.acknowledge(&change, &versions);
    }

    /// Marks a change that has ended. From here on every response must reflect it. Its pairs stay cached: the fence
    /// alone must keep the promise.
    fn acknowledge(&mut self, change: &Change, versions: &[(usize, u64)]) {
        if self.fault != Some(Fault::NoSecondMark) {
            change.scope.mark(&self.fence, self.now());
        }
        for (pair, version) in versions {
            self.acknowledged[*pair] = self.acknowledged[*pair].max(*version);
        }
    }
}

#[test]
fn responses_reflect_acknowledged_writes_in_thousands_of_schedules() {
    let mut responses = 0;
    for seed in 1..=4000 {
        responses += Simulation::run(seed, None).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    assert!(responses > 40_000, "{responses} responses prove nothing");
}

#[test]
fn faulty_gateways_are_caught() {
    for fault in [Fault::NoSecondMark, Fault::JudgedOnce] {
        let caught = (1..=4000).any(|seed| Simulation::run(seed, Some(fault)).is_err());
        assert!(caught, "{fault:?}");
    }
}
