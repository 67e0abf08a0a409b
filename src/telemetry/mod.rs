//! Logs, metrics, and traces.

mod line;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod trace;
