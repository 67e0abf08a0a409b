//! Rejects bytes that never become a request, with chatgate's own responses.
//!
//! - Reading: [`FramingTracker`] checks the bytes. Headers that it rejects reach hyper cut off by a NUL, which hyper
//!   rejects when their turn comes, after all earlier requests. Invalid chunks reach hyper as a broken connection, so
//!   their request fails. Nothing after either is passed on.
//! - Writing: hyper answers a request that it rejects with a bare status. Such a response is replaced, so that every
//!   response of chatgate has an envelope. A bare response has one of three statuses, no body, and no `X-Request-Id`,
//!   which every response of a service has (`gateway::stack`).
//! - The end of reading is withheld while the request in flight may have a response at once, see
//!   [`InFlight::withholds_end`], and while a response is being written.
//! - Closing: while a part of a request may still arrive, the connection lingers ([`Lingering`]).

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::StatusCode;
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::framing::{FramingError, FramingTracker, Protocol};
use super::head::HeadError;
use crate::error::GatewayError;
use crate::http::request_id::RequestId;
use crate::server::lingering::{LingerLimits, Lingering};
use crate::server::timeouts::InFlight;

/// Cuts off headers: a NUL is invalid anywhere in them, and the empty line makes hyper parse at once.
const CUT_OFF: &[u8] = b"\0\r\n\r\n";

/// A connection that passes on only unambiguous requests, and replaces hyper's bare responses.
#[derive(Debug)]
pub(in crate::server) struct Http1Guard<S, R> {
    stream: S,
    in_flight: InFlight,
    /// Called with the error and the ID of a response that replaces hyper's.
    record_rejected: R,
    framing: FramingTracker,
    /// Set once something was rejected: nothing more is read.
    ended: Option<ReadEnd>,
    /// Nothing has been written since the last flush. Only then can a response begin: hyper flushes after each complete
    /// response, and later pieces of a response may contain anything.
    at_boundary: bool,
    /// Bytes have been given to the stream since the last flush.
    is_unflushed: bool,
    /// hyper has not learned yet that the peer has closed its half.
    owes_end: bool,
    replacement: Option<Replacement>,
    closing: Closing,
    /// Limit of lingering connections.
    lingering: LingerLimits,
}

/// How far the connection is closed.
#[derive(Debug)]
enum Closing {
    Open,
    /// The sending half is closed, and the rest of a request is dropped.
    Lingers(Lingering),
    Closed,
}

/// What reading returns after a rejection.
#[derive(Debug, Clone, Copy)]
enum ReadEnd {
    /// The rest of [`CUT_OFF`], and then the end.
    Head { rest: &'static [u8], error: HeadError },
    /// An error.
    Chunks,
}

/// A response that is written instead of hyper's.
#[derive(Debug)]
struct Replacement {
    bytes: Vec<u8>,
    written: usize,
}

impl<S, R> Http1Guard<S, R> {
    /// Wraps a connection. It reports to `in_flight` what arrives, and lingers within `lingering`.
    pub(in crate::server) fn new(
        stream: S,
        protocol: Protocol,
        in_flight: InFlight,
        record_rejected: R,
        lingering: LingerLimits,
    ) -> Self {
        Self {
            stream,
            in_flight,
            record_rejected,
            framing: FramingTracker::new(protocol),
            ended: None,
            at_boundary: true,
            is_unflushed: false,
            owes_end: false,
            replacement: None,
            closing: Closing::Open,
            lingering,
        }
    }

    fn set_unflushed(&mut self, is_unflushed: bool) {
        if self.is_unflushed != is_unflushed {
            self.is_unflushed = is_unflushed;
            self.in_flight.set_writing(is_unflushed);
        }
    }

    /// Whether a part of a request may still arrive.
    fn must_linger(&self) -> bool {
        let is_cut = !self.framing.is_http2() && !self.framing.between_requests();
        is_cut || self.ended.is_some()
    }

