//! Limits: each is enforced, rejects only the excess, and no longer rejects when the load ends.

use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::graph::OK;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::{Setup, gateway};
use crate::support::{eventually, now, within};

const CALL: &str = "openim/querystate";

#[tokio::test]
async fn body_over_max_body_is_rejected() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"max_body = "64KiB""#).start().await;
    let of_size = |size: usize| format!(r#"{{"x":"{}"}}"#, "y".repeat(size - 8));
    let largest = of_size(64 * 1024);
    gateway.call(CALL, &largest).await.assert_relayed(200, OK);
    assert_eq!(chat.last_call().body, largest.as_bytes());
    gateway.call(CALL, of_size(64 * 1024 + 1)).await.assert_error(413, "body_too_large", 129_413);
    gateway.call("follow/follow_check", of_size(64 * 1024 + 1)).await.assert_error(413, "body_too_large", 129_413);
    let chunked = |body: &str| {
        let chunks: String = body
            .as_bytes()
            .chunks(1000)
            .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)))
            .collect();
        TestRequest::command(CALL).header("Transfer-Encoding", "chunked").body(chunks + "0\r\n\r\n")
    };
    gateway.send(chunked(&largest)).await.assert_relayed(200, OK);
    assert_eq!(chat.last_call().body, largest.as_bytes());
    gateway.send(chunked(&of_size(64 * 1024 + 1))).await.assert_error(413, "body_too_large", 129_413);
    assert_eq!(chat.call_count(), 2);
}

#[tokio::test]
async fn too_large_content_length_is_rejected_before_the_body() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for length in ["1048577", "4294967296", "9223372036854775807"] {
        let started = now();
        let response = gateway.send(TestRequest::command(CALL).header("Content-Length", length).body("")).await;
        response.assert_error(413, "body_too_large", 129_413);
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    // A client that waits for 100 Continue gets the error at once, too.
    let expecting =
        TestRequest::command(CALL).header("Content-Length", "9999999").header("Expect", "100-continue").body("");
    gateway.send(expecting).await.assert_error(413, "body_too_large", 129_413);
    // An endless chunked body is cut off.
    let mut conn = gateway.connect().await;
    conn.send(TestRequest::command(CALL).header("Transfer-Encoding", "chunked").body("").bytes()).await;
    let chunk = format!("10000\r\n{}\r\n", "z".repeat(0x10000));
    for _ in 0..64 {
        if conn.try_send(&chunk).await.is_err() {
            break;
        }
    }
    assert_eq!(chat.call_count(), 0);
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn target_over_8_kib_is_rejected() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let of_size = |size: usize| {
        let path = format!("/v4/{CALL}?random=");
        format!("{path}{}", "1".repeat(size - path.len()))
    };
    gateway.send(TestRequest::post(&of_size(8 * 1024))).await.assert_relayed(200, OK);
    for size in [8 * 1024 + 1, 9_000, 40_000] {
        gateway.send(TestRequest::post(&of_size(size))).await.assert_error(414, "uri_too_long", 129_414);
    }
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn headers_over_64_kib_or_100_fields_are_rejected() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let with_fields =
        |count: usize| (0..count).fold(TestRequest::command(CALL), |request, n| request.header(&format!("X-{n}"), "v"));
    // Host and Content-Length count too.
    gateway.send(with_fields(98)).await.assert_relayed(200, OK);
    for count in [99, 120, 1000] {
        gateway.send(with_fields(count)).await.assert_error(431, "head_too_large", 129_431);
    }
    let large = |size: usize| TestRequest::command(CALL).header("X-Large", &"v".repeat(size));
    gateway.send(large(60 * 1024)).await.assert_relayed(200, OK);
    for size in [64 * 1024, 80 * 1024] {
        gateway.send(large(size)).await.assert_error(431, "head_too_large", 129_431);
    }
    // Far beyond the limit, unread bytes may reset the connection before the response arrives. Nothing else happens.
    let mut conn = gateway.connect().await;
    conn.send(large(4 << 20).bytes()).await;
    if let Some(response) = conn.try_read_response().await {
        response.assert_error(431, "head_too_large", 129_431);
    }
    assert_eq!(chat.call_count(), 2);
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn requests_over_max_requests_are_rejected_at_once() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", "max_requests = 4").start().await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let mut held = Vec::new();
    for count in 1..=4 {
        let mut conn = gateway.connect().await;
        conn.send(TestRequest::command(CALL).bytes()).await;
        chat.wait_for_calls(count).await;
        held.push(conn);
    }
    for _ in 0..10 {
        let started = now();
        let response = gateway.call(CALL, "{}").await;
        response.assert_error(503, "overloaded", 129_503);
        response.retry_after();
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    }
    assert_eq!(gateway.admin_get("/livez").await.status, 200, "the admin listener has its own limit");
    gate.open();
    for mut conn in held {
        conn.read_response().await.assert_relayed(200, OK);
    }
    assert_eq!(chat.call_count(), 4);
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn requests_over_max_buffered_are_rejected() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("server", r#"max_body = "1MiB""#).set("server", r#"max_buffered = "4MiB""#);
    let gateway = setup.set("upstream", r#"max_answer = "1MiB""#).timeout("60s").start().await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let body = format!(r#"{{"x":"{}"}}"#, "y".repeat(900_000));
    let mut rejected = 0;
    let mut conns = Vec::new();
    for _ in 0..8 {
        let mut conn = gateway.connect().await;
        conn.send(TestRequest::command(CALL).body(&body).bytes()).await;
        conns.push(conn);
    }
    // Every body is read or rejected before the first call ends and frees its bytes.
    eventually("all requests are admitted or rejected", async || {
        let status = gateway.admin_get("/status").await.json();
        let rejected = status["apps"][0]["since_start"]["requests"]["overloaded"].as_u64().unwrap_or(0);
        let held = status["requests_in_flight"]["now"].as_u64().expect("a number");
        (held + rejected == 8).then_some(())
    })
    .await;
    gate.open();
    for mut conn in conns {
        let response = conn.read_response().await;
        if response.status != 200 {
            rejected += 1;
            response.assert_error(503, "overloaded", 129_503);
            response.retry_after();
        }
    }
    assert!((4..8).contains(&rejected), "{rejected} of 8 requests of 0.9 MB were rejected at a limit of 4 MiB");
    gateway.call(CALL, &body).await.assert_relayed(200, OK);
}

#[tokio::test]
async fn calls_in_flight_never_exceed_max_in_flight() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("upstream", "max_in_flight = 2").start().await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let mut conns = Vec::new();
    for _ in 0..6 {
        let mut conn = gateway.connect().await;
        conn.send(TestRequest::command(CALL).bytes()).await;
        conns.push(conn);
    }
    chat.wait_for_calls(2).await;
    gateway.round_trips().await;
    assert_eq!(chat.call_count(), 2, "the other calls are queued");
    gate.open();
    for mut conn in conns {
        conn.read_response().await.assert_relayed(200, OK);
    }
    assert_eq!(chat.call_count(), 6);
}

#[tokio::test]
async fn idle_connections_do_not_shut_the_admin_listener() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", "admin_max_connections = 8").start().await;
    let mut held = Vec::new();
    for number in 0..24 {
        let mut conn = Conn::open(gateway.admin()).await.expect("accepted");
        // Every other one says nothing at all.
        if number % 2 == 0 {
            assert_eq!(conn.request(&TestRequest::new("GET", "/livez")).await.status, 200);
        }
        held.push(conn);
    }
    assert_eq!(gateway.admin_get("/readyz").await.status, 200);
    let status = gateway.admin_get("/status").await.json();
    assert_eq!(status["admin_connections"], serde_json::json!({ "now": 8, "max": 8 }));
    let text = gateway.admin_get("/metrics").await.text();
    assert!(text.contains("chatgate_admin_connections 8\n"), "{text}");
    let recycled = text.lines().find_map(|line| line.strip_prefix("chatgate_admin_connections_recycled_total "));
    assert!(recycled.and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count >= 17), "{recycled:?}");
    held[0].assert_closed().await;
}

