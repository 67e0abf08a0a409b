//! Parts of HTTP that every listener needs.

pub mod bearer;
pub mod body;
pub mod headers;
pub mod host;
pub mod peer;
pub mod request_id;
pub mod small_writes;
pub mod traceparent;
pub mod wakeups;
