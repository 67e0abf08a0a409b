//! Timeouts of a connection, below HTTP. hyper has none for idle connections, for idle connections combined with slow
//! headers, or for peers that do not read.
//!
//! - `head`: until the first request has arrived, and from the first byte of any later request headers until that
//!   request has arrived.
//! - `idle`: between requests. Over HTTP/2, bytes between requests do not end idleness, since most of them are PING and
//!   SETTINGS frames; only the bytes of headers do.
//! - `write`: from the moment the peer stops taking a response until it has taken all of it. Over HTTP/2, where a peer
//!   may take other responses meanwhile, from the beginning of each response.
//!
//! While a request is in flight, reading has no timeout here: the request body and the response have their own. One
//! timer serves all three timeouts, and is touched only when something would block.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::http2::H2FrameTracker;
use super::tracked_body::{PendingResponses, ResponseGuard};
use crate::clock;
use crate::http::small_writes;

/// The timeouts of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// For all headers of a request.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// For the peer to take a response.
    pub write: Duration,
}

/// The requests in flight on a connection. Shared by its service and its streams.
#[derive(Debug, Clone, Default)]
pub(super) struct InFlight(Arc<RequestCounts>);

#[derive(Debug, Default)]
struct RequestCounts {
    begun: AtomicUsize,
    ended: AtomicUsize,
    /// Requests that have arrived completely, over HTTP/1.
    arrived: AtomicUsize,
    is_http2: AtomicBool,
    is_lingering: AtomicBool,
    /// A part of a response is not in the socket yet.
    is_writing: AtomicBool,
    /// When the last request ended, or the connection began. Recorded only on request.
    idle_since: Option<AtomicU64>,
    /// Polls of the request in flight since its peer closed its half, see [`InFlight::withholds_end`].
    polls_since_end: AtomicUsize,
    responses: Arc<PendingResponses>,
}

/// A request gets this many polls after its peer has closed its half: the first may only take the end of the body.
const POLLS_AFTER_END: usize = 2;

impl InFlight {
    /// Also records since when the connection is idle.
    pub(super) fn watched() -> Self {
        let idle_since = Some(AtomicU64::new(clock::tick().micros()));
        Self(Arc::new(RequestCounts { idle_since, ..RequestCounts::default() }))
    }

    /// Returns the tick since when the connection is idle; `None` if it is busy, or not watched.
    pub(super) fn idle_since(&self) -> Option<u64> {
        let since = self.0.idle_since.as_ref().filter(|_| !self.is_busy())?;
        Some(since.load(Ordering::Acquire))
    }

    /// Begins a request, which is in flight until the guard is dropped.
    pub(super) fn begin(&self, is_http2: bool) -> InFlightGuard {
        if is_http2 {
            self.0.is_http2.store(true, Ordering::Release);
        }
        self.0.begun.fetch_add(1, Ordering::AcqRel);
        self.0.polls_since_end.store(0, Ordering::Release);
        InFlightGuard(Arc::clone(&self.0))
    }

    /// Records the number of requests that have arrived completely.
    pub(super) fn set_arrived(&self, arrived: usize) {
        self.0.arrived.store(arrived, Ordering::Release);
    }

    /// Whether a part of the request in flight has not arrived yet.
    pub(super) fn is_incomplete(&self) -> bool {
        self.0.arrived.load(Ordering::Acquire) < self.begun()
    }

    /// Records whether a part of a response still has to be written.
    pub(super) fn set_writing(&self, is_writing: bool) {
        self.0.is_writing.store(is_writing, Ordering::Release);
    }

    /// Whether a request is in flight, or a response is not completely written.
    pub(super) fn is_busy(&self) -> bool {
        self.any() || self.0.is_writing.load(Ordering::Acquire) || self.0.responses.oldest().is_some()
    }

    /// Records that the connection has nothing left to do but to linger.
    pub(super) fn set_lingering(&self) {
        self.0.is_lingering.store(true, Ordering::Release);
    }

    /// Whether [`InFlight::set_lingering`] was called.
    pub(super) fn is_lingering(&self) -> bool {
        self.0.is_lingering.load(Ordering::Acquire)
    }

