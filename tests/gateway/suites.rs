//! The test suites of other projects: JSON texts, and requests that HTTP/1 parsers are tested with.

#[path = "../support/suites.rs"]
mod data;

use std::ops::Range;

use memchr::memmem;

use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::Gateway;
use crate::support::response::Response;
use crate::support::setup::gateway;
use data::{http_requests, json_texts};

const CALL: &str = "openim/querystate";
const CHECK: &str = "follow/follow_check";
/// Ends each series of requests. Its response is recognized by its ID and needs no call to Chat.
const MARKER: &[u8] = b"GET /marker HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: marker\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn json_is_relayed_and_other_texts_are_rejected() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    let mut calls = 0;
    for case in json_texts() {
        let (kind, name) = (&case.name[..2], &case.name);
        let wrapped = [b"{\"X\":", &*case.bytes, b"}"].concat();
        for (command, body) in [(CALL, &wrapped), (CHECK, &wrapped), (CALL, &case.bytes), (CHECK, &case.bytes)] {
            let response = conn.request(&TestRequest::command(command).body(body)).await;
            let is_call = chat.call_count() > calls;
            calls = chat.call_count();
            let is_object = body.trim_ascii_start().starts_with(b"{");
            match kind {
                "y_" if is_object && (command, body) != (CHECK, &case.bytes) => {
                    assert!(is_call && response.slug().is_none() && response.status == 200, "{name}: {response:?}");
                }
                "n_" | "y_" if !is_object || kind == "n_" => {
                    response.assert_error(400, "bad_json", 60003);
                    assert!(!is_call, "{name} reached Chat");
                }
                _ => assert!(response.status < 500, "{name}: {response:?}"),
            }
            assert!(!is_call || chat.last_call().body == *body, "{name}");
        }
    }
    // Each call to Chat had the bytes of its request.
    assert!(calls >= 2 * 95, "{calls}");
}

#[tokio::test]
async fn admin_actions_reject_texts_that_are_not_json() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = Conn::open(gateway.admin()).await.expect("accepted");
    for case in json_texts() {
        let wrapped = [b"{\"App\":", &*case.bytes, b"}"].concat();
        for body in [&wrapped, &case.bytes] {
            let response = conn.request(&TestRequest::post("/cache/evict").body(body)).await;
            if case.name.starts_with("n_") {
                response.assert_error(400, "bad_json", 60003);
            }
            assert!(response.status < 500, "{}: {response:?}", case.name);
        }
    }
}

/// A request as httparse and the rules of RFC 9112 find it.
struct Found {
    method: String,
    begin: usize,
    end: usize,
    /// The pieces of the body; `None` if it is incomplete or malformed.
    body: Option<Vec<Range<usize>>>,
}

/// Returns the requests up to the first one whose headers are incomplete or ambiguous, or whose body is incomplete.
fn requests_in(bytes: &[u8]) -> Vec<Found> {
    let mut all = Vec::new();
    let mut begin = 0;
    while let Some(found) = request_at(bytes, begin) {
        begin = found.end;
        let is_last = found.body.is_none();
        all.push(found);
        if is_last {
            break;
        }
    }
    all
}

fn request_at(bytes: &[u8], begin: usize) -> Option<Found> {
    let mut lines = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut lines);
    let Ok(httparse::Status::Complete(len)) = request.parse(&bytes[begin..]) else { return None };
    let values = |name: &str| -> Vec<&[u8]> {
        request.headers.iter().filter(|line| line.name.eq_ignore_ascii_case(name)).map(|line| line.value).collect()
    };
    let at = begin + len;
    let found = match (&*values("content-length"), &*values("transfer-encoding")) {
        ([], []) => Some((Vec::new(), at)),
        ([length], []) if length.iter().all(u8::is_ascii_digit) => {
            let end = at.checked_add(std::str::from_utf8(length).ok()?.parse().ok()?)?;
            (end <= bytes.len()).then(|| (std::iter::once(at..end).collect(), end))
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && request.version == Some(1) => chunks(bytes, at),
        _ => return None,
    };
    let method = request.method?.to_owned();
    let (body, end) = found.map_or((None, bytes.len()), |(body, end)| (Some(body), end));
    Some(Found { method, begin, end, body })
}

/// Returns the chunks of a body at this position, and the position after it.
fn chunks(bytes: &[u8], mut at: usize) -> Option<(Vec<Range<usize>>, usize)> {
    let line = |at: usize| Some(at..at + memmem::find(bytes.get(at..)?, b"\r\n")?);
    let mut pieces = Vec::new();
    loop {
        let size = line(at)?;
        let digits = bytes[size.clone()].split(|byte| *byte == b';').next()?;
        let len = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        at = size.end + 2;
        if len == 0 {
            break;
        }
        let end = at.checked_add(len)?;
        (bytes.get(end..end.checked_add(2)?)? == b"\r\n").then(|| pieces.push(at..end))?;
        at = end + 2;
    }
    loop {
        let trailer = line(at)?;
        at = trailer.end + 2;
        if trailer.is_empty() {
            return Some((pieces, at));
        }
    }
}

/// Returns the request as `POST` to this target at `localhost`, with all other bytes as they are. `None` without a
/// request line of three words.
fn aimed(bytes: &[u8], target: &str) -> Option<Vec<u8>> {
    let (line, rest) = bytes.split_at(memmem::find(bytes, b"\r\n")?);
    let [_, _, version] = *line.split(|byte| *byte == b' ').collect::<Vec<_>>() else { return None };
    let mut rest = rest.to_vec();
    match memmem::find(&rest.to_ascii_lowercase(), b"\r\nhost:") {
        Some(host) => {
            let value = host + b"\r\nhost:".len();
            let len = memmem::find(&rest[value..], b"\r\n")?;
            rest.splice(value..value + len, *b" localhost");
        }
        None => drop(rest.splice(..0, *b"\r\nHost: localhost")),
    }
    Some([format!("POST {target} ").as_bytes(), version, &rest].concat())
}

