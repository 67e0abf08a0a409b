//! What never becomes a request: found on its way in, and answered in our words.
//!
//! - In: [`FramingTracker`] reads along. A head that it refuses reaches hyper broken off by a NUL, which hyper
//!   refuses when that head's turn comes, after everything that was asked before it. Broken chunks reach
//!   hyper as a broken connection, so their request fails. Nothing after either is handed on.
//! - Out: hyper answers what it refuses with a bare status. A caller is to get the same kind of answer
//!   for everything, so such an answer is replaced. It is recognised by its status, by having no body,
//!   which every refusal of ours has, and no `X-Request-Id`, which whatever went through our layers has.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::StatusCode;
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framing::FramingTracker;
use super::head::HeadError;
use crate::clock;
use crate::error::GatewayError;
use crate::server::timeouts::InFlight;

/// Breaks off a head: no NUL may stand anywhere in it, and the empty line makes hyper look at once.
const BROKEN_OFF: &[u8] = b"\0\r\n\r\n";

/// A connection that hands on only what can be read in one way, and whose bare refusals are put into
/// our words.
#[derive(Debug)]
pub(crate) struct Http1Guard<S> {
    stream: S,
    at_work: InFlight,
    follower: FramingTracker,
    /// Set once something was refused: nothing more is read.
    ended: Option<ReadEnd>,
    /// Nothing has been written since the last flush. Only then an answer can begin: hyper flushes
    /// when an answer is out whole, and what it writes in several pieces may look like anything.
    at_boundary: bool,
    replaced: Option<Replaced>,
}

/// What reading gives after a refusal.
#[derive(Debug, Clone, Copy)]
enum ReadEnd {
    /// The rest of [`BROKEN_OFF`], then the end; and why.
    Head(&'static [u8], HeadError),
    /// An error.
    Chunks,
}

/// An answer that goes out instead of hyper's.
#[derive(Debug)]
struct Replaced {
    bytes: Vec<u8>,
    written: usize,
}

impl<S> Http1Guard<S> {
    /// Wraps a connection. What is refused is told to `at_work`.
    pub(crate) fn new(stream: S, at_work: InFlight) -> Self {
        Self { stream, at_work, follower: FramingTracker::default(), ended: None, at_boundary: true, replaced: None }
    }

    /// The fault of the head that was broken off.
    fn fault(&self) -> Option<HeadError> {
        match self.ended {
            Some(ReadEnd::Head(_, fault)) => Some(fault),
            _ => None,
        }
    }
}

/// What a bare refusal is about; `None` for everything else. `fault` is what we found in the head
/// ourselves; without it hyper found something.
fn refusal(bytes: &[u8], fault: Option<HeadError>) -> Option<GatewayError> {
    // The first test is all that an ordinary answer pays.
    let status = bytes.strip_prefix(b"HTTP/1.1 4").or_else(|| bytes.strip_prefix(b"HTTP/1.0 4"))?;
    let error = match (status.get(..2)?, fault) {
        (b"00", Some(HeadError::TooLarge)) | (b"31", _) => GatewayError::HeadTooLarge,
        (b"00", _) => GatewayError::BadRequest,
        (b"14", _) => GatewayError::UriTooLong,
        _ => return None,
    };
    let has = |line: &[u8]| memmem::find(bytes, line).is_some();
    let is_bare = !has(b"\r\nx-request-id: ") && has(b"\r\ncontent-length: 0\r\n");
    is_bare.then_some(error)
}

/// The answer in our words, whole.
fn answer_of(error: &GatewayError) -> Vec<u8> {
    let wire = error.wire();
    let body = error.envelope();
    let reason = StatusCode::canonical_reason(&wire.status).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\nchatgate-error: {}\r\nx-request-id: {:032x}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        wire.status.as_u16(),
        wire.slug.text(),
        clock::request_number(),
        body.len(),
    );
    [head.as_bytes(), &body].concat()
}

impl<S: AsyncRead + Unpin> AsyncRead for Http1Guard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ended.is_none() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
            let Err(stop) = self.follower.follow(&buf.filled()[before..]) else { return Poll::Ready(Ok(())) };
            self.ended = Some(if stop.in_head { ReadEnd::Head(BROKEN_OFF, stop.fault) } else { ReadEnd::Chunks });
            buf.set_filled(before + stop.sound);
            if stop.sound > 0 {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Ready(match &mut self.ended {
            Some(ReadEnd::Head(left, _)) => {
                let (now, later) = left.split_at(left.len().min(buf.remaining()));
                buf.put_slice(now);
                *left = later;
                Ok(())
            }
            Some(ReadEnd::Chunks) | None => Err(io::Error::new(io::ErrorKind::InvalidData, "the chunks are not sound")),
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Http1Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.replaced.is_none()
            && self.at_boundary
            && let Some(error) = refusal(bytes, self.fault())
        {
            self.at_work.refused(&error);
            self.replaced = Some(Replaced { bytes: answer_of(&error), written: 0 });
        }
        let Self { stream, at_boundary, replaced, .. } = &mut *self;
        let Some(answer) = replaced else {
            let written = Pin::new(stream).poll_write(cx, bytes);
            *at_boundary &= !matches!(written, Poll::Ready(Ok(1..)));
            return written;
        };
        while answer.written < answer.bytes.len() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, &answer.bytes[answer.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => answer.written += written,
            }
        }
        // To hyper its own bytes are written, all of them.
        *replaced = None;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A refusal is one short piece; only the first piece can begin one.
        match bufs.iter().find(|buf| !buf.is_empty()) {
            Some(first) if self.replaced.is_some() || (self.at_boundary && refusal(first, None).is_some()) => {
                self.poll_write(cx, first)
            }
            _ => {
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
        self.at_boundary |= matches!(flushed, Poll::Ready(Ok(())));
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// What arrives when `bytes` are written, through a pipe of 16 bytes.
    async fn through(bytes: &'static [u8]) -> String {
        let (mut peer, stream) = duplex(16);
        let writing = tokio::spawn(async move { Http1Guard::new(stream, InFlight::default()).write_all(bytes).await });
        let mut got = String::new();
        peer.read_to_string(&mut got).await.expect("text");
        writing.await.expect("no panic").expect("written");
        got
    }

    #[tokio::test]
    async fn a_bare_refusal_becomes_an_envelope() {
        let got =
            through(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                .await;
        assert!(got.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{got}");
        assert!(got.contains("\r\nchatgate-error: head_too_large\r\n"), "{got}");
        let body = got.split_once("\r\n\r\n").expect("a body").1;
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).expect("JSON")["ErrorCode"], 129_431);
        assert!(got.contains(&format!("\r\ncontent-length: {}\r\n", body.len())));
    }

    #[tokio::test]
    async fn what_a_body_says_is_never_taken_for_a_refusal() {
        // Sixteen bytes fit at a time, so the body is resumed at every such place, the bare head's too.
        let answer = "HTTP/1.1 200 O\r\nHTTP/1.1 400 x\r\nHTTP/1.1 400 x\r\nHTTP/1.1 431 y\r\n\r\n";
        assert_eq!(through(answer.as_bytes()).await, answer);
    }

    #[tokio::test]
    async fn everything_else_passes_untouched() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\nx-request-id: 7\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            "a body that says HTTP/1.1 400 somewhere",
        ] {
            assert_eq!(through(text.as_bytes()).await, text);
        }
    }
}
