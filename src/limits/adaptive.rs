//! What Chat really lets through, learned from its refusals and alarms: the limit goes down at once and
//! comes back slowly, and never above what is configured.

use std::time::Duration;

use crate::domain::tick::Tick;

/// A refusal takes one part in so many of the limit away...
const CUT_PART: u32 = 20;
/// ...and one in so many if another came shortly before, for then the limit is far off.
const DEEP_CUT_PART: u32 = 4;
/// Refusals so close together have one cause: calls that were under way together.
const ONE_CAUSE: Duration = Duration::from_millis(300);
/// A refusal so soon after a cut means that the cut was too small.
const SHORTLY: Duration = Duration::from_millis(1500);
/// How often the limit grows by one part in [`GROWTH_PART`], at least by 1.
const GROWS_EVERY: Duration = Duration::from_secs(3);
/// See [`GROWS_EVERY`].
const GROWTH_PART: u32 = 100;

/// The limit of one command.
#[derive(Debug)]
pub(crate) struct AdaptiveLimit {
    configured: u32,
    limit: u32,
    /// The last cut.
    cut_at: Tick,
    /// When it grows next, while it is below what is configured.
    grows_at: Tick,
    /// An alarm of Chat's: its limit, and until when it holds.
    alarm: Option<(u32, Tick)>,
}

impl AdaptiveLimit {
    pub(crate) fn new(configured: u32) -> Self {
        Self { configured, limit: configured, cut_at: Tick::NEVER, grows_at: Tick::NEVER, alarm: None }
    }

    /// Calls a second at the most.
    pub(super) fn configured(&self) -> u32 {
        self.configured
    }

    /// Another configured limit: it holds at once, and what was learned under the old one is forgotten,
    /// but not an alarm that is lower.
    pub(super) fn configure(&mut self, configured: u32) {
        if configured != self.configured {
            (self.configured, self.limit, self.cut_at) = (configured, configured, Tick::NEVER);
            self.alarm = self.alarm.filter(|(alarm, _)| *alarm < configured);
        }
    }

    /// Calls a second, at least 1.
    pub(crate) fn limit(&self) -> u32 {
        self.alarm.map_or(self.limit, |(alarm, _)| alarm.min(self.limit))
    }

    /// When [`AdaptiveLimit::review`] is due; `None`: it has nothing to do.
    pub(super) fn next_change_at(&self) -> Option<Tick> {
        let growth = (self.limit < self.configured).then_some(self.grows_at);
        self.alarm.map(|(_, until)| until).into_iter().chain(growth).min()
    }

    /// Chat refused a call for its rate.
    pub(crate) fn on_throttled(&mut self, now: Tick) {
        let since = now.since(self.cut_at);
        if self.cut_at != Tick::NEVER && since < ONE_CAUSE {
            return;
        }
        let part = if self.cut_at != Tick::NEVER && since < SHORTLY { DEEP_CUT_PART } else { CUT_PART };
        // What was let through lately is the limit, not what might have been.
        let limit = self.limit();
        self.limit = limit.saturating_sub((limit / part).max(1)).max(1);
        self.cut_at = now;
        self.grows_at = now.after(GROWS_EVERY);
    }

    /// Chat says what it holds the command to.
    pub(super) fn cap_until(&mut self, limit: u32, until: Tick) {
        self.alarm = (limit < self.configured).then_some((limit.max(1), until));
    }

    /// Lets go what is over, and grows.
    pub(crate) fn on_tick(&mut self, now: Tick) {
        self.alarm = self.alarm.filter(|(_, until)| now < *until);
        if self.limit < self.configured && now >= self.grows_at {
            self.limit = self.limit.saturating_add((self.limit / GROWTH_PART).max(1)).min(self.configured);
            self.grows_at = now.after(GROWS_EVERY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::from_micros(1).after(Duration::from_millis(millis))
    }

    /// Gateways that do not know of each other under one limit, which refuses what is above it in
    /// each second; calls at an even pace. Calls and refusals in the last `counted` of `seconds`.
    fn together(gateways: usize, configured: u32, limit: u32, seconds: u64, counted: u64) -> (u64, u64) {
        let mut learned: Vec<_> = (0..gateways).map(|_| AdaptiveLimit::new(configured)).collect();
        let mut due = vec![0.0_f64; gateways];
        let (mut calls, mut refusals) = (0, 0);
        for second in 0..seconds {
            let mut passed = 0;
            for milli in 0..1000 {
                let now = second * 1000 + milli;
                for (learned, due) in learned.iter_mut().zip(&mut due) {
                    learned.on_tick(at(now));
                    *due = due.max(now as f64 - 20.0);
                    while *due <= now as f64 {
                        *due += 1000.0 / f64::from(learned.limit());
                        let counts = u64::from(second + counted >= seconds);
                        calls += counts;
                        passed += 1;
                        if passed > limit {
                            refusals += counts;
                            learned.on_throttled(at(now));
                        }
                    }
                }
            }
        }
        (calls, refusals)
    }

    #[test]
    fn two_gateways_settle_within_a_tenth_under_a_limit_nobody_told_them() {
        for (configured, limit) in [(200, 100), (200, 40), (1000, 100), (200, 190)] {
            let (calls, refusals) = together(2, configured, limit, 120, 60);
            let most = 60 * u64::from(limit);
            let answered = calls - refusals;
            assert!(answered * 10 >= most * 9, "{answered} of {most} answered, {configured} configured, limit {limit}");
            let allowed = if limit < 100 { 40 } else { 100 };
            assert!(refusals * allowed <= calls, "{refusals} of {calls} refused, limit {limit}");
        }
    }

    #[test]
    fn a_limit_far_off_is_found_in_seconds() {
        let (calls, refusals) = together(1, 200, 20, 10, 3);
        assert!(calls <= 80, "{calls} calls, {refusals} refused in three seconds, limit 20");
    }

    #[test]
    fn it_comes_back_to_what_is_configured_and_not_above() {
        let mut learned = AdaptiveLimit::new(50);
        (0..100).for_each(|n| learned.on_throttled(at(n * 400)));
        assert_eq!(learned.limit(), 1, "and never to nothing");
        let mut now = 40_000;
        while let Some(review) = learned.next_change_at() {
            assert!(now < 1_000_000, "it stays at {}", learned.limit());
            now = now.max(review.micros() / 1000 + 1);
            learned.on_tick(at(now));
        }
        assert_eq!(learned.limit(), 50);
    }

    #[test]
    fn an_alarm_holds_for_its_time_and_lifts_nothing() {
        let mut learned = AdaptiveLimit::new(100);
        learned.cap_until(30, at(10_000));
        assert_eq!((learned.limit(), learned.next_change_at()), (30, Some(at(10_000))));
        learned.on_tick(at(9_999));
        assert_eq!(learned.limit(), 30);
        learned.on_tick(at(10_000));
        assert_eq!((learned.limit(), learned.next_change_at()), (100, None));
        learned.cap_until(0, at(20_000));
        assert_eq!(learned.limit(), 1);
        learned.cap_until(5000, at(20_000));
        assert_eq!((learned.limit(), learned.next_change_at()), (100, None));
    }
}
