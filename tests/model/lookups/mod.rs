//! The promise of the fence, in every interleaving.
//!
//! A [`World`](world::World) has a few readers, writes, and events, and a Chat. Each of its steps is something that the
//! gateway does in one piece, so that between any two steps anything else may happen; [`explore`] tries them all.
//! The steps run the gateway's own code: [`CheckSession`](crate::domain::pairs::check::CheckSession),
//! [`LookupScheduler`], [`Waiters`](super::Waiters), [`Fence`](crate::domain::pairs::fence::Fence),
//! [`PairCache`](crate::domain::pairs::cache::PairCache), and [`Items`](crate::domain::pairs::item::Items).
//! The model adds only the order of a write's steps: mark, send, mark, answer.
//!
//! Every response is checked against Chat's state of the pair at the moment when an answered write ended, or an event
//! was accepted: the response must include all of that state. Each change sets a bit of its own in the relation, so the
//! response itself shows what it is from, however often it was flipped. Where nothing more can happen, every reader
//! must have its response, and nothing may be left behind.
//!
//! The explorer is ours and not stateright: that brings 45 packages, an HTTP server among them, and needs states that
//! can be hashed. Our states hold numbers and moments of which only the order has a meaning. Two states with the same
//! order count as one, which makes the space finite.

mod explore;
mod same;
mod setup;
mod world;

use self::explore::{Report, explore};
use self::setup::{Change, Fault, Reader, Scope, Setup};
use crate::domain::pairs::directives::CacheDirectives;

const ANN_BOB: usize = 0;
const ANN_CYD: usize = 1;

fn write(scope: Scope) -> Change {
    Change { event: false, scope }
}

fn event(scope: Scope) -> Change {
    Change { event: true, scope }
}

fn reader(from: &'static str, to: &[&'static str]) -> Reader {
    Reader { from, to: to.to_vec(), directives: CacheDirectives::default() }
}

fn no_cache(reader: Reader) -> Reader {
    Reader { directives: CacheDirectives { no_cache: true, ..CacheDirectives::default() }, ..reader }
}

fn no_store(reader: Reader) -> Reader {
    Reader { directives: CacheDirectives { no_store: true, ..CacheDirectives::default() }, ..reader }
}

fn setup(changes: &[Change], readers: &[Reader]) -> Setup {
    Setup {
        changes: changes.to_vec(),
        readers: readers.to_vec(),
        failing: false,
        leaving: false,
        fine_changes: false,
        fine_readers: false,
        flip: true,
        fault: None,
    }
}

/// Explores everything. The promise must hold, over enough responses to mean something.
fn holds(setup: Setup) {
    let Report { states, steps, answers, violation } = explore(&setup);
    // Shown by `cargo test model -- --nocapture`.
    eprintln!("{states} states, {steps} steps, {answers} answers");
    if let Some((what, trace)) = violation {
        panic!("{what}, after\n  {}", trace.join("\n  "));
    }
    assert!(answers > 50 && states > 500, "{answers} responses in {states} states prove nothing");
}

/// Explores until the promise is broken, as it must be.
fn is_caught(setup: Setup) {
    let report = explore(&setup);
    let (what, trace) = report.violation.expect("the promise must be broken in some interleaving");
    assert!(what.contains("from before"), "{what}, after\n  {}", trace.join("\n  "));
}

#[test]
fn a_write_and_three_readers_of_its_pair_from_both_sides() {
    let readers = [reader("ann", &["bob"]), reader("bob", &["ann"]), reader("ann", &["bob"])];
    holds(setup(&[write(Scope::Pair(ANN_BOB))], &readers));
}

#[test]
fn two_writes_of_one_pair() {
    let changes = [write(Scope::Pair(ANN_BOB)), write(Scope::Pair(ANN_BOB))];
    holds(setup(&changes, &[reader("ann", &["bob"]), reader("ann", &["bob"])]));
}

