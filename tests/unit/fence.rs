//! The fence.

use super::fence::Fence;
use super::pair::{Pair, UserHasher};
use crate::domain::tick::Tick;

fn pair(from: &str, to: &str) -> Pair {
    let hasher = UserHasher::new(&[1; 16]);
    Pair { from: hasher.user(from), to: hasher.user(to) }
}

fn at(micros: u64) -> Tick {
    Tick::from_micros(micros)
}

#[test]
fn only_results_sent_after_the_last_mark_are_admitted() {
    let fence = Fence::default();
    let ab = pair("ann", "bob");
    assert!(fence.admits(ab, at(1)));
    fence.mark_pair(ab.key(), at(10));
    assert!(!fence.admits(ab, at(9)));
    assert!(!fence.admits(ab, at(10)), "the same time may be before the write");
    assert!(fence.admits(ab, at(11)));
    assert!(!fence.admits(ab.flipped(), at(9)), "the flipped pair is the same pair");
    assert!(fence.admits(pair("ann", "cyd"), at(9)), "other pairs of the user are not marked");
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
fn every_mark_changes_the_version() {
    let fence = Fence::default();
    let ab = pair("ann", "bob");
    let mut versions = vec![fence.version()];
    fence.mark_pair(ab.key(), at(10));
    versions.push(fence.version());
    fence.mark_user(ab.from, at(10));
    versions.push(fence.version());
    fence.mark_all(at(10));
    versions.push(fence.version());
    versions.dedup();
    assert_eq!(versions.len(), 4, "{versions:?}");
}

#[test]
fn marks_of_a_user_and_an_app_cover_their_pairs() {
    let fence = Fence::default();
    fence.mark_user(pair("ann", "bob").from, at(10));
    assert!(!fence.admits(pair("ann", "bob"), at(10)));
    assert!(!fence.admits(pair("cyd", "ann"), at(10)));
    assert!(fence.admits(pair("cyd", "bob"), at(10)));
    fence.mark_all(at(12));
    assert!(!fence.admits(pair("cyd", "bob"), at(12)));
    assert!(fence.admits(pair("cyd", "bob"), at(13)));
}
