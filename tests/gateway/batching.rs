//! Queued lookups: they are batched, an error stays with its own caller, and callers are served round-robin.
//!
//! `max_in_flight` is 1 and the test holds that one call, so all other lookups queue up. The tests need no timing.

use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::eventually;
use crate::support::exposition::Exposition;
use crate::support::gateway::Gateway;
use crate::support::graph::error_response;
use crate::support::h2::Http2;
use crate::support::reply::{Gate, Reply};
use crate::support::response::Response;
use crate::support::setup::Setup;

/// Starts a gateway with one in-flight slot, taken by a lookup that waits at the gate.
async fn saturated_gateway(chat: &FakeChat, gate: &Gate, follow_check: &str) -> (Gateway, Conn) {
    let setup = Setup::new(chat).set("upstream", "max_in_flight = 1").timeout("15s");
    let gateway = setup.set("follow_check", follow_check).start().await;
    let script_gate = gate.clone();
    chat.script(move |call| (call.source_account() == "first").then(|| Reply::from_graph().after(&script_gate)));
    let mut first = gateway.connect().await;
    first.send(TestRequest::check("first", &["second"]).bytes()).await;
    chat.wait_for_calls(1).await;
    (gateway, first)
}

/// Sends a check for each pair on its own connection, opens the gate once all are queued, and returns the responses.
async fn check_all(gateway: &Gateway, gate: &Gate, pairs: &[(String, String)]) -> Vec<Response> {
    let mut conns = Vec::new();
    for (from, to) in pairs {
        let mut conn = gateway.connect().await;
        conn.send(TestRequest::check(from, &[to]).bytes()).await;
        conns.push(conn);
    }
    eventually("all pairs are queued", async || {
        let seen = Exposition::parse(&gateway.admin_get("/metrics").await.text());
        (seen.sum("chatgate_pairs_queued", &[]) == pairs.len() as f64).then_some(())
    })
    .await;
    gate.open();
    let mut responses = Vec::new();
    for mut conn in conns {
        responses.push(conn.read_response().await);
    }
    responses
}

fn fans(count: usize) -> Vec<(String, String)> {
    (0..count).map(|n| (format!("fan{n:03}"), "star".to_owned())).collect()
}

#[tokio::test]
async fn lookups_of_one_user_are_flipped_into_full_batches() {
    let chat = FakeChat::start().await;
    let gate = Gate::closed();
    let (gateway, mut first) = saturated_gateway(&chat, &gate, "flip = true").await;
    for n in (0..150).step_by(3) {
        chat.follow(&format!("fan{n:03}"), "star");
    }
    let responses = check_all(&gateway, &gate, &fans(150)).await;
    for (n, response) in responses.iter().enumerate() {
        assert_eq!(response.follow_types(), [if n % 3 == 0 { 2 } else { 0 }], "fan {n}");
    }
    assert!(responses.iter().all(|response| response.cache_status().counts() == (0, 0, 1)));
    assert!(responses.iter().filter(|response| response.cache_status().flipped == 1).count() >= 140);
    first.read_response().await.follow_types();
    let calls = chat.calls();
    // 150 pairs fill two calls. Pairs that arrived late or were sent early may need a few more.
    assert!(calls.len() <= 5, "{} calls", calls.len());
    let fullest = calls.iter().max_by_key(|call| call.to_accounts().len()).expect("calls");
    assert_eq!((fullest.source_account().as_str(), fullest.to_accounts().len()), ("star", 100));
}

#[tokio::test]
async fn flip_disabled_keeps_each_lookup_as_requested() {
    let chat = FakeChat::start().await;
    let gate = Gate::closed();
    let (gateway, _first) = saturated_gateway(&chat, &gate, "flip = false").await;
    let responses = check_all(&gateway, &gate, &fans(12)).await;
    assert!(responses.iter().all(|response| response.follow_types() == [0] && response.cache_status().flipped == 0));
    let calls = chat.calls();
    assert_eq!(calls.len(), 13);
    assert!(calls[1..].iter().all(|call| call.to_accounts() == ["star"]));
}