    /// Returns why headers were cut off, or why hyper has probably rejected them before the end of a line.
    fn head_error(&self) -> Option<HeadError> {
        match self.ended {
            Some(ReadEnd::Head { error, .. }) => Some(error),
            Some(ReadEnd::Chunks) => None,
            None => self.framing.unfinished_error(),
        }
    }
}

/// Returns the error of a bare response; `None` for any other bytes. `error` is what the framing tracker found in the
/// headers; without it, hyper found one.
fn bare_response(bytes: &[u8], error: Option<HeadError>) -> Option<GatewayError> {
    // Ordinary responses fail this first test.
    let status = bytes.strip_prefix(b"HTTP/1.1 4").or_else(|| bytes.strip_prefix(b"HTTP/1.0 4"))?;
    let error = match (status.get(..2)?, error) {
        (b"00", Some(HeadError::TooLarge)) | (b"31", _) => GatewayError::HeadTooLarge,
        (b"00", Some(HeadError::Malformed(cause))) => GatewayError::BadRequest(cause.text()),
        (b"00", None) => GatewayError::BadRequest("it cannot be read"),
        (b"14", _) => GatewayError::UriTooLong,
        _ => return None,
    };
    let has = |line: &[u8]| memmem::find(bytes, line).is_some();
    let is_bare = !has(b"\r\nx-request-id: ") && has(b"\r\ncontent-length: 0\r\n");
    is_bare.then_some(error)
}

/// Encodes the complete response.
fn encode_response(error: &GatewayError, id: &RequestId) -> Vec<u8> {
    let wire = error.wire();
    let body = error.envelope();
    let reason = StatusCode::canonical_reason(&wire.status).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\nchatgate-error: {}\r\nchatgate-error-code: {}\r\nx-request-id: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        wire.status.as_u16(),
        wire.slug.text(),
        wire.code,
        id.text(),
        body.len(),
    );
    [head.as_bytes(), &body].concat()
}

/// Answers a connection whose bytes are not read, and closes it.
pub(in crate::server) async fn refuse<S>(mut stream: S, error: &GatewayError, id: &RequestId, limits: &LingerLimits)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // The response fits into the buffer of any socket. If the peer is gone, nothing is left to do.
    if stream.write_all(&encode_response(error, id)).await.is_err() || stream.shutdown().await.is_err() {
        return;
    }
    if let Some(mut lingering) = Lingering::begin(limits) {
        poll_fn(|cx| lingering.poll_drop(&mut stream, cx)).await;
    }
}

impl<S: AsyncRead + Unpin, R: Unpin> AsyncRead for Http1Guard<S, R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ended.is_none() {
            let before = buf.filled().len();
            let room = buf.remaining();
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
            let bytes = &buf.filled()[before..];
            // While a response is being written, hyper would drop the rest of it.
            let is_early = |guard: &Self| guard.is_unflushed || guard.in_flight.withholds_end();
            if bytes.is_empty() && room > 0 && !self.framing.is_http2() && is_early(&self) {
                self.owes_end = true;
                return Poll::Pending;
            }
            let followed = self.framing.follow(bytes);
            self.in_flight.set_arrived(self.framing.completed());
            let Err(FramingError { valid_len, error, in_head }) = followed else {
                return Poll::Ready(Ok(()));
            };
            self.ended = Some(if in_head { ReadEnd::Head { rest: CUT_OFF, error } } else { ReadEnd::Chunks });
            buf.set_filled(before + valid_len);
            if valid_len > 0 {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Ready(match &mut self.ended {
            Some(ReadEnd::Head { rest, .. }) => {
                let (now, later) = rest.split_at(rest.len().min(buf.remaining()));
                buf.put_slice(now);
                *rest = later;
                Ok(())
            }
            Some(ReadEnd::Chunks) | None => Err(io::Error::new(io::ErrorKind::InvalidData, "invalid chunks")),
        })
    }
}

