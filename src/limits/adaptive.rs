//! The adaptive limit of one command: how many calls per second Chat really accepts.
//!
//! The limit starts at the configured one. It drops as soon as Chat throttles a call or sends a rate-limit alert, and
//! it recovers slowly. It never exceeds the configured limit.

use std::time::Duration;

use crate::domain::tick::Tick;

/// A throttled call lowers the limit by this fraction: one twentieth.
const CUT_DIVISOR: u32 = 20;
/// A throttled call soon after a cut lowers it by this fraction: one quarter. The limit is then far too high.
const DEEP_CUT_DIVISOR: u32 = 4;
/// Throttled calls within this time of a cut have the same cause: they were in flight together.
const SAME_CAUSE: Duration = Duration::from_millis(300);
/// A throttled call within this time of a cut means that the cut was too small.
const DEEP_CUT_WITHIN: Duration = Duration::from_millis(1500);
/// The time between two steps of growth.
const GROWTH_INTERVAL: Duration = Duration::from_secs(3);
/// A step raises the limit by this fraction, one hundredth, and by at least 1.
const GROWTH_DIVISOR: u32 = 100;

/// The adaptive limit of one command.
#[derive(Debug)]
pub(crate) struct AdaptiveLimit {
    configured: u32,
    limit: u32,
    /// When the limit was last cut.
    cut_at: Tick,
    /// When the next step of growth is due, while the limit is below the configured one.
    grows_at: Tick,
    cap: Option<Cap>,
}

/// A temporary limit, set by a rate-limit alert.
#[derive(Debug, Clone, Copy)]
struct Cap {
    limit: u32,
    until: Tick,
}

impl AdaptiveLimit {
    pub(crate) fn new(configured: u32) -> Self {
        Self { configured, limit: configured, cut_at: Tick::NEVER, grows_at: Tick::NEVER, cap: None }
    }

    /// Returns the configured limit, in calls per second.
    pub(super) fn configured(&self) -> u32 {
        self.configured
    }

    /// Sets another configured limit. It applies at once and discards what was learned under the old one, except for
    /// a lower cap.
    pub(super) fn configure(&mut self, configured: u32) {
        if configured != self.configured {
            (self.configured, self.limit, self.cut_at) = (configured, configured, Tick::NEVER);
            self.cap = self.cap.filter(|cap| cap.limit < configured);
        }
    }

    /// Returns the current limit in calls per second, at least 1.
    pub(crate) fn limit(&self) -> u32 {
        self.cap.map_or(self.limit, |cap| cap.limit.min(self.limit))
    }

    /// Returns when [`AdaptiveLimit::on_tick`] is due; `None` if the limit is the configured one.
    pub(super) fn next_change_at(&self) -> Option<Tick> {
        let growth = (self.limit < self.configured).then_some(self.grows_at);
        self.cap.map(|cap| cap.until).into_iter().chain(growth).min()
    }

    /// Whether a new limit would behave exactly like this one: no cap, no cut, and none so recent that it deepens
    /// the next one.
    pub(super) fn is_settled(&self, now: Tick) -> bool {
        let cut_matters = self.cut_at != Tick::NEVER && now.since(self.cut_at) < DEEP_CUT_WITHIN;
        self.next_change_at().is_none() && !cut_matters
    }

    /// Whether throttling has lowered the limit, and it has not recovered yet.
    pub(super) fn is_cut(&self) -> bool {
        self.limit < self.configured
    }

    /// Lowers the limit after Chat throttled a call.
    pub(crate) fn on_throttled(&mut self, now: Tick) {
        let since = now.since(self.cut_at);
        if self.cut_at != Tick::NEVER && since < SAME_CAUSE {
            return;
        }
        let is_deep = self.cut_at != Tick::NEVER && since < DEEP_CUT_WITHIN;
        let divisor = if is_deep { DEEP_CUT_DIVISOR } else { CUT_DIVISOR };
        // The cut starts from the limit that applied, which a cap may have lowered.
        let limit = self.limit();
        self.limit = limit.saturating_sub((limit / divisor).max(1)).max(1);
        self.cut_at = now;
        self.grows_at = now.after(GROWTH_INTERVAL);
    }

    /// Caps the limit, which Chat reported, until an instant.
    pub(super) fn cap_until(&mut self, limit: u32, until: Tick) {
        self.cap = (limit < self.configured).then_some(Cap { limit: limit.max(1), until });
    }

    /// Whether a cap lowers the limit.
    pub(super) fn is_capped(&self, now: Tick) -> bool {
        self.cap.is_some_and(|cap| now < cap.until)
    }

