//! Callers that are slow, by accident or on purpose: they are cut, and nobody else notices.

use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::client::{Ask, Conn};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::reply::Reply;
use crate::support::setup::Setup;
use crate::support::{PATIENCE, now, turn, within};

const CALL: &str = "openim/querystate";

/// Sends `bytes` one by one, until they are all sent or the gateway has closed the connection.
async fn drip(conn: &mut Conn, bytes: &[u8]) {
    for byte in bytes {
        if conn.try_send([*byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn others_are_well(gateway: &Gateway) {
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn a_slow_head_is_closed_without_an_answer() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"head_timeout = "1s""#).start().await;
    let (begun, bytes) = (now(), Ask::command(CALL).header("X-Long", &"x".repeat(200)).bytes());
    let mut silent = gateway.connect().await;
    let mut half = gateway.connect().await;
    half.send(&bytes[..40]).await;
    let mut dripping = gateway.connect().await;
    // 200 bytes take ten seconds: every byte comes soon after the other, but the head as a whole does not.
    tokio::join!(drip(&mut dripping, &bytes), async {
        half.closed().await;
        assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        others_are_well(&gateway).await;
    });
    dripping.closed().await;
    silent.closed().await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(chat.count(), 1);
}

#[tokio::test]
async fn a_slow_body_is_a_timeout_by_its_total_time() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"body_timeout = "1s""#).start().await;
    let body = format!(r#"{{"x":"{}"}}"#, "y".repeat(300));
    for ask in [
        Ask::command(CALL).header("Content-Length", "308").body(""),
        Ask::command(CALL).header("Transfer-Encoding", "chunked").body("3\r\n{\"x\r\n"),
    ] {
        let mut conn = gateway.connect().await;
        conn.send(ask.bytes()).await;
        let begun = now();
        conn.answer().await.assert_error(408, "timeout", 129_408);
        assert!(
            (Duration::from_millis(900)..Duration::from_secs(4)).contains(&begun.elapsed()),
            "{:?}",
            begun.elapsed()
        );
        conn.closed().await;
    }
    let mut conn = gateway.connect().await;
    conn.send(Ask::command("follow/follow_check").header("Content-Length", "308").body("").bytes()).await;
    let begun = now();
    tokio::join!(drip(&mut conn, body.as_bytes()), others_are_well(&gateway));
    conn.answer().await.assert_error(408, "timeout", 129_408);
    assert!(begun.elapsed() < Duration::from_secs(16), "{:?}", begun.elapsed());
    assert_eq!(chat.count(), 1);
}

#[tokio::test]
async fn an_answer_that_is_not_read_is_cut() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"write_timeout = "1s""#).start().await;
    let large = format!(r#"{{"ErrorCode":0,"x":"{}"}}"#, "y".repeat(7 << 20));
    chat.once(Reply::json(large.clone()));
    let mut conn = Conn::open_narrow(gateway.address()).await;
    conn.send(Ask::command(CALL).bytes()).await;
    chat.seen(1).await;
    let begun = now();
    others_are_well(&gateway).await;
    // Not a byte is read until the gateway must have given up.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let got = within(PATIENCE, "the rest", conn.rest()).await;
    assert!(got.len() < large.len(), "{} bytes were waiting after {:?}", got.len(), begun.elapsed());
    others_are_well(&gateway).await;
}

#[tokio::test]
async fn a_large_answer_that_is_read_slowly_but_steadily_arrives() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).start().await;
    let large = format!(r#"{{"ErrorCode":0,"x":"{}"}}"#, "y".repeat(7 << 20));
    chat.once(Reply::json(large.clone()));
    let mut conn = Conn::open_narrow(gateway.address()).await;
    conn.send(Ask::command(CALL).bytes()).await;
    conn.answer().await.assert_relayed(200, &large);
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_idle_timeout() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"idle_timeout = "1s""#).start().await;
    let mut conn = gateway.connect().await;
    conn.ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
    let begun = now();
    conn.closed().await;
    assert!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_hundred_slow_callers_harm_nobody() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).start().await;
    let mut slow = Vec::new();
    for number in 0..100 {
        let mut conn = gateway.connect().await;
        let bytes = Ask::command(CALL).bytes();
        conn.send(&bytes[..bytes.len() - 1 - number % 20]).await;
        slow.push(conn);
    }
    let begun = now();
    for _ in 0..20 {
        others_are_well(&gateway).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(chat.count(), 20);
    // And those that were only slow are served when they finish.
    let mut last = slow.remove(0);
    last.send("}").await;
    last.answer().await.assert_relayed(200, OK);
}
