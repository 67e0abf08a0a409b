//! Not from before a write.
//!
//! The promise: once the answer to a write (or to an event) was sent, no answer about its pairs
//! comes from a lookup that was sent before. It must hold for what is kept and for what is under
//! way, for pairs, for all pairs of a deleted user and for a whole app, in fixed memory and without
//! a lock on the path of a hit.
//!
//! So every result carries the moment its lookup was *sent*, and the fence remembers moments: a
//! write marks its pairs just before it goes out and once more when its answer is in (or given up),
//! before that answer is passed on. A result may be used only if it was sent after the latest mark
//! of its pair, of either user and of the app.
//!
//! The second mark is what keeps the promise: a lookup sent after it left after Chat had carried the
//! write out, and whatever was sent before it, between the two marks included, may have seen either
//! state. The first mark is a spare: it stops answers from before the write a little earlier, and it
//! is there if the one who was to make the second is not. Because readers compare, it does
//! not matter who stores a result or when: a late store of an old result is never read.
//!
//! Marks are kept in arrays indexed by hash. Two pairs that share a place share their marks, which
//! costs a lookup now and then and never a wrong answer.

use std::sync::atomic::{AtomicU64, Ordering};

use super::pair::{Pair, PairKey, UserKey};
use crate::domain::tick::Tick;

/// Places for marks of pairs (2 MiB, untouched pages cost nothing). At 100 writes a second and a
/// ttl of 30 s about one kept fact in a hundred is asked again for nothing.
const PAIR_PLACES: usize = 1 << 18;
/// Places for marks of whole users: deleted accounts are rarer than follows.
const USER_PLACES: usize = 1 << 15;

/// The marks of one app.
#[derive(Debug)]
pub struct Fence {
    pairs: Box<[AtomicU64]>,
    users: Box<[AtomicU64]>,
    app: AtomicU64,
    /// The latest of all: what was sent after it needs no look at the others.
    latest: AtomicU64,
    /// How many marks were made.
    version: AtomicU64,
}

impl Default for Fence {
    fn default() -> Self {
        Self::with_places(PAIR_PLACES, USER_PLACES)
    }
}

impl Fence {
    /// An unmarked fence. The model uses one with few places, since it makes a fence for every step.
    pub(crate) fn with_places(pairs: usize, users: usize) -> Self {
        Self {
            pairs: bytemuck::zeroed_slice_box(pairs),
            users: bytemuck::zeroed_slice_box(users),
            app: AtomicU64::new(0),
            latest: AtomicU64::new(0),
            version: AtomicU64::new(0),
        }
    }

    /// Marks one pair, both directions of it.
    pub fn mark_pair(&self, pair: PairKey, now: Tick) {
        self.mark(self.pair_place(pair), now);
    }

    /// Marks every pair of a user.
    pub fn mark_user(&self, user: UserKey, now: Tick) {
        self.mark(self.user_place(user), now);
    }

    /// Marks every pair of the app.
    pub fn mark_all(&self, now: Tick) {
        self.mark(&self.app, now);
    }

    /// The latest mark that concerns the pair. A result sent at that moment or before is void.
    pub fn last_mark(&self, pair: Pair) -> Tick {
        let at = read(self.pair_place(pair.key()))
            .max(read(self.user_place(pair.from)))
            .max(read(self.user_place(pair.to)))
            .max(read(&self.app));
        Tick::from_micros(at)
    }

    /// Returns a number that changes with every mark. Whoever reads the same number twice knows that no write
    /// has been acknowledged in between whose mark it has not seen: a write is acknowledged after its mark.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// Whether a result that was sent at `sent` may still answer.
    pub fn admits(&self, pair: Pair, sent: Tick) -> bool {
        sent.micros() > read(&self.latest) || sent > self.last_mark(pair)
    }

    /// Marks only move forward, so two writers that race leave the later moment. `latest` goes first: who still
    /// reads an earlier one there does so before the mark is made.
    fn mark(&self, place: &AtomicU64, now: Tick) {
        self.latest.fetch_max(now.micros(), Ordering::SeqCst);
        place.fetch_max(now.micros(), Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    fn pair_place(&self, pair: PairKey) -> &AtomicU64 {
        &self.pairs[(pair.spread() as usize) % self.pairs.len()]
    }

    fn user_place(&self, user: UserKey) -> &AtomicU64 {
        &self.users[(user.index_bits() as usize) % self.users.len()]
    }
}

fn read(place: &AtomicU64) -> u64 {
    place.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use super::super::pair::UserHasher;
    use super::*;

    fn pair(from: &str, to: &str) -> Pair {
        let hasher = UserHasher::new(&[1; 16]);
        Pair { from: hasher.user(from), to: hasher.user(to) }
    }

    fn at(micros: u64) -> Tick {
        Tick::from_micros(micros)
    }

    #[test]
    fn only_what_was_sent_after_the_last_mark_is_admitted() {
        let fence = Fence::default();
        let ab = pair("ann", "bob");
        assert!(fence.admits(ab, at(1)));
        fence.mark_pair(ab.key(), at(10));
        assert!(!fence.admits(ab, at(9)));
        assert!(!fence.admits(ab, at(10)), "the same moment may be before the write");
        assert!(fence.admits(ab, at(11)));
        assert!(!fence.admits(ab.flipped(), at(9)), "the turned-round pair is the same pair");
        assert!(fence.admits(pair("ann", "cyd"), at(9)), "other pairs of the user stand");
    }

    #[test]
    fn marks_never_move_back() {
        let fence = Fence::default();
        let ab = pair("ann", "bob");
        fence.mark_pair(ab.key(), at(20));
        fence.mark_pair(ab.key(), at(10));
        assert_eq!(fence.last_mark(ab), at(20));
    }

    #[test]
    fn a_user_and_an_app_are_marked_at_once() {
        let fence = Fence::default();
        fence.mark_user(pair("ann", "bob").from, at(10));
        assert!(!fence.admits(pair("ann", "bob"), at(10)));
        assert!(!fence.admits(pair("cyd", "ann"), at(10)));
        assert!(fence.admits(pair("cyd", "bob"), at(10)));
        fence.mark_all(at(12));
        assert!(!fence.admits(pair("cyd", "bob"), at(12)));
        assert!(fence.admits(pair("cyd", "bob"), at(13)));
    }
}
