//! One state of readers, writes, events, and Chat, and every step that can follow.

use std::time::Duration;

use super::super::*;
use super::setup::{Change, Fault, Reader, Scene, Scope, Setup, index, oriented};
use crate::domain::pairs::cache::{CachedPair, PairCache};
use crate::domain::pairs::check::{CheckOptions, CheckSession, CheckStep, LookupFailure};
use crate::domain::pairs::item::Item;
use crate::domain::relation::FOLLOW;

/// Longer than an exploration: pairs do not expire.
const TTL: Duration = Duration::from_secs(3600);

/// One step. `later`: the clock has advanced since it was last read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A write or an event takes its next step.
    Change { which: usize, later: bool },
    /// Chat applies a change.
    Apply(usize),
    /// A reader starts and scans the cache.
    Scan(usize),
    /// A reader decides what comes next.
    Decide(usize),
    /// A reader enqueues its missing pairs.
    Enqueue(usize),
    /// A reader disconnects.
    Disconnect(usize),
    /// A call is sent with a permit of a class.
    Send { class: Class, later: bool },
    /// Chat reads the pairs of a call.
    Read(usize),
    /// The response of a call arrives.
    Arrive { which: usize, end: CallEnd },
    /// A pair of a response is stored.
    Store(usize),
}

/// How a call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallEnd {
    Answered,
    /// Every item has failed.
    ItemsFail,
    Rejected,
    Failed,
}

/// The last step that a change has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Stage {
    Start,
    FirstRead,
    Out,
    LastRead,
    Marked,
    Acknowledged,
}

#[derive(Debug, Clone)]
pub(super) struct ChangeState {
    pub stage: Stage,
    /// Whether Chat has applied it.
    pub applied: bool,
    /// The reading of the clock for the next mark.
    pub read: u64,
    /// The moment of the last mark, 0 if there is none.
    pub mark: u64,
    /// The number of marks.
    pub marks: u32,
    /// The state of the pairs in Chat when the change ended.
    pub at_end: [u8; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Start,
    Deciding,
    Enqueueing,
    Waiting(Ticket),
    /// The results of all its pairs have been delivered.
    Notified(Ticket),
    Done,
}

#[derive(Debug, Clone)]
pub(super) struct ReaderState {
    pub phase: Phase,
    pub session: CheckSession,
    /// Which of the pairs that it waits for joined a lookup in flight.
    joined: Vec<bool>,
    /// Results that were delivered but not applied yet.
    pub delivered: PairResults,
}

/// A state. Moments are counted from 1.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub clock: u64,
    /// When the last call was sent.
    pub last_sent: u64,
    pub scheduler: LookupScheduler,
    pub waiters: Waiters<usize>,
    pub cached: [Option<CachedPair>; 2],
    /// Whether the cached pair was asked for past its ttl.
    pub asked: [bool; 2],
    pub storing: Vec<CacheablePair>,
    /// The relations in Chat, seen from the first user of the pair.
    pub chat: [u8; 2],
    /// The changes that every response must include from now on.
    pub floor: [u8; 2],
    pub changes: Vec<ChangeState>,
    pub readers: Vec<ReaderState>,
    /// Calls, with the relations that Chat has read for them.
    pub calls: Vec<(Batch, Option<Vec<u8>>)>,
}

impl World {
    pub(super) fn new(scene: &Scene) -> Self {
        let setup = &scene.setup;
        let change = ChangeState { stage: Stage::Start, applied: false, read: 0, mark: 0, marks: 0, at_end: [0; 2] };
        let reader = |reader: &Reader| {
            let pairs = reader.to.iter().map(|to| scene.pair(reader.from, to));
            let options = CheckOptions {
                directives: reader.directives,
                ttl: if setup.revalidate { Duration::from_nanos(1) } else { TTL },
                stale_while_revalidate: if setup.revalidate { TTL } else { Duration::ZERO },
                stale_if_error: Duration::ZERO,
                partial: false,
                sides: Sides::Both,
            };
            ReaderState {
                phase: Phase::Start,
                session: CheckSession::new(pairs, options),
                joined: Vec::new(),
                delivered: Vec::new(),
            }
        };
        Self {
            clock: 1,
            last_sent: 0,
            scheduler: LookupScheduler::new(setup.flip, 100),
            waiters: Waiters::default(),
            cached: [None; 2],
            asked: [false; 2],
            storing: Vec::new(),
            chat: [0; 2],
            floor: [0; 2],
            changes: vec![change; setup.changes.len()],
            readers: setup.readers.iter().map(reader).collect(),
            calls: Vec::new(),
        }
    }

