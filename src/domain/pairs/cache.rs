//! The facts of one app: a bounded table from a pair to its relation.
//!
//! A fact takes 16 bytes: 64 bits that tell the pair apart, the moment its lookup was sent (62 bits)
//! and the relation (2 bits). A pair has two places, of which an insertion takes the emptier, so with three
//! slots of four in use hardly a place is full. A place is a cache line and both are of one page, since
//! what a lookup waits for is memory: larger places would need fewer free slots and twice the lines. Chosen by
//! measurement: one entry a pair in a general cache costs 60 times the time and 12 times the memory.
//!
//! Readers take no lock. The first word of a slot is the tag exclusive-or the second word, so a
//! reader that meets a slot half written computes a tag that is not its own and misses, which costs
//! a lookup. Writers of a place exclude each other.
//!
//! Nothing leaves by time: readers judge age (and the [fence](super::fence)) themselves, and when
//! the table is full the oldest fact of the two places goes.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::pair::{PairKey, Relation};
use crate::domain::tick::Tick;

/// Words of a slot, and of a place of four slots: a cache line.
const SLOT_WORDS: usize = 2;
const PLACE_WORDS: usize = 4 * SLOT_WORDS;
/// Slots of a place that are used when the table is full, on average.
const PLACE_USED: usize = 3;
/// Places of a block, which is a page of memory; a small table is one smaller block. A power of two.
const BLOCK_PLACES: usize = 64;
const BLOCK_WORDS: usize = PLACE_WORDS * BLOCK_PLACES;
/// Locks that writers share, by place.
const WRITER_LOCKS: usize = 64;

/// The table. See the module for how it works.
#[derive(Debug)]
pub struct PairCache {
    words: Box<[AtomicU64]>,
    /// The first word of the first block: where a page begins.
    begin: usize,
    blocks: u64,
    block_places: usize,
    writers: [Mutex<()>; WRITER_LOCKS],
    len: AtomicUsize,
    max: usize,
}

/// What is known of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachedPair {
    /// The relation as stored; see [`Pair::stored_as`](super::pair::Pair::stored_as).
    pub stored: Relation,
    /// When the lookup that brought it was sent. Age counts from here.
    pub sent: Tick,
}

impl CachedPair {
    /// Never 0, since a sent moment is never 0: 0 is an empty slot.
    fn word(self) -> u64 {
        (self.sent.max(Tick::from_micros(1)).micros() << 2) | u64::from(self.stored.number())
    }

    fn from_word(word: u64) -> Self {
        let number = (word & 3) as i64;
        Self { stored: Relation::new(number).expect("two bits"), sent: Tick::from_micros(word >> 2) }
    }
}

impl PairCache {
    /// A table that holds at most `max` pairs (at least one). Its memory is asked for at once
    /// (21.3 bytes a pair) and used as it fills.
    pub fn new(max: usize) -> Self {
        let max = max.max(1);
        let places = max.div_ceil(PLACE_USED);
        let blocks = places.div_ceil(BLOCK_PLACES);
        // One more than there are, so that the first can begin anywhere in it.
        let words: Box<[AtomicU64]> = bytemuck::zeroed_slice_box((blocks + 1) * BLOCK_WORDS);
        let off = words.as_ptr().addr() % size_of_val(&words[..BLOCK_WORDS]) / size_of::<AtomicU64>();
        Self {
            words,
            begin: BLOCK_WORDS - off,
            blocks: blocks as u64,
            block_places: places.next_power_of_two().clamp(2, BLOCK_PLACES),
            writers: [const { Mutex::new(()) }; WRITER_LOCKS],
            len: AtomicUsize::new(0),
            max,
        }
    }

    /// How many pairs it holds, old ones too.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is known of the pair, however old.
    pub fn get(&self, pair: PairKey) -> Option<CachedPair> {
        self.places_of(pair).into_iter().find_map(|place| self.get_in(place, pair))
    }

    /// The same of many: `wanted` gives an item's pair if it wants to know of it, `found` hears what is known, at most
    /// once for each item.
    ///
    /// A lookup takes as long as its memory takes to come, and for many together that is not much longer than for
    /// one. So all first places are fetched before one is read, and then the second ones of those who need them.
    pub fn get_batch<T>(
        &self,
        items: &mut [T],
        wanted: impl Fn(&T) -> Option<PairKey>,
        mut found: impl FnMut(&mut T, CachedPair),
    ) {
        let place = |which: usize| move |pair| self.places_of(pair)[which];
        self.touch(items.iter().filter_map(&wanted).map(place(0)));
        let mut left = Vec::new();
        for (index, item) in items.iter_mut().enumerate() {
            let Some(pair) = wanted(item) else { continue };
            match self.get_in(place(0)(pair), pair) {
                Some(fact) => found(item, fact),
                None => left.push((index, pair)),
            }
        }
        self.touch(left.iter().map(|(_, pair)| place(1)(*pair)));
        for (index, pair) in left {
            if let Some(fact) = self.get_in(place(1)(pair), pair) {
                found(&mut items[index], fact);
            }
        }
    }

