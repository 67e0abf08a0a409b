//! HTTP/1 as read by three readers: ours, httparse, and hyper. The first byte is the chunk size of the rest.
//!
//! Ours may reject bytes that the others accept, never the reverse. In the bytes that ours accepts, all three must find
//! the same requests, or the connection must end.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future as _;
use std::pin::pin;
use std::rc::Rc;
use std::task::Context;

use bytes::Bytes;
use chatgate::http::headers::HEAD_LEN_MAX;
use chatgate::server::http1::framing::{FramingError, FramingTracker, Protocol};
use chatgate::server::http1::head::{Framing, Head, field};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::stream::{Pieces, Woken};

/// A request as one reader parses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// The target.
    pub target: String,
    /// The value of Host.
    pub host: Option<Vec<u8>>,
    /// `None` if the body is truncated.
    pub body: Option<Vec<u8>>,
}

/// Returns the requests that chatgate finds in a connection: hyper reads what our reader accepts.
pub fn requests(bytes: &[u8]) -> Vec<Seen> {
    let sound = follow(bytes, bytes.len().max(1)).map_or_else(|stop| &bytes[..stop.valid_len], |_| bytes);
    if sound.starts_with(b"PRI * HTTP/2.0\r\n") {
        return Vec::new();
    }
    let mut ours = split(sound);
    ours.truncate(hyper_reads(sound, sound.len().max(1)).0.len());
    ours
}

/// Reads the bytes as one connection.
pub fn run(data: &[u8]) {
    let Some((size, bytes)) = data.split_first() else { return };
    let size = usize::from(*size).max(1);
    let whole = follow(bytes, bytes.len().max(1));
    let cut = follow(bytes, size);
    // The accepted part ends in the same line, regardless of the chunk size.
    let place = |stop: &FramingError| {
        (bytes[..stop.valid_len].iter().filter(|byte| **byte == b'\n').count(), stop.error, stop.in_head)
    };
    assert_eq!(whole.as_ref().map_err(place).err(), cut.as_ref().map_err(place).err());
    let (sound, idle) = match &whole {
        Ok(follower) => (bytes.len(), follower.between_requests()),
        Err(stop) => (stop.valid_len, false),
    };
    let sound = &bytes[..sound];
    if sound.starts_with(b"PRI * HTTP/2.0\r\n") {
        return;
    }
    let ours = split(sound);
    if whole.is_ok() && idle {
        assert!(ours.iter().all(|seen| seen.body.is_some()), "idle within {ours:?}");
    }
    let (theirs, is_waiting) = hyper_reads(sound, size);
    // hyper may stop earlier: it closes after a response, or rejects a target that is not a URI.
    assert!(theirs.len() <= ours.len(), "hyper found more: {theirs:?} in {ours:?}");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!((&ours.method, &ours.host, &ours.body), (&theirs.method, &theirs.host, &theirs.body));
        assert!(same_target(&ours.target, &theirs.target), "{} became {}", ours.target, theirs.target);
    }
    // If hyper waits for more bytes, it has found as many requests as ours.
    if is_waiting {
        assert_eq!(theirs.len(), ours.len(), "{theirs:?} of {ours:?}");
    }
}

/// Passes the bytes to our reader in chunks of this size.
fn follow(bytes: &[u8], size: usize) -> Result<FramingTracker, FramingError> {
    let mut follower = FramingTracker::new(Protocol::Any);
    let mut at = 0;
    for piece in bytes.chunks(size) {
        follower.follow(piece).map_err(|stop| FramingError { valid_len: at + stop.valid_len, ..stop })?;
        at += piece.len();
    }
    Ok(follower)
}

/// Returns the requests in accepted bytes. Our reader parses the headers line by line, httparse checks them, and bodies
/// follow the framing that our reader found.
fn split(mut bytes: &[u8]) -> Vec<Seen> {
    let mut all = Vec::new();
    while let Some((mut seen, framing, head_len)) = head(bytes) {
        check_with_httparse(&bytes[..head_len], &seen);
        bytes = &bytes[head_len..];
        let taken = match framing {
            Framing::Length(length) => {
                let body = usize::try_from(length).ok().and_then(|length| bytes.get(..length));
                body.map(|body| (body.to_vec(), body.len()))
            }
            Framing::Chunked => chunks(bytes),
            Framing::Http2 => unreachable!("only at the start of a connection"),
        };
        let Some((body, len)) = taken else {
            all.push(seen);
            break;
        };
        seen.body = Some(body);
        bytes = &bytes[len..];
        all.push(seen);
    }
    all
}

