//! Requests for one side, and lookups that are repeated as they were requested.

use std::collections::BTreeMap;

use super::tests::{ANN, BEN, at, enqueue, options, pair, relation, unmarked, wanted};
use super::*;
use crate::domain::relation::FOLLOW;

fn one_sided(queue: CallerQueue) -> JoinOptions {
    JoinOptions { sides: Sides::First, ..options(queue) }
}

/// Completes a batch with one failed item, or with one item of this number.
fn complete_with(scheduler: &mut LookupScheduler, batch: &Batch, number: Option<u8>) -> (Vec<WaiterResult>, usize) {
    let code = if number.is_some() { 0 } else { 30006 };
    let items = serde_json::json!([{"To_Account": &*batch.to[0], "ResultCode": code, "FollowType": number}]);
    let body = serde_json::json!({"ResultItem": items}).to_string();
    let items = FOLLOW.parse_items(batch.sides, body.as_bytes()).expect("items");
    let Completion { results, cacheable, .. } = scheduler.complete(batch.id, &BatchOutcome::Answered(&items), unmarked);
    (results, cacheable.len())
}

#[test]
fn request_for_one_side_shares_calls_for_both_sides() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let (first, _) = scheduler.enqueue(one_sided(ANN), &wanted("ann", &["bob"]), unmarked).expect("room");
    let batch = scheduler.next_batch(Class::Refresh, at(1)).expect("a call");
    assert_eq!(batch.sides, Sides::Both);
    let (second, joined) = scheduler.enqueue(options(BEN), &wanted("bob", &["ann"]), unmarked).expect("room");
    assert_eq!(joined, [true]);
    let (results, cacheable) = complete_with(&mut scheduler, &batch, Some(1));
    let got: BTreeMap<Ticket, &PairResult> = results.iter().map(|one| (one.ticket, &one.result)).collect();
    assert_eq!(relation(got[&first], pair("ann", "bob")), Some(1), "the codec leaves out the other side");
    assert_eq!((relation(got[&second], pair("bob", "ann")), cacheable), (Some(2), 1));
}

#[test]
fn failed_item_of_a_wider_call_is_asked_again_as_requested_and_not_kept() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let (both, _) = scheduler.enqueue(options(ANN), &wanted("ann", &["bob"]), unmarked).expect("room");
    let (first, _) = scheduler.enqueue(one_sided(BEN), &wanted("ann", &["bob"]), unmarked).expect("room");
    let (back, _) = scheduler.enqueue(one_sided(BEN), &wanted("bob", &["ann"]), unmarked).expect("room");
    let batch = scheduler.next_batch(Class::Refresh, at(1)).expect("a call");
    let (results, _) = complete_with(&mut scheduler, &batch, None);
    let [WaiterResult { ticket, result: PairResult::Verbatim(..), .. }] = results.as_slice() else {
        panic!("{results:?}")
    };
    assert_eq!(*ticket, both, "the error belongs to the question for both sides");
    // It travels with no pair whose call asks for more.
    enqueue(&mut scheduler, ANN, "ann", &["cyd"]);
    let mut asked = Vec::new();
    while let Some(batch) = scheduler.next_batch(Class::Refresh, at(2)) {
        asked.push((batch.from.to_string(), batch.to.len(), batch.sides));
        if batch.sides == Sides::First {
            let (results, cacheable) = complete_with(&mut scheduler, &batch, Some(2));
            let ticket = if &*batch.from == "ann" { first } else { back };
            assert_eq!((results.len(), results[0].ticket, cacheable), (1, ticket, 0));
        }
    }
    asked.sort_unstable_by_key(|(from, _, sides)| (from.clone(), *sides == Sides::First));
    let expected = [("ann", Sides::Both), ("ann", Sides::First), ("bob", Sides::First)];
    assert_eq!(asked, expected.map(|(from, sides)| (from.to_owned(), 1, sides)));
}

