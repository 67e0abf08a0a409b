//! The simulated rate limit: calls per second of a command, counted over a sliding second.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::domain::chat::command::CommandName;

/// Length of a window.
const SECOND: Duration = Duration::from_secs(1);
/// Highest limit. It bounds the memory of a window.
const QPS_MAX: u32 = 1_000_000;
/// Minimum interval between two alerts of a command. The vendor documents none.
const ALERT_INTERVAL: Duration = Duration::from_secs(10);

/// The windows of all commands. Only commands of the built-in table get one, so their number is bounded.
pub(super) struct RateLimits {
    limit: usize,
    windows: HashMap<CommandName<'static>, Window>,
}

#[derive(Default)]
struct Window {
    /// Arrival times of the calls admitted in the last second, at most `limit`.
    admitted: VecDeque<Instant>,
    last_alert: Option<Instant>,
}

/// The result of counting a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RateDecision {
    /// Whether the call is within the limit. A call over the limit is not counted.
    pub(super) admitted: bool,
    /// Number of calls in the last second, if an alert is due.
    pub(super) alert: Option<usize>,
}

impl RateLimits {
    pub(super) fn new(limit: NonZeroU32) -> Self {
        Self { limit: limit.get().min(QPS_MAX) as usize, windows: HashMap::new() }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Counts a call. `now` never decreases.
    pub(super) fn admit(&mut self, name: CommandName<'static>, now: Instant) -> RateDecision {
        let window = self.windows.entry(name).or_default();
        drop_expired(&mut window.admitted, now);
        let admitted = window.admitted.len() < self.limit;
        if admitted {
            window.admitted.push_back(now);
        }
        // Vendor page 1047/60256: an alert when a command exceeds 80 % of its limit.
        let count = window.admitted.len();
        let is_due = window.last_alert.is_none_or(|at| now.duration_since(at) >= ALERT_INTERVAL);
        let alert = (count * 5 > self.limit * 4 && is_due).then_some(count);
        if alert.is_some() {
            window.last_alert = Some(now);
        }
        RateDecision { admitted, alert }
    }

    pub(super) fn reset(&mut self) {
        self.windows.clear();
    }
}

/// The largest number of calls in any second.
#[derive(Default)]
pub(super) struct PeakRate {
    recent: VecDeque<Instant>,
    max: usize,
}

impl PeakRate {
    /// Highest rate that is measured. It bounds the memory.
    const MAX: usize = 100_000;

    pub(super) fn count(&mut self, now: Instant) {
        drop_expired(&mut self.recent, now);
        if self.recent.len() < Self::MAX {
            self.recent.push_back(now);
        }
        self.max = self.max.max(self.recent.len());
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }
}

/// Removes the times that are a second or more before `now`.
fn drop_expired(times: &mut VecDeque<Instant>, now: Instant) {
    while times.front().is_some_and(|at| now.duration_since(*at) >= SECOND) {
        times.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock;
    use crate::domain::chat::command::{FOLLOW_ADD, FOLLOW_CHECK};

    #[test]
    fn no_second_admits_more_calls_than_the_limit() {
        let (start, mut rates) = (clock::now(), RateLimits::new(NonZeroU32::new(3).unwrap()));
        let mut admit = |ms| rates.admit(FOLLOW_CHECK, start + Duration::from_millis(ms)).admitted;
        assert!(admit(0) && admit(500) && admit(600));
        assert!(!admit(700) && !admit(999));
        assert!(admit(1000), "the first call is a second old, and calls over the limit are not counted");
        assert!(!admit(1499) && admit(1500));
    }

    #[test]
    fn commands_have_separate_limits() {
        let (now, mut rates) = (clock::now(), RateLimits::new(NonZeroU32::MIN));
        assert!(rates.admit(FOLLOW_CHECK, now).admitted);
        assert!(!rates.admit(FOLLOW_CHECK, now).admitted);
        assert!(rates.admit(FOLLOW_ADD, now).admitted);
        rates.reset();
        assert!(rates.admit(FOLLOW_CHECK, now).admitted);
    }

    #[test]
    fn alert_is_due_above_80_percent_and_once_per_interval() {
        let (start, mut rates) = (clock::now(), RateLimits::new(NonZeroU32::new(10).unwrap()));
        let mut alert = |ms| rates.admit(FOLLOW_CHECK, start + Duration::from_millis(ms)).alert;
        for _ in 0..8 {
            assert_eq!(alert(0), None);
        }
        assert_eq!(alert(0), Some(9));
        assert_eq!(alert(0), None);
        for _ in 0..8 {
            assert_eq!(alert(10_000), None);
        }
        assert_eq!(alert(10_000), Some(9));
    }

    proptest! {
        #[test]
        fn limit_and_peak_hold_for_any_arrivals(gaps in prop::collection::vec(0u64..400, 1..200), limit in 1u32..8) {
            let (start, mut rates) = (clock::now(), RateLimits::new(NonZeroU32::new(limit).unwrap()));
            let (mut at, mut admitted, mut peak, mut all) = (0, Vec::new(), PeakRate::default(), Vec::new());
            for gap in gaps {
                at += gap;
                let now = start + Duration::from_millis(at);
                peak.count(now);
                all.push(at);
                if rates.admit(FOLLOW_CHECK, now).admitted {
                    admitted.push(at);
                }
            }
            let most = |times: &[u64]| {
                times.iter().map(|from| times.iter().filter(|at| (*from..from + 1000).contains(at)).count()).max()
            };
            prop_assert!(most(&admitted).unwrap_or(0) <= limit as usize);
            prop_assert_eq!(Some(peak.max()), most(&all));
        }
    }
}
