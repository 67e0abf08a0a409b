//! HTTP/2 requests that are malformed in one way, sent to chatgate, nginx, and HAProxy: what each of them serves. It
//! needs both programs, and prints a table:
//!
//! ```sh
//! cargo test --test gateway -- --ignored --nocapture h2_peers
//! ```

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use crate::support::chat::FakeChat;
use crate::support::h2_raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, RawHttp2, SETTINGS,
    WINDOW_UPDATE, field_line, frame,
};
use crate::support::setup::gateway;
use crate::support::wire::free_address;
use crate::support::{PATIENCE, eventually, within};

const PADDED: u8 = 8;
const PUSH_PROMISE: u8 = 5;

/// Malformed requests that chatgate serves although nginx and HAProxy reject them, with the reason. In all of them, h2
/// drops the malformed part, and no part of it reaches Chat.
const MORE_LENIENT: &[(&str, &str)] = &[
    ("pseudo-header in trailers", "h2 drops it; nginx has no trailers"),
    ("empty :scheme, no :authority", "h2 drops it"),
];

/// One request, complete or broken, on this stream.
struct Case {
    name: &'static str,
    is_valid: bool,
    frames: Vec<u8>,
    stream: u32,
}

/// The pseudo-headers of a valid request.
const METHOD: (&str, &str) = (":method", "POST");
const SCHEME: (&str, &str) = (":scheme", "http");
const AUTHORITY: (&str, &str) = (":authority", "localhost");
const TARGET: (&str, &str) = (":path", "/v4/openim/querystate");

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field_line(name, value)).collect()
}

/// Returns a request with these fields and the body `{}`.
fn request(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, stream, &block(fields)), frame(DATA, END_STREAM, stream, b"{}")].concat()
}

fn valid(stream: u32) -> Vec<u8> {
    request(stream, &[METHOD, SCHEME, AUTHORITY, TARGET])
}

