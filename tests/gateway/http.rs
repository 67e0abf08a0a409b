//! Requests in raw bytes: what is not plainly one request is refused, or is exactly one and nothing after it.

use crate::support::answer::Answer;
use crate::support::chat::FakeChat;
use crate::support::client::{Ask, Conn};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::h2::Http2;
use crate::support::setup::gateway;

const CALL: &str = "openim/querystate";
/// What a smuggled request would look like.
const SMUGGLED: &str = "POST /v4/openim/smuggled HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";

/// A request with these header lines, each ended by CRLF, and what follows the head.
fn raw(lines: &str, rest: &str) -> Vec<u8> {
    format!("POST /v4/{CALL} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n{rest}").into_bytes()
}

/// All whole answers in `bytes`.
fn all_answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some((answer, len)) = Answer::read(bytes, false) {
        answers.push(answer);
        bytes = &bytes[len..];
    }
    answers
}

/// Nothing was smuggled, and a sound request on a new connection still works.
async fn still_sound(gateway: &Gateway, chat: &FakeChat) {
    assert!(chat.calls_of("openim/smuggled").is_empty(), "a request was smuggled");
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

/// Sends the bytes and expects a refusal of one of these statuses, no call, and a closed connection.
async fn refused(gateway: &Gateway, chat: &FakeChat, bytes: &[u8], statuses: &[u16]) {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
    let before = chat.count();
    let mut conn = gateway.connect().await;
    conn.send(bytes).await;
    let answers = all_answers(&conn.rest().await);
    assert_eq!(chat.count(), before, "reached upstream: {shown:?}");
    let seen: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert!(seen.len() == 1 && statuses.contains(&seen[0]), "{seen:?} for {shown:?}");
    still_sound(gateway, chat).await;
}

/// Sends the bytes and expects a refusal, or one call and one answer; the connection is closed either way.
async fn safe_and_closed(gateway: &Gateway, chat: &FakeChat, bytes: &[u8]) {
    let shown = String::from_utf8_lossy(bytes).into_owned();
    let before = chat.count();
    let mut conn = gateway.connect().await;
    conn.send(bytes).await;
    let answers = all_answers(&conn.rest().await);
    assert_eq!(answers.len(), 1, "{shown:?}: {answers:?}");
    match answers[0].status {
        200 => assert_eq!(chat.count(), before + 1, "{shown:?}"),
        400..=499 | 501 => assert_eq!(chat.count(), before, "{shown:?}"),
        other => panic!("status {other} for {shown:?}"),
    }
    still_sound(gateway, chat).await;
}

#[tokio::test]
async fn h01_a_length_beside_chunks_is_safe_and_closed() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let chunks = format!("2\r\n{{}}\r\n0\r\n\r\n{SMUGGLED}");
    for lines in [
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 400\r\n",
    ] {
        safe_and_closed(&gateway, &chat, &raw(lines, &chunks)).await;
    }
}

#[tokio::test]
async fn h02_a_length_that_is_not_one_number_is_refused() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for value in ["2, 2", "2,3", "+2", "-2", "", "0x2", "2 2", "2a", "1e1", "99999999999999999999999999", "٢"] {
        refused(&gateway, &chat, &raw(&format!("Content-Length: {value}\r\n"), "{}"), &[400, 413]).await;
    }
    for (first, second) in [("2", "3"), ("3", "2"), ("2", ""), ("0", "2")] {
        let lines = format!("Content-Length: {first}\r\nContent-Length: {second}\r\n");
        refused(&gateway, &chat, &raw(&lines, &format!("{{}}{SMUGGLED}")), &[400]).await;
    }
}

#[tokio::test]
async fn h03_a_transfer_encoding_that_is_not_plainly_chunked_is_refused() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let chunks = format!("2\r\n{{}}\r\n0\r\n\r\n{SMUGGLED}");
    for lines in [
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding:\r\n",
    ] {
        refused(&gateway, &chat, &raw(lines, &chunks), &[400, 501]).await;
    }
    let old = format!("POST /v4/{CALL} HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
    refused(&gateway, &chat, old.as_bytes(), &[400, 501]).await;
}

#[tokio::test]
async fn broken_chunks_never_become_a_call() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for chunks in [
        "x\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}xx0\r\n\r\n",
        "-2\r\n{}\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n",
        "2 \n{}\r\n0\r\n\r\n",
        "\r\n{}\r\n0\r\n\r\n",
    ] {
        refused(&gateway, &chat, &raw("Transfer-Encoding: chunked\r\n", &format!("{chunks}{SMUGGLED}")), &[400]).await;
    }
    // Extensions and trailers are legal. They end here.
    let legal = "1;ext=1\r\n{\r\n1\r\n}\r\n0\r\nX-Trailer: seen-only-here\r\n\r\n";
    let mut conn = gateway.connect().await;
    conn.send(raw("Transfer-Encoding: chunked\r\n", legal)).await;
    conn.answer().await.assert_relayed(200, OK);
    assert_eq!(chat.last().body, b"{}");
    conn.ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
}

