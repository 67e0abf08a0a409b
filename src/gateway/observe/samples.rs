//! Which requests get a line in the log.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::config::LogRequests;
use crate::domain::tick::Tick;

/// Lines per second for successful requests, and the same number for failed ones, while requests are sampled.
const SAMPLES_PER_SECOND: u32 = 10;

/// Chooses the requests that are logged.
#[derive(Debug, Default)]
pub(crate) struct LogSampler {
    succeeded: SampleWindow,
    failed: SampleWindow,
}

impl LogSampler {
    pub(super) fn takes(&self, requests: LogRequests, succeeded: bool, now: Tick) -> bool {
        match requests {
            LogRequests::All => true,
            LogRequests::Off => false,
            LogRequests::Sampled => {
                let window = if succeeded { &self.succeeded } else { &self.failed };
                window.takes(now)
            }
        }
    }
}

/// Takes the first requests of each second. Two threads that race at the turn of a second may take a few more.
#[derive(Debug, Default)]
struct SampleWindow {
    second: AtomicU64,
    taken: AtomicU32,
}

impl SampleWindow {
    fn takes(&self, now: Tick) -> bool {
        let second = now.micros() / 1_000_000;
        if self.second.load(Ordering::Relaxed) != second {
            self.second.store(second, Ordering::Relaxed);
            self.taken.store(0, Ordering::Relaxed);
        }
        // A full window is only read, so that threads do not contend for it.
        self.taken.load(Ordering::Relaxed) < SAMPLES_PER_SECOND
            && self.taken.fetch_add(1, Ordering::Relaxed) < SAMPLES_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_window_takes_the_first_requests_of_a_second() {
        let window = SampleWindow::default();
        let taken = |second: u64| (0..1000).filter(|n| window.takes(Tick::from_micros(second * 1_000_000 + n))).count();
        assert_eq!((taken(5), taken(5), taken(6)), (10, 0, 10));
    }

    #[test]
    fn failed_requests_have_a_window_of_their_own() {
        let (samples, now) = (LogSampler::default(), Tick::from_micros(7));
        while samples.takes(LogRequests::Sampled, true, now) {}
        assert!(samples.takes(LogRequests::Sampled, false, now));
        assert!(samples.takes(LogRequests::All, true, now));
        assert!(!samples.takes(LogRequests::Off, false, now));
    }
}
