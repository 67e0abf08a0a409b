//! The cached pairs of one app: a bounded table from a pair to its relation.
//!
//! A cached pair takes one slot of 16 bytes: a tag that identifies the pair in its bucket (64 bits), the time its lookup
//! was sent (61 bits), whether a refresh of it was begun (1 bit), and the relation (2 bits). A pair has two buckets, and
//! an insertion takes the emptier one. So with three of four slots in use, hardly any bucket is full. A bucket is a cache
//! line, and both buckets are in one page, because a lookup mostly waits for memory. Larger buckets would need fewer free
//! slots but twice the lines.
//!
//! A table of its own, because general caches cost more (1,000,000 pairs, 100 per user; `benches/cache`):
//!
//! | table | bytes per pair | 100 lookups |
//! | --- | --- | --- |
//! | this one | 21.6 | 1.9 µs |
//! | moka, one entry per pair | 261 | 36.9 µs |
//! | quick_cache, one entry per pair | 98.7 | 1.9 µs |
//! | moka, one entry per user | 21.2 | 0.7 µs |
//!
//! An entry per user is faster, but answers from one side only, costs 295 bytes for a user with one pair, and is copied
//! whole for each change. In exchange, this table has no admission policy. With a quarter of the pairs cached under a
//! skewed load, its hit ratio is 83 %, that of moka and quick_cache 88 %. With equal memory it is the highest, 95 %.
//!
//! Readers take no lock. The first word of a slot is the tag XOR the second word without [`ASKED`]. A reader that sees a
//! half-written slot computes another tag and misses, which costs a lookup. Writers of a bucket exclude each other.
//!
//! Entries do not expire here: readers check the age and the [fence](super::fence). When the table is full, an insertion
//! evicts the oldest pair of its two buckets.

use super::pair::{PairKey, Relation};
use super::sync::{AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, zeroed};
use crate::domain::tick::Tick;

/// Words of a slot.
const SLOT_WORDS: usize = 2;
/// Words of a bucket of four slots: a cache line.
const BUCKET_WORDS: usize = 4 * SLOT_WORDS;
/// Average number of used slots per bucket when the table is full.
const BUCKET_USED: usize = 3;
/// Buckets of a block, which is a page of memory. A small table has one smaller block. A power of two.
const BLOCK_BUCKETS: usize = 64;
const BLOCK_WORDS: usize = BUCKET_WORDS * BLOCK_BUCKETS;
/// Locks that writers share, by bucket.
const WRITER_LOCKS: usize = 64;
/// The bit of a slot's second word that [`PairCache::begin_refresh`] sets. A new result clears it, and so does
/// [`PairCache::end_refresh`].
const ASKED: u64 = 0b100;
/// Bits of the second word below the time.
const TIME_SHIFT: u32 = 3;

/// The table; the module documentation describes it.
#[derive(Debug)]
pub struct PairCache {
    words: Box<[AtomicU64]>,
    /// Index of the first word of the first block: the beginning of a page.
    begin: usize,
    blocks: u64,
    block_buckets: usize,
    writers: [Mutex<()>; WRITER_LOCKS],
    len: AtomicUsize,
    max: usize,
}

/// A cached pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachedPair {
    /// The relation as stored; see [`Pair::stored_as`](super::pair::Pair::stored_as).
    pub stored: Relation,
    /// When its lookup was sent. The age counts from this time.
    pub sent: Tick,
}

impl CachedPair {
    /// Holds the place of a pair that is still to be found.
    const NONE: Self = Self { stored: Relation::NONE, sent: Tick::NEVER };

    /// Returns the second word of its slot. It is never 0, which means an empty slot, because the time is never 0.
    fn to_word(self) -> u64 {
        (self.sent.max(Tick::from_micros(1)).micros() << TIME_SHIFT) | u64::from(self.stored.number())
    }

    fn from_word(word: u64) -> Self {
        let number = (word & 3) as i64;
        Self { stored: Relation::new(number).expect("two bits"), sent: Tick::from_micros(word >> TIME_SHIFT) }
    }
}

