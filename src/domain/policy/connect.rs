//! The order in which one call tries the domains of its app: probe, pause, current side, other side.
//!
//! A [`ConnectSession`] decides and does nothing else: no socket, no clock, no waiting. The state that all calls of the
//! app share is in [`Failover`].

use std::time::Duration;

use super::failover::{Failover, Side};
use super::proxy::ConnectFailure;
use crate::domain::tick::Tick;

/// One call's search for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectSession {
    /// The side that was tried last; `None` before the first attempt.
    tried: Option<Side>,
    /// Whether `tried` is the second side.
    is_last: bool,
}

/// What the driver does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectStep {
    /// Start a probe of the primary domain in the background, then continue with [`ConnectSession::on_probe_started`].
    /// The result of the probe goes to [`Failover::on_probe`].
    Probe,
    /// Wait this long, then continue with [`ConnectSession::on_paused`].
    Pause(Duration),
    /// Get a connection to this side, then continue with [`ConnectSession::on_connected`] or
    /// [`ConnectSession::on_failed`].
    Connect(Side),
    /// Return the failure of the side that was tried first: the session has ended.
    Fail,
}

impl ConnectSession {
    /// Starts a search. If a probe of the primary domain is due, this call starts it.
    pub(crate) fn start(failover: &mut Failover, now: Tick) -> (Self, ConnectStep) {
        let mut session = Self { tried: None, is_last: false };
        let is_due = failover.start_probe(now);
        let step = if is_due { ConnectStep::Probe } else { session.on_probe_started(failover, now) };
        (session, step)
    }

    /// Returns what follows the start of a probe. After failures in a row, it is a pause.
    pub(crate) fn on_probe_started(&mut self, failover: &Failover, now: Tick) -> ConnectStep {
        match failover.pause(now) {
            Duration::ZERO => self.on_paused(failover),
            pause => ConnectStep::Pause(pause),
        }
    }

    /// Returns the first side to try, after the pause: calls may have moved to the other side meanwhile.
    pub(crate) fn on_paused(&mut self, failover: &Failover) -> ConnectStep {
        let side = failover.side();
        (self.tried, self.is_last) = (Some(side), !failover.has_standby());
        ConnectStep::Connect(side)
    }

    /// Ends the search with a connection to the side that was tried. A reused connection says nothing about whether
    /// the domain can be reached now. Returns whether calls moved to this side.
    pub(crate) fn on_connected(self, reused: bool, failover: &mut Failover, now: Tick) -> bool {
        self.tried.is_some_and(|side| !reused && failover.on_connected(side, now))
    }

