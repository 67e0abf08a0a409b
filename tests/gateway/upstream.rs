//! Upstream failures: the errors they become, and the isolation of other requests.

use std::time::Duration;

use crate::support::PATIENCE;
use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::graph::OK;
use crate::support::now;
use crate::support::reply::{Reply, ReplyKind, render};
use crate::support::setup::{Setup, gateway};
use crate::support::wire::free_address;

/// A write command, which must never be sent twice.
const WRITE: &str = "openim/sendmsg";
const CHECK_BODY: &str = r#"{"From_Account":"a","To_Account":["b"]}"#;

#[tokio::test]
async fn refused_connection_is_upstream_unreachable() {
    let address = free_address();
    let gateway = Setup::without_apps().app(MAIN, &format!("endpoint = \"http://{address}\"")).start().await;
    for command in [WRITE, "follow/follow_check"] {
        let response = gateway.call(command, CHECK_BODY).await;
        response.assert_error(502, "upstream_unreachable", 129_502);
    }
    assert_eq!(gateway.admin_get("/readyz").await.status, 200, "readiness never calls upstream");
    let chat = FakeChat::start_on(address).await;
    gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn broken_connection_is_upstream_unreachable_and_writes_sent_once() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let whole = render(200, Some("application/json"), OK.as_bytes());
    let breaks = [
        Reply::reset(),
        Reply::bytes(""),
        Reply::bytes("HTTP/1.1 200 OK\r\nContent-"),
        Reply::bytes(&whole[..whole.len() - 1]),
        ReplyKind::Reset(whole[..whole.len() - 10].to_vec()).into(),
        Reply::bytes(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{OK}\r\n", OK.len())),
    ];
    for reply in breaks {
        let before = chat.call_count();
        chat.reply_always(reply);
        gateway.call(WRITE, "{}").await.assert_error(502, "upstream_unreachable", 129_502);
        assert_eq!(chat.call_count(), before + 1, "sent once");
    }
    chat.clear_script();
    gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn malformed_upstream_response_is_upstream_invalid_and_not_relayed() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let html = "<html><body>502 Bad Gateway, honest</body></html>";
    let bodies = [
        html,
        "",
        "null",
        "[]",
        "{}",
        "0",
        r#"{"ActionStatus":"OK"}"#,
        r#"{"ErrorCode":"0"}"#,
        r#"{"ErrorCode":0.5}"#,
        r#"{"ErrorCode":null}"#,
        r#"{"ErrorCode":[0]}"#,
        r#"{"ErrorCode":0"#,
        r#"{"ErrorCode":0}}"#,
        r#"[{"ErrorCode":0}]"#,
        r#"{"Inner":{"ErrorCode":0}}"#,
    ];
    for status in [200, 500] {
        for body in bodies {
            let before = chat.call_count();
            chat.reply_always(Reply::typed(status, "text/html", body));
            let response = gateway.call(WRITE, "{}").await;
            response.assert_error(502, "upstream_invalid", 60013);
            assert!(!response.text().contains("honest"), "{response:?}");
            assert_eq!(chat.call_count(), before + 1, "a write is sent once: {body}");
            let response = gateway.call("follow/follow_check", CHECK_BODY).await;
            response.assert_error(502, "upstream_invalid", 60013);
        }
    }
    chat.reply_always(Reply::json(b"{\"ErrorCode\":0,\"x\":\"\xff\"}".as_slice()));
    gateway.call(WRITE, "{}").await.assert_error(502, "upstream_invalid", 60013);
    chat.reply_always(Reply::bytes("SSH-2.0-OpenSSH_9.6\r\n\r\n"));
    assert_eq!(gateway.call(WRITE, "{}").await.status, 502);
    chat.clear_script();
    gateway.check("a", &["b"]).await.items();
}

#[tokio::test]
async fn redirects_are_never_followed() {
    let chat = FakeChat::start().await;
    let trap = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let location = format!("http://{}/v4/openim/sendmsg", trap.address());
    for status in [301, 302, 307, 308] {
        chat.reply_always(Reply::bytes(format!(
            "HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        )));
        let response = gateway.call(WRITE, "{}").await;
        response.assert_error(502, "upstream_invalid", 60013);
        assert_eq!(response.header("location"), None);
    }
    assert_eq!(trap.accepted_connections(), 0);
}

#[tokio::test]
async fn silent_upstream_is_upstream_timeout_at_the_deadline() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).timeout("1s").start().await;
    let head_alone = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", OK.len());
    for reply in [Reply::hang(), Reply::stall(head_alone)] {
        chat.reply_always(reply);
        for (command, calls) in [(WRITE, 1), ("follow/follow_check", 0)] {
            let (before, start) = (chat.call_count(), now());
            gateway.call(command, CHECK_BODY).await.assert_error(504, "upstream_timeout", 60008);
            let took = start.elapsed();
            assert!((Duration::from_millis(900)..Duration::from_secs(3)).contains(&took), "{command} took {took:?}");
            if calls > 0 {
                assert_eq!(chat.call_count(), before + calls, "a write is sent once");
            }
        }
    }
    chat.clear_script();
    gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn upstream_responses_over_max_answer_are_rejected() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("upstream", r#"max_answer = "64KiB""#).start().await;
    let of_size = |size: usize| {
        let frame = r#"{"ErrorCode":0,"x":""}"#;
        format!("{}{}\"}}", &frame[..frame.len() - 2], "y".repeat(size - frame.len()))
    };
    let at = of_size(64 * 1024);
    chat.reply_always(Reply::json(at.clone()));
    gateway.call(WRITE, "{}").await.assert_relayed(200, &at);
    let over = of_size(64 * 1024 + 1);
    let chunked =
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{over}\r\n0\r\n\r\n", over.len());
    let endless = |first: &str, more: &str| ReplyKind::Endless { first: first.into(), more: more.into() }.into();
    let replies: [Reply; 3] = [
        endless("HTTP/1.1 200 OK\r\n", "X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"),
        endless("HTTP/1.1 200 OK\r\nX: ", &"b".repeat(4096)),
        endless("HTTP/1.1 200 OK\r\n\r\n{\"ErrorCode\":0,\"x\":\"", &"z".repeat(16 * 1024)),
    ];
    chat.reply_always(Reply::json(over));
    assert_eq!(gateway.call(WRITE, "{}").await.status, 502);
    chat.reply_always(Reply::bytes(chunked));
    assert_eq!(gateway.call(WRITE, "{}").await.status, 502);
    for reply in replies {
        chat.reply_always(reply);
        let start = now();
        let response = gateway.call(WRITE, "{}").await;
        assert!([502, 504].contains(&response.status), "{response:?}");
        assert!(start.elapsed() < PATIENCE / 2);
    }
    chat.clear_script();
    gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn surplus_upstream_bytes_never_answer_the_next_call() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let poison = render(200, Some("application/json"), br#"{"ErrorCode":0,"Poison":1}"#);
    let honest = render(200, Some("application/json"), OK.as_bytes());
    // Both are written at once and the connection stays open, so the surplus waits in the connection.
    chat.reply_once(Reply::stall([honest, poison].concat()));
    gateway.call(WRITE, "{}").await.assert_relayed(200, OK);
    for _ in 0..5 {
        gateway.send(TestRequest::command(WRITE)).await.assert_relayed(200, OK);
    }
}
