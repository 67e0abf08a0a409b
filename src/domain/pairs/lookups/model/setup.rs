//! Who takes part in an exploration, and what all of its states share.

use super::super::{Pair, UserKey};
use super::world::ChangeState;
use crate::domain::pairs::fence::Fence;
use crate::domain::pairs::pair::{Relation, UserHasher};
use crate::domain::tick::Tick;

pub(super) const USERS: [&str; 3] = ["ann", "bob", "cyd"];
/// Two pairs that share a user.
pub(super) const PAIRS: [(&str, &str); 2] = [("ann", "bob"), ("ann", "cyd")];

/// Who takes part, and what may go wrong.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// At most two: each has one of the two bits of a relation.
    pub changes: Vec<Change>,
    pub readers: Vec<Reader>,
    /// Calls may also fail, be refused, or have failing items.
    pub failing: bool,
    /// Readers may also leave while they wait.
    pub leaving: bool,
    /// Anything may happen between a change's reading of the clock, its mark and its answer. Otherwise
    /// they follow each other at once, which is the earliest moment for the promise to bind.
    pub fine_changes: bool,
    /// Anything may happen between a reader's look, judgement and question, and between an answer's
    /// landing and its being kept.
    pub fine_readers: bool,
    pub flip: bool,
    pub fault: Option<Fault>,
}

/// A gateway that must be found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Writes mark once, before they go out; events not at all.
    NoSecondMark,
    /// The answer goes out, and then the second mark is made.
    AnswerBeforeMark,
    /// What a reader has is not judged again when the rest is there.
    JudgedOnce,
    /// Lookups are joined and believed whatever the fence says.
    Unfenced,
}

/// A write through the gateway, or a change made elsewhere that an event tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    pub event: bool,
    pub scope: Scope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Pair(usize),
    User(&'static str),
    /// A write that cannot be read; it changes the first pair.
    All,
}

impl Scope {
    pub(super) fn changes(self, pair: usize) -> bool {
        match self {
            Scope::Pair(index) => index == pair,
            Scope::User(name) => PAIRS[pair].0 == name || PAIRS[pair].1 == name,
            Scope::All => pair == 0,
        }
    }

    pub(super) fn marks(self, pair: usize) -> bool {
        matches!(self, Scope::All) || self.changes(pair)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reader {
    pub from: &'static str,
    pub to: Vec<&'static str>,
    pub join: bool,
    pub keep: bool,
    /// Whether kept facts will do.
    pub cached: bool,
}

/// What all worlds of one exploration share. The fence is one for all: before each step the marks of
/// its world are made anew at a later time, which saves the making of an array of two megabytes.
pub(super) struct Scene {
    pub setup: Setup,
    pub keys: [UserKey; 3],
    fence: Fence,
    base: u64,
}

/// More moments than one world has.
const MOMENTS: u64 = 1000;

impl Scene {
    pub(super) fn new(setup: &Setup) -> Self {
        let hasher = UserHasher::new(&[3; 16]);
        let keys = USERS.map(|name| hasher.user(name));
        Self { setup: setup.clone(), keys, fence: Fence::default(), base: 0 }
    }

    fn key(&self, name: &str) -> UserKey {
        self.keys[USERS.iter().position(|user| *user == name).expect("a user")]
    }

    pub(super) fn pair(&self, from: &str, to: &str) -> Pair {
        Pair { from: self.key(from), to: self.key(to) }
    }

    pub(super) fn both(&self, index: usize) -> Pair {
        self.pair(PAIRS[index].0, PAIRS[index].1)
    }

    pub(super) fn set_fence(&mut self, changes: &[ChangeState]) {
        self.base += MOMENTS;
        for (change, state) in self.setup.changes.iter().zip(changes) {
            if state.mark == 0 {
                continue;
            }
            let at = Tick::from_micros(self.base + state.mark);
            match change.scope {
                Scope::Pair(index) => self.fence.mark_pair(self.both(index).key(), at),
                Scope::User(name) => self.fence.mark_user(self.key(name), at),
                Scope::All => self.fence.mark_all(at),
            }
        }
    }

    pub(super) fn last_mark(&self, pair: Pair) -> Tick {
        if self.setup.fault == Some(Fault::Unfenced) {
            return Tick::NEVER;
        }
        // What was marked before the base belongs to other worlds.
        Tick::from_micros(self.fence.last_mark(pair).micros().saturating_sub(self.base))
    }

    pub(super) fn admits(&self, pair: Pair, sent: u64) -> bool {
        self.setup.fault == Some(Fault::Unfenced) || self.fence.admits(pair, Tick::from_micros(self.base + sent))
    }
}

pub(super) fn index(a: &str, b: &str) -> usize {
    PAIRS.iter().position(|pair| *pair == (a, b) || *pair == (b, a)).expect("a pair")
}

/// The relation turned between the pair's first user and `from`.
pub(super) fn turn(relation: u8, from: &str, to: &str) -> u8 {
    let relation = Relation::new(relation.into()).expect("two bits");
    if PAIRS[index(from, to)].0 == from { relation.number() } else { relation.flipped().number() }
}
