//! Permits leased from the fleet's quota.
//!
//! Redis grants *moments* on its own clock, an interval apart. A permit is valid from its moment on, for [`LIFE`], and
//! is dropped after that. So the calls that leave in any second have their moments in that second or within [`LIFE`]
//! before it, and the fleet's rate limiter allows for that. A replica that was suspended never uses an old permit.
//!
//! The two clocks are never compared. Redis reports how far a moment is from the time of its response, and that time is
//! between sending the request and receiving the response. A permit is not used before the latest possible time of its
//! moment, nor after the earliest possible end of its life. A slow response shortens this span; a permit from a
//! response slower than [`LIFE`] is useless.

use std::collections::VecDeque;
use std::time::Duration;

use crate::domain::tick::Tick;

/// How long after its moment a permit is valid.
pub(crate) const LIFE: Duration = Duration::from_millis(40);
/// How far ahead Redis grants moments. A larger value would let a replica reserve permits that others need.
pub(crate) const AHEAD: Duration = Duration::from_millis(250);
/// Maximum number of permits in a lease, and that a replica holds.
pub(crate) const LEASE_MAX: usize = 8;

/// The pace of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The time between two permits.
    pub interval: Duration,
    /// How many permits an idle quota grants at once, at least 1.
    pub burst: u32,
}

/// The permits that a replica holds, earliest first.
#[derive(Debug, Default)]
pub(crate) struct Leases(VecDeque<Span>);

/// The time in which a permit is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    from: Tick,
    until: Tick,
}

/// The result of [`Leases::draw`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drawn {
    /// A permit, which is used up now.
    Permit,
    /// No permit yet; the next one is valid from this time.
    From(Tick),
    /// No permit.
    Nothing,
}

impl Leases {
    /// Adds the permits that Redis granted. `moments` are relative to the time of its response, to a request sent at
    /// `sent` and answered at `received`. Expired permits, and those beyond [`LEASE_MAX`], are left out.
    pub(crate) fn add(&mut self, sent: Tick, received: Tick, moments: impl IntoIterator<Item = Duration>) {
        for moment in moments {
            let span = Span { from: received.after(moment), until: sent.after(moment).after(LIFE) };
            if span.from < span.until && self.0.len() < LEASE_MAX {
                self.0.push_back(span);
            }
        }
    }

    /// Takes a permit. Drops expired ones.
    pub(crate) fn draw(&mut self, now: Tick) -> Drawn {
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

    /// Drops all permits, for example when Redis is lost.
    pub(crate) fn clear(&mut self) {
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
    fn permit_is_valid_from_its_moment_until_its_life_ends() {
        let mut leases = Leases::default();
        leases.add(at(0), at(2), [ms(0), ms(10)]);
        assert_eq!(leases.draw(at(1)), Drawn::From(at(2)), "the latest possible moment");
        assert_eq!(leases.draw(at(2)), Drawn::Permit);
        assert_eq!(leases.draw(at(3)), Drawn::From(at(12)));
        assert_eq!(leases.draw(at(50)), Drawn::Nothing, "the earliest possible end of its life");
    }

    #[test]
    fn permits_of_a_slow_response_are_dropped() {
        let mut leases = Leases::default();
        leases.add(at(0), at(40), [ms(0), ms(200)]);
        assert_eq!(leases.draw(at(40)), Drawn::Nothing);
        leases.add(at(0), at(39), [ms(0)]);
        assert_eq!(leases.draw(at(39)), Drawn::Permit);
    }

    #[test]
    fn held_permits_are_bounded() {
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
