//! HTTP/2 requests as read by the chain of chatgate (h2, hyper, and the checks of the gateway) and by the rules of RFC 9113
//! section 8. The chain must accept no malformed request, and every well-formed one, with the same content.
//!
//! The input is a connection, one step a line. The first byte of a line says what it does:
//!
//! - `+`: the fields so far become the headers of a request with a body; `.`: those of a request without one. A second
//!   block of fields is the trailers, and ends the request either way.
//! - `>`: the rest of the line is a piece of the body; `<`: the last piece.
//! - any other byte: the line is a field, `name=value`.
//!
//! A vertical tab is read as a line feed. Requests follow each other; each has a stream of its own.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Context;

use bytes::Bytes;
use chatgate::gateway::route;
use chatgate::http::headers::RequestHeaders;
use chatgate::http::host::Hosts;
use chatgate::http::peer::Peer;
use chatgate::server::http2::H2FrameTracker;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use super::stream::{Pieces, Woken};

/// Longest input in bytes, and most requests: below every limit of the chain.
const LEN_MAX: usize = 4 * 1024;
const REQUESTS_MAX: usize = 8;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Frame types and flags (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

type Field = (Vec<u8>, Vec<u8>);

/// A request as the input describes it.
#[derive(Debug, Default, Clone)]
struct Sent {
    fields: Vec<Field>,
    body: Vec<u8>,
    trailers: Vec<Field>,
    is_ended: bool,
}

/// A request that the chain accepts.
#[derive(Debug, PartialEq, Eq)]
struct Accepted {
    authority: Vec<u8>,
    path: Vec<u8>,
    body: Vec<u8>,
}

/// Reads the bytes as the description of a connection.
pub fn run(input: &[u8]) {
    if input.len() > LEN_MAX {
        return;
    }
    let (requests, wire) = connection(input);
    track(&wire, input.len());
    let seen = chain_reads(&wire);
    let expected: Vec<Option<Accepted>> = requests.iter().map(well_formed).collect();
    // Streams are read in order, so each accepted request is one of the rest.
    let mut rest = expected.iter().flatten();
    for accepted in &seen {
        assert!(rest.any(|expected| expected == accepted), "{accepted:?} was accepted: {}", input.escape_ascii());
    }
    // The http crate rejects some characters of queries and fragments, some of which are valid.
    let is_plain = |accepted: &Accepted| {
        accepted.path.iter().all(|byte| byte.is_ascii_alphanumeric() || b"/?=&%._-".contains(byte))
    };
    let has_fragment = input.contains(&b'#');
    let has_dropped = requests.iter().flat_map(|request| &request.trailers).any(|(name, _)| name.starts_with(b":"));
    if !has_fragment && !has_dropped && expected.iter().all(|expected| expected.as_ref().is_some_and(is_plain)) {
        assert_eq!(seen.len(), expected.len(), "a well-formed request was rejected: {}", input.escape_ascii());
    }
}

// --- The connection -----------------------------------------------------------------------------

/// Returns the requests of the input, and the bytes of their connection.
fn connection(input: &[u8]) -> (Vec<Sent>, Vec<u8>) {
    let mut wire = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let mut requests: Vec<Sent> = Vec::new();
    let mut fields: Vec<Field> = Vec::new();
    for line in input.split(|byte| *byte == b'\n') {
        let Some((step, rest)) = line.split_first() else { continue };
        let number = requests.len();
        match (step, requests.last_mut().filter(|request| !request.is_ended)) {
            (b'+' | b'.', Some(request)) => {
                request.trailers = std::mem::take(&mut fields);
                request.is_ended = true;
                wire.extend(block(number, &request.trailers, true));
            }
            (b'+' | b'.', None) if number < REQUESTS_MAX => {
                let is_ended = *step == b'.';
                wire.extend(block(number + 1, &fields, is_ended));
                requests.push(Sent { fields: std::mem::take(&mut fields), is_ended, ..Sent::default() });
            }
            (b'>' | b'<', Some(request)) => {
                request.body.extend_from_slice(rest);
                request.is_ended = *step == b'<';
                let flags = if request.is_ended { END_STREAM } else { 0 };
                wire.extend(frame(DATA, flags, number, rest));
            }
            (b'+' | b'.' | b'>' | b'<', _) => {}
            _ => {
                let line: Vec<u8> = line.iter().map(|byte| if *byte == 0x0b { b'\n' } else { *byte }).collect();
                let at = line.iter().position(|byte| *byte == b'=').unwrap_or(line.len());
                fields.push((line[..at].to_vec(), line.get(at + 1..).unwrap_or_default().to_vec()));
            }
        }
    }
    (requests, wire)
}

/// Returns a frame of the n-th request, or of the connection for 0.
fn frame(kind: u8, flags: u8, request: usize, payload: &[u8]) -> Vec<u8> {
    let stream = u32::try_from((2 * request).saturating_sub(1)).expect("few requests");
    let len = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns the frames of a header block, without compression (RFC 7541 section 6.2.2). Every other one is split
/// within its first field: if a frame ends within a later one, h2 drops the malformed fields before, instead of rejecting
/// the request.
fn block(request: usize, fields: &[Field], is_end: bool) -> Vec<u8> {
    let mut payload = Vec::new();
    for (name, value) in fields {
        payload.push(0);
        for text in [name, value] {
            // An integer with a prefix of 7 bits (RFC 7541 section 5.1).
            match text.len().checked_sub(127) {
                None => payload.push(u8::try_from(text.len()).expect("below 127")),
                Some(more) => {
                    payload.extend([127, 0x80 | (more & 127) as u8]);
                    payload.push(u8::try_from(more >> 7).expect("a short text"));
                }
            }
            payload.extend_from_slice(text);
        }
    }
    let end_stream = if is_end { END_STREAM } else { 0 };
    if request.is_multiple_of(2) {
        let (first, second) = payload.split_at(payload.len().min(2));
        return [frame(HEADERS, end_stream, request, first), frame(CONTINUATION, END_HEADERS, request, second)]
            .concat();
    }
    frame(HEADERS, END_HEADERS | end_stream, request, &payload)
}

/// The tracker of header blocks finds the same state however the bytes are split, and no open block at the end.
fn track(wire: &[u8], size: usize) {
    let (mut whole, mut pieces) = (H2FrameTracker::default(), H2FrameTracker::default());
    whole.follow(wire);
    wire.chunks(size % 64 + 1).for_each(|piece| pieces.follow(piece));
    assert!(!whole.in_header_block() && !pieces.in_header_block());
}

// --- The rules ----------------------------------------------------------------------------------

/// Returns the request if it is well-formed, and one that the gateway serves.
fn well_formed(request: &Sent) -> Option<Accepted> {
    let pseudo = request.fields.iter().take_while(|(name, _)| name.starts_with(b":")).count();
    let (pseudo, regular) = request.fields.split_at(pseudo);
    let only = |name: &[u8]| {
        let mut values = pseudo.iter().filter(|(other, _)| other == name).map(|(_, value)| &**value);
        (values.next(), values.next().is_none())
    };
    // Section 8.3.1: exactly these, once each; a Host may stand for :authority.
    let known = [&b":method"[..], b":scheme", b":path", b":authority"];
    let is_known = pseudo.iter().all(|(name, _)| known.contains(&&**name)) && known.iter().all(|name| only(name).1);
    let [method, scheme, path, authority] = known.map(|name| only(name).0);
    // h2 drops the pseudo-headers of trailers, if it knows them, and chatgate drops the trailers.
    let is_dropped = |name: &[u8]| known.contains(&name) || matches!(name, b":status" | b":protocol");
    let trailers = request.trailers.iter().filter(|(name, _)| !is_dropped(name));
    let is_valid = is_known && regular.iter().chain(trailers).all(is_field) && request.is_ended;
    let values = |name: &str| -> Vec<&[u8]> {
        regular.iter().filter(|(other, _)| other == name.as_bytes()).map(|(_, value)| &**value).collect()
    };
    let lengths = values("content-length");
    let has_length = match *lengths {
        [] => true,
        // At most 19 digits, as in h2.
        [digits] => {
            let text = std::str::from_utf8(digits).ok().filter(|_| (1..20).contains(&digits.len()));
            digits.iter().all(u8::is_ascii_digit) && text.and_then(|text| text.parse().ok()) == Some(request.body.len())
        }
        _ => false,
    };
    let hosts = values("host");
    let host = match (authority, &*hosts) {
        (Some(authority), []) => authority,
        (Some(authority), [host]) if authority == *host => authority,
        (None, [host]) => host,
        _ => return None,
    };
    // Those of the gateway: one of its own names, no header of a browser, and POST to a command. Any scheme is served, because a
    // proxy in front may have ended TLS.
    let is_browser = ["origin", "sec-fetch-site"].iter().any(|name| !values(name).is_empty());
    let (path, scheme) = (path?, scheme?);
    // h2 drops an empty scheme if there is no :authority, and a fragment; neither changes what is served.
    let has_scheme = is_scheme(scheme) || (scheme.is_empty() && authority.is_none());
    let served = path.split(|byte| *byte == b'#').next()?;
    let (command, query) = served.split_at(served.iter().position(|byte| *byte == b'?').unwrap_or(served.len()));
    let is_command = is_command(command) && query.iter().all(|byte| (b'!'..=b'~').contains(byte));
    (is_valid && has_length && is_own(host) && !is_browser && has_scheme && is_command && method == Some(b"POST"))
        .then(|| Accepted { authority: host.to_vec(), path: served.to_vec(), body: request.body.clone() })
}

/// Whether it is `localhost` or a loopback address, and maybe a port.
fn is_own(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let (name, port) = host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).unwrap_or((host, ""));
    let is_port = port.is_empty() || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok());
    let name = name.strip_suffix('.').unwrap_or(name);
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let is_loopback = address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    is_port && (name.eq_ignore_ascii_case("localhost") || is_loopback)
}

