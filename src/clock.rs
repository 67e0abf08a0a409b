//! The only reader of time and randomness.
//!
//! Everything else takes time as an argument, so that a test can name the moment it means.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The steady clock, for deadlines and ages.
#[allow(clippy::disallowed_methods, reason = "the one place that reads it")]
pub fn now() -> Instant {
    Instant::now()
}

/// Wall time since 1970-01-01 UTC; 0 on a machine whose clock stands before that.
#[allow(clippy::disallowed_methods, reason = "the one place that reads it")]
pub fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}
