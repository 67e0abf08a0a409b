//! What becomes of a call that Chat does not simply answer: tried again, signed again, parked, moved to
//! the standby, or answered from an older fact. And that a write is carried out once at most.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::Ask;
use crate::support::eventually;
use crate::support::graph::{OK, fail};
use crate::support::reply::{Gate, Reply, What, render};
use crate::support::setup::{Setup, gateway};
use crate::support::wire::free_address;

const READ: &str = "openim/querystate";
const WRITE: &str = "openim/sendmsg";

/// Enough saved up for every attempt of a test.
fn generous(chat: &FakeChat) -> Setup {
    Setup::new(chat).set("upstream", "retry_budget = 1.0")
}

#[tokio::test]
async fn a_read_gets_over_what_passes_and_a_write_is_sent_once() {
    let chat = FakeChat::start().await;
    let gateway = generous(&chat).start().await;
    let html = "<html>bad gateway</html>";
    let faults = [
        Reply::reset(),
        Reply::bytes("HTTP/1.1 200 OK\r\nContent-"),
        Reply::typed(502, "text/html", html),
        Reply::typed(503, "text/plain", ""),
        Reply::json(fail(60008, "timeout")),
        Reply::json(fail(90994, "internal")),
        Reply::json(fail(60007, "too many")),
    ];
    for fault in faults {
        let before = chat.count();
        chat.once(fault.clone());
        gateway.call(READ, "{}").await.assert_relayed(200, OK);
        assert_eq!(chat.count(), before + 2, "a read is tried again");
        chat.once(fault);
        let answer = gateway.call(WRITE, "{}").await;
        assert_ne!(answer.text(), OK);
        assert_eq!(chat.count(), before + 3, "a write is not: {answer:?}");
    }
}

#[tokio::test]
async fn a_follow_check_gets_over_a_reset_at_every_byte_of_the_answer() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let gateway = generous(&chat).start().await;
    gateway.check("ann", &["bob"]).await.checked();
    let body = chat.graph().answer(MAIN.sdkappid, "follow/follow_check", &chat.last().body);
    let whole = render(200, Some("application/json"), body.as_bytes());
    for cut in 0..whole.len() {
        let before = chat.count();
        chat.once(What::Reset(whole[..cut].to_vec()).into());
        let answer = gateway.ask(Ask::check("ann", &["bob"]).header("Cache-Control", "no-cache")).await;
        assert_eq!(answer.types(), [2], "cut after {cut} bytes");
        assert_eq!(chat.count(), before + 2);
    }
}

#[tokio::test]
async fn attempts_and_the_budget_are_bounds() {
    let chat = FakeChat::start().await;
    let sick = Reply::json(fail(60008, "timeout"));
    chat.always(sick.clone());
    let three = generous(&chat).start().await;
    three.call(READ, "{}").await.assert_relayed(200, fail(60008, "timeout"));
    assert_eq!(chat.count(), 3, "upstream.attempts");
    let one = generous(&chat).set("upstream", "attempts = 1").start().await;
    one.call(READ, "{}").await.assert_relayed(200, fail(60008, "timeout"));
    assert_eq!(chat.count(), 4);
    let none = Setup::new(&chat).set("upstream", "retry_budget = 0").start().await;
    none.call(READ, "{}").await.assert_relayed(200, fail(60008, "timeout"));
    assert_eq!(chat.count(), 5);
    let usual = gateway(&chat).await;
    let before = chat.count();
    for _ in 0..100 {
        usual.call(READ, "{}").await.assert_relayed(200, fail(60008, "timeout"));
    }
    // Ten are there to begin with, and each call brings a tenth.
    let calls = chat.count() - before;
    assert!((110..=120).contains(&calls), "{calls} calls for 100 requests");
}

#[tokio::test]
async fn the_deadline_holds_over_all_attempts() {
    let chat = FakeChat::start().await;
    chat.always(Reply::hang());
    let setup = generous(&chat).set("upstream", "timeout = \"900ms\"").set("upstream", "attempt_timeout = \"250ms\"");
    let gateway = setup.start().await;
    let begun = crate::support::now();
    gateway.call(READ, "{}").await.assert_error(504, "upstream_timeout", 60008);
    let took = crate::support::now() - begun;
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!((2..=3).contains(&chat.count()), "{} attempts", chat.count());
}

