//! HTTP/1 connections as read by chatgate, by h11, and by llhttp: chatgate never accepts a request that one of the others
//! rejects or reads differently. (The fuzz target `http1` compares with hyper and httparse.)

use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::targets::http1::{Seen, requests};
use super::{mutated, rounds, suites};

/// What another reader finds; peers.py describes it.
#[derive(Debug, Deserialize)]
struct Reading {
    requests: Vec<Request>,
    end: String,
}

/// A request: method, target, values of Host, and body, with one character for each byte.
type Request = (String, String, Vec<String>, Option<String>);

/// One connection as the others read it.
#[derive(Debug, Deserialize)]
struct Readings {
    h11: Reading,
    llhttp: Reading,
}

/// Request lines, header lines, and bodies: valid ones, and those that readers are known to disagree about.
const REQUEST_LINES: &[&str] = &[
    "POST /v4/a/b HTTP/1.1",
    "GET / HTTP/1.1",
    "POST /a?b=c&d HTTP/1.0",
    "POST http://localhost/a HTTP/1.1",
    "POST http://x@localhost:80?a HTTP/1.1",
    "POST http+x://localhost/ HTTP/1.1",
    "POST http:/localhost/ HTTP/1.1",
    "POST http:// HTTP/1.1",
    "POST //localhost/a HTTP/1.1",
    "POST localhost/a HTTP/1.1",
    "POST localhost:80 HTTP/1.1",
    "POST ?a HTTP/1.1",
    "POST * HTTP/1.1",
    "POST *a HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "CONNECT localhost:80 HTTP/1.1",
    "POST /a#b HTTP/1.1",
    "POST /\u{e9} HTTP/1.1",
    "POST /<>\"`{}|\\^[] HTTP/1.1",
    "POST /a\tb HTTP/1.1",
    "POST /a\u{7f} HTTP/1.1",
    "POST  /a HTTP/1.1",
    "POST /a HTTP/1.1 ",
    "POST /a HTTP/1.2",
    "POST /a HTTP/01.1",
    "POST /a",
];
const HEADER_LINES: &[&str] = &[
    "Host: localhost",
    "host:\tlocalhost:80\t ",
    "Host:",
    "Host: a b",
    "Host: a,b",
    "Host : a",
    "Host: \u{e9}",
    "Content-Length: 5",
    "Content-Length:  5 ",
    "Content-Length: 05",
    "Content-Length: +5",
    "Content-Length: -5",
    "Content-Length: 5,5",
    "Content-Length: 5 5",
    "Content-Length: 0x5",
    "Content-Length:",
    "Content-Length: \u{b}5",
    "Content-Length: 18446744073709551621",
    "Content_Length: 5",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: Chunked",
    "Transfer-Encoding: chunked,",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: \u{b}chunked",
    "Transfer-Encoding:\u{85}chunked",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding : chunked",
    "Connection: close",
    "Connection: keep-alive",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Expect: 100-continue",
    "X: y",
    "X:",
    "X: \0",
    "X: a\rb",
    "X: a\nContent-Length: 5",
    " folded",
    "\u{e9}: a",
    ": a",
    "a",
];
const BODIES: &[&str] = &[
    "",
    "hello",
    "hello ",
    "hel",
    "5\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n5\r\nhello\r\n00\r\nX: y\r\n\r\n",
    "005\r\nhello\r\n0\r\n\r\n",
    "5;a\r\nhello\r\n0;a=b\r\n\r\n",
    "5;a=\"b;c\\\"\"\r\nhello\r\n0\r\n\r\n",
    "5;\r\nhello\r\n0\r\n\r\n",
    "5;a=\r\nhello\r\n0\r\n\r\n",
    "5;a b\r\nhello\r\n0\r\n\r\n",
    "5; a\r\nhello\r\n0\r\n\r\n",
    "5;a=\"b\r\nhello\r\n0\r\n\r\n",
    "5;\u{e9}\r\nhello\r\n0\r\n\r\n",
    "5;a\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "5_\r\nhello\r\n0\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhello!\r\n0\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\n\n",
    "5\r\nhello\r\n0\r\nHost: evil\r\n\r\n",
    "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "5\r\nhello\r\n0\r\n folded\r\n\r\n",
    "5\r\nhello\r\n0\r\nX : y\r\n\r\n",
];

