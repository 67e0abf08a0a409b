//! A command's part in the quota of the fleet.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::rate_limiter::{LimitShare, fleet_pace};
use crate::clock;
use crate::domain::chat::app::SdkAppId;
use crate::domain::fleet::lease::{Drawn, LEASE_MAX, Leases};
use crate::domain::tick::Tick;
use crate::fleet::{Fleet, LeaseRequest, Mode, mode_of};

/// Who was granted nothing asks again up to so much later than it could: less than what is granted ahead.
const SPREAD: Duration = Duration::from_millis(200);
/// The same under a total, which is not granted ahead.
const SPREAD_WITH_TOTAL: Duration = Duration::from_millis(20);

/// Of one command.
#[derive(Debug)]
pub(super) struct SharedQuota {
    fleet: Arc<Fleet>,
    app: SdkAppId,
    /// What its quota is called in Redis.
    name: Box<str>,
    leases: Mutex<Leases>,
    /// Which epoch the leases and the command's pacer belong to.
    epoch: AtomicU64,
}

/// What there is for one call.
pub(super) enum Leased {
    /// A permit, which is taken.
    Permit,
    /// One at that moment.
    From(Tick),
    /// None at hand.
    Nothing,
    /// Redis is away: the command's own pacer counts.
    Alone,
}

/// How much of a limit a pacer of this epoch gives.
pub(super) fn part_of(fleet: &Fleet, epoch: u64) -> LimitShare {
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

    /// How much the command's own pacer gives.
    pub(super) fn limit_share(&self) -> LimitShare {
        part_of(&self.fleet, self.epoch.load(Ordering::Acquire))
    }

    /// Whether the replica has gone from alone to together, or back, since [`SharedQuota::heed_change`].
    pub(super) fn epoch_changed(&self) -> bool {
        self.epoch.load(Ordering::Acquire) != self.fleet.epoch()
    }

    /// Gives up what was leased before a change. Whether there was one; not for two at one time.
    pub(super) fn sync_epoch(&self) -> bool {
        let (mut leases, epoch) = (self.leases(), self.fleet.epoch());
        leases.clear();
        self.epoch.swap(epoch, Ordering::AcqRel) != epoch
    }

    pub(super) fn draw(&self, now: Tick) -> Leased {
        if mode_of(self.epoch.load(Ordering::Acquire)) == Mode::Disconnected {
            return Leased::Alone;
        }
        match self.leases().draw(now) {
            Drawn::Permit => Leased::Permit,
            Drawn::From(at) => Leased::From(at),
            Drawn::Nothing => Leased::Nothing,
        }
    }

    /// Leases so many permits, within a lease's bound. `None`: look again, there are some or Redis is away. Else
    /// how long there are none.
    pub(super) async fn lease(&self, limit: NonZeroU32, total: Option<NonZeroU32>, wanted: usize) -> Option<Duration> {
        let order = LeaseRequest {
            app: self.app,
            name: &self.name,
            wanted: wanted.clamp(1, LEASE_MAX),
            pace: fleet_pace(limit),
            total: total.map(fleet_pace),
        };
        let granted = self.fleet.lease(order).await?;
        if granted.moments.is_empty() {
            // Others have what there is for the next while, so many that wait need not ask all at once.
            let most = if total.is_some() { SPREAD_WITH_TOTAL } else { SPREAD };
            let random = f64::from(clock::random_u32()) / f64::from(u32::MAX);
            return Some(granted.retry_after + most.mul_f64(random));
        }
        self.leases().add(granted.sent_at, granted.received_at, granted.moments);
        None
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
