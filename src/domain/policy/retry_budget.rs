//! Trying again without making things worse: a budget, and pauses that nobody can foresee.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// What one more attempt costs.
const ATTEMPT: i64 = 1000;
/// So many attempts may be saved up.
const SAVED_MAX: i64 = 10 * ATTEMPT;
/// The longest first pause; each further one may be twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause there is.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How many further attempts an app's calls may cost, in all: each call brings a part of one.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    /// Thousandths of an attempt.
    saved: AtomicI64,
    earned: i64,
}

impl RetryBudget {
    /// Each call brings `ratio` of an attempt, 0 to 1. Ten are there to begin with, unless it is 0.
    pub(crate) fn new(ratio: f64) -> Self {
        let earned = (ratio * ATTEMPT as f64) as i64;
        Self { saved: AtomicI64::new(if earned > 0 { SAVED_MAX } else { 0 }), earned }
    }

    /// A call begins.
    pub(crate) fn earn(&self) {
        let earn = |saved: i64| (saved < SAVED_MAX).then(|| (saved + self.earned).min(SAVED_MAX));
        let _ = self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earn);
    }

    /// Pays for one more attempt, or says that there is nothing left.
    pub(crate) fn spend(&self) -> bool {
        let spend = |saved: i64| (saved >= ATTEMPT).then_some(saved - ATTEMPT);
        self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

/// The pause before an attempt that follows on `tried`: anything up to a bound that doubles, so that
/// calls that failed together do not come again together ("full jitter"). `random` is any number.
pub(crate) fn pause(tried: u32, random: u32) -> Duration {
    let longest = PAUSE_MIN.saturating_mul(1 << tried.saturating_sub(1).min(10)).min(PAUSE_MAX);
    longest.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_spent_than_was_earned_and_saved() {
        let budget = RetryBudget::new(0.1);
        let spent = (0..1000).filter(|_| budget.spend()).count();
        assert_eq!(spent, 10, "what was there to begin with");
        let spent = (0..1000)
            .filter(|_| {
                budget.earn();
                budget.spend()
            })
            .count();
        assert_eq!(spent, 100);
        (0..100_000).for_each(|_| budget.earn());
        assert_eq!((0..1000).filter(|_| budget.spend()).count(), 10, "no more than that is saved up");
        let none = RetryBudget::new(0.0);
        none.earn();
        assert!(!none.spend());
    }

    #[test]
    fn pauses_lie_between_nothing_and_a_bound_that_doubles_up_to_a_second() {
        assert_eq!(pause(1, 0), Duration::ZERO);
        let longest: Vec<_> = (1..8).map(|tried| pause(tried, u32::MAX).as_millis()).collect();
        assert_eq!(longest, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(pause(u32::MAX, u32::MAX), PAUSE_MAX);
    }
}
