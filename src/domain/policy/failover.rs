//! The domain that an app's calls go to, and pauses while no domain can be reached.
//!
//! Only connections decide: DNS lookup, TCP, and TLS show whether a domain can be reached. An ErrorCode does not: a
//! server that sends one has been reached. A proxy that fails does not either (see [`super::proxy`]). While no domain can be reached, calls pause before they connect, so that Chat
//! sees a few connection attempts per second and not one per call.

use std::time::Duration;

use super::proxy::{ConnectFailure, ProxyFailure};
use crate::domain::tick::Tick;

/// How often the primary domain is probed while calls go to the standby domain. Documented: calls are back on the
/// primary domain within 30 s.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(5);
/// Successful probes in a row before calls go to the primary domain again.
const PROBES_NEEDED: u32 = 2;
/// Failures in a row before the first pause.
const FAILURES_BEFORE_PAUSE: u32 = 3;
/// The first pause. Each further pause is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause: a domain that can be reached again is noticed within this time.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// One of the two domains of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The region's own domain, or the configured endpoint.
    Primary,
    /// The region's second domain, or the configured standby.
    Standby,
}

impl Side {
    /// Returns the other side.
    pub(crate) fn other(self) -> Self {
        match self {
            Side::Primary => Side::Standby,
            Side::Standby => Side::Primary,
        }
    }
}

/// The state of an app's connections, shared by all its calls.
#[derive(Debug)]
pub(crate) struct Failover {
    has_standby: bool,
    side: Side,
    /// Failures to reach any side, in a row.
    failures: u32,
    /// No connection is tried before this moment.
    pause_until: Tick,
    probe_at: Tick,
    /// Successful probes in a row.
    successes: u32,
    /// Why the latest connection through the proxy failed; `None` if it did not, or without a proxy.
    proxy_failure: Option<ProxyFailure>,
}

impl Failover {
    /// Returns a state in which calls go to the primary domain.
    pub(crate) fn new(has_standby: bool) -> Self {
        let (pause_until, probe_at) = (Tick::NEVER, Tick::NEVER);
        Self { has_standby, side: Side::Primary, failures: 0, pause_until, probe_at, successes: 0, proxy_failure: None }
    }

    /// Returns the side that calls go to.
    pub(crate) fn side(&self) -> Side {
        self.side
    }

    /// Returns whether the app has a standby domain.
    pub(crate) fn has_standby(&self) -> bool {
        self.has_standby
    }

    /// Returns why the proxy fails.
    pub(crate) fn proxy_failure(&self) -> Option<ProxyFailure> {
        self.proxy_failure
    }

    /// Records whether the proxy opened a tunnel. Returns whether that is news.
    pub(crate) fn set_proxy_failure(&mut self, failure: Option<ProxyFailure>) -> bool {
        std::mem::replace(&mut self.proxy_failure, failure) != failure
    }

    /// Returns how long to wait before a new connection is tried.
    pub(crate) fn pause(&self, now: Tick) -> Duration {
        self.pause_until.since(now)
    }

    /// Records a new connection. The other side is tried only after the current side could not be reached, so calls
    /// move with the connection. Returns whether they moved.
    pub(crate) fn on_connected(&mut self, side: Side, now: Tick) -> bool {
        self.failures = 0;
        self.pause_until = Tick::NEVER;
        let moved = side != self.side;
        self.side = side;
        if moved {
            self.successes = 0;
            self.probe_at = now.after(PROBE_EVERY);
        }
        moved
    }

    /// Records that no side could be reached.
    pub(crate) fn on_failed(&mut self, now: Tick) {
        self.failures = self.failures.saturating_add(1);
        if let Some(pauses) = self.failures.checked_sub(FAILURES_BEFORE_PAUSE) {
            let pause = PAUSE_MIN.saturating_mul(1 << pauses.min(8)).min(PAUSE_MAX);
            self.pause_until = now.after(pause);
        }
    }

    /// Returns whether a probe of the primary domain is due. If so, the calling code must start it.
    pub(crate) fn start_probe(&mut self, now: Tick) -> bool {
        let due = self.side == Side::Standby && now >= self.probe_at;
        if due {
            self.probe_at = now.after(PROBE_EVERY);
        }
        due
    }

    /// Records the end of a probe. Returns whether calls move back to the primary domain. A failure of the proxy says
    /// nothing about the domain.
    pub(crate) fn on_probe(&mut self, result: Result<(), ConnectFailure>) -> bool {
        match result {
            Ok(()) => self.successes += 1,
            Err(ConnectFailure::Domain) => self.successes = 0,
            Err(ConnectFailure::Proxy(_)) => {}
        }
        let back = self.side == Side::Standby && self.successes >= PROBES_NEEDED;
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
    fn calls_return_to_the_primary_after_two_successful_probes() {
        let mut failover = Failover::new(true);
        assert!(failover.on_connected(Side::Standby, at(0)));
        assert_eq!(failover.side(), Side::Standby);
        assert!(!failover.on_connected(Side::Standby, at(1)), "calls have moved already");
        assert!(!failover.start_probe(at(4999)));
        let mut back_at = None;
        let failed = Err(ConnectFailure::Domain);
        let proxy_failed = Err(ConnectFailure::Proxy(ProxyFailure::Unreachable));
        for (n, result) in [Ok(()), failed, Ok(()), proxy_failed, Ok(())].into_iter().enumerate() {
            let now = at(5000 * (n as u64 + 1));
            assert!(failover.start_probe(now) && !failover.start_probe(now), "one probe at a time");
            if failover.on_probe(result) {
                back_at = Some(n);
            }
        }
        assert_eq!((back_at, failover.side()), (Some(4), Side::Primary));
        assert!(!failover.start_probe(at(1_000_000)));
    }

    #[test]
    fn calls_return_at_once_if_the_standby_is_lost() {
        let mut failover = Failover::new(true);
        failover.on_connected(Side::Standby, at(0));
        assert!(failover.on_connected(Side::Primary, at(1)));
        assert_eq!(failover.side(), Side::Primary);
    }

    #[test]
    fn change_of_the_proxy_is_news_once() {
        let mut failover = Failover::new(true);
        assert!(!failover.set_proxy_failure(None));
        for failure in ProxyFailure::ALL {
            assert!(failover.set_proxy_failure(Some(failure)) && !failover.set_proxy_failure(Some(failure)));
            assert_eq!(failover.proxy_failure(), Some(failure));
        }
        assert!(failover.set_proxy_failure(None) && failover.proxy_failure().is_none());
    }

    #[test]
    fn pauses_double_up_to_one_second() {
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
