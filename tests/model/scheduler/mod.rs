//! A seeded simulation of checks of three relations: readers, writes, and a simulated Chat under one scripted clock.
//!
//! Each seed is one interleaving, and a failing seed replays exactly. The simulation is larger and longer than the
//! exhaustive [`model`](super::model), but tries few of its interleavings. It drives the same code: [`CheckSession`],
//! [`LookupScheduler`], [`Waiters`], [`Fence`], and [`PairCache`]. Each relation has a scheduler and a cache of its own,
//! and all share one fence. Bodies of writes and events are read by [`changes`].

mod change;
mod chat;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::change::{Change, Effect};
use self::chat::{Chat, USERS, pair_index, user};
use super::super::cache::PairCache;
use super::super::check::{CheckOptions, CheckSession, CheckStep, LookupFailure, PairView};
use super::super::directives::CacheDirectives;
use super::super::fence::Fence;
use super::super::item::{Item, MissingReason};
use super::super::pair::UserHasher;
use super::*;
use crate::domain::policy::stale_gate::StaleGate;
use crate::domain::relation::{KINDS, RelationKind};

/// Longer than a schedule: pairs do not expire.
const TTL: Duration = Duration::from_secs(3600);

/// One schedule. The seed decides every step.
struct Simulation {
    random: u64,
    now: u64,
    hasher: UserHasher,
    /// By the index of the relation.
    services: Vec<Service>,
    fence: Fence,
    /// A fence without marks, for [`Fault::JudgedOnce`].
    unmarked: Fence,
    /// Records no failure: nothing is served stale.
    stale_gate: StaleGate,
    /// Writes whose callers have no response yet.
    writes: Vec<Write>,
    calls: Vec<Call>,
    /// Readers with the results of all their pairs, which they have not applied yet.
    notified: Vec<(Reader, PairResults)>,
    fault: Option<Fault>,
    revalidates: bool,
    responses: u64,
}

/// One relation.
struct Service {
    kind: &'static RelationKind,
    scheduler: LookupScheduler,
    waiters: Waiters<Ticket>,
    cache: PairCache,
    chat: Chat,
    /// For each pair, the number of its writes that were acknowledged.
    acknowledged: [u64; 6],
    waiting: BTreeMap<Ticket, Reader>,
}

/// A broken gateway, which the simulation must catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Writes mark once, before they are sent; events do not mark.
    NoSecondMark,
    /// Readers do not judge the answers that they have again when the rest arrives.
    JudgedOnce,
    /// Pairs of calls for one side are cached.
    KeptOneSide,
}

struct Write {
    change: Change,
    /// The versions that it gave its pairs; `None` until Chat has applied it.
    applied: Option<Vec<(Effect, u64)>>,
}

struct Call {
    /// The index of the relation.
    relation: usize,
    batch: Batch,
    sent: Tick,
    was_read: bool,
}

