//! One state of readers, writes, events, and Chat, and every step that can follow.

use std::time::Duration;

use super::super::*;
use super::setup::{Reader, Scene, Setup};
use crate::domain::pairs::cache::CachedPair;
use crate::domain::pairs::check::{CheckOptions, CheckSession};

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
    pub joined: Vec<bool>,
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
                sides: reader.sides,
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

    pub(super) fn now(&self) -> Tick {
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

    /// Returns whether a reader of a class waits for a pair that is queued.
    pub(super) fn has_queued_reader(&self, class: Class, scene: &Scene) -> bool {
        let readers = self.readers.iter().zip(&scene.setup.readers).filter(|(_, setup)| setup.class == class);
        readers.into_iter().any(|(reader, _)| match reader.phase {
            Phase::Waiting(ticket) => self.scheduler.is_queued(ticket),
            _ => false,
        })
    }
}
