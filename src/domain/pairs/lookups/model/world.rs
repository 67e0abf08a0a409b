//! One state of readers, writes, events and a Chat, and every step that one of them can take.

use super::super::*;
use super::setup::{Change, Fault, Reader, Scene, Scope, Setup, index, turn};
use crate::domain::follow::response::parse_items;
use crate::domain::pairs::cache::{CachedPair, PairCache};

/// One thing that happens. `later`: the clock has moved on since it was last read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A write or an event does what it does next.
    Change { which: usize, later: bool },
    /// Chat carries a change out.
    CarryOut(usize),
    /// A reader looks for kept facts.
    Look(usize),
    /// A reader judges what it has, and answers if that is all.
    Judge(usize),
    /// A reader asks for what is missing.
    Ask(usize),
    /// A reader gives up.
    Leave(usize),
    /// A call goes out.
    Send { later: bool },
    /// Chat reads for a call.
    Read(usize),
    /// A call's answer is in.
    Land { which: usize, how: How },
    /// A fact of an answer is kept.
    Store(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Answered,
    /// Every item of it has failed.
    ItemsFail,
    Refused,
    Failed,
}

/// How far a change is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Stage {
    Start,
    FirstRead,
    Out,
    LastRead,
    Marked,
    Answered,
}

#[derive(Debug, Clone)]
pub(super) struct ChangeState {
    pub stage: Stage,
    pub carried_out: bool,
    /// The clock as it was read for the next mark.
    pub read: u64,
    /// The last mark, 0 if none.
    pub mark: u64,
    /// Chat's state when the change was over.
    pub at_end: [u8; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Start,
    Judging,
    Asking,
    Waiting(Ticket),
    /// All it asked for is there.
    Told(Ticket),
    Done,
}

/// What a reader has of a pair: the relation as the pair's first user sees it, `None` for an error.
pub(super) type Known = (Option<u8>, u64);

#[derive(Debug, Clone)]
pub(super) struct ReaderState {
    pub phase: Phase,
    pub slots: Vec<Option<Known>>,
    pub left: usize,
    pub got: Vec<(usize, Known)>,
}

/// What there is, with moments counted from 1.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub clock: u64,
    /// When the last call was sent.
    pub last_sent: u64,
    pub pending: LookupScheduler,
    pub kept: [Option<CachedPair>; 2],
    pub storing: Vec<(usize, CachedPair)>,
    /// Relations as Chat has them, seen from the pair's first user.
    pub chat: [u8; 2],
    /// What may not be missing in an answer from now on.
    pub floor: [u8; 2],
    pub changes: Vec<ChangeState>,
    pub readers: Vec<ReaderState>,
    /// With what Chat read, once it did.
    pub calls: Vec<(Batch, Option<Vec<u8>>)>,
}

impl World {
    pub(super) fn new(setup: &Setup) -> Self {
        let change = ChangeState { stage: Stage::Start, carried_out: false, read: 0, mark: 0, at_end: [0; 2] };
        let reader = |reader: &Reader| ReaderState {
            phase: Phase::Start,
            slots: vec![None; reader.to.len()],
            left: 0,
            got: Vec::new(),
        };
        Self {
            clock: 1,
            last_sent: 0,
            pending: LookupScheduler::new(setup.flip),
            kept: [None; 2],
            storing: Vec::new(),
            chat: [0; 2],
            floor: [0; 2],
            changes: vec![change; setup.changes.len()],
            readers: setup.readers.iter().map(reader).collect(),
            calls: Vec::new(),
        }
    }

    /// The last mark that concerns a pair.
    pub(super) fn mark_of(&self, pair: usize, setup: &Setup) -> u64 {
        let marks = setup.changes.iter().zip(&self.changes).filter(|(change, _)| change.scope.marks(pair));
        marks.map(|(_, state)| state.mark).max().unwrap_or(0)
    }

