//! What each step of a [`World`] does.

use std::time::Duration;

use super::super::*;
use super::setup::{Change, Fault, Reader, Scene, Scope, Setup, index, oriented};
use super::world::{CallEnd, Phase, ReaderState, Stage, Step, World};
use crate::domain::pairs::cache::PairCache;
use crate::domain::pairs::check::{CheckStep, LookupFailure};
use crate::domain::pairs::item::Item;
use crate::domain::pairs::pair::Relation;
use crate::domain::relation::FOLLOW;

impl World {
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
        let Reader { from, to, sides, .. } = &scene.setup.readers[which];
        for (account, to) in to.iter().enumerate() {
            let answer = self.readers[which].session.answer(account).ok_or("a response without an answer")?;
            let Item::Known(relation) = &answer.item else { continue };
            let all = Relation::new(3).expect("two bits");
            let [seen, asked] = [*relation, all].map(|bits| oriented(bits.restricted_to(*sides).number(), from, to));
            let pair = index(from, to);
            let (floor, chat) = (self.floor[pair] & asked, self.chat[pair]);
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
        if scene.setup.fault == Some(Fault::KeptOneSide) && call.sides == Sides::First {
            self.keep_one_side(&results, scene);
        }
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

    /// Caches the results of a call for one side, as a broken gateway would.
    fn keep_one_side(&mut self, results: &[WaiterResult], scene: &Scene) {
        let cache = self.cache(scene);
        for WaiterResult { ticket, slot, result } in results {
            let waits = |reader: &ReaderState| matches!(reader.phase, Phase::Waiting(own) if own == *ticket);
            let reader = self.readers.iter().position(waits).map(|which| &scene.setup.readers[which]);
            if let (Some(Reader { from, to, .. }), PairResult::Known { cached, .. }) = (reader, result) {
                cache.insert(scene.pair(from, to[*slot]).key(), *cached);
            }
        }
        self.set_cached(&cache, scene);
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
        .map(|(to, relation)| (to, if call.sides == Sides::First { relation & 2 } else { *relation }))
        .map(|(to, relation)| format!(r#"{{"To_Account":"{to}","ResultCode":{code},"FollowType":{relation}}}"#))
        .collect();
    format!(r#"{{"ResultItem":[{}],"ErrorCode":0}}"#, items.join(","))
}
