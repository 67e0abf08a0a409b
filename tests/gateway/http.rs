//! Raw HTTP/1 bytes: an ambiguous request is rejected or read as exactly one request, with nothing after it.

use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::h2::Http2;
use crate::support::h2_raw::{DATA, END_HEADERS, END_STREAM, HEADERS, RawHttp2, field_line, frame, post_headers};
use crate::support::response::Response;
use crate::support::setup::gateway;
use crate::support::{PATIENCE, within};

const CALL: &str = "openim/querystate";
/// A request that an attacker would try to smuggle.
const SMUGGLED: &str = "POST /v4/openim/smuggled HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";

/// Builds a request from these header lines, each ending in CRLF, and the bytes after the headers.
fn raw(lines: &str, rest: &str) -> Vec<u8> {
    format!("POST /v4/{CALL} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n{rest}").into_bytes()
}

/// Returns all complete responses in `bytes`.
fn all_responses(mut bytes: &[u8]) -> Vec<Response> {
    let mut responses = Vec::new();
    while let Some((response, len)) = Response::parse(bytes, false) {
        responses.push(response);
        bytes = &bytes[len..];
    }
    responses
}

/// Asserts that nothing was smuggled and that a valid request on a new connection succeeds.
async fn assert_not_smuggled(gateway: &Gateway, chat: &FakeChat) {
    assert!(chat.calls_of("openim/smuggled").is_empty(), "a request was smuggled");
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

/// Sends the bytes and expects a rejection with one of these statuses, no call, and a closed connection.
async fn assert_rejected(gateway: &Gateway, chat: &FakeChat, bytes: &[u8], statuses: &[u16]) {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
    let before = chat.call_count();
    let mut conn = gateway.connect().await;
    conn.send(bytes).await;
    let responses = all_responses(&conn.read_to_end().await);
    assert_eq!(chat.call_count(), before, "reached upstream: {shown:?}");
    let seen: Vec<u16> = responses.iter().map(|response| response.status).collect();
    assert!(seen.len() == 1 && statuses.contains(&seen[0]), "{seen:?} for {shown:?}");
    assert_not_smuggled(gateway, chat).await;
}

/// Sends the bytes and expects a rejection, or one call and one response. The connection closes either way.
async fn assert_safe_and_closed(gateway: &Gateway, chat: &FakeChat, bytes: &[u8]) {
    let shown = String::from_utf8_lossy(bytes).into_owned();
    let before = chat.call_count();
    let mut conn = gateway.connect().await;
    conn.send(bytes).await;
    let responses = all_responses(&conn.read_to_end().await);
    assert_eq!(responses.len(), 1, "{shown:?}: {responses:?}");
    match responses[0].status {
        200 => assert_eq!(chat.call_count(), before + 1, "{shown:?}"),
        400..=499 | 501 => assert_eq!(chat.call_count(), before, "{shown:?}"),
        other => panic!("status {other} for {shown:?}"),
    }
    assert_not_smuggled(gateway, chat).await;
}

#[tokio::test]
async fn content_length_next_to_chunked_is_safe_and_closed() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let chunks = format!("2\r\n{{}}\r\n0\r\n\r\n{SMUGGLED}");
    for lines in [
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 400\r\n",
    ] {
        assert_safe_and_closed(&gateway, &chat, &raw(lines, &chunks)).await;
    }
}

#[tokio::test]
async fn invalid_content_length_is_rejected() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for value in ["2, 2", "2,3", "+2", "-2", "", "0x2", "2 2", "2a", "1e1", "99999999999999999999999999", "٢"] {
        assert_rejected(&gateway, &chat, &raw(&format!("Content-Length: {value}\r\n"), "{}"), &[400, 413]).await;
    }
    for (first, second) in [("2", "3"), ("3", "2"), ("2", ""), ("0", "2")] {
        let lines = format!("Content-Length: {first}\r\nContent-Length: {second}\r\n");
        assert_rejected(&gateway, &chat, &raw(&lines, &format!("{{}}{SMUGGLED}")), &[400]).await;
    }
}