/// A request that checks pairs.
struct Reader {
    /// The index of the relation.
    relation: usize,
    sides: Sides,
    from: usize,
    to: Vec<usize>,
    queue: CallerQueue,
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
        let (flip, call_max) = (!seed.is_multiple_of(5), if seed.is_multiple_of(2) { 2 } else { 100 });
        let service = |kind| Service {
            kind,
            scheduler: LookupScheduler::new(flip, call_max),
            waiters: Waiters::default(),
            cache: PairCache::new(64),
            chat: Chat::default(),
            acknowledged: [0; 6],
            waiting: BTreeMap::new(),
        };
        Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            now: 1,
            hasher: UserHasher::new(&[3; 16]),
            services: KINDS.into_iter().map(service).collect(),
            fence: Fence::default(),
            unmarked: Fence::with_slots(1, 1),
            stale_gate: StaleGate::default(),
            writes: Vec::new(),
            calls: Vec::new(),
            notified: Vec::new(),
            fault,
            revalidates: seed % 4 >= 2,
            responses: 0,
        }
    }

    /// Runs a schedule until all calls have ended, and returns the number of responses.
    fn run(seed: u64, steps: usize, fault: Option<Fault>) -> Result<u64, String> {
        let mut simulation = Self::new(seed, fault);
        for _ in 0..steps {
            simulation.step()?;
        }
        for round in 0..1200 {
            simulation.now += 1;
            simulation.send(round % KINDS.len());
            simulation.chat_reads();
            simulation.arrive()?;
            simulation.apply_results()?;
        }
        simulation.check_end()?;
        Ok(simulation.responses)
    }

    /// Checks that each reader that did not disconnect has a response, and that nothing is left behind.
    fn check_end(&self) -> Result<(), String> {
        holds(self.notified.is_empty(), || "a reader was not served".to_owned())?;
        for Service { scheduler, waiters, waiting, .. } in &self.services {
            let count = waiting.len();
            holds(count == 0 && scheduler.waiting() == 0, || format!("{count} requests wait forever"))?;
            let LookupScheduler {
                edges, joinable, nodes, queues, turns, in_flight, tickets, waiting_by_caller, ..
            } = scheduler;
            let empty = edges.is_empty() && joinable.is_empty() && nodes.is_empty() && queues.is_empty();
            let empty = empty && *turns == ByClass::default() && in_flight.is_empty() && tickets.is_empty();
            let empty = empty && waiting_by_caller.is_empty() && waiters.is_empty();
            holds(empty, || "something is left behind".to_owned())?;
        }
        Ok(())
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
            2 => {
                let relation = self.below(KINDS.len());
                self.send(relation);
            }
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

    fn view(&self, relation: usize) -> PairView<'_> {
        let cache = &self.services[relation].cache;
        PairView { cache, fence: &self.fence, stale_gate: &self.stale_gate }
    }

    /// Returns the view of a reader that judges its answers.
    fn judging_view(&self, relation: usize) -> PairView<'_> {
        let fence = if self.fault == Some(Fault::JudgedOnce) { &self.unmarked } else { &self.fence };
        PairView { fence, ..self.view(relation) }
    }

    fn start_check(&mut self) -> Result<(), String> {
        let (relation, from) = (self.below(KINDS.len()), self.below(4));
        // Only friends and blocklists have a CheckType.
        let sides = if relation > 0 && self.below(2) == 0 { Sides::First } else { Sides::Both };
        let mut to: Vec<usize> = (0..4).filter(|to| *to != from).collect();
        to.truncate(1 + self.below(3));
        let kind = self.below(6);
        let directives = CacheDirectives { no_store: kind == 0, no_cache: kind == 1, ..CacheDirectives::default() };
        // Half of the schedules refresh pairs that were looked up a moment ago.
        let ttl = if self.revalidates { Duration::from_micros(5) } else { TTL };
        let stale_while_revalidate = if self.revalidates { TTL } else { Duration::ZERO };
        let options = CheckOptions {
            directives,
            ttl,
            stale_if_error: Duration::ZERO,
            stale_while_revalidate,
            partial: true,
            sides,
        };
        let mut session = CheckSession::new(to.iter().map(|to| self.pair(from, *to)), options);
        session.scan(self.view(relation), self.now());
        let caller = QueueKey(self.below(2) as u64);
        let queue = CallerQueue { class: Class::ALL[self.below(2)], caller };
        self.proceed(Reader {
            relation,
            sides,
            from,
            to,
            queue,
            session,
            lookup: None,
            open: BTreeSet::new(),
            was_late: false,
        })
    }

    /// Corresponds to the loop of `AppWorker::check` in `src/gateway/pairs/check.rs`.
    fn proceed(&mut self, mut reader: Reader) -> Result<(), String> {
        loop {
            if reader.session.has_due() {
                let Service { scheduler, cache, .. } = &mut self.services[reader.relation];
                let due = reader.session.take_due(cache, USERS[reader.from], |account| USERS[reader.to[account]]);
                let refresh = Refresh { until: Tick::LAST, caused_by: QueueKey::SELF };
                scheduler.refresh(&due, refresh, |pair| self.fence.last_mark(pair));
            }
            match reader.session.next(self.judging_view(reader.relation)) {
                CheckStep::Respond => return self.check_response(&reader),
                CheckStep::Lookup => {}
                step @ (CheckStep::NotCached | CheckStep::Fail) => return Err(format!("unexpected {step:?}")),
            }
            reader.session.scan(self.view(reader.relation), self.now());
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
            let Service { chat, acknowledged, .. } = &self.services[reader.relation];
            let read = chat.reading(pair, answer.sent).ok_or("an answer that Chat did not give")?;
            if let Item::Known(relation) = answer.item {
                let expected = read.seen_from(reader.from, *to).restricted_to(reader.sides);
                let relation = relation.restricted_to(reader.sides);
                holds(relation == expected, || format!("pair {pair}: {relation:?}, Chat returned {expected:?}"))?;
            }
            let (version, acknowledged) = (read.version, acknowledged[pair]);
            holds(version >= acknowledged, || format!("pair {pair}: version {version}, {acknowledged} acknowledged"))?;
        }
        self.responses += 1;
        Ok(())
    }

    /// Corresponds to `AppWorker::enqueue` in `src/gateway/pairs/check.rs`.
    fn enqueue(&mut self, mut reader: Reader) {
        let to = reader.to.clone();
        let wanted = reader.session.wanted(USERS[reader.from], |account| USERS[to[account]]);
        let options = reader.session.join_options(reader.queue);
        let last_mark = |pair| self.fence.last_mark(pair);
        let Service { scheduler, waiters, waiting, .. } = &mut self.services[reader.relation];
        let new = scheduler.new_among(options, &wanted, last_mark);
        let (ticket, joined) = scheduler.enqueue(options, &wanted, last_mark).expect("room");
        assert_eq!(
            new.lookups,
            joined.iter().filter(|joined| !**joined).count(),
            "new pairs are those that do not join"
        );
        waiters.insert(ticket, wanted.len(), ticket);
        reader.open = wanted.iter().map(|one| one.slot).collect();
        reader.lookup = Some((ticket, joined));
        waiting.insert(ticket, reader);
    }

    /// The caller that has waited longest disconnects, or takes what is known at its deadline.
    fn leave(&mut self) -> Result<(), String> {
        let relation = self.below(KINDS.len());
        let service = &mut self.services[relation];
        let Some((ticket, mut reader)) = service.waiting.pop_first() else { return Ok(()) };
        let known = service.waiters.remove(ticket);
        service.scheduler.cancel(ticket);
        if self.below(2) == 0 {
            return Ok(());
        }
        reader.was_late = true;
        let late = LookupFailure { allows_stale: false, missing: Some(MissingReason::NoTime) };
        let (_, joined) = reader.lookup.take().ok_or("it looks nothing up")?;
        reader.session.on_results(&joined, known, self.now());
        reader.session.on_failure(late, self.now());
        self.proceed(reader)
    }

    fn send(&mut self, relation: usize) {
        let (now, class) = (self.now(), Class::ALL[self.below(3)]);
        if let Some(batch) = self.services[relation].scheduler.next_batch(class, now) {
            self.calls.push(Call { relation, batch, sent: self.now(), was_read: false });
            self.now += 1;
        }
    }

    fn chat_reads(&mut self) {
        let unread = (0..self.calls.len()).filter(|at| !self.calls[*at].was_read).collect();
        let Some(which) = self.choose(unread) else { return };
        let Call { relation, batch, sent, was_read } = &mut self.calls[which];
        *was_read = true;
        self.services[*relation].chat.read(batch, *sent);
    }

    /// The response of a call arrives. Corresponds to `App::apply_response` in `src/gateway/pairs/dispatcher.rs`.
    fn arrive(&mut self) -> Result<(), String> {
        let ready = (0..self.calls.len()).filter(|at| self.calls[*at].was_read).collect();
        let Some(which) = self.choose(ready) else { return Ok(()) };
        let call = self.calls.remove(which);
        let kind_of_end = self.below(8);
        let random = self.random;
        let fails = |account: usize| kind_of_end == 0 && (random >> account).is_multiple_of(3);
        let Service { kind, scheduler, cache, chat, .. } = &mut self.services[call.relation];
        let body = chat.response(kind, &call, fails);
        let items = kind.parse_items(call.batch.sides, body.as_bytes()).expect("items");
        let outcome = match kind_of_end {
            1 => BatchOutcome::RejectedArguments,
            2 => BatchOutcome::Failed,
            _ => BatchOutcome::Answered(&items),
        };
        let fence = &self.fence;
        let Completion { results, cacheable, .. } =
            scheduler.complete(call.batch.id, &outcome, |pair| fence.last_mark(pair));
        let one_sided = call.batch.sides == Sides::First;
        holds(!one_sided || cacheable.is_empty(), || "a call for one side says nothing of the other".to_owned())?;
        for pair in cacheable {
            pair.store(cache, fence, Duration::ZERO);
        }
        self.check_results(&call, &results)?;
        if self.fault == Some(Fault::KeptOneSide) && one_sided {
            self.keep_one_side(&call, &results);
        }
        let Service { scheduler, waiters, waiting, .. } = &mut self.services[call.relation];
        let mut failed = Vec::new();
        for (ticket, delivery) in waiters.deliver(results) {
            let reader = waiting.remove(&ticket).ok_or("a delivery without a reader")?;
            match delivery {
                Delivery::Results(results) => self.notified.push((reader, results)),
                Delivery::Failed | Delivery::Malformed => {
                    scheduler.cancel(ticket);
                    failed.push(reader);
                }
            }
        }
        for mut reader in failed {
            reader.session.on_failure(LookupFailure { allows_stale: false, missing: None }, self.now());
            let step = reader.session.next(self.judging_view(reader.relation));
            holds(step == CheckStep::Fail, || format!("a lookup failed, and then {step:?}"))?;
        }
        Ok(())
    }

    /// Caches the results of a call for one side, as a broken gateway would.
    fn keep_one_side(&self, call: &Call, results: &[WaiterResult]) {
        let Service { cache, waiting, .. } = &self.services[call.relation];
        for WaiterResult { ticket, slot, result } in results {
            if let PairResult::Known { cached, .. } = result {
                let reader = &waiting[ticket];
                cache.insert(self.pair(reader.from, reader.to[*slot]).key(), *cached);
            }
        }
    }

    /// Checks that a call yields results only for readers that wait for its pairs, and for each pair once.
    fn check_results(&mut self, call: &Call, results: &[WaiterResult]) -> Result<(), String> {
        let Service { chat, waiting, .. } = &mut self.services[call.relation];
        for WaiterResult { ticket, slot, result } in results {
            let reader = waiting.get_mut(ticket).ok_or("a result for a request that does not wait")?;
            holds(reader.open.remove(slot), || "a second result for one pair".to_owned())?;
            // A request has no duplicate pairs here, so slots are accounts.
            let pair = pair_index(reader.from, reader.to[*slot]);
            holds(chat.reading(pair, call.sent).is_some(), || "a result from a call without the pair".to_owned())?;
            let as_asked = user(&call.batch.from) == reader.from && call.batch.sides == reader.sides;
            let is_error = matches!(result, PairResult::Verbatim(..));
            holds(as_asked || !is_error, || "an error of another question".to_owned())?;
        }
        Ok(())
    }

    /// A notified reader applies its results and proceeds.
    fn apply_results(&mut self) -> Result<(), String> {
        let Some(which) = self.choose((0..self.notified.len()).collect()) else { return Ok(()) };
        let (mut reader, results) = self.notified.remove(which);
        let (ticket, joined) = reader.lookup.take().ok_or("results without a lookup")?;
        self.services[reader.relation].scheduler.cancel(ticket);
        reader.session.on_results(&joined, results, self.now());
        self.proceed(reader)
    }

    fn start_write(&mut self) {
        let change = self.change(false);
        change.scope.mark(&self.fence, self.now());
        self.now += 1;
        self.writes.push(Write { change, applied: None });
    }

    fn chat_writes(&mut self) {
        let pending = (0..self.writes.len()).filter(|at| self.writes[*at].applied.is_none()).collect();
        let Some(which) = self.choose(pending) else { return };
        let effects = self.writes[which].change.effects.clone();
        self.writes[which].applied = Some(self.apply(&effects));
    }

    /// Chat changes pairs. Returns their new versions.
    fn apply(&mut self, effects: &[Effect]) -> Vec<(Effect, u64)> {
        let mut versions = Vec::new();
        for effect in effects {
            let number = self.below(4) as u8;
            versions.push((*effect, self.services[effect.relation].chat.apply(effect.pair, number)));
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
        let change = self.change(true);
        let versions = self.apply(&change.effects);
        self.acknowledge(&change, &versions);
    }

    /// Marks a change that has ended. From here on every response must reflect it. Its pairs stay cached: the fence
    /// alone must keep the promise.
    fn acknowledge(&mut self, change: &Change, versions: &[(Effect, u64)]) {
        if self.fault != Some(Fault::NoSecondMark) {
            change.scope.mark(&self.fence, self.now());
        }
        for (Effect { relation, pair }, version) in versions {
            let acknowledged = &mut self.services[*relation].acknowledged[*pair];
            *acknowledged = version.max(acknowledged).to_owned();
        }
    }
}

#[test]
fn responses_reflect_acknowledged_writes_in_thousands_of_schedules() {
    let mut responses = 0;
    for seed in 1..=4000 {
        responses += Simulation::run(seed, 120, None).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    assert!(responses > 30_000, "{responses} responses prove nothing");
}

/// `cargo test --release --lib -- --ignored a_million`
#[test]
#[ignore = "takes minutes in a debug build; the schedules above have the same steps"]
fn responses_reflect_acknowledged_writes_in_a_million_steps() {
    let mut responses = 0;
    for seed in 1..=500 {
        responses += Simulation::run(seed, 2000, None).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    eprintln!("{responses} responses");
    assert!(responses > 80_000, "{responses} responses prove nothing");
}

#[test]
fn faulty_gateways_are_caught() {
    for fault in [Fault::NoSecondMark, Fault::JudgedOnce, Fault::KeptOneSide] {
        let caught = (1..=4000).any(|seed| Simulation::run(seed, 120, Some(fault)).is_err());
        assert!(caught, "{fault:?}");
    }
}
