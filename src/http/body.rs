//! Reads a complete body within a limit of bytes, with as few copies as its frames allow.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use http_body_util::BodyExt;

use super::headers::NOT_IN_TRAILERS;
use crate::capacity::{Capacity, CapacityGuard};

/// Text about [`BodyError::Broken`].
pub(crate) const BODY_BROKEN: &str = "its body ended early, or a chunk of it is not well-formed";
/// Text about [`BodyError::Trailer`].
pub(crate) const BAD_TRAILER: &str = "its trailers contain Host, Content-Length, or Transfer-Encoding";

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The body exceeds its limit.
    #[error("the body is too large")]
    TooLarge,
    /// All bodies together would exceed their limit.
    #[error("limit of buffered bytes reached")]
    NoRoom,
    /// The peer disconnected, or sent invalid bytes.
    #[error("the body did not arrive completely")]
    Broken(#[source] hyper::Error),
    /// A trailer has a name of [`NOT_IN_TRAILERS`]. Over HTTP/1, the guard of the connection rejects such a request first.
    #[error("a trailer is not allowed")]
    Trailer,
}

/// Reads all of `body`, at most `max` bytes, which count against `buffered` until the guard is dropped.
///
/// It has no timeout; the caller needs one.
///
/// # Errors
/// See [`BodyError`]. A declared length over `max` is rejected before a byte is read.
pub(crate) async fn read_whole<B>(
    mut body: B,
    max: usize,
    buffered: &Arc<Capacity>,
) -> Result<(Bytes, CapacityGuard), BodyError>
where
    B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
{
    let declared = body.size_hint();
    if declared.lower() > max as u64 {
        return Err(BodyError::TooLarge);
    }
    let expected = declared.exact().map_or(0, |exact| usize::try_from(exact).unwrap_or(max));
    // Counted as it arrives: a length that is only declared takes nothing from other bodies.
    let mut guard = buffered.try_acquire(0).ok_or(BodyError::NoRoom)?;
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    while let Some(frame) = body.frame().await {
        let data = match frame.map_err(BodyError::Broken)?.into_data() {
            Ok(data) => data,
            Err(frame) => {
                check_trailers(frame.trailers_ref())?;
                continue;
            }
        };
        let so_far = rest.as_ref().map_or(first.len(), BytesMut::len);
        let sum = so_far + data.len();
        if sum > max {
            return Err(BodyError::TooLarge);
        }
        if sum > guard.count() && !guard.grow(sum - guard.count()) {
            return Err(BodyError::NoRoom);
        }
        match &mut rest {
            Some(rest) => {
                if sum > rest.capacity() {
                    rest.reserve(room_for(sum, expected) - so_far);
                }
                rest.extend_from_slice(&data);
            }
            // A body of one frame, as most small ones are, is not copied.
            None if first.is_empty() => first = data,
            None => {
                let mut joined = BytesMut::with_capacity(room_for(sum, expected));
                joined.extend_from_slice(&first);
                joined.extend_from_slice(&data);
                rest = Some(joined);
            }
        }
    }
    Ok((rest.map_or(first, BytesMut::freeze), guard))
}

/// Checks the names of trailers, which are ignored otherwise.
fn check_trailers(trailers: Option<&HeaderMap>) -> Result<(), BodyError> {
    let is_allowed = |trailers: &HeaderMap| !NOT_IN_TRAILERS.iter().any(|name| trailers.contains_key(*name));
    if trailers.is_none_or(is_allowed) { Ok(()) } else { Err(BodyError::Trailer) }
}

/// Returns the capacity for a body of which `sum` bytes have arrived: more than these, so that it is seldom moved, up to
/// the declared length. The unwritten part of a large buffer takes address space, but no memory.
fn room_for(sum: usize, expected: usize) -> usize {
    expected.clamp(sum, sum.saturating_mul(64))
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    fn body(text: &'static str) -> impl Body<Data = Bytes, Error = hyper::Error> + Unpin {
        Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {})
    }

    #[tokio::test]
    async fn limit_is_exact_and_bytes_count_until_dropped() {
        let buffered = Capacity::new(100);
        let (bytes, guard) = read_whole(body("12345678"), 8, &buffered).await.expect("fits");
        assert_eq!((&bytes[..], buffered.in_use()), (&b"12345678"[..], 8));
        drop(guard);
        assert_eq!(buffered.in_use(), 0);
        assert!(matches!(read_whole(body("123456789"), 8, &buffered).await, Err(BodyError::TooLarge)));
    }

    #[tokio::test]
    async fn trailers_for_framing_and_routing_are_rejected() {
        let buffered = Capacity::new(100);
        for (name, is_allowed) in
            [("x", true), ("x-host", true), ("host", false), ("content-length", false), ("transfer-encoding", false)]
        {
            let mut trailers = HeaderMap::new();
            trailers.insert(name, "1".parse().expect("a value"));
            let whole = body("{}").with_trailers(std::future::ready(Some(Ok(trailers))));
            let read = read_whole(Box::pin(whole), 8, &buffered).await;
            assert_eq!(!matches!(read, Err(BodyError::Trailer)), is_allowed, "{name}");
            assert_eq!(read.is_ok(), is_allowed, "{name}");
        }
    }

    #[tokio::test]
    async fn bodies_share_one_limit() {
        let buffered = Capacity::new(10);
        let (_, guard) = read_whole(body("12345678"), 8, &buffered).await.expect("fits");
        assert!(matches!(read_whole(body("123"), 8, &buffered).await, Err(BodyError::NoRoom)));
        drop(guard);
        assert!(read_whole(body("123"), 8, &buffered).await.is_ok());
    }
}