#[test]
fn rejected_wider_call_is_repeated_as_requested() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let (ticket, _) = scheduler.enqueue(one_sided(ANN), &wanted("ann", &["bob"]), unmarked).expect("room");
    let batch = scheduler.next_batch(Class::Refresh, at(1)).expect("a call");
    let Completion { results, .. } = scheduler.complete(batch.id, &BatchOutcome::RejectedArguments, unmarked);
    assert_eq!(results, []);
    let batch = scheduler.next_batch(Class::Refresh, at(2)).expect("a call as requested");
    assert_eq!((batch.sides, &*batch.from), (Sides::First, "ann"));
    let Completion { results, .. } = scheduler.complete(batch.id, &BatchOutcome::RejectedArguments, unmarked);
    assert_eq!(results, [WaiterResult { ticket, slot: 0, result: PairResult::Failed }]);
}

/// Completes a batch whose every item has failed.
fn fail_items(scheduler: &mut LookupScheduler, batch: &Batch) -> Completion {
    let items: Vec<_> =
        batch.to.iter().map(|to| serde_json::json!({"To_Account": &**to, "ResultCode": 30006})).collect();
    let body = serde_json::json!({"ResultItem": items}).to_string();
    let items = FOLLOW.parse_items(batch.sides, body.as_bytes()).expect("items");
    scheduler.complete(batch.id, &BatchOutcome::Answered(&items), unmarked)
}

#[test]
fn requests_share_the_repeated_lookup_of_a_failed_item() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let ask = |scheduler: &mut LookupScheduler, options| {
        scheduler.enqueue(options, &wanted("ann", &["bob", "cyd"]), unmarked).expect("room").0
    };
    let tickets = [ask(&mut scheduler, one_sided(ANN)), ask(&mut scheduler, one_sided(BEN))];
    let first = scheduler.next_batch(Class::Refresh, at(1)).expect("a call");
    // It does not join the call in flight.
    let third = ask(&mut scheduler, JoinOptions { join: false, ..one_sided(BEN) });
    let second = scheduler.next_batch(Class::Refresh, at(2)).expect("a call");
    let Completion { results, repeated, .. } = fail_items(&mut scheduler, &first);
    assert_eq!((results.len(), repeated), (0, vec![tickets[0]; 2]), "the first request pays for each pair");
    let Completion { results, repeated, .. } = fail_items(&mut scheduler, &second);
    assert_eq!((results.len(), repeated.len()), (0, 0), "it joins the lookup that is queued");
    let batch = scheduler.next_batch(Class::Refresh, at(3)).expect("a call as requested");
    assert_eq!((batch.sides, batch.to.len()), (Sides::First, 2));
    let results = fail_items(&mut scheduler, &batch).results;
    let mut got: Vec<Ticket> = results.iter().map(|one| one.ticket).collect();
    got.sort_unstable();
    assert_eq!(got, [tickets[0], tickets[0], tickets[1], tickets[1], third, third]);
    assert!(scheduler.next_batch(Class::Refresh, at(4)).is_none());
    [tickets[0], tickets[1], third].into_iter().for_each(|ticket| scheduler.cancel(ticket));
    assert!(scheduler.edges.is_empty() && scheduler.repeats.is_empty() && scheduler.waiting() == 0);
}

#[test]
fn rejected_call_is_charged_to_a_request_that_shared_it_with_none() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let (alone, _) = scheduler.enqueue(one_sided(ANN), &wanted("ann", &["bob", "cyd"]), unmarked).expect("room");
    let batch = scheduler.next_batch(Class::Refresh, at(1)).expect("a call");
    let repeated = scheduler.complete(batch.id, &BatchOutcome::RejectedArguments, unmarked).repeated;
    assert_eq!(repeated, [alone, alone]);
    scheduler.cancel(alone);
    for queue in [ANN, BEN] {
        scheduler.enqueue(one_sided(queue), &wanted("ann", &["bob"]), unmarked).expect("room");
    }
    let batch = scheduler.next_batch(Class::Refresh, at(2)).expect("a call");
    let repeated = scheduler.complete(batch.id, &BatchOutcome::RejectedArguments, unmarked).repeated;
    assert_eq!(repeated, [], "an account of the other request may be the cause");
}
