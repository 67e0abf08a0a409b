//! Read-your-writes: once a write has its response, no lookup returns the state before it.
//!
//! The gateway's ttl is 1 h in these tests, so a pair that is fetched again was invalidated.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::app::{MAIN, OTHER};
use crate::support::chat::FakeChat;
use crate::support::client::{TestRequest, check_body};
use crate::support::gateway::Gateway;
use crate::support::graph::{Graph, OK, error_response};
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;
use crate::support::{eventually, now};

const ADD: &str = "follow/follow_add";
const DELETE: &str = "follow/follow_delete";
const ACCOUNT_DELETE: &str = "im_open_login_svc/account_delete";
const CHECK: &str = "follow/follow_check";

async fn gateway(chat: &FakeChat) -> Gateway {
    Setup::new(chat).set("cache", r#"ttl = "1h""#).start().await
}

fn add_body(from: &str, to: &str) -> String {
    format!(r#"{{"From_Account":"{from}","FollowItem":[{{"To_Account":"{to}"}}]}}"#)
}

/// Returns whether the pair is cached, without changing the cache.
async fn is_cached(gateway: &Gateway, from: &str, to: &str) -> bool {
    let response = gateway.send(TestRequest::check(from, &[to]).header("Cache-Control", "only-if-cached")).await;
    assert!(response.status == 200 || response.slug() == Some("not_cached"), "{response:?}");
    response.status == 200
}

#[tokio::test]
async fn check_after_a_write_sees_both_directions() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let lookups = |from: &'static str, to: &'static str, expected: u8| {
        let (gateway, chat) = (&gateway, &chat);
        async move {
            let before = chat.calls_of(CHECK).len();
            assert_eq!(gateway.check(from, &[to]).await.follow_types(), [expected], "{from} {to}");
            chat.calls_of(CHECK).len() - before
        }
    };
    assert_eq!(lookups("ann", "bob", 0).await, 1);
    gateway.call(ADD, add_body("ann", "bob")).await.assert_relayed(200, write_response(ADD, &add_body("ann", "bob")));
    assert_eq!(lookups("bob", "ann", 1).await, 1, "fetched again after follow_add");
    assert_eq!(lookups("ann", "bob", 2).await, 1, "not cached within write_settle");
    gateway.call(ADD, add_body("bob", "ann")).await;
    assert_eq!(lookups("ann", "bob", 3).await, 1);
    gateway.call(DELETE, check_body("ann", &["bob"])).await;
    assert_eq!(lookups("ann", "bob", 1).await, 1, "fetched again after follow_delete");
    gateway.call(ACCOUNT_DELETE, r#"{"DeleteItem":[{"UserID":"bob"}]}"#).await.assert_relayed(200, OK);
    assert_eq!(lookups("ann", "bob", 0).await, 1, "fetched again after account_delete");
    assert_eq!(lookups("bob", "ann", 0).await, 1);
    assert_eq!((chat.calls_of(ADD).len(), chat.calls_of(DELETE).len()), (2, 1), "each write was sent once");
}

/// Returns Chat's response to a successful write.
fn write_response(command: &str, body: &str) -> String {
    Graph::default().respond(MAIN.sdkappid, command, body.as_bytes())
}

#[tokio::test]
async fn write_invalidates_only_the_pairs_in_its_body() {
    let chat = FakeChat::start().await;
    let lines = chat.app_lines();
    let setup = Setup::without_apps().app(MAIN, &format!("{lines}\ndefault = true")).app(OTHER, &lines);
    let gateway = setup.set("cache", r#"ttl = "1h""#).start().await;
    gateway.check("ann", &["bob", "cyd"]).await.items();
    gateway.check("dan", &["bob"]).await.items();
    let elsewhere = |control: &str| {
        TestRequest::check("ann", &["bob"]).header("Chatgate-App", OTHER.name).header("Cache-Control", control)
    };
    gateway.send(elsewhere("max-age=60")).await.items();
    gateway.call(ADD, add_body("ann", "bob")).await;
    assert!(!is_cached(&gateway, "ann", "bob").await);
    assert!(!is_cached(&gateway, "bob", "ann").await);
    assert!(is_cached(&gateway, "ann", "cyd").await, "another pair of the same user");
    assert!(is_cached(&gateway, "bob", "dan").await, "another pair of the other user");
    assert_eq!(gateway.send(elsewhere("only-if-cached")).await.status, 200, "the same names in another app");
    gateway.call(ACCOUNT_DELETE, r#"{"DeleteItem":[{"UserID":"bob"},{"UserID":"unknown"}]}"#).await;
    assert!(!is_cached(&gateway, "dan", "bob").await, "every pair of a deleted account");
    assert!(is_cached(&gateway, "ann", "cyd").await);
}

#[tokio::test]
async fn escaped_names_in_a_write_match_their_text() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["abc", "d\"e"]).await.items();
    let body = r#" { "FollowItem" : [ {"New":1,"To_Account":"a\u0062c"}, {"To_Account":"d\u0022e"} ], "From_Account":"\u0061nn" } "#;
    gateway.call(ADD, body).await;
    assert_eq!(chat.last_call().body, body.as_bytes());
    assert_eq!(gateway.check("abc", &["ann"]).await.follow_types(), [1]);
    assert_eq!(gateway.check("ann", &["d\"e"]).await.follow_types(), [2]);
}

#[tokio::test]
async fn failed_write_invalidates_its_pairs() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let failures = [
        Reply::json(error_response(30001, "no")),
        Reply::json(error_response(30006, "internal")),
        Reply::json(error_response(32100, "too many")),
        Reply::status(500, "<html>"),
        Reply::reset(),
        Reply::bytes("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"),
    ];
    for (round, failure) in failures.into_iter().enumerate() {
        let from = format!("ann{round}");
        assert_eq!(gateway.check(&from, &["bob"]).await.follow_types(), [0]);
        // Chat carried out the write despite its response.
        chat.follow(&from, "bob");
        chat.reply_once(failure);
        gateway.call(ADD, add_body(&from, "bob")).await;
        assert_eq!(gateway.check(&from, &["bob"]).await.follow_types(), [2], "round {round}");
        assert_eq!(chat.calls_of(ADD).len(), round + 1, "sent once");
    }
}

#[tokio::test]
async fn timed_out_write_invalidates_its_pairs() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("cache", r#"ttl = "1h""#).timeout("1s").start().await;
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
    chat.follow("ann", "bob");
    chat.reply_once(Reply::hang());
    gateway.call(ADD, add_body("ann", "bob")).await.assert_error(504, "upstream_timeout", 60008);
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [2]);
}

