use std::collections::BTreeMap;

use super::super::fence::Fence;
use super::super::pair::UserHasher;
use super::*;
use crate::domain::follow::response::parse_items;

const ANN: QueueKey = QueueKey(1);
const BEN: QueueKey = QueueKey(2);

pub(super) fn terms(caller: QueueKey) -> JoinOptions {
    JoinOptions { caller, join: true, keep: true }
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

/// No write ever.
fn unmarked(_: Pair) -> Tick {
    Tick::NEVER
}

fn ask(pending: &mut LookupScheduler, caller: QueueKey, from: &str, to: &[&str]) -> (Ticket, Vec<bool>) {
    pending.enqueue(terms(caller), &wanted(from, to), unmarked).expect("room")
}

fn next(pending: &mut LookupScheduler, now: u64) -> Option<(BatchId, String, Vec<String>)> {
    let call = pending.next_batch(100, at(now))?;
    Some((call.id, call.from.to_string(), call.to.iter().map(ToString::to_string).collect()))
}

/// Chat's answer: everybody named is followed by the one it is asked from, and does not follow back.
fn following(to: &[String]) -> String {
    let items: Vec<_> = to
        .iter()
        .map(|to| serde_json::json!({"To_Account": to, "ResultCode": 0, "ResultInfo": "", "FollowType": 2}))
        .collect();
    serde_json::json!({"ResultItem": items, "ErrorCode": 0}).to_string()
}

fn finish(pending: &mut LookupScheduler, call: BatchId, body: &str) -> Vec<WaiterResult> {
    let items = parse_items(body.as_bytes()).expect("items");
    pending.complete(call, &BatchOutcome::Answered(&items), unmarked).0
}

fn relation(settled: &PairResult, pair: Pair) -> Option<u8> {
    match settled {
        PairResult::Known { fact, .. } => Some(pair.seen_from(fact.stored).number()),
        _ => None,
    }
}

#[test]
fn a_single_question_is_a_single_call_as_it_was_put() {
    let mut pending = LookupScheduler::new(true);
    let (ticket, joined) = ask(&mut pending, ANN, "ann", &["bob", "cyd"]);
    assert_eq!(joined, [false, false]);
    let (call, from, to) = next(&mut pending, 1).expect("a call");
    assert_eq!((from.as_str(), to.clone()), ("ann", vec!["bob".to_owned(), "cyd".to_owned()]));
    assert!(next(&mut pending, 1).is_none());
    let settlements = finish(&mut pending, call, &following(&to));
    assert_eq!(settlements.len(), 2);
    assert!(settlements.iter().all(|one| one.ticket == ticket));
    pending.cancel(ticket);
    assert_eq!(pending.waiting(), 0);
    assert!(pending.edges.is_empty() && pending.tickets.is_empty() && pending.nodes.is_empty());
}

#[test]
fn who_asks_for_a_pair_under_way_waits_for_it_from_either_side() {
    let mut pending = LookupScheduler::new(true);
    let (first, _) = ask(&mut pending, ANN, "ann", &["bob"]);
    let (call, ..) = next(&mut pending, 1).expect("a call");
    let (second, joined) = ask(&mut pending, BEN, "bob", &["ann"]);
    assert_eq!(joined, [true]);
    assert!(next(&mut pending, 2).is_none(), "not asked twice");
    let settlements = finish(&mut pending, call, &following(&["bob".to_owned()]));
    let got: BTreeMap<Ticket, &PairResult> = settlements.iter().map(|one| (one.ticket, &one.settled)).collect();
    assert_eq!(relation(got[&first], pair("ann", "bob")), Some(2));
    assert_eq!(relation(got[&second], pair("bob", "ann")), Some(1));
    assert!(matches!(got[&second], PairResult::Known { flipped: true, .. }));
}

#[test]
fn many_who_ask_about_one_travel_in_one_call_from_the_one() {
    let mut pending = LookupScheduler::new(true);
    let names: Vec<String> = (0..150).map(|n| format!("fan{n:03}")).collect();
    for name in &names {
        ask(&mut pending, ANN, name, &["star"]);
    }
    let (_, from, to) = next(&mut pending, 1).expect("a call");
    assert_eq!((from.as_str(), to.len()), ("star", 100));
    assert_eq!(to, names[..100], "oldest first");
    let (_, from, to) = next(&mut pending, 1).expect("a call");
    assert_eq!((from.as_str(), to.len()), ("star", 50));
    assert!(next(&mut pending, 1).is_none());
}

/// Feeds of 30 accounts: five that everybody names, the others from among many.
fn feeds(count: usize) -> Vec<(String, Vec<String>)> {
    let feed = |viewer: usize| {
        let stars = (0..5).map(|star| format!("star{star}"));
        let others = (0..25).map(|n| format!("other{}", (viewer * 7919 + n * 104_729) % 5000));
        (format!("viewer{viewer}"), stars.chain(others).collect())
    };
    (0..count).map(feed).collect()
}

#[test]
fn a_star_of_many_feeds_gets_no_calls_that_spare_none() {
    let mut pending = LookupScheduler::new(true);
    for (viewer, accounts) in feeds(200) {
        let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
        ask(&mut pending, ANN, &viewer, &accounts);
    }
    let calls = (1..).take_while(|now| next(&mut pending, *now).is_some()).count();
    assert_eq!(calls, 200, "each feed fits into one call");
}

#[test]
fn who_asks_for_stars_alone_is_served_from_the_stars_side() {
    let mut pending = LookupScheduler::new(true);
    for (viewer, accounts) in feeds(200) {
        ask(&mut pending, ANN, &viewer, &[&accounts[0], &accounts[1]]);
    }
    let calls = (1..).take_while(|now| next(&mut pending, *now).is_some()).count();
    assert_eq!(calls, 4, "400 pairs in full calls");
}

#[test]
fn without_flip_nothing_is_turned_round() {
    let mut pending = LookupScheduler::new(false);
    for name in ["a", "b", "c"] {
        ask(&mut pending, ANN, name, &["star"]);
    }
    for name in ["a", "b", "c"] {
        let (_, from, to) = next(&mut pending, 1).expect("a call");
        assert_eq!((from.as_str(), to), (name, vec!["star".to_owned()]));
    }
}

#[test]
fn callers_take_turns_call_by_call() {
    let mut pending = LookupScheduler::new(true);
    for n in 0..50 {
        ask(&mut pending, ANN, &format!("a{n}"), &[&format!("b{n}")]);
    }
    ask(&mut pending, BEN, "x", &["y"]);
    next(&mut pending, 1).expect("a call");
    let (_, from, _) = next(&mut pending, 1).expect("a call");
    assert_eq!(from, "x", "the one that asks now and then is next, not after the flood");
}

#[test]
fn a_failing_item_of_a_turned_call_is_asked_again_as_it_was_put() {
    let mut pending = LookupScheduler::new(true);
    let fans: Vec<Ticket> = ["a", "b", "c"].iter().map(|name| ask(&mut pending, ANN, name, &["star"]).0).collect();
    let (call, from, _) = next(&mut pending, 1).expect("a call");
    assert_eq!(from, "star");
    let body = r#"{"ResultItem":[{"To_Account":"a","ResultCode":0,"FollowType":1},
        {"To_Account":"b","ResultCode":30003},{"To_Account":"c","ResultCode":0,"FollowType":1}],"ErrorCode":0}"#;
    let settlements = finish(&mut pending, call, body);
    assert_eq!(settlements.iter().map(|one| one.ticket).collect::<Vec<_>>(), [fans[0], fans[2]]);
    let (call, from, to) = next(&mut pending, 2).expect("asked again");
    assert_eq!((from.as_str(), to), ("b", vec!["star".to_owned()]));
    let own = r#"{"ResultItem":[{"To_Account":"star","ResultCode":30003,"ResultInfo":"b"}],"ErrorCode":0}"#;
    let settlements = finish(&mut pending, call, own);
    assert_eq!(settlements.len(), 1);
    assert_eq!(
        settlements[0].settled,
        PairResult::Verbatim(r#"{"To_Account":"star","ResultCode":30003,"ResultInfo":"b"}"#.into(), at(2))
    );
}

