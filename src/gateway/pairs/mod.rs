//! Pairs of one app, by relation: what is cached, and what is being looked up.

pub(crate) mod check;
pub(crate) mod dispatcher;
mod revalidate;

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::response::CallResult;
use crate::capacity::Capacity;
use crate::clock;
use crate::config::Config;
use crate::domain::caller::ByClass;
use crate::domain::chat::command::CommandName;
use crate::domain::pairs::cache::PairCache;
use crate::domain::pairs::check::PairView;
use crate::domain::pairs::fence::Fence;
use crate::domain::pairs::lookups::{BatchId, LookupScheduler, PairResults, Waiters};
use crate::domain::pairs::pair::UserHasher;
use crate::domain::pairs::scope::{Scope, ScopeKeys};
use crate::domain::policy::stale_gate::StaleGate;
use crate::domain::relation::{KINDS, RelationKind};
use crate::limits::{AppQuotas, CallerQuota, CommandQuota};
use crate::telemetry::trace::Context;

/// The relations of one app.
pub(super) struct Relations {
    hasher: UserHasher,
    /// Marked by every write and event, whichever relation it changes: too many marks cost lookups, and no page says for
    /// certain what each write leaves unchanged.
    fence: Arc<Fence>,
    /// Those that are enabled.
    services: Vec<Arc<PairService>>,
    fenced: Vec<&'static RelationKind>,
}

/// One relation of one app.
pub(super) struct PairService {
    pub(super) kind: &'static RelationKind,
    pub(super) hasher: UserHasher,
    pub(super) cache: PairCache,
    /// Shared with the app's other relations.
    pub(super) fence: Arc<Fence>,
    pub(super) stale_gate: StaleGate,
    /// The quota of the command.
    pub(super) quota: Arc<CommandQuota>,
    lookups: Mutex<LookupState>,
    /// Refreshes that ask the fleet's cache.
    refreshes: Arc<Capacity>,
}

/// One lookup of an app.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LookupId {
    pub(crate) kind: &'static RelationKind,
    pub(crate) batch: BatchId,
}

/// Lookups that are queued or in flight.
pub(super) struct LookupState {
    pub(super) scheduler: LookupScheduler,
    /// The requests that wait for them.
    pub(super) waiters: Waiters<WaiterHandle>,
    /// Tasks that are on their way to take a batch of a class from the scheduler.
    pub(super) dispatchers: ByClass<usize>,
}

/// How a waiting request is notified.
pub(super) struct WaiterHandle {
    pub(super) tx: oneshot::Sender<Result<PairResults, Arc<CallResult>>>,
    /// Its span, if traces are taken.
    pub(super) trace: Option<Context>,
    /// Its caller's own quota, if the caller has one.
    pub(super) quota: Option<Arc<CallerQuota>>,
}

impl Relations {
    pub(super) fn new(hash_key: &[u8; 16], config: &Config, quotas: &AppQuotas) -> Self {
        let (hasher, fence) = (UserHasher::new(hash_key), Arc::default());
        let kinds = &config.relation.kinds;
        // Another replica may have enabled a relation that is not enabled here.
        let fenced = if config.fleet.is_some() { KINDS.to_vec() } else { kinds.clone() };
        let mut relations = Self { hasher, fence, services: Vec::new(), fenced };
        for kind in kinds {
            let service = PairService::new(kind, &relations, config, quotas.of(kind.check));
            relations.services.push(Arc::new(service));
        }
        relations
    }

    /// Returns the relation that this command checks, if it is enabled.
    pub(super) fn of(&self, command: CommandName<'_>) -> Option<&Arc<PairService>> {
        self.services.iter().find(|service| service.kind.check == command)
    }

    /// Iterates over those that are enabled.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<PairService>> {
        self.services.iter()
    }

    /// Returns the relations whose changes mark the fence.
    pub(super) fn fenced(&self) -> &[&'static RelationKind] {
        &self.fenced
    }

    /// Returns the keys of a scope.
    pub(super) fn keys(&self, scope: &Scope) -> ScopeKeys {
        ScopeKeys::new(scope, &self.hasher)
    }

    /// Marks the fence.
    pub(super) fn mark(&self, keys: &ScopeKeys) {
        keys.mark(&self.fence, clock::tick());
    }

    /// Marks the fence and removes cached pairs.
    pub(super) fn invalidate(&self, keys: &ScopeKeys) {
        self.mark(keys);
        self.services.iter().for_each(|service| keys.remove_from(&service.cache));
    }
}

impl PairService {
    fn new(kind: &'static RelationKind, all: &Relations, config: &Config, quota: Arc<CommandQuota>) -> Self {
        Self {
            kind,
            hasher: all.hasher.clone(),
            cache: PairCache::new(config.cache.max_pairs),
            fence: Arc::clone(&all.fence),
            stale_gate: StaleGate::default(),
            quota,
            lookups: Mutex::new(LookupState {
                scheduler: LookupScheduler::new(config.relation.flip, config.relation.call_max_of(kind)),
                waiters: Waiters::default(),
                dispatchers: ByClass::default(),
            }),
            refreshes: Capacity::new(revalidate::FLEET_READS_MAX),
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