    /// Whether hyper must not learn yet that the peer has closed its half.
    ///
    /// hyper takes that for the end of the connection and drops the request in flight. A peer that has sent its whole
    /// request may do so, and gets every response that is ready at once. So the request is polled first, and only one
    /// that is still waiting then is dropped.
    pub(super) fn withholds_end(&self) -> bool {
        let polls = self.0.polls_since_end.load(Ordering::Acquire);
        let is_withheld = self.any() && !self.is_incomplete() && polls <= POLLS_AFTER_END;
        if is_withheld && polls == 0 {
            self.0.polls_since_end.store(1, Ordering::Release);
        }
        is_withheld
    }

    /// Records that the request was polled and is waiting. Returns whether the connection must be polled again: the
    /// peer has closed its half, and nothing else may wake it.
    pub(super) fn is_polled(&self) -> bool {
        let polls = self.0.polls_since_end.load(Ordering::Acquire);
        let counts = (1..=POLLS_AFTER_END).contains(&polls);
        if counts {
            self.0.polls_since_end.store(polls + 1, Ordering::Release);
        }
        counts
    }

    /// Begins a response over HTTP/2, which the peer must take within the write timeout.
    pub(super) fn begin_response(&self) -> ResponseGuard {
        self.0.responses.begin()
    }

    fn is_http2(&self) -> bool {
        self.0.is_http2.load(Ordering::Acquire)
    }

    fn begun(&self) -> usize {
        self.0.begun.load(Ordering::Acquire)
    }

    pub(super) fn any(&self) -> bool {
        self.0.ended.load(Ordering::Acquire) != self.begun()
    }
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct InFlightGuard(Arc<RequestCounts>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        if let Some(since) = &self.0.idle_since {
            since.store(clock::tick().micros(), Ordering::Release);
        }
        self.0.ended.fetch_add(1, Ordering::AcqRel);
    }
}

/// A connection with timeouts.
#[derive(Debug)]
pub(super) struct TimeoutStream<S> {
    stream: S,
    timeouts: Timeouts,
    in_flight: InFlight,
    timer: Option<Pin<Box<Sleep>>>,
    /// Deadline of the next request. Over HTTP/2, headers that become no request do not move it.
    idle_deadline: Option<Instant>,
    /// Deadline of the request headers that have begun.
    head_deadline: Option<Instant>,
    /// The deadline of reading that applies now.
    read_deadline: Option<Instant>,
    /// Deadline of the peer to take what is being written.
    write_deadline: Option<Instant>,
    /// Request headers are due, or incomplete.
    awaits_headers: bool,
    /// Reading blocked without a deadline, because a request was in flight.
    reads_without_deadline: bool,
    /// Number of requests begun at the last [`TimeoutStream::sync`].
    begun: usize,
    frames: H2FrameTracker,
}

impl<S> TimeoutStream<S> {
    /// Wraps a new connection.
    pub(super) fn new(stream: S, timeouts: Timeouts, in_flight: InFlight) -> Self {
        Self {
            stream,
            timeouts,
            in_flight,
            timer: None,
            idle_deadline: None,
            head_deadline: None,
            read_deadline: None,
            write_deadline: None,
            awaits_headers: true,
            reads_without_deadline: false,
            begun: 0,
            frames: H2FrameTracker::default(),
        }
    }

    /// Clears the deadlines of reading if a request has begun since the last call: the bytes so far belong to it.
    fn sync(&mut self) {
        let begun = self.in_flight.begun();
        if begun != self.begun {
            self.begun = begun;
            self.awaits_headers = false;
            (self.idle_deadline, self.head_deadline, self.read_deadline) = (None, None, None);
        }
    }

