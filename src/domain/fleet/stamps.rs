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
/// ...none of them closer to the one before than this, so that they reach back for some seconds.
const APART: Duration = Duration::from_millis(40);

/// What Redis has told of its clock over one connection.
#[derive(Debug, Default)]
pub struct Stamps(VecDeque<(Tick, u64)>);

impl Stamps {
    /// Redis said that it was `moment`, in microseconds.
    pub fn note(&mut self, heard: Tick, moment: u64) {
        if self.0.back().is_some_and(|(last, _)| heard.since(*last) < APART) {
            return;
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
        let mut stamps = Stamps::default();
        assert_eq!(stamps.before(at(0)), None);
        for n in 0..=STAMPS_MAX as u64 {
            stamps.note(at(n * 50), 7000 + n);
            stamps.note(at(n * 50 + 1), 9000 + n);
        }
        assert_eq!(stamps.before(at(49)), None, "forgotten");
        assert_eq!(stamps.before(at(50)), Some(7001));
        assert_eq!(stamps.before(at(149)), Some(7002));
        assert_eq!(stamps.before(at(1_000_000)), Some(7000 + STAMPS_MAX as u64));
    }
}
