//! Calls that Chat does not simply answer: retries, renewed signatures, parking, the standby domain, and stale
//! responses. A write is carried out at most once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::eventually;
use crate::support::graph::{OK, error_response};
use crate::support::reply::{Gate, Reply, ReplyKind, render};
use crate::support::setup::{Setup, gateway};
use crate::support::wire::free_address;

const READ: &str = "openim/querystate";
const WRITE: &str = "openim/sendmsg";

/// A setup with a retry budget that covers every retry of a test.
fn unlimited_retries(chat: &FakeChat) -> Setup {
    Setup::new(chat).set("upstream", "retry_budget = 1.0")
}

#[tokio::test]
async fn reads_survive_transient_errors_and_writes_are_sent_once() {
    let chat = FakeChat::start().await;
    let gateway = unlimited_retries(&chat).start().await;
    let html = "<html>bad gateway</html>";
    let failures = [
        Reply::reset(),
        Reply::bytes("HTTP/1.1 200 OK\r\nContent-"),
        Reply::typed(502, "text/html", html),
        Reply::typed(503, "text/plain", ""),
        Reply::json(error_response(60008, "timeout")),
        Reply::json(error_response(90994, "internal")),
        Reply::json(error_response(60007, "too many")),
    ];
    for failure in failures.into_iter().chain([Reply::json(error_response(-14, "too many"))]) {
        let before = chat.call_count();
        chat.reply_once(failure.clone());
        gateway.call(READ, "{}").await.assert_relayed(200, OK);
        assert_eq!(chat.call_count(), before + 2, "a read is retried");
        chat.reply_once(failure);
        let response = gateway.call(WRITE, "{}").await;
        assert_ne!(response.text(), OK);
        assert_eq!(chat.call_count(), before + 3, "a write is not retried: {response:?}");
    }
}

#[tokio::test]
async fn follow_check_survives_a_reset_at_any_response_byte() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let gateway = unlimited_retries(&chat).start().await;
    gateway.check("ann", &["bob"]).await.items();
    let body = chat.graph().respond(MAIN.sdkappid, "follow/follow_check", &chat.last_call().body);
    let whole = render(200, Some("application/json"), body.as_bytes());
    for cut in 0..whole.len() {
        let before = chat.call_count();
        chat.reply_once(ReplyKind::Reset(whole[..cut].to_vec()).into());
        let response = gateway.send(TestRequest::check("ann", &["bob"]).header("Cache-Control", "no-cache")).await;
        assert_eq!(response.follow_types(), [2], "cut after {cut} bytes");
        assert_eq!(chat.call_count(), before + 2);
    }
}

#[tokio::test]
async fn retries_stay_within_attempts_and_retry_budget() {
    let chat = FakeChat::start().await;
    let failure = Reply::json(error_response(60008, "timeout"));
    chat.reply_always(failure.clone());
    let three = unlimited_retries(&chat).start().await;
    three.call(READ, "{}").await.assert_relayed(200, error_response(60008, "timeout"));
    assert_eq!(chat.call_count(), 3, "upstream.attempts");
    let one = unlimited_retries(&chat).set("upstream", "attempts = 1").start().await;
    one.call(READ, "{}").await.assert_relayed(200, error_response(60008, "timeout"));
    assert_eq!(chat.call_count(), 4);
    let none = Setup::new(&chat).set("upstream", "retry_budget = 0").start().await;
    none.call(READ, "{}").await.assert_relayed(200, error_response(60008, "timeout"));
    assert_eq!(chat.call_count(), 5);
    let usual = gateway(&chat).await;
    let before = chat.call_count();
    for _ in 0..100 {
        usual.call(READ, "{}").await.assert_relayed(200, error_response(60008, "timeout"));
    }
    // The budget starts with ten retries, and each call adds a tenth.
    let calls = chat.call_count() - before;
    assert!((110..=120).contains(&calls), "{calls} calls for 100 requests");
}

