//! An unreachable, slow, or silent collector: requests are unaffected, and dropped spans are counted.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::collector::{Collector, Mode};
use crate::support::eventually;
use crate::support::exposition::Exposition;
use crate::support::gateway::Gateway;
use crate::support::setup::Setup;
use crate::support::wire::free_address;
use crate::support::{now, turn};

async fn metric(gateway: &Gateway, name: &str, labels: &[(&str, &str)]) -> f64 {
    Exposition::parse(&gateway.admin_get("/metrics").await.text()).value(name, labels)
}

async fn dropped(gateway: &Gateway, cause: &str) -> f64 {
    metric(gateway, "chatgate_trace_spans_dropped_total", &[("cause", cause)]).await
}

#[tokio::test]
async fn unreachable_collector_is_logged_once_and_fails_no_request() {
    let chat = FakeChat::start().await;
    let closed_port = free_address();
    let gateway = Setup::new(&chat).set("trace", &format!("otlp = 'http://{closed_port}'")).start().await;
    let mut caller = gateway.connect().await;
    let mut drop_counts = BTreeSet::new();
    let lost = async || {
        caller.request(&TestRequest::check("ann", &["bob"])).await.items();
        drop_counts.insert(dropped(&gateway, "export_failed").await as u64);
        (drop_counts.len() > 3).then_some(())
    };
    eventually("several batches of spans are dropped", lost).await;
    assert_eq!(metric(&gateway, "chatgate_trace_spans_exported_total", &[]).await, 0.0);
    assert_eq!(dropped(&gateway, "queue_full").await, 0.0);
    assert_eq!(gateway.log().matches("trace export failed").count(), 1, "{}", gateway.log());
    let start = now();
    assert_eq!(gateway.stop().await, 0, "dropped spans do not fail the stop");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn silent_collector_fills_the_queue_without_slowing_requests() {
    let _exclusive = turn::exclusive().await;
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    collector.set_mode(Mode::Silent);
    let gateway = Setup::new(&chat).set("trace", &collector.config_line()).start().await;
    let mut caller = gateway.connect().await;
    let mut slowest = Duration::ZERO;
    let full = async || {
        for _ in 0..500 {
            let start = now();
            caller.request(&TestRequest::check("ann", &["bob"])).await.items();
            slowest = slowest.max(start.elapsed());
        }
        (dropped(&gateway, "queue_full").await > 0.0).then_some(())
    };
    eventually("the queue is full", full).await;
    // An export may take 5 s. A request that waited for one would exceed this bound.
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    let queued = metric(&gateway, "chatgate_trace_spans_queued", &[]).await;
    assert!((7000.0..=8192.0).contains(&queued), "{queued}");
    // When the collector recovers, it receives the queued spans.
    collector.set_mode(Mode::Accept);
    eventually("the queued spans are exported", async || (collector.spans().len() >= 7000).then_some(())).await;
    eventually("the recovery is logged", async || gateway.log().contains("trace export recovered").then_some(())).await;
    let counted = async || (metric(&gateway, "chatgate_trace_spans_exported_total", &[]).await >= 7000.0).then_some(());
    eventually("the exported spans are counted", counted).await;
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn slow_collector_gets_all_spans_and_failures_are_counted() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    collector.set_mode(Mode::Delayed(Duration::from_millis(700)));
    let gateway = Setup::new(&chat).set("trace", &collector.config_line()).start().await;
    let mut caller = gateway.connect().await;
    for _ in 0..100 {
        caller.request(&TestRequest::check("ann", &["bob"])).await.items();
    }
    collector.wait_for_spans(101).await;
    let exported = async || (metric(&gateway, "chatgate_trace_spans_exported_total", &[]).await == 101.0).then_some(());
    eventually("all spans are counted as exported", exported).await;
    collector.set_mode(Mode::Fail(500));
    let before = collector.requests();
    caller.request(&TestRequest::check("ann", &["bob"])).await.items();
    wait_for_dropped(&gateway, 1.0).await;
    assert_eq!(collector.spans().len(), 101);
    assert_eq!(collector.requests(), before + 1, "an error that is not retryable is not retried");
    assert!(gateway.log().contains("the collector answered with HTTP status 500"), "{}", gateway.log());
    assert_eq!(collector.connections(), 1, "one connection carries all batches");
}

#[tokio::test]
async fn busy_collector_gets_the_batch_again_once() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let gateway = Setup::new(&chat).set("trace", &collector.config_line()).start().await;
    collector.set_mode(Mode::BusyOnce);
    gateway.check("ann", &["bob"]).await.items();
    collector.wait_for_spans(2).await;
    let exported = async || (metric(&gateway, "chatgate_trace_spans_exported_total", &[]).await == 2.0).then_some(());
    eventually("the spans are counted as exported", exported).await;
    assert_eq!((dropped(&gateway, "export_failed").await, collector.requests()), (0.0, 2));
    assert!(!gateway.log().contains("trace export failed"), "{}", gateway.log());

    collector.set_mode(Mode::Fail(503));
    gateway.check("ann", &["bob"]).await.items();
    wait_for_dropped(&gateway, 1.0).await;
    assert_eq!(collector.requests(), 4);
}

