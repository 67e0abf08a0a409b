//! Calls that equal cached reads share while they wait: for a permit, for another attempt, and after a failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::reads::{GET, SET, get, hold_reads, profiles, send, setup};
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::eventually;
use crate::support::graph::error_response;
use crate::support::reply::{Gate, Reply};

const FEED: &str = "a.token~of~marked~letters+for/the/feed/of/shared/reads==";
const JOB: &str = "a.token~of~marked~letters+for/the/job/of/shared/reads==";

fn numbered(number: u32) -> String {
    format!("{{\"n\":{number}}}")
}

#[tokio::test]
async fn request_after_a_write_and_one_for_a_fresh_response_share_a_queued_call() {
    let chat = FakeChat::start().await;
    let (version, gate) = (Arc::<AtomicU64>::default(), Gate::closed());
    chat.script({
        let gate = gate.clone();
        move |call| match call.command() {
            GET if call.body == b"{}" => Some(Reply::json(profiles(version.load(Ordering::SeqCst)))),
            GET => Some(Reply::json(profiles(9)).after(&gate)),
            _ => {
                version.fetch_add(1, Ordering::SeqCst);
                None
            }
        }
    });
    let quota = format!("commands = {{ \"{GET}\" = \"1/s\" }}");
    let gateway = setup(&chat, &[GET]).set("app.quota", &quota).timeout("60s").start().await;
    let mut ahead = Vec::new();
    for number in 0..9 {
        ahead.push(send(&gateway, TestRequest::command(GET).body(numbered(number))).await);
    }
    gateway.wait_for_in_flight(9).await;
    let mut before = send(&gateway, TestRequest::command(GET)).await;
    gateway.wait_for_in_flight(10).await;
    assert_eq!(gateway.call(SET, "{}").await.status, 200);
    let mut after = send(&gateway, TestRequest::command(GET)).await;
    let mut fresh = send(&gateway, get("no-cache")).await;
    gateway.wait_for_in_flight(12).await;
    // Calls that no request waits for are not made, so the shared call is next.
    drop(ahead);
    let mut sources = Vec::new();
    for conn in [&mut before, &mut after, &mut fresh] {
        let response = conn.read_response().await;
        response.assert_relayed(200, profiles(1));
        sources.push(response.cache_status().counts());
    }
    assert_eq!(sources, [(0, 0, 1), (0, 1, 0), (0, 1, 0)]);
    assert_eq!(chat.calls_of(GET).iter().filter(|call| call.body == b"{}").count(), 1);
    gateway.send(get("only-if-cached")).await.assert_relayed(200, profiles(1));
    gate.open();
}

#[tokio::test]
async fn requests_whose_shared_call_runs_out_of_time_share_the_next_one() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, &[GET]).timeout("6s").start().await;
    let gate = hold_reads(&chat);
    // When this request has its response, 3 s of the call are over, so later requests outlive the call.
    let short = TestRequest::command(GET).header("Chatgate-Timeout", "3s");
    gateway.send(short).await.assert_error(504, "upstream_timeout", 60008);
    let mut conns = Vec::new();
    for _ in 0..10 {
        conns.push(send(&gateway, TestRequest::command(GET)).await);
    }
    gateway.wait_for_in_flight(10).await;
    assert_eq!(chat.call_count(), 1, "they have joined the call");
    chat.wait_for_calls(2).await;
    gate.open();
    let mut fetched = 0;
    for mut conn in conns {
        let response = conn.read_response().await;
        response.assert_relayed(200, profiles(0));
        fetched += response.cache_status().fetched;
    }
    assert_eq!((fetched, chat.call_count()), (1, 2), "one of them makes a call for all");
}

#[tokio::test]
async fn call_of_a_batch_caller_is_tried_again_for_an_interactive_request_that_joined_it() {
    let chat = FakeChat::start().await;
    let setup = setup(&chat, &[GET]).set("upstream", "max_in_flight = 1").timeout("60s");
    let setup = setup.caller("feed", FEED, "allow = ['*']").caller("job", JOB, "allow = ['*']\nclass = 'batch'");
    let gateway = setup.start().await;
    let (first, second, is_first) = (Gate::closed(), Gate::closed(), Arc::new(AtomicBool::new(true)));
    chat.script({
        let (first, second) = (first.clone(), second.clone());
        move |call| {
            let body = String::from_utf8_lossy(&call.body).into_owned();
            Some(match body.as_str() {
                "{}" if is_first.swap(false, Ordering::SeqCst) => {
                    Reply::json(error_response(70001, "expired")).after(&first)
                }
                _ => Reply::json(profiles(0)).after(&second),
            })
        }
    });
    let mut job = send(&gateway, TestRequest::command(GET).token(JOB)).await;
    chat.wait_for_calls(1).await;
    let mut feed = send(&gateway, TestRequest::command(GET).token(FEED)).await;
    gateway.wait_for_in_flight(2).await;
    let mut others = Vec::new();
    for number in 1..3 {
        others.push(send(&gateway, TestRequest::command(GET).body(numbered(number)).token(FEED)).await);
    }
    // A call gets its connection before it waits for room in flight.
    eventually("the others are ready", async || (chat.accepted_connections() >= 3).then_some(())).await;
    first.open();
    // One of the others has the room of the first call, which waits for its second attempt.
    chat.wait_for_calls(2).await;
    others.push(send(&gateway, TestRequest::command(GET).body(numbered(3)).token(FEED)).await);
    eventually("the last is ready", async || (chat.accepted_connections() >= 4).then_some(())).await;
    second.open();
    for conn in [&mut job, &mut feed] {
        conn.read_response().await.assert_relayed(200, profiles(0));
    }
    for mut conn in others {
        assert_eq!(conn.read_response().await.status, 200);
    }
    // Among the batch callers it would have been the last.
    assert_eq!((chat.call_count(), chat.last_call().body), (5, numbered(3).into_bytes()));
}