#[tokio::test]
async fn deadline_covers_all_attempts() {
    let chat = FakeChat::start().await;
    chat.reply_always(Reply::hang());
    let setup =
        unlimited_retries(&chat).set("upstream", "timeout = \"900ms\"").set("upstream", "attempt_timeout = \"250ms\"");
    let gateway = setup.start().await;
    let start = crate::support::now();
    gateway.call(READ, "{}").await.assert_error(504, "upstream_timeout", 60008);
    let took = crate::support::now() - start;
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!((2..=3).contains(&chat.call_count()), "{} attempts", chat.call_count());
}

#[tokio::test]
async fn rejected_signature_is_renewed_once_for_all_callers() {
    let chat = FakeChat::start().await;
    // On a busy machine, 200 concurrent requests are slow.
    let gateway = Arc::new(Setup::new(&chat).set("upstream", "timeout = \"60s\"").start().await);
    gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
    let rejected = chat.last_call().usersig();
    chat.script(move |call| (call.usersig() == rejected).then(|| Reply::json(error_response(70001, "expired"))));
    let callers: Vec<_> = (0..200)
        .map(|n| {
            let gateway = Arc::clone(&gateway);
            let command = if n % 2 == 0 { READ } else { WRITE };
            tokio::spawn(async move { gateway.call(command, "{}").await })
        })
        .collect();
    for caller in callers {
        caller.await.expect("answered").assert_relayed(200, OK);
    }
    let used: HashSet<_> = chat.calls().iter().map(|call| call.usersig()).collect();
    assert_eq!(used.len(), 2, "one renewal");
    assert!(chat.call_count() <= 1 + 2 * 200, "{} calls", chat.call_count());
}

#[tokio::test]
async fn repeated_signature_rejection_is_relayed_without_a_loop() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let rejection = error_response(70003, "malformed");
    chat.reply_always(Reply::json(rejection.clone()));
    for _ in 0..20 {
        gateway.call(WRITE, "{}").await.assert_relayed(200, &rejection);
    }
    assert!(chat.call_count() <= 20 + 4, "{} calls", chat.call_count());
    let used: HashSet<_> = chat.calls().iter().map(|call| call.usersig()).collect();
    assert!(used.len() <= 4, "{} signatures", used.len());
}

#[tokio::test]
async fn permanently_rejected_app_is_parked_after_a_second_rejection() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await.items();
    let rejection = error_response(70009, "verify usersig failed");
    chat.reply_always(Reply::json(rejection.clone()));
    let before = chat.call_count();
    for command in [WRITE, READ] {
        gateway.call(command, "{}").await.assert_relayed(200, &rejection);
    }
    for request in [
        TestRequest::command(WRITE).body("{}"),
        TestRequest::command(READ).body("{}"),
        TestRequest::check("ann", &["cyd"]),
    ] {
        let response = gateway.send(request).await;
        response.assert_error(503, "parked", 70009);
        assert!((1..=30).contains(&response.retry_after()));
        assert!(response.text().contains("verify usersig failed") && response.text().contains("secret_key_file"));
    }
    assert_eq!(chat.call_count(), before + 2, "a parked app causes no calls");
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [2], "cached pairs are still served");
}

#[tokio::test]
async fn disabled_command_parks_itself_and_lockout_parks_the_app() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let disabled = error_response(30005, "not enabled");
    chat.reply_once(Reply::json(disabled.clone()));
    gateway.check("ann", &["bob"]).await.assert_relayed(200, &disabled);
    gateway.check("ann", &["bob"]).await.assert_error(503, "parked", 30005);
    assert_eq!(chat.call_count(), 1);
    gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
    let lockout = error_response(70050, "wait a minute");
    chat.reply_once(Reply::json(lockout.clone()));
    gateway.call(READ, "{}").await.assert_relayed(200, &lockout);
    let response = gateway.call(WRITE, "{}").await;
    response.assert_error(503, "parked", 70050);
    assert!((58..=60).contains(&response.retry_after()), "{}", response.retry_after());
    assert_eq!(chat.call_count(), 3);
}

