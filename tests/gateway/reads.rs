//! `[cache.commands]`: reads other than checks, answered from a cache of whole responses and from shared calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::app::{MAIN, OTHER};
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::graph::error_response;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;

pub(crate) const GET: &str = "profile/portrait_get";
pub(crate) const SET: &str = "profile/portrait_set";

/// Returns Chat's response with the profiles of a version.
pub(crate) fn profiles(version: u64) -> String {
    format!(
        r#"{{"UserProfileItem":[{{"To_Account":"ann","ProfileItem":[{{"Tag":"v","Value":{version}}}],"ResultCode":0,"ResultInfo":""}}],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}}"#
    )
}

/// Profiles that each `portrait_set` changes when it arrives. A read sees the version at its arrival.
pub(crate) fn serve_profiles(chat: &FakeChat) -> Arc<AtomicU64> {
    let version = Arc::<AtomicU64>::default();
    let script = Arc::clone(&version);
    chat.script(move |call| match call.command() {
        GET => Some(Reply::json(profiles(script.load(Ordering::SeqCst)))),
        SET => {
            script.fetch_add(1, Ordering::SeqCst);
            None
        }
        _ => None,
    });
    version
}

/// Returns the setup of a gateway that caches these commands for an hour.
pub(crate) fn setup(chat: &FakeChat, commands: &[&str]) -> Setup {
    let entries: Vec<_> = commands.iter().map(|command| format!("\"{command}\" = \"1h\"")).collect();
    Setup::new(chat)
        .set("cache", &format!("commands = {{ {} }}", entries.join(", ")))
        .set("cache", r#"write_settle = "0s""#)
}

pub(crate) async fn gateway(chat: &FakeChat) -> Gateway {
    setup(chat, &[GET]).start().await
}

pub(crate) fn get(control: &str) -> TestRequest {
    TestRequest::command(GET).header("Cache-Control", control)
}

/// Returns the outcome in `Cache-Status`.
fn outcome(response: &crate::support::response::Response) -> String {
    response.cache_status().outcome
}

#[tokio::test]
async fn equal_request_is_answered_from_the_cache_byte_for_byte() {
    let chat = FakeChat::start().await;
    let version = serve_profiles(&chat);
    let lines = chat.app_lines();
    let setup = Setup::without_apps().app(MAIN, &format!("{lines}\ndefault = true")).app(OTHER, &lines);
    let gateway = setup.set("cache", &format!("commands = {{ \"{GET}\" = \"1h\" }}")).start().await;
    let body = r#"{ "To_Account":["ann"] }"#;
    let first = gateway.call(GET, body).await;
    first.assert_relayed(200, profiles(0));
    assert_eq!((outcome(&first).as_str(), first.cache_status().counts()), ("fwd=miss", (0, 0, 1)));
    version.store(1, Ordering::SeqCst);
    let second = gateway.call(GET, body).await;
    second.assert_relayed(200, profiles(0));
    assert_eq!((outcome(&second).as_str(), second.cache_status().counts()), ("hit", (1, 0, 0)));
    assert_eq!(second.header("content-type"), Some("application/json"));
    assert_eq!(second.header("chatgate-error-code"), Some("0"));
    assert!(second.age() < 3600);
    assert_eq!(chat.call_count(), 1);
    // Other bytes, and another app.
    gateway.call(GET, r#"{"To_Account":["ann"]}"#).await.assert_relayed(200, profiles(1));
    let other = TestRequest::command(GET).body(body).header("Chatgate-App", OTHER.name);
    gateway.send(other).await.assert_relayed(200, profiles(1));
    gateway.call("profile/portrait_get2", body).await;
    assert_eq!(chat.call_count(), 4);
}

#[tokio::test]
async fn failed_responses_and_items_are_not_kept() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, &[GET, "im_open_login_svc/account_check"]).start().await;
    let account = |status: &str| {
        format!(
            r#"{{"ResultItem":[{{"UserID":"ann","ResultCode":0,"ResultInfo":"","AccountStatus":"{status}"}}],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":""}}"#
        )
    };
    for (command, reply, keeps) in [
        (GET, Reply::json(error_response(40003, "no")), false),
        (GET, Reply::json(profiles(1).replace("\"ResultCode\":0", "\"ResultCode\":30003")), false),
        (GET, Reply::status(503, profiles(1)), false),
        (GET, Reply::json(profiles(1)), true),
        ("im_open_login_svc/account_check", Reply::json(account("NotImported")), false),
        ("im_open_login_svc/account_check", Reply::json(account("Imported")), true),
    ] {
        chat.reply_always(reply);
        let before = chat.call_count();
        let first = gateway.call(command, "{}").await;
        let second = gateway.call(command, "{}").await;
        assert_eq!((first.status, &first.body), (second.status, &second.body));
        assert_eq!(chat.call_count() - before, if keeps { 1 } else { 2 }, "{}", second.text());
    }
}

