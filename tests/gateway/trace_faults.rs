//! A collector that is away, slow or silent: requests do not notice, and what is lost is counted.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::client::Ask;
use crate::support::collector::{Collector, Mood};
use crate::support::eventually;
use crate::support::exposition::Exposition;
use crate::support::gateway::Gateway;
use crate::support::setup::Setup;
use crate::support::wire::free_address;
use crate::support::{now, turn};

async fn figure(gateway: &Gateway, name: &str, labels: &[(&str, &str)]) -> f64 {
    Exposition::read(&gateway.admin_get("/metrics").await.text()).value(name, labels)
}

async fn dropped(gateway: &Gateway, cause: &str) -> f64 {
    figure(gateway, "chatgate_trace_spans_dropped_total", &[("cause", cause)]).await
}

#[tokio::test]
async fn a_collector_that_is_away_is_told_of_once_and_harms_no_request() {
    let chat = FakeChat::start().await;
    let nobody = free_address();
    let gateway = Setup::new(&chat).set("trace", &format!("otlp = 'http://{nobody}'")).start().await;
    let mut caller = gateway.connect().await;
    let mut messages = BTreeSet::new();
    let lost = async || {
        caller.ask(&Ask::check("ann", &["bob"])).await.checked();
        messages.insert(dropped(&gateway, "export_failed").await as u64);
        (messages.len() > 3).then_some(())
    };
    eventually("some messages are lost", lost).await;
    assert_eq!(figure(&gateway, "chatgate_trace_spans_exported_total", &[]).await, 0.0);
    assert_eq!(dropped(&gateway, "queue_full").await, 0.0);
    assert_eq!(gateway.log().matches("takes no spans").count(), 1, "{}", gateway.log());
    let begun = now();
    assert_eq!(gateway.stop().await, 0, "what is lost of traces is no failure");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_collector_that_says_nothing_fills_the_queue_and_nothing_else() {
    let _alone = turn::alone().await;
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    collector.feels(Mood::Hanging);
    let gateway = Setup::new(&chat).set("trace", &collector.line()).start().await;
    let mut caller = gateway.connect().await;
    let mut slowest = Duration::ZERO;
    let full = async || {
        for _ in 0..500 {
            let begun = now();
            caller.ask(&Ask::check("ann", &["bob"])).await.checked();
            slowest = slowest.max(begun.elapsed());
        }
        (dropped(&gateway, "queue_full").await > 0.0).then_some(())
    };
    eventually("the queue is full", full).await;
    // A message may take 5 s. Whoever waited for one would show it.
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    let queued = figure(&gateway, "chatgate_trace_spans_queued", &[]).await;
    assert!((7000.0..=8192.0).contains(&queued), "{queued}");
    // When it speaks again it gets what has waited.
    collector.feels(Mood::Good);
    eventually("what waited is taken", async || (collector.spans().len() >= 7000).then_some(())).await;
    eventually("it is said", async || gateway.log().contains("takes spans again").then_some(())).await;
    let counted = async || (figure(&gateway, "chatgate_trace_spans_exported_total", &[]).await >= 7000.0).then_some(());
    eventually("it is counted", counted).await;
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn a_slow_collector_gets_all_and_a_failing_one_is_counted() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    collector.feels(Mood::Slow(Duration::from_millis(700)));
    let gateway = Setup::new(&chat).set("trace", &collector.line()).start().await;
    let mut caller = gateway.connect().await;
    for _ in 0..100 {
        caller.ask(&Ask::check("ann", &["bob"])).await.checked();
    }
    collector.seen(101).await;
    let exported = async || (figure(&gateway, "chatgate_trace_spans_exported_total", &[]).await == 101.0).then_some(());
    eventually("all are counted", exported).await;
    collector.feels(Mood::Failing);
    caller.ask(&Ask::check("ann", &["bob"])).await.checked();
    eventually("it is lost", async || (dropped(&gateway, "export_failed").await == 1.0).then_some(())).await;
    assert_eq!(collector.spans().len(), 101);
}

#[tokio::test]
async fn a_stop_sends_what_is_left_but_does_not_wait_for_the_deaf() {
    let _alone = turn::alone().await;
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let gateway = Setup::new(&chat).set("trace", &collector.line()).start().await;
    for _ in 0..5 {
        gateway.check("ann", &["bob"]).await.checked();
    }
    assert_eq!(gateway.stop().await, 0);
    collector.seen(6).await;

    collector.feels(Mood::Hanging);
    let gateway = Setup::new(&chat).set("trace", &collector.line()).start().await;
    gateway.check("ann", &["bob"]).await.checked();
    let begun = now();
    assert_eq!(gateway.stop().await, 0);
    // 3 s; a drain may take 25.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());

    let setup = Setup::new(&chat).set("trace", &collector.line()).set("server", r#"drain_timeout = "300ms""#);
    let gateway = setup.start().await;
    gateway.check("ann", &["bob"]).await.checked();
    let begun = now();
    assert_eq!(gateway.stop().await, 0);
    assert!(begun.elapsed() < Duration::from_millis(2900), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn no_name_key_or_signature_reaches_the_collector_whatever_goes_wrong() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let token = "a-token-of-the-feed-0123";
    let setup = Setup::new(&chat).caller("feed", token, "allow = ['*']").set("trace", &collector.line());
    let gateway = setup.set("log", r#"level = "trace""#).set("server", "explain = true").deadline("1s").start().await;
    chat.script(|call| {
        let sig = call.usersig();
        let reply = crate::support::graph::fail;
        Some(match call.command() {
            "odd/echo" => crate::support::reply::Reply::json(reply(30003, &format!("usersig={sig}"))),
            "odd/head" => crate::support::reply::Reply::bytes(format!("HTTP/1.1 200 {sig}\r\nX: {sig}\r\n\r\n")),
            "odd/hang" => crate::support::reply::Reply::hang(),
            "odd/reset" => crate::support::reply::Reply::reset(),
            _ => return None,
        })
    });
    let body = r#"{"From_Account":"private-ann","FollowItem":[{"To_Account":"private-bob"}]}"#;
    let mut count = 0;
    for command in ["odd/echo", "odd/head", "odd/hang", "odd/reset", "follow/follow_add"] {
        let target = format!("/v4/{command}?usersig=private-sig&identifier=private-boss");
        gateway.ask(Ask::post(&target).body(body).token(token).header("X-Request-Id", "private-request")).await;
        count += 1;
    }
    let ask = Ask::check("private-ann", &["private-bob"]).token(token).header("Cookie", "private-cookie");
    gateway.ask(ask.clone().header("tracestate", "private=state").header("Chatgate-Explain", "1")).await.checked();
    gateway.ask(ask.target("/v4/follow/follow_check?private=1")).await;
    gateway.ask(Ask::post("/private").token("private-token")).await;
    count += 3;
    let requests = async || (collector.spans().iter().filter(|span| span.is_request()).count() == count).then_some(());
    eventually("all requests", requests).await;
    let bytes = collector.bytes();
    assert!(bytes.len() > 1000);
    for word in ["private", token, "usersig", "Bearer"] {
        assert!(memchr::memmem::find(&bytes, word.as_bytes()).is_none(), "{word}");
    }
    // Keys, tokens and signatures are searched for when the collector goes.
}
