//! Requests that two HTTP parsers could read differently. They are rejected regardless of the bytes around them,
//! and no bytes after them are ever parsed as a request.

use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::response::Response;
use crate::support::setup::gateway;

const CALL: &str = "openim/querystate";
/// A request that an attacker would try to smuggle.
const SMUGGLED: &str = "POST /v4/openim/smuggled HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

/// Builds a request with these additional header lines.
fn raw(lines: &str, rest: &str) -> String {
    format!("POST /v4/{CALL} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n{rest}")
}

fn all_responses(mut bytes: &[u8]) -> Vec<Response> {
    let mut responses = Vec::new();
    while let Some((response, len)) = Response::parse(bytes, false) {
        responses.push(response);
        bytes = &bytes[len..];
    }
    responses
}

/// Sends the request alone, after a valid one in the same write, after a chunked one, and split into two writes.
///
/// Each time the last response is chatgate's `bad_request`, the connection closes, and Chat has seen only the
/// earlier request. Afterwards another caller is served.
async fn assert_rejected_everywhere(gateway: &Gateway, chat: &FakeChat, bad: &str) {
    let good = raw("Content-Length: 2\r\n", "{}");
    let chunked = raw(CHUNKED, "1\r\n{\r\n1;x\r\n}\r\n0\r\n\r\n");
    let all = format!("{bad}{SMUGGLED}");
    let middle = bad.len() / 2;
    for (before, pieces) in [
        ("", [all.as_bytes(), b""]),
        (&*good, [all.as_bytes(), b""]),
        (&*chunked, [all.as_bytes(), b""]),
        (&*good, [&all.as_bytes()[..middle], &all.as_bytes()[middle..]]),
    ] {
        let calls = chat.call_count();
        let mut conn = gateway.connect().await;
        conn.send([before.as_bytes(), pieces[0]].concat()).await;
        if !pieces[1].is_empty() {
            // The valid request has its response, so the gateway has read the first piece.
            conn.read_response().await.assert_relayed(200, OK);
            conn.send(pieces[1]).await;
        }
        let responses = all_responses(&conn.read_to_end().await);
        let (last, earlier) = responses.split_last().unwrap_or_else(|| panic!("no response to {bad:?}"));
        earlier.iter().for_each(|response| response.assert_relayed(200, OK));
        last.assert_error(400, "bad_request", 60002);
        assert_eq!(last.header("connection"), Some("close"), "{bad:?}");
        assert_eq!(chat.call_count() - calls, usize::from(!before.is_empty()), "{bad:?}");
    }
    assert!(chat.calls_of("openim/smuggled").is_empty(), "smuggled behind {bad:?}");
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn conflicting_content_lengths_are_rejected() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for lines in [
        "Content-Length: 2\r\nContent-Length: 2\r\n",
        "Content-Length: 2\r\ncontent-length: 2\r\n",
        "Content-Length: 2\r\nContent-Length: 02\r\n",
        "Content-Length: 2\r\nX: y\r\nContent-Length: 3\r\n",
        "Content-Length: 2, 2\r\n",
    ] {
        assert_rejected_everywhere(&gateway, &chat, &raw(lines, "{}")).await;
    }
    let chunks = "2\r\n{}\r\n0\r\n\r\n";
    for length in
        ["Content-Length: 2\r\n", "Content-Length: 12\r\n", "Content-Length: 0\r\n", "CONTENT-LENGTH: 400\r\n"]
    {
        assert_rejected_everywhere(&gateway, &chat, &raw(&format!("{length}{CHUNKED}"), chunks)).await;
        assert_rejected_everywhere(&gateway, &chat, &raw(&format!("{CHUNKED}{length}"), chunks)).await;
        assert_rejected_everywhere(&gateway, &chat, &raw(&format!("{CHUNKED}X: y\r\n{length}"), chunks)).await;
    }
}

