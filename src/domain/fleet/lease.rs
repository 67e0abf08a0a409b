//! Permits leased from the fleet's quota.
//!
//! Redis grants *moments* on its own clock, an interval apart: a permit may be used from its moment on,
//! for [`LIFE`], and is given up then. So the calls that leave in any second are those whose moments lie
//! in that second and the life before it, which is what the pace of the fleet is made for; and however
//! long a replica sleeps, it never uses what it got before.
//!
//! The two clocks are never compared. Redis says how far a moment lies from the time of its answer, and
//! that time lies somewhere between our asking and our hearing. A permit is used neither before the latest
//! that its moment can be, nor after the earliest that its life can end; a slow answer makes this span
//! shorter, and one slower than [`LIFE`] is worth nothing.

use std::collections::VecDeque;
use std::time::Duration;

use crate::domain::tick::Tick;

/// How long after its moment a permit may be used.
pub const LIFE: Duration = Duration::from_millis(40);
/// How far ahead Redis grants moments. More would let a replica reserve for long what others need.
pub const AHEAD: Duration = Duration::from_millis(250);
/// Most permits of one lease, which is also the most that may be at hand.
pub const LEASE_MAX: usize = 8;

/// The permits at hand, soonest first.
#[derive(Debug, Default)]
pub struct Leases(VecDeque<Span>);

/// When a permit may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    from: Tick,
    until: Tick,
}

/// What there is for one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawn {
    /// A permit; it is taken.
    Permit,
    /// None yet, but one at this moment.
    From(Tick),
    /// None.
    Nothing,
}

impl Leases {
    /// Adds what Redis has granted: moments as distances from the time of its answer, which was asked for
    /// at `asked` and heard at `heard`. What is too late already, or too much, is left out.
    pub fn add(&mut self, asked: Tick, heard: Tick, moments: impl IntoIterator<Item = Duration>) {
        for moment in moments {
            let span = Span { from: heard.after(moment), until: asked.after(moment).after(LIFE) };
            if span.from < span.until && self.0.len() < LEASE_MAX {
                self.0.push_back(span);
            }
        }
    }

    /// Takes a permit. Those whose life is over are given up.
    pub fn draw(&mut self, now: Tick) -> Drawn {
        self.0.retain(|span| now < span.until);
        match self.0.front() {
            Some(span) if span.from <= now => {
                self.0.pop_front();
                Drawn::Permit
            }
            Some(span) => Drawn::From(span.from),
            None => Drawn::Nothing,
        }
    }

    /// Gives all up, as when Redis is lost.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::from_micros(1_000_000 + millis * 1000)
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_permit_is_used_from_its_moment_on_and_given_up_when_its_life_is_over() {
        let mut leases = Leases::default();
        leases.add(at(0), at(2), [ms(0), ms(10)]);
        assert_eq!(leases.draw(at(1)), Drawn::From(at(2)), "its moment may be as late as that");
        assert_eq!(leases.draw(at(2)), Drawn::Permit);
        assert_eq!(leases.draw(at(3)), Drawn::From(at(12)));
        assert_eq!(leases.draw(at(50)), Drawn::Nothing, "its life may have ended as early as that");
    }

    #[test]
    fn what_was_under_way_for_longer_than_a_life_is_worth_nothing() {
        let mut leases = Leases::default();
        leases.add(at(0), at(40), [ms(0), ms(200)]);
        assert_eq!(leases.draw(at(40)), Drawn::Nothing);
        leases.add(at(0), at(39), [ms(0)]);
        assert_eq!(leases.draw(at(39)), Drawn::Permit);
    }

    #[test]
    fn no_more_than_a_lease_is_at_hand() {
        let mut leases = Leases::default();
        for _ in 0..3 {
            leases.add(at(0), at(1), vec![ms(0); LEASE_MAX]);
        }
        assert_eq!((0..100).filter(|_| leases.draw(at(1)) == Drawn::Permit).count(), LEASE_MAX);
        leases.add(at(0), at(1), [ms(0)]);
        leases.clear();
        assert_eq!(leases.draw(at(1)), Drawn::Nothing);
    }
}
