//! Responses over HTTP/2 until the peer has taken them.
//!
//! A peer that opens no window for a response keeps it in memory although its connection accepts writes, so no layer
//! below HTTP/2 can detect that it is slow. (Over HTTP/1, a response that is not taken blocks its connection, which
//! `TimeoutStream` detects.)

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use crate::clock;

/// The responses of one connection that the peer has not taken yet. At most as many as there may be streams.
#[derive(Debug, Default)]
pub(super) struct PendingResponses(Mutex<ResponseStarts>);

#[derive(Debug, Default)]
struct ResponseStarts {
    last_id: u64,
    /// When each response began. Later ones have higher IDs.
    by_id: BTreeMap<u64, Instant>,
}

impl PendingResponses {
    /// Begins a response, which is pending until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> ResponseGuard {
        let mut starts = self.0.lock();
        starts.last_id += 1;
        let id = starts.last_id;
        starts.by_id.insert(id, clock::now());
        ResponseGuard { pending: Arc::clone(self), id }
    }

    /// Returns when the oldest pending response began.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.0.lock().by_id.first_key_value().map(|(_, start)| *start)
    }
}

/// A pending response. Dropped once the peer has taken all of it, or its stream has ended.
#[derive(Debug)]
pub(super) struct ResponseGuard {
    pending: Arc<PendingResponses>,
    id: u64,
}

impl Drop for ResponseGuard {
    fn drop(&mut self) {
        self.pending.0.lock().by_id.remove(&self.id);
    }
}

/// A response body, or none. Its response is pending while any of its bytes is in memory.
#[derive(Debug)]
pub(super) struct TrackedBody<B> {
    body: Option<B>,
    response: Option<Arc<ResponseGuard>>,
}

impl<B> TrackedBody<B> {
    /// Without a guard, the body is not tracked.
    pub(super) fn new(body: Option<B>, response: Option<ResponseGuard>) -> Self {
        Self { body, response: response.map(Arc::new) }
    }
}

/// Bytes that keep their response pending.
struct TrackedBytes(Bytes, #[allow(dead_code, reason = "dropped with the bytes")] Arc<ResponseGuard>);

impl AsRef<[u8]> for TrackedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for TrackedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        let Some(response) = &self.response else { return Poll::Ready(frame) };
        let track = |bytes| Bytes::from_owner(TrackedBytes(bytes, Arc::clone(response)));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(track))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    #[tokio::test]
    async fn response_is_pending_until_its_last_byte_is_dropped() {
        let pending = Arc::new(PendingResponses::default());
        let first = TrackedBody::new(Some(Full::new(Bytes::from_static(b"one"))), Some(pending.begin()));
        let start = pending.oldest().expect("one");
        let second = pending.begin();
        assert_eq!(first.size_hint().exact(), Some(3));
        let bytes = first.collect().await.expect("infallible").to_bytes();
        assert_eq!((&*bytes, pending.oldest()), (&b"one"[..], Some(start)));
        drop(bytes);
        assert!(pending.oldest().is_some_and(|oldest| oldest >= start));
        drop(second);
        assert_eq!(pending.oldest(), None);
    }
}