    /// Drops an expired cap, and grows if a step is due.
    pub(crate) fn on_tick(&mut self, now: Tick) {
        self.cap = self.cap.filter(|cap| now < cap.until);
        if self.limit < self.configured && now >= self.grows_at {
            self.limit = self.limit.saturating_add((self.limit / GROWTH_DIVISOR).max(1)).min(self.configured);
            self.grows_at = now.after(GROWTH_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::from_micros(1).after(Duration::from_millis(millis))
    }

    /// A run of independent gateways against one limit of Chat, which throttles every call above it in each second.
    struct Run {
        gateways: usize,
        configured: u32,
        limit: u32,
        seconds: u64,
        /// Only the last seconds are counted.
        counted: u64,
    }

    impl Run {
        /// Sends calls at an even pace. Returns the counted calls and how many of them were throttled.
        fn calls_and_throttled(&self) -> (u64, u64) {
            let mut limits: Vec<_> = (0..self.gateways).map(|_| AdaptiveLimit::new(self.configured)).collect();
            let mut due = vec![0.0_f64; self.gateways];
            let (mut calls, mut throttled) = (0, 0);
            for second in 0..self.seconds {
                let mut passed = 0;
                let counts = u64::from(second + self.counted >= self.seconds);
                for milli in 0..1000 {
                    let now = second * 1000 + milli;
                    for (adaptive, due) in limits.iter_mut().zip(&mut due) {
                        adaptive.on_tick(at(now));
                        *due = due.max(now as f64 - 20.0);
                        while *due <= now as f64 {
                            *due += 1000.0 / f64::from(adaptive.limit());
                            calls += counts;
                            passed += 1;
                            if passed > self.limit {
                                throttled += counts;
                                adaptive.on_throttled(at(now));
                            }
                        }
                    }
                }
            }
            (calls, throttled)
        }
    }

    #[test]
    fn two_gateways_settle_within_ten_percent_of_an_unknown_limit() {
        for (configured, limit) in [(200, 100), (200, 40), (1000, 100), (200, 190)] {
            let run = Run { gateways: 2, configured, limit, seconds: 120, counted: 60 };
            let (calls, throttled) = run.calls_and_throttled();
            let most = 60 * u64::from(limit);
            let answered = calls - throttled;
            assert!(answered * 10 >= most * 9, "{answered} of {most} answered, {configured} configured, limit {limit}");
            let allowed = if limit < 100 { 40 } else { 100 };
            assert!(throttled * allowed <= calls, "{throttled} of {calls} throttled, limit {limit}");
        }
    }

    #[test]
    fn much_lower_limit_is_found_within_seconds() {
        let run = Run { gateways: 1, configured: 200, limit: 20, seconds: 10, counted: 3 };
        let (calls, throttled) = run.calls_and_throttled();
        assert!(calls <= 80, "{calls} calls, {throttled} throttled in three seconds, limit 20");
    }

    #[test]
    fn limit_recovers_to_the_configured_one_and_no_further() {
        let mut adaptive = AdaptiveLimit::new(50);
        (0..100).for_each(|n| adaptive.on_throttled(at(n * 400)));
        assert_eq!(adaptive.limit(), 1, "at least one call per second");
        let mut now = 40_000;
        while let Some(change_at) = adaptive.next_change_at() {
            assert!(now < 1_000_000 && !adaptive.is_settled(at(now)), "it stays at {}", adaptive.limit());
            now = now.max(change_at.micros() / 1000 + 1);
            adaptive.on_tick(at(now));
        }
        assert_eq!(adaptive.limit(), 50);
        assert!(adaptive.is_settled(at(now)));
    }

    #[test]
    fn cap_ends_on_time_and_never_raises_the_limit() {
        let mut adaptive = AdaptiveLimit::new(100);
        adaptive.cap_until(30, at(10_000));
        assert_eq!((adaptive.limit(), adaptive.next_change_at()), (30, Some(at(10_000))));
        adaptive.on_tick(at(9_999));
        assert_eq!(adaptive.limit(), 30);
        assert!(!adaptive.is_settled(at(9_999)) && adaptive.is_capped(at(9_999)) && !adaptive.is_capped(at(10_000)));
        adaptive.on_tick(at(10_000));
        assert_eq!((adaptive.limit(), adaptive.next_change_at()), (100, None));
        adaptive.cap_until(0, at(20_000));
        assert_eq!(adaptive.limit(), 1);
        adaptive.cap_until(5000, at(20_000));
        assert_eq!((adaptive.limit(), adaptive.next_change_at()), (100, None));
    }
}
