use std::collections::BTreeMap;

use super::super::fence::Fence;
use super::super::pair::UserHasher;
use super::*;
use crate::domain::relation::FOLLOW;

pub(super) const ANN: CallerQueue = CallerQueue::interactive(QueueKey(1));
pub(super) const BEN: CallerQueue = CallerQueue::interactive(QueueKey(2));

pub(super) fn options(queue: CallerQueue) -> JoinOptions {
    JoinOptions { queue, join: true, keep: true, sides: Sides::Both }
}

pub(super) fn pair(from: &str, to: &str) -> Pair {
    let hasher = UserHasher::new(&[3; 16]);
    Pair { from: hasher.user(from), to: hasher.user(to) }
}

pub(super) fn wanted<'a>(from: &'a str, to: &[&'a str]) -> Vec<Wanted<'a>> {
    to.iter().enumerate().map(|(slot, to)| Wanted { pair: pair(from, to), from, to, slot }).collect()
}

pub(super) fn at(micros: u64) -> Tick {
    Tick::from_micros(micros)
}

/// The fence of an app without writes.
pub(super) fn unmarked(_: Pair) -> Tick {
    Tick::NEVER
}

pub(super) fn enqueue(
    scheduler: &mut LookupScheduler,
    queue: CallerQueue,
    from: &str,
    to: &[&str],
) -> (Ticket, Vec<bool>) {
    scheduler.enqueue(options(queue), &wanted(from, to), unmarked).expect("room")
}

pub(super) fn next(scheduler: &mut LookupScheduler, now: u64) -> Option<(BatchId, String, Vec<String>)> {
    let call = scheduler.next_batch(Class::Refresh, at(now))?;
    Some((call.id, call.from.to_string(), call.to.iter().map(ToString::to_string).collect()))
}

/// Returns Chat's response in which `From_Account` follows every account, and none follows back.
pub(super) fn following(to: &[String]) -> String {
    let items: Vec<_> = to
        .iter()
        .map(|to| serde_json::json!({"To_Account": to, "ResultCode": 0, "ResultInfo": "", "FollowType": 2}))
        .collect();
    serde_json::json!({"ResultItem": items, "ErrorCode": 0}).to_string()
}

pub(super) fn complete(scheduler: &mut LookupScheduler, call: BatchId, body: &str) -> Vec<WaiterResult> {
    let items = FOLLOW.parse_items(Sides::Both, body.as_bytes()).expect("items");
    scheduler.complete(call, &BatchOutcome::Answered(&items), unmarked).results
}

pub(super) fn relation(result: &PairResult, pair: Pair) -> Option<u8> {
    match result {
        PairResult::Known { cached, .. } => Some(pair.seen_from(cached.stored).number()),
        _ => None,
    }
}

#[test]
fn single_request_is_a_single_call_in_its_direction() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let (ticket, joined) = enqueue(&mut scheduler, ANN, "ann", &["bob", "cyd"]);
    assert_eq!(joined, [false, false]);
    let (call, from, to) = next(&mut scheduler, 1).expect("a call");
    assert_eq!((from.as_str(), to.clone()), ("ann", vec!["bob".to_owned(), "cyd".to_owned()]));
    assert!(next(&mut scheduler, 1).is_none());
    let results = complete(&mut scheduler, call, &following(&to));
    assert_eq!(results.len(), 2);
    assert!(results.iter().all(|one| one.ticket == ticket));
    scheduler.cancel(ticket);
    assert_eq!(scheduler.waiting(), 0);
    assert!(scheduler.edges.is_empty() && scheduler.tickets.is_empty() && scheduler.nodes.is_empty());
}

#[test]
fn pair_in_flight_is_joined_from_either_side() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let (first, _) = enqueue(&mut scheduler, ANN, "ann", &["bob"]);
    let (call, ..) = next(&mut scheduler, 1).expect("a call");
    let (second, joined) = enqueue(&mut scheduler, BEN, "bob", &["ann"]);
    assert_eq!(joined, [true]);
    assert!(next(&mut scheduler, 2).is_none(), "one lookup for both");
    let results = complete(&mut scheduler, call, &following(&["bob".to_owned()]));
    let got: BTreeMap<Ticket, &PairResult> = results.iter().map(|one| (one.ticket, &one.result)).collect();
    assert_eq!(relation(got[&first], pair("ann", "bob")), Some(2));
    assert_eq!(relation(got[&second], pair("bob", "ann")), Some(1));
    assert!(matches!(got[&second], PairResult::Known { flipped: true, .. }));
}