    /// Returns the last mark that concerns a pair.
    pub(super) fn mark_of(&self, pair: usize, setup: &Setup) -> u64 {
        let marks = setup.changes.iter().zip(&self.changes).filter(|(change, _)| change.scope.marks(pair));
        marks.map(|(_, state)| state.mark).max().unwrap_or(0)
    }

    /// Returns the version of the fence.
    pub(super) fn version(&self) -> u64 {
        self.changes.iter().map(|state| u64::from(state.marks)).sum()
    }

    fn now(&self) -> Tick {
        Tick::from_micros(self.clock)
    }

    /// Returns every step that can happen next.
    pub(super) fn steps(&self, setup: &Setup) -> Vec<Step> {
        let mut steps = Vec::new();
        for which in 0..self.changes.len() {
            self.change_steps(which, setup, &mut steps);
        }
        for (which, reader) in self.readers.iter().enumerate() {
            match reader.phase {
                // Of readers with the same request, it makes no difference which one is first.
                Phase::Start if self.is_next(which, setup) => steps.push(Step::Scan(which)),
                Phase::Deciding | Phase::Notified(_) => steps.push(Step::Decide(which)),
                Phase::Enqueueing => steps.push(Step::Enqueue(which)),
                Phase::Waiting(_) if setup.leaving => steps.push(Step::Disconnect(which)),
                Phase::Start | Phase::Waiting(_) | Phase::Done => {}
            }
        }
        // Each class whose pairs are queued has a dispatcher, whatever order their permits come in.
        for class in Class::ALL.into_iter().filter(|class| self.scheduler.queued_in(*class) > 0) {
            steps.push(Step::Send { class, later: true });
            if self.marked_now() {
                steps.push(Step::Send { class, later: false });
            }
        }
        for (which, (_, read)) in self.calls.iter().enumerate() {
            match read {
                None => steps.push(Step::Read(which)),
                Some(_) => {
                    steps.push(Step::Arrive { which, end: CallEnd::Answered });
                    if setup.failing {
                        let failures = [CallEnd::ItemsFail, CallEnd::Rejected, CallEnd::Failed];
                        steps.extend(failures.map(|end| Step::Arrive { which, end }));
                    }
                }
            }
        }
        steps.extend((0..self.storing.len()).map(Step::Store));
        steps
    }

    fn change_steps(&self, which: usize, setup: &Setup, steps: &mut Vec<Step>) {
        let (change, state) = (&setup.changes[which], &self.changes[which]);
        let may_continue = !change.event || state.applied;
        // Of equal changes, it makes no difference which one is first.
        let equal = setup.changes[..which]
            .iter()
            .zip(&self.changes)
            .any(|(other, before)| other == change && before.stage == Stage::Start && !before.applied);
        if equal {
            return;
        }
        if state.stage != Stage::Acknowledged && may_continue {
            steps.push(Step::Change { which, later: true });
            if matches!(state.stage, Stage::Start | Stage::Out) && self.sent_now() {
                steps.push(Step::Change { which, later: false });
            }
        }
        if !state.applied && (change.event || state.stage >= Stage::Out) {
            steps.push(Step::Apply(which));
        }
    }

    fn is_next(&self, which: usize, setup: &Setup) -> bool {
        let equal = |other: &usize| setup.readers[*other] == setup.readers[which];
        !(0..which).filter(equal).any(|other| self.readers[other].phase == Phase::Start)
    }

    /// Returns whether the clock shows the moment of a mark: only then does it matter that it has not advanced when a
    /// call is sent.
    fn marked_now(&self) -> bool {
        self.changes.iter().any(|change| change.mark == self.clock || change.read == self.clock)
    }

    /// Returns whether the clock shows the moment of a call.
    fn sent_now(&self) -> bool {
        self.last_sent == self.clock
    }

    /// Takes a step, and returns whether a reader got its response.
    ///
    /// # Errors
    /// The violation in that response.
    pub(super) fn take(&mut self, step: Step, scene: &mut Scene) -> Result<bool, String> {
        let has_responded = self.apply(step, scene)?;
        if self.has_queued_reader(Class::Interactive, scene) && self.scheduler.queued_in(Class::Interactive) == 0 {
            return Err("an interactive reader waits with the batch readers".to_owned());
        }
        Ok(has_responded)
    }

