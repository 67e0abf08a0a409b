//! Counters of the webhooks that are forwarded to an app.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::histogram::{Histogram, HistogramSnapshot};
use super::labels::Outcome;

/// The counters of one app.
#[derive(Debug)]
pub(crate) struct ForwardRecorder {
    /// By [`Outcome`].
    outcomes: [AtomicU64; Outcome::COUNT],
    time: Histogram,
}

impl Default for ForwardRecorder {
    fn default() -> Self {
        Self { outcomes: [const { AtomicU64::new(0) }; Outcome::COUNT], time: Histogram::default() }
    }
}

impl ForwardRecorder {
    /// Counts a webhook that the app should have received. `took` is the time from its last byte to the response of the
    /// app, or to the failure.
    pub(crate) fn add(&self, outcome: Outcome, took: Duration) {
        self.outcomes[outcome.index()].fetch_add(1, Ordering::Relaxed);
        self.time.add(took);
    }

    /// Returns the numbers of webhooks by outcome, without outcomes that never occurred.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = (Outcome, u64)> {
        let counts = Outcome::all().map(|outcome| (outcome, self.outcomes[outcome.index()].load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0)
    }

    /// Returns the durations.
    pub(crate) fn time(&self) -> HistogramSnapshot {
        let mut time = HistogramSnapshot::default();
        self.time.add_to(&mut time);
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_counted_by_outcome() {
        let recorder = ForwardRecorder::default();
        let took = Duration::from_millis(2);
        [Outcome::OK, Outcome::FAILED, Outcome::OK].into_iter().for_each(|outcome| recorder.add(outcome, took));
        assert_eq!(recorder.outcomes().collect::<Vec<_>>(), [(Outcome::OK, 2), (Outcome::FAILED, 1)]);
        assert_eq!(recorder.time().count(), 3);
    }
}