#[tokio::test]
async fn transfer_encoding_other_than_chunked_is_rejected() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for value in [
        "chunked, chunked",
        "gzip, chunked",
        "chunked, identity",
        "identity",
        "xchunked",
        "chunkedx",
        "chunked;q=1",
        "\"chunked\"",
        "chunked,",
        ",chunked",
        "chu nked",
        "\u{b}chunked",
        "chunked\0",
        "",
    ] {
        assert_rejected_everywhere(
            &gateway,
            &chat,
            &raw(&format!("Transfer-Encoding: {value}\r\n"), "2\r\n{}\r\n0\r\n\r\n"),
        )
        .await;
    }
    for lines in [
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        " Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-encoding: cow\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\n",
    ] {
        assert_rejected_everywhere(&gateway, &chat, &raw(lines, "2\r\n{}\r\n0\r\n\r\n")).await;
    }
    let old = raw(CHUNKED, "2\r\n{}\r\n0\r\n\r\n").replace("HTTP/1.1", "HTTP/1.0");
    assert_rejected_everywhere(&gateway, &chat, &old).await;
}

#[tokio::test]
async fn malformed_chunks_are_rejected() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for chunks in [
        "2\n{}\r\n0\r\n\r\n",
        "2\r\n{}\n0\r\n\r\n",
        "2\r\n{}\r\n0\n\r\n",
        "2 \r\n{}\r\n0\r\n\r\n",
        " 2\r\n{}\r\n0\r\n\r\n",
        "0x2\r\n{}\r\n0\r\n\r\n",
        "+2\r\n{}\r\n0\r\n\r\n",
        "-2\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}0\r\n\r\n",
        "2\r\n{}x\r\n0\r\n\r\n",
        "2\r\n{}\r\r\n0\r\n\r\n",
        "2;a\rb\r\n{}\r\n0\r\n\r\n",
        "2;a\0b\r\n{}\r\n0\r\n\r\n",
        "2,1\r\n{}\r\n0\r\n\r\n",
        "\r\n2\r\n{}\r\n0\r\n\r\n",
        "10000000000000002\r\n{}\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n",
        "g\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}\r\n0\r\nno colon\r\n\r\n",
        "2\r\n{}\r\n0\r\n folded: x\r\n\r\n",
        "2\r\n{}\r\n0\r\nX : y\r\n\r\n",
        "2\r\n{}\r\n0\r\nX: y\n\r\n",
        "2;\r\n{}\r\n0\r\n\r\n",
        "2;a=\"b\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}\r\n0; a\r\n\r\n",
        "2\r\n{}\r\n0\r\nHost: evil.example\r\n\r\n",
        "2\r\n{}\r\n0\r\nContent-Length: 2\r\n\r\n",
        "2\r\n{}\r\n0\r\ntransfer-encoding: chunked\r\n\r\n",
    ] {
        assert_rejected_everywhere(&gateway, &chat, &raw(CHUNKED, chunks)).await;
    }
}