    fn apply(&mut self, step: Step, scene: &mut Scene) -> Result<bool, String> {
        scene.set_fence(&self.changes);
        match step {
            Step::Change { which, later } => self.continue_change(which, later, scene),
            Step::Apply(which) => {
                self.changes[which].applied = true;
                for pair in 0..2 {
                    if scene.setup.changes[which].scope.changes(pair) {
                        self.chat[pair] |= 1 << which;
                    }
                }
            }
            Step::Scan(which) => {
                let (cache, now) = (self.cache(scene), self.now());
                let reader = &mut self.readers[which];
                reader.session.scan(scene.view(&cache), now);
                reader.phase = Phase::Deciding;
                if !scene.setup.fine_readers {
                    return self.decide(which, scene);
                }
            }
            Step::Decide(which) => return self.decide(which, scene),
            Step::Enqueue(which) => return self.enqueue(which, scene),
            Step::Disconnect(which) => self.disconnect(which),
            Step::Send { class, later } => self.send(class, later, scene)?,
            Step::Read(which) => {
                let call = &self.calls[which].0;
                let read = call.to.iter().map(|to| oriented(self.chat[index(&call.from, to)], &call.from, to));
                self.calls[which].1 = Some(read.collect());
            }
            Step::Arrive { which, end } => self.arrive(which, end, scene)?,
            Step::Store(which) => self.store(which, scene),
        }
        Ok(false)
    }

    /// Checks that where nothing more happens, no reader waits and nothing is left behind.
    pub(super) fn check_end(&self) -> Result<(), String> {
        let LookupScheduler {
            edges,
            joinable,
            repeats,
            nodes,
            queues,
            turns,
            in_flight,
            tickets,
            waiting,
            waiting_by_caller,
            ..
        } = &self.scheduler;
        let is_queued = !(joinable.is_empty() && repeats.is_empty() && nodes.is_empty() && queues.is_empty());
        if !self.readers.iter().all(|reader| reader.phase == Phase::Done) {
            return Err("a reader waits forever".to_owned());
        }
        if is_queued
            || !(edges.is_empty()
                && *turns == ByClass::default()
                && in_flight.is_empty()
                && tickets.is_empty()
                && self.waiters.is_empty())
        {
            return Err("something is left behind".to_owned());
        }
        if *waiting != ByClass::default() || !waiting_by_caller.is_empty() {
            return Err("the waiting pairs are miscounted".to_owned());
        }
        Ok(())
    }

    /// Sends a call, and checks that calls of interactive readers come first and that no other uses their permits.
    fn send(&mut self, class: Class, later: bool, scene: &Scene) -> Result<(), String> {
        let now = self.read_clock(later);
        self.last_sent = now;
        let must_go_first = self.has_queued_reader(Class::Interactive, scene);
        let call = self.scheduler.next_batch(class, Tick::from_micros(now)).ok_or("queued, but no call")?;
        let mut tickets = self.scheduler.waiting_for(call.id);
        let is_interactive = tickets.any(|ticket| {
            let waits = |reader: &ReaderState| matches!(reader.phase, Phase::Waiting(own) if own == ticket);
            let reader = self.readers.iter().position(waits);
            reader.is_some_and(|which| scene.setup.readers[which].class == Class::Interactive)
        });
        drop(tickets);
        match (is_interactive, class) {
            (false, Class::Interactive) => return Err("a batch call uses an interactive permit".to_owned()),
            (false, Class::Batch | Class::Refresh) if must_go_first => {
                return Err("a batch call goes before an interactive one".to_owned());
            }
            _ => {}
        }
        self.calls.push((call, None));
        Ok(())
    }

    /// Returns whether a reader of a class waits for a pair that is queued.
    fn has_queued_reader(&self, class: Class, scene: &Scene) -> bool {
        let readers = self.readers.iter().zip(&scene.setup.readers).filter(|(_, setup)| setup.class == class);
        readers.into_iter().any(|(reader, _)| match reader.phase {
            Phase::Waiting(ticket) => self.scheduler.is_queued(ticket),
            _ => false,
        })
    }

    fn read_clock(&mut self, later: bool) -> u64 {
        self.clock += u64::from(later);
        self.clock
    }

    fn store(&mut self, which: usize, scene: &Scene) {
        let cacheable = self.storing.remove(which);
        let cache = self.cache(scene);
        cacheable.store(&cache, scene.fence(), Duration::ZERO);
        self.set_cached(&cache, scene);
    }

    /// Returns a cache with the pairs that are cached.
    fn cache(&self, scene: &Scene) -> PairCache {
        let cache = PairCache::new(8);
        for (pair, cached) in self.cached.iter().enumerate() {
            if let Some(cached) = cached {
                let key = scene.both(pair).key();
                cache.insert(key, *cached);
                if self.asked[pair] {
                    cache.begin_refresh(key, cached.sent);
                }
            }
        }
        cache
    }