/// Whether this is the response to bytes that are not a request, which ends the connection.
fn is_rejected(response: &Response) -> bool {
    matches!(response.slug(), Some("bad_request" | "head_too_large" | "uri_too_long"))
}

/// Returns the final responses of a connection. `expected` has the methods of their requests.
fn responses_in(name: &str, mut bytes: &[u8], expected: &[Found]) -> Vec<Response> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let to_head = expected.get(all.len()).is_some_and(|found| found.method == "HEAD");
        // A rejection has a body whatever the method, which may be malformed, too.
        let parsed = Response::parse(bytes, to_head)
            .filter(|(response, _)| !to_head || !is_rejected(response))
            .or_else(|| Response::parse(bytes, false));
        let (response, len) = parsed.unwrap_or_else(|| panic!("{name}: incomplete: {}", bytes.escape_ascii()));
        bytes = &bytes[len..];
        if response.status >= 200 {
            all.push(response);
        }
    }
    all
}

/// Asserts that the responses are those to the requests that httparse finds, up to a rejection or the end of the
/// connection. Returns whether the marker has its response.
fn assert_one_framing(name: &str, bytes: &[u8], responses: &[Response], expected: &[Found]) -> bool {
    let accepted = responses.iter().take_while(|response| !is_rejected(response)).count();
    assert!(accepted <= expected.len(), "{name}: {responses:?}");
    assert!(accepted + 1 >= responses.len(), "{name}: a response follows a rejection: {responses:?}");
    assert!(responses.iter().all(|response| response.status < 500), "{name}: {responses:?}");
    let marker = responses.iter().position(|response| response.header("x-request-id") == Some("marker"));
    let Some(marker) = marker else { return false };
    assert_eq!(marker + 1, expected.len(), "{name}: {responses:?}");
    // Bytes that are left over may have become a part of its method.
    assert_eq!(expected[marker].end, bytes.len() + MARKER.len(), "{name}");
    assert!(expected[marker].body.is_some(), "{name}");
    true
}

/// Sends the bytes and the marker, and closes the sending half, so that an incomplete request ends as well.
async fn assert_safe(address: &str, name: &str, bytes: &[u8]) -> bool {
    let all = [bytes, MARKER].concat();
    let expected = requests_in(&all);
    let mut conn = Conn::open(address).await.expect("accepted");
    conn.send(&all).await;
    conn.shutdown_write().await;
    let responses = responses_in(name, &conn.read_to_end().await, &expected);
    assert_one_framing(name, bytes, &responses, &expected)
}

/// Returns the cases that are HTTP/1; the preface of HTTP/2 starts another protocol.
fn http1_requests() -> impl Iterator<Item = data::Case> {
    http_requests().into_iter().filter(|case| !case.bytes.starts_with(b"PRI * HTTP/2.0\r\n"))
}

#[tokio::test]
async fn requests_of_other_suites_have_one_framing() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut served = 0;
    for (address, target) in [(gateway.address(), "/v4/openim/querystate"), (gateway.admin(), "/cache/evict")] {
        for case in http1_requests() {
            served += usize::from(assert_safe(address, &case.name, &case.bytes).await);
            if let Some(bytes) = aimed(&case.bytes, target) {
                served += usize::from(assert_safe(address, &case.name, &bytes).await);
            }
        }
    }
    // Nearly no body of these suites is a JSON object.
    let calls = chat.calls();
    assert!(calls.len() < 5 && calls.iter().all(|call| call.command() == CALL), "{calls:?}");
    assert!(served > 100, "{served}");
}

/// Replaces the body by an object of the same length, sends the request, and returns whether Chat got exactly this body.
async fn relays_one_body(gateway: &Gateway, chat: &FakeChat, name: &str, mut bytes: Vec<u8>) -> bool {
    let mut all = [&*bytes, MARKER].concat();
    let expected = requests_in(&all);
    let places: Vec<usize> =
        expected.iter().take(1).flat_map(|found| found.body.iter().flatten().cloned().flatten()).collect();
    let is_whole = expected.last().is_some_and(|found| found.begin == bytes.len());
    let (true, Some((first, [between @ .., last]))) = (is_whole, places.split_first()) else { return false };
    between.iter().for_each(|at| all[*at] = b' ');
    (all[*first], all[*last]) = (b'{', b'}');
    bytes = all[..bytes.len()].to_vec();
    let body: Vec<u8> = places.iter().map(|at| bytes[*at]).collect();
    let calls = chat.call_count();
    let mut conn = gateway.connect().await;
    conn.send(&all).await;
    let responses = responses_in(name, &conn.read_to_end().await, &expected);
    assert_one_framing(name, &bytes, &responses, &expected);
    let is_relayed = responses.first().is_some_and(|response| response.slug().is_none());
    assert_eq!(chat.call_count() - calls, usize::from(is_relayed), "{name}: {responses:?}");
    assert!(!is_relayed || chat.last_call().body == body, "{name}");
    is_relayed
}

#[tokio::test]
async fn relayed_bodies_have_the_bytes_that_other_parsers_find() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut relayed = 0;
    for case in http1_requests() {
        if let Some(bytes) = aimed(&case.bytes, "/v4/openim/querystate") {
            relayed += usize::from(relays_one_body(&gateway, &chat, &case.name, bytes).await);
        }
    }
    assert!(relayed > 20, "{relayed}");
    assert_eq!(chat.calls_of(CALL).len(), relayed);
}
