//! Whether lookups have failed lately. Then a request that stale pairs can answer does not wait for another failure.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::tick::Tick;

/// How often a request that stale pairs could answer looks its pairs up all the same, as a probe.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(2);

/// A gate that is open from the first failed lookup to the next response: stale pairs answer meanwhile.
#[derive(Debug, Default)]
pub(crate) struct StaleGate {
    /// When the next probe is due, in microseconds; 0 while the gate is closed.
    probe_at: AtomicU64,
}

impl StaleGate {
    /// Records the end of a lookup.
    pub(crate) fn record(&self, failed: bool, now: Tick) {
        if !failed {
            self.probe_at.store(0, Ordering::Relaxed);
        } else {
            // Later failures do not postpone the probe.
            let next = now.after(PROBE_EVERY).micros();
            let _ = self.probe_at.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Returns whether stale pairs should answer. While the gate is open it returns false once every [`PROBE_EVERY`]: that
    /// request is the probe.
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
    fn open_gate_lets_one_probe_through_every_two_seconds() {
        let gate = StaleGate::default();
        let at = |millis| Tick::from_micros(1).after(Duration::from_millis(millis));
        assert!(!gate.should_serve_stale(at(0)));
        gate.record(true, at(0));
        let mut probes = 0;
        for millis in (0..20_000).step_by(10) {
            if !gate.should_serve_stale(at(millis)) {
                probes += 1;
                gate.record(true, at(millis));
            }
        }
        assert_eq!(probes, 9);
        gate.record(false, at(20_000));
        assert!(!gate.should_serve_stale(at(20_001)) && !gate.should_serve_stale(at(20_002)));
    }
}
