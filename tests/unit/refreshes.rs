//! Refreshes in the scheduler: pairs that are queued although no request waits for them.

use super::tests::{ANN, BEN, at, complete, enqueue, following, next, options, pair, unmarked, wanted};
use super::*;
use crate::domain::relation::FOLLOW;

fn refresh(until: u64) -> Refresh {
    Refresh { until: at(until), caused_by: QueueKey::SELF }
}

#[test]
fn refresh_of_a_queued_pair_outlives_its_request() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let no_store = JoinOptions { keep: false, ..options(ANN) };
    let (ticket, _) = scheduler.enqueue(no_store, &wanted("a", &["b"]), unmarked).expect("room");
    scheduler.refresh(&wanted("a", &["b"]), refresh(9), unmarked);
    scheduler.cancel(ticket);
    assert_eq!((scheduler.queued(), scheduler.queued_in(Class::Refresh)), (0, 1));
    let (call, _, to) = next(&mut scheduler, 1).expect("a call");
    // The same for a pair in flight.
    let (ticket, _) = scheduler.enqueue(no_store, &wanted("c", &["d"]), unmarked).expect("room");
    let (other_call, _, other_to) = next(&mut scheduler, 1).expect("a call");
    scheduler.refresh(&wanted("c", &["d"]), refresh(9), unmarked);
    scheduler.cancel(ticket);
    for (call, to) in [(call, to), (other_call, other_to)] {
        let body = following(&to);
        let items = FOLLOW.parse_items(Sides::Both, body.as_bytes()).expect("items");
        let Completion { results, cacheable, .. } = scheduler.complete(call, &BatchOutcome::Answered(&items), unmarked);
        assert_eq!((results.len(), cacheable.len()), (0, 1));
    }
    assert_eq!(scheduler.take_ended_refreshes(), []);
}

#[test]
fn calls_that_leave_anyway_are_filled_with_refreshes() {
    let mut scheduler = LookupScheduler::new(true, 3);
    scheduler.refresh(&wanted("a", &["b", "c", "d"]), refresh(9), unmarked);
    enqueue(&mut scheduler, ANN, "a", &["x"]);
    let batch = scheduler.next_batch(Class::Interactive, at(1)).expect("a call");
    let to: Vec<&str> = batch.to.iter().map(|to| &**to).collect();
    assert_eq!((to, batch.queue), (vec!["x", "b", "c"], ANN));
    assert!(scheduler.next_batch(Class::Batch, at(1)).is_none());
    assert_eq!(next(&mut scheduler, 1).expect("a refresh").2, ["d"]);
}

#[test]
fn refreshes_without_a_result_are_reported() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let ended = |pair: Pair, is_void| [EndedRefresh { pair: pair.key(), is_void }];
    scheduler.refresh(&wanted("a", &["b"]), refresh(9), unmarked);
    let (call, ..) = next(&mut scheduler, 1).expect("a call");
    scheduler.complete(call, &BatchOutcome::Failed, unmarked);
    assert_eq!(scheduler.take_ended_refreshes(), ended(pair("a", "b"), false));
    scheduler.refresh(&wanted("a", &["b"]), refresh(9), unmarked);
    let (call, ..) = next(&mut scheduler, 1).expect("a call");
    let body = r#"{"ResultItem":[{"To_Account":"b","ResultCode":30003}],"ErrorCode":0}"#;
    assert_eq!(complete(&mut scheduler, call, body), []);
    assert_eq!(scheduler.take_ended_refreshes(), ended(pair("a", "b"), true));
    // Those beyond the limit are not queued.
    let names: Vec<String> = (0..=REFRESHES_MAX).map(|n| format!("b{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    scheduler.refresh(&wanted("a", &names), refresh(9), unmarked);
    assert_eq!(scheduler.queued_in(Class::Refresh), REFRESHES_MAX);
    assert_eq!(scheduler.take_ended_refreshes(), ended(pair("a", names[REFRESHES_MAX]), false));
    assert!(!scheduler.has_queued_at(Class::Refresh, at(9)) && scheduler.edges.is_empty(), "they are too late");
}

#[test]
fn batch_has_the_most_urgent_class_of_its_requests() {
    let mut scheduler = LookupScheduler::new(true, 100);
    scheduler.refresh(&wanted("a", &["b"]), refresh(9), unmarked);
    let (call, ..) = next(&mut scheduler, 1).expect("a refresh");
    assert_eq!(scheduler.awaited_in(call), None);
    let job = CallerQueue { class: Class::Batch, ..ANN };
    let (first, _) = enqueue(&mut scheduler, job, "a", &["b"]);
    assert_eq!(scheduler.awaited_in(call), Some(Class::Batch));
    let (second, _) = enqueue(&mut scheduler, ANN, "b", &["a"]);
    assert_eq!(scheduler.awaited_in(call), Some(Class::Interactive));
    scheduler.cancel(second);
    assert_eq!(scheduler.awaited_in(call), Some(Class::Batch));
    scheduler.cancel(first);
    assert_eq!(scheduler.awaited_in(call), None);
    scheduler.complete(call, &BatchOutcome::Failed, unmarked);
    assert_eq!(scheduler.awaited_in(call), None, "it has ended");
}

#[test]
fn refresh_counts_for_its_cause_and_a_request_that_joins_for_its_own_caller() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let refresh = |key: u64| Refresh { until: Tick::LAST, caused_by: QueueKey(key) };
    scheduler.refresh(&wanted("ann", &["bob"]), refresh(7), unmarked);
    // The pair is queued already: it keeps its first cause.
    scheduler.refresh(&wanted("ann", &["bob"]), refresh(8), unmarked);
    scheduler.refresh(&wanted("cyd", &["dan"]), refresh(8), unmarked);
    enqueue(&mut scheduler, BEN, "cyd", &["dan"]);
    let mut sent = Vec::new();
    while let Some(batch) = scheduler.next_batch(Class::Refresh, at(1)) {
        sent.push((batch.from.to_string(), batch.caused_by));
    }
    assert_eq!(sent, [("cyd".to_owned(), BEN.caller), ("ann".to_owned(), QueueKey(7))]);
}
