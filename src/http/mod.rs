//! Parts of HTTP that every listener needs.

pub(crate) mod bearer;
pub(crate) mod body;
pub mod headers;
pub mod host;
pub mod peer;
pub(crate) mod request_id;
pub(crate) mod small_writes;
pub(crate) mod traceparent;
pub(crate) mod wakeups;
