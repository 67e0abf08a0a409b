//! Log lines about events that anyone can cause, but not one for each event.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;
use crate::domain::tick::Tick;

/// Minimum time between two lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Counts events between lines.
#[derive(Default)]
pub(super) struct LogInterval {
    /// Number since the last line.
    count: AtomicU64,
    /// Time of the last line, in ticks.
    logged_at: AtomicU64,
}

impl LogInterval {
    /// Counts an event. Returns the number of events since the last line, this one included, if a line is due.
    pub(super) fn count(&self) -> Option<u64> {
        self.count_at(clock::tick())
    }

    fn count_at(&self, now: Tick) -> Option<u64> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let logged_at = self.logged_at.load(Ordering::Relaxed);
        let last = Tick::from_micros(logged_at);
        let is_due = last == Tick::NEVER || now.since(last) >= INTERVAL;
        let claim =
            || self.logged_at.compare_exchange(logged_at, now.micros(), Ordering::Relaxed, Ordering::Relaxed).is_ok();
        (is_due && claim()).then(|| self.count.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_due_once_per_interval_with_the_number_of_events() {
        let events = LogInterval::default();
        let at = |seconds: u64| Tick::from_micros(1 + seconds * 1_000_000);
        let due = [0, 1, 9, 10, 11, 40].map(|seconds| events.count_at(at(seconds)));
        assert_eq!(due, [Some(1), None, None, Some(3), None, Some(2)]);
    }
}