    /// Returns what follows when there is no connection to the side that was tried. The other side is tried only if the
    /// failure is the domain's: a failure of the proxy would meet both sides.
    pub(crate) fn on_failed(&mut self, failure: ConnectFailure, failover: &mut Failover, now: Tick) -> ConnectStep {
        match self.tried {
            Some(side) if !self.is_last && failure == ConnectFailure::Domain => {
                (self.tried, self.is_last) = (Some(side.other()), true);
                ConnectStep::Connect(side.other())
            }
            _ => {
                failover.on_failed(now);
                ConnectStep::Fail
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::failover::PROBE_EVERY;
    use super::super::proxy::ProxyFailure;
    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::from_micros(1_000_000).after(Duration::from_millis(millis))
    }

    #[test]
    fn other_side_is_tried_after_the_current_side() {
        let mut failover = Failover::new(true);
        let (mut session, step) = ConnectSession::start(&mut failover, at(0));
        assert_eq!(step, ConnectStep::Connect(Side::Primary));
        assert_eq!(
            session.on_failed(ConnectFailure::Domain, &mut failover, at(1)),
            ConnectStep::Connect(Side::Standby)
        );
        assert!(session.on_connected(false, &mut failover, at(2)), "calls move to the standby");
        let (mut session, step) = ConnectSession::start(&mut failover, at(3));
        assert_eq!(step, ConnectStep::Connect(Side::Standby));
        assert_eq!(
            session.on_failed(ConnectFailure::Domain, &mut failover, at(4)),
            ConnectStep::Connect(Side::Primary)
        );
        assert!(session.on_connected(false, &mut failover, at(5)), "calls move back");
    }

    #[test]
    fn failure_of_all_sides_counts_once() {
        let mut failover = Failover::new(true);
        for _ in 0..3 {
            let (mut session, step) = ConnectSession::start(&mut failover, at(0));
            assert!(matches!(step, ConnectStep::Connect(_)), "{step:?}");
            assert!(matches!(session.on_failed(ConnectFailure::Domain, &mut failover, at(0)), ConnectStep::Connect(_)));
            assert_eq!(session.on_failed(ConnectFailure::Domain, &mut failover, at(0)), ConnectStep::Fail);
        }
        let (_, step) = ConnectSession::start(&mut failover, at(0));
        assert_eq!(step, ConnectStep::Pause(Duration::from_millis(100)));
    }

    #[test]
    fn app_without_standby_tries_one_side() {
        let mut failover = Failover::new(false);
        let (mut session, step) = ConnectSession::start(&mut failover, at(0));
        assert_eq!(step, ConnectStep::Connect(Side::Primary));
        assert_eq!(session.on_failed(ConnectFailure::Domain, &mut failover, at(0)), ConnectStep::Fail);
    }

    #[test]
    fn proxy_failure_ends_the_search_and_moves_no_calls() {
        for failure in ProxyFailure::ALL.map(ConnectFailure::Proxy) {
            let mut failover = Failover::new(true);
            for _ in 0..3 {
                let (mut session, step) = ConnectSession::start(&mut failover, at(0));
                assert_eq!(step, ConnectStep::Connect(Side::Primary));
                assert_eq!(session.on_failed(failure, &mut failover, at(0)), ConnectStep::Fail);
            }
            assert_eq!(failover.side(), Side::Primary);
            let (_, step) = ConnectSession::start(&mut failover, at(0));
            assert_eq!(step, ConnectStep::Pause(Duration::from_millis(100)), "the proxy gets pauses, too");
        }
        // The domain failed first, and the proxy while the other side was tried.
        let mut failover = Failover::new(true);
        let (mut session, _) = ConnectSession::start(&mut failover, at(0));
        assert_eq!(
            session.on_failed(ConnectFailure::Domain, &mut failover, at(0)),
            ConnectStep::Connect(Side::Standby)
        );
        let failure = ConnectFailure::Proxy(ProxyFailure::Unreachable);
        assert_eq!(session.on_failed(failure, &mut failover, at(0)), ConnectStep::Fail);
        assert_eq!(failover.side(), Side::Primary);
    }

    #[test]
    fn one_call_starts_the_probe_when_it_is_due() {
        let mut failover = Failover::new(true);
        failover.on_connected(Side::Standby, at(0));
        let due = at(PROBE_EVERY.as_millis() as u64);
        let (mut session, step) = ConnectSession::start(&mut failover, due);
        assert_eq!(step, ConnectStep::Probe);
        assert_eq!(session.on_probe_started(&failover, due), ConnectStep::Connect(Side::Standby));
        let (_, step) = ConnectSession::start(&mut failover, due);
        assert_eq!(step, ConnectStep::Connect(Side::Standby));
    }

    #[test]
    fn side_is_chosen_after_the_pause() {
        let mut failover = Failover::new(true);
        (0..3).for_each(|_| failover.on_failed(at(0)));
        let (mut session, step) = ConnectSession::start(&mut failover, at(0));
        assert!(matches!(step, ConnectStep::Pause(_)), "{step:?}");
        failover.on_connected(Side::Standby, at(50));
        assert_eq!(session.on_paused(&failover), ConnectStep::Connect(Side::Standby));
    }

    #[test]
    fn reused_connection_does_not_end_the_pauses() {
        let mut failover = Failover::new(false);
        let (session, _) = ConnectSession::start(&mut failover, at(0));
        (0..3).for_each(|_| failover.on_failed(at(0)));
        assert!(!session.on_connected(true, &mut failover, at(1)));
        assert_eq!(failover.pause(at(0)), Duration::from_millis(100));
        assert!(!session.on_connected(false, &mut failover, at(1)), "calls went there already");
        assert_eq!(failover.pause(at(1)), Duration::ZERO);
    }
}
