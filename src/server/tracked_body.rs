//! Answers over HTTP/2 until the peer has taken them: a peer that opens no window for them keeps them in
//! memory though its connection can be written to, so nothing below HTTP/2 sees it as slow.
//!
//! (Over HTTP/1 an answer that is not taken blocks its connection, which is what `TimeoutStream` watches.)

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::clock;

/// The answers of one connection that are on their way: since when, by number. There are at most as many as
/// there may be streams.
#[derive(Debug, Default)]
pub(super) struct PendingResponses(Mutex<Pending>);

#[derive(Debug, Default)]
struct Pending {
    last: u64,
    since: BTreeMap<u64, Instant>,
}

impl PendingResponses {
    /// One more begins.
    pub(super) fn begin(self: &Arc<Self>) -> ResponseGuard {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pending.last += 1;
        let number = pending.last;
        pending.since.insert(number, clock::now());
        ResponseGuard { of: Arc::clone(self), number }
    }

    /// Since when the oldest is on its way.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).since.first_key_value().map(|(_, since)| *since)
    }
}

/// An answer on its way. Dropped when it was taken whole, or is no longer wanted.
#[derive(Debug)]
pub(super) struct ResponseGuard {
    of: Arc<PendingResponses>,
    number: u64,
}

impl Drop for ResponseGuard {
    fn drop(&mut self) {
        self.of.0.lock().unwrap_or_else(PoisonError::into_inner).since.remove(&self.number);
    }
}

/// A body that is on its way as long as any byte of it is there.
#[derive(Debug)]
pub(super) struct TrackedBody<B> {
    body: B,
    delivery: Option<Arc<ResponseGuard>>,
}

impl<B> TrackedBody<B> {
    /// Watched by `delivery`, if there is one.
    pub(super) fn new(body: B, delivery: Option<ResponseGuard>) -> Self {
        Self { body, delivery: delivery.map(Arc::new) }
    }
}

/// Bytes that keep a delivery pending.
struct TrackedBytes(Bytes, #[allow(dead_code, reason = "it is there to be dropped")] Arc<ResponseGuard>);

impl AsRef<[u8]> for TrackedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for TrackedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let Some(delivery) = &self.delivery else { return Poll::Ready(frame) };
        let watch = |bytes| Bytes::from_owner(TrackedBytes(bytes, Arc::clone(delivery)));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(watch))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    #[tokio::test]
    async fn an_answer_is_on_its_way_until_its_last_byte_is_gone() {
        let deliveries = Arc::new(PendingResponses::default());
        let first = TrackedBody::new(Full::new(Bytes::from_static(b"one")), Some(deliveries.begin()));
        let since = deliveries.oldest().expect("one");
        let second = deliveries.begin();
        assert_eq!(first.size_hint().exact(), Some(3));
        let bytes = first.collect().await.expect("infallible").to_bytes();
        assert_eq!((&*bytes, deliveries.oldest()), (&b"one"[..], Some(since)));
        drop(bytes);
        assert!(deliveries.oldest().is_some_and(|oldest| oldest >= since));
        drop(second);
        assert_eq!(deliveries.oldest(), None);
    }
}
