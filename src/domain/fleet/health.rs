//! Whether Redis can be relied on, and when to look for it again.

use std::time::Duration;

/// An answer that takes so long is of little use: a permit is dead by then.
pub const SLOW: Duration = Duration::from_millis(30);
/// So many slow answers in a row are as bad as none.
const SLOW_MAX: u32 = 3;
/// The first pause before Redis is looked for again, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What is thought of one connection.
#[derive(Debug, Default)]
pub struct Health {
    slow: u32,
}

impl Health {
    /// Takes note of an answer. Says whether the connection is still good.
    pub fn answered(&mut self, took: Duration) -> bool {
        self.slow = if took < SLOW { 0 } else { self.slow + 1 };
        self.slow < SLOW_MAX
    }
}

/// How long to wait before attempt `tried + 1`, between half and all of what doubles each time up to 2 s.
/// `random` spreads the replicas.
pub fn pause(tried: u32, random: u32) -> Duration {
    let (first, longest) = PAUSES;
    let whole = first.saturating_mul(1 << tried.min(10)).min(longest);
    whole.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_slow_answers_in_a_row_are_too_many() {
        let (fast, slow) = (Duration::from_millis(1), SLOW);
        let mut health = Health::default();
        for took in [slow, slow, fast, slow, slow] {
            assert!(health.answered(took));
        }
        assert!(!health.answered(slow));
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        assert_eq!(pause(0, 0), Duration::from_millis(25));
        assert_eq!(pause(0, u32::MAX), Duration::from_millis(50));
        assert_eq!(pause(2, u32::MAX), Duration::from_millis(200));
        assert_eq!(pause(u32::MAX, u32::MAX), Duration::from_secs(2));
    }
}