#[tokio::test]
async fn transfer_encoding_other_than_chunked_is_rejected() {
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
        assert_rejected(&gateway, &chat, &raw(lines, &chunks), &[400, 501]).await;
    }
    let old = format!("POST /v4/{CALL} HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
    assert_rejected(&gateway, &chat, old.as_bytes(), &[400, 501]).await;
}

#[tokio::test]
async fn malformed_chunks_never_reach_upstream() {
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
        assert_rejected(
            &gateway,
            &chat,
            &raw("Transfer-Encoding: chunked\r\n", &format!("{chunks}{SMUGGLED}")),
            &[400],
        )
        .await;
    }
    // Chunk extensions and trailers are legal, but are not forwarded.
    let legal = "1;ext=1\r\n{\r\n1\r\n}\r\n0\r\nX-Trailer: seen-only-here\r\n\r\n";
    let mut conn = gateway.connect().await;
    conn.send(raw("Transfer-Encoding: chunked\r\n", legal)).await;
    conn.read_response().await.assert_relayed(200, OK);
    assert_eq!(chat.last_call().body, b"{}");
    conn.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
}

#[tokio::test]
async fn malformed_header_lines_are_rejected() {
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
        assert_rejected(&gateway, &chat, &raw(&format!("{line}\r\nContent-Length: 2\r\n"), "{}"), &[400]).await;
    }
    let spaced_length = raw("Content-Length : 2\r\n", &format!("{{}}{SMUGGLED}"));
    assert_rejected(&gateway, &chat, &spaced_length, &[400]).await;
}

#[tokio::test]
async fn request_without_exactly_one_valid_host_is_rejected() {
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
        assert_rejected(&gateway, &chat, with_hosts(hosts).as_bytes(), &[400, 403]).await;
    }
    let old = format!("POST /v4/{CALL} HTTP/1.0\r\nContent-Length: 2\r\n\r\n{{}}");
    assert_rejected(&gateway, &chat, old.as_bytes(), &[400, 403]).await;
}

#[tokio::test]
async fn invalid_request_targets_never_reach_upstream() {
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
        assert_rejected(&gateway, &chat, bytes.as_bytes(), &[400, 403, 404]).await;
    }
    // A server must accept its own name in absolute form (RFC 9112, 3.2.2). Rejecting it is safe too.
    let own = format!(
        "POST http://localhost/v4/{CALL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    );
    assert_safe_and_closed(&gateway, &chat, own.as_bytes()).await;
    // A fragment is not part of a target (RFC 9110, 4.2.5). The HTTP library strips or rejects it.
    let fragment =
        format!("POST /v4/{CALL}#x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
    assert_safe_and_closed(&gateway, &chat, fragment.as_bytes()).await;
}

#[tokio::test]
async fn connect_method_is_rejected() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for target in [chat.address().to_string(), "localhost:443".to_owned(), format!("/v4/{CALL}")] {
        let mut conn = gateway.connect().await;
        conn.send(format!("CONNECT {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        let response = conn.read_response().await;
        assert!((400..500).contains(&response.status), "{response:?}");
    }
    assert_eq!((chat.call_count(), chat.accepted_connections()), (0, 0));
    assert_not_smuggled(&gateway, &chat).await;
}

#[tokio::test]
async fn non_http_bytes_close_the_connection() {
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
        let rest = conn.read_to_end().await;
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 4") || !rest.starts_with(b"HTTP/"), "{rest:?}");
    }
    assert_eq!(chat.call_count(), 0);
    assert_not_smuggled(&gateway, &chat).await;
}

#[tokio::test]
async fn rejected_request_body_is_never_parsed_as_a_request() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let requests = [
        TestRequest::post("/nowhere"),
        TestRequest::new("PUT", &format!("/v4/{CALL}")),
        TestRequest::new("GET", &format!("/v4/{CALL}")),
        TestRequest::post(&format!("/v4/{CALL}?x=1")),
        TestRequest::post("/apps/none/v4/openim/querystate"),
        TestRequest::command(CALL).header("Origin", "null"),
        TestRequest::command(CALL).header("Content-Encoding", "gzip"),
        TestRequest::command(CALL),
        TestRequest::command("follow/follow_check"),
    ];
    for request in requests {
        for body in [SMUGGLED.to_owned(), SMUGGLED.repeat(3000)] {
            let mut conn = gateway.connect().await;
            conn.send(request.clone().body(body).bytes()).await;
            let response = conn.read_response().await;
            assert!((400..500).contains(&response.status), "{response:?}");
            conn.send(TestRequest::command(CALL).bytes()).await;
            if let Some(next) = conn.try_read_response().await {
                next.assert_relayed(200, OK);
            }
        }
    }
    assert_not_smuggled(&gateway, &chat).await;
}

