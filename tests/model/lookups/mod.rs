//! An exhaustive model of lookups: checks read-your-writes in every interleaving.
//!
//! A [`World`](world::World) has a few readers, writes, and events, and a simulated Chat. Each of its steps is one thing
//! that the gateway does under a lock or without waiting. Between two steps, any other step may happen; [`explore`]
//! tries all orders.
//! The steps run the gateway's own code: [`CheckSession`](crate::domain::pairs::check::CheckSession),
//! [`LookupScheduler`], [`Waiters`](super::Waiters), [`Fence`](crate::domain::pairs::fence::Fence),
//! [`PairCache`](crate::domain::pairs::cache::PairCache), and [`Items`](crate::domain::pairs::item::Items).
//! The model adds only the steps of a write: mark, send, mark, respond.
//!
//! Every response is checked against the state of its pairs in Chat at the moment when an acknowledged write ended, or
//! an event was accepted: the response must include all of that state. Each change sets a bit of its own in the relation,
//! so the response itself shows which changes it includes, even if it was flipped. In every final state, each reader must
//! have its response, and nothing may be left behind.
//!
//! The explorer replaces the crate stateright, which brings 45 packages, an HTTP server among them, and needs states that
//! can be hashed. These states hold numbers and moments of which only the order matters. Two states with the same order
//! count as one, which makes the space finite.

mod explore;
mod same;
mod setup;
mod steps;
mod world;

use self::explore::{Report, explore};
use self::setup::{Change, Fault, Reader, Scope, Setup};
use crate::domain::caller::Class;
use crate::domain::pairs::directives::CacheDirectives;
use crate::domain::pairs::pair::Sides;

const ANN_BOB: usize = 0;
const ANN_CYD: usize = 1;

fn write(scope: Scope) -> Change {
    Change { event: false, scope }
}

fn event(scope: Scope) -> Change {
    Change { event: true, scope }
}

fn reader(from: &'static str, to: &[&'static str]) -> Reader {
    let (sides, directives) = (Sides::Both, CacheDirectives::default());
    Reader { from, to: to.to_vec(), sides, directives, class: Class::Interactive }
}

fn one_sided(reader: Reader) -> Reader {
    Reader { sides: Sides::First, ..reader }
}

fn batch(reader: Reader) -> Reader {
    Reader { class: Class::Batch, ..reader }
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
        revalidate: false,
        fault: None,
    }
}

/// Explores everything. No interleaving may break the promise, over enough responses to mean something.
fn holds(setup: Setup) {
    let Report { states, steps, responses, violation } = explore(&setup);
    // Shown by `cargo test model -- --nocapture`.
    eprintln!("{states} states, {steps} steps, {responses} responses");
    if let Some((violation, trace)) = violation {
        panic!("{violation}, after\n  {}", trace.join("\n  "));
    }
    assert!(responses > 50 && states > 500, "{responses} responses in {states} states prove nothing");
}

/// Explores until an interleaving breaks the promise. One of them must.
fn is_caught(setup: Setup) {
    let report = explore(&setup);
    let (violation, trace) = report.violation.expect("some interleaving must break the promise");
    assert!(violation.contains("from before"), "{violation}, after\n  {}", trace.join("\n  "));
}

#[test]
fn holds_for_a_write_and_three_readers_from_both_sides() {
    let readers = [reader("ann", &["bob"]), reader("bob", &["ann"]), reader("ann", &["bob"])];
    holds(setup(&[write(Scope::Pair(ANN_BOB))], &readers));
}

#[test]
fn holds_for_two_writes_of_one_pair() {
    let changes = [write(Scope::Pair(ANN_BOB)), write(Scope::Pair(ANN_BOB))];
    holds(setup(&changes, &[reader("ann", &["bob"]), reader("ann", &["bob"])]));
}

#[test]
fn holds_for_a_write_interrupted_at_every_step() {
    let readers = [reader("ann", &["bob"]), reader("ann", &["bob"])];
    holds(Setup { fine_changes: true, ..setup(&[write(Scope::Pair(ANN_BOB))], &readers) });
}

#[test]
fn holds_for_readers_interrupted_at_every_step() {
    let readers = [reader("ann", &["bob"]), reader("ann", &["bob"])];
    holds(Setup { fine_readers: true, ..setup(&[write(Scope::Pair(ANN_BOB))], &readers) });
    holds(Setup { fine_readers: true, ..setup(&[write(Scope::All)], &[reader("ann", &["bob", "cyd"])]) });
}

#[test]
fn holds_for_a_write_and_readers_all_interrupted() {
    let readers = [reader("ann", &["bob"]), reader("ann", &["bob"])];
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &readers);
    holds(Setup { fine_changes: true, fine_readers: true, ..setup });
}

#[test]
fn holds_for_an_event_and_a_write() {
    let changes = [event(Scope::Pair(ANN_BOB)), write(Scope::Pair(ANN_BOB))];
    holds(setup(&changes, &[reader("ann", &["bob"]), reader("bob", &["ann"])]));
}

#[test]
fn holds_for_two_pairs_with_results_at_different_times() {
    let readers = [reader("ann", &["bob", "cyd"]), reader("bob", &["ann"])];
    holds(setup(&[write(Scope::Pair(ANN_BOB))], &readers));
}