#[test]
fn pairs_of_one_star_are_batched_from_the_star() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let names: Vec<String> = (0..150).map(|n| format!("fan{n:03}")).collect();
    for name in &names {
        enqueue(&mut scheduler, ANN, name, &["star"]);
    }
    let (_, from, to) = next(&mut scheduler, 1).expect("a call");
    assert_eq!((from.as_str(), to.len()), ("star", 100));
    assert_eq!(to, names[..100], "oldest first");
    let (_, from, to) = next(&mut scheduler, 1).expect("a call");
    assert_eq!((from.as_str(), to.len()), ("star", 50));
    assert!(next(&mut scheduler, 1).is_none());
}

/// Returns feeds of 30 accounts: five stars that are in every feed, and 25 of many other accounts.
fn feeds(count: usize) -> Vec<(String, Vec<String>)> {
    let feed = |viewer: usize| {
        let stars = (0..5).map(|star| format!("star{star}"));
        let others = (0..25).map(|n| format!("other{}", (viewer * 7919 + n * 104_729) % 5000));
        (format!("viewer{viewer}"), stars.chain(others).collect())
    };
    (0..count).map(feed).collect()
}

#[test]
fn star_of_many_feeds_gets_no_call_of_its_own() {
    let mut scheduler = LookupScheduler::new(true, 100);
    for (viewer, accounts) in feeds(200) {
        let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
        enqueue(&mut scheduler, ANN, &viewer, &accounts);
    }
    let calls = (1..).take_while(|now| next(&mut scheduler, *now).is_some()).count();
    assert_eq!(calls, 200, "each feed fits into one call");
}

#[test]
fn pairs_of_stars_only_are_batched_from_the_stars() {
    let mut scheduler = LookupScheduler::new(true, 100);
    for (viewer, accounts) in feeds(200) {
        enqueue(&mut scheduler, ANN, &viewer, &[&accounts[0], &accounts[1]]);
    }
    let calls = (1..).take_while(|now| next(&mut scheduler, *now).is_some()).count();
    assert_eq!(calls, 4, "400 pairs in full calls");
}

#[test]
fn without_flip_pairs_keep_their_direction() {
    let mut scheduler = LookupScheduler::new(false, 100);
    for name in ["a", "b", "c"] {
        enqueue(&mut scheduler, ANN, name, &["star"]);
    }
    for name in ["a", "b", "c"] {
        let (_, from, to) = next(&mut scheduler, 1).expect("a call");
        assert_eq!((from.as_str(), to), (name, vec!["star".to_owned()]));
    }
}

#[test]
fn callers_are_served_round_robin() {
    let mut scheduler = LookupScheduler::new(true, 100);
    for n in 0..50 {
        enqueue(&mut scheduler, ANN, &format!("a{n}"), &[&format!("b{n}")]);
    }
    enqueue(&mut scheduler, BEN, "x", &["y"]);
    next(&mut scheduler, 1).expect("a call");
    let (_, from, _) = next(&mut scheduler, 1).expect("a call");
    assert_eq!(from, "x", "the quiet caller is next, not after the busy one");
}

const JOB: CallerQueue = CallerQueue { class: Class::Batch, caller: QueueKey(3) };

#[test]
fn interactive_pairs_go_before_batch_pairs() {
    let mut scheduler = LookupScheduler::new(true, 100);
    for n in 0..50 {
        enqueue(&mut scheduler, JOB, &format!("a{n}"), &[&format!("b{n}")]);
    }
    let waits_behind = |scheduler: &LookupScheduler, queue| scheduler.calls_ahead(queue, 1);
    let other_job = CallerQueue { caller: QueueKey(4), ..JOB };
    let ahead = [ANN, JOB, other_job].map(|queue| waits_behind(&scheduler, queue));
    assert_eq!(ahead, [0, 50, 1], "interactive callers do not wait for batch callers");
    assert!(!scheduler.has_queued(Class::Interactive) && scheduler.next_batch(Class::Interactive, at(1)).is_none());
    enqueue(&mut scheduler, ANN, "x", &["y"]);
    enqueue(&mut scheduler, BEN, "v", &["w"]);
    assert_eq!((scheduler.queued_in(Class::Interactive), scheduler.queued_in(Class::Batch)), (2, 50));
    assert_eq!([ANN, other_job].map(|queue| waits_behind(&scheduler, queue)), [2, 3]);
    let from = |scheduler: &mut LookupScheduler| next(scheduler, 1).expect("a call").1;
    assert_eq!([from(&mut scheduler), from(&mut scheduler), from(&mut scheduler)], ["x", "v", "a0"]);
}