#[tokio::test]
async fn bytes_after_an_oversized_body_are_never_a_request() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    conn.send(TestRequest::command(CALL).header("Content-Length", "2000000").body("").bytes()).await;
    conn.send(SMUGGLED).await;
    let rest = conn.read_to_end().await;
    let responses = all_responses(&rest);
    assert_eq!(responses.iter().map(|response| response.status).collect::<Vec<_>>(), [413]);
    assert_eq!(responses[0].header("connection"), Some("close"));
    assert_not_smuggled(&gateway, &chat).await;
}

/// Builds `count` pipelined requests, each with its own id. `bad` replaces one of them.
fn pipeline(count: usize, bad: Option<(usize, Vec<u8>)>) -> Vec<u8> {
    let request = |n: usize| TestRequest::command(CALL).header("X-Request-Id", &format!("id-{n}")).bytes();
    let replaced = |n: usize| bad.as_ref().filter(|(index, _)| *index == n).map(|(_, bytes)| bytes.clone());
    (0..count).flat_map(|n| replaced(n).unwrap_or_else(|| request(n))).collect()
}

#[tokio::test]
async fn pipelined_requests_are_answered_until_a_malformed_one() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    conn.send(pipeline(50, Some((30, raw("Broken Line\r\n", "{}"))))).await;
    let responses = all_responses(&conn.read_to_end().await);
    assert_eq!(responses.len(), 31);
    for (n, response) in responses[..30].iter().enumerate() {
        response.assert_relayed(200, OK);
        assert_eq!(response.request_id(), format!("id-{n}"));
    }
    assert_eq!(responses[30].status, 400);
    assert_eq!(chat.call_count(), 30);
    assert_not_smuggled(&gateway, &chat).await;
}

#[tokio::test]
async fn pipelined_requests_continue_in_order_after_a_rejected_one() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    let rejected = TestRequest::command(CALL).header("X-Request-Id", "id-20").body("no json").bytes();
    conn.send(pipeline(50, Some((20, rejected)))).await;
    for n in 0..50 {
        let response = conn.read_response().await;
        assert_eq!(response.request_id(), format!("id-{n}"));
        assert_eq!(response.status, if n == 20 { 400 } else { 200 });
    }
    assert_eq!(chat.call_count(), 49);
}

#[tokio::test]
async fn byte_by_byte_and_http10_requests_are_served() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    for byte in TestRequest::command(CALL).bytes() {
        conn.send([byte]).await;
    }
    conn.read_response().await.assert_relayed(200, OK);
    let mut old = gateway.connect().await;
    old.send(format!("POST /v4/{CALL} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}")).await;
    let responses = all_responses(&old.read_to_end().await);
    assert_eq!(responses.len(), 1);
    responses[0].assert_relayed(200, OK);
}

#[tokio::test]
async fn expect_100_continue_gets_an_interim_response() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    let request = TestRequest::command(CALL).header("Expect", "100-continue").header("Content-Length", "2").body("");
    conn.send(request.bytes()).await;
    assert_eq!(conn.read_interim_status().await, 100);
    conn.send("{}").await;
    conn.read_response().await.assert_relayed(200, OK);
}