#[test]
fn a_refused_shared_call_is_asked_again_by_each_request_alone() {
    let mut pending = LookupScheduler::new(true);
    let fans: Vec<Ticket> = (0..5).map(|n| ask(&mut pending, ANN, &format!("fan{n}"), &["star"]).0).collect();
    let (call, ..) = next(&mut pending, 1).expect("a call");
    let (settlements, _) = pending.complete(call, &BatchOutcome::RefusedArguments, unmarked);
    assert_eq!(settlements, []);
    for (n, ticket) in fans.iter().enumerate() {
        let (call, from, to) = next(&mut pending, 2).expect("asked again");
        assert_eq!((from, to), (format!("fan{n}"), vec!["star".to_owned()]));
        let (settlements, _) = pending.complete(call, &BatchOutcome::RefusedArguments, unmarked);
        assert_eq!(settlements, [WaiterResult { ticket: *ticket, slot: 0, settled: PairResult::Failed }]);
    }
    assert!(next(&mut pending, 3).is_none(), "one second try");
}

#[test]
fn an_own_call_that_is_refused_fails_at_once_and_so_does_any_that_fails_for_another_reason() {
    let mut pending = LookupScheduler::new(true);
    ask(&mut pending, ANN, "ann", &["bob", "cyd"]);
    let (call, ..) = next(&mut pending, 1).expect("a call");
    assert_eq!(pending.complete(call, &BatchOutcome::RefusedArguments, unmarked).0.len(), 2);
    ask(&mut pending, ANN, "ann", &["bob"]);
    ask(&mut pending, BEN, "bob", &["ann"]);
    let (call, ..) = next(&mut pending, 2).expect("a call");
    assert_eq!(pending.complete(call, &BatchOutcome::Failed, unmarked).0.len(), 2);
    assert!(next(&mut pending, 3).is_none());
}

