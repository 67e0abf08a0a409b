//! Time limits of a connection, below HTTP: hyper itself has none for idle connections, for slow
//! heads together with them, or for peers that do not read.
//!
//! - Until its first request is there, and from the first byte of a further head until that request
//!   is there: `head`.
//! - Between requests a connection may be idle for `idle`. Over HTTP/2 all bytes between requests count
//!   as idleness, since most of them are PINGs and SETTINGS, except those of a head.
//! - From the moment the peer stops taking an answer until it has taken all of it: `write`. Over HTTP/2,
//!   where a peer may take others meanwhile, from each answer's beginning.
//!
//! While a request is being worked on reading has no limit here: its body and its answer have their
//! own. One timer serves all three and is touched only when something would block.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::http2::H2FrameTracker;
use super::tracked_body::{PendingResponses, ResponseGuard};
use crate::clock;
use crate::error::GatewayError;
use crate::http::small_writes;
use crate::telemetry::metrics::labels::Outcome;

/// The limits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For the whole head of a request.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// For the peer to take an answer.
    pub write: Duration,
}

/// The requests of a connection. Shared by its service and what it reads and writes through.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    begun: AtomicUsize,
    ended: AtomicUsize,
    http2: AtomicBool,
    refused: OnceLock<Outcome>,
    deliveries: Arc<PendingResponses>,
}

impl InFlight {
    /// Counts one more, until the guard is dropped. `http2`: it came over HTTP/2.
    pub fn begin(&self, http2: bool) -> InFlightGuard {
        if http2 {
            self.0.http2.store(true, Ordering::Release);
        }
        self.0.begun.fetch_add(1, Ordering::AcqRel);
        InFlightGuard(Arc::clone(&self.0))
    }

    /// What was to be a request was answered with this error before it became one. The connection ends with it.
    pub fn refused(&self, error: &GatewayError) {
        let _ = self.0.refused.set(Outcome::rejected(error));
    }

    /// What [`InFlight::refused`] was told.
    pub fn refusal(&self) -> Option<Outcome> {
        self.0.refused.get().copied()
    }

    /// An answer over HTTP/2 sets out: the peer has the write limit to take it.
    pub(super) fn deliver(&self) -> ResponseGuard {
        self.0.deliveries.begin()
    }

    fn http2(&self) -> bool {
        self.0.http2.load(Ordering::Acquire)
    }

    fn begun(&self) -> usize {
        self.0.begun.load(Ordering::Acquire)
    }

    fn any(&self) -> bool {
        self.0.ended.load(Ordering::Acquire) != self.begun()
    }
}

/// One request at work.
#[derive(Debug)]
pub struct InFlightGuard(Arc<Counts>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::AcqRel);
    }
}

/// A connection with time limits.
#[derive(Debug)]
pub struct TimeoutStream<S> {
    stream: S,
    limits: Limits,
    at_work: InFlight,
    sleep: Option<Pin<Box<Sleep>>>,
    /// When the next request must have begun. Over HTTP/2 a head that becomes no request does not move it.
    idle_until: Option<Instant>,
    /// When the head that has begun must be whole.
    head_until: Option<Instant>,
    /// The one of the two that counts, if one does.
    read_until: Option<Instant>,
    /// When the peer must have taken what is being written.
    write_until: Option<Instant>,
    /// A head is awaited, or has begun, that no request has been made of yet.
    head_begun: bool,
    /// Reading waits without a limit, since a request was at work when that began.
    unwatched: bool,
    /// How many requests had begun when we last looked.
    seen: usize,
    frames: H2FrameTracker,
}

impl<S> TimeoutStream<S> {
    /// Wraps a fresh connection.
    pub fn new(stream: S, limits: Limits, at_work: InFlight) -> Self {
        Self {
            stream,
            limits,
            at_work,
            sleep: None,
            idle_until: None,
            head_until: None,
            read_until: None,
            write_until: None,
            head_begun: true,
            unwatched: false,
            seen: 0,
            frames: H2FrameTracker::default(),
        }
    }