#[test]
fn holds_for_pairs_that_share_a_call() {
    let readers = [reader("bob", &["ann"]), reader("cyd", &["ann"])];
    let setup = setup(&[write(Scope::User("ann"))], &readers);
    holds(Setup { failing: true, ..setup.clone() });
    holds(Setup { failing: true, flip: false, ..setup });
}

#[test]
fn holds_for_a_deleted_user_and_an_unreadable_write() {
    let readers = [reader("ann", &["bob", "cyd"])];
    holds(setup(&[write(Scope::User("bob")), write(Scope::All)], &readers));
    holds(setup(&[event(Scope::User("ann")), write(Scope::Pair(ANN_CYD))], &readers));
}

#[test]
fn holds_for_readers_with_no_cache_or_no_store() {
    let readers = [no_cache(reader("ann", &["bob"])), reader("bob", &["ann"])];
    holds(setup(&[write(Scope::Pair(ANN_BOB))], &readers));
    let readers = [no_store(reader("ann", &["bob"])), reader("ann", &["bob"])];
    holds(setup(&[write(Scope::Pair(ANN_BOB))], &readers));
}

#[test]
fn holds_for_failing_calls_and_disconnecting_readers() {
    let readers = [reader("ann", &["bob"]), reader("ann", &["bob"])];
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &readers);
    holds(Setup { failing: true, ..setup.clone() });
    holds(Setup { leaving: true, ..setup });
}

#[test]
fn holds_for_readers_of_two_classes() {
    let readers = [batch(reader("ann", &["bob"])), reader("bob", &["ann"])];
    let one_pair = setup(&[write(Scope::Pair(ANN_BOB))], &readers);
    holds(Setup { leaving: true, ..one_pair.clone() });
    holds(Setup { failing: true, ..one_pair });
    // Without flipping, pairs of one user do not share a call.
    let readers = [batch(reader("bob", &["ann"])), batch(reader("cyd", &["ann"])), reader("cyd", &["ann"])];
    holds(Setup { leaving: true, flip: false, ..setup(&[event(Scope::Pair(ANN_CYD))], &readers) });
}

#[test]
fn holds_for_readers_of_one_side_and_of_both() {
    let readers = [one_sided(reader("ann", &["bob"])), reader("bob", &["ann"])];
    holds(Setup { failing: true, ..setup(&[write(Scope::Pair(ANN_BOB))], &readers) });
    let readers = [one_sided(reader("ann", &["bob"])), one_sided(reader("ann", &["bob"]))];
    holds(Setup { failing: true, ..setup(&[event(Scope::Pair(ANN_BOB))], &readers) });
}

#[test]
fn caching_a_call_for_one_side_is_caught() {
    let readers = [one_sided(reader("ann", &["bob"])), reader("ann", &["bob"])];
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &readers);
    is_caught(Setup { failing: true, fault: Some(Fault::KeptOneSide), ..setup });
}

/// Three readers of one pair, so that one finds a pair past its ttl, and one meets the refresh.
fn revalidating(change: Change) -> Setup {
    let readers = [reader("ann", &["bob"]), reader("bob", &["ann"]), reader("ann", &["bob"])];
    Setup { revalidate: true, ..setup(&[change], &readers) }
}

#[test]
fn holds_for_refreshes_of_pairs_past_their_ttl() {
    holds(revalidating(event(Scope::Pair(ANN_BOB))));
    let readers = [reader("ann", &["bob"]), reader("ann", &["bob"])];
    let two = Setup { revalidate: true, ..setup(&[write(Scope::Pair(ANN_BOB))], &readers) };
    holds(Setup { leaving: true, ..two.clone() });
    holds(Setup { fine_readers: true, ..two });
}

#[test]
fn joining_a_refresh_sent_before_an_event_is_caught() {
    is_caught(Setup { fault: Some(Fault::Unfenced), ..revalidating(event(Scope::Pair(ANN_BOB))) });
    is_caught(Setup { fault: Some(Fault::NoSecondMark), ..revalidating(event(Scope::Pair(ANN_BOB))) });
}

#[test]
fn missing_second_mark_of_a_write_is_caught() {
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &[reader("ann", &["bob"]), reader("ann", &["bob"])]);
    is_caught(Setup { fault: Some(Fault::NoSecondMark), ..setup });
}

#[test]
fn write_acknowledged_before_its_second_mark_is_caught() {
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &[reader("ann", &["bob"]), reader("ann", &["bob"])]);
    is_caught(Setup { fault: Some(Fault::AcknowledgeBeforeMark), ..setup });
}

#[test]
fn reader_that_judges_early_answers_once_is_caught() {
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &[reader("ann", &["bob", "cyd"])]);
    is_caught(Setup { fault: Some(Fault::JudgedOnce), ..setup });
}

#[test]
fn event_without_a_mark_is_caught() {
    let setup = setup(&[event(Scope::Pair(ANN_BOB))], &[reader("ann", &["bob"]), reader("ann", &["bob"])]);
    is_caught(Setup { fault: Some(Fault::NoSecondMark), ..setup });
}

#[test]
fn joining_a_lookup_sent_before_a_write_is_caught() {
    let setup = setup(&[write(Scope::Pair(ANN_BOB))], &[reader("ann", &["bob"]), reader("bob", &["ann"])]);
    is_caught(Setup { fault: Some(Fault::Unfenced), ..setup });
}
