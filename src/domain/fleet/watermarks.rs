//! Moments of Redis' clock, by when they were heard of.
//!
//! A fact that goes to Redis must say since when it holds, on Redis' clock. The latest time that Redis had
//! told *before* the lookup was sent is certainly not too late: an eviction after it refuses the fact, even
//! if Redis carries the store out much later, as one that was frozen does.

use std::collections::VecDeque;
use std::time::Duration;

use crate::domain::tick::Tick;

/// How many are remembered...
const STAMPS_MAX: usize = 128;
/// ...no three of them within this, so that they reach back for some seconds.
const APART: Duration = Duration::from_millis(40);

/// What Redis has told of its clock over one connection.
#[derive(Debug, Default)]
pub struct Watermarks(VecDeque<(Tick, u64)>);

impl Watermarks {
    /// Redis said that it was `moment`, in microseconds.
    pub fn note(&mut self, heard: Tick, moment: u64) {
        let before = self.0.len().checked_sub(2).and_then(|at| self.0.get(at));
        if before.is_some_and(|(before, _)| heard.since(*before) < APART) {
            // The newest is always there.
            self.0.pop_back();
        }
        if self.0.len() == STAMPS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((heard, moment));
    }

    /// The latest that had been heard of at `sent`; `None` if nothing had, or it is forgotten.
    pub fn before(&self, sent: Tick) -> Option<u64> {
        self.0.iter().rev().find(|(heard, _)| *heard <= sent).map(|(_, moment)| *moment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::from_micros(1_000_000 + millis * 1000)
    }

    #[test]
    fn the_latest_before_a_moment_counts_and_what_is_too_old_is_forgotten() {
        let mut stamps = Watermarks::default();
        assert_eq!(stamps.before(at(0)), None);
        let last = 10 * STAMPS_MAX as u64;
        for n in 0..=last {
            stamps.note(at(n * 10), 7000 + n);
            assert_eq!(stamps.before(at(n * 10)), Some(7000 + n), "the newest counts at once");
        }
        assert!(stamps.0.len() <= STAMPS_MAX);
        assert_eq!(stamps.before(at(10)), None, "forgotten");
        for sent in (last * 10 - 2000)..(last * 10) {
            let moment = stamps.before(at(sent)).expect("two seconds are remembered");
            let at_the_time = 7000 + sent / 10;
            assert!(moment <= at_the_time && moment + 5 >= at_the_time, "{moment} of {at_the_time}");
        }
    }
}