#[tokio::test]
async fn response_expires_after_its_ttl() {
    let chat = FakeChat::start().await;
    let version = serve_profiles(&chat);
    let gateway = Setup::new(&chat).set("cache", &format!("commands = {{ \"{GET}\" = \"400ms\" }}")).start().await;
    gateway.call(GET, "{}").await;
    version.store(1, Ordering::SeqCst);
    let response = eventually("the response expires", async || {
        Some(gateway.call(GET, "{}").await).filter(|response| outcome(response) != "hit")
    })
    .await;
    assert_eq!((outcome(&response).as_str(), response.text()), ("fwd=stale", profiles(1)));
}

#[tokio::test]
async fn cache_control_works_as_for_checks() {
    let chat = FakeChat::start().await;
    let version = serve_profiles(&chat);
    let gateway = gateway(&chat).await;
    gateway.send(get("only-if-cached")).await.assert_error(504, "not_cached", 129_504);
    gateway.send(get("no-store, only-if-cached")).await.assert_error(504, "not_cached", 129_504);
    let bypassed = gateway.send(get("no-store")).await;
    assert_eq!(bypassed.header("cache-status"), Some("chatgate; fwd=bypass"));
    gateway.send(get("only-if-cached")).await.assert_error(504, "not_cached", 129_504);
    gateway.send(get("")).await.assert_relayed(200, profiles(0));
    version.store(1, Ordering::SeqCst);
    gateway.send(get("only-if-cached")).await.assert_relayed(200, profiles(0));
    gateway.send(get("no-store")).await.assert_relayed(200, profiles(1));
    gateway.send(get("max-age=3600")).await.assert_relayed(200, profiles(0));
    let fresh = gateway.send(get("no-cache")).await;
    assert_eq!((fresh.text(), outcome(&fresh).as_str()), (profiles(1), "fwd=request"));
    gateway.send(get("")).await.assert_relayed(200, profiles(1));
    version.store(2, Ordering::SeqCst);
    let fresh = gateway.send(get("max-age=0")).await;
    assert_eq!((fresh.text(), outcome(&fresh).as_str()), (profiles(2), "fwd=request"));
    gateway.send(get("max-age=0, only-if-cached")).await.assert_error(504, "not_cached", 129_504);
}