#[tokio::test]
async fn h06_header_lines_that_are_not_to_the_letter_are_refused() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for line in [
        "X-Folded: a\r\n b",
        "X-Folded: a\r\n\tb",
        "X-Space : a",
        ": empty name",
        "no colon at all",
        "X Name: a",
        "X-Nul: a\0b",
        "X-Cr: a\rb",
        "X(Name): a",
        "\u{e9}: a",
        " Leading: a",
    ] {
        refused(&gateway, &chat, &raw(&format!("{line}\r\nContent-Length: 2\r\n"), "{}"), &[400]).await;
    }
    let spaced_length = raw("Content-Length : 2\r\n", &format!("{{}}{SMUGGLED}"));
    refused(&gateway, &chat, &spaced_length, &[400]).await;
}

#[tokio::test]
async fn h07_a_request_has_exactly_one_host() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let with_hosts =
        |hosts: &str| format!("POST /v4/{CALL} HTTP/1.1\r\n{hosts}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}");
    for hosts in [
        "",
        "Host:\r\n",
        "Host: localhost\r\nHost: localhost\r\n",
        "Host: localhost\r\nHost: evil.example\r\n",
        "Host: evil.example\r\nHost: localhost\r\n",
        "Host: localhost, evil.example\r\n",
        "Host: evil@localhost\r\n",
        "Host: localhost/evil\r\n",
        "Host: localhost:x\r\n",
    ] {
        refused(&gateway, &chat, with_hosts(hosts).as_bytes(), &[400, 403]).await;
    }
    let old = format!("POST /v4/{CALL} HTTP/1.0\r\nContent-Length: 2\r\n\r\n{{}}");
    refused(&gateway, &chat, old.as_bytes(), &[400, 403]).await;
}

#[tokio::test]
async fn h09_targets_that_are_no_plain_path_never_become_a_call() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for target in [
        "http://evil.example/v4/openim/querystate",
        "https://localhost@evil.example/v4/openim/querystate",
        "/v4/openim/querystate%23",
        "/v4/openim/query state",
        "*",
        "localhost:80",
        "v4/openim/querystate",
        "",
        "/v4/openim/querystate\t",
        "/v4/openim/querystate\u{7f}",
        "/v4/openim/querystat\u{e9}",
        "ftp://localhost/v4/openim/querystate",
    ] {
        let bytes =
            format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
        refused(&gateway, &chat, bytes.as_bytes(), &[400, 403, 404]).await;
    }
    // Every server must understand its own name in absolute form (RFC 9112, 3.2.2), or refuse it.
    let own = format!(
        "POST http://localhost/v4/{CALL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    );
    safe_and_closed(&gateway, &chat, own.as_bytes()).await;
    // A fragment is no part of a target (RFC 9110, 4.2.5): it is cut off by the HTTP library, or refused.
    let fragment =
        format!("POST /v4/{CALL}#x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
    safe_and_closed(&gateway, &chat, fragment.as_bytes()).await;
}

#[tokio::test]
async fn h11_connect_is_refused() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for target in [chat.address().to_string(), "localhost:443".to_owned(), format!("/v4/{CALL}")] {
        let mut conn = gateway.connect().await;
        conn.send(format!("CONNECT {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        let answer = conn.answer().await;
        assert!((400..500).contains(&answer.status), "{answer:?}");
    }
    assert_eq!((chat.count(), chat.accepted()), (0, 0));
    still_sound(&gateway, &chat).await;
}

#[tokio::test]
async fn bytes_that_are_no_http_are_closed() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"\r\n\r\n\r\n\0\0\0\0",
        b"GET\r\n\r\n",
        b"POST /v4/openim/querystate\r\n\r\n",
        b"POST /v4/openim/querystate HTTP/3.0\r\nHost: localhost\r\n\r\n",
        b"POST /v4/openim/querystate HTTP/1.1 x\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense after the preface",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    ] {
        let mut conn = gateway.connect().await;
        conn.send(bytes).await;
        let rest = conn.rest().await;
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 4") || !rest.starts_with(b"HTTP/"), "{rest:?}");
    }
    assert_eq!(chat.count(), 0);
    still_sound(&gateway, &chat).await;
}

#[tokio::test]
async fn the_body_of_a_refused_request_is_never_read_as_the_next_one() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let asks = [
        Ask::post("/nowhere"),
        Ask::new("PUT", &format!("/v4/{CALL}")),
        Ask::new("GET", &format!("/v4/{CALL}")),
        Ask::post(&format!("/v4/{CALL}?x=1")),
        Ask::post("/apps/none/v4/openim/querystate"),
        Ask::command(CALL).header("Origin", "null"),
        Ask::command(CALL).header("Content-Encoding", "gzip"),
        Ask::command(CALL),
        Ask::command("follow/follow_check"),
    ];
    for ask in asks {
        for body in [SMUGGLED.to_owned(), SMUGGLED.repeat(3000)] {
            let mut conn = gateway.connect().await;
            conn.send(ask.clone().body(body).bytes()).await;
            let answer = conn.answer().await;
            assert!((400..500).contains(&answer.status), "{answer:?}");
            conn.send(Ask::command(CALL).bytes()).await;
            if let Some(next) = conn.try_answer().await {
                next.assert_relayed(200, OK);
            }
        }
    }
    still_sound(&gateway, &chat).await;
}