#[tokio::test]
async fn sensitive_word_of_one_caller_parks_nothing() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let rejection = error_response(30005, "sensitive word");
    for _ in 0..3 {
        chat.reply_once(Reply::json(rejection.clone()));
        gateway.call("sns/friend_update", "{}").await.assert_relayed(200, &rejection);
    }
    gateway.call("sns/friend_update", "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn unpaid_cloud_search_leaves_other_commands_alone() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let unpaid = error_response(60020, "no such add-on");
    for search in ["user_search/search", "group_search/search"] {
        chat.reply_once(Reply::json(unpaid.clone()));
        gateway.call(search, "{}").await.assert_relayed(200, &unpaid);
        gateway.call(search, "{}").await.assert_error(503, "parked", 60020);
    }
    gateway.check("ann", &["bob"]).await.items();
    for command in [READ, WRITE] {
        chat.reply_once(Reply::json(unpaid.clone()));
        gateway.call(command, "{}").await.assert_relayed(200, &unpaid);
    }
    gateway.call(WRITE, "{}").await.assert_error(503, "parked", 60020);
    gateway.check("ann", &["cyd"]).await.items();
}

#[tokio::test]
async fn declared_read_is_retried_and_other_unlisted_commands_are_not() {
    let chat = FakeChat::start().await;
    let lines = format!("{}\nreads = [\"future/get\"]", chat.app_lines());
    let setup = Setup::without_apps().app(MAIN, &lines).set("upstream", "retry_budget = 1.0");
    let text = setup.text();
    let gateway = setup.start().await;
    let failure = error_response(60008, "timeout");
    let calls_of = async |command: &str| {
        let before = chat.call_count();
        chat.reply_once(Reply::json(failure.clone()));
        let response = gateway.call(command, "{}").await;
        (chat.call_count() - before, response.text() == OK)
    };
    assert_eq!(calls_of("future/get").await, (2, true));
    assert_eq!(calls_of("future/set").await, (1, false));
    let status = gateway.admin_get("/status").await.json();
    assert_eq!(status["config"]["app"][0]["reads"], serde_json::json!(["future/get"]));
    let changed = text.replace("future/get", "future/set");
    std::fs::write(gateway.dir().join("chatgate.toml"), changed).expect("own directory");
    assert_eq!(gateway.send_to_admin(TestRequest::post("/reload")).await.text(), "reloaded\n");
    assert_eq!(calls_of("future/get").await, (1, false));
    assert_eq!(calls_of("future/set").await, (2, true));
}

#[tokio::test]
async fn unknown_error_codes_are_relayed_without_side_effects() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for code in [123_456, -1, i64::MAX, i64::MIN] {
        let before = chat.call_count();
        let unknown = error_response(code, "what?");
        chat.reply_always(Reply::json(unknown.clone()));
        for command in [READ, WRITE] {
            gateway.call(command, "{}").await.assert_relayed(200, &unknown);
        }
        assert_eq!(chat.call_count(), before + 2);
    }
}

#[tokio::test]
async fn standby_serves_only_while_the_primary_is_unreachable() {
    let (standby, address) = (FakeChat::start().await, free_address());
    let lines = format!("endpoint = \"http://{address}\"\nstandby = \"http://{}\"", standby.address());
    let gateway = Setup::without_apps().app(MAIN, &lines).start().await;
    for command in [WRITE, READ] {
        gateway.call(command, "{}").await.assert_relayed(200, OK);
    }
    gateway.check("ann", &["bob"]).await.items();
    assert_eq!(standby.call_count(), 3);
    // An ErrorCode causes no failover.
    let primary = FakeChat::start_on(address).await;
    eventually("calls go to the primary again", async || {
        gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
        (primary.call_count() > 0).then_some(())
    })
    .await;
    primary.reply_always(Reply::json(error_response(60008, "sick")));
    let (before, at_standby) = (primary.call_count(), standby.call_count());
    gateway.call(WRITE, "{}").await.assert_relayed(200, error_response(60008, "sick"));
    assert_eq!((primary.call_count(), standby.call_count()), (before + 1, at_standby));
}

