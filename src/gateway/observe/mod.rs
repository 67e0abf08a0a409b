//! What is recorded of requests and calls: counters, log lines, and spans.

pub(crate) mod access_log;
pub(crate) mod audit;
pub(crate) mod calls;
pub(crate) mod samples;
pub(crate) mod spans;
