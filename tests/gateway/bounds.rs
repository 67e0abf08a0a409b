//! Every bound is kept, costs only the excess, and is over when the load is.

use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::client::{Ask, Conn};
use crate::support::graph::OK;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::{Setup, gateway};
use crate::support::{eventually, now};

const CALL: &str = "openim/querystate";

#[tokio::test]
async fn a_body_of_max_body_is_served_and_one_byte_more_is_too_large() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"max_body = "64KiB""#).start().await;
    let of_size = |size: usize| format!(r#"{{"x":"{}"}}"#, "y".repeat(size - 8));
    let at = of_size(64 * 1024);
    gateway.call(CALL, &at).await.assert_relayed(200, OK);
    assert_eq!(chat.last().body, at.as_bytes());
    gateway.call(CALL, of_size(64 * 1024 + 1)).await.assert_error(413, "body_too_large", 129_413);
    gateway.call("follow/follow_check", of_size(64 * 1024 + 1)).await.assert_error(413, "body_too_large", 129_413);
    let chunked = |body: &str| {
        let chunks: String = body
            .as_bytes()
            .chunks(1000)
            .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)))
            .collect();
        Ask::command(CALL).header("Transfer-Encoding", "chunked").body(chunks + "0\r\n\r\n")
    };
    gateway.ask(chunked(&at)).await.assert_relayed(200, OK);
    assert_eq!(chat.last().body, at.as_bytes());
    gateway.ask(chunked(&of_size(64 * 1024 + 1))).await.assert_error(413, "body_too_large", 129_413);
    assert_eq!(chat.count(), 2);
}

#[tokio::test]
async fn a_body_announced_too_large_is_refused_before_it_is_sent() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for length in ["1048577", "4294967296", "9223372036854775807"] {
        let begun = now();
        let answer = gateway.ask(Ask::command(CALL).header("Content-Length", length).body("")).await;
        answer.assert_error(413, "body_too_large", 129_413);
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
    // Who waits for 100 Continue is told at once, too.
    let polite = Ask::command(CALL).header("Content-Length", "9999999").header("Expect", "100-continue").body("");
    gateway.ask(polite).await.assert_error(413, "body_too_large", 129_413);
    // And an endless chunked body is cut.
    let mut conn = gateway.connect().await;
    conn.send(Ask::command(CALL).header("Transfer-Encoding", "chunked").body("").bytes()).await;
    let chunk = format!("10000\r\n{}\r\n", "z".repeat(0x10000));
    for _ in 0..64 {
        if conn.try_send(&chunk).await.is_err() {
            break;
        }
    }
    assert_eq!(chat.count(), 0);
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn a_target_over_8_kib_is_too_long() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let of_size = |size: usize| {
        let path = format!("/v4/{CALL}?random=");
        format!("{path}{}", "1".repeat(size - path.len()))
    };
    gateway.ask(Ask::post(&of_size(8 * 1024))).await.assert_relayed(200, OK);
    for size in [8 * 1024 + 1, 9_000, 40_000] {
        gateway.ask(Ask::post(&of_size(size))).await.assert_error(414, "uri_too_long", 129_414);
    }
    assert_eq!(chat.count(), 1);
}