#[test]
fn a_write_that_pauses_between_clock_mark_and_answer() {
    let readers = [reader("ann", &["bob"]), reader("ann", &["bob"])];
    holds(Setup { fine_changes: true, ..setup(&[write(Scope::Pair(ANN_BOB))], &readers) });
}

#[test]
fn readers_that_pause_between_scan_decision_and_lookup() {
    let readers = [reader("ann", &["bob"]), reader("ann", &["bob"])];
    holds(Setup { fine_readers: true, ..setup(&[write(Scope::Pair(ANN_BOB))], &readers) });
    holds(Setup { fine_readers: true, ..setup(&[write(Scope::All)], &[reader("ann", &["bob", "cyd"])]) });
}

#[test]
fn a_write_and_readers_that_all_pause() {
    let readers = [reader("ann", &["bob"]), reader("ann", &["bob"])];
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &readers);
    holds(Setup { fine_changes: true, fine_readers: true, ..setup });
}

#[test]
fn an_event_and_a_write() {
    let changes = [event(Scope::Pair(ANN_BOB)), write(Scope::Pair(ANN_BOB))];
    holds(setup(&changes, &[reader("ann", &["bob"]), reader("bob", &["ann"])]));
}

#[test]
fn a_reader_of_two_pairs_that_arrive_at_different_times() {
    let readers = [reader("ann", &["bob", "cyd"]), reader("bob", &["ann"])];
    holds(setup(&[write(Scope::Pair(ANN_BOB))], &readers));
}

#[test]
fn readers_whose_pairs_share_a_call_flipped_or_not() {
    let readers = [reader("bob", &["ann"]), reader("cyd", &["ann"])];
    let setup = setup(&[write(Scope::User("ann"))], &readers);
    holds(Setup { failing: true, ..setup.clone() });
    holds(Setup { failing: true, flip: false, ..setup });
}

#[test]
fn a_deleted_user_and_an_unreadable_write() {
    let readers = [reader("ann", &["bob", "cyd"])];
    holds(setup(&[write(Scope::User("bob")), write(Scope::All)], &readers));
    holds(setup(&[event(Scope::User("ann")), write(Scope::Pair(ANN_CYD))], &readers));
}

#[test]
fn readers_with_no_cache_and_no_store() {
    let readers = [no_cache(reader("ann", &["bob"])), reader("bob", &["ann"])];
    holds(setup(&[write(Scope::Pair(ANN_BOB))], &readers));
    let readers = [no_store(reader("ann", &["bob"])), reader("ann", &["bob"])];
    holds(setup(&[write(Scope::Pair(ANN_BOB))], &readers));
}

#[test]
fn failing_calls_and_readers_that_disconnect() {
    let readers = [reader("ann", &["bob"]), reader("ann", &["bob"])];
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &readers);
    holds(Setup { failing: true, ..setup.clone() });
    holds(Setup { leaving: true, ..setup });
}

#[test]
fn a_write_without_its_second_mark_is_caught() {
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &[reader("ann", &["bob"]), reader("ann", &["bob"])]);
    is_caught(Setup { fault: Some(Fault::NoSecondMark), ..setup });
}

#[test]
fn a_write_answered_before_its_second_mark_is_caught() {
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &[reader("ann", &["bob"]), reader("ann", &["bob"])]);
    is_caught(Setup { fault: Some(Fault::AnswerBeforeMark), ..setup });
}

#[test]
fn a_reader_that_judges_early_answers_once_is_caught() {
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &[reader("ann", &["bob", "cyd"])]);
    is_caught(Setup { fault: Some(Fault::JudgedOnce), ..setup });
}

#[test]
fn an_event_that_marks_nothing_is_caught() {
    let setup = setup(&[event(Scope::Pair(ANN_BOB))], &[reader("ann", &["bob"]), reader("ann", &["bob"])]);
    is_caught(Setup { fault: Some(Fault::NoSecondMark), ..setup });
}

#[test]
fn joining_a_lookup_from_before_a_write_is_caught() {
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &[reader("ann", &["bob"]), reader("bob", &["ann"])]);
    is_caught(Setup { fault: Some(Fault::Unfenced), ..setup });
}
