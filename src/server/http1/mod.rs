//! Checks of HTTP/1 requests that hyper does not make: headers, framing, and early responses.

mod chunk;
pub mod framing;
pub(crate) mod guard;
pub mod head;