    /// If a request has begun, the bytes so far have become that request, and waiting begins anew.
    fn look(&mut self) {
        let begun = self.at_work.begun();
        if begun != self.seen {
            self.seen = begun;
            self.head_begun = false;
            (self.idle_until, self.head_until, self.read_until) = (None, None, None);
        }
    }

    /// When reading must have got on, by what it waits for now.
    fn read_until(&mut self, now: Instant) -> Option<Instant> {
        let request = (!self.at_work.any()).then(|| self.request_until(now));
        let oldest = if self.at_work.http2() { self.at_work.0.deliveries.oldest() } else { None };
        let answer = oldest.map(|since| since + self.limits.write);
        request.into_iter().chain(answer).min()
    }

    /// Reading waits: watches the limit that there is, if there is one.
    fn watch_reading(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.look();
        // Most often, that there is none is known without a look at the clock.
        let is_limited = !self.at_work.any() || self.at_work.http2();
        let now = is_limited.then(clock::now);
        self.read_until = now.and_then(|now| self.read_until(now));
        self.unwatched = self.read_until.is_none();
        match (now, self.read_until) {
            (Some(now), Some(until)) => self.watch(cx, now, until),
            _ => Poll::Pending,
        }
    }

    /// When the next request must be there.
    fn request_until(&mut self, now: Instant) -> Instant {
        if self.head_begun {
            *self.head_until.get_or_insert(now + self.limits.head)
        } else {
            self.head_until = None;
            *self.idle_until.get_or_insert(now + self.limits.idle)
        }
    }

