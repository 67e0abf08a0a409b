//! Request bodies, as the services of connections receive them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::lingering::drop_body;
use super::shutdown::Drain;
use crate::capacity::Capacity;

/// A request body. Over HTTP/2, a rest that is not read when it is dropped is read and dropped for a while.
///
/// hyper would reset the stream. A client that writes first and reads later then fails before it reads the response.
/// (Over HTTP/1 the connection lingers, see [`super::lingering`].)
#[derive(Debug)]
pub struct RequestBody {
    /// `None` only within `drop`.
    body: Option<Incoming>,
    /// `None` over HTTP/1.
    limits: Option<Arc<RestLimits>>,
}

/// What bounds the reading of a rest on one connection.
#[derive(Debug)]
pub(super) struct RestLimits {
    /// Limit of requests and connections that linger.
    pub(super) lingering: Arc<Capacity>,
    /// Ends the reading at once.
    pub(super) close: Drain,
}

impl RequestBody {
    /// Wraps a body. `limits` are those of a rest over HTTP/2.
    pub(super) fn new(body: Incoming, limits: Option<Arc<RestLimits>>) -> Self {
        Self { body: Some(body), limits }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some((body, limits)) = self.body.take().zip(self.limits.take()) else { return };
        if body.is_end_stream() || limits.close.has_begun() {
            return;
        }
        if let Some(slot) = limits.lingering.try_acquire(1) {
            tokio::spawn(async move {
                tokio::select! {
                    () = drop_body(body, slot) => {}
                    () = limits.close.begun() => {}
                }
            });
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
