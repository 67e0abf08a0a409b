//! Retries that do not make an outage worse: a retry budget, and random pauses.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// The price of one retry.
const RETRY: i64 = 1000;
/// The maximum that can be saved up: ten retries.
const SAVED_MAX: i64 = 10 * RETRY;
/// Upper bound of the first pause. It doubles with each further pause.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Upper bound of all pauses.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The retries that an app's calls may still cost in total. Each call adds a part of one.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    /// Thousandths of a retry.
    saved: AtomicI64,
    earned: i64,
}

impl RetryBudget {
    /// Returns a budget to which each call adds `ratio` of a retry, 0 to 1. It starts with ten retries, unless `ratio` is 0.
    pub(crate) fn new(ratio: f64) -> Self {
        let earned = (ratio * RETRY as f64) as i64;
        Self { saved: AtomicI64::new(if earned > 0 { SAVED_MAX } else { 0 }), earned }
    }

    /// Adds the part of a new call.
    pub(crate) fn earn(&self) {
        let earn = |saved: i64| (saved < SAVED_MAX).then(|| (saved + self.earned).min(SAVED_MAX));
        let _ = self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earn);
    }

    /// Pays for one retry. Returns false if the budget is exhausted.
    pub(crate) fn spend(&self) -> bool {
        let spend = |saved: i64| (saved >= RETRY).then_some(saved - RETRY);
        self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

/// Returns the pause after this number of attempts: a random time below a bound that doubles ("full jitter"), so that
/// calls that failed at the same time are not retried at the same time. `random` is any number.
pub(crate) fn pause(attempts: u32, random: u32) -> Duration {
    let longest = PAUSE_MIN.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(PAUSE_MAX);
    longest.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_is_bounded_by_earned_and_saved_retries() {
        let budget = RetryBudget::new(0.1);
        let spent = (0..1000).filter(|_| budget.spend()).count();
        assert_eq!(spent, 10, "the retries of a new budget");
        let spent = (0..1000)
            .filter(|_| {
                budget.earn();
                budget.spend()
            })
            .count();
        assert_eq!(spent, 100);
        (0..100_000).for_each(|_| budget.earn());
        assert_eq!((0..1000).filter(|_| budget.spend()).count(), 10, "no more than ten are saved up");
        let none = RetryBudget::new(0.0);
        none.earn();
        assert!(!none.spend());
    }

    #[test]
    fn pauses_have_a_bound_that_doubles_up_to_one_second() {
        assert_eq!(pause(1, 0), Duration::ZERO);
        let longest: Vec<_> = (1..8).map(|attempts| pause(attempts, u32::MAX).as_millis()).collect();
        assert_eq!(longest, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(pause(u32::MAX, u32::MAX), PAUSE_MAX);
    }
}
