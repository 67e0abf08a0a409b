//! `GET /metrics`: every documented metric, correct counts, Prometheus text format, and bounded label values.

use crate::support::app::{MAIN, OTHER};
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::exposition::Exposition;
use crate::support::gateway::Gateway;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::{Setup, gateway};
use crate::support::wire::free_address;
use crate::support::{eventually, unix_now};

async fn metrics(gateway: &Gateway) -> Exposition {
    let response = gateway.admin_get("/metrics").await;
    assert_eq!(response.status, 200, "{response:?}");
    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    Exposition::parse(&response.text())
}

const CHECK: (&str, &str) = ("command", "follow/follow_check");
const APP: (&str, &str) = ("app", "main");

fn requests(metrics: &Exposition, command: &str, outcome: &str) -> f64 {
    metrics.value("chatgate_requests_total", &[APP, ("command", command), ("outcome", outcome)])
}

fn calls(metrics: &Exposition, command: &str, code: &str) -> f64 {
    metrics.value("chatgate_upstream_calls_total", &[APP, ("command", command), ("error_code", code)])
}

#[tokio::test]
async fn all_metrics_exist_from_the_start() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let metrics = metrics(&gateway).await;
    for (name, kind) in [
        ("chatgate_requests_total", "counter"),
        ("chatgate_request_duration_seconds", "histogram"),
        ("chatgate_upstream_calls_total", "counter"),
        ("chatgate_upstream_duration_seconds", "histogram"),
        ("chatgate_follow_pairs_total", "counter"),
        ("chatgate_cache_pairs", "gauge"),
        ("chatgate_quota_wait_seconds", "histogram"),
        ("chatgate_usersig_expires_seconds", "gauge"),
        ("chatgate_upstream_state", "gauge"),
        ("chatgate_build_info", "gauge"),
        ("chatgate_connections", "gauge"),
        ("chatgate_requests_in_flight", "gauge"),
        ("chatgate_buffered_bytes", "gauge"),
        ("chatgate_log_lines_dropped_total", "counter"),
        ("process_cpu_seconds_total", "counter"),
        ("process_open_fds", "gauge"),
    ] {
        assert_eq!(metrics.types().get(name).map(String::as_str), Some(kind), "{name}");
    }
    let left = metrics.value("chatgate_usersig_expires_seconds", &[APP]);
    assert!((86_000.0..=86_401.0).contains(&left), "{left}");
    assert_eq!(metrics.value("chatgate_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert_eq!(metrics.value("chatgate_upstream_state", &[APP]), 0.0);
    if cfg!(target_os = "linux") {
        assert_eq!(metrics.types().get("process_resident_memory_bytes").map(String::as_str), Some("gauge"));
        assert!(metrics.value("process_resident_memory_bytes", &[]) > 1e6);
    }
    let age = unix_now() as f64 - metrics.value("process_start_time_seconds", &[]);
    assert!((-1.0..600.0).contains(&age), "{age}");
    assert_eq!(gateway.admin_get("/metrics/").await.status, 404);
}

#[tokio::test]
async fn requests_pairs_and_calls_are_counted_by_outcome() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob", "cyd", "bob"]).await.items();
    gateway.check("ann", &["bob", "cyd"]).await.items();
    gateway.check("bob", &["ann"]).await.items();
    gateway.call("follow/follow_check", "no json").await.assert_error(400, "bad_json", 60003);
    gateway.call("openim/querystate", "{}").await;
    chat.reply_always(Reply::json(r#"{"ActionStatus":"FAIL","ErrorCode":20003,"ErrorInfo":"no such user"}"#));
    gateway.call("openim/querystate", "{}").await;
    let metrics = metrics(&gateway).await;
    assert_eq!(requests(&metrics, "follow/follow_check", "ok"), 3.0);
    assert_eq!(requests(&metrics, "follow/follow_check", "bad_json"), 1.0);
    assert_eq!(requests(&metrics, "openim/querystate", "ok"), 1.0);
    assert_eq!(requests(&metrics, "openim/querystate", "failed"), 1.0);
    assert_eq!(calls(&metrics, "follow/follow_check", "0"), 1.0);
    assert_eq!(calls(&metrics, "openim/querystate", "20003"), 1.0);
    let pairs = |source| metrics.value("chatgate_follow_pairs_total", &[APP, ("source", source)]);
    assert_eq!(["hit", "joined", "fetched", "flipped", "stale"].map(pairs), [3.0, 0.0, 2.0, 0.0, 0.0]);
    assert_eq!(metrics.value("chatgate_cache_pairs", &[APP]), 2.0);
    assert_eq!(metrics.value("chatgate_request_duration_seconds_count", &[APP, CHECK]), 4.0);
    assert_eq!(metrics.value("chatgate_upstream_duration_seconds_count", &[]), 3.0);
    assert_eq!(metrics.value("chatgate_quota_wait_seconds_count", &[]), 3.0);
}

#[tokio::test]
async fn label_values_stay_bounded_for_any_input() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    chat.script(|call| {
        let code = call.command().bytes().map(i64::from).sum::<i64>() + 9_000_000;
        Some(Reply::json(format!(r#"{{"ActionStatus":"FAIL","ErrorCode":{code},"ErrorInfo":""}}"#)))
    });
    for number in 0..50 {
        gateway.call(&format!("made_up/command_{number}"), "{}").await;
        gateway.send(TestRequest::post(&format!("/no/path/{number}"))).await;
        gateway.send(TestRequest::post("/v4/a/b").header("Chatgate-App", &format!("app-{number}"))).await;
    }
    let metrics = metrics(&gateway).await;
    assert_eq!(requests(&metrics, "other", "failed"), 50.0);
    assert_eq!(calls(&metrics, "other", "other"), 50.0);
    let no_app = |outcome| [("app", ""), ("command", "other"), ("outcome", outcome)];
    for outcome in ["not_found", "unknown_app"] {
        assert_eq!(metrics.value("chatgate_requests_total", &no_app(outcome)), 50.0, "{outcome}");
    }
    assert_eq!(metrics.label_values("app").into_iter().collect::<Vec<_>>(), ["", "main"]);
    assert_eq!(metrics.label_values("command").into_iter().collect::<Vec<_>>(), ["other"]);
}

#[tokio::test]
async fn apps_and_upstream_failures_are_counted_separately() {
    let chat = FakeChat::start().await;
    let unreachable = format!("endpoint = \"http://{}\"", free_address());
    let setup = Setup::without_apps().app(MAIN, &chat.app_lines()).app(OTHER, &unreachable);
    let gateway = setup.timeout("300ms").start().await;
    let request = |app: &str| TestRequest::command("openim/querystate").header("Chatgate-App", app);
    chat.reply_always(Reply::hang());
    gateway.send(request("main")).await.assert_error(504, "upstream_timeout", 60008);
    gateway.send(request("other")).await.assert_error(502, "upstream_unreachable", 129_502);
    let metrics = metrics(&gateway).await;
    assert_eq!(calls(&metrics, "openim/querystate", "upstream_timeout"), 1.0);
    assert_eq!(metrics.sum("chatgate_upstream_calls_total", &[("app", "other")]), 0.0, "nothing was sent");
    let outcome = |app, outcome| {
        metrics
            .value("chatgate_requests_total", &[("app", app), ("command", "openim/querystate"), ("outcome", outcome)])
    };
    assert_eq!((outcome("main", "upstream_timeout"), outcome("other", "upstream_unreachable")), (1.0, 1.0));
}

#[tokio::test]
async fn gauges_show_requests_in_flight_and_return_to_zero() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let mut caller = gateway.connect().await;
    caller.send(TestRequest::check("ann", &["bob"]).bytes()).await;
    chat.wait_for_calls(1).await;
    let held = metrics(&gateway).await;
    let of_app = |name| held.value(name, &[APP]);
    assert_eq!(of_app("chatgate_upstream_calls_in_flight"), 1.0);
    assert_eq!(held.value("chatgate_requests_in_flight", &[]), 1.0);
    assert_eq!(held.value("chatgate_connections", &[]), 1.0);
    assert!(held.value("chatgate_buffered_bytes", &[]) > 0.0);
    gate.open();
    caller.read_response().await.items();
    drop(caller);
    eventually("all gauges are back to zero", async || {
        let now = metrics(&gateway).await;
        let held = ["chatgate_requests_in_flight", "chatgate_connections", "chatgate_buffered_bytes"];
        held.iter().all(|name| now.value(name, &[]) == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn abandoned_and_malformed_requests_are_counted() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    for (seen, request) in
        [TestRequest::command("openim/querystate"), TestRequest::check("a", &["b"])].into_iter().enumerate()
    {
        let mut disconnecting = gateway.connect().await;
        disconnecting.send(request.bytes()).await;
        chat.wait_for_calls(seen + 1).await;
        drop(disconnecting);
    }
    for head in ["POST /v4/a/b HTTP/1.1\r\nbroken\r\n\r\n".to_owned(), "x".repeat(70_000)] {
        let mut conn = gateway.connect().await;
        conn.send(head).await;
        conn.read_to_end().await;
    }
    let no_app = |outcome: &'static str| [("app", ""), ("command", "other"), ("outcome", outcome)];
    eventually("all four are counted", async || {
        let metrics = metrics(&gateway).await;
        let rejected =
            ["bad_request", "head_too_large"].map(|outcome| metrics.value("chatgate_requests_total", &no_app(outcome)));
        let abandoned = ["openim/querystate", CHECK.1].map(|command| requests(&metrics, command, "abandoned"));
        (rejected == [1.0, 1.0] && abandoned == [1.0, 1.0]).then_some(())
    })
    .await;
    gate.open();
}
