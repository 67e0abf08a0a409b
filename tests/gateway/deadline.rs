//! The caller's own deadline, and partial answers at it.

use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::graph::OK;
use crate::support::reply::{Gate, Reply};
use crate::support::response::Response;
use crate::support::setup::{Setup, gateway};
use crate::support::{eventually, now};

const CALL: &str = "openim/querystate";
const WRITE: &str = "follow/follow_add";
/// Well above any of the deadlines below and well below `upstream.timeout`: no caller waits for it.
const LONG: Duration = Duration::from_secs(20);

fn partial(from: &str, to: &[&str], timeout: &str) -> TestRequest {
    TestRequest::check(from, to).header("Chatgate-Timeout", timeout).header("Chatgate-Partial", "1")
}

/// Returns account, ResultCode, and FollowType of each item, after a check of the vendor's members.
fn items(response: &Response) -> Vec<(String, i64, i64)> {
    assert_eq!((response.status, response.slug()), (200, None), "{response:?}");
    let json = response.json();
    assert_eq!((&json["ErrorCode"], &json["ActionStatus"]), (&0.into(), &"OK".into()), "{response:?}");
    let items = json["ResultItem"].as_array().expect("items");
    let read = |item: &serde_json::Value| {
        assert_eq!(item.as_object().map(serde_json::Map::len), Some(4), "{item}");
        assert!(item["ResultInfo"].is_string(), "{item}");
        let number = |name: &str| item[name].as_i64().expect("a number");
        (item["To_Account"].as_str().expect("a name").to_owned(), number("ResultCode"), number("FollowType"))
    };
    items.iter().map(read).collect()
}

#[tokio::test]
async fn callers_deadline_ends_reads_and_is_at_most_the_configured_one() {
    let chat = FakeChat::start().await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let gateway = Setup::new(&chat).timeout("60s").start().await;
    let begin = now();
    for request in [TestRequest::command(CALL), TestRequest::check("ann", &["bob"])] {
        let response = gateway.send(request.header("Chatgate-Timeout", "300ms")).await;
        response.assert_error(504, "upstream_timeout", 60008);
    }
    assert!(now() - begin < LONG);
    let short = Setup::new(&chat).timeout("200ms").start().await;
    let response = short.send(TestRequest::command(CALL).header("Chatgate-Timeout", "50s")).await;
    response.assert_error(504, "upstream_timeout", 60008);
    assert!(now() - begin < LONG);
    for bad in ["0s", "300", "soon", ""] {
        let response = gateway.send(TestRequest::command(CALL).header("Chatgate-Timeout", bad)).await;
        response.assert_error(400, "bad_parameter", 30001);
        assert!(response.text().contains("Chatgate-Timeout"), "{response:?}");
    }
    gate.open();
}

#[tokio::test]
async fn write_that_has_left_is_not_broken_off() {
    let chat = FakeChat::start().await;
    let gate = Gate::closed();
    chat.script({
        let gate = gate.clone();
        move |call| (call.command() == WRITE).then(|| Reply::from_graph().after(&gate))
    });
    let gateway = Setup::new(&chat).timeout("60s").start().await;
    let body = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#;
    let write = TestRequest::command(WRITE).body(body).header("Chatgate-Timeout", "200ms");
    gateway.send(write).await.assert_error(504, "upstream_timeout", 60008);
    assert_eq!(chat.call_count(), 1);
    let succeeded = r#"chatgate_upstream_calls_total{app="main",command="follow/follow_add",error_code="0"} 1"#;
    assert!(!gateway.admin_get("/metrics").await.text().contains(succeeded), "it has not ended");
    gate.open();
    eventually("the write ends with its response", async || {
        gateway.admin_get("/metrics").await.text().contains(succeeded).then_some(())
    })
    .await;
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [2], "its end is a write like any other");
}