#[tokio::test]
async fn http2_returns_the_same_responses_and_errors() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let gateway = gateway(&chat).await;
    let http2 = Http2::open(gateway.address()).await;
    assert_eq!(http2.request(&TestRequest::check("ann", &["bob"])).await.follow_types(), [2]);
    http2.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    http2
        .request(&TestRequest::command(CALL).header("Authorization", "x").header("Cookie", "y"))
        .await
        .assert_relayed(200, OK);
    let rows = [
        (TestRequest::command(CALL).host("evil.example"), (403, "forbidden", 129_403)),
        (TestRequest::command(CALL).header("origin", "null"), (403, "forbidden", 129_403)),
        (TestRequest::post("/v4/openim/querystate/"), (404, "not_found", 60009)),
        (TestRequest::new("GET", "/v4/openim/querystate"), (405, "method_not_allowed", 60002)),
        (TestRequest::command(CALL).body("["), (400, "bad_json", 60003)),
        (TestRequest::post("/v4/openim/querystate?y=1"), (400, "bad_parameter", 30001)),
        (
            TestRequest::command(CALL).body(format!("{{\"x\":\"{}\"}}", "y".repeat(1 << 20))),
            (413, "body_too_large", 129_413),
        ),
    ];
    for (request, (status, slug, code)) in rows {
        http2.request(&request).await.assert_error(status, slug, code);
    }
    http2.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    assert_eq!(chat.call_count(), 4);
}

#[tokio::test]
async fn http2_trailers_for_framing_and_routing_are_rejected() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut raw = RawHttp2::open(gateway.address()).await;
    // The first byte of the headers is `:status` from the static table (RFC 7541, Appendix A): 200 or 400.
    let rows = [
        ("x", "y", 0x88),
        ("host", "localhost", 0x8c),
        ("content-length", "2", 0x8c),
        ("x-host", "evil.example", 0x88),
    ];
    for ((name, value, status), stream) in rows.into_iter().zip((1..).step_by(2)) {
        let head = frame(HEADERS, END_HEADERS, stream, &post_headers(&format!("/v4/{CALL}")));
        let trailers = frame(HEADERS, END_HEADERS | END_STREAM, stream, &field_line(name, value));
        raw.send(&[head, frame(DATA, 0, stream, b"{}"), trailers].concat()).await;
        let seen = within(PATIENCE, "a response", async {
            loop {
                match raw.next().await.expect("an open connection") {
                    (HEADERS, _, of, payload) if of == stream => break payload[0],
                    _ => {}
                }
            }
        })
        .await;
        assert_eq!(seen, status, "{name}");
    }
    assert_eq!(chat.call_count(), 2);
}

#[tokio::test]
async fn head_over_http2_returns_the_headers_of_get() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for (address, target, status) in
        [(gateway.admin(), "/livez", 200), (gateway.admin(), "/unknown", 404), (gateway.address(), "/v4/a/b", 405)]
    {
        let http2 = Http2::open(address).await;
        // A body would end the connection with an error, as a response to HEAD must not have one.
        let head = http2.request(&TestRequest::new("HEAD", target)).await;
        assert_eq!((head.status, head.body.len()), (status, 0), "{target}: {head:?}");
        let get = http2.request(&TestRequest::new("GET", target)).await;
        let length = get.body.len().to_string();
        assert_eq!((get.status, head.header("content-length")), (status, Some(length.as_str())), "{target}: {head:?}");
    }
}

#[tokio::test]
async fn incomplete_request_never_reaches_upstream() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let bytes = TestRequest::command(CALL).body(format!("{{\"x\":\"{}\"}}", "y".repeat(5000))).bytes();
    for cut in [1, 10, 40, 80, 100, 2000, bytes.len() - 1] {
        let mut conn: Conn = gateway.connect().await;
        conn.send(&bytes[..cut]).await;
        conn.shutdown_write().await;
        assert!(all_responses(&conn.read_to_end().await).iter().all(|response| (400..500).contains(&response.status)));
    }
    assert_eq!(chat.call_count(), 0);
    assert_not_smuggled(&gateway, &chat).await;
}