#[tokio::test]
async fn lookup_in_flight_during_a_write_is_discarded() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for (round, (command, body)) in [
        (ADD, add_body("ann0", "bob")),
        (DELETE, check_body("bob", &["ann1"])),
        (ACCOUNT_DELETE, r#"{"DeleteItem":[{"UserID":"ann2"}]}"#.to_owned()),
        (ADD, r#"{"From_Account":"ann3","FollowItem":"unreadable"}"#.to_owned()),
    ]
    .into_iter()
    .enumerate()
    {
        let from = format!("ann{round}");
        let gate = Gate::closed();
        if round > 0 {
            chat.follow("bob", &from);
        }
        let before = chat.calls_of(CHECK).len();
        let (first, gate_of_first) = (AtomicBool::new(true), gate.clone());
        chat.script(move |call| {
            let hold = call.command() == CHECK && first.swap(false, Ordering::Relaxed);
            hold.then(|| Reply::from_graph().after(&gate_of_first))
        });
        // In flight, with a result from before the write.
        let mut lookup = gateway.connect().await;
        lookup.send(TestRequest::check(&from, &["bob"]).bytes()).await;
        eventually("the lookup is upstream", async || (chat.calls_of(CHECK).len() > before).then_some(())).await;
        gateway.call(command, body).await;
        if round == 3 {
            // Chat understood the body that the gateway could not parse.
            chat.follow(&from, "bob");
        }
        let expected = chat.graph().follow_type(MAIN.sdkappid, &from, "bob");
        // A lookup after the write does not join the one from before the write.
        assert_eq!(gateway.check(&from, &["bob"]).await.follow_types(), [expected], "{command}: a new lookup");
        gate.open();
        assert_eq!(lookup.read_response().await.follow_types(), [expected], "{command}: the lookup in flight");
        assert_eq!(gateway.check(&from, &["bob"]).await.follow_types(), [expected], "{command}: the cached pair");
        assert_eq!(gateway.check("bob", &[&from]).await.follow_types(), [flip(expected)], "{command}: flipped");
    }
}

fn flip(follow_type: u8) -> u8 {
    [0, 2, 1, 3][usize::from(follow_type)]
}

#[tokio::test]
async fn write_invalidates_pairs_fetched_while_in_flight() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let gate = Gate::closed();
    let script_gate = gate.clone();
    chat.script(move |call| (call.command() == ADD).then(|| Reply::from_graph().after(&script_gate)));
    let mut write = gateway.connect().await;
    write.send(TestRequest::command(ADD).body(add_body("ann", "bob")).bytes()).await;
    chat.wait_for_calls(1).await;
    // The write is not acknowledged yet, so the old state is still valid.
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
    gate.open();
    assert_eq!(write.read_response().await.status, 200);
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [2]);
}