    /// All that can happen next.
    pub(super) fn steps(&self, setup: &Setup) -> Vec<Step> {
        let mut steps = Vec::new();
        for (which, (change, state)) in setup.changes.iter().zip(&self.changes).enumerate() {
            let may_go_on = !change.event || state.carried_out;
            // Of changes that are alike, it makes no difference which is first.
            let alike = setup.changes[..which]
                .iter()
                .zip(&self.changes)
                .any(|(other, before)| other == change && before.stage == Stage::Start && !before.carried_out);
            if alike {
                continue;
            }
            if state.stage != Stage::Answered && may_go_on {
                steps.push(Step::Change { which, later: true });
                if matches!(state.stage, Stage::Start | Stage::Out) && self.sent_now() {
                    steps.push(Step::Change { which, later: false });
                }
            }
            if !state.carried_out && (change.event || state.stage >= Stage::Out) {
                steps.push(Step::CarryOut(which));
            }
        }
        for (which, reader) in self.readers.iter().enumerate() {
            match reader.phase {
                // Of readers who ask the same, it makes no difference who is first.
                Phase::Start if self.is_next(which, setup) => steps.push(Step::Look(which)),
                Phase::Judging | Phase::Told(_) => steps.push(Step::Judge(which)),
                Phase::Asking => steps.push(Step::Ask(which)),
                Phase::Waiting(_) if setup.leaving => steps.push(Step::Leave(which)),
                Phase::Start | Phase::Waiting(_) | Phase::Done => {}
            }
        }
        if self.pending.has_queued() {
            steps.push(Step::Send { later: true });
            if self.marked_now() {
                steps.push(Step::Send { later: false });
            }
        }
        for (which, (_, read)) in self.calls.iter().enumerate() {
            match read {
                None => steps.push(Step::Read(which)),
                Some(_) => {
                    steps.push(Step::Land { which, how: How::Answered });
                    if setup.failing {
                        steps.extend([How::ItemsFail, How::Refused, How::Failed].map(|how| Step::Land { which, how }));
                    }
                }
            }
        }
        steps.extend((0..self.storing.len()).map(Step::Store));
        steps
    }

    fn is_next(&self, which: usize, setup: &Setup) -> bool {
        let alike = |other: &usize| setup.readers[*other] == setup.readers[which];
        !(0..which).filter(alike).any(|other| self.readers[other].phase == Phase::Start)
    }

    /// Whether the moment that the clock shows is that of a mark: only then does it matter that it has
    /// not moved on when a call is sent.
    fn marked_now(&self) -> bool {
        self.changes.iter().any(|change| change.mark == self.clock || change.read == self.clock)
    }

    /// Whether it is that of a call.
    fn sent_now(&self) -> bool {
        self.last_sent == self.clock
    }

    /// Takes one. Says whether it was an answer.
    ///
    /// # Errors
    /// What is wrong with that answer.
    pub(super) fn take(&mut self, step: Step, scene: &mut Scene) -> Result<bool, String> {
        scene.set_fence(&self.changes);
        match step {
            Step::Change { which, later } => self.go_on(which, later, scene),
            Step::CarryOut(which) => {
                self.changes[which].carried_out = true;
                for pair in 0..2 {
                    if scene.setup.changes[which].scope.changes(pair) {
                        self.chat[pair] |= 1 << which;
                    }
                }
            }
            Step::Look(which) => {
                self.look(which, scene);
                if !scene.setup.fine_readers {
                    return self.judge(which, scene);
                }
            }
            Step::Judge(which) => return self.judge(which, scene),
            Step::Ask(which) => self.ask(which, scene),
            Step::Leave(which) => self.leave(which),
            Step::Send { later } => {
                let now = self.read_clock(later);
                self.last_sent = now;
                let call = self.pending.next_batch(100, Tick::from_micros(now)).ok_or("queued, but no call")?;
                self.calls.push((call, None));
            }
            Step::Read(which) => {
                let call = &self.calls[which].0;
                let read = call.to.iter().map(|to| turn(self.chat[index(&call.from, to)], &call.from, to));
                self.calls[which].1 = Some(read.collect());
            }
            Step::Land { which, how } => self.land(which, how, scene)?,
            Step::Store(which) => self.store(which, scene),
        }
        Ok(false)
    }

    /// Where nothing more happens, nobody waits and nothing is left.
    pub(super) fn check_end(&self) -> Result<(), String> {
        let LookupScheduler {
            edges, joinable, nodes, queues, turns, calls, tickets, waiting, waiting_by_caller, ..
        } = &self.pending;
        let empty = edges.is_empty() && joinable.is_empty() && nodes.is_empty() && queues.is_empty();
        if !self.readers.iter().all(|reader| reader.phase == Phase::Done) {
            return Err("somebody waits for ever".to_owned());
        }
        if !(empty && turns.is_empty() && calls.is_empty() && tickets.is_empty()) {
            return Err("something is left behind".to_owned());
        }
        if *waiting > 0 || !waiting_by_caller.is_empty() {
            return Err("those who wait are miscounted".to_owned());
        }
        Ok(())
    }

