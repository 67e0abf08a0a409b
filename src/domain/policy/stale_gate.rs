//! Whether Chat has failed lately: then what can be answered without it need not wait for it to fail
//! again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::tick::Tick;

/// How often one who could do without asks all the same.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(2);

/// Sick from the first failure to the first answer.
#[derive(Debug, Default)]
pub(crate) struct StaleGate {
    /// When the next one asks, in ticks; 0: it is well.
    probe_at: AtomicU64,
}

impl StaleGate {
    /// A call has failed, or was answered.
    pub(crate) fn record(&self, failed: bool, now: Tick) {
        if !failed {
            self.probe_at.store(0, Ordering::Relaxed);
        } else {
            // Later failures put the probe off no further.
            let next = now.after(PROBE_EVERY).micros();
            let _ = self.probe_at.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whether to do without. Now and then the answer is no, to one who asks: that one is the probe.
    pub(crate) fn should_serve_stale(&self, now: Tick) -> bool {
        let probe_at = self.probe_at.load(Ordering::Relaxed);
        if probe_at == 0 || now.micros() < probe_at {
            return probe_at != 0;
        }
        let next = now.after(PROBE_EVERY).micros();
        self.probe_at.compare_exchange(probe_at, next, Ordering::Relaxed, Ordering::Relaxed).is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_two_seconds_asks_until_there_is_an_answer() {
        let sickness = StaleGate::default();
        let at = |millis| Tick::from_micros(1).after(Duration::from_millis(millis));
        assert!(!sickness.should_serve_stale(at(0)));
        sickness.record(true, at(0));
        let mut probes = 0;
        for millis in (0..20_000).step_by(10) {
            if !sickness.should_serve_stale(at(millis)) {
                probes += 1;
                sickness.record(true, at(millis));
            }
        }
        assert_eq!(probes, 9);
        sickness.record(false, at(20_000));
        assert!(!sickness.should_serve_stale(at(20_001)) && !sickness.should_serve_stale(at(20_002)));
    }
}
