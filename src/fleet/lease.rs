//! Permits leased from Redis.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Fleet;
use crate::domain::chat::app::SdkAppId;
use crate::domain::fleet::lease::{AHEAD, Pace};
use crate::domain::tick::Tick;

/// The shortest wait after a lease without permits.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(1);

/// A request for permits.
#[derive(Debug, Clone, Copy)]
pub struct LeaseRequest<'a> {
    /// The app.
    pub app: SdkAppId,
    /// The command, or another name of a quota.
    pub name: &'a str,
    /// The number of permits.
    pub wanted: usize,
    /// The pace of the quota.
    pub pace: Pace,
    /// The pace of the app's total quota, if it has one.
    pub total: Option<Pace>,
}

/// The permits that Redis granted.
#[derive(Debug)]
pub struct Granted {
    /// When the request was sent.
    pub sent_at: Tick,
    /// When the response was received.
    pub received_at: Tick,
    /// When Redis answered, on its clock, in microseconds since 1970.
    pub redis_time: u64,
    /// The moments of the permits, as distances from `redis_time`.
    pub moments: Vec<Duration>,
    /// When to retry if there is no permit, as a distance from now.
    pub retry_after: Duration,
    /// Whether there is no permit because of the app's total quota.
    pub total_exhausted: bool,
}

impl Fleet {
    /// Leases permits. Returns `None` if the replica is or gets disconnected.
    pub async fn lease(&self, request: LeaseRequest<'_>) -> Option<Granted> {
        let link = self.link.load_full()?;
        let key = |quota: &str| format!("{}:{}:q:{quota}", self.prefix, request.app.get());
        let mut command = redis::pipe();
        command.cmd("EVALSHA").arg(&link.scripts.lease).arg(2 + usize::from(request.total.is_some()));
        command.arg(self.since_key()).arg(key(request.name));
        if request.total.is_some() {
            command.arg(key("*"));
        }
        command.arg(request.wanted).arg(AHEAD.as_micros() as u64);
        for pace in [request.pace].into_iter().chain(request.total) {
            // Rounded up, so that Redis never grants faster than the pace.
            let interval = pace.interval.as_nanos().div_ceil(1000) as u64;
            command.arg(interval).arg(interval.saturating_mul(u64::from(pace.burst.max(1) - 1)));
        }
        let ((values,), times): ((Vec<u64>,), _) = self.query(&link, &command).await?;
        let [redis_time, retry_after, by_total, moments @ ..] = &values[..] else { return None };
        link.watermarks.lock().note(times.received_at, *redis_time);
        self.counters.permits.fetch_add(moments.len() as u64, Ordering::Relaxed);
        Some(Granted {
            sent_at: times.sent_at,
            received_at: times.received_at,
            redis_time: *redis_time,
            moments: moments.iter().map(|micros| Duration::from_micros(*micros)).collect(),
            retry_after: Duration::from_micros(*retry_after).max(RETRY_AFTER_MIN),
            total_exhausted: *by_total == 1,
        })
    }
}