/// Whether it is `/v4/SERVICE/COMMAND`.
fn is_command(path: &[u8]) -> bool {
    let is_part = |part: &[u8]| {
        (1..=64).contains(&part.len()) && part.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
    };
    let mut parts = path.strip_prefix(b"/v4/").unwrap_or_default().split(|byte| *byte == b'/');
    parts.next().is_some_and(is_part) && parts.next().is_some_and(is_part) && parts.next().is_none()
}

/// Whether it is a scheme by RFC 3986 section 3.1.
fn is_scheme(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_alphabetic)
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
}

/// Whether a regular field is well-formed (section 8.2). Spaces around a value are accepted, as by nginx and HAProxy, and
/// so is a quote in a name, by the http crate.
fn is_field((name, value): &Field) -> bool {
    let is_token =
        |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!\"#$%&'*+-.^_`|~".contains(byte);
    let is_name = !name.is_empty() && name.iter().all(is_token);
    let is_value = value.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f));
    let is_of_connections =
        [&b"connection"[..], b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"].contains(&&**name);
    is_name && is_value && !is_of_connections && (name != b"te" || value == b"trailers")
}

// --- The chain ----------------------------------------------------------------------------------

/// Returns the requests that the chain accepts, with complete bodies, in order.
fn chain_reads(wire: &[u8]) -> Vec<Accepted> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = hyper::service::service_fn({
        let seen = Rc::clone(&seen);
        move |request: Request<Incoming>| check(request, Rc::clone(&seen))
    });
    let streams = Streams::default();
    let builder = hyper::server::conn::http2::Builder::new(streams.clone());
    let pieces = Pieces::new(wire, wire.len());
    let mut connection = pin!(builder.serve_connection(TokioIo::new(pieces), service));
    let (woken, waker) = Woken::new();
    let mut is_open = true;
    while woken.take() {
        let mut cx = Context::from_waker(&waker);
        is_open = is_open && connection.as_mut().poll(&mut cx).is_pending();
        let mut all = streams.0.take();
        all.retain_mut(|stream| stream.as_mut().poll(&mut cx).is_pending());
        streams.0.borrow_mut().append(&mut all);
    }
    let mut seen = seen.take();
    seen.sort_by_key(|(order, _)| *order);
    seen.into_iter().filter_map(|(_, accepted)| accepted).collect()
}

