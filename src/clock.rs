//! The only reader of time and randomness, and what waits for a moment.
//!
//! Everything else takes what it needs as an argument, so that a test can choose it.

#![allow(clippy::disallowed_methods, reason = "this is the one module that may read the clocks")]

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use crate::domain::tick::Tick;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What the ticks begin with: two days. What another replica has learned before this program began has a
/// moment too, and none that counts is older than a day.
const BEFORE_START: Duration = Duration::from_secs(48 * 60 * 60);

/// The monotonic clock.
pub fn now() -> Instant {
    Instant::now()
}

/// The monotonic clock as microseconds, from two days on since the first reading. Never [`Tick::NEVER`].
pub fn tick() -> Tick {
    tick_at(now())
}

/// A moment of the monotonic clock as [`tick`] tells it: who needs a moment in both forms reads the clock once.
pub fn tick_at(moment: Instant) -> Tick {
    let since = BEFORE_START + moment.saturating_duration_since(*START);
    Tick::from_micros(since.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(since.subsec_micros())))
}

/// The system's monotonic clock in microseconds, as other programs of this machine read it.
pub fn monotonic_micros() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |number: i64| u64::try_from(number).unwrap_or_default();
    part(time.tv_sec).saturating_mul(1_000_000).saturating_add(part(time.tv_nsec) / 1000)
}

/// What a future gives before `until`; `None` if that comes first.
///
/// For what seldom waits: only if it does, a timer is made. Then the future is polled twice at once, so one that only
/// yields to others would not.
pub async fn timeout_at_lazy<F: Future>(until: Instant, mut future: Pin<&mut F>) -> Option<F::Output> {
    match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        Poll::Ready(output) => Some(output),
        Poll::Pending => tokio::time::timeout_at(until.into(), future).await.ok(),
    }
}

/// The wall clock: time since 1970-01-01 UTC, 0 if it is set before that.
pub fn unix_now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The `random` of a call: a number to tell calls apart, over the full range of 32 bits. No secret.
pub fn random_u32() -> u32 {
    fastrand::u32(..)
}

/// 128 bits that name a request. No secret.
pub fn request_number() -> u128 {
    fastrand::u128(..)
}

/// 64 bits that name a part of a request's work. No secret.
pub fn span_number() -> u64 {
    fastrand::u64(..)
}

/// 16 bytes nobody can guess, from the operating system.
///
/// # Errors
/// If the operating system has none, in which case the program must not go on.
pub fn os_random() -> Result<[u8; 16], getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn what_is_there_at_once_needs_no_time_and_what_waits_has_until_its_moment() {
        let past = now();
        assert_eq!(timeout_at_lazy(past, pin!(async { 7 })).await, Some(7));
        assert_eq!(timeout_at_lazy(past, pin!(std::future::pending::<u8>())).await, None);
        let soon = now() + Duration::from_millis(20);
        assert_eq!(timeout_at_lazy(soon, pin!(std::future::pending::<u8>())).await, None);
        assert!(now() >= soon);
        let (say, mut hear) = tokio::sync::oneshot::channel();
        let saying = tokio::spawn(async move { say.send(7) });
        assert_eq!(timeout_at_lazy(now() + Duration::from_secs(60), pin!(&mut hear)).await, Some(Ok(7)));
        saying.await.expect("no panic").expect("somebody listens");
    }
}
