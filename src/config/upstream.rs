//! `[upstream]`: calls to Chat.

use std::time::Duration;

use super::proxy::Proxy;
use super::section::Section;
use super::units::{count, duration, fraction, hours, millis, show_duration, size};

/// `[upstream]`: calls to Chat.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// Timeout of a caller's request, queueing and attempts included, 10 ms to 5 min. Default 5 s.
    pub timeout: Duration,
    /// Timeout of one attempt, 10 ms to `timeout`. Default 3.5 s (or `timeout`), because Chat's own timeout is 3 s.
    pub attempt_timeout: Duration,
    /// Timeout of a connection, with DNS, the proxy, and the TLS handshake, 10 ms to `attempt_timeout`. Default 1 s (or
    /// `attempt_timeout`).
    pub connect_timeout: Duration,
    /// Maximum number of attempts per call, 1 to 10. Default 3.
    pub attempts: u32,
    /// Average number of retries per call, 0 to 1. Default 0.1.
    pub retry_budget: f64,
    /// Maximum size of a response in bytes, 1 KiB to 64 MiB. Default 8 MiB.
    pub max_answer: usize,
    /// Maximum number of calls in flight per app, 1 to 10,000. Default 64.
    pub max_in_flight: usize,
    /// Maximum age of a connection, so that DNS changes take effect, 100 ms to 24 h. Default 5 min.
    pub connection_max_age: Duration,
    /// How long an idle connection is kept, 100 ms to 1 h. Default 50 s.
    pub idle_timeout: Duration,
    /// The egress proxy; `None`: calls go out directly.
    pub proxy: Option<Proxy>,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_millis(3500),
            connect_timeout: Duration::from_secs(1),
            attempts: 3,
            retry_budget: 0.1,
            max_answer: 8 << 20,
            max_in_flight: 64,
            connection_max_age: Duration::from_secs(300),
            idle_timeout: Duration::from_secs(50),
            proxy: None,
        }
    }
}

impl Upstream {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let mut upstream = Self::default();
        let timeout = || duration(millis(10)..=millis(300_000));
        section.read("timeout", &mut upstream.timeout, timeout());
        section.read("attempt_timeout", &mut upstream.attempt_timeout, timeout());
        section.read("connect_timeout", &mut upstream.connect_timeout, timeout());
        section.read("max_answer", &mut upstream.max_answer, size(1 << 10..=64 << 20));
        section.read("max_in_flight", &mut upstream.max_in_flight, count(1..=10_000));
        section.read("connection_max_age", &mut upstream.connection_max_age, duration(millis(100)..=hours(24)));
        section.read("idle_timeout", &mut upstream.idle_timeout, duration(millis(100)..=hours(1)));
        limit_to(&section, "attempt_timeout", &mut upstream.attempt_timeout, "timeout", upstream.timeout);
        limit_to(
            &section,
            "connect_timeout",
            &mut upstream.connect_timeout,
            "attempt_timeout",
            upstream.attempt_timeout,
        );
        let mut attempts = upstream.attempts as usize;
        section.read("attempts", &mut attempts, count(1..=10));
        upstream.attempts = attempts as u32;
        section.read("retry_budget", &mut upstream.retry_budget, fraction(0.0..=1.0));
        upstream.proxy = Proxy::read(&mut section);
        section.finish();
        upstream
    }
}

/// Limits the timeout of a part to the timeout of the whole. A default is lowered silently; a longer value in the file
/// is a problem.
fn limit_to(section: &Section<'_>, key: &str, timeout: &mut Duration, whole_key: &str, whole: Duration) {
    if *timeout <= whole {
        return;
    }
    if section.has(key) {
        let message = format_args!("exceeds upstream.{whole_key}; use at most {}", show_duration(whole));
        section.wrong_value(key, message);
    }
    *timeout = whole;
}
