//! The cache of pairs and the fence under loom, which runs them in every order of their steps that the memory model allows.
//!
//! The files of the program are compiled here with the atomics of loom, see `src/domain/pairs/sync.rs`. Each of these
//! changes makes a test fail:
//!
//! - A slot stores its tag as it is, without XOR, or a reader reads the word again after the check.
//! - An insertion takes no lock, or replaces a later result. A removal leaves the slot.
//! - The fence counts a mark before it makes the mark, or reads the version with `Relaxed`.
//!
//! With `Relaxed` in the slots no test fails, because XOR rejects any mix of two entries, and the fence old ones.

#[allow(dead_code, unreachable_pub, reason = "the program uses all of it")]
mod domain;

use std::sync::atomic::AtomicUsize as Counter;
use std::sync::atomic::Ordering::Relaxed;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread::{self, JoinHandle};

use domain::pairs::cache::{CachedPair, PairCache};
use domain::pairs::fence::Fence;
use domain::pairs::pair::{Pair, Relation, UserHasher};
use domain::tick::Tick;

/// Runs a test in every order of its steps, and prints how many there are: at least `least`, so that a test that runs in a
/// single order is noticed.
fn every_order(name: &str, least: usize, run: impl Fn() + Send + Sync + 'static) {
    let count = std::sync::Arc::new(Counter::new(0));
    let counted = std::sync::Arc::clone(&count);
    loom::model(move || {
        counted.fetch_add(1, Relaxed);
        run();
    });
    let count = count.load(Relaxed);
    eprintln!("{name}: {count} orders");
    assert!(count >= least, "{name}: {count} orders");
}

/// Joins threads. Every step whose order matters is in one of them: loom does not move the steps of the main thread.
fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

/// Starts a thread with clones of what it shares.
macro_rules! spawn {
    ($($shared:ident),+ => $body:expr) => {{
        $(let $shared = Arc::clone(&$shared);)+
        thread::spawn(move || $body)
    }};
}

fn pair(from: &str, to: &str) -> Pair {
    let hasher = UserHasher::new(&[1; 16]);
    Pair { from: hasher.user(from), to: hasher.user(to) }
}

fn at(micros: u64) -> Tick {
    Tick::from_micros(micros)
}

fn cached(number: i64, sent: u64) -> CachedPair {
    CachedPair { stored: Relation::new(number).expect("0 to 3"), sent: at(sent) }
}

/// A table of one slot in use: every insertion of another pair takes the slot of the one before.
fn small() -> Arc<PairCache> {
    Arc::new(PairCache::new(1))
}

#[test]
fn reader_sees_whole_entries_of_its_own_pair_only() {
    every_order("torn reads", 100, || {
        let (ann, bob) = (pair("ann", "x").key(), pair("bob", "x").key());
        let cache = small();
        cache.insert(ann, cached(1, 10));
        let writer = spawn!(cache => {
            cache.insert(bob, cached(2, 20));
            cache.insert(ann, cached(3, 30));
        });
        let reader = spawn!(cache => {
            let (bob, ann) = (cache.get(bob), cache.get(ann));
            assert!(bob.is_none_or(|seen| seen == cached(2, 20)), "{bob:?}");
            assert!(ann.is_none_or(|seen| seen == cached(1, 10) || seen == cached(3, 30)), "{ann:?}");
        });
        join([writer, reader]);
    });
}

#[test]
fn concurrent_writers_leave_the_later_result() {
    every_order("writers", 10, || {
        let key = pair("ann", "bob").key();
        let cache = small();
        let writer = |number, sent| spawn!(cache => cache.insert(key, cached(number, sent)));
        join([writer(1, 10), writer(2, 20)]);
        assert_eq!((cache.get(key), cache.len()), (Some(cached(2, 20)), 1));
    });
}

#[test]
fn reader_misses_what_was_removed_before() {
    every_order("removal", 10, || {
        let key = pair("ann", "bob").key();
        let (cache, is_removed) = (small(), Arc::new(AtomicBool::new(false)));
        cache.insert(key, cached(1, 10));
        let writer = spawn!(cache, is_removed => {
            cache.remove(key);
            is_removed.store(true, Ordering::Release);
        });
        let reader = spawn!(cache, is_removed => {
            let was_removed = is_removed.load(Ordering::Acquire);
            let seen = cache.get(key);
            assert!(seen.is_none() || (!was_removed && seen == Some(cached(1, 10))), "{seen:?}");
        });
        join([writer, reader]);
    });
}

/// The guarantee: once the response to a write was returned, no result from before it is used, even if its lookup stores it
/// after the write.
#[test]
fn no_result_from_before_an_acknowledged_write_is_used() {
    every_order("fence", 100, || {
        let ab = pair("ann", "bob");
        let (cache, fence) = (small(), Arc::new(Fence::with_slots(1, 1)));
        let is_acknowledged = Arc::new(AtomicBool::new(false));
        let writer = spawn!(fence, is_acknowledged => {
            fence.mark_pair(ab.key(), at(20));
            is_acknowledged.store(true, Ordering::Release);
        });
        let lookup = spawn!(cache => cache.insert(ab.key(), cached(1, 10)));
        let reader = spawn!(cache, fence, is_acknowledged => {
            let was_acknowledged = is_acknowledged.load(Ordering::Acquire);
            let seen = cache.get(ab.key()).filter(|seen| fence.admits(ab, seen.sent));
            assert!(seen.is_none() || !was_acknowledged, "{seen:?}");
        });
        join([writer, lookup, reader]);
        assert!(!fence.admits(ab, at(20)) && fence.admits(ab, at(21)));
    });
}

/// A request checks its results again only if the version has changed: with the same one, no write was acknowledged since.
#[test]
fn same_version_means_that_no_write_was_acknowledged() {
    every_order("version", 100, || {
        let ab = pair("ann", "bob");
        let (fence, is_acknowledged) = (Arc::new(Fence::with_slots(1, 1)), Arc::new(AtomicBool::new(false)));
        let writer = spawn!(fence, is_acknowledged => {
            fence.mark_pair(ab.key(), at(20));
            is_acknowledged.store(true, Ordering::Release);
        });
        let reader = spawn!(fence, is_acknowledged => {
            let before = fence.version();
            let is_admitted = fence.admits(ab, at(10));
            let was_acknowledged = is_acknowledged.load(Ordering::Acquire);
            assert!(!is_admitted || !was_acknowledged || fence.version() != before);
        });
        join([writer, reader]);
    });
}

#[test]
fn concurrent_marks_leave_the_later_one() {
    every_order("marks", 10, || {
        let ab = pair("ann", "bob");
        let fence = Arc::new(Fence::with_slots(1, 1));
        let mark = |micros| spawn!(fence => fence.mark_user(ab.from, at(micros)));
        join([mark(10), mark(20)]);
        assert!(fence.last_mark(ab) == at(20) && !fence.admits(ab, at(15)) && fence.version() == 2);
    });
}