/// Requests whose fields are malformed (RFC 9113 sections 8.1 to 8.3).
fn field_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name, is_valid, frames| cases.push(Case { name, is_valid, frames, stream: 1 });
    let with = |more: &[(&str, &str)]| request(1, &[&[METHOD, SCHEME, AUTHORITY, TARGET][..], more].concat());
    add("valid", true, valid(1));
    add("valid with te: trailers and a length", true, with(&[("te", "trailers"), ("content-length", "2")]));
    add("Host in place of :authority", true, request(1, &[METHOD, SCHEME, TARGET, ("host", "localhost")]));
    add("no :method", false, request(1, &[SCHEME, AUTHORITY, TARGET]));
    add("no :scheme", false, request(1, &[METHOD, AUTHORITY, TARGET]));
    add("no :path", false, request(1, &[METHOD, SCHEME, AUTHORITY]));
    add("no :authority, no Host", false, request(1, &[METHOD, SCHEME, TARGET]));
    add("empty :method", false, request(1, &[(":method", ""), SCHEME, AUTHORITY, TARGET]));
    add("empty :scheme", false, request(1, &[METHOD, (":scheme", ""), AUTHORITY, TARGET]));
    let host = ("host", "localhost");
    add("empty :scheme, no :authority", false, request(1, &[METHOD, (":scheme", ""), TARGET, host]));
    add(":scheme with a digit first", false, request(1, &[METHOD, (":scheme", "0ttp"), AUTHORITY, TARGET]));
    add(":scheme with a space", false, request(1, &[METHOD, (":scheme", "ht tp"), AUTHORITY, TARGET]));
    add("empty :path", false, request(1, &[METHOD, SCHEME, AUTHORITY, (":path", "")]));
    add(":path without a slash", false, request(1, &[METHOD, SCHEME, AUTHORITY, (":path", "v4/openim/querystate")]));
    for (name, path) in [
        (":path with a fragment", "/v4/openim/querystate#x"),
        (":path with a space", "/v4/openim/querystate x"),
        (":path with a tab", "/v4/openim/querystate\t"),
        (":path with a line feed", "/v4/openim/querystate\n"),
        (":path with a NUL", "/v4/openim/querystate\0"),
        (":path with DEL", "/v4/openim/querystate\u{7f}"),
        (":path beyond ASCII", "/v4/openim/querystate\u{e9}"),
    ] {
        add(name, false, request(1, &[METHOD, SCHEME, AUTHORITY, (":path", path)]));
    }
    for (name, authority) in [
        ("empty :authority", ""),
        (":authority with userinfo", "x@localhost"),
        (":authority with a space", "local host"),
        (":authority with a slash", "localhost/x"),
        (":authority with a port that is no number", "localhost:x"),
    ] {
        add(name, false, request(1, &[METHOD, SCHEME, (":authority", authority), TARGET]));
    }
    for (name, field) in [
        ("second :path", (":path", "/v4/openim/querystate")),
        ("second :method", (":method", "POST")),
        ("second :authority", (":authority", "localhost")),
        ("second :scheme", (":scheme", "http")),
        ("unknown pseudo-header", (":x", "y")),
        (":status in a request", (":status", "200")),
        (":protocol without CONNECT", (":protocol", "websocket")),
        ("Host unlike :authority", ("host", "evil.example")),
        ("connection", ("connection", "close")),
        ("transfer-encoding", ("transfer-encoding", "chunked")),
        ("keep-alive", ("keep-alive", "1")),
        ("proxy-connection", ("proxy-connection", "close")),
        ("upgrade", ("upgrade", "h2c")),
        ("te: gzip", ("te", "gzip")),
        ("name in upper case", ("X-Upper", "y")),
        ("empty name", ("", "y")),
        ("name with a space", ("x y", "z")),
        ("name with a colon", ("x:y", "z")),
        ("name with a quote", ("x\"y", "z")),
        ("name with a line feed", ("x\ny", "z")),
        ("name beyond ASCII", ("x\u{e9}", "z")),
        ("value with a line feed", ("x", "a\nhost: evil")),
        ("value with a carriage return", ("x", "a\rb")),
        ("value with a NUL", ("x", "a\0b")),
        ("value with DEL", ("x", "a\u{7f}b")),
        ("value with spaces around it", ("x", " y ")),
        ("length too small", ("content-length", "1")),
        ("length too large", ("content-length", "3")),
        ("empty length", ("content-length", "")),
        ("length with a sign", ("content-length", "+2")),
        ("length list", ("content-length", "2, 2")),
    ] {
        add(name, false, with(&[field]));
    }
    add("length twice", false, with(&[("content-length", "2"), ("content-length", "2")]));
    add("two lengths", false, with(&[("content-length", "2"), ("content-length", "3")]));
    add("pseudo-header after a field", false, request(1, &[METHOD, SCHEME, ("x", "y"), AUTHORITY, TARGET]));
    cases
}