    fn read_clock(&mut self, later: bool) -> u64 {
        self.clock += u64::from(later);
        self.clock
    }

    fn store(&mut self, which: usize, scene: &Scene) {
        let (pair, fact) = self.storing.remove(which);
        let facts = self.facts(scene);
        facts.insert(scene.both(pair).key(), fact);
        self.kept[pair] = facts.get(scene.both(pair).key());
    }

    /// A table with what is kept.
    fn facts(&self, scene: &Scene) -> PairCache {
        let facts = PairCache::new(8);
        for (pair, fact) in self.kept.iter().enumerate() {
            if let Some(fact) = fact {
                facts.insert(scene.both(pair).key(), *fact);
            }
        }
        facts
    }

    /// As `WriteFence` in `src/gateway/relay.rs`: a mark, out, and once it is over a mark, the facts
    /// forgotten, the answer. An event begins when it is over.
    fn go_on(&mut self, which: usize, later: bool, scene: &Scene) {
        let Setup { fault, fine_changes, changes, .. } = &scene.setup;
        let Change { event, scope } = changes[which];
        let over = event || self.changes[which].stage >= Stage::Out;
        let stage = self.changes[which].stage;
        match stage {
            Stage::Start | Stage::Out => {
                let read = self.read_clock(later);
                let chat = self.chat;
                let state = &mut self.changes[which];
                state.read = read;
                state.stage = if over { Stage::LastRead } else { Stage::FirstRead };
                if over {
                    state.at_end = chat;
                }
                if !fine_changes {
                    self.go_on(which, false, scene);
                }
            }
            Stage::FirstRead => {
                let state = &mut self.changes[which];
                state.mark = state.mark.max(state.read);
                state.stage = Stage::Out;
            }
            Stage::LastRead => {
                match fault {
                    Some(Fault::NoSecondMark) => {}
                    Some(Fault::AnswerBeforeMark) => self.answer(which, scope),
                    _ => self.mark(which),
                }
                self.changes[which].stage = Stage::Marked;
                if !fine_changes && fault.is_none() {
                    self.go_on(which, false, scene);
                }
            }
            Stage::Marked => {
                if let Scope::Pair(pair) = scope {
                    let facts = self.facts(scene);
                    facts.remove(scene.both(pair).key());
                    self.kept[pair] = facts.get(scene.both(pair).key());
                }
                if *fault == Some(Fault::AnswerBeforeMark) {
                    self.mark(which);
                } else {
                    self.answer(which, scope);
                }
                self.changes[which].stage = Stage::Answered;
            }
            Stage::Answered => {}
        }
    }

    fn mark(&mut self, which: usize) {
        let state = &mut self.changes[which];
        state.mark = state.mark.max(state.read);
    }

    /// From here on the promise binds.
    fn answer(&mut self, which: usize, scope: Scope) {
        for pair in 0..2 {
            if scope.changes(pair) {
                self.floor[pair] |= self.changes[which].at_end[pair];
            }
        }
    }

    /// As `look_up` in `src/gateway/follow.rs`.
    fn look(&mut self, which: usize, scene: &Scene) {
        let Reader { from, to, cached, .. } = &scene.setup.readers[which];
        let facts = self.facts(scene);
        let reader = &mut self.readers[which];
        for (slot, to) in to.iter().enumerate() {
            let pair = scene.pair(from, to);
            let fact = facts.get(pair.key()).filter(|fact| *cached && scene.admits(pair, fact.sent.micros()));
            reader.slots[slot] = fact.map(|fact| known(pair, fact, from, to));
        }
        reader.phase = Phase::Judging;
    }