#[tokio::test]
async fn partial_answer_has_what_is_known_and_the_lookup_continues() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).timeout("60s").start().await;
    let names: Vec<String> = (0..30).map(|number| format!("user{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.iter().for_each(|name| chat.follow("ann", name));
    gateway.check("ann", &names[..27]).await.items();
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let begin = now();
    let response = gateway.send(partial("ann", &names, "300ms")).await;
    assert!(now() - begin < LONG);
    for (index, (name, code, follow_type)) in items(&response).into_iter().enumerate() {
        let expected = if index < 27 { (0, 2) } else { (60008, 0) };
        assert_eq!((&*name, (code, follow_type)), (names[index], expected));
    }
    let status = response.header("cache-status").expect("a header").to_owned();
    assert_eq!(status, r#"chatgate; fwd=partial; detail="hit=27 joined=0 fetched=0 flipped=0 stale=0 missing=3""#);
    gate.open();
    eventually("the lookup is kept", async || {
        let only_cached = TestRequest::check("ann", &names).header("Cache-Control", "only-if-cached");
        (gateway.send(only_cached).await.status == 200).then_some(())
    })
    .await;
    let response = gateway.check("ann", &names).await;
    assert_eq!((response.follow_types(), response.cache_status().counts()), (vec![2; 30], (30, 0, 0)));
    assert_eq!(chat.calls_of("follow/follow_check").len(), 2, "one before, and one for the missing pairs");
}

#[tokio::test]
async fn pairs_looked_up_before_the_early_answer_of_a_write_are_void_after_it() {
    let chat = FakeChat::start().await;
    let gate = Gate::closed();
    chat.script({
        let gate = gate.clone();
        move |call| (call.command() == WRITE).then(|| Reply::from_graph().after(&gate))
    });
    let gateway = Setup::new(&chat).timeout("60s").set("cache", r#"write_settle = "0s""#).start().await;
    let body = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#;
    let mut conn = gateway.connect().await;
    conn.send(TestRequest::command(WRITE).body(body).header("Chatgate-Timeout", "4s").bytes()).await;
    chat.wait_for_calls(1).await;
    let cached = || TestRequest::check("ann", &["bob"]).header("Cache-Control", "only-if-cached");
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0], "Chat has not applied the write yet");
    assert_eq!(gateway.send(cached()).await.follow_types(), [0]);
    conn.read_response().await.assert_error(504, "upstream_timeout", 60008);
    gateway.send(cached()).await.assert_error(504, "not_cached", 129_504);
    gate.open();
}

#[tokio::test]
async fn partial_answer_has_the_results_of_calls_that_have_ended() {
    let chat = FakeChat::start().await;
    let gate = Gate::closed();
    chat.script({
        let gate = gate.clone();
        move |call| String::from_utf8_lossy(&call.body).contains("\"last\"").then(|| Reply::from_graph().after(&gate))
    });
    let gateway = Setup::new(&chat).timeout("60s").start().await;
    let names: Vec<String> = (0..249).map(|number| format!("user{number}")).chain(["last".to_owned()]).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.iter().for_each(|name| chat.follow("ann", name));
    // With `no-store` the results are known to the request alone.
    for cache_control in ["no-store", "max-age=30"] {
        let response = gateway.send(partial("ann", &names, "4s").header("Cache-Control", cache_control)).await;
        let (known, missing): (Vec<_>, Vec<_>) = items(&response).into_iter().partition(|(_, code, _)| *code == 0);
        assert!(known.iter().all(|(_, _, follow_type)| *follow_type == 2), "{known:?}");
        assert!(missing.iter().all(|(_, code, follow_type)| (*code, *follow_type) == (60008, 0)), "{missing:?}");
        assert!((1..=100).contains(&missing.len()), "{cache_control}: {missing:?}");
        assert!(missing.iter().any(|(name, ..)| name == "last"), "{missing:?}");
    }
    gate.open();
}

#[tokio::test]
async fn forecast_beyond_the_deadline_answers_at_once() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).timeout("60s").set("app.quota", r#"per_command = "1/s""#);
    let gateway = setup.start().await;
    let mut tries = 0;
    eventually("three requests within the interval of two calls", async || {
        tries += 1;
        let (cat, begin) = (format!("cat{tries}"), now());
        gateway.send(TestRequest::check("ann", &["bob"]).header("Cache-Control", "no-cache")).await.items();
        let calls = chat.call_count();
        let response = gateway.send(partial("ann", &["bob", &cat], "500ms")).await;
        let refused = gateway.send(TestRequest::check("ann", &[&cat]).header("Chatgate-Timeout", "500ms")).await;
        if now() - begin > Duration::from_millis(450) {
            return None;
        }
        assert_eq!(items(&response), [("bob".to_owned(), 0, 0), (cat, 60007, 0)]);
        refused.assert_error(429, "rate_limited", 60007);
        assert_eq!(chat.call_count(), calls);
        Some(())
    })
    .await;
}

#[tokio::test]
async fn other_failures_are_answered_as_without_the_header() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    chat.reply_always(Reply::status(200, r#"{"ActionStatus":"FAIL","ErrorCode":30004,"ErrorInfo":"x"}"#));
    let plain = gateway.check("ann", &["bob"]).await;
    let response = gateway.send(partial("ann", &["bob"], "30s")).await;
    assert_eq!((response.status, response.text()), (plain.status, plain.text()));
    chat.clear_script();
    gateway.send(TestRequest::command(CALL).header("Chatgate-Partial", "1")).await.assert_relayed(200, OK);
    let cached = partial("ann", &["cat"], "30s").header("Cache-Control", "only-if-cached");
    gateway.send(cached).await.assert_error(504, "not_cached", 129_504);
}