/// Requests whose trailers or frames are malformed (RFC 9113 sections 4 to 6).
fn frame_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name, is_valid, stream, frames: &[Vec<u8>]| {
        cases.push(Case { name, is_valid, frames: frames.concat(), stream });
    };
    let good = block(&[METHOD, SCHEME, AUTHORITY, TARGET]);
    let open = frame(HEADERS, END_HEADERS, 1, &good);
    let body = frame(DATA, 0, 1, b"{}");
    for (name, is_valid, fields) in [
        ("trailers", true, [("x", "y")]),
        ("pseudo-header in trailers", false, [(":path", "/v4/openim/querystate")]),
        ("content-length in trailers", false, [("content-length", "9")]),
        ("host in trailers", false, [("host", "evil.example")]),
        ("connection in trailers", false, [("connection", "close")]),
    ] {
        let end = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        add(name, is_valid, 1, &[open.clone(), body.clone(), end]);
    }
    let open_end = frame(HEADERS, END_HEADERS, 1, &block(&[("x", "y")]));
    add("trailers that do not end the stream", false, 1, &[open.clone(), body, open_end, frame(DATA, 1, 1, b"")]);
    let (first, second) = good.split_at(9);
    let continued = frame(CONTINUATION, END_HEADERS, 7, second);
    let begun = frame(HEADERS, 0, 7, first);
    let last = frame(DATA, END_STREAM, 7, b"{}");
    add("header block in two frames", true, 7, &[begun.clone(), continued.clone(), last.clone()]);
    let empty = frame(CONTINUATION, 0, 7, &[]);
    add("empty CONTINUATION", true, 7, &[begun.clone(), empty, continued.clone(), last.clone()]);
    let ping = frame(PING, 0, 0, &[0; 8]);
    add("PING within a header block", false, 7, &[begun.clone(), ping, continued.clone(), last.clone()]);
    let other = frame(CONTINUATION, END_HEADERS, 9, second);
    add("CONTINUATION of another stream", false, 7, &[begun, other, last.clone()]);
    add("CONTINUATION without HEADERS", false, 7, &[continued, valid(7)]);
    add("padded HEADERS", true, 7, &[frame(HEADERS, END_HEADERS | PADDED, 7, &[&[2], &*good, &[0, 0]].concat()), last]);
    add("HEADERS on stream 0", false, 7, &[frame(HEADERS, 5, 0, &good), valid(7)]);
    add("HEADERS on an even stream", false, 2, &[valid(2)]);
    for (name, is_valid, before) in [
        ("unknown frame", true, frame(0xbe, 0xff, 0, b"anything")),
        ("unknown setting", true, frame(SETTINGS, 0, 0, &[0xbe, 0xef, 0, 0, 0, 1])),
        ("unknown frame on an idle stream", true, frame(0xbe, 0, 5, b"")),
        ("PRIORITY on an idle stream", true, frame(PRIORITY, 0, 5, &[0, 0, 0, 0, 1])),
        ("DATA on an idle stream", false, frame(DATA, 0, 5, b"x")),
        ("DATA on stream 0", false, frame(DATA, 0, 0, b"x")),
        ("RST_STREAM on an idle stream", false, frame(RST_STREAM, 0, 5, &[0, 0, 0, 8])),
        ("RST_STREAM of three bytes", false, frame(RST_STREAM, 0, 5, &[0, 0, 8])),
        ("WINDOW_UPDATE of 0", false, frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("WINDOW_UPDATE beyond 2^31", false, frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("WINDOW_UPDATE on an idle stream", false, frame(WINDOW_UPDATE, 0, 5, &[0, 0, 0, 1])),
        ("SETTINGS of five bytes", false, frame(SETTINGS, 0, 0, &[0; 5])),
        ("SETTINGS on a stream", false, frame(SETTINGS, 0, 5, &[])),
        ("SETTINGS ack with a payload", false, frame(SETTINGS, 1, 0, &[0; 6])),
        ("ENABLE_PUSH of 2", false, frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2])),
        ("INITIAL_WINDOW_SIZE beyond 2^31", false, frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0])),
        ("MAX_FRAME_SIZE of 1", false, frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])),
        ("PING of seven bytes", false, frame(PING, 0, 0, &[0; 7])),
        ("PING on a stream", false, frame(PING, 0, 5, &[0; 8])),
        ("GOAWAY on a stream", false, frame(GOAWAY, 0, 5, &[0; 8])),
        ("PUSH_PROMISE of a client", false, frame(PUSH_PROMISE, END_HEADERS, 5, &[&[0, 0, 0, 8], &*good].concat())),
        ("frame above MAX_FRAME_SIZE", false, frame(0xbe, 0, 0, &[0; 16_385])),
        ("DATA with more padding than payload", false, [open.clone(), frame(DATA, PADDED, 1, &[9, 0])].concat()),
        ("HPACK index 0", false, frame(HEADERS, END_HEADERS, 5, &[0x80])),
        ("HPACK index beyond the table", false, frame(HEADERS, END_HEADERS, 5, &[0xff, 0x7f])),
        ("HPACK string beyond the block", false, frame(HEADERS, END_HEADERS, 5, &[0, 9, b'x'])),
        ("HPACK table above the limit", false, frame(HEADERS, END_HEADERS, 5, &[0x3f, 0xe2, 0x7f])),
        ("HPACK Huffman code with EOS", false, frame(HEADERS, END_HEADERS, 5, &[0, 0x84, 255, 255, 255, 255, 0])),
        ("lower stream after a higher one", false, frame(HEADERS, END_HEADERS, 9, &good)),
    ] {
        add(name, is_valid, 7, &[before, valid(7)]);
    }
    cases
}

/// What a server does with a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The request reached the server behind it, complete.
    Served,
    /// An HTTP response, without a call.
    Rejected,
    /// RST_STREAM.
    Reset,
    /// GOAWAY, or the connection is closed.
    Closed,
}