    /// Has places fetched.
    fn touch(&self, places: impl Iterator<Item = usize>) {
        let sum = places.fold(0, |sum, place| sum ^ self.words[place].load(Ordering::Relaxed));
        // What it reads is of no use, which nobody must find out.
        std::hint::black_box(sum);
    }

    fn get_in(&self, place: usize, pair: PairKey) -> Option<CachedPair> {
        self.slots(place).find_map(|(first, second)| {
            let word = second.load(Ordering::Acquire);
            (first.load(Ordering::Acquire) ^ word == pair.tag() && word != 0).then(|| CachedPair::from_word(word))
        })
    }

    /// Keeps a fact, unless a later one of the same pair is there.
    pub fn insert(&self, pair: PairKey, fact: CachedPair) {
        let places = self.places_of(pair);
        let _guards = self.lock(places);
        let mut found = None;
        let mut oldest: Option<(u64, usize)> = None;
        let mut empty: [Option<usize>; 2] = [None, None];
        let mut taken = [0, 0];
        for (which, place) in places.into_iter().enumerate() {
            for (index, (first, second)) in self.slots(place).enumerate() {
                let at = place + index * SLOT_WORDS;
                let word = second.load(Ordering::Relaxed);
                if word == 0 {
                    empty[which].get_or_insert(at);
                    continue;
                }
                taken[which] += 1;
                if first.load(Ordering::Relaxed) ^ word == pair.tag() {
                    found = Some((word, at));
                }
                if oldest.is_none_or(|(sent, _)| word >> 2 < sent) {
                    oldest = Some((word >> 2, at));
                }
            }
        }
        if let Some((word, at)) = found {
            if word >> 2 <= fact.sent.micros() {
                self.write(at, pair, fact);
            }
            return;
        }
        let emptier = usize::from(taken[1] < taken[0]);
        let free = empty[emptier].or(empty[1 - emptier]);
        match (free, oldest) {
            (Some(at), _) if self.grow() => self.write(at, pair, fact),
            (_, Some((_, at))) => self.write(at, pair, fact),
            // The table is full, but not in these places: the fact is not kept.
            (_, None) => {}
        }
    }

