//! The readers and writes of an exploration, and the parts that all of its states share.

use super::super::{Pair, UserKey};
use super::world::ChangeState;
use crate::domain::caller::Class;
use crate::domain::pairs::cache::PairCache;
use crate::domain::pairs::check::PairView;
use crate::domain::pairs::directives::CacheDirectives;
use crate::domain::pairs::fence::Fence;
use crate::domain::pairs::pair::{Relation, Sides, UserHasher};
use crate::domain::pairs::scope::{self as pairs, ScopeKeys};
use crate::domain::policy::stale_gate::StaleGate;
use crate::domain::tick::Tick;

pub(super) const USERS: [&str; 3] = ["ann", "bob", "cyd"];
/// Two pairs that share a user.
pub(super) const PAIRS: [(&str, &str); 2] = [("ann", "bob"), ("ann", "cyd")];

/// The readers and changes, and the failures that may happen.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// At most two: each has one of the two bits of a relation.
    pub changes: Vec<Change>,
    pub readers: Vec<Reader>,
    /// Calls may also fail, be rejected, or have failing items.
    pub failing: bool,
    /// Readers may also disconnect while they wait.
    pub leaving: bool,
    /// Other steps may happen between the moments when a change reads the clock, marks the fence, and is acknowledged.
    /// Otherwise these follow each other at once, so that the promise applies as early as possible.
    pub fine_changes: bool,
    /// Other steps may happen between the moments when a reader scans, decides, and enqueues, and between the moments
    /// when a response arrives and when its pairs are stored.
    pub fine_readers: bool,
    pub flip: bool,
    /// Cached pairs answer past their ttl, which ends at the next moment, and are refreshed.
    pub revalidate: bool,
    pub fault: Option<Fault>,
}

/// A broken gateway, which the exploration must catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Writes mark once, before they are sent; events do not mark.
    NoSecondMark,
    /// Writes are acknowledged before their second mark.
    AcknowledgeBeforeMark,
    /// Readers do not judge the answers that they have again when the rest arrives.
    JudgedOnce,
    /// Readers join lookups and use answers regardless of the fence.
    Unfenced,
    /// Pairs of calls for one side are cached.
    KeptOneSide,
}

/// A write through the gateway, or an event that reports a change made elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    pub event: bool,
    pub scope: Scope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Pair(usize),
    User(&'static str),
    /// The scope of a write whose body cannot be read. The write changes the first pair.
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

/// A request that checks pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reader {
    pub from: &'static str,
    pub to: Vec<&'static str>,
    pub sides: Sides,
    pub directives: CacheDirectives,
    pub class: Class,
}

/// The parts that all worlds of one exploration share, and the fences of the world that takes a step.
pub(super) struct Scene {
    pub setup: Setup,
    pub hasher: UserHasher,
    pub keys: [UserKey; 3],
    /// Records no failure here: nothing is served stale.
    stale_gate: StaleGate,
    /// The fence of the current world, rebuilt for every step.
    fence: Fence,
    /// A fence without marks, for faults.
    unmarked: Fence,
}

/// Places of a fence: few, because every step has a new fence, but enough that no two pairs share one.
const PLACES: usize = 64;

impl Scene {
    pub(super) fn new(setup: &Setup) -> Self {
        let hasher = UserHasher::new(&[3; 16]);
        let keys = USERS.map(|name| hasher.user(name));
        let fence = || Fence::with_slots(PLACES, PLACES);
        let scene = Self {
            setup: setup.clone(),
            hasher,
            keys,
            stale_gate: StaleGate::default(),
            fence: fence(),
            unmarked: fence(),
        };
        let marked = fence();
        marked.mark_pair(scene.both(0).key(), Tick::from_micros(1));
        marked.mark_user(scene.keys[1], Tick::from_micros(1));
        assert_eq!(marked.last_mark(scene.both(1)), Tick::NEVER, "the fence is too small to distinguish pairs");
        scene
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

    /// Returns the scope of a change, as the gateway reads it from a request or an event.
    pub(super) fn scope_keys(&self, scope: Scope) -> ScopeKeys {
        let scope = match scope {
            Scope::Pair(index) => pairs::Scope::pairs_of(PAIRS[index].0, &[PAIRS[index].1]),
            Scope::User(name) => pairs::Scope::Users(vec![name.to_owned()]),
            Scope::All => pairs::Scope::All,
        };
        ScopeKeys::new(&scope, &self.hasher)
    }

    /// Rebuilds the fence of a world from the marks that its changes have made.
    pub(super) fn set_fence(&mut self, changes: &[ChangeState]) {
        self.fence = Fence::with_slots(PLACES, PLACES);
        for (change, state) in self.setup.changes.iter().zip(changes) {
            let keys = self.scope_keys(change.scope);
            (0..state.marks).for_each(|_| keys.mark(&self.fence, Tick::from_micros(state.mark)));
        }
    }

    /// Returns the fence that lookups and scans use.
    pub(super) fn fence(&self) -> &Fence {
        if self.setup.fault == Some(Fault::Unfenced) { &self.unmarked } else { &self.fence }
    }

    /// Returns the view of a reader that scans.
    pub(super) fn view<'a>(&'a self, cache: &'a PairCache) -> PairView<'a> {
        PairView { cache, fence: self.fence(), stale_gate: &self.stale_gate }
    }

    /// Returns the view of a reader that judges its answers.
    pub(super) fn judging_view<'a>(&'a self, cache: &'a PairCache) -> PairView<'a> {
        let fence = if self.setup.fault == Some(Fault::JudgedOnce) { &self.unmarked } else { self.fence() };
        PairView { cache, fence, stale_gate: &self.stale_gate }
    }
}

pub(super) fn index(a: &str, b: &str) -> usize {
    PAIRS.iter().position(|pair| *pair == (a, b) || *pair == (b, a)).expect("a pair")
}

/// Returns the relation of a pair seen from `from`, given as the pair's first user sees it, and the reverse.
pub(super) fn oriented(relation: u8, from: &str, to: &str) -> u8 {
    let relation = Relation::new(relation.into()).expect("two bits");
    if PAIRS[index(from, to)].0 == from { relation.number() } else { relation.flipped().number() }
}