    fn set_cached(&mut self, cache: &PairCache, scene: &Scene) {
        let before = self.cached;
        self.cached = [0, 1].map(|pair| cache.get(scene.both(pair).key()));
        (0..2).filter(|pair| self.cached[*pair] != before[*pair]).for_each(|pair| self.asked[pair] = false);
    }

    /// A write marks its pairs and is sent. When it has ended, it marks and removes its pairs, and is acknowledged. An
    /// event has only the second half. These are the steps of `WriteFence` in `src/gateway/invalidation.rs`.
    fn continue_change(&mut self, which: usize, later: bool, scene: &Scene) {
        let Setup { fault, fine_changes, changes, .. } = &scene.setup;
        let Change { event, scope } = changes[which];
        let at_end = event || self.changes[which].stage >= Stage::Out;
        match self.changes[which].stage {
            Stage::Start | Stage::Out => {
                let read = self.read_clock(later);
                let chat = self.chat;
                let state = &mut self.changes[which];
                state.read = read;
                state.stage = if at_end { Stage::LastRead } else { Stage::FirstRead };
                if at_end {
                    state.at_end = chat;
                }
                if !fine_changes {
                    self.continue_change(which, false, scene);
                }
            }
            Stage::FirstRead => {
                self.mark(which);
                self.changes[which].stage = Stage::Out;
            }
            Stage::LastRead => {
                match fault {
                    Some(Fault::NoSecondMark) => {}
                    Some(Fault::AcknowledgeBeforeMark) => self.acknowledge(which, scope),
                    _ => self.mark(which),
                }
                self.changes[which].stage = Stage::Marked;
                if !fine_changes && fault.is_none() {
                    self.continue_change(which, false, scene);
                }
            }
            Stage::Marked => {
                if let Scope::Pair(pair) = scope {
                    (self.cached[pair], self.asked[pair]) = (None, false);
                }
                if *fault == Some(Fault::AcknowledgeBeforeMark) {
                    self.mark(which);
                } else {
                    self.acknowledge(which, scope);
                }
                self.changes[which].stage = Stage::Acknowledged;
            }
            Stage::Acknowledged => {}
        }
    }

    fn mark(&mut self, which: usize) {
        let state = &mut self.changes[which];
        state.mark = state.mark.max(state.read);
        state.marks += 1;
    }

    /// Every response after this moment must include the change.
    fn acknowledge(&mut self, which: usize, scope: Scope) {
        for pair in 0..2 {
            if scope.changes(pair) {
                self.floor[pair] |= self.changes[which].at_end[pair];
            }
        }
    }

    /// Corresponds to the loop of `AppWorker::check` in `src/gateway/pairs/check.rs`.
    fn decide(&mut self, which: usize, scene: &Scene) -> Result<bool, String> {
        let (cache, now) = (self.cache(scene), self.now());
        let reader = &mut self.readers[which];
        if let Phase::Notified(ticket) = reader.phase {
            self.scheduler.cancel(ticket);
            reader.session.on_results(&reader.joined, std::mem::take(&mut reader.delivered), now);
        }
        if reader.session.has_due() {
            let Reader { from, to, .. } = &scene.setup.readers[which];
            let due = reader.session.take_due(&cache, from, |account| to[account]);
            due.iter().for_each(|one| self.asked[index(one.from, one.to)] = true);
            let fence = scene.fence();
            let refresh = Refresh { until: Tick::LAST, caused_by: QueueKey::SELF };
            self.scheduler.refresh(&due, refresh, |pair| fence.last_mark(pair));
        }
        match reader.session.next(scene.judging_view(&cache)) {
            CheckStep::Lookup => {
                reader.phase = Phase::Enqueueing;
                if scene.setup.fine_readers { Ok(false) } else { self.enqueue(which, scene) }
            }
            CheckStep::Respond => {
                self.check_response(which, scene)?;
                self.readers[which].phase = Phase::Done;
                Ok(true)
            }
            step @ (CheckStep::NotCached | CheckStep::Fail) => Err(format!("reader {which} does not expect {step:?}")),
        }
    }