/// The requests of a connection, by the order in which they begin. `None` until one is accepted.
type Seen = Rc<RefCell<Vec<(usize, Option<Accepted>)>>>;

/// The checks of the gateway, in its order.
async fn check(request: Request<Incoming>, seen: Seen) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let at = seen.borrow().len();
    seen.borrow_mut().push((at, None));
    let headers = RequestHeaders::of(&head.headers);
    let peer = Peer::Tcp { local: Ipv4Addr::new(10, 1, 2, 3).into() };
    let checked = route::check_origin_and_host(&head, &headers, &Hosts::default(), peer)
        .and_then(|()| route::check_shape(&head, &headers))
        .and_then(|()| route::read(&head, &headers, false).map(drop));
    if checked.is_ok()
        && let Ok(body) = body.collect().await
    {
        let host = headers.host.single().map(|host| host.as_bytes().to_vec());
        let authority = head.uri.authority().map(|authority| authority.as_str().into()).or(host).unwrap_or_default();
        let path = head.uri.path_and_query().map(|path| path.as_str().into()).unwrap_or_default();
        seen.borrow_mut()[at].1 = Some(Accepted { authority, path, body: body.to_bytes().to_vec() });
    }
    Ok(Response::new(Full::new(Bytes::new())))
}

/// The tasks of the streams, which hyper hands over to be polled.
#[derive(Clone, Default)]
struct Streams(Rc<RefCell<Vec<Stream>>>);

type Stream = Pin<Box<dyn Future<Output = ()>>>;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.0.borrow_mut().push(Box::pin(stream));
    }
}