#[test]
fn pair_goes_with_the_first_class_that_waits_for_it() {
    let mut scheduler = LookupScheduler::new(false, 100);
    enqueue(&mut scheduler, JOB, "a", &["b", "c"]);
    enqueue(&mut scheduler, JOB, "d", &["e"]);
    let (ticket, joined) = enqueue(&mut scheduler, ANN, "d", &["e"]);
    assert_eq!((joined, scheduler.queued_in(Class::Interactive)), (vec![true], 1));
    // Without the interactive request, the pair is a batch pair again.
    scheduler.cancel(ticket);
    assert_eq!((scheduler.queued_in(Class::Interactive), scheduler.queued_for(ANN)), (0, 0));
    assert!(scheduler.next_batch(Class::Interactive, at(1)).is_none());
    enqueue(&mut scheduler, ANN, "d", &["e"]);
    let batch = scheduler.next_batch(Class::Interactive, at(1)).expect("a call");
    assert_eq!((&*batch.from, batch.queue), ("d", ANN));
    assert_eq!(scheduler.waiting_for(batch.id).count(), 2, "both requests wait for it");
    assert_eq!(next(&mut scheduler, 1).expect("a call").1, "a");
    assert_eq!((scheduler.queued(), scheduler.has_queued(Class::Refresh)), (0, false));
}

#[test]
fn pair_of_a_later_class_counts_as_queued_when_it_moves_up() {
    let mut scheduler = LookupScheduler::new(false, 100);
    let new = |scheduler: &LookupScheduler, queue, to: &[&str]| {
        let new = scheduler.new_among(options(queue), &wanted("a", to), unmarked);
        (new.lookups, new.queued)
    };
    scheduler.refresh(&wanted("a", &["r"]), Refresh { until: at(9), caused_by: QueueKey::SELF }, unmarked);
    enqueue(&mut scheduler, JOB, "a", &["b", "c"]);
    (0..5).for_each(|n| drop(enqueue(&mut scheduler, BEN, &format!("x{n}"), &["y"])));
    assert_eq!(new(&scheduler, JOB, &["b", "c", "d", "r"]), (2, 2), "a queued refresh is no lookup yet");
    assert_eq!(new(&scheduler, ANN, &["b", "c", "d", "r"]), (2, 4));
    let (_, joined) = enqueue(&mut scheduler, ANN, "a", &["b", "r"]);
    assert_eq!((joined, new(&scheduler, ANN, &["b", "c", "d", "r"])), (vec![true, false], (1, 2)), "they moved up");
    while next(&mut scheduler, 1).is_some() {}
    assert_eq!(new(&scheduler, ANN, &["b", "c", "r"]), (0, 0), "in flight");
}

#[test]
fn calls_are_filled_with_interactive_pairs_first() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let names: Vec<String> = (0..150).map(|n| format!("b{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    enqueue(&mut scheduler, JOB, "ann", &names);
    enqueue(&mut scheduler, ANN, "ann", &["x", "b149"]);
    let (_, _, to) = next(&mut scheduler, 1).expect("a call");
    assert_eq!((to.len(), to.contains(&"x".to_owned()), to.contains(&"b149".to_owned())), (100, true, true));
    assert_eq!(next(&mut scheduler, 1).expect("a call").2.len(), 51);
}

#[test]
fn batch_pairs_leave_room_for_interactive_ones() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let names: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut fill = |caller, class| {
        let queue = CallerQueue { class, caller: QueueKey(caller) };
        (0..100)
            .filter(|n| scheduler.enqueue(options(queue), &wanted(&format!("u{n}"), &names), unmarked).is_ok())
            .count()
    };
    let half = WAITING_MAX / 2 / 1000;
    assert_eq!([fill(3, Class::Batch), fill(4, Class::Batch), fill(1, Class::Interactive)], [half, 0, half]);
}