#[tokio::test]
async fn the_first_refused_signature_is_replaced_for_all() {
    let chat = FakeChat::start().await;
    // Two hundred at once take a busy machine a while.
    let gateway = Arc::new(Setup::new(&chat).set("upstream", "timeout = \"60s\"").start().await);
    gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
    let refused = chat.last().usersig();
    chat.script(move |call| (call.usersig() == refused).then(|| Reply::json(fail(70001, "expired"))));
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
    assert!(chat.count() <= 1 + 2 * 200, "{} calls", chat.count());
}

#[tokio::test]
async fn a_signature_that_is_refused_again_is_handed_on_and_does_not_spin() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let refusal = fail(70003, "malformed");
    chat.always(Reply::json(refusal.clone()));
    for _ in 0..20 {
        gateway.call(WRITE, "{}").await.assert_relayed(200, &refusal);
    }
    assert!(chat.count() <= 20 + 4, "{} calls", chat.count());
    let used: HashSet<_> = chat.calls().iter().map(|call| call.usersig()).collect();
    assert!(used.len() <= 4, "{} signatures", used.len());
}

#[tokio::test]
async fn an_app_that_chat_refuses_for_good_is_parked_after_a_second_refusal() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await.checked();
    let refusal = fail(70009, "verify usersig failed");
    chat.always(Reply::json(refusal.clone()));
    let before = chat.count();
    for command in [WRITE, READ] {
        gateway.call(command, "{}").await.assert_relayed(200, &refusal);
    }
    for ask in [Ask::command(WRITE).body("{}"), Ask::command(READ).body("{}"), Ask::check("ann", &["cyd"])] {
        let answer = gateway.ask(ask).await;
        answer.assert_error(503, "parked", 70009);
        assert!((1..=30).contains(&answer.retry_after()));
        assert!(answer.text().contains("verify usersig failed") && answer.text().contains("secret_key_file"));
    }
    assert_eq!(chat.count(), before + 2, "Chat is left alone");
    assert_eq!(gateway.check("ann", &["bob"]).await.types(), [2], "what is known is known");
}

#[tokio::test]
async fn a_command_that_is_off_is_parked_alone_and_silence_is_for_the_app() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let off = fail(30005, "not enabled");
    chat.once(Reply::json(off.clone()));
    gateway.check("ann", &["bob"]).await.assert_relayed(200, &off);
    gateway.check("ann", &["bob"]).await.assert_error(503, "parked", 30005);
    assert_eq!(chat.count(), 1);
    gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
    let silence = fail(70050, "wait a minute");
    chat.once(Reply::json(silence.clone()));
    gateway.call(READ, "{}").await.assert_relayed(200, &silence);
    let answer = gateway.call(WRITE, "{}").await;
    answer.assert_error(503, "parked", 70050);
    assert!((58..=60).contains(&answer.retry_after()), "{}", answer.retry_after());
    assert_eq!(chat.count(), 3);
}

#[tokio::test]
async fn a_code_nobody_has_heard_of_is_handed_on_and_changes_nothing() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for code in [123_456, -1, i64::MAX, i64::MIN] {
        let before = chat.count();
        let odd = fail(code, "what?");
        chat.always(Reply::json(odd.clone()));
        for command in [READ, WRITE] {
            gateway.call(command, "{}").await.assert_relayed(200, &odd);
        }
        assert_eq!(chat.count(), before + 2);
    }
}

#[tokio::test]
async fn the_standby_serves_while_the_primary_is_away_and_not_longer() {
    let (standby, address) = (FakeChat::start().await, free_address());
    let lines = format!("endpoint = \"http://{address}\"\nstandby = \"http://{}\"", standby.address());
    let gateway = Setup::without_apps().app(MAIN, &lines).start().await;
    for command in [WRITE, READ] {
        gateway.call(command, "{}").await.assert_relayed(200, OK);
    }
    gateway.check("ann", &["bob"]).await.checked();
    assert_eq!(standby.count(), 3);
    // An ErrorCode moves nothing.
    let primary = FakeChat::start_on(address).await;
    eventually("calls go to the primary again", async || {
        gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
        (primary.count() > 0).then_some(())
    })
    .await;
    primary.always(Reply::json(fail(60008, "sick")));
    let (before, at_standby) = (primary.count(), standby.count());
    gateway.call(WRITE, "{}").await.assert_relayed(200, fail(60008, "sick"));
    assert_eq!((primary.count(), standby.count()), (before + 1, at_standby));
}