#[tokio::test]
async fn stale_response_answers_within_max_stale_and_while_chat_fails() {
    let chat = FakeChat::start().await;
    serve_profiles(&chat);
    let setup = Setup::new(&chat).set("cache", &format!("commands = {{ \"{GET}\" = \"1ms\" }}"));
    let gateway = setup.set("cache", r#"stale_if_error = "1h""#).start().await;
    gateway.call(GET, "{}").await;
    let stale = gateway.send(get("max-stale=3600").body("{}")).await;
    assert_eq!((stale.text(), stale.cache_status().stale), (profiles(0), 1));
    assert_eq!(chat.call_count(), 1);
    chat.reply_always(Reply::reset());
    let stale = gateway.call(GET, "{}").await;
    stale.assert_relayed(200, profiles(0));
    assert_eq!((outcome(&stale).as_str(), stale.cache_status().stale), ("fwd=stale", 1));
    gateway.send(get("no-cache").body("{}")).await.assert_error(502, "upstream_unreachable", 129_502);
    gateway.send(get("max-stale=0").body("{}")).await.assert_error(502, "upstream_unreachable", 129_502);
}

#[tokio::test]
async fn request_that_must_not_be_cached_is_relayed() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, &["sns/group_get", "group_open_http_svc/get_group_info", GET]).start().await;
    let long = format!("{{{}}}", " ".repeat(64 * 1024));
    for (command, body) in [
        ("sns/group_get", r#"{"From_Account":"ann","LastSequence":3}"#),
        ("group_open_http_svc/get_group_info", r#"{"GroupIdList":["a"]}"#),
        (GET, long.as_str()),
    ] {
        let before = chat.call_count();
        for _ in 0..2 {
            let response = gateway.call(command, body).await;
            assert_eq!(response.header("cache-status"), Some("chatgate; fwd=bypass"), "{command}");
        }
        assert_eq!(chat.call_count() - before, 2, "{command}");
        assert_eq!(chat.last_call().body, body.as_bytes());
        let only_cached = TestRequest::command(command).body(body).header("Cache-Control", "only-if-cached");
        gateway.send(only_cached).await.assert_error(504, "not_cached", 129_504);
    }
    let volatile = r#"{"GroupInfo":[{"GroupId":"a","ErrorCode":0,"LastMsgTime":1}],"ActionStatus":"OK","ErrorCode":0}"#;
    for (reply, calls) in [(volatile.to_owned(), 2), (volatile.replace("LastMsgTime", "Name"), 1)] {
        chat.reply_always(Reply::json(reply));
        let before = chat.call_count();
        for _ in 0..2 {
            gateway.call("group_open_http_svc/get_group_info", r#"{"GroupIdList":["a"],"ResponseFilter":{}}"#).await;
        }
        assert_eq!(chat.call_count() - before, calls);
    }
}

#[tokio::test]
async fn long_response_is_passed_on_and_not_kept() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let long = format!(r#"{{"ErrorCode":0,"x":"{}"}}"#, "x".repeat(1024 * 1024));
    chat.reply_always(Reply::json(long.clone()));
    for _ in 0..2 {
        gateway.call(GET, "{}").await.assert_relayed(200, &long);
    }
    assert_eq!(chat.call_count(), 2);
}

/// Sends a request on a connection of its own.
pub(crate) async fn send(gateway: &Gateway, request: TestRequest) -> Conn {
    let mut conn = gateway.connect().await;
    conn.send(request.bytes()).await;
    conn
}

/// Answers every later read after the gate is open.
pub(crate) fn hold_reads(chat: &FakeChat) -> Gate {
    let gate = Gate::closed();
    let script = gate.clone();
    chat.script(move |call| (call.command() == GET).then(|| Reply::json(profiles(0)).after(&script)));
    gate
}

#[tokio::test]
async fn equal_requests_in_flight_share_one_call() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let gate = hold_reads(&chat);
    let mut callers = Vec::new();
    for _ in 0..10 {
        callers.push(send(&gateway, TestRequest::command(GET)).await);
    }
    gateway.wait_for_in_flight(10).await;
    gate.open();
    let mut counts = (0, 0);
    for mut caller in callers {
        let response = caller.read_response().await;
        response.assert_relayed(200, profiles(0));
        let (hit, joined, fetched) = response.cache_status().counts();
        assert_eq!(hit, 0);
        counts = (counts.0 + joined, counts.1 + fetched);
    }
    assert_eq!((counts, chat.call_count()), ((9, 1), 1));
}

#[tokio::test]
async fn caller_that_leaves_fails_no_other() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let gate = hold_reads(&chat);
    let first = send(&gateway, TestRequest::command(GET)).await;
    chat.wait_for_calls(1).await;
    let short = TestRequest::command(GET).header("Chatgate-Timeout", "200ms");
    gateway.send(short).await.assert_error(504, "upstream_timeout", 60008);
    let mut second = send(&gateway, TestRequest::command(GET)).await;
    gateway.wait_for_in_flight(2).await;
    drop(first);
    gateway.wait_for_in_flight(1).await;
    gate.open();
    second.read_response().await.assert_relayed(200, profiles(0));
    gateway.send(get("only-if-cached").body("{}")).await.assert_relayed(200, profiles(0));
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn short_deadline_of_the_first_caller_fails_no_other() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let gate = hold_reads(&chat);
    let mut first = send(&gateway, TestRequest::command(GET).header("Chatgate-Timeout", "300ms")).await;
    chat.wait_for_calls(1).await;
    let mut second = send(&gateway, TestRequest::command(GET)).await;
    first.read_response().await.assert_error(504, "upstream_timeout", 60008);
    gate.open();
    second.read_response().await.assert_relayed(200, profiles(0));
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn failure_of_a_shared_call_reaches_every_caller() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let failure = error_response(40003, "no such user");
    let gate = Gate::closed();
    chat.reply_always(Reply::json(failure.clone()).after(&gate));
    let mut callers =
        [send(&gateway, TestRequest::command(GET)).await, send(&gateway, TestRequest::command(GET)).await];
    gateway.wait_for_in_flight(2).await;
    gate.open();
    for caller in &mut callers {
        caller.read_response().await.assert_relayed(200, &failure);
    }
    assert_eq!(chat.call_count(), 1);
    gateway.call(GET, "{}").await.assert_relayed(200, &failure);
    assert_eq!(chat.call_count(), 2, "it is not kept");
}

