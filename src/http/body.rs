//! Reading a whole body within a bound of bytes, in as few copies as its frames allow.

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;

use crate::capacity::{Capacity, CapacityGuard};

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// More bytes than this body may have.
    #[error("it is larger than allowed")]
    TooLarge,
    /// More bytes than all bodies together may have.
    #[error("no room among the buffered bytes")]
    NoRoom,
    /// The peer broke off, or does not speak HTTP.
    #[error("it did not arrive whole")]
    Broken(#[source] hyper::Error),
}

/// Reads the whole of `body`, at most `max` bytes, which count against `budget` while [`CapacityGuard`] lives.
///
/// There is no time limit in here: the caller has one.
///
/// # Errors
/// See [`BodyError`]; a declared length over `max` is refused before a byte is read.
pub async fn read_whole<B>(
    mut body: B,
    max: usize,
    budget: &std::sync::Arc<Capacity>,
) -> Result<(Bytes, CapacityGuard), BodyError>
where
    B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
{
    let declared = body.size_hint();
    if declared.lower() > max as u64 {
        return Err(BodyError::TooLarge);
    }
    let expected = declared.exact().map_or(0, |exact| usize::try_from(exact).unwrap_or(max));
    // Counted as it comes: a length that is only announced takes nothing from others.
    let mut held = budget.try_acquire(0).ok_or(BodyError::NoRoom)?;
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    while let Some(frame) = body.frame().await {
        // Trailers have no meaning here.
        let Ok(data) = frame.map_err(BodyError::Broken)?.into_data() else { continue };
        let so_far = rest.as_ref().map_or(first.len(), BytesMut::len);
        let sum = so_far + data.len();
        if sum > max {
            return Err(BodyError::TooLarge);
        }
        if sum > held.count() && !held.grow(sum - held.count()) {
            return Err(BodyError::NoRoom);
        }
        match &mut rest {
            Some(rest) => {
                if sum > rest.capacity() {
                    rest.reserve(room(sum, expected) - so_far);
                }
                rest.extend_from_slice(&data);
            }
            // A body of one frame, as small ones are, is not copied.
            None if first.is_empty() => first = data,
            None => {
                let mut whole = BytesMut::with_capacity(room(sum, expected));
                whole.extend_from_slice(&first);
                whole.extend_from_slice(&data);
                rest = Some(whole);
            }
        }
    }
    Ok((rest.map_or(first, BytesMut::freeze), held))
}

/// How much room a body gets that has come so far: more than it needs now, so that it is seldom moved, up to what is
/// announced. Of a large one, what is not written to yet takes addresses and no memory.
fn room(sum: usize, expected: usize) -> usize {
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
    async fn the_bound_is_exact_and_bytes_are_held_as_long_as_the_body() {
        let budget = Capacity::new(100);
        let (bytes, held) = read_whole(body("12345678"), 8, &budget).await.expect("fits");
        assert_eq!((&bytes[..], budget.in_use()), (&b"12345678"[..], 8));
        drop(held);
        assert_eq!(budget.in_use(), 0);
        assert!(matches!(read_whole(body("123456789"), 8, &budget).await, Err(BodyError::TooLarge)));
    }

    #[tokio::test]
    async fn all_bodies_together_have_a_bound() {
        let budget = Capacity::new(10);
        let (_, held) = read_whole(body("12345678"), 8, &budget).await.expect("fits");
        assert!(matches!(read_whole(body("123"), 8, &budget).await, Err(BodyError::NoRoom)));
        drop(held);
        assert!(read_whole(body("123"), 8, &budget).await.is_ok());
    }
}