#[tokio::test]
async fn a_head_over_64_kib_or_100_lines_is_too_large() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let lines = |count: usize| (0..count).fold(Ask::command(CALL), |ask, n| ask.header(&format!("X-{n}"), "v"));
    // Host and Content-Length are lines as well.
    gateway.ask(lines(98)).await.assert_relayed(200, OK);
    for count in [99, 120, 1000] {
        gateway.ask(lines(count)).await.assert_error(431, "head_too_large", 129_431);
    }
    let large = |size: usize| Ask::command(CALL).header("X-Large", &"v".repeat(size));
    gateway.ask(large(60 * 1024)).await.assert_relayed(200, OK);
    for size in [64 * 1024, 80 * 1024] {
        gateway.ask(large(size)).await.assert_error(431, "head_too_large", 129_431);
    }
    // Far beyond it, the answer may be lost behind bytes that nobody reads, but nothing else happens.
    let mut conn = gateway.connect().await;
    conn.send(large(4 << 20).bytes()).await;
    if let Some(answer) = conn.try_answer().await {
        answer.assert_error(431, "head_too_large", 129_431);
    }
    assert_eq!(chat.count(), 2);
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn beyond_max_requests_the_excess_alone_is_overloaded_and_at_once() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", "max_requests = 4").start().await;
    let gate = Gate::closed();
    chat.always(Reply::model().held(&gate));
    let mut held = Vec::new();
    for count in 1..=4 {
        let mut conn = gateway.connect().await;
        conn.send(Ask::command(CALL).bytes()).await;
        chat.seen(count).await;
        held.push(conn);
    }
    for _ in 0..10 {
        let begun = now();
        let answer = gateway.call(CALL, "{}").await;
        answer.assert_error(503, "overloaded", 129_503);
        answer.retry_after();
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
    assert_eq!(gateway.admin_get("/livez").await.status, 200, "the admin listener has its own room");
    gate.open();
    for mut conn in held {
        conn.answer().await.assert_relayed(200, OK);
    }
    assert_eq!(chat.count(), 4);
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn beyond_max_buffered_bytes_the_excess_alone_is_overloaded() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("server", r#"max_body = "1MiB""#).set("server", r#"max_buffered = "4MiB""#);
    let gateway = setup.set("upstream", r#"max_answer = "1MiB""#).deadline("60s").start().await;
    let gate = Gate::closed();
    chat.always(Reply::model().held(&gate));
    let body = format!(r#"{{"x":"{}"}}"#, "y".repeat(900_000));
    let mut refused = 0;
    let mut conns = Vec::new();
    for _ in 0..8 {
        let mut conn = gateway.connect().await;
        conn.send(Ask::command(CALL).body(&body).bytes()).await;
        conns.push(conn);
    }
    // Every body has been read or refused before the first call ends and makes room.
    eventually("all requests have met the bound", async || {
        let status = gateway.admin_get("/status").await.json();
        let refused = status["apps"][0]["since_start"]["requests"]["overloaded"].as_u64().unwrap_or(0);
        let held = status["requests_in_flight"]["now"].as_u64().expect("a number");
        (held + refused == 8).then_some(())
    })
    .await;
    gate.open();
    for mut conn in conns {
        let answer = conn.answer().await;
        if answer.status != 200 {
            refused += 1;
            answer.assert_error(503, "overloaded", 129_503);
            answer.retry_after();
        }
    }
    assert!((4..8).contains(&refused), "{refused} of 8 requests of 0.9 MB were refused at a bound of 4 MiB");
    gateway.call(CALL, &body).await.assert_relayed(200, OK);
}

#[tokio::test]
async fn no_more_than_max_in_flight_calls_are_upstream_at_once() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("upstream", "max_in_flight = 2").start().await;
    let gate = Gate::closed();
    chat.always(Reply::model().held(&gate));
    let mut conns = Vec::new();
    for _ in 0..6 {
        let mut conn = gateway.connect().await;
        conn.send(Ask::command(CALL).bytes()).await;
        conns.push(conn);
    }
    chat.seen(2).await;
    gateway.round_trips().await;
    assert_eq!(chat.count(), 2, "the others wait");
    gate.open();
    for mut conn in conns {
        conn.answer().await.assert_relayed(200, OK);
    }
    assert_eq!(chat.count(), 6);
}

#[tokio::test]
async fn connections_over_max_connections_are_closed_and_the_others_are_not() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", "max_connections = 8").start().await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut conn = gateway.connect().await;
        conn.ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
        held.push(conn);
    }
    for _ in 0..5 {
        // Closed by a FIN or a reset, before or after the request is written.
        if let Ok(mut conn) = Conn::open(gateway.address()).await {
            conn.send(Ask::command(CALL).bytes()).await;
            conn.closed().await;
        }
    }
    for conn in &mut held {
        conn.ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
    }
    assert_eq!(gateway.admin_get("/livez").await.status, 200);
    drop(held);
    eventually("there is room again", async || {
        let mut conn = Conn::open(gateway.address()).await.ok()?;
        conn.send(Ask::command(CALL).bytes()).await;
        conn.try_answer().await
    })
    .await
    .assert_relayed(200, OK);
}

#[tokio::test]
async fn without_room_in_flight_the_answer_is_overloaded() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("upstream", "max_in_flight = 1").set("upstream", "timeout = \"2s\"");
    let gateway = setup.start().await;
    chat.script(|call| (call.command() == CALL).then(Reply::hang));
    // The first one has the room until its deadline. Who comes soon after it is refused a moment before.
    for late in [Ask::command("openim/sendmsg"), Ask::check("ann", &["bob"])] {
        eventually("somebody finds no room", async || {
            let before = chat.count();
            let mut first = gateway.connect().await;
            first.send(Ask::command(CALL).bytes()).await;
            chat.seen(before + 1).await;
            let answer = gateway.ask(late.clone()).await;
            first.answer().await.assert_error(504, "upstream_timeout", 60008);
            // It came so late that there was room again.
            answer.slug()?;
            answer.assert_error(503, "overloaded", 129_503);
            answer.retry_after();
            assert!(answer.text().contains("upstream.max_in_flight"), "{answer:?}");
            Some(())
        })
        .await;
    }
}