#[tokio::test]
async fn queued_call_without_a_caller_is_not_made() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, &[GET]).timeout("60s").set("upstream", "max_in_flight = 1").start().await;
    let gate = hold_reads(&chat);
    let request = |number: u32| TestRequest::command(GET).body(format!("{{\"n\":{number}}}"));
    let mut first = send(&gateway, request(1)).await;
    chat.wait_for_calls(1).await;
    let second = send(&gateway, request(2)).await;
    gateway.wait_for_in_flight(2).await;
    drop(second);
    gateway.wait_for_in_flight(1).await;
    gate.open();
    first.read_response().await.assert_relayed(200, profiles(0));
    gateway.send(request(3)).await.assert_relayed(200, profiles(0));
    let bodies: Vec<String> =
        chat.calls().iter().map(|call| String::from_utf8_lossy(&call.body).into_owned()).collect();
    assert_eq!(bodies, [r#"{"n":1}"#, r#"{"n":3}"#]);
}

#[tokio::test]
async fn cached_response_needs_the_right_to_call_and_no_quota() {
    const FEED: &str = "a.token~of~marked~letters+for/the/feed/of/cached/reads==";
    const SHOP: &str = "a.token~of~marked~letters+for/the/shop/of/cached/reads==";
    let chat = FakeChat::start().await;
    serve_profiles(&chat);
    let setup = setup(&chat, &[GET]).caller("feed", FEED, "allow = ['profile/*']\nquota = \"1/s\"");
    let gateway = setup.caller("shop", SHOP, "allow = ['follow/*']").timeout("1s").start().await;
    for _ in 0..20 {
        gateway.send(TestRequest::command(GET).token(FEED)).await.assert_relayed(200, profiles(0));
    }
    assert_eq!(chat.call_count(), 1);
    gateway.send(TestRequest::command(GET).token(SHOP)).await.assert_error(403, "forbidden", 129_403);
    gateway.send(TestRequest::command(GET)).await.assert_error(401, "unauthenticated", 129_401);
}

#[tokio::test]
async fn unlisted_command_is_cached_as_named() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, &["future/list"]).start().await;
    chat.reply_always(Reply::json(profiles(7)));
    for _ in 0..2 {
        gateway.call("future/list", "{}").await.assert_relayed(200, profiles(7));
    }
    assert_eq!(chat.call_count(), 1, "it counts as a read, which does not invalidate its service");
    gateway.call("future/set", "{}").await;
    gateway.call("future/list", "{}").await;
    assert_eq!(chat.call_count(), 3);
}

#[tokio::test]
async fn metrics_and_status_show_sources_and_bytes() {
    let chat = FakeChat::start().await;
    serve_profiles(&chat);
    let gateway = setup(&chat, &[GET]).set("log", r#"requests = "all""#).start().await;
    gateway.call(GET, "{}").await;
    gateway.call(GET, "{}").await;
    gateway.send(get("no-store")).await;
    let metrics = gateway.admin_get("/metrics").await.text();
    let sample = |source: &str| {
        format!("chatgate_read_cache_requests_total{{app=\"main\",command=\"{GET}\",source=\"{source}\"}}")
    };
    for (source, count) in [("hit", 1), ("joined", 0), ("fetched", 1), ("stale", 0), ("bypass", 1)] {
        let line = format!("{} {count}\n", sample(source));
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    assert!(metrics.contains("\nchatgate_read_cache_entries 1\n"), "{metrics}");
    let status = gateway.admin_get("/status").await.json();
    let row = serde_json::json!([{
        "command": GET, "hit": 1, "joined": 0, "fetched": 1, "stale": 0, "bypass": 1, "hit_ratio": 0.5
    }]);
    assert_eq!(status["apps"][0]["cached_reads"], row);
    let bytes = status["read_cache"]["bytes"]["now"].as_u64().expect("a number");
    assert!(bytes > profiles(0).len() as u64 && bytes < 2048, "{bytes}");
    assert_eq!(status["config"]["cache"]["commands"], serde_json::json!({ GET: "1h" }));
    let log = gateway.log();
    for cache in ["fetched", "hit", "bypass"] {
        assert!(log.contains(&format!("\"cache\":\"{cache}\"")), "{log}");
    }
}