#[test]
fn failed_item_of_a_flipped_lookup_is_looked_up_as_requested() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let fans: Vec<Ticket> =
        ["a", "b", "c"].iter().map(|name| enqueue(&mut scheduler, ANN, name, &["star"]).0).collect();
    let (call, from, _) = next(&mut scheduler, 1).expect("a call");
    assert_eq!(from, "star");
    let body = r#"{"ResultItem":[{"To_Account":"a","ResultCode":0,"FollowType":1},
        {"To_Account":"b","ResultCode":30003},{"To_Account":"c","ResultCode":0,"FollowType":1}],"ErrorCode":0}"#;
    let results = complete(&mut scheduler, call, body);
    assert_eq!(results.iter().map(|one| one.ticket).collect::<Vec<_>>(), [fans[0], fans[2]]);
    let (call, from, to) = next(&mut scheduler, 2).expect("another lookup");
    assert_eq!((from.as_str(), to), ("b", vec!["star".to_owned()]));
    let own = r#"{"ResultItem":[{"To_Account":"star","ResultCode":30003,"ResultInfo":"b"}],"ErrorCode":0}"#;
    let results = complete(&mut scheduler, call, own);
    assert_eq!(results.len(), 1);
    assert_eq!(
        results[0].result,
        PairResult::Verbatim(r#"{"To_Account":"star","ResultCode":30003,"ResultInfo":"b"}"#.into(), at(2))
    );
}

#[test]
fn rejected_shared_call_is_repeated_for_each_request() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let fans: Vec<Ticket> = (0..5).map(|n| enqueue(&mut scheduler, ANN, &format!("fan{n}"), &["star"]).0).collect();
    let (call, ..) = next(&mut scheduler, 1).expect("a call");
    let Completion { results, .. } = scheduler.complete(call, &BatchOutcome::RejectedArguments, unmarked);
    assert_eq!(results, []);
    for (n, ticket) in fans.iter().enumerate() {
        let (call, from, to) = next(&mut scheduler, 2).expect("another lookup");
        assert_eq!((from, to), (format!("fan{n}"), vec!["star".to_owned()]));
        let Completion { results, .. } = scheduler.complete(call, &BatchOutcome::RejectedArguments, unmarked);
        assert_eq!(results, [WaiterResult { ticket: *ticket, slot: 0, result: PairResult::Failed }]);
    }
    assert!(next(&mut scheduler, 3).is_none(), "each request has one more call");
}

#[test]
fn requests_merged_into_a_call_in_flight_share_it() {
    let mut scheduler = LookupScheduler::new(true, 100);
    enqueue(&mut scheduler, ANN, "ann", &["bob"]);
    let (first, _, to) = next(&mut scheduler, 1).expect("a call");
    // A write marks the pair at 2, so the second request makes a call of its own.
    let marked = |_: Pair| at(2);
    let (_, joined) = scheduler.enqueue(options(BEN), &wanted("ann", &["bob"]), marked).expect("room");
    let (second, ..) = next(&mut scheduler, 3).expect("a call");
    assert_eq!(joined, [false]);
    // The first call is from before the write, so its request waits for the second call too.
    let body = following(&to);
    let items = FOLLOW.parse_items(Sides::Both, body.as_bytes()).expect("items");
    assert!(scheduler.complete(first, &BatchOutcome::Answered(&items), marked).results.is_empty());
    assert!(next(&mut scheduler, 4).is_none());
    let Completion { results, .. } = scheduler.complete(second, &BatchOutcome::RejectedArguments, marked);
    assert!(results.is_empty(), "the rejection may be about the other request: {results:?}");
    assert!(next(&mut scheduler, 5).is_some() && next(&mut scheduler, 5).is_some(), "a call for each request");
}

#[test]
fn rejected_unshared_call_and_failed_calls_fail_at_once() {
    let mut scheduler = LookupScheduler::new(true, 100);
    enqueue(&mut scheduler, ANN, "ann", &["bob", "cyd"]);
    let (call, ..) = next(&mut scheduler, 1).expect("a call");
    assert_eq!(scheduler.complete(call, &BatchOutcome::RejectedArguments, unmarked).results.len(), 2);
    enqueue(&mut scheduler, ANN, "ann", &["bob"]);
    enqueue(&mut scheduler, BEN, "bob", &["ann"]);
    let (call, ..) = next(&mut scheduler, 2).expect("a call");
    assert_eq!(scheduler.complete(call, &BatchOutcome::Failed, unmarked).results.len(), 2);
    assert!(next(&mut scheduler, 3).is_none());
}

