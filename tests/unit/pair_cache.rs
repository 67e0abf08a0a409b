//! The table of cached pairs.

use std::collections::HashMap;

use proptest::prelude::*;

use super::cache::{CachedPair, PairCache};
use super::pair::{PairKey, Relation};
use crate::domain::tick::Tick;

fn key(number: u64) -> PairKey {
    // Any bijection of 64 bits with good spread.
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    PairKey::for_test(number ^ 0x5555, spread ^ (spread >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9))
}

fn cached(number: i64, sent: u64) -> CachedPair {
    CachedPair { stored: Relation::new(number).expect("0 to 3"), sent: Tick::from_micros(sent) }
}

#[test]
fn later_result_replaces_an_earlier_one_only() {
    let cache = PairCache::new(100);
    cache.insert(key(1), cached(2, 10));
    cache.insert(key(1), cached(1, 9));
    assert_eq!(cache.get(key(1)), Some(cached(2, 10)));
    cache.insert(key(1), cached(3, 11));
    assert_eq!(cache.get(key(1)), Some(cached(3, 11)));
    assert_eq!(cache.len(), 1);
    cache.remove(key(1));
    assert_eq!(cache.get(key(1)), None);
    assert_eq!(cache.len(), 0);
}

#[test]
fn each_result_is_refreshed_once() {
    let cache = PairCache::new(100);
    let begin = |sent| cache.begin_refresh(key(1), Tick::from_micros(sent));
    assert!(!begin(10), "not cached");
    cache.insert(key(1), cached(2, 10));
    cache.insert(key(2), cached(3, 10));
    assert!(!begin(9), "another result");
    assert_eq!([begin(10), begin(10)], [true, false]);
    assert_eq!((cache.get(key(1)), cache.get(key(2))), (Some(cached(2, 10)), Some(cached(3, 10))));
    cache.insert(key(1), cached(1, 11));
    assert_eq!([begin(10), begin(11), begin(11)], [false, true, false]);
    cache.end_refresh(key(2));
    assert!(!begin(11), "another pair");
    cache.end_refresh(key(1));
    assert_eq!((begin(11), begin(11), cache.get(key(1))), (true, false, Some(cached(1, 11))), "it has no result");
    cache.remove(key(1));
    assert_eq!((cache.get(key(1)), cache.len(), begin(11)), (None, 1, false));
}

#[test]
fn full_table_stays_full_and_keeps_the_newest_pairs() {
    let max = 10_000;
    let cache = PairCache::new(max);
    for number in 0..max as u64 * 10 {
        cache.insert(key(number), cached(1, number + 1));
        assert!(cache.len() <= max);
    }
    assert!(cache.len() * 100 >= max * 95, "{} of {max}", cache.len());
    let newest = (max as u64 * 10 - max as u64 / 2..max as u64 * 10).filter(|n| cache.get(key(*n)).is_some()).count();
    assert!(newest * 100 >= max / 2 * 95, "{newest} of the newest {}", max / 2);
}

#[test]
fn nearly_all_pairs_up_to_the_maximum_are_found() {
    let max = 50_000;
    let cache = PairCache::new(max);
    (0..max as u64).for_each(|number| cache.insert(key(number), cached(2, 5)));
    let found = (0..max as u64).filter(|number| cache.get(key(*number)) == Some(cached(2, 5))).count();
    assert!(found * 1000 >= max * 990, "{found} of {max}");
}

#[test]
fn concurrent_readers_see_whole_entries_only() {
    let cache = PairCache::new(4);
    std::thread::scope(|scope| {
        for writer in 0..2u64 {
            let cache = &cache;
            scope.spawn(move || {
                for round in 1..20_000 {
                    let number = (round + writer) % 8;
                    // The relation is a function of the pair, so a mix of two entries is detected.
                    cache.insert(key(number), cached((number % 4) as i64, round));
                    cache.begin_refresh(key(number), Tick::from_micros(round));
                }
            });
        }
        for _ in 0..40_000 {
            for number in 0..8 {
                if let Some(seen) = cache.get(key(number)) {
                    assert_eq!(u64::from(seen.stored.number()), number % 4);
                }
            }
        }
    });
    assert!(cache.len() <= 4);
}

proptest! {
    #[test]
    fn lookups_return_only_inserted_pairs(steps in proptest::collection::vec((0..40u64, 0..4i64, any::<bool>()), 1..400)) {
        let cache = PairCache::new(16);
        let mut model: HashMap<u64, CachedPair> = HashMap::new();
        for (sent, (number, relation, remove)) in (1..).zip(steps) {
            if remove {
                cache.remove(key(number));
                model.remove(&number);
            } else {
                cache.insert(key(number), cached(relation, sent));
                model.insert(number, cached(relation, sent));
            }
            for number in 0..40 {
                if let Some(seen) = cache.get(key(number)) {
                    prop_assert_eq!(Some(&seen), model.get(&number));
                }
            }
            for (first, last) in [(0, 40), (number, number + 1), (number, number + 3), (0, 0)] {
                let expected: Option<Vec<CachedPair>> = (first..last).map(|number| cache.get(key(number))).collect();
                prop_assert_eq!(cache.get_all((first..last).map(key).collect::<Vec<_>>().into_iter()), expected);
            }
            let cached: Vec<u64> = (0..40).filter(|number| cache.get(key(*number)).is_some()).collect();
            let all = cached.iter().map(|number| cache.get(key(*number)).expect("it is cached")).collect::<Vec<_>>();
            prop_assert_eq!(cache.get_all(cached.iter().map(|number| key(*number))), Some(all));
            prop_assert!(cache.len() <= 16);
        }
    }
}