    /// Applies the deadline of reading, which would block, if there is one. Fails once it has passed.
    fn poll_read_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.sync();
        // In most cases there is no deadline, which is known without reading the clock.
        let has_deadline = !self.in_flight.any() || self.in_flight.is_http2();
        let now = has_deadline.then(clock::now);
        self.read_deadline = now.and_then(|now| self.read_deadline_at(now));
        self.reads_without_deadline = self.read_deadline.is_none();
        match (now, self.read_deadline) {
            (Some(now), Some(deadline)) => self.poll_deadline(cx, now, deadline),
            _ => Poll::Pending,
        }
    }

    /// The deadline of the next request, or of the oldest response over HTTP/2, whichever is earlier.
    fn read_deadline_at(&mut self, now: Instant) -> Option<Instant> {
        let request = (!self.in_flight.any()).then(|| self.request_deadline_at(now));
        let oldest = if self.in_flight.is_http2() { self.in_flight.0.responses.oldest() } else { None };
        let response = oldest.map(|start| start + self.timeouts.write);
        request.into_iter().chain(response).min()
    }

    fn request_deadline_at(&mut self, now: Instant) -> Instant {
        if self.awaits_headers {
            *self.head_deadline.get_or_insert(now + self.timeouts.head)
        } else {
            self.head_deadline = None;
            *self.idle_deadline.get_or_insert(now + self.timeouts.idle)
        }
    }

    /// Fails once `deadline` has passed. Wakes the task at the nearest of all deadlines.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, now: Instant, deadline: Instant) -> Poll<io::Error> {
        // Not left to the timer: a task that is always busy may never see it fire.
        if now >= deadline {
            return Poll::Ready(timed_out());
        }
        let nearest = self.write_deadline.into_iter().chain(self.read_deadline).fold(deadline, Instant::min);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(nearest.into())));
        // A timer that fires early is set again, which is cheaper than setting it for every request.
        while timer.deadline() > nearest.into() || timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() > nearest.into() || timer.is_elapsed() {
                timer.as_mut().reset(nearest.into());
            }
            if clock::now() >= deadline {
                return Poll::Ready(timed_out());
            }
        }
        Poll::Pending
    }

    /// Applies the write timeout to the result of a write, if it would block.
    fn poll_written<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            return result;
        }
        let now = clock::now();
        let deadline = *self.write_deadline.get_or_insert(now + self.timeouts.write);
        self.poll_deadline(cx, now, deadline).map(Err)
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer was too slow")
}