    /// Forgets a pair.
    pub fn remove(&self, pair: PairKey) {
        let places = self.places_of(pair);
        let _guards = self.lock(places);
        for place in places {
            for (first, second) in self.slots(place) {
                let word = second.load(Ordering::Relaxed);
                if word != 0 && first.load(Ordering::Relaxed) ^ word == pair.tag() {
                    second.store(0, Ordering::Release);
                    first.store(0, Ordering::Release);
                    self.len.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Takes room for one more, if there is some.
    fn grow(&self) -> bool {
        self.len.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |len| (len < self.max).then_some(len + 1)).is_ok()
    }

    fn write(&self, at: usize, pair: PairKey, fact: CachedPair) {
        let word = fact.word();
        self.words[at].store(pair.tag() ^ word, Ordering::Release);
        self.words[at + 1].store(word, Ordering::Release);
    }

    /// The first words of its two places: the block from the highest bits of the hash, the two in it from the lowest.
    fn places_of(&self, pair: PairKey) -> [usize; 2] {
        let spread = pair.spread();
        let block = ((u128::from(spread) * u128::from(self.blocks)) >> 64) as usize;
        let begin = self.begin + block * BLOCK_WORDS;
        let mask = self.block_places - 1;
        let first = spread as usize & mask;
        // Another one, as a bit differs.
        let second = first ^ (1 | ((spread as usize / BLOCK_PLACES) & mask));
        [begin + first * PLACE_WORDS, begin + second * PLACE_WORDS]
    }

    fn slots(&self, place: usize) -> impl Iterator<Item = (&AtomicU64, &AtomicU64)> {
        self.words[place..place + PLACE_WORDS].chunks_exact(SLOT_WORDS).map(|slot| (&slot[0], &slot[1]))
    }

    /// Locks both places, in an order that all writers keep.
    fn lock(&self, places: [usize; 2]) -> (MutexGuard<'_, ()>, Option<MutexGuard<'_, ()>>) {
        let [a, b] = places.map(|place| place / PLACE_WORDS % WRITER_LOCKS);
        // The lock guards no data of its own, so a panic elsewhere leaves nothing half done.
        let lock = |which: usize| self.writers[which].lock().unwrap_or_else(PoisonError::into_inner);
        let lower = lock(a.min(b));
        let upper = (a != b).then(|| lock(a.max(b)));
        (lower, upper)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn key(number: u64) -> PairKey {
        // Any bijection of 64 bits with good spread will do.
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        PairKey::for_test(number ^ 0x5555, spread ^ (spread >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9))
    }

    fn fact(number: i64, sent: u64) -> CachedPair {
        CachedPair { stored: Relation::new(number).expect("0 to 3"), sent: Tick::from_micros(sent) }
    }

    #[test]
    fn a_later_fact_replaces_an_earlier_one_and_not_the_other_way_round() {
        let facts = PairCache::new(100);
        facts.insert(key(1), fact(2, 10));
        facts.insert(key(1), fact(1, 9));
        assert_eq!(facts.get(key(1)), Some(fact(2, 10)));
        facts.insert(key(1), fact(3, 11));
        assert_eq!(facts.get(key(1)), Some(fact(3, 11)));
        assert_eq!(facts.len(), 1);
        facts.remove(key(1));
        assert_eq!(facts.get(key(1)), None);
        assert_eq!(facts.len(), 0);
    }

    #[test]
    fn it_fills_to_its_bound_and_stays_there_keeping_the_newest() {
        let max = 10_000;
        let facts = PairCache::new(max);
        for number in 0..max as u64 * 10 {
            facts.insert(key(number), fact(1, number + 1));
            assert!(facts.len() <= max);
        }
        assert!(facts.len() * 100 >= max * 95, "{} of {max}", facts.len());
        let newest =
            (max as u64 * 10 - max as u64 / 2..max as u64 * 10).filter(|n| facts.get(key(*n)).is_some()).count();
        assert!(newest * 100 >= max / 2 * 95, "{newest} of the newest {}", max / 2);
    }

    #[test]
    fn nearly_everything_that_fits_is_found_again() {
        let max = 50_000;
        let facts = PairCache::new(max);
        (0..max as u64).for_each(|number| facts.insert(key(number), fact(2, 5)));
        let found = (0..max as u64).filter(|number| facts.get(key(*number)) == Some(fact(2, 5))).count();
        assert!(found * 1000 >= max * 990, "{found} of {max}");
    }

    #[test]
    fn readers_beside_writers_see_a_fact_that_was_written_or_none() {
        let facts = PairCache::new(4);
        std::thread::scope(|scope| {
            for writer in 0..2u64 {
                let facts = &facts;
                scope.spawn(move || {
                    for round in 1..20_000 {
                        let number = (round + writer) % 8;
                        // The relation is a function of the pair: any mix of two facts shows.
                        facts.insert(key(number), fact((number % 4) as i64, round));
                    }
                });
            }
            for _ in 0..40_000 {
                for number in 0..8 {
                    if let Some(seen) = facts.get(key(number)) {
                        assert_eq!(u64::from(seen.stored.number()), number % 4);
                    }
                }
            }
        });
        assert!(facts.len() <= 4);
    }

    proptest! {
        #[test]
        fn it_never_says_what_was_not_put_in(steps in proptest::collection::vec((0..40u64, 0..4i64, any::<bool>()), 1..400)) {
            let facts = PairCache::new(16);
            let mut model: HashMap<u64, CachedPair> = HashMap::new();
            for (sent, (number, relation, remove)) in (1..).zip(steps) {
                if remove {
                    facts.remove(key(number));
                    model.remove(&number);
                } else {
                    facts.insert(key(number), fact(relation, sent));
                    model.insert(number, fact(relation, sent));
                }
                for number in 0..40 {
                    if let Some(seen) = facts.get(key(number)) {
                        prop_assert_eq!(Some(&seen), model.get(&number));
                    }
                }
                // Only of even ones is it wanted.
                let mut items: Vec<(u64, Vec<CachedPair>)> = (0..40).map(|number| (number, Vec::new())).collect();
                let wanted = |item: &(u64, Vec<CachedPair>)| item.0.is_multiple_of(2).then(|| key(item.0));
                facts.get_batch(&mut items, wanted, |item, fact| item.1.push(fact));
                for (number, found) in items {
                    let expected = facts.get(key(number)).filter(|_| number % 2 == 0);
                    prop_assert_eq!(found, Vec::from_iter(expected), "together or alone");
                }
                prop_assert!(facts.len() <= 16);
            }
        }
    }
}