impl PairCache {
    /// Creates a table for at most `max` pairs, at least one. It reserves 21.3 bytes per pair at once; pages take memory
    /// when they are first used.
    pub fn new(max: usize) -> Self {
        let max = max.max(1);
        let buckets = max.div_ceil(BUCKET_USED);
        let blocks = buckets.div_ceil(BLOCK_BUCKETS);
        // One extra block, so that the first block can begin at a page.
        let words = zeroed((blocks + 1) * BLOCK_WORDS);
        let offset = words.as_ptr().addr() % size_of_val(&words[..BLOCK_WORDS]) / size_of::<AtomicU64>();
        Self {
            words,
            begin: BLOCK_WORDS - offset,
            blocks: blocks as u64,
            block_buckets: buckets.next_power_of_two().clamp(2, BLOCK_BUCKETS),
            writers: std::array::from_fn(|_| Mutex::new(())),
            len: AtomicUsize::new(0),
            max,
        }
    }

    /// Returns the number of pairs, expired ones included.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Returns whether it has no pairs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the cached pair, of any age.
    pub fn get(&self, pair: PairKey) -> Option<CachedPair> {
        self.buckets_of(pair).into_iter().find_map(|bucket| self.get_in(bucket, pair))
    }

    /// Returns the cached pairs, in order and of any age, or `None` if one of them is not cached.
    ///
    /// A lookup mostly waits for memory, and loading many cache lines at once takes little longer than loading one. So
    /// all first buckets are prefetched before any is read, then the second buckets that are still needed.
    pub fn get_all(&self, pairs: impl ExactSizeIterator<Item = PairKey> + Clone) -> Option<Vec<CachedPair>> {
        let bucket = |which: usize| move |pair| self.buckets_of(pair)[which];
        self.prefetch(pairs.clone().map(bucket(0)));
        let (mut found, mut missed) = (Vec::with_capacity(pairs.len()), Vec::new());
        for (index, pair) in pairs.enumerate() {
            found.push(self.get_in(bucket(0)(pair), pair).unwrap_or_else(|| {
                missed.push((index, pair));
                CachedPair::NONE
            }));
        }
        self.prefetch(missed.iter().map(|(_, pair)| bucket(1)(*pair)));
        for (index, pair) in missed {
            found[index] = self.get_in(bucket(1)(pair), pair)?;
        }
        Some(found)
    }

    /// Loads buckets into the CPU cache.
    fn prefetch(&self, buckets: impl Iterator<Item = usize>) {
        let sum = buckets.fold(0, |sum, bucket| sum ^ self.words[bucket].load(Ordering::Relaxed));
        // Keeps the compiler from removing the loads, whose values are not used.
        std::hint::black_box(sum);
    }

    fn get_in(&self, bucket: usize, pair: PairKey) -> Option<CachedPair> {
        self.slots(bucket).find_map(|(first, second)| {
            let word = second.load(Ordering::Acquire);
            (is_of(first.load(Ordering::Acquire), word, pair) && word != 0).then(|| CachedPair::from_word(word))
        })
    }

    /// Notes that the result that was sent at `sent` is asked for past its ttl. Returns whether this is the first time:
    /// then the caller refreshes the pair, and all others leave it alone until there is a new result.
    pub fn begin_refresh(&self, pair: PairKey, sent: Tick) -> bool {
        let slots = self.buckets_of(pair).into_iter().flat_map(|bucket| self.slots(bucket));
        let begin = |(first, second): (&AtomicU64, &AtomicU64)| {
            let word = second.load(Ordering::Acquire);
            let is_wanted = is_of(first.load(Ordering::Acquire), word, pair) && word >> TIME_SHIFT == sent.micros();
            // If the slot has changed meanwhile, the pair has a new result or none.
            (is_wanted && word & ASKED == 0)
                .then(|| second.compare_exchange(word, word | ASKED, Ordering::AcqRel, Ordering::Relaxed).is_ok())
        };
        slots.into_iter().find_map(begin).unwrap_or(false)
    }

    /// Notes that the refresh of a pair has ended without a result, so that the next request begins another one.
    pub fn end_refresh(&self, pair: PairKey) {
        for bucket in self.buckets_of(pair) {
            for (first, second) in self.slots(bucket) {
                let word = second.load(Ordering::Acquire);
                if word & ASKED != 0 && is_of(first.load(Ordering::Acquire), word, pair) {
                    // If the slot has changed meanwhile, the pair has a new result or none.
                    let _ = second.compare_exchange(word, word & !ASKED, Ordering::AcqRel, Ordering::Relaxed);
                }
            }
        }
    }