#[tokio::test]
async fn what_follows_a_body_that_is_too_large_is_never_a_request() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    conn.send(Ask::command(CALL).header("Content-Length", "2000000").body("").bytes()).await;
    conn.send(SMUGGLED).await;
    let rest = conn.rest().await;
    let answers = all_answers(&rest);
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [413]);
    assert_eq!(answers[0].header("connection"), Some("close"));
    still_sound(&gateway, &chat).await;
}

/// `count` requests in one write, each with its own id; `bad` replaces one of them.
fn pipeline(count: usize, bad: Option<(usize, Vec<u8>)>) -> Vec<u8> {
    let request = |n: usize| Ask::command(CALL).header("X-Request-Id", &format!("id-{n}")).bytes();
    let replaced = |n: usize| bad.as_ref().filter(|(place, _)| *place == n).map(|(_, bytes)| bytes.clone());
    (0..count).flat_map(|n| replaced(n).unwrap_or_else(|| request(n))).collect()
}

#[tokio::test]
async fn h16_pipelined_requests_are_answered_in_order_up_to_a_broken_one() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    conn.send(pipeline(50, Some((30, raw("Broken Line\r\n", "{}"))))).await;
    let answers = all_answers(&conn.rest().await);
    assert_eq!(answers.len(), 31);
    for (n, answer) in answers[..30].iter().enumerate() {
        answer.assert_relayed(200, OK);
        assert_eq!(answer.request_id(), format!("id-{n}"));
    }
    assert_eq!(answers[30].status, 400);
    assert_eq!(chat.count(), 30);
    still_sound(&gateway, &chat).await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_past_a_refused_one() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    let refused = Ask::command(CALL).header("X-Request-Id", "id-20").body("no json").bytes();
    conn.send(pipeline(50, Some((20, refused)))).await;
    for n in 0..50 {
        let answer = conn.answer().await;
        assert_eq!(answer.request_id(), format!("id-{n}"));
        assert_eq!(answer.status, if n == 20 { 400 } else { 200 });
    }
    assert_eq!(chat.count(), 49);
}

#[tokio::test]
async fn a_request_may_come_byte_by_byte_and_in_http_1_0() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    for byte in Ask::command(CALL).bytes() {
        conn.send([byte]).await;
    }
    conn.answer().await.assert_relayed(200, OK);
    let mut old = gateway.connect().await;
    old.send(format!("POST /v4/{CALL} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}")).await;
    let answers = all_answers(&old.rest().await);
    assert_eq!(answers.len(), 1);
    answers[0].assert_relayed(200, OK);
}

#[tokio::test]
async fn who_expects_100_continue_gets_it() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    let ask = Ask::command(CALL).header("Expect", "100-continue").header("Content-Length", "2").body("");
    conn.send(ask.bytes()).await;
    assert_eq!(conn.interim().await, 100);
    conn.send("{}").await;
    conn.answer().await.assert_relayed(200, OK);
}

#[tokio::test]
async fn over_http2_answers_and_refusals_are_the_same() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let gateway = gateway(&chat).await;
    let http2 = Http2::open(gateway.address()).await;
    assert_eq!(http2.ask(&Ask::check("ann", &["bob"])).await.types(), [2]);
    http2.ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
    http2.ask(&Ask::command(CALL).header("Authorization", "x").header("Cookie", "y")).await.assert_relayed(200, OK);
    let rows = [
        (Ask::command(CALL).host("evil.example"), (403, "forbidden", 129_403)),
        (Ask::command(CALL).header("origin", "null"), (403, "forbidden", 129_403)),
        (Ask::post("/v4/openim/querystate/"), (404, "not_found", 60009)),
        (Ask::new("GET", "/v4/openim/querystate"), (405, "method_not_allowed", 60002)),
        (Ask::command(CALL).body("["), (400, "bad_json", 60003)),
        (Ask::post("/v4/openim/querystate?y=1"), (400, "bad_parameter", 30001)),
        (Ask::command(CALL).body(format!("{{\"x\":\"{}\"}}", "y".repeat(1 << 20))), (413, "body_too_large", 129_413)),
    ];
    for (ask, (status, slug, code)) in rows {
        http2.ask(&ask).await.assert_error(status, slug, code);
    }
    http2.ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
    assert_eq!(chat.count(), 4);
}

#[tokio::test]
async fn a_caller_that_leaves_in_the_middle_costs_nothing() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let bytes = Ask::command(CALL).body(format!("{{\"x\":\"{}\"}}", "y".repeat(5000))).bytes();
    for cut in [1, 10, 40, 80, 100, 2000, bytes.len() - 1] {
        let mut conn: Conn = gateway.connect().await;
        conn.send(&bytes[..cut]).await;
        conn.finish().await;
        assert!(all_answers(&conn.rest().await).iter().all(|answer| (400..500).contains(&answer.status)));
    }
    assert_eq!(chat.count(), 0);
    still_sound(&gateway, &chat).await;
}