#[tokio::test]
async fn an_older_fact_stands_in_while_chat_fails_but_never_one_from_before_a_write() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let setup = Setup::new(&chat).set("cache", "ttl = \"50ms\"").set("cache", "stale_if_error = \"1h\"");
    let gateway = setup.set("cache", "write_settle = \"0s\"").start().await;
    gateway.check("ann", &["bob", "cyd"]).await.checked();
    let cached = Ask::check("ann", &["bob", "cyd"]).header("Cache-Control", "only-if-cached");
    eventually("the facts are past their ttl", async || {
        (gateway.ask(cached.clone()).await.slug() == Some("not_cached")).then_some(())
    })
    .await;
    for (fault, code) in [(Reply::reset(), 129_502), (Reply::json(fail(60008, "sick")), 60008)] {
        chat.always(fault);
        let answer = gateway.check("ann", &["bob", "cyd"]).await;
        assert_eq!(answer.types(), [2, 0]);
        assert_eq!((answer.cache().outcome.as_str(), answer.cache().stale), ("fwd=stale", 2));
        let strict = Ask::check("ann", &["bob"]).header("Cache-Control", "max-stale=0");
        assert_eq!(gateway.ask(strict).await.json()["ErrorCode"], code, "who wants none gets none");
    }
    let before = chat.count();
    for _ in 0..50 {
        assert_eq!(gateway.check("ann", &["bob", "cyd"]).await.types(), [2, 0]);
    }
    assert!(chat.count() <= before + 4, "{} calls of 50 reached a sick Chat", chat.count() - before);
    assert_eq!(gateway.check("ann", &["new"]).await.json()["ErrorCode"], 60008, "nothing is made up");
    chat.script(|call| (call.command() != "follow/follow_add").then(|| Reply::json(fail(60008, "sick"))));
    let write = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"cyd"}]}"#;
    gateway.call("follow/follow_add", write).await.json();
    assert_eq!(gateway.check("ann", &["cyd"]).await.json()["ErrorCode"], 60008, "it is from before the write");
}

#[tokio::test]
async fn a_write_during_a_failed_lookup_voids_what_was_known_when_it_began() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("cache", "ttl = \"2s\"").set("cache", "stale_if_error = \"1h\"");
    let gateway = Arc::new(setup.set("upstream", "attempts = 1").start().await);
    gateway.check("ann", &["old"]).await.checked();
    let cached = Ask::check("ann", &["old"]).header("Cache-Control", "only-if-cached");
    eventually("the first fact is past its ttl", async || {
        (gateway.ask(cached.clone()).await.slug() == Some("not_cached")).then_some(())
    })
    .await;
    assert_eq!(gateway.check("ann", &["bob"]).await.types(), [0]);
    let (gate, before) = (Gate::closed(), chat.count());
    let held = Reply::json(fail(60008, "sick")).held(&gate);
    chat.script(move |call| (call.command() == "follow/follow_check").then(|| held.clone()));
    let asking = Arc::clone(&gateway);
    let asked = tokio::spawn(async move { asking.check("ann", &["bob", "old"]).await });
    chat.seen(before + 1).await;
    let write = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#;
    assert_eq!(gateway.call("follow/follow_add", write).await.json()["ErrorCode"], 0);
    gate.open();
    let answer = asked.await.expect("answered");
    assert_eq!(answer.json()["ErrorCode"], 60008, "bob's fact is from before the write: {}", answer.text());
}

#[tokio::test]
async fn a_throttle_code_lowers_the_rate_of_its_command_alone() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("app.quota", "per_command = \"40/s\"").start().await;
    chat.once(Reply::json(fail(60007, "too many")));
    gateway.call(WRITE, "{}").await.assert_relayed(200, fail(60007, "too many"));
    eventually("the log tells the new limit", async || gateway.log().contains("\"limit\":38").then_some(())).await;
    gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
}