    /// As the head of the loop in `answer_question`.
    fn judge(&mut self, which: usize, scene: &Scene) -> Result<bool, String> {
        let Reader { from, to, .. } = &scene.setup.readers[which];
        let reader = &mut self.readers[which];
        if let Phase::Told(ticket) = reader.phase {
            self.pending.cancel(ticket);
            for (slot, known) in reader.got.drain(..) {
                reader.slots[slot] = Some(known);
            }
        }
        if scene.setup.fault != Some(Fault::JudgedOnce) {
            for (slot, to) in reader.slots.iter_mut().zip(to) {
                if slot.is_some_and(|(_, sent)| !scene.admits(scene.pair(from, to), sent)) {
                    *slot = None;
                }
            }
        }
        if reader.slots.iter().any(Option::is_none) {
            reader.phase = Phase::Asking;
            if !scene.setup.fine_readers {
                self.ask(which, scene);
            }
            return Ok(false);
        }
        for (slot, to) in std::mem::take(&mut reader.slots).into_iter().zip(to) {
            let Some((Some(told), _)) = slot else { continue };
            let pair = index(from, to);
            if told & self.floor[pair] != self.floor[pair] {
                let floor = self.floor[pair];
                return Err(format!("reader {which} is told {told} of pair {pair}, from before {floor}"));
            }
            if told & !self.chat[pair] != 0 {
                return Err(format!("reader {which} is told {told} of pair {pair}, which never was so"));
            }
        }
        reader.phase = Phase::Done;
        Ok(true)
    }

    fn ask(&mut self, which: usize, scene: &Scene) {
        let Reader { from, to, join, keep, .. } = &scene.setup.readers[which];
        let reader = &mut self.readers[which];
        let missing = (0..to.len()).filter(|slot| reader.slots[*slot].is_none());
        let wanted: Vec<_> =
            missing.map(|slot| Wanted { pair: scene.pair(from, to[slot]), from, to: to[slot], slot }).collect();
        let terms = JoinOptions { caller: QueueKey(0), join: *join, keep: *keep };
        let (ticket, _) = self.pending.enqueue(terms, &wanted, |pair| scene.last_mark(pair)).expect("room");
        reader.left = wanted.len();
        reader.phase = Phase::Waiting(ticket);
    }

    fn leave(&mut self, which: usize) {
        let reader = &mut self.readers[which];
        if let Phase::Waiting(ticket) = reader.phase {
            self.pending.cancel(ticket);
        }
        *reader = ReaderState { phase: Phase::Done, slots: Vec::new(), left: 0, got: Vec::new() };
    }

    /// As `settle` and `tell` in `src/gateway/desk.rs`.
    fn land(&mut self, which: usize, how: How, scene: &Scene) -> Result<(), String> {
        let (call, read) = self.calls.remove(which);
        let read = read.ok_or("nothing was read")?;
        let code = if how == How::ItemsFail { 30003 } else { 0 };
        let items: Vec<_> = call
            .to
            .iter()
            .zip(&read)
            .map(|(to, relation)| format!(r#"{{"To_Account":"{to}","ResultCode":{code},"FollowType":{relation}}}"#))
            .collect();
        let body = format!(r#"{{"ResultItem":[{}],"ErrorCode":0}}"#, items.join(","));
        let items = parse_items(body.as_bytes()).ok_or("no items")?;
        let outcome = match how {
            How::Answered | How::ItemsFail => BatchOutcome::Answered(&items),
            How::Refused => BatchOutcome::RefusedArguments,
            How::Failed => BatchOutcome::Failed,
        };
        let (settlements, kept) = self.pending.complete(call.id, &outcome, |pair| scene.last_mark(pair));
        for CacheablePair { pair, fact, .. } in kept {
            let pair = (0..2).find(|index| scene.both(*index).key() == pair.key()).ok_or("no pair of ours")?;
            self.storing.push((pair, fact));
            if !scene.setup.fine_readers {
                self.store(self.storing.len() - 1, scene);
            }
        }
        for WaiterResult { ticket, slot, settled } in settlements {
            // Who was refused or left is told no more.
            let Some(who) = self.readers.iter().position(|reader| reader.phase == Phase::Waiting(ticket)) else {
                continue;
            };
            let Reader { from, to, .. } = &scene.setup.readers[who];
            let known = match settled {
                PairResult::Known { fact, .. } => known(scene.pair(from, to[slot]), fact, from, to[slot]),
                PairResult::Verbatim(_, sent) => (None, sent.micros()),
                PairResult::Malformed | PairResult::Failed => {
                    self.leave(who);
                    continue;
                }
            };
            let reader = &mut self.readers[who];
            reader.got.push((slot, known));
            reader.left -= 1;
            if reader.left == 0 {
                reader.phase = Phase::Told(ticket);
            }
        }
        Ok(())
    }
}

/// A fact as a reader hears it, brought back to the pair's first user.
fn known(pair: Pair, fact: CachedPair, from: &str, to: &str) -> Known {
    (Some(turn(pair.seen_from(fact.stored).number(), from, to)), fact.sent.micros())
}
