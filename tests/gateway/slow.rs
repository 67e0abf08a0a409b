//! Slow callers, accidental or malicious: their connections are closed, and other callers are unaffected.

use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::reply::Reply;
use crate::support::setup::Setup;
use crate::support::{PATIENCE, now, turn, within};

const CALL: &str = "openim/querystate";

/// Sends `bytes` one by one until all are sent or the gateway closes the connection.
async fn send_byte_by_byte(conn: &mut Conn, bytes: &[u8]) {
    for byte in bytes {
        if conn.try_send([*byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn assert_others_are_served(gateway: &Gateway) {
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn slow_request_headers_close_the_connection_without_a_response() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"head_timeout = "1s""#).start().await;
    let (start, bytes) = (now(), TestRequest::command(CALL).header("X-Long", &"x".repeat(200)).bytes());
    let mut silent = gateway.connect().await;
    let mut half = gateway.connect().await;
    half.send(&bytes[..40]).await;
    let mut dripping = gateway.connect().await;
    // 200 bytes take 10 s: each byte arrives soon after the previous one, but the headers as a whole are late.
    tokio::join!(send_byte_by_byte(&mut dripping, &bytes), async {
        half.assert_closed().await;
        assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        assert_others_are_served(&gateway).await;
    });
    dripping.assert_closed().await;
    silent.assert_closed().await;
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn body_timeout_limits_the_total_time_of_a_body() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"body_timeout = "1s""#).start().await;
    let body = format!(r#"{{"x":"{}"}}"#, "y".repeat(300));
    for request in [
        TestRequest::command(CALL).header("Content-Length", "308").body(""),
        TestRequest::command(CALL).header("Transfer-Encoding", "chunked").body("3\r\n{\"x\r\n"),
    ] {
        let mut conn = gateway.connect().await;
        conn.send(request.bytes()).await;
        let start = now();
        conn.read_response().await.assert_error(408, "timeout", 129_408);
        assert!(
            (Duration::from_millis(900)..Duration::from_secs(4)).contains(&start.elapsed()),
            "{:?}",
            start.elapsed()
        );
        conn.assert_closed().await;
    }
    let mut conn = gateway.connect().await;
    conn.send(TestRequest::command("follow/follow_check").header("Content-Length", "308").body("").bytes()).await;
    let start = now();
    tokio::join!(send_byte_by_byte(&mut conn, body.as_bytes()), assert_others_are_served(&gateway));
    conn.read_response().await.assert_error(408, "timeout", 129_408);
    assert!(start.elapsed() < Duration::from_secs(16), "{:?}", start.elapsed());
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn unread_response_is_cut_after_write_timeout() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"write_timeout = "1s""#).start().await;
    let large = format!(r#"{{"ErrorCode":0,"x":"{}"}}"#, "y".repeat(7 << 20));
    chat.reply_once(Reply::json(large.clone()));
    let mut conn = Conn::open_with_small_buffer(gateway.address()).await;
    conn.send(TestRequest::command(CALL).bytes()).await;
    chat.wait_for_calls(1).await;
    let start = now();
    assert_others_are_served(&gateway).await;
    // No byte is read until write_timeout has certainly expired.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let got = within(PATIENCE, "the rest", conn.read_to_end()).await;
    assert!(got.len() < large.len(), "{} bytes were readable after {:?}", got.len(), start.elapsed());
    assert_others_are_served(&gateway).await;
}

#[tokio::test]
async fn large_response_read_slowly_but_steadily_arrives() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).start().await;
    let large = format!(r#"{{"ErrorCode":0,"x":"{}"}}"#, "y".repeat(7 << 20));
    chat.reply_once(Reply::json(large.clone()));
    let mut conn = Conn::open_with_small_buffer(gateway.address()).await;
    conn.send(TestRequest::command(CALL).bytes()).await;
    conn.read_response().await.assert_relayed(200, &large);
}

#[tokio::test]
async fn idle_connection_is_closed_after_idle_timeout() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"idle_timeout = "1s""#).start().await;
    let mut conn = gateway.connect().await;
    conn.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    let start = now();
    conn.assert_closed().await;
    assert!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn hundred_slow_callers_do_not_affect_other_callers() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).start().await;
    let mut slow = Vec::new();
    for number in 0..100 {
        let mut conn = gateway.connect().await;
        let bytes = TestRequest::command(CALL).bytes();
        conn.send(&bytes[..bytes.len() - 1 - number % 20]).await;
        slow.push(conn);
    }
    let start = now();
    for _ in 0..20 {
        assert_others_are_served(&gateway).await;
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(chat.call_count(), 20);
    // A slow caller is served when it completes its request.
    let mut last = slow.remove(0);
    last.send("}").await;
    last.read_response().await.assert_relayed(200, OK);
}