impl<S, R> AsyncWrite for Http1Guard<S, R>
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: Fn(&GatewayError, &RequestId) + Unpin,
{
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.set_unflushed(true);
        if self.replacement.is_none()
            && self.at_boundary
            && let Some(error) = bare_response(bytes, self.head_error())
        {
            let id = RequestId::generate();
            self.replacement = Some(Replacement { bytes: encode_response(&error, &id), written: 0 });
            (self.record_rejected)(&error, &id);
        }
        let Self { stream, at_boundary, replacement, .. } = &mut *self;
        let Some(response) = replacement else {
            let written = Pin::new(stream).poll_write(cx, bytes);
            *at_boundary &= !matches!(written, Poll::Ready(Ok(1..)));
            return written;
        };
        while response.written < response.bytes.len() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, &response.bytes[response.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => response.written += written,
            }
        }
        // For hyper, all of its own bytes are written.
        *replacement = None;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A bare response is one short piece, and the first of its write.
        match bufs.iter().find(|buf| !buf.is_empty()) {
            Some(first) if self.replacement.is_some() || (self.at_boundary && bare_response(first, None).is_some()) => {
                self.poll_write(cx, first)
            }
            _ => {
                self.set_unflushed(true);
                let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
                self.at_boundary &= !matches!(written, Poll::Ready(Ok(1..)));
                written
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if let Poll::Ready(Ok(())) = flushed {
            self.at_boundary = true;
            self.set_unflushed(false);
            // Nothing else wakes the reader, for which there was nothing to read yet.
            if self.owes_end && !self.in_flight.any() {
                self.owes_end = false;
                cx.waker().wake_by_ref();
            }
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Closing::Open = self.closing {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            let lingering = if self.must_linger() { Lingering::begin(&self.lingering) } else { None };
            self.closing = lingering.map_or(Closing::Closed, Closing::Lingers);
            self.in_flight.set_lingering();
        }
        let Self { stream, closing, .. } = &mut *self;
        if let Closing::Lingers(lingering) = closing {
            ready!(lingering.poll_drop(stream, cx));
            *closing = Closing::Closed;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::capacity::Capacity;
    use crate::server::shutdown::Drain;

    fn guard<S>(stream: S) -> Http1Guard<S, impl Fn(&GatewayError, &RequestId) + Unpin> {
        let record_rejected = |_: &GatewayError, _: &RequestId| {};
        let (slots, close) = (Capacity::new(1), Drain::default());
        let lingering = LingerLimits { slots, close, at_close: Duration::ZERO };
        Http1Guard::new(stream, Protocol::Any, InFlight::default(), record_rejected, lingering)
    }

    /// Writes `bytes` through a guard and a pipe of 16 bytes, and returns what arrives.
    async fn written(bytes: &'static [u8]) -> String {
        let (mut peer, stream) = duplex(16);
        let writing = tokio::spawn(async move { guard(stream).write_all(bytes).await });
        let mut got = String::new();
        peer.read_to_string(&mut got).await.expect("text");
        writing.await.expect("no panic").expect("written");
        got
    }

    #[tokio::test]
    async fn bare_response_is_replaced_by_an_envelope() {
        let got =
            written(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                .await;
        assert!(got.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{got}");
        assert!(got.contains("\r\nchatgate-error: head_too_large\r\n"), "{got}");
        let body = got.split_once("\r\n\r\n").expect("a body").1;
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).expect("JSON")["ErrorCode"], 129_431);
        assert!(got.contains(&format!("\r\ncontent-length: {}\r\n", body.len())));
    }

    #[tokio::test]
    async fn body_bytes_are_never_taken_for_a_bare_response() {
        // Sixteen bytes fit at a time, so writing resumes at each multiple, also where the body looks like a response.
        let response = "HTTP/1.1 200 O\r\nHTTP/1.1 400 x\r\nHTTP/1.1 400 x\r\nHTTP/1.1 431 y\r\n\r\n";
        assert_eq!(written(response.as_bytes()).await, response);
    }

    #[tokio::test]
    async fn other_responses_pass_unchanged() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\nx-request-id: 7\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            "a body that says HTTP/1.1 400 somewhere",
        ] {
            assert_eq!(written(text.as_bytes()).await, text);
        }
    }
}
