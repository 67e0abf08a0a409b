//! The end of a connection whose peer may still be sending.
//!
//! A request may be refused before all of it has arrived. If the socket is closed then, what arrives later is answered
//! with a reset, and the peer's system discards the refusal before a client that writes first and reads later has read
//! it. So the sending half is closed first, and the rest is read and dropped for a while (RFC 9112 section 9.6).
//!
//! Three limits apply: bytes, time, and the number of such connections at once. Beyond any of them the connection is
//! closed at once, as if there were no lingering.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Sleep;

use super::shutdown::Drain;
use crate::capacity::{Capacity, CapacityGuard};

/// Maximum number of bytes that are read and dropped. The largest body that a client sends by mistake, such as a file,
/// should fit.
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// Maximum time for them.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Maximum number of lingering connections and HTTP/2 requests of a listener. The connections count as open connections too.
pub(super) const CONNECTIONS_MAX: usize = 256;
/// How much is read at once.
const BUFFER_LEN: usize = 16 * 1024;

/// The limits of the connections of one listener.
#[derive(Debug, Clone)]
pub(crate) struct LingerLimits {
    /// How many connections and HTTP/2 requests may linger at once.
    pub(super) slots: Arc<Capacity>,
    /// Begun once the listener closes.
    pub(super) close: Drain,
    /// Maximum time for what begins to linger after that.
    pub(super) at_close: Duration,
}

/// A connection that reads and drops.
#[derive(Debug)]
pub(super) struct Lingering {
    left: usize,
    timer: Pin<Box<Sleep>>,
    _slot: CapacityGuard,
}

impl Lingering {
    /// Begins, unless too many connections of the listener linger already.
    pub(super) fn begin(limits: &LingerLimits) -> Option<Self> {
        // A listener that closes has no time for them.
        let time = if limits.close.has_begun() { limits.at_close } else { TIME_MAX };
        Self::begin_for(time, &limits.slots)
    }

    fn begin_for(time: Duration, capacity: &Arc<Capacity>) -> Option<Self> {
        let slot = capacity.try_acquire(1)?;
        Some(Self { left: BYTES_MAX, timer: Box::pin(tokio::time::sleep(time)), _slot: slot })
    }

    /// Reads and drops until the peer closes its half, the connection breaks, or a limit is reached.
    pub(super) fn poll_drop<S: AsyncRead + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<()> {
        let mut buffer = [0; BUFFER_LEN];
        while self.left > 0 && self.timer.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut buffer);
            match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.left = self.left.saturating_sub(buffer.filled().len());
                }
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(())
    }
}

/// Reads and drops the rest of an HTTP/2 request until it ends or a limit is reached. `slot` counts it.
pub(super) async fn drop_body<B: Body<Data = Bytes> + Unpin>(mut body: B, slot: CapacityGuard) {
    let reading = async {
        let mut left = BYTES_MAX;
        while left > 0
            && let Some(Ok(frame)) = body.frame().await
        {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
    };
    // The limit of time is as good an end as any other.
    let _ = tokio::time::timeout(TIME_MAX, reading).await;
    drop(slot);
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, empty, repeat};

    use super::*;

    /// Lingers on a stream for at most this time.
    async fn linger(stream: &mut (impl AsyncRead + Unpin), time: Duration) {
        let mut lingering = Lingering::begin_for(time, &Capacity::new(1)).expect("room");
        poll_fn(|cx| lingering.poll_drop(stream, cx)).await;
    }

    #[tokio::test]
    async fn endless_peer_is_dropped_after_its_bytes() {
        let mut endless = repeat(b'x').take(u64::MAX);
        linger(&mut endless, Duration::MAX).await;
        let taken = usize::try_from(u64::MAX - endless.limit()).expect("few");
        assert!((BYTES_MAX..BYTES_MAX + BUFFER_LEN).contains(&taken), "{taken}");
    }

    #[tokio::test]
    async fn silent_peer_is_dropped_after_its_time() {
        let (mut ours, mut theirs) = duplex(64);
        theirs.write_all(b"some").await.expect("room");
        linger(&mut ours, Duration::from_millis(20)).await;
        theirs.write_all(b"more").await.expect("it is still open");
    }

    #[tokio::test]
    async fn end_of_the_peer_is_the_end() {
        linger(&mut empty(), Duration::MAX).await;
        let (mut ours, mut theirs) = duplex(64);
        let sending = tokio::spawn(async move {
            theirs.write_all(&[b'x'; 1000]).await?;
            theirs.shutdown().await?;
            theirs.read_to_end(&mut Vec::new()).await
        });
        linger(&mut ours, Duration::MAX).await;
        drop(ours);
        assert!(matches!(sending.await, Ok(Ok(0))));
    }

    #[tokio::test]
    async fn endless_body_is_dropped_after_its_bytes() {
        struct Endless<'a>(&'a mut usize);
        impl Body for Endless<'_> {
            type Data = Bytes;
            type Error = std::convert::Infallible;

            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
                *self.0 += 1;
                Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(&[b'x'; BUFFER_LEN])))))
            }
        }
        let (mut frames, capacity) = (0, Capacity::new(1));
        drop_body(Endless(&mut frames), capacity.try_acquire(1).expect("room")).await;
        assert_eq!((frames, capacity.in_use()), (BYTES_MAX / BUFFER_LEN, 0));
    }

    #[tokio::test]
    async fn number_of_lingering_connections_is_limited() {
        let limits = limits(2);
        let first = Lingering::begin(&limits);
        let _second = Lingering::begin(&limits);
        assert!(first.is_some() && Lingering::begin(&limits).is_none());
        drop(first);
        assert!(Lingering::begin(&limits).is_some());
    }

    #[tokio::test]
    async fn listener_that_closes_does_not_wait() {
        let limits = limits(1);
        limits.close.begin();
        let (mut ours, _theirs) = duplex(64);
        let mut lingering = Lingering::begin(&limits).expect("room");
        poll_fn(|cx| lingering.poll_drop(&mut ours, cx)).await;
    }

    fn limits(slots: usize) -> LingerLimits {
        LingerLimits { slots: Capacity::new(slots), close: Drain::default(), at_close: Duration::from_millis(1) }
    }
}
