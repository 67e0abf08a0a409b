//! Invalidation: after a write, a webhook, or an admin action, no answer comes from before it.

use std::sync::Arc;

use super::app::{App, FleetHandle};
use super::pairs::PairService;
use crate::clock;
use crate::domain::pairs::scope::{Scope, ScopeKeys};

impl App {
    /// Invalidates the pairs of a scope. Once this returns, no answer comes from a lookup that was sent before, neither
    /// from the cache nor from a lookup in flight. For `cache.write_settle` results about these pairs are not cached,
    /// as after a write.
    pub(crate) fn invalidate(&self, scope: &Scope) {
        self.pairs.invalidate(&ScopeKeys::new(scope, &self.pairs.hasher));
    }

    /// Invalidates the pairs of a scope here and in the other replicas. Once this returns, Redis has passed it on, or is
    /// unreachable.
    pub(crate) async fn invalidate_everywhere(&self, scope: &Scope) {
        self.invalidate(scope);
        self.publish_invalidation(scope).await;
    }

    /// Notifies the other replicas. This runs in a task of its own: the request that waits for it may be dropped.
    pub(super) async fn publish_invalidation(&self, scope: &Scope) {
        if let Some(FleetHandle { fleet, shared }) = self.fleet.clone() {
            let scope = scope.clone();
            let publish = self.tasks.spawn(async move { fleet.invalidate(&shared, &scope).await });
            // The task does not panic, and there is nothing to do if it did.
            let _ = publish.await;
        }
    }
}

impl PairService {
    fn invalidate(&self, keys: &ScopeKeys) {
        keys.invalidate(&self.fence, &self.cache, clock::tick());
    }
}

/// A write in flight: marks the pairs that it may change when the call leaves, and invalidates them when it has ended,
/// however it ended.
pub(super) struct WriteFence {
    pairs: Arc<PairService>,
    keys: ScopeKeys,
}

impl WriteFence {
    pub(super) fn new(pairs: &Arc<PairService>, scope: &Scope) -> Self {
        let keys = ScopeKeys::new(scope, &pairs.hasher);
        keys.mark(&pairs.fence, clock::tick());
        Self { pairs: Arc::clone(pairs), keys }
    }
}

impl Drop for WriteFence {
    fn drop(&mut self) {
        self.pairs.invalidate(&self.keys);
    }
}