#[tokio::test]
async fn rejected_spans_are_counted_as_dropped_without_the_collectors_text() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let gateway = Setup::new(&chat).set("trace", &collector.config_line()).start().await;
    collector.set_mode(Mode::Reject(1));
    gateway.check("ann", &["bob"]).await.items();
    wait_for_dropped(&gateway, 1.0).await;
    assert_eq!(metric(&gateway, "chatgate_trace_spans_exported_total", &[]).await, 1.0);
    // A count beyond the batch does not exceed it.
    collector.set_mode(Mode::Reject(i64::MAX));
    gateway.check("ann", &["bob"]).await.items();
    wait_for_dropped(&gateway, 2.0).await;
    assert_eq!(metric(&gateway, "chatgate_trace_spans_exported_total", &[]).await, 1.0);
    let log = gateway.log();
    assert!(log.contains("the collector rejected some of the spans"), "{log}");
    assert!(!log.contains("a reason of the collector"), "{log}");
}

#[tokio::test]
async fn oversized_response_is_not_read_and_its_spans_count() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let gateway = Setup::new(&chat).set("trace", &collector.config_line()).start().await;
    collector.set_mode(Mode::Verbose);
    for exported in [2.0, 3.0] {
        gateway.check("ann", &["bob"]).await.items();
        let reached =
            async || (metric(&gateway, "chatgate_trace_spans_exported_total", &[]).await == exported).then_some(());
        eventually("the spans are counted as exported", reached).await;
    }
    assert_eq!(collector.connections(), 2, "the connection with the rest of the response is closed");
}

/// Waits until this number of spans is counted as dropped because the export failed.
async fn wait_for_dropped(gateway: &Gateway, count: f64) {
    eventually("the spans are counted as dropped", async || {
        (dropped(gateway, "export_failed").await == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn stop_exports_queued_spans_within_a_time_limit() {
    let _exclusive = turn::exclusive().await;
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let gateway = Setup::new(&chat).set("trace", &collector.config_line()).start().await;
    for _ in 0..5 {
        gateway.check("ann", &["bob"]).await.items();
    }
    assert_eq!(gateway.stop().await, 0);
    collector.wait_for_spans(6).await;

    collector.set_mode(Mode::Silent);
    let gateway = Setup::new(&chat).set("trace", &collector.config_line()).start().await;
    gateway.check("ann", &["bob"]).await.items();
    let start = now();
    assert_eq!(gateway.stop().await, 0);
    // The final export may take 3 s; a drain may take 25 s.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());

    let setup = Setup::new(&chat).set("trace", &collector.config_line()).set("server", r#"drain_timeout = "300ms""#);
    let gateway = setup.start().await;
    gateway.check("ann", &["bob"]).await.items();
    let start = now();
    assert_eq!(gateway.stop().await, 0);
    assert!(start.elapsed() < Duration::from_millis(2900), "{:?}", start.elapsed());
}

#[tokio::test]
async fn exported_spans_contain_no_secrets_or_user_names() {
    let (chat, collector) = (FakeChat::start().await, Collector::start().await);
    let token = "a-token-of-the-feed-0123";
    let setup = Setup::new(&chat).caller("feed", token, "allow = ['*']").set("trace", &collector.config_line());
    let gateway = setup.set("log", r#"level = "trace""#).set("server", "explain = true").timeout("1s").start().await;
    chat.script(|call| {
        let sig = call.usersig();
        let reply = crate::support::graph::error_response;
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
        gateway
            .send(TestRequest::post(&target).body(body).token(token).header("X-Request-Id", "private-request"))
            .await;
        count += 1;
    }
    let request = TestRequest::check("private-ann", &["private-bob"]).token(token).header("Cookie", "private-cookie");
    gateway.send(request.clone().header("tracestate", "private=state").header("Chatgate-Explain", "1")).await.items();
    gateway.send(request.target("/v4/follow/follow_check?private=1")).await;
    gateway.send(TestRequest::post("/private").token("private-token")).await;
    count += 3;
    let requests = async || (collector.spans().iter().filter(|span| span.is_request()).count() == count).then_some(());
    eventually("all request spans are exported", requests).await;
    let bytes = collector.bytes();
    assert!(bytes.len() > 1000);
    for word in ["private", token, "usersig", "Bearer"] {
        assert!(memchr::memmem::find(&bytes, word.as_bytes()).is_none(), "{word}");
    }
    // The collector searches for keys, tokens, and signatures when it is dropped.
}
