//! Which of an app's two domains is called, and when nothing is: decided from connections alone.
//!
//! Name lookup, TCP and TLS say whether a domain can be reached. An ErrorCode never does: whoever sends one is
//! there. Who cannot be reached at all is left alone for a moment, so that it sees a few knocks a
//! second and not one for each call.

use std::time::Duration;

use crate::domain::tick::Tick;

/// How often the primary is knocked at while the standby serves. The contract with users: back within 30 s.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(5);
/// So many knocks in a row must be answered before the primary serves again.
const PROBES_WANTED: u32 = 2;
/// After so many failures in a row there are pauses.
const FAILURES_BEFORE_PAUSE: u32 = 3;
/// The first pause; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause: who comes back is seen within this.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The region's own domain, or the configured endpoint.
    Primary,
    /// The region's second domain, or the configured standby.
    Standby,
}

impl Side {
    /// The other one.
    pub(crate) fn other(self) -> Self {
        match self {
            Side::Primary => Side::Standby,
            Side::Standby => Side::Primary,
        }
    }
}

/// The state of one app's way to Chat.
#[derive(Debug)]
pub(crate) struct Failover {
    has_standby: bool,
    side: Side,
    /// Failures of all sides in a row.
    failures: u32,
    /// Until then nobody knocks.
    pause_until: Tick,
    probe_at: Tick,
    probes_won: u32,
}

impl Failover {
    /// The primary serves.
    pub(crate) fn new(has_standby: bool) -> Self {
        let (pause_until, probe_at) = (Tick::NEVER, Tick::NEVER);
        Self { has_standby, side: Side::Primary, failures: 0, pause_until, probe_at, probes_won: 0 }
    }

    /// Where calls go.
    pub(crate) fn side(&self) -> Side {
        self.side
    }

    /// Whether there is another side to try.
    pub(crate) fn has_standby(&self) -> bool {
        self.has_standby
    }

    /// How long to wait before a new connection is tried.
    pub(crate) fn pause(&self, now: Tick) -> Duration {
        self.pause_until.since(now)
    }

    /// A new connection was made, to the other side only after this one could not be reached. Says
    /// whether calls go there only from now on.
    pub(crate) fn on_connected(&mut self, side: Side, now: Tick) -> bool {
        self.failures = 0;
        self.pause_until = Tick::NEVER;
        let moved = side != self.side;
        self.side = side;
        if moved {
            self.probes_won = 0;
            self.probe_at = now.after(PROBE_EVERY);
        }
        moved
    }

    /// No side could be reached.
    pub(crate) fn on_failed(&mut self, now: Tick) {
        self.failures = self.failures.saturating_add(1);
        if let Some(pauses) = self.failures.checked_sub(FAILURES_BEFORE_PAUSE) {
            let pause = PAUSE_MIN.saturating_mul(1 << pauses.min(8)).min(PAUSE_MAX);
            self.pause_until = now.after(pause);
        }
    }

    /// Whether it is time to knock at the primary again; if so, who asks is to do it.
    pub(crate) fn start_probe(&mut self, now: Tick) -> bool {
        let due = self.side == Side::Standby && now >= self.probe_at;
        if due {
            self.probe_at = now.after(PROBE_EVERY);
        }
        due
    }

    /// A knock at the primary was answered or not. Says whether calls go there again.
    pub(crate) fn on_probe(&mut self, answered: bool) -> bool {
        self.probes_won = if answered { self.probes_won + 1 } else { 0 };
        let back = self.side == Side::Standby && self.probes_won >= PROBES_WANTED;
        if back {
            self.side = Side::Primary;
        }
        back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::from_micros(1_000_000).after(Duration::from_millis(millis))
    }

    #[test]
    fn calls_move_to_the_standby_and_come_back_after_two_good_knocks() {
        let mut failover = Failover::new(true);
        assert!(failover.on_connected(Side::Standby, at(0)));
        assert_eq!(failover.side(), Side::Standby);
        assert!(!failover.on_connected(Side::Standby, at(1)), "it has moved already");
        assert!(!failover.start_probe(at(4999)));
        let mut back_at = None;
        for (n, answered) in [true, false, true, true].into_iter().enumerate() {
            let now = at(5000 * (n as u64 + 1));
            assert!(failover.start_probe(now) && !failover.start_probe(now), "one at a time");
            if failover.on_probe(answered) {
                back_at = Some(n);
            }
        }
        assert_eq!((back_at, failover.side()), (Some(3), Side::Primary));
        assert!(!failover.start_probe(at(1_000_000)));
    }

    #[test]
    fn if_the_standby_is_lost_the_primary_serves_at_once() {
        let mut failover = Failover::new(true);
        failover.on_connected(Side::Standby, at(0));
        assert!(failover.on_connected(Side::Primary, at(1)));
        assert_eq!(failover.side(), Side::Primary);
    }

    #[test]
    fn who_cannot_be_reached_is_left_alone_for_longer_and_longer_up_to_a_second() {
        let mut failover = Failover::new(false);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            failover.on_failed(at(0));
            pauses.push(failover.pause(at(0)).as_millis());
        }
        assert_eq!(pauses, [0, 0, 100, 200, 400, 800, 1000, 1000, 1000]);
        (0..100).for_each(|_| failover.on_failed(at(0)));
        assert_eq!(failover.pause(at(400)), Duration::from_millis(600));
        failover.on_connected(Side::Primary, at(500));
        assert_eq!(failover.pause(at(500)), Duration::ZERO);
    }
}