/// Returns one to three requests of these parts. Most parts are the first of their list or fit together, so that whole
/// connections are valid often enough.
fn composed(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut text = String::new();
    for _ in 0..random.usize(1..=3) {
        let any = |list: &[&'static str], random: &mut fastrand::Rng| list[random.usize(..list.len())];
        let mut lines = vec![if random.u8(..4) > 0 { REQUEST_LINES[0] } else { any(REQUEST_LINES, &mut random) }];
        if random.u8(..8) > 0 {
            lines.push(HEADER_LINES[0]);
        }
        let (framing, bodies) = match random.u8(..6) {
            0..2 => ("Content-Length: 5", &BODIES[1..2]),
            2..4 => ("Transfer-Encoding: chunked", &BODIES[4..9]),
            4 => ("Transfer-Encoding: chunked", BODIES),
            _ => ("X: y", BODIES),
        };
        lines.push(framing);
        let body = any(bodies, &mut random);
        lines.extend((0..random.usize(..4) / 2).map(|_| any(HEADER_LINES, &mut random)));
        text += &format!("{}\r\n\r\n{body}", lines.join("\r\n"));
    }
    text.chars().map(|character| u8::try_from(character).expect("a character for each byte")).collect()
}

/// Returns one character for each byte.
fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// Reads connections with the other readers.
fn others(connections: &[Vec<u8>]) -> Vec<Readings> {
    let python = std::env::var_os("CHATGATE_TEST_PYTHON")
        .expect("CHATGATE_TEST_PYTHON must name a Python with the other readers; run tests/run, which installs them");
    let mut child = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/peers.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("CHATGATE_TEST_PYTHON must name a program; run tests/run, which installs one");
    let texts: Vec<String> = connections.iter().map(|bytes| latin1(bytes)).collect();
    serde_json::to_writer(child.stdin.take().expect("it was piped"), &texts).expect("Python reads the connections");
    let output = child.wait_with_output().expect("Python exits");
    assert!(output.status.success(), "peers.py: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("one reading for each connection")
}

/// Asserts that the other reader finds all of our requests, or ends the connection before.
fn assert_not_more_lenient(ours: &[Seen], theirs: &Reading) {
    for (at, seen) in ours.iter().enumerate() {
        let Some((method, target, hosts, body)) = theirs.requests.get(at) else {
            // llhttp knows a list of methods; chatgate answers every method but POST with 405.
            let is_unknown_method = seen.method != "POST" && theirs.end.contains("method");
            assert!(theirs.end == "closed" || is_unknown_method, "request {at} is rejected: {}", theirs.end);
            return;
        };
        assert_eq!((&seen.method, &seen.target), (method, target), "request {at}");
        assert_eq!(seen.host.iter().map(|host| latin1(host)).collect::<Vec<_>>(), *hosts, "Host of request {at}");
        if theirs.end == "upgraded" && at + 1 == theirs.requests.len() {
            // chatgate does not change the protocol, so what follows is a body.
            return;
        }
        if seen.body.is_some() {
            assert_eq!(seen.body.as_deref().map(latin1), *body, "body of request {at}: {}", theirs.end);
        }
    }
}

#[test]
fn http1_is_never_read_more_leniently_than_by_h11_and_llhttp() {
    // Long cases exceed limits, which differ between readers.
    let mut files: Vec<Vec<u8>> = suites::http_requests().into_iter().map(|case| case.bytes).collect();
    files.retain(|bytes| bytes.len() < 8 * 1024);
    let mut all = files.clone();
    for seed in 0..rounds().div_ceil(10) {
        all.extend(files.iter().map(|file| mutated(file, &files, seed)));
    }
    all.extend((0..100 * rounds()).map(composed));
    let (mut bodies, mut rejected) = (0, 0);
    for (bytes, readings) in all.iter().zip(others(&all)) {
        let ours = requests(bytes);
        bodies += ours.iter().filter(|seen| seen.body.as_ref().is_some_and(|body| !body.is_empty())).count();
        rejected += usize::from(ours.is_empty());
        for (name, theirs) in [("h11", &readings.h11), ("llhttp", &readings.llhttp)] {
            let outcome = std::panic::catch_unwind(|| assert_not_more_lenient(&ours, theirs));
            assert!(outcome.is_ok(), "{name} disagrees about b\"{}\"", bytes.escape_ascii());
        }
    }
    eprintln!("{} connections: {bodies} bodies accepted, {rejected} without an accepted request", all.len());
    assert!(bodies > all.len() / 10 && rejected > all.len() / 10, "{bodies} and {rejected} of {}", all.len());
}
