//! Calls a second, counted over every sliding second.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::domain::chat::command::CommandName;

/// What a limit is counted over.
const SECOND: Duration = Duration::from_secs(1);
/// Highest limit there can be: it bounds the memory of a window.
pub(super) const QPS_MAX: u32 = 1_000_000;
/// How long after an alarm about a command the next one waits. The vendor documents none.
const ALARM_EVERY: Duration = Duration::from_secs(10);

/// The windows of all commands. Only commands of the built-in table get one, so there are few.
pub(super) struct Rates {
    limit: usize,
    windows: HashMap<CommandName<'static>, Window>,
}

#[derive(Default)]
struct Window {
    /// When the admitted calls of the last second came, at most `limit`.
    admitted: VecDeque<Instant>,
    alarmed: Option<Instant>,
}

/// What becomes of a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Admission {
    /// Whether it is within the limit. A refused call takes no place.
    pub(super) admitted: bool,
    /// Set when an alarm is due: calls in the last second.
    pub(super) alarm: Option<usize>,
}

impl Rates {
    pub(super) fn new(limit: NonZeroU32) -> Self {
        Self { limit: limit.get().min(QPS_MAX) as usize, windows: HashMap::new() }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Counts a call. `now` never goes back.
    pub(super) fn admit(&mut self, name: CommandName<'static>, now: Instant) -> Admission {
        let window = self.windows.entry(name).or_default();
        forget_before(&mut window.admitted, now);
        let admitted = window.admitted.len() < self.limit;
        if admitted {
            window.admitted.push_back(now);
        }
        // Vendor page 1047/60256: an alarm when a command passes 80 % of its limit.
        let count = window.admitted.len();
        let due = window.alarmed.is_none_or(|at| now.duration_since(at) >= ALARM_EVERY);
        let alarm = (count * 5 > self.limit * 4 && due).then_some(count);
        if alarm.is_some() {
            window.alarmed = Some(now);
        }
        Admission { admitted, alarm }
    }

    pub(super) fn reset(&mut self) {
        self.windows.clear();
    }
}

/// The most calls that came in any one second.
#[derive(Default)]
pub(super) struct Peak {
    recent: VecDeque<Instant>,
    max: usize,
}

impl Peak {
    /// Most calls of one second that are told apart.
    const MAX: usize = 100_000;

    pub(super) fn count(&mut self, now: Instant) {
        forget_before(&mut self.recent, now);
        if self.recent.len() < Self::MAX {
            self.recent.push_back(now);
        }
        self.max = self.max.max(self.recent.len());
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }
}

fn forget_before(times: &mut VecDeque<Instant>, now: Instant) {
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
    fn no_second_holds_more_than_the_limit() {
        let (start, mut rates) = (clock::now(), Rates::new(NonZeroU32::new(3).unwrap()));
        let mut admit = |ms| rates.admit(FOLLOW_CHECK, start + Duration::from_millis(ms)).admitted;
        assert!(admit(0) && admit(500) && admit(600));
        assert!(!admit(700) && !admit(999));
        assert!(admit(1000), "the first one is a second ago, and refused ones took no place");
        assert!(!admit(1499) && admit(1500));
    }

    #[test]
    fn commands_do_not_share() {
        let (now, mut rates) = (clock::now(), Rates::new(NonZeroU32::MIN));
        assert!(rates.admit(FOLLOW_CHECK, now).admitted);
        assert!(!rates.admit(FOLLOW_CHECK, now).admitted);
        assert!(rates.admit(FOLLOW_ADD, now).admitted);
        rates.reset();
        assert!(rates.admit(FOLLOW_CHECK, now).admitted);
    }

    #[test]
    fn the_alarm_rings_past_four_fifths_and_then_rests() {
        let (start, mut rates) = (clock::now(), Rates::new(NonZeroU32::new(10).unwrap()));
        let mut alarm = |ms| rates.admit(FOLLOW_CHECK, start + Duration::from_millis(ms)).alarm;
        for _ in 0..8 {
            assert_eq!(alarm(0), None);
        }
        assert_eq!(alarm(0), Some(9));
        assert_eq!(alarm(0), None);
        for _ in 0..8 {
            assert_eq!(alarm(10_000), None);
        }
        assert_eq!(alarm(10_000), Some(9));
    }

    proptest! {
        #[test]
        fn however_calls_come(gaps in prop::collection::vec(0u64..400, 1..200), limit in 1u32..8) {
            let (start, mut rates) = (clock::now(), Rates::new(NonZeroU32::new(limit).unwrap()));
            let (mut at, mut admitted, mut peak, mut all) = (0, Vec::new(), Peak::default(), Vec::new());
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
