//! The promise of the fence, in every interleaving there is.
//!
//! A [`World`](world::World) is a few readers, writes, events and a Chat. Each of its steps is something that the
//! gateway does in one piece, so between any two of them anything else may happen; [`explore`]
//! tries them all. The steps run the real [`LookupScheduler`], [`Fence`](super::super::fence::Fence),
//! [`PairCache`](super::super::cache::PairCache) and [`Items`](super::super::item::Items); only
//! the loop of `src/gateway/follow.rs` and the marks of `src/gateway/relay.rs`, which are not pure,
//! are told again, step for step.
//!
//! What is checked, at every answer: let Chat's state of the pair be taken at the moment when a write
//! that has been answered was over (or an event was accepted). What the reader is told has all of
//! that state. Each change sets a bit of its own in the relation, so the answer itself says what it
//! is from, through every turning round. And where nothing more can happen, everybody has been
//! answered and nothing is left behind.
//!
//! An explorer of its own rather than stateright: that brings 45 packages, an HTTP server among them,
//! and wants states that can be hashed. Ours hold numbers and moments of which only the order
//! means anything; two states that agree in it are the same here, which makes the space finite.

mod explore;
mod same;
mod setup;
mod world;

use self::explore::{Report, explore};
use self::setup::{Change, Fault, Reader, Scope, Setup};

const ANN_BOB: usize = 0;
const ANN_CYD: usize = 1;

fn write(scope: Scope) -> Change {
    Change { event: false, scope }
}

fn event(scope: Scope) -> Change {
    Change { event: true, scope }
}

fn reader(from: &'static str, to: &[&'static str]) -> Reader {
    Reader { from, to: to.to_vec(), join: true, keep: true, cached: true }
}

/// `Cache-Control: no-cache`
fn no_cache(reader: Reader) -> Reader {
    Reader { join: false, cached: false, ..reader }
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

/// Explores all of it and wants the promise kept, and enough answers that keeping it means something.
fn holds(setup: Setup) {
    let Report { states, steps, answers, violation } = explore(&setup);
    // Shown by `cargo test model -- --nocapture`.
    eprintln!("{states} states, {steps} steps, {answers} answers");
    if let Some((what, trace)) = violation {
        panic!("{what}, after\n  {}", trace.join("\n  "));
    }
    assert!(answers > 50 && states > 500, "{answers} answers in {states} states prove nothing");
}

/// Explores until the promise is broken, as it must be.
fn is_caught(setup: Setup) {
    let report = explore(&setup);
    let (what, trace) = report.violation.expect("a gateway with that fault keeps the promise in every interleaving");
    assert!(what.contains("from before"), "{what}, after\n  {}", trace.join("\n  "));
}

#[test]
fn a_write_with_three_readers_of_its_pair_from_both_sides() {
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
fn readers_who_pause_between_look_judgement_and_question() {
    let readers = [reader("ann", &["bob"]), reader("ann", &["bob"])];
    holds(Setup { fine_readers: true, ..setup(&[write(Scope::Pair(ANN_BOB))], &readers) });
    holds(Setup { fine_readers: true, ..setup(&[write(Scope::All)], &[reader("ann", &["bob", "cyd"])]) });
}

#[test]
fn a_write_and_readers_who_all_pause() {
    let readers = [reader("ann", &["bob"]), reader("ann", &["bob"])];
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &readers);
    holds(Setup { fine_changes: true, fine_readers: true, ..setup });
}

#[test]
fn an_event_beside_a_write() {
    let changes = [event(Scope::Pair(ANN_BOB)), write(Scope::Pair(ANN_BOB))];
    holds(setup(&changes, &[reader("ann", &["bob"]), reader("bob", &["ann"])]));
}

#[test]
fn a_reader_of_two_pairs_one_of_which_may_be_there_long_before_the_other() {
    let readers = [reader("ann", &["bob", "cyd"]), reader("bob", &["ann"])];
    holds(setup(&[write(Scope::Pair(ANN_BOB))], &readers));
}

#[test]
fn readers_whose_pairs_travel_together_turned_round_or_not() {
    let readers = [reader("bob", &["ann"]), reader("cyd", &["ann"])];
    let setup = setup(&[write(Scope::User("ann"))], &readers);
    holds(Setup { failing: true, ..setup.clone() });
    holds(Setup { failing: true, flip: false, ..setup });
}

#[test]
fn a_deleted_user_and_a_write_nobody_can_read() {
    let readers = [reader("ann", &["bob", "cyd"])];
    holds(setup(&[write(Scope::User("bob")), write(Scope::All)], &readers));
    holds(setup(&[event(Scope::User("ann")), write(Scope::Pair(ANN_CYD))], &readers));
}

#[test]
fn readers_who_will_not_join_or_whose_answers_are_not_kept() {
    let readers = [no_cache(reader("ann", &["bob"])), reader("bob", &["ann"])];
    holds(setup(&[write(Scope::Pair(ANN_BOB))], &readers));
    let readers = [Reader { keep: false, ..no_cache(reader("ann", &["bob"])) }, reader("ann", &["bob"])];
    holds(setup(&[write(Scope::Pair(ANN_BOB))], &readers));
}

#[test]
fn calls_that_fail_or_are_refused_and_readers_who_leave() {
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
fn a_write_that_is_answered_before_its_second_mark_is_caught() {
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &[reader("ann", &["bob"]), reader("ann", &["bob"])]);
    is_caught(Setup { fault: Some(Fault::AnswerBeforeMark), ..setup });
}

#[test]
fn a_reader_who_does_not_judge_again_what_was_there_early_is_caught() {
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &[reader("ann", &["bob", "cyd"])]);
    is_caught(Setup { fault: Some(Fault::JudgedOnce), ..setup });
}

#[test]
fn an_event_that_marks_nothing_is_caught() {
    let setup = setup(&[event(Scope::Pair(ANN_BOB))], &[reader("ann", &["bob"]), reader("ann", &["bob"])]);
    is_caught(Setup { fault: Some(Fault::NoSecondMark), ..setup });
}

#[test]
fn a_lookup_joined_by_who_came_after_the_write_is_caught() {
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &[reader("ann", &["bob"]), reader("bob", &["ann"])]);
    is_caught(Setup { fault: Some(Fault::Unfenced), ..setup });
}