#[tokio::test]
async fn stale_pairs_are_served_on_errors_except_after_writes() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let setup = Setup::new(&chat).set("cache", "ttl = \"50ms\"").set("cache", "stale_if_error = \"1h\"");
    let gateway = setup.set("cache", "write_settle = \"0s\"").start().await;
    gateway.check("ann", &["bob", "cyd"]).await.items();
    let cached = TestRequest::check("ann", &["bob", "cyd"]).header("Cache-Control", "only-if-cached");
    eventually("the cached pairs are past their ttl", async || {
        (gateway.send(cached.clone()).await.slug() == Some("not_cached")).then_some(())
    })
    .await;
    for (failure, code) in [(Reply::reset(), 129_502), (Reply::json(error_response(60008, "sick")), 60008)] {
        chat.reply_always(failure);
        let response = gateway.check("ann", &["bob", "cyd"]).await;
        assert_eq!(response.follow_types(), [2, 0]);
        assert_eq!((response.cache_status().outcome.as_str(), response.cache_status().stale), ("fwd=stale", 2));
        let strict = TestRequest::check("ann", &["bob"]).header("Cache-Control", "max-stale=0");
        assert_eq!(gateway.send(strict).await.json()["ErrorCode"], code, "max-stale=0 forbids stale pairs");
    }
    let before = chat.call_count();
    for _ in 0..50 {
        assert_eq!(gateway.check("ann", &["bob", "cyd"]).await.follow_types(), [2, 0]);
    }
    assert!(
        chat.call_count() <= before + 4,
        "{} calls for 50 requests reached a failing Chat",
        chat.call_count() - before
    );
    assert_eq!(gateway.check("ann", &["new"]).await.json()["ErrorCode"], 60008, "a pair that was never cached fails");
    chat.script(|call| (call.command() != "follow/follow_add").then(|| Reply::json(error_response(60008, "sick"))));
    let write = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"cyd"}]}"#;
    gateway.call("follow/follow_add", write).await.json();
    assert_eq!(
        gateway.check("ann", &["cyd"]).await.json()["ErrorCode"],
        60008,
        "the stale pair is from before the write"
    );
}

#[tokio::test]
async fn write_during_a_failed_lookup_invalidates_its_stale_pairs() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("cache", "ttl = \"2s\"").set("cache", "stale_if_error = \"1h\"");
    let gateway = Arc::new(setup.set("upstream", "attempts = 1").start().await);
    gateway.check("ann", &["old"]).await.items();
    let cached = TestRequest::check("ann", &["old"]).header("Cache-Control", "only-if-cached");
    eventually("the first cached pair is past its ttl", async || {
        (gateway.send(cached.clone()).await.slug() == Some("not_cached")).then_some(())
    })
    .await;
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
    let (gate, before) = (Gate::closed(), chat.call_count());
    let held = Reply::json(error_response(60008, "sick")).after(&gate);
    chat.script(move |call| (call.command() == "follow/follow_check").then(|| held.clone()));
    let shared = Arc::clone(&gateway);
    let lookup = tokio::spawn(async move { shared.check("ann", &["bob", "old"]).await });
    chat.wait_for_calls(before + 1).await;
    let write = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#;
    assert_eq!(gateway.call("follow/follow_add", write).await.json()["ErrorCode"], 0);
    gate.open();
    let response = lookup.await.expect("answered");
    assert_eq!(response.json()["ErrorCode"], 60008, "bob's cached pair is from before the write: {}", response.text());
}

#[tokio::test]
async fn throttle_code_lowers_the_limit_of_its_command() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("app.quota", "per_command = \"40/s\"").start().await;
    chat.reply_once(Reply::json(error_response(60007, "too many")));
    gateway.call(WRITE, "{}").await.assert_relayed(200, error_response(60007, "too many"));
    eventually("the new limit is logged", async || gateway.log().contains("\"new_limit\":38").then_some(())).await;
    gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn throttling_is_warned_of_once_until_it_recovers() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("app.quota", "per_command = \"40/s\"").set("log", "level = \"debug\"");
    let gateway = setup.start().await;
    chat.script(|_| Some(Reply::json(error_response(60007, "too many"))));
    eventually("the limit is lowered a second time", async || {
        gateway.call(WRITE, "{}").await;
        gateway.log().contains("throttled again").then_some(())
    })
    .await;
    assert_eq!(gateway.log().matches("throttled by Chat").count(), 1, "{}", gateway.log());
}
