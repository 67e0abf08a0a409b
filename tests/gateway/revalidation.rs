//! `cache.stale_while_revalidate`: pairs past their ttl answer at once and are refreshed in the background.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::exposition::Exposition;
use crate::support::gateway::Gateway;
use crate::support::graph::error_response;
use crate::support::reply::{Gate, Reply};
use crate::support::response::Response;
use crate::support::setup::Setup;
use crate::support::{eventually, turn};

const ADD: &str = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#;

/// A setup whose pairs are past their ttl after 20 ms.
fn setup(chat: &FakeChat) -> Setup {
    let setup = Setup::new(chat).set("cache", r#"ttl = "20ms""#).set("cache", r#"write_settle = "0s""#);
    setup.set("cache", r#"stale_while_revalidate = "1h""#)
}

async fn gateway(chat: &FakeChat) -> Gateway {
    setup(chat).start().await
}

/// Checks whether ann follows bob until the answer is past its ttl.
async fn check_until_stale(gateway: &Gateway) -> Response {
    eventually("a stale answer", async || {
        let response = gateway.check("ann", &["bob"]).await;
        (response.cache_status().stale == 1).then_some(response)
    })
    .await
}

/// Returns Chat's response that ann does not follow bob, whatever the graph says.
fn no_relation() -> Reply {
    let item = r#"{"To_Account":"bob","ResultCode":0,"ResultInfo":"","FollowType":0}"#;
    Reply::json(format!(r#"{{"ResultItem":[{item}],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":""}}"#))
}

#[tokio::test]
async fn stale_pair_answers_at_once_and_is_refreshed_once() {
    let (chat, gate) = (FakeChat::start().await, Gate::closed());
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await;
    chat.follow("ann", "bob");
    let script_gate = gate.clone();
    chat.script(move |_| Some(Reply::from_graph().after(&script_gate)));
    let response = check_until_stale(&gateway).await;
    assert_eq!((response.follow_types(), response.cache_status().outcome.as_str()), (vec![0], "hit"));
    chat.wait_for_calls(2).await;
    // Chat does not answer, and no request waits for it or causes another call.
    for (from, to) in [("ann", "bob"), ("bob", "ann"), ("ann", "bob")] {
        let response = gateway.check(from, &[to]).await;
        assert_eq!((response.follow_types(), response.cache_status().stale), (vec![0], 1));
    }
    assert_eq!(chat.call_count(), 2);
    gate.open();
    eventually("the refreshed pair", async || {
        (gateway.check("ann", &["bob"]).await.follow_types() == [2]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn refresh_sent_before_a_write_answers_no_request() {
    let (chat, gate) = (FakeChat::start().await, Gate::closed());
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await;
    let (script_gate, checks) = (gate.clone(), AtomicUsize::new(0));
    chat.script(move |call| {
        let is_refresh = call.command() == "follow/follow_check" && checks.fetch_add(1, Ordering::SeqCst) == 0;
        is_refresh.then(|| no_relation().after(&script_gate))
    });
    check_until_stale(&gateway).await;
    chat.wait_for_calls(2).await;
    chat.follow("ann", "bob");
    gateway.call("follow/follow_add", ADD).await;
    // Neither the stale pair nor the refresh under way answers.
    let response = gateway.check("ann", &["bob"]).await;
    assert_eq!((response.follow_types(), response.cache_status().counts()), (vec![2], (0, 0, 1)));
    gate.open();
    for _ in 0..5 {
        gateway.round_trips().await;
        assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [2]);
    }
}

#[tokio::test]
async fn requests_for_current_data_get_no_stale_pair() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await;
    check_until_stale(&gateway).await;
    for control in ["no-cache", "no-store", "max-age=0", "max-stale=0"] {
        let response = gateway.send(TestRequest::check("ann", &["bob"]).header("Cache-Control", control)).await;
        assert_eq!(response.cache_status().stale, 0, "{control}: {response:?}");
    }
    let cached = TestRequest::check("ann", &["cyd"]).header("Cache-Control", "only-if-cached");
    gateway.send(cached).await.assert_error(504, "not_cached", 129_504);
    check_until_stale(&gateway).await;
    let calls = chat.call_count();
    let cached = TestRequest::check("ann", &["bob"]).header("Cache-Control", "only-if-cached");
    assert_eq!(gateway.send(cached).await.status, 200, "a pair that answers others answers it too");
    assert!(chat.call_count() <= calls + 1, "it causes no refresh");
}

#[tokio::test]
async fn failed_refresh_is_repeated() {
    let (chat, is_failing) = (FakeChat::start().await, Arc::new(AtomicBool::new(true)));
    let gateway = setup(&chat).set("upstream", "attempts = 1").start().await;
    gateway.check("ann", &["bob"]).await;
    chat.follow("ann", "bob");
    let fails = Arc::clone(&is_failing);
    chat.script(move |_| fails.load(Ordering::SeqCst).then(Reply::reset));
    check_until_stale(&gateway).await;
    eventually("a failed refresh", async || {
        let metrics = gateway.admin_get("/metrics").await.text();
        (Exposition::parse(&metrics).sum("chatgate_upstream_calls_total", &[]) > 1.0).then_some(())
    })
    .await;
    is_failing.store(false, Ordering::SeqCst);
    eventually("the refreshed pair", async || {
        (gateway.check("ann", &["bob"]).await.follow_types() == [2]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn refresh_is_tried_again_for_a_request_that_has_joined_it() {
    let (chat, gate) = (FakeChat::start().await, Gate::closed());
    let gateway = setup(&chat).set("upstream", "attempts = 2").start().await;
    gateway.check("ann", &["bob"]).await;
    let (script_gate, calls) = (gate.clone(), AtomicUsize::new(0));
    chat.script(move |_| {
        let is_first = calls.fetch_add(1, Ordering::SeqCst) == 0;
        is_first.then(|| Reply::json(error_response(60007, "too many")).after(&script_gate))
    });
    check_until_stale(&gateway).await;
    chat.wait_for_calls(2).await;
    // Joins the refresh: without a stale pair, it waits for the result.
    let mut waiting = gateway.connect().await;
    waiting.send(TestRequest::check("ann", &["bob"]).header("Cache-Control", "max-stale=0").bytes()).await;
    gateway.wait_for_in_flight(1).await;
    gate.open();
    assert_eq!(waiting.read_response().await.follow_types(), [0], "not the error of the first attempt");
    assert_eq!(chat.call_count(), 3);
}

#[tokio::test]
async fn queued_refreshes_do_not_delay_the_exit() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let setup = setup(&chat).set("server", r#"drain_timeout = "4s""#).set("app.quota", r#"per_command = "200/s""#);
    // Each pair needs a call of its own.
    let setup = setup.set("follow_check", "flip = false");
    let text = setup.text();
    let mut gateway = setup.start().await;
    let users: Vec<String> = (0..10).map(|number| format!("user{number}")).collect();
    for user in &users {
        gateway.check(user, &["bob"]).await;
    }
    std::fs::write(gateway.dir().join("chatgate.toml"), text.replace("200/s", "1/s")).expect("own directory");
    assert_eq!(gateway.send_to_admin(TestRequest::post("/reload")).await.text(), "reloaded\n");
    for user in &users {
        eventually("a stale answer", async || {
            (gateway.check(user, &["bob"]).await.cache_status().stale == 1).then_some(())
        })
        .await;
    }
    gateway.signal("TERM");
    assert_eq!(gateway.exit_code_within(Duration::from_secs(8)).await, 0, "{}", gateway.log());
}
