//! The quota of a command in a fleet: permits leased from Redis.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::command_quota::NotYet;
use super::rate_limiter::{LimitShare, fleet_pace};
use crate::clock;
use crate::domain::chat::app::SdkAppId;
use crate::domain::fleet::lease::{Drawn, LEASE_MAX, Leases};
use crate::domain::tick::Tick;
use crate::fleet::{Fleet, LeaseRequest, Mode, mode_of};

/// After an empty lease, the most that is added to the wait at random, so that not all replicas ask at once. It is
/// shorter than the time that Redis grants ahead.
const SPREAD: Duration = Duration::from_millis(200);
/// The same if the app has a total quota, which Redis does not grant ahead.
const SPREAD_WITH_TOTAL: Duration = Duration::from_millis(20);

/// The shared quota of one command.
#[derive(Debug)]
pub(super) struct SharedQuota {
    fleet: Arc<Fleet>,
    app: SdkAppId,
    /// The name of the quota in Redis.
    name: Box<str>,
    leases: Mutex<Leases>,
    /// The epoch of the fleet that the leases and the command's own limiter belong to.
    epoch: AtomicU64,
}

/// The result of drawing a permit for one call.
pub(super) enum Leased {
    /// A permit, now taken.
    Permit,
    /// A leased permit becomes usable at this instant.
    From(Tick),
    /// No leased permit is left.
    Empty,
    /// The replica is disconnected: the command's own limiter decides.
    Disconnected,
}

/// Returns the part of a limit that a limiter of this epoch grants.
pub(super) fn share_in(fleet: &Fleet, epoch: u64) -> LimitShare {
    match mode_of(epoch) {
        Mode::Disconnected => LimitShare::Share(fleet.share()),
        Mode::Connected => LimitShare::Fleet,
    }
}

impl SharedQuota {
    pub(super) fn new(fleet: Arc<Fleet>, app: SdkAppId, name: &str) -> Self {
        let epoch = AtomicU64::new(fleet.epoch());
        Self { fleet, app, name: name.into(), leases: Mutex::default(), epoch }
    }

    /// Returns the part of the limit that the command's own limiter grants.
    pub(super) fn limit_share(&self) -> LimitShare {
        share_in(&self.fleet, self.epoch.load(Ordering::Acquire))
    }

    /// Whether the replica has connected or disconnected since the last [`SharedQuota::sync_epoch`].
    pub(super) fn epoch_changed(&self) -> bool {
        self.epoch.load(Ordering::Acquire) != self.fleet.epoch()
    }

    /// Discards all leases and adopts the current epoch. Returns whether it differs from the last one. Must not run
    /// twice at the same time.
    pub(super) fn sync_epoch(&self) -> bool {
        let (mut leases, epoch) = (self.leases.lock(), self.fleet.epoch());
        leases.clear();
        self.epoch.swap(epoch, Ordering::AcqRel) != epoch
    }

    /// Takes a leased permit, if one is usable.
    pub(super) fn draw(&self, now: Tick) -> Leased {
        if mode_of(self.epoch.load(Ordering::Acquire)) == Mode::Disconnected {
            return Leased::Disconnected;
        }
        match self.leases.lock().draw(now) {
            Drawn::Permit => Leased::Permit,
            Drawn::From(at) => Leased::From(at),
            Drawn::Nothing => Leased::Empty,
        }
    }

    /// Leases up to `wanted` permits, at most [`LEASE_MAX`].
    ///
    /// Returns `None` if permits were leased or the replica is disconnected; then draw again. Otherwise returns what to
    /// wait for before the next attempt.
    pub(super) async fn lease(&self, limit: NonZeroU32, total: Option<NonZeroU32>, wanted: usize) -> Option<NotYet> {
        let request = LeaseRequest {
            app: self.app,
            name: &self.name,
            wanted: wanted.clamp(1, LEASE_MAX),
            pace: fleet_pace(limit),
            total: total.map(fleet_pace),
        };
        let granted = self.fleet.lease(request).await?;
        if granted.moments.is_empty() {
            let spread = if total.is_some() { SPREAD_WITH_TOTAL } else { SPREAD };
            let random = f64::from(clock::random_u32()) / f64::from(u32::MAX);
            let wait = granted.retry_after + spread.mul_f64(random);
            return Some(if granted.total_exhausted { NotYet::TotalExhausted(wait) } else { NotYet::RetryAfter(wait) });
        }
        self.leases.lock().add(granted.sent_at, granted.received_at, granted.moments);
        None
    }
}
