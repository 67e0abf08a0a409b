//! What is recorded about a request: its counters, its log line, and its spans.

pub(crate) mod access_log;
pub(crate) mod spans;