#[test]
fn what_chat_left_out_or_contradicts_is_unfit() {
    let mut pending = LookupScheduler::new(true);
    ask(&mut pending, ANN, "ann", &["bob", "cyd", "dan"]);
    let (call, ..) = next(&mut pending, 1).expect("a call");
    let body = r#"{"ResultItem":[{"To_Account":"cyd","ResultCode":0,"FollowType":1},{"To_Account":"cyd","ResultCode":0,"FollowType":2},
        {"To_Account":"eve","ResultCode":0,"FollowType":1},{"To_Account":"dan","ResultCode":0,"FollowType":1}],"ErrorCode":0}"#;
    let items = parse_items(body.as_bytes()).expect("items");
    let (settlements, kept) = pending.complete(call, &BatchOutcome::Answered(&items), unmarked);
    let mut unfit: Vec<_> =
        settlements.iter().filter(|one| one.settled == PairResult::Malformed).map(|one| one.slot).collect();
    unfit.sort_unstable();
    assert_eq!(unfit, [0, 1]);
    assert_eq!(kept.len(), 1);
}

#[test]
fn who_leaves_takes_along_only_what_nobody_else_waits_for() {
    let mut pending = LookupScheduler::new(true);
    let (first, _) = ask(&mut pending, ANN, "ann", &["bob", "cyd"]);
    let (second, joined) = ask(&mut pending, BEN, "ann", &["bob"]);
    assert_eq!(joined, [true]);
    pending.cancel(first);
    let (call, _, to) = next(&mut pending, 1).expect("a call");
    assert_eq!(to, ["bob"]);
    let settlements = finish(&mut pending, call, &following(&to));
    assert_eq!(settlements.iter().map(|one| one.ticket).collect::<Vec<_>>(), [second]);
    pending.cancel(second);
    assert_eq!((pending.waiting(), pending.queued()), (0, 0));
}

#[test]
fn the_number_of_waiters_is_bounded_in_all_and_for_each_caller() {
    let mut pending = LookupScheduler::new(true);
    let names: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    let to: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut tickets = Vec::new();
    for n in 0..WAITING_PER_CALLER_MAX / 1000 {
        tickets.push(ask(&mut pending, ANN, &format!("u{n}"), &to).0);
    }
    assert_eq!(pending.enqueue(terms(ANN), &wanted("ann", &["bob"]), unmarked).err(), Some(SchedulerFull));
    ask(&mut pending, BEN, "ann", &["bob"]);
    for ticket in tickets {
        pending.cancel(ticket);
    }
    assert_eq!(pending.waiting(), 1);
    ask(&mut pending, ANN, "ann", &["bob"]);
}

#[test]
fn a_lookup_from_before_a_write_is_neither_joined_nor_believed() {
    let fence = Fence::default();
    let mark = |pair: Pair| fence.last_mark(pair);
    let mut pending = LookupScheduler::new(true);
    let ab = pair("ann", "bob");
    let (first, _) = pending.enqueue(terms(ANN), &wanted("ann", &["bob"]), mark).expect("room");
    let (old, _, to) = next(&mut pending, 10).expect("a call");
    fence.mark_pair(ab.key(), at(20));
    let (second, joined) = pending.enqueue(terms(BEN), &wanted("bob", &["ann"]), mark).expect("room");
    assert_eq!(joined, [false]);
    let body = following(&to);
    let items = parse_items(body.as_bytes()).expect("items");
    let (settlements, kept) = pending.complete(old, &BatchOutcome::Answered(&items), mark);
    assert_eq!((settlements.len(), kept.len()), (0, 0));
    let (new, from, to) = next(&mut pending, 30).expect("asked again");
    assert!(next(&mut pending, 30).is_none(), "both wait for one lookup");
    let answer = serde_json::json!({"ResultItem":[{"To_Account":to[0],"ResultCode":0,"FollowType":3}],"ErrorCode":0});
    let body = answer.to_string();
    let items = parse_items(body.as_bytes()).expect("items");
    let (settlements, kept) = pending.complete(new, &BatchOutcome::Answered(&items), mark);
    assert_eq!(from, "bob");
    let mut tickets: Vec<_> = settlements.iter().map(|one| one.ticket).collect();
    tickets.sort_unstable();
    assert_eq!((tickets, kept.len()), (vec![first, second], 1));
}