    /// Stores a pair, unless a later result of the same pair is stored.
    pub fn insert(&self, pair: PairKey, cached: CachedPair) {
        let buckets = self.buckets_of(pair);
        let _guards = self.lock(buckets);
        let mut found = None;
        let mut oldest: Option<(u64, usize)> = None;
        let mut empty: [Option<usize>; 2] = [None, None];
        let mut taken = [0, 0];
        for (which, bucket) in buckets.into_iter().enumerate() {
            for (index, (first, second)) in self.slots(bucket).enumerate() {
                let at = bucket + index * SLOT_WORDS;
                let word = second.load(Ordering::Relaxed);
                if word == 0 {
                    empty[which].get_or_insert(at);
                    continue;
                }
                taken[which] += 1;
                if is_of(first.load(Ordering::Relaxed), word, pair) {
                    found = Some((word, at));
                }
                if oldest.is_none_or(|(sent, _)| word >> TIME_SHIFT < sent) {
                    oldest = Some((word >> TIME_SHIFT, at));
                }
            }
        }
        if let Some((word, at)) = found {
            if word >> TIME_SHIFT <= cached.sent.micros() {
                self.write(at, pair, cached);
            }
            return;
        }
        let emptier = usize::from(taken[1] < taken[0]);
        let free = empty[emptier].or(empty[1 - emptier]);
        match (free, oldest) {
            (Some(at), _) if self.try_grow() => self.write(at, pair, cached),
            (_, Some((_, at))) => self.write(at, pair, cached),
            // The table is full, but these buckets are empty: do not store the pair.
            (_, None) => {}
        }
    }

    /// Removes a pair.
    pub fn remove(&self, pair: PairKey) {
        let buckets = self.buckets_of(pair);
        let _guards = self.lock(buckets);
        for bucket in buckets {
            for (first, second) in self.slots(bucket) {
                let word = second.load(Ordering::Relaxed);
                if word != 0 && is_of(first.load(Ordering::Relaxed), word, pair) {
                    second.store(0, Ordering::Release);
                    first.store(0, Ordering::Release);
                    self.len.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Counts one more pair. Returns false if the table is full.
    fn try_grow(&self) -> bool {
        self.len.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |len| (len < self.max).then_some(len + 1)).is_ok()
    }

    fn write(&self, at: usize, pair: PairKey, cached: CachedPair) {
        let word = cached.to_word();
        self.words[at].store(pair.tag() ^ word, Ordering::Release);
        self.words[at + 1].store(word, Ordering::Release);
    }

    /// Returns the first words of a pair's two buckets. The highest bits of the hash select the block, the lowest the two
    /// buckets in it.
    fn buckets_of(&self, pair: PairKey) -> [usize; 2] {
        let bits = pair.index_bits();
        let block = ((u128::from(bits) * u128::from(self.blocks)) >> 64) as usize;
        let begin = self.begin + block * BLOCK_WORDS;
        let mask = self.block_buckets - 1;
        let first = bits as usize & mask;
        // Another bucket, because at least one bit differs.
        let second = first ^ (1 | ((bits as usize / BLOCK_BUCKETS) & mask));
        [begin + first * BUCKET_WORDS, begin + second * BUCKET_WORDS]
    }

    fn slots(&self, bucket: usize) -> impl Iterator<Item = (&AtomicU64, &AtomicU64)> {
        self.words[bucket..bucket + BUCKET_WORDS].chunks_exact(SLOT_WORDS).map(|slot| (&slot[0], &slot[1]))
    }

    /// Locks both buckets, in the same order for all writers.
    fn lock(&self, buckets: [usize; 2]) -> (MutexGuard<'_, ()>, Option<MutexGuard<'_, ()>>) {
        let [a, b] = buckets.map(|bucket| bucket / BUCKET_WORDS % WRITER_LOCKS);
        let lock = |which: usize| self.writers[which].lock();
        let lower = lock(a.min(b));
        let upper = (a != b).then(|| lock(a.max(b)));
        (lower, upper)
    }
}

/// Returns whether these words of a slot belong to the pair.
fn is_of(first: u64, second: u64, pair: PairKey) -> bool {
    first ^ (second & !ASKED) == pair.tag()
}