#[tokio::test]
async fn idle_timeout_closes_admin_connections() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"idle_timeout = "200ms""#).start().await;
    let mut conn = Conn::open(gateway.admin()).await.expect("accepted");
    assert_eq!(conn.request(&TestRequest::new("GET", "/livez")).await.status, 200);
    // Without the setting it would stay open for 20 s.
    within(Duration::from_secs(15), "the end of the connection", conn.assert_closed()).await;
}

#[tokio::test]
async fn busy_connections_fill_the_admin_listener_with_a_warning() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", "admin_max_connections = 8").start().await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut conn = Conn::open(gateway.admin()).await.expect("accepted");
        // A request in flight: its body is still to come.
        conn.send("POST /cache/evict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            .await;
        assert_eq!(conn.read_interim_status().await, 100);
        held.push(conn);
    }
    if let Ok(mut conn) = Conn::open(gateway.admin()).await {
        conn.send(TestRequest::new("GET", "/livez").bytes()).await;
        conn.assert_closed().await;
    }
    eventually("the refusal is logged", async || gateway.log().contains("server.admin_max_connections").then_some(()))
        .await;
    held[0].send("{}").await;
    assert_eq!(held[0].read_response().await.status, 200);
    assert_eq!(gateway.admin_get("/livez").await.status, 200);
}

#[tokio::test]
async fn connections_over_max_connections_are_closed() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", "max_connections = 8").start().await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut conn = gateway.connect().await;
        conn.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
        held.push(conn);
    }
    for _ in 0..5 {
        // The gateway closes it with a FIN or a reset, before or after the request is written.
        if let Ok(mut conn) = Conn::open(gateway.address()).await {
            conn.send(TestRequest::command(CALL).bytes()).await;
            conn.assert_closed().await;
        }
    }
    for conn in &mut held {
        conn.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    }
    assert_eq!(gateway.admin_get("/livez").await.status, 200);
    drop(held);
    eventually("a new connection is accepted", async || {
        let mut conn = Conn::open(gateway.address()).await.ok()?;
        conn.send(TestRequest::command(CALL).bytes()).await;
        conn.try_read_response().await
    })
    .await
    .assert_relayed(200, OK);
}

#[tokio::test]
async fn request_without_in_flight_slot_is_rejected() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("upstream", "max_in_flight = 1").set("upstream", "timeout = \"2s\"");
    let gateway = setup.start().await;
    chat.script(|call| (call.command() == CALL).then(Reply::hang));
    // The first call holds the only slot until its deadline. A request that arrives shortly after it is rejected
    // shortly before that deadline.
    for queued in [TestRequest::command("openim/sendmsg"), TestRequest::check("ann", &["bob"])] {
        eventually("a request finds no free slot", async || {
            let before = chat.call_count();
            let mut first = gateway.connect().await;
            first.send(TestRequest::command(CALL).bytes()).await;
            chat.wait_for_calls(before + 1).await;
            let response = gateway.send(queued.clone()).await;
            first.read_response().await.assert_error(504, "upstream_timeout", 60008);
            // If the request arrived too late, the slot was free again.
            response.slug()?;
            response.assert_error(503, "overloaded", 129_503);
            response.retry_after();
            assert!(response.text().contains("upstream.max_in_flight"), "{response:?}");
            Some(())
        })
        .await;
    }
}
