//! The fence: no result from before a write.
//!
//! The guarantee: once the response to a write or a webhook was returned, no response about its pairs comes from a
//! lookup that was sent earlier. It covers cached pairs and lookups in flight; single pairs, all pairs of a deleted
//! user, and a whole app. It takes fixed memory, and a hit takes no lock.
//!
//! Every result carries the time its lookup was *sent*, and the fence stores the times of writes as marks. A write marks
//! its pairs twice: just before it is sent, and after its response arrives (or is given up), before that response is
//! returned. A result may be used only if it was sent after the latest mark of its pair, of either user, and of the app.
//!
//! The second mark establishes the guarantee. A lookup sent after the second mark was sent after Chat had executed the
//! write. Any lookup sent before the second mark, even between the two marks, may have seen either state. The first mark
//! is a precaution: it rejects results from before the write a little earlier, and it exists even if the code that makes
//! the second mark never runs. Because readers compare times, it does not matter which code stores a result, or when: an
//! old result that is stored late is never used.
//!
//! Marks are in arrays indexed by hash. Two pairs with the same slot share their marks, which costs an occasional lookup
//! and never gives a wrong response.

use super::pair::{Pair, PairKey, UserKey};
use super::sync::{AtomicU64, Ordering, zeroed};
use crate::domain::tick::Tick;

/// Slots for the marks of pairs: 2 MiB, of which untouched pages take no memory. At 100 writes per second and a ttl of
/// 30 s, about one cached pair in a hundred is fetched again unnecessarily.
const PAIR_SLOTS: usize = 1 << 18;
/// Slots for the marks of users: deletions of accounts are rarer than follows.
const USER_SLOTS: usize = 1 << 15;

/// The marks of one app.
#[derive(Debug)]
pub struct Fence {
    pairs: Box<[AtomicU64]>,
    users: Box<[AtomicU64]>,
    app: AtomicU64,
    /// The latest mark of all. A result sent after it needs no other check.
    latest: AtomicU64,
    /// The number of marks.
    version: AtomicU64,
}

impl Default for Fence {
    fn default() -> Self {
        Self::with_slots(PAIR_SLOTS, USER_SLOTS)
    }
}

impl Fence {
    /// Returns an unmarked fence. The model uses one with few slots, since it makes a fence for every step.
    pub(crate) fn with_slots(pairs: usize, users: usize) -> Self {
        Self {
            pairs: zeroed(pairs),
            users: zeroed(users),
            app: AtomicU64::new(0),
            latest: AtomicU64::new(0),
            version: AtomicU64::new(0),
        }
    }

    /// Marks one pair, in both directions.
    pub fn mark_pair(&self, pair: PairKey, now: Tick) {
        self.mark(self.pair_slot(pair), now);
    }

    /// Marks every pair of a user.
    pub fn mark_user(&self, user: UserKey, now: Tick) {
        self.mark(self.user_slot(user), now);
    }

    /// Marks every pair of the app.
    pub fn mark_all(&self, now: Tick) {
        self.mark(&self.app, now);
    }

    /// Returns the latest mark that applies to the pair. A result sent at that time or earlier is void.
    pub fn last_mark(&self, pair: Pair) -> Tick {
        let at = read(self.pair_slot(pair.key()))
            .max(read(self.user_slot(pair.from)))
            .max(read(self.user_slot(pair.to)))
            .max(read(&self.app));
        Tick::from_micros(at)
    }

    /// Returns the latest mark of all. A result sent after it is admitted, whatever its pair.
    pub fn latest_mark(&self) -> Tick {
        Tick::from_micros(read(&self.latest))
    }

    /// Returns a number that changes with every mark. If it is the same before and after marks were read, those marks
    /// include the mark of every write that was acknowledged by then. If it is the same at two moments, no write whose mark is missing
    /// from what was read since the first one has been acknowledged: a write is acknowledged after its mark.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// Returns whether a result that was sent at `sent` may be used.
    pub fn admits(&self, pair: Pair, sent: Tick) -> bool {
        sent > self.latest_mark() || sent > self.last_mark(pair)
    }

    /// Marks only move forward, so the later of two concurrent marks remains. `latest` is updated first: a reader that
    /// still sees an earlier value there reads before the mark is made.
    fn mark(&self, slot: &AtomicU64, now: Tick) {
        self.latest.fetch_max(now.micros(), Ordering::SeqCst);
        slot.fetch_max(now.micros(), Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    fn pair_slot(&self, pair: PairKey) -> &AtomicU64 {
        &self.pairs[(pair.index_bits() as usize) % self.pairs.len()]
    }

    fn user_slot(&self, user: UserKey) -> &AtomicU64 {
        &self.users[(user.index_bits() as usize) % self.users.len()]
    }
}

fn read(slot: &AtomicU64) -> u64 {
    slot.load(Ordering::SeqCst)
}