/// Sends the case on a new connection. `calls` counts the requests behind the server.
async fn outcome(address: &str, case: &Case, calls: impl Fn() -> usize) -> Outcome {
    let before = calls();
    let mut raw = RawHttp2::open(address).await;
    raw.send(&case.frames).await;
    let end = within(PATIENCE, case.name, async {
        loop {
            match raw.next().await {
                Some((HEADERS, _, stream, _)) if stream == case.stream => break Outcome::Rejected,
                Some((RST_STREAM, _, stream, _)) if stream == case.stream => break Outcome::Reset,
                Some((GOAWAY, ..)) | None => break Outcome::Closed,
                Some(_) => {}
            }
        }
    })
    .await;
    if calls() > before { Outcome::Served } else { end }
}

/// A program that is killed when it is dropped.
struct Peer {
    child: Child,
    address: String,
}

impl Peer {
    async fn start(program: &str, arguments: &[&str], address: SocketAddr) -> Peer {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}; install it for this test"));
        let peer = Peer { child, address: address.to_string() };
        eventually(program, async || TcpStream::connect(address).await.ok()).await;
        peer
    }

    async fn nginx(dir: &Path, upstream: SocketAddr) -> Peer {
        let address = free_address();
        let (dir, file) = (dir.display(), dir.join("nginx.conf"));
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {dir}/{name};\n"))
            .concat();
        let config = format!(
            "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/nginx.log; events {{}}\n\
             http {{ access_log off; {paths} server {{ listen {address} http2; location / {{\n\
             proxy_pass http://{upstream}; proxy_http_version 1.1; proxy_set_header Host $http_host; }} }} }}\n"
        );
        fs::write(&file, config).expect("an own folder");
        Peer::start("nginx", &["-e", &format!("{dir}/nginx.log"), "-c", &file.display().to_string()], address).await
    }

    async fn haproxy(dir: &Path, upstream: SocketAddr) -> Peer {
        let address = free_address();
        let file = dir.join("haproxy.cfg");
        let config = format!(
            "defaults\n mode http\n timeout client 20s\n timeout server 20s\n timeout connect 5s\n\
             frontend f\n bind {address} proto h2\n default_backend b\nbackend b\n server s {upstream}\n"
        );
        fs::write(&file, config).expect("an own folder");
        Peer::start("haproxy", &["-db", "-f", &file.display().to_string()], address).await
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts an HTTP/1 server, and returns its address and the number of complete requests.
async fn backend() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let calls = Arc::clone(&counted);
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let calls = Arc::clone(&calls);
                async move {
                    request.into_body().collect().await?;
                    calls.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from_static(b"{}"))))
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, calls)
}

#[tokio::test]
#[ignore = "run by hand: it needs nginx and HAProxy"]
async fn http2_is_not_read_more_leniently_than_by_nginx_and_haproxy() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let (upstream, calls) = backend().await;
    let calls = || calls.load(Ordering::SeqCst);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let nginx = Peer::nginx(dir.path(), upstream).await;
    let haproxy = Peer::haproxy(dir.path(), upstream).await;
    let mut table = format!("{:40} {:8} {:9} {:9} {:9}\n", "case", "is valid", "chatgate", "nginx", "HAProxy");
    let mut wrong = Vec::new();
    for case in field_cases().into_iter().chain(frame_cases()) {
        let ours = outcome(gateway.address(), &case, || chat.call_count()).await;
        let theirs = [outcome(&nginx.address, &case, calls).await, outcome(&haproxy.address, &case, calls).await];
        let _ = writeln!(
            table,
            "{:40} {:8} {:9} {:9} {:9}",
            case.name,
            case.is_valid,
            format!("{ours:?}"),
            format!("{:?}", theirs[0]),
            format!("{:?}", theirs[1])
        );
        let is_listed = MORE_LENIENT.iter().any(|(name, _)| *name == case.name);
        let is_more_lenient = !case.is_valid && ours == Outcome::Served && !theirs.contains(&Outcome::Served);
        if is_more_lenient != is_listed || (case.is_valid && ours != Outcome::Served) {
            wrong.push(case.name);
        }
    }
    eprintln!("{table}");
    assert!(wrong.is_empty(), "{wrong:?}");
}
