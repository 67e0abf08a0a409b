//! Pairs of one app: what is cached, and what is being looked up.

pub(crate) mod check;
pub(crate) mod dispatcher;

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::response::CallResult;
use crate::config::Config;
use crate::domain::pairs::cache::PairCache;
use crate::domain::pairs::check::PairView;
use crate::domain::pairs::fence::Fence;
use crate::domain::pairs::lookups::{LookupScheduler, PairResults, Waiters};
use crate::domain::pairs::pair::UserHasher;
use crate::domain::policy::stale_gate::StaleGate;
use crate::limits::CommandQuota;
use crate::telemetry::trace::Context;

/// The pairs of one app.
pub(super) struct PairService {
    pub(super) hasher: UserHasher,
    pub(super) cache: PairCache,
    pub(super) fence: Fence,
    pub(super) stale_gate: StaleGate,
    /// The quota of `follow_check`.
    pub(super) quota: Arc<CommandQuota>,
    lookups: Mutex<LookupState>,
}

/// Lookups that are queued or in flight.
pub(super) struct LookupState {
    pub(super) scheduler: LookupScheduler,
    /// The requests that wait for them.
    pub(super) waiters: Waiters<WaiterHandle>,
    /// Tasks that are on their way to take a batch from the scheduler.
    pub(super) dispatchers: usize,
}

/// How a waiting request is notified.
pub(super) struct WaiterHandle {
    pub(super) tx: oneshot::Sender<Result<PairResults, Arc<CallResult>>>,
    /// Its span, if traces are taken.
    pub(super) trace: Option<Context>,
}

impl PairService {
    pub(super) fn new(hash_key: &[u8; 16], config: &Config, quota: Arc<CommandQuota>) -> Self {
        Self {
            hasher: UserHasher::new(hash_key),
            cache: PairCache::new(config.cache.max_pairs),
            fence: Fence::default(),
            stale_gate: StaleGate::default(),
            quota,
            lookups: Mutex::new(LookupState {
                scheduler: LookupScheduler::new(config.follow_check.flip),
                waiters: Waiters::default(),
                dispatchers: 0,
            }),
        }
    }

    /// Locks the lookups.
    pub(super) fn lookups(&self) -> MutexGuard<'_, LookupState> {
        self.lookups.lock()
    }

    pub(super) fn view(&self) -> PairView<'_> {
        PairView { cache: &self.cache, fence: &self.fence, stale_gate: &self.stale_gate }
    }
}
