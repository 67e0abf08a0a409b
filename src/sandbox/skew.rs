//! The sandbox's clock, which can be made wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::clock;

/// Furthest that the clock can be set apart, in seconds: ten years.
pub(super) const SKEW_MAX_SECS: i64 = 10 * 365 * 86_400;

/// What the sandbox takes as now, for signatures, its `Date`, follow times and webhooks.
#[derive(Clone, Default)]
pub(super) struct SkewedClock(Arc<AtomicI64>);

impl SkewedClock {
    pub(super) fn unix_now(&self) -> Duration {
        let (now, skew) = (clock::unix_now(), self.0.load(Ordering::Relaxed));
        let span = Duration::from_secs(skew.unsigned_abs());
        if skew < 0 { now.saturating_sub(span) } else { now.saturating_add(span) }
    }

    /// Seconds ahead of the machine's clock, or behind it if negative. `false` if that is too far.
    pub(super) fn set(&self, skew_secs: i64) -> bool {
        let fits = (-SKEW_MAX_SECS..=SKEW_MAX_SECS).contains(&skew_secs);
        if fits {
            self.0.store(skew_secs, Ordering::Relaxed);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_ahead_and_behind() {
        let (skewed, hour) = (SkewedClock::default(), 3600);
        let apart = || skewed.unix_now().as_secs() as i64 - clock::unix_now().as_secs() as i64;
        assert!((0..=1).contains(&apart()));
        assert!(skewed.set(hour));
        assert!((hour..=hour + 1).contains(&apart()));
        assert!(skewed.set(-hour));
        assert!((-hour..=1 - hour).contains(&apart()));
        assert!(!skewed.set(i64::MIN) && !skewed.set(i64::MAX));
        assert!((-hour..=1 - hour).contains(&apart()));
    }
}