#[test]
fn omitted_and_contradictory_items_are_malformed() {
    let mut scheduler = LookupScheduler::new(true, 100);
    enqueue(&mut scheduler, ANN, "ann", &["bob", "cyd", "dan"]);
    let (call, ..) = next(&mut scheduler, 1).expect("a call");
    let body = r#"{"ResultItem":[{"To_Account":"cyd","ResultCode":0,"FollowType":1},{"To_Account":"cyd","ResultCode":0,"FollowType":2},
        {"To_Account":"eve","ResultCode":0,"FollowType":1},{"To_Account":"dan","ResultCode":0,"FollowType":1}],"ErrorCode":0}"#;
    let items = FOLLOW.parse_items(Sides::Both, body.as_bytes()).expect("items");
    let Completion { results, cacheable, .. } = scheduler.complete(call, &BatchOutcome::Answered(&items), unmarked);
    let mut malformed: Vec<_> =
        results.iter().filter(|one| one.result == PairResult::Malformed).map(|one| one.slot).collect();
    malformed.sort_unstable();
    assert_eq!(malformed, [0, 1]);
    assert_eq!(cacheable.len(), 1);
}

#[test]
fn cancel_drops_only_pairs_without_other_waiters() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let (first, _) = enqueue(&mut scheduler, ANN, "ann", &["bob", "cyd"]);
    let (second, joined) = enqueue(&mut scheduler, BEN, "ann", &["bob"]);
    assert_eq!(joined, [true]);
    scheduler.cancel(first);
    let (call, _, to) = next(&mut scheduler, 1).expect("a call");
    assert_eq!(to, ["bob"]);
    let results = complete(&mut scheduler, call, &following(&to));
    assert_eq!(results.iter().map(|one| one.ticket).collect::<Vec<_>>(), [second]);
    scheduler.cancel(second);
    assert_eq!((scheduler.waiting(), scheduler.queued()), (0, 0));
}

#[test]
fn waiting_pairs_are_bounded_in_total_and_per_caller() {
    let mut scheduler = LookupScheduler::new(true, 100);
    let names: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    let to: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut tickets = Vec::new();
    for n in 0..WAITING_PER_CALLER_MAX / 1000 {
        tickets.push(enqueue(&mut scheduler, ANN, &format!("u{n}"), &to).0);
    }
    assert_eq!(scheduler.enqueue(options(ANN), &wanted("ann", &["bob"]), unmarked).err(), Some(SchedulerFull));
    enqueue(&mut scheduler, BEN, "ann", &["bob"]);
    for ticket in tickets {
        scheduler.cancel(ticket);
    }
    assert_eq!(scheduler.waiting(), 1);
    enqueue(&mut scheduler, ANN, "ann", &["bob"]);
}

#[test]
fn lookup_sent_before_a_write_is_neither_joined_nor_used() {
    let fence = Fence::default();
    let mark = |pair: Pair| fence.last_mark(pair);
    let mut scheduler = LookupScheduler::new(true, 100);
    let ab = pair("ann", "bob");
    let (first, _) = scheduler.enqueue(options(ANN), &wanted("ann", &["bob"]), mark).expect("room");
    let (old, _, to) = next(&mut scheduler, 10).expect("a call");
    fence.mark_pair(ab.key(), at(20));
    let (second, joined) = scheduler.enqueue(options(BEN), &wanted("bob", &["ann"]), mark).expect("room");
    assert_eq!(joined, [false]);
    let body = following(&to);
    let items = FOLLOW.parse_items(Sides::Both, body.as_bytes()).expect("items");
    let Completion { results, cacheable, .. } = scheduler.complete(old, &BatchOutcome::Answered(&items), mark);
    assert_eq!((results.len(), cacheable.len()), (0, 0));
    let (new, from, to) = next(&mut scheduler, 30).expect("another lookup");
    assert!(next(&mut scheduler, 30).is_none(), "one lookup for both");
    let response = serde_json::json!({"ResultItem":[{"To_Account":to[0],"ResultCode":0,"FollowType":3}],"ErrorCode":0});
    let body = response.to_string();
    let items = FOLLOW.parse_items(Sides::Both, body.as_bytes()).expect("items");
    let Completion { results, cacheable, .. } = scheduler.complete(new, &BatchOutcome::Answered(&items), mark);
    assert_eq!(from, "bob");
    let mut tickets: Vec<_> = results.iter().map(|one| one.ticket).collect();
    tickets.sort_unstable();
    assert_eq!((tickets, cacheable.len()), (vec![first, second], 1));
}