    fn check_response(&self, which: usize, scene: &Scene) -> Result<(), String> {
        let Reader { from, to, .. } = &scene.setup.readers[which];
        for (account, to) in to.iter().enumerate() {
            let answer = self.readers[which].session.answer(account).ok_or("a response without an answer")?;
            let Item::Known(relation) = &answer.item else { continue };
            let (seen, pair) = (oriented(relation.number(), from, to), index(from, to));
            let (floor, chat) = (self.floor[pair], self.chat[pair]);
            if seen & floor != floor {
                return Err(format!("reader {which} gets {seen} of pair {pair}, from before {floor}"));
            }
            if seen & !chat != 0 {
                return Err(format!("reader {which} gets {seen} of pair {pair}, which never was its relation"));
            }
        }
        Ok(())
    }

    /// Corresponds to `AppWorker::enqueue` in `src/gateway/pairs/check.rs`.
    fn enqueue(&mut self, which: usize, scene: &Scene) -> Result<bool, String> {
        let (cache, now) = (self.cache(scene), self.now());
        let Reader { from, to, class, .. } = scene.setup.readers[which].clone();
        let ReaderState { phase, session, joined, .. } = &mut self.readers[which];
        session.scan(scene.view(&cache), now);
        if session.is_complete() {
            session.on_cached(now);
            *phase = Phase::Deciding;
            return if scene.setup.fine_readers { Ok(false) } else { self.decide(which, scene) };
        }
        let wanted = session.wanted(from, |account| to[account]);
        let join = session.join_options(CallerQueue::of_chatgate(class));
        let fence = scene.fence();
        let (ticket, joins) = self.scheduler.enqueue(join, &wanted, |pair| fence.last_mark(pair)).expect("room");
        self.waiters.insert(ticket, wanted.len(), which);
        (*phase, *joined) = (Phase::Waiting(ticket), joins);
        Ok(false)
    }

    fn disconnect(&mut self, which: usize) {
        if let Phase::Waiting(ticket) = self.readers[which].phase {
            self.waiters.remove(ticket);
            self.scheduler.cancel(ticket);
        }
        self.readers[which].phase = Phase::Done;
    }

    /// Corresponds to `App::apply_response` in `src/gateway/pairs/dispatcher.rs`.
    fn arrive(&mut self, which: usize, end: CallEnd, scene: &Scene) -> Result<(), String> {
        let (call, read) = self.calls.remove(which);
        let body = response(&call, &read.ok_or("nothing was read")?, end);
        let items = FOLLOW.parse_items(call.sides, body.as_bytes()).ok_or("no items")?;
        let outcome = match end {
            CallEnd::Answered | CallEnd::ItemsFail => BatchOutcome::Answered(&items),
            CallEnd::Rejected => BatchOutcome::RejectedArguments,
            CallEnd::Failed => BatchOutcome::Failed,
        };
        let fence = scene.fence();
        let Completion { results, cacheable, .. } =
            self.scheduler.complete(call.id, &outcome, |pair| fence.last_mark(pair));
        for cacheable in cacheable {
            self.storing.push(cacheable);
            if !scene.setup.fine_readers {
                self.store(self.storing.len() - 1, scene);
            }
        }
        for (which, delivery) in self.waiters.deliver(results) {
            let reader = &mut self.readers[which];
            let Phase::Waiting(ticket) = reader.phase else { return Err(format!("reader {which} does not wait")) };
            match delivery {
                Delivery::Results(results) => {
                    reader.delivered = results;
                    reader.phase = Phase::Notified(ticket);
                }
                Delivery::Failed | Delivery::Malformed => self.fail(which, ticket, scene)?,
            }
        }
        Ok(())
    }

    /// A reader returns the failure of its lookup.
    fn fail(&mut self, which: usize, ticket: Ticket, scene: &Scene) -> Result<(), String> {
        let (cache, now) = (self.cache(scene), self.now());
        self.scheduler.cancel(ticket);
        let reader = &mut self.readers[which];
        reader.session.on_failure(LookupFailure { allows_stale: false, missing: None }, now);
        reader.phase = Phase::Done;
        match reader.session.next(scene.judging_view(&cache)) {
            CheckStep::Fail => Ok(()),
            step => Err(format!("reader {which} failed, and then {step:?}")),
        }
    }
}

/// Returns Chat's response to a call.
fn response(call: &Batch, read: &[u8], end: CallEnd) -> String {
    let code = if end == CallEnd::ItemsFail { 30003 } else { 0 };
    let items: Vec<_> = call
        .to
        .iter()
        .zip(read)
        .map(|(to, relation)| format!(r#"{{"To_Account":"{to}","ResultCode":{code},"FollowType":{relation}}}"#))
        .collect();
    format!(r#"{{"ResultItem":[{}],"ErrorCode":0}}"#, items.join(","))
}
