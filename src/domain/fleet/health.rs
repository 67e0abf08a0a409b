//! The health of the connection to Redis, and the backoff of reconnects.

use std::time::Duration;

use crate::domain::tick::Tick;

/// From this duration on, a response counts as slow. A leased permit lives little longer.
const SLOW: Duration = Duration::from_millis(30);
/// If all responses are slow for this long, the connection counts as lost.
const SLOW_MAX: Duration = Duration::from_millis(60);
/// How many fast responses in a row a new connection must give.
const PROBES: u32 = 3;
/// How long a new connection is probed if responses are slow. It is half the timeout of an attempt to connect, so that
/// the cause is known before that timeout.
const PROBES_MAX: Duration = Duration::from_millis(500);
/// After a connection that lasted this long, the pauses between attempts start from the shortest one.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// The first and the longest pause before a reconnect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The health of one connection.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// The first slow response since the last fast one.
    slow_since: Option<Tick>,
}

impl Health {
    /// Records the duration of a response. Returns whether the connection is still healthy.
    pub(crate) fn answered(&mut self, took: Duration, now: Tick) -> bool {
        if took < SLOW {
            self.slow_since = None;
            return true;
        }
        now.since(*self.slow_since.get_or_insert(now)) < SLOW_MAX
    }
}

/// The responses to the probes of a new connection. A slow one does not end it, because the replica may itself have been
/// busy for a moment, but restarts the count.
#[derive(Debug)]
pub(crate) struct Probes {
    begun: Tick,
    fast: u32,
}

/// What the probes of a new connection say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probed {
    /// Redis is fast.
    Fast,
    /// Redis is slow.
    Slow,
    /// Another probe is needed.
    Unclear,
}

impl Probes {
    /// Begins the probes of a connection.
    pub(crate) const fn new(now: Tick) -> Self {
        Self { begun: now, fast: 0 }
    }

    /// Records the duration of a response.
    pub(crate) fn answered(&mut self, took: Duration, now: Tick) -> Probed {
        self.fast = if took < SLOW { self.fast + 1 } else { 0 };
        match self.fast {
            PROBES.. => Probed::Fast,
            0 if now.since(self.begun) >= PROBES_MAX => Probed::Slow,
            _ => Probed::Unclear,
        }
    }
}

/// Returns the number of failed attempts and short-lived connections in a row after one that lasted `span`.
pub(crate) fn failures_after(before: u32, span: Duration) -> u32 {
    if span >= STABLE_AFTER { 0 } else { before.saturating_add(1) }
}

/// Returns the pause before attempt `tried + 1`: between half and all of a duration that doubles each time, up to 2 s.
/// `random` spreads the replicas.
pub(crate) fn pause(tried: u32, random: u32) -> Duration {
    let (first, longest) = PAUSES;
    let whole = first.saturating_mul(1 << tried.min(10)).min(longest);
    whole.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_is_unhealthy_after_60_ms_of_slow_responses() {
        let (fast, slow) = (Duration::from_millis(1), SLOW);
        let at = |millis: u64| Tick::from_micros(1_000_000 + millis * 1000);
        let mut health = Health::default();
        for (took, now) in [(slow, 0), (slow, 0), (slow, 59), (fast, 60), (slow, 61), (slow, 120)] {
            assert!(health.answered(took, at(now)), "{now}");
        }
        assert!(!health.answered(slow, at(121)));
    }

    #[test]
    fn new_connection_needs_three_fast_responses_in_a_row_within_half_a_second() {
        let (fast, slow) = (Duration::from_millis(29), SLOW);
        let at = |millis: u64| Tick::from_micros(1_000_000 + millis * 1000);
        let verdict = |responses: &[(Duration, u64)]| {
            let mut probes = Probes::new(at(0));
            let verdicts = responses.iter().map(|(took, now)| probes.answered(*took, at(*now)));
            let verdicts: Vec<_> = verdicts.collect();
            let (last, earlier) = verdicts.split_last().expect("a response");
            assert!(earlier.iter().all(|verdict| *verdict == Probed::Unclear), "{earlier:?}");
            *last
        };
        assert_eq!(verdict(&[(fast, 1), (fast, 2), (fast, 3)]), Probed::Fast);
        assert_eq!(verdict(&[(slow, 30), (fast, 31), (fast, 32)]), Probed::Unclear);
        assert_eq!(verdict(&[(fast, 1), (slow, 40), (fast, 41), (fast, 42), (fast, 43)]), Probed::Fast);
        assert_eq!(verdict(&[(slow, 499), (slow, 500)]), Probed::Slow);
        assert_eq!(verdict(&[(slow, 499), (fast, 500), (fast, 501), (fast, 502)]), Probed::Fast);
    }

    #[test]
    fn only_a_stable_connection_resets_the_pauses() {
        assert_eq!(failures_after(3, Duration::from_millis(9_999)), 4);
        assert_eq!(failures_after(3, STABLE_AFTER), 0);
    }

    #[test]
    fn pauses_double_up_to_two_seconds() {
        assert_eq!(pause(0, 0), Duration::from_millis(25));
        assert_eq!(pause(0, u32::MAX), Duration::from_millis(50));
        assert_eq!(pause(2, u32::MAX), Duration::from_millis(200));
        assert_eq!(pause(u32::MAX, u32::MAX), Duration::from_secs(2));
    }
}
