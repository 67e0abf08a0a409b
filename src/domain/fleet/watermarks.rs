//! Times of Redis' clock, by when this replica received them.
//!
//! A pair stored in Redis needs a time on Redis' clock that is not later than its lookup was sent. The latest time that
//! was received *before* the lookup was sent is certainly not too late. An invalidation after it voids the pair, even if
//! Redis executes the store much later, for example after it was suspended.

use std::collections::VecDeque;
use std::time::Duration;

use crate::domain::tick::Tick;

/// Maximum number of stored times.
const STAMPS_MAX: usize = 128;
/// No three stored times are within this duration, so that they span some seconds.
const APART: Duration = Duration::from_millis(40);

/// The times of Redis' clock received over one connection: when, and the time in microseconds.
#[derive(Debug, Default)]
pub(crate) struct Watermarks(VecDeque<(Tick, u64)>);

impl Watermarks {
    /// Records that a response received at `received` reported the time `moment`, in microseconds.
    pub(crate) fn note(&mut self, received: Tick, moment: u64) {
        let before = self.0.len().checked_sub(2).and_then(|at| self.0.get(at));
        if before.is_some_and(|(before, _)| received.since(*before) < APART) {
            // Replace the newest, so that the latest time is always stored.
            self.0.pop_back();
        }
        if self.0.len() == STAMPS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((received, moment));
    }

    /// Returns the latest time received at `sent` or before; `None` if there is none, or it is no longer stored.
    pub(crate) fn before(&self, sent: Tick) -> Option<u64> {
        self.0.iter().rev().find(|(received, _)| *received <= sent).map(|(_, moment)| *moment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::from_micros(1_000_000 + millis * 1000)
    }

    #[test]
    fn latest_time_before_a_lookup_is_found() {
        let mut watermarks = Watermarks::default();
        assert_eq!(watermarks.before(at(0)), None);
        let last = 10 * STAMPS_MAX as u64;
        for n in 0..=last {
            watermarks.note(at(n * 10), 7000 + n);
            assert_eq!(watermarks.before(at(n * 10)), Some(7000 + n), "the newest is stored");
        }
        assert!(watermarks.0.len() <= STAMPS_MAX);
        assert_eq!(watermarks.before(at(10)), None, "no longer stored");
        for sent in (last * 10 - 2000)..(last * 10) {
            let moment = watermarks.before(at(sent)).expect("two seconds are stored");
            let at_the_time = 7000 + sent / 10;
            assert!(moment <= at_the_time && moment + 5 >= at_the_time, "{moment} of {at_the_time}");
        }
    }
}