#[tokio::test]
async fn bad_account_in_batch_fails_only_its_own_request() {
    let chat = FakeChat::start().await;
    let gate = Gate::closed();
    let (gateway, _first) = saturated_gateway(&chat, &gate, "flip = true").await;
    let script_gate = gate.clone();
    let error = error_response(30003, "no such account");
    let error_alone = error.clone();
    chat.script(move |call| {
        let bad = call.source_account() == "bad" || call.to_accounts().iter().any(|to| to == "bad");
        if bad {
            return Some(Reply::json(error.clone()));
        }
        (call.source_account() == "first").then(|| Reply::from_graph().after(&script_gate))
    });
    let mut pairs = fans(50);
    pairs[20].0 = "bad".to_owned();
    let responses = check_all(&gateway, &gate, &pairs).await;
    for (n, response) in responses.iter().enumerate() {
        if n == 20 {
            response.assert_relayed(200, &error_alone);
        } else {
            assert_eq!(response.follow_types(), [0], "fan {n}");
        }
    }
    let batched = chat.calls().iter().filter(|call| call.to_accounts().len() > 1).count();
    assert!(batched >= 1, "no call was shared, so the test proves nothing");
    // The error is not cached.
    gateway.check("bad", &["star"]).await.assert_relayed(200, &error_alone);
}

/// Lets one caller keep a hundred requests in flight, and returns the responses to five sequential requests of another.
async fn few_during_flood(
    chat: &FakeChat,
    gateway: &Gateway,
    request_of: impl Fn(&str, usize) -> TestRequest,
) -> Vec<Response> {
    let flood = Http2::open(gateway.address()).await;
    let requests: Vec<_> = (0..100)
        .map(|n| {
            let flood = flood.clone();
            let requests: Vec<TestRequest> = (0..200).map(|round| request_of("many", n + 100 * round)).collect();
            tokio::spawn(async move {
                for request in requests {
                    if flood.request(&request).await.status != 200 {
                        // A client backs off briefly after a rejection.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            })
        })
        .collect();
    // The flood is running before the other caller connects.
    chat.wait_for_calls(2).await;
    gateway.round_trips().await;
    let mut conn = gateway.connect().await;
    let mut responses = Vec::new();
    for n in 0..5 {
        responses.push(conn.request(&request_of("few", n)).await);
    }
    requests.iter().for_each(tokio::task::JoinHandle::abort);
    responses
}

#[tokio::test]
async fn flood_of_lookups_does_not_starve_another_caller() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("app.quota", r#"per_command = "5/s""#).timeout("4s");
    let gateway = setup.start().await;
    let responses = few_during_flood(&chat, &gateway, |caller, n| {
        TestRequest::check(&format!("{caller}{n}"), &[format!("to-{caller}{n}")])
    })
    .await;
    assert!(responses.iter().all(|response| response.follow_types() == [0]));
}

#[tokio::test]
async fn flood_of_relayed_calls_does_not_starve_another_caller() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("app.quota", r#"per_command = "5/s""#).timeout("4s");
    let gateway = setup.start().await;
    let responses = few_during_flood(&chat, &gateway, |_, _| TestRequest::command("openim/querystate")).await;
    assert!(responses.iter().all(|response| response.status == 200), "{responses:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn queued_lookups_use_no_cpu() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("app.quota", r#"per_command = "1/s""#).timeout("4s");
    let gateway = setup.start().await;
    // Thirty lookups of unrelated pairs at one call per second: no two can share a call.
    let mut conns = Vec::new();
    for n in 0..30 {
        let mut conn = gateway.connect().await;
        conn.send(TestRequest::check(&format!("a{n}"), &[format!("b{n}")]).bytes()).await;
        conns.push(conn);
    }
    let before = gateway.cpu_ticks();
    let mut served = 0;
    for mut conn in conns {
        let response = conn.read_response().await;
        match response.status {
            200 => served += 1,
            _ => response.assert_error(429, "rate_limited", 60007),
        }
    }
    // Four seconds are 400 ticks. The work itself takes a few.
    let used = gateway.cpu_ticks() - before;
    assert!(used < 100, "{used} ticks of CPU time spent waiting");
    assert!((3..=5).contains(&served), "{served} served in 4 s at one per second");
}