fn head(bytes: &[u8]) -> Option<(Seen, Framing, usize)> {
    let (mut head, mut len) = (Head::default(), 0);
    let mut seen: Option<Seen> = None;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if !line.ends_with(b"\n") {
            return None;
        }
        len += line.len();
        let framing = head.line(line).expect("our reader accepted it");
        let text = std::str::from_utf8(&line[..line.len() - 2]);
        match &mut seen {
            None if line == b"\r\n" => {}
            None => {
                let mut words = text.expect("a request line is ASCII").split(' ').map(str::to_owned);
                let (method, target) = (words.next().expect("three words"), words.next().expect("three words"));
                seen = Some(Seen { method, target, host: None, body: None });
            }
            Some(seen) if line != b"\r\n" => {
                let (name, value) = field(&line[..line.len() - 2]).expect("our reader accepted it");
                if name.eq_ignore_ascii_case(b"host") {
                    seen.host = Some(value.to_vec());
                }
            }
            Some(_) => {}
        }
        if let Some(framing) = framing {
            return seen.map(|seen| (seen, framing, len));
        }
    }
    None
}

fn check_with_httparse(head: &[u8], seen: &Seen) {
    let mut lines = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut lines);
    let status = request.parse(head);
    // httparse accepts fewer characters in targets and values.
    if status == Err(httparse::Error::Token) || status == Err(httparse::Error::HeaderValue) {
        return;
    }
    assert_eq!(status, Ok(httparse::Status::Complete(head.len())));
    assert_eq!((request.method, request.path), (Some(&*seen.method), Some(&*seen.target)));
    let values = |name: &str| -> Vec<&[u8]> {
        request.headers.iter().filter(|line| line.name.eq_ignore_ascii_case(name)).map(|line| line.value).collect()
    };
    assert_eq!(values("host"), seen.host.iter().map(Vec::as_slice).collect::<Vec<_>>());
    assert!(values("content-length").len() + values("transfer-encoding").len() <= 1);
}

/// Returns a chunked body and its length on the wire, or `None` if it is incomplete.
fn chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    let line = |at: usize| {
        let len = bytes[at..].windows(2).position(|end| end == b"\r\n")?;
        Some((&bytes[at..at + len], at + len + 2))
    };
    loop {
        let (text, begin) = line(at)?;
        let digits = std::str::from_utf8(text.split(|byte| *byte == b';').next()?).expect("digits");
        let size = usize::from_str_radix(digits, 16).expect("digits");
        if size == 0 {
            let mut next = begin;
            loop {
                let (text, end) = line(next)?;
                if text.is_empty() {
                    return Some((body, end));
                }
                next = end;
            }
        }
        let chunk = bytes.get(begin..begin.checked_add(size)?)?;
        body.extend_from_slice(chunk);
        at = begin + size;
        (bytes.get(at..at + 2)? == b"\r\n").then_some(())?;
        at += 2;
    }
}

/// Compares targets. hyper parses and reformats them, which may add a missing slash to an absolute target.
fn same_target(ours: &str, theirs: &str) -> bool {
    let slash = |text: &str| text.trim_end_matches('/').to_ascii_lowercase();
    ours == theirs
        || (!ours.starts_with('/') && slash(ours) == slash(theirs))
        || (!ours.starts_with('/') && theirs.to_ascii_lowercase().replacen("/?", "?", 1) == ours.to_ascii_lowercase())
}

/// Returns the requests that hyper finds, and whether it then waits for more bytes.
fn hyper_reads(bytes: &[u8], size: usize) -> (Vec<Seen>, bool) {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = hyper::service::service_fn({
        let seen = Rc::clone(&seen);
        move |request: Request<Incoming>| record(request, Rc::clone(&seen))
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.header_read_timeout(None).max_buf_size(HEAD_LEN_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(Pieces::new(bytes, size)), service));
    let (woken, waker) = Woken::new();
    let mut is_waiting = true;
    // After the last byte the stream stays pending, so that hyper finishes all complete requests and waits. (EOF would
    // make it drop the request in progress.)
    while woken.take() {
        is_waiting = connection.as_mut().poll(&mut Context::from_waker(&waker)).is_pending();
        if !is_waiting {
            break;
        }
    }
    (seen.take(), is_waiting)
}

async fn record(request: Request<Incoming>, seen: Rc<RefCell<Vec<Seen>>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let place = seen.borrow().len();
    seen.borrow_mut().push(Seen {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        host: head.headers.get("host").map(|host| host.as_bytes().to_vec()),
        body: None,
    });
    if let Ok(body) = body.collect().await {
        seen.borrow_mut()[place].body = Some(body.to_bytes().to_vec());
    }
    // Not a success, because CONNECT would become a tunnel.
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = StatusCode::NOT_FOUND;
    Ok(response)
}