impl<S: AsyncRead + Unpin> AsyncRead for TimeoutStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                self.reads_without_deadline = false;
                self.sync();
                self.frames.follow(&buf.filled()[before..]);
                if buf.filled().len() > before && !self.in_flight.any() {
                    self.awaits_headers = !self.in_flight.is_http2() || self.frames.in_header_block();
                }
                Poll::Ready(result)
            }
            Poll::Pending => self.poll_read_deadline(cx).map(Err),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimeoutStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.poll_written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = &mut self.stream;
        let result = small_writes::write_merged(bufs, |bytes| Pin::new(&mut *stream).poll_write(cx, bytes));
        let result = result.unwrap_or_else(|| Pin::new(stream).poll_write_vectored(cx, bufs));
        self.poll_written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        ready!(self.poll_written(cx, result))?;
        // The peer has taken everything: hyper flushes once it holds nothing more of a response.
        self.write_deadline = None;
        // hyper may have begun to wait for the next request while this one was in flight; its deadline counts from now.
        // Otherwise hyper begins to wait later and finds the deadline then. (Over HTTP/2 a response may have begun
        // meanwhile.)
        if !self.reads_without_deadline && !self.in_flight.is_http2() {
            return Poll::Ready(Ok(()));
        }
        match self.poll_read_deadline(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.poll_written(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn timeouts() -> Timeouts {
        let ms = Duration::from_millis;
        Timeouts { head: ms(40), idle: ms(120), write: ms(40) }
    }

    #[tokio::test]
    async fn idle_connection_ends_after_the_idle_timeout() {
        let (_peer, stream) = duplex(64);
        let in_flight = InFlight::default();
        let mut io = TimeoutStream::new(stream, timeouts(), in_flight.clone());
        drop(in_flight.begin(false));
        let begun = clock::now();
        let error = io.read_u8().await.expect_err("the peer is silent");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(clock::now() - begun >= timeouts().idle);
    }

    #[tokio::test]
    async fn http2_bytes_between_requests_do_not_end_idleness() {
        let (mut peer, stream) = duplex(64);
        let in_flight = InFlight::default();
        let mut io = TimeoutStream::new(stream, timeouts(), in_flight.clone());
        drop(in_flight.begin(true));
        let begun = clock::now();
        tokio::spawn(async move {
            while peer.write_u8(b'x').await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        while io.read_u8().await.is_ok() {}
        assert!(clock::now() - begun >= timeouts().idle, "closed by the head timeout");
    }

    #[tokio::test]
    async fn http2_headers_have_the_head_timeout() {
        let (mut peer, stream) = duplex(1024);
        let in_flight = InFlight::default();
        let mut io = TimeoutStream::new(stream, timeouts(), in_flight.clone());
        peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("open");
        io.read_exact(&mut [0; 24]).await.expect("in time");
        drop(in_flight.begin(true));
        let begun = clock::now();
        tokio::spawn(async move {
            // A header block without an end.
            let mut next: &[u8] = &[0, 0, 1, 1, 0, 0, 0, 0, 1, b'x'];
            while peer.write_all(next).await.is_ok() {
                next = &[0, 0, 1, 9, 0, 0, 0, 0, 1, b'x'];
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        while io.read_u8().await.is_ok() {}
        assert!(clock::now() - begun >= timeouts().head && clock::now() - begun < timeouts().idle);
    }

    #[tokio::test]
    async fn silent_connection_ends_after_the_head_timeout() {
        let (_peer, stream) = duplex(64);
        let begun = clock::now();
        let mut io = TimeoutStream::new(stream, timeouts(), InFlight::default());
        io.read_u8().await.expect_err("the peer is silent");
        assert!(clock::now() - begun >= timeouts().head && clock::now() - begun < timeouts().idle);
    }

    #[tokio::test]
    async fn every_request_resets_the_deadlines() {
        let (mut peer, stream) = duplex(64);
        let in_flight = InFlight::default();
        let mut io = TimeoutStream::new(stream, timeouts(), in_flight.clone());
        let begun = clock::now();
        // Each round is shorter than every timeout. Together they are longer than every timeout.
        while clock::now() - begun < timeouts().idle * 2 {
            peer.write_u8(b'x').await.expect("open");
            io.read_u8().await.expect("in time");
            drop(in_flight.begin(false));
            let read = tokio::time::timeout(timeouts().head / 2, io.read_u8()).await;
            assert!(read.is_err(), "closed while in use");
        }
    }

    #[tokio::test]
    async fn dripping_headers_have_the_head_timeout() {
        let (mut peer, stream) = duplex(64);
        let mut io = TimeoutStream::new(stream, timeouts(), InFlight::default());
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
        assert!(clock::now() - begun >= timeouts().head && clock::now() - begun < timeouts().idle);
    }

    #[tokio::test]
    async fn reading_has_no_timeout_while_a_request_is_in_flight() {
        let (mut peer, stream) = duplex(64);
        let in_flight = InFlight::default();
        let mut io = TimeoutStream::new(stream, timeouts(), in_flight.clone());
        let request = in_flight.begin(false);
        tokio::spawn(async move {
            tokio::time::sleep(timeouts().idle * 2).await;
            peer.write_u8(b'x').await.expect("open");
            drop(request);
            peer
        });
        assert_eq!(io.read_u8().await.expect("in the end"), b'x');
    }

    #[tokio::test]
    async fn http2_response_must_be_taken_within_the_write_timeout() {
        let (_peer, stream) = duplex(64);
        let in_flight = InFlight::default();
        let mut io = TimeoutStream::new(stream, timeouts(), in_flight.clone());
        let _request = in_flight.begin(true);
        let begun = clock::now();
        let _response = in_flight.begin_response();
        let error = io.read_u8().await.expect_err("the peer is silent");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(clock::now() - begun >= timeouts().write);
    }

    #[tokio::test]
    async fn connection_of_a_peer_that_does_not_read_ends() {
        let (_peer, stream) = duplex(8);
        let mut io = TimeoutStream::new(stream, timeouts(), InFlight::default());
        let error = io.write_all(&[0; 64]).await.expect_err("the peer does not read");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