#[tokio::test]
async fn abandoned_write_continues_and_invalidates_its_pairs() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
    let gate = Gate::closed();
    let script_gate = gate.clone();
    chat.script(move |call| (call.command() == ADD).then(|| Reply::from_graph().after(&script_gate)));
    let mut write = gateway.connect().await;
    write.send(TestRequest::command(ADD).body(add_body("ann", "bob")).bytes()).await;
    eventually("the write is upstream", async || (!chat.calls_of(ADD).is_empty()).then_some(())).await;
    drop(write);
    gateway.wait_for_no_connections().await;
    // A pair that is fetched before Chat carries out the write must not stay cached.
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
    gate.open();
    eventually("the write is seen", async || {
        (gateway.check("ann", &["bob"]).await.follow_types() == [2]).then_some(())
    })
    .await;
    assert_eq!(gateway.check("bob", &["ann"]).await.follow_types(), [1]);
    assert_eq!(chat.calls_of(ADD).len(), 1, "the write is sent once");
}

#[tokio::test]
async fn abandoned_write_is_sent_whole_or_not_at_all() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for round in 0..20 {
        let mut write = gateway.connect().await;
        write.send(TestRequest::command(ADD).body(add_body(&format!("ann{round}"), "bob")).bytes()).await;
        drop(write);
    }
    gateway.round_trips().await;
    eventually("no call is in flight", async || {
        let before = chat.call_count();
        gateway.round_trips().await;
        (chat.call_count() == before).then_some(())
    })
    .await;
    for round in 0..20 {
        let from = format!("ann{round}");
        let expected = chat.graph().follow_type(MAIN.sdkappid, &from, "bob");
        assert_eq!(gateway.check(&from, &["bob"]).await.follow_types(), [expected]);
        let sent = chat.calls_of(ADD).iter().filter(|call| call.source_account() == from).count();
        assert_eq!(sent, usize::from(expected == 2), "{from}");
    }
}