#[tokio::test]
async fn malformed_request_headers_are_rejected() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let length = "Content-Length: 2\r\n";
    for line in [
        "X: a\r\n b\r\n",
        "X: a\r\n\tb\r\n",
        "X : a\r\n",
        "X\t: a\r\n",
        ": a\r\n",
        "no colon\r\n",
        "X Y: a\r\n",
        "X: a\0b\r\n",
        "X: a\rb\r\n",
        "X: a\n",
        "X: a\u{7f}\r\n",
        "X: a\u{1}\r\n",
        "X(: a\r\n",
        "\u{e9}: a\r\n",
        " X: a\r\n",
        "\tX: a\r\n",
        "Host: localhost\r\n",
        "host: evil.example\r\n",
    ] {
        assert_rejected_everywhere(&gateway, &chat, &raw(&format!("{line}{length}"), "{}")).await;
        assert_rejected_everywhere(&gateway, &chat, &raw(&format!("{length}{line}"), "{}")).await;
    }
    let good = raw(length, "{}");
    for (from, to) in [
        (" HTTP/1.1", "#x HTTP/1.1"),
        (" HTTP/1.1", "#/v4/openim/smuggled HTTP/1.1"),
        (" HTTP/1.1", "?random=1#x HTTP/1.1"),
        (" HTTP/1.1", "  HTTP/1.1"),
        (" HTTP/1.1", " HTTP/1.1 "),
        (" HTTP/1.1", " HTTP/1.2"),
        (" HTTP/1.1", " HTTP/2.0"),
        (" HTTP/1.1", " HTTP/0.9"),
        (" HTTP/1.1", " http/1.1"),
        (" HTTP/1.1", ""),
        (" HTTP/1.1\r\n", " HTTP/1.1\n"),
        (" HTTP/1.1\r\n", " HTTP/1.1\r\r\n"),
        (" /v4", "\t/v4"),
        (" /v4", "  /v4"),
        (" /v4", " /\u{e9}/v4"),
        (" /v4", " /\0/v4"),
        (" /v4", " /\u{7f}/v4"),
        (" /v4", " v4"),
        (" /v4", " localhost/v4"),
        (" /v4", " http:/v4"),
        (" /v4", " ?/v4"),
        ("POST", "PO ST"),
        ("POST", "PO(T"),
        ("POST", ""),
        ("Host: localhost\r\n", ""),
        ("Host: localhost\r\n", "Host: localhost\r\nHost: localhost\r\n"),
    ] {
        assert!(good.contains(from));
        assert_rejected_everywhere(&gateway, &chat, &good.replacen(from, to, 1)).await;
    }
    for value in
        ["+2", "-2", "", "0x2", "2 2", "2a", "1e1", "2.0", "\u{662}", "18446744073709551615", "9223372036854775808"]
    {
        assert_rejected_everywhere(&gateway, &chat, &raw(&format!("Content-Length: {value}\r\n"), "{}")).await;
    }
}

#[tokio::test]
async fn unambiguous_requests_are_served_in_order() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    let kinds = [
        raw("Content-Length: 2\r\n", "{}"),
        raw("content-length:2\r\nX:\r\n", "{}"),
        raw(CHUNKED, "2\r\n{}\r\n0\r\n\r\n"),
        raw("transfer-ENCODING:  CHUNKED \r\n", "1;a=\"b\";c\r\n{\r\n001\r\n}\r\n000\r\nT: t\r\nU:\r\n\r\n"),
        // Empty lines before a request are skipped (RFC 9112 section 2.2).
        format!("\r\n{}", raw("Content-Length: 0002\r\n", "{}")),
        raw("Content-Length: 2\r\nX: caf\u{e9}\r\n", "{}"),
    ];
    // In one write, in pieces of 7 bytes, and byte by byte: 48 requests each, on one connection.
    let all = kinds.concat().repeat(8);
    for size in [all.len(), 7, 1] {
        let calls = chat.call_count();
        for piece in all.as_bytes().chunks(size) {
            conn.send(piece).await;
        }
        for _ in 0..kinds.len() * 8 {
            conn.read_response().await.assert_relayed(200, OK);
        }
        assert_eq!(chat.call_count() - calls, kinds.len() * 8);
    }
    // A body that looks like a request is a body, even if its request is rejected before the body is read.
    let body = format!("{{\"x\":\"{}\"}}", SMUGGLED.replace("\r\n", "\n").replace('\n', "\\n"));
    conn.request(&TestRequest::command(CALL).body(&body)).await.assert_relayed(200, OK);
    assert_eq!(chat.last_call().body, body.as_bytes());
    for _ in 0..3 {
        let rejected = conn.request(&TestRequest::command("no/such/path").body(SMUGGLED.repeat(3))).await;
        rejected.assert_error(404, "not_found", 60009);
    }
    conn.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    assert!(chat.calls_of("openim/smuggled").is_empty());
}