    /// Something would block: wakes the task at the nearest limit, and fails if that has passed.
    fn watch(&mut self, cx: &mut Context<'_>, now: Instant, until: Instant) -> Poll<io::Error> {
        // Not left to the timer: a task that is busy without end may never see it fire.
        if now >= until {
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the peer was too slow"));
        }
        let nearest = self.write_until.into_iter().chain(self.read_until).fold(until, Instant::min);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(nearest.into())));
        // A timer that fires early is set again; that is cheaper than setting it for every request.
        while sleep.deadline() > nearest.into() || sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() > nearest.into() || sleep.is_elapsed() {
                sleep.as_mut().reset(nearest.into());
            }
            if clock::now() >= until {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the peer was too slow"));
            }
        }
        Poll::Pending
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            return result;
        }
        let now = clock::now();
        let until = *self.write_until.get_or_insert(now + self.limits.write);
        self.watch(cx, now, until).map(Err)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimeoutStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                self.unwatched = false;
                self.look();
                self.frames.follow(&buf.filled()[before..]);
                if buf.filled().len() > before && !self.at_work.any() {
                    self.head_begun = !self.at_work.http2() || self.frames.in_header_block();
                }
                Poll::Ready(result)
            }
            Poll::Pending => self.watch_reading(cx).map(Err),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimeoutStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = &mut self.stream;
        let result = small_writes::write_merged(bufs, |bytes| Pin::new(&mut *stream).poll_write(cx, bytes));
        let result = result.unwrap_or_else(|| Pin::new(stream).poll_write_vectored(cx, bufs));
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        ready!(self.written(cx, result))?;
        // Everything was taken. (hyper flushes when nothing of an answer is left with it.)
        self.write_until = None;
        // hyper may have begun to wait for the next request while this one was at work; its limit counts from here.
        // If it has not, it will, and finds the limit then. (Over HTTP/2 an answer may have begun meanwhile.)
        if !self.unwatched && !self.at_work.http2() {
            return Poll::Ready(Ok(()));
        }
        match self.watch_reading(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.written(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn limits() -> Limits {
        let ms = Duration::from_millis;
        Limits { head: ms(40), idle: ms(120), write: ms(40) }
    }

    #[tokio::test]
    async fn an_idle_connection_ends_after_the_idle_limit() {
        let (_peer, stream) = duplex(64);
        let at_work = InFlight::default();
        let mut io = TimeoutStream::new(stream, limits(), at_work.clone());
        drop(at_work.begin(false));
        let begun = clock::now();
        let error = io.read_u8().await.expect_err("nobody writes");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(clock::now() - begun >= limits().idle);
    }

    #[tokio::test]
    async fn over_http2_bytes_between_requests_neither_begin_a_head_nor_end_idleness() {
        let (mut peer, stream) = duplex(64);
        let at_work = InFlight::default();
        let mut io = TimeoutStream::new(stream, limits(), at_work.clone());
        drop(at_work.begin(true));
        let begun = clock::now();
        tokio::spawn(async move {
            while peer.write_u8(b'x').await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        while io.read_u8().await.is_ok() {}
        assert!(clock::now() - begun >= limits().idle, "closed by the head limit");
    }

    #[tokio::test]
    async fn over_http2_a_further_head_must_be_whole_within_the_head_limit() {
        let (mut peer, stream) = duplex(1024);
        let at_work = InFlight::default();
        let mut io = TimeoutStream::new(stream, limits(), at_work.clone());
        peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("open");
        io.read_exact(&mut [0; 24]).await.expect("in time");
        drop(at_work.begin(true));
        let begun = clock::now();
        tokio::spawn(async move {
            // The beginning of a head, then pieces of it without an end.
            let mut next: &[u8] = &[0, 0, 1, 1, 0, 0, 0, 0, 1, b'x'];
            while peer.write_all(next).await.is_ok() {
                next = &[0, 0, 1, 9, 0, 0, 0, 0, 1, b'x'];
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        while io.read_u8().await.is_ok() {}
        assert!(clock::now() - begun >= limits().head && clock::now() - begun < limits().idle);
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_ends_after_the_head_limit() {
        let (_peer, stream) = duplex(64);
        let begun = clock::now();
        let mut io = TimeoutStream::new(stream, limits(), InFlight::default());
        io.read_u8().await.expect_err("nobody writes");
        assert!(clock::now() - begun >= limits().head && clock::now() - begun < limits().idle);
    }

    #[tokio::test]
    async fn every_request_sets_the_limits_anew() {
        let (mut peer, stream) = duplex(64);
        let at_work = InFlight::default();
        let mut io = TimeoutStream::new(stream, limits(), at_work.clone());
        let begun = clock::now();
        // Each round takes less than any limit, all of them together more than every one.
        while clock::now() - begun < limits().idle * 2 {
            peer.write_u8(b'x').await.expect("open");
            io.read_u8().await.expect("in time");
            drop(at_work.begin(false));
            let silent = tokio::time::timeout(limits().head / 2, io.read_u8()).await;
            assert!(silent.is_err(), "closed while it was in use");
        }
    }

    #[tokio::test]
    async fn a_begun_head_must_be_whole_within_the_head_limit_however_it_drips() {
        let (mut peer, stream) = duplex(64);
        let mut io = TimeoutStream::new(stream, limits(), InFlight::default());
        let begun = clock::now();
        tokio::spawn(async move {
            while peer.write_u8(b'x').await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let error = loop {
            if let Err(error) = io.read_u8().await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(clock::now() - begun >= limits().head && clock::now() - begun < limits().idle);
    }

    #[tokio::test]
    async fn while_a_request_is_at_work_reading_has_no_limit() {
        let (mut peer, stream) = duplex(64);
        let at_work = InFlight::default();
        let mut io = TimeoutStream::new(stream, limits(), at_work.clone());
        let work = at_work.begin(false);
        tokio::spawn(async move {
            tokio::time::sleep(limits().idle * 2).await;
            peer.write_u8(b'x').await.expect("open");
            drop(work);
            peer
        });
        assert_eq!(io.read_u8().await.expect("in the end"), b'x');
    }

    #[tokio::test]
    async fn an_answer_over_http2_must_be_taken_within_the_write_limit_whatever_else_is_at_work() {
        let (_peer, stream) = duplex(64);
        let at_work = InFlight::default();
        let mut io = TimeoutStream::new(stream, limits(), at_work.clone());
        let _work = at_work.begin(true);
        let begun = clock::now();
        let _delivery = at_work.deliver();
        let error = io.read_u8().await.expect_err("nobody writes");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(clock::now() - begun >= limits().write);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_given_up() {
        let (_peer, stream) = duplex(8);
        let mut io = TimeoutStream::new(stream, limits(), InFlight::default());
        let error = io.write_all(&[0; 64]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