#[tokio::test]
async fn ambiguous_write_invalidates_the_user_or_the_app() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let all_of_ann = [
        (ADD, r#"{"From_Account":"ann","FollowItem":"what"}"#),
        (ADD, r#"{"From_Account":"ann"}"#),
        (ADD, r#"{"From_Account":"ann","FollowItem":[{"To_Account":7}]}"#),
        (ADD, r#"{"From_Account":"ann","FollowItem":[{"To_Account":"x","To_Account":"bob"}]}"#),
        (ADD, r#"{"From_Account":"ann","FollowItem":[["bob"]]}"#),
        (DELETE, r#"{"From_Account":"ann","To_Account":{"0":"bob"}}"#),
        (DELETE, r#"{"From_Account":"ann","To_Account":["bob",null]}"#),
    ];
    for (command, body) in all_of_ann {
        gateway.check("ann", &["bob"]).await.items();
        gateway.check("cyd", &["dan"]).await.items();
        eventually("both pairs are cached", async || {
            gateway.check("ann", &["bob"]).await.items();
            (is_cached(&gateway, "ann", "bob").await && is_cached(&gateway, "cyd", "dan").await).then_some(())
        })
        .await;
        let response = gateway.call(command, body).await;
        if response.slug() == Some("bad_json") {
            // Rejected for a duplicate member: the write was not sent and changed nothing.
            assert_ne!(chat.last_call().command(), command, "{body}");
            continue;
        }
        assert_eq!(response.slug(), None, "relayed: {body}");
        assert_eq!(chat.last_call().body, body.as_bytes());
        assert!(!is_cached(&gateway, "ann", "bob").await && !is_cached(&gateway, "bob", "ann").await, "{body}");
        assert!(is_cached(&gateway, "cyd", "dan").await, "another user's pair: {body}");
    }
    let whole_app = [
        (ADD, "{}"),
        (ADD, r#"{"From_Account":7,"FollowItem":[{"To_Account":"bob"}]}"#),
        (DELETE, r#"{"from_account":"ann","To_Account":["bob"]}"#),
        (ACCOUNT_DELETE, r#"{"DeleteItem":["ann"]}"#),
        (ACCOUNT_DELETE, r#"{"DeleteItem":[{"UserID":null}]}"#),
        (ACCOUNT_DELETE, "{}"),
    ];
    for (command, body) in whole_app {
        eventually("both pairs are cached", async || {
            gateway.check("ann", &["bob"]).await.items();
            gateway.check("cyd", &["dan"]).await.items();
            (is_cached(&gateway, "ann", "bob").await && is_cached(&gateway, "cyd", "dan").await).then_some(())
        })
        .await;
        assert_eq!(gateway.call(command, body).await.slug(), None, "relayed: {body}");
        assert!(!is_cached(&gateway, "ann", "bob").await && !is_cached(&gateway, "cyd", "dan").await, "{body}");
    }
}

#[tokio::test]
async fn written_pairs_are_not_cached_during_write_settle() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("cache", r#"ttl = "1h""#).set("cache", r#"write_settle = "2s""#);
    let gateway = setup.start().await;
    gateway.call(ADD, add_body("ann", "bob")).await;
    let answered = now();
    // Chat may show a write late, so a lookup right after it may return the earlier state.
    gateway.check("ann", &["bob", "cyd"]).await.items();
    let quick = answered.elapsed() < Duration::from_secs(1);
    let cached = is_cached(&gateway, "ann", "bob").await;
    assert!(!(quick && cached), "cached {:?} after the write", answered.elapsed());
    assert!(is_cached(&gateway, "ann", "cyd").await, "a pair that was not written is cached");
    eventually("the pair is cached again", async || {
        gateway.check("ann", &["bob"]).await.items();
        is_cached(&gateway, "ann", "bob").await.then_some(())
    })
    .await;
    assert!(answered.elapsed() >= Duration::from_millis(1900), "cached after {:?}", answered.elapsed());
    assert!(answered.elapsed() < Duration::from_secs(8), "cached only after {:?}", answered.elapsed());
}

#[tokio::test]
async fn other_commands_are_never_cached_and_invalidate_nothing() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await.items();
    for round in 1..=3 {
        let body = check_body("ann", &["zoe"]);
        gateway.call("follow/follow_get_info", &body).await.assert_relayed(200, OK);
        gateway.call("sns/friend_add", &body).await.assert_relayed(200, write_response("sns/friend_add", &body));
        assert_eq!(chat.calls_of("follow/follow_get_info").len(), round);
    }
    assert!(is_cached(&gateway, "ann", "bob").await);
}

#[tokio::test]
async fn late_write_is_eventually_visible() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("cache", r#"ttl = "1h""#).set("cache", r#"write_settle = "0s""#);
    let gateway = setup.timeout("1s").start().await;
    chat.script(|call| (call.command() == "follow/follow_add").then(Reply::hang));
    let add = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#;
    gateway.call("follow/follow_add", add).await.assert_error(504, "upstream_timeout", 60008);
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
    assert_eq!(gateway.check("ann", &["bob"]).await.cache_status().counts(), (1, 0, 0), "the old state is cached");
    chat.follow("ann", "bob");
    eventually("the write is seen", async || {
        (gateway.check("ann", &["bob"]).await.follow_types() == [2]).then_some(())
    })
    .await;
}
