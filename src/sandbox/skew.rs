//! The clock of the simulator, which can be set wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::clock;

/// Largest skew in either direction, in seconds: ten years.
pub(super) const SKEW_MAX_SECS: i64 = 10 * 365 * 86_400;

/// The simulator's clock for signatures, its `Date`, follow times, and webhooks.
#[derive(Clone, Default)]
pub(super) struct SkewedClock(Arc<AtomicI64>);

impl SkewedClock {
    pub(super) fn unix_now(&self) -> Duration {
        let (now, skew) = (clock::unix_now(), self.0.load(Ordering::Relaxed));
        let span = Duration::from_secs(skew.unsigned_abs());
        if skew < 0 { now.saturating_sub(span) } else { now.saturating_add(span) }
    }

    /// Sets the seconds ahead of the machine's clock; negative values are behind it. Returns `false` and changes
    /// nothing if they exceed [`SKEW_MAX_SECS`].
    pub(super) fn set(&self, skew_secs: i64) -> bool {
        let is_valid = (-SKEW_MAX_SECS..=SKEW_MAX_SECS).contains(&skew_secs);
        if is_valid {
            self.0.store(skew_secs, Ordering::Relaxed);
        }
        is_valid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skew_moves_the_clock_ahead_and_behind() {
        let (skewed, hour) = (SkewedClock::default(), 3600);
        let skew = || skewed.unix_now().as_secs() as i64 - clock::unix_now().as_secs() as i64;
        assert!((0..=1).contains(&skew()));
        assert!(skewed.set(hour));
        assert!((hour..=hour + 1).contains(&skew()));
        assert!(skewed.set(-hour));
        assert!((-hour..=1 - hour).contains(&skew()));
        assert!(!skewed.set(i64::MIN) && !skewed.set(i64::MAX));
        assert!((-hour..=1 - hour).contains(&skew()));
    }
}
