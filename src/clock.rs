//! The only reader of clocks and random numbers, and a timeout that costs nothing until it waits.
//!
//! All other code takes times and random numbers as arguments, so that tests can choose them.

#![allow(clippy::disallowed_methods, reason = "only this module may read the clocks")]

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use crate::domain::tick::Tick;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The tick of the first reading: two days. A pair that another replica fetched before this process started has a tick,
/// too, and no valid pair is older than one day.
const BEFORE_START: Duration = Duration::from_secs(48 * 60 * 60);

/// Returns the current time of the monotonic clock.
pub fn now() -> Instant {
    Instant::now()
}

/// Returns the current tick: microseconds since two days before the first reading. Never [`Tick::NEVER`].
pub fn tick() -> Tick {
    tick_at(now())
}

/// Converts a time of [`now`] into a tick. Code that needs both reads the clock once.
pub fn tick_at(time: Instant) -> Tick {
    let since = BEFORE_START + time.saturating_duration_since(*START);
    Tick::from_micros(since.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(since.subsec_micros())))
}

/// Returns the system's monotonic clock in microseconds, as other programs on this machine read it.
pub fn monotonic_micros() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |number: i64| u64::try_from(number).unwrap_or_default();
    part(time.tv_sec).saturating_mul(1_000_000).saturating_add(part(time.tv_nsec) / 1000)
}

/// Returns the output of a future, or `None` if it is not ready by `until`.
///
/// For futures that rarely wait: a timer is created only if the first poll is pending. The second poll follows at once,
/// so a future that yields once does not really yield.
pub async fn timeout_at_lazy<F: Future>(until: Instant, mut future: Pin<&mut F>) -> Option<F::Output> {
    match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        Poll::Ready(output) => Some(output),
        Poll::Pending => tokio::time::timeout_at(until.into(), future).await.ok(),
    }
}

/// Returns the time since 1970-01-01 UTC, 0 if the wall clock is set to an earlier time.
pub fn unix_now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Returns a number over the full range of 32 bits, such as the `random` parameter of a call. Not for secrets.
pub fn random_u32() -> u32 {
    fastrand::u32(..)
}

/// Returns 128 bits that identify a request. Not for secrets.
pub fn request_number() -> u128 {
    fastrand::u128(..)
}

/// Returns 64 bits that identify a span. Not for secrets.
pub fn span_number() -> u64 {
    fastrand::u64(..)
}

/// Returns 16 unpredictable bytes from the operating system.
///
/// # Errors
/// If the operating system has no random numbers. The program must then stop.
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
    async fn ready_future_beats_a_past_deadline_and_waiting_one_times_out() {
        let past = now();
        assert_eq!(timeout_at_lazy(past, pin!(async { 7 })).await, Some(7));
        assert_eq!(timeout_at_lazy(past, pin!(std::future::pending::<u8>())).await, None);
        let soon = now() + Duration::from_millis(20);
        assert_eq!(timeout_at_lazy(soon, pin!(std::future::pending::<u8>())).await, None);
        assert!(now() >= soon);
        let (tx, mut rx) = tokio::sync::oneshot::channel();
        let sender = tokio::spawn(async move { tx.send(7) });
        assert_eq!(timeout_at_lazy(now() + Duration::from_secs(60), pin!(&mut rx)).await, Some(Ok(7)));
        sender.await.expect("no panic").expect("a receiver");
    }
}
