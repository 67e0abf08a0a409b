//! Invalidation: after a write, a webhook, or an admin action, no answer comes from before it.

use std::sync::Arc;

use super::app::{App, FleetHandle};
use super::pairs::Relations;
use crate::domain::chat::command::CommandName;
use crate::domain::chat::webhook::Event;
use crate::domain::pairs::scope::{Scope, ScopeKeys};
use crate::domain::relation::changes;

impl App {
    /// Returns the pairs that a call may change; `None` if it changes no relation that is checked here or in the fleet.
    pub(super) fn scope_of_write(&self, name: CommandName<'_>, body: &[u8]) -> Option<Scope> {
        changes::of_write(self.relations.fenced(), name, body)
    }

    /// Reads the event that a webhook reports.
    pub(crate) fn read_event(&self, command: &str, body: &[u8]) -> Event {
        Event::read(self.relations.fenced(), command, body)
    }

    /// Invalidates the pairs of a scope. Once this returns, no answer comes from a lookup that was sent before, neither
    /// from the cache nor from a lookup in flight. For `cache.write_settle` results about these pairs are not cached,
    /// as after a write.
    pub(crate) fn invalidate(&self, scope: &Scope) {
        self.relations.invalidate(&self.relations.keys(scope));
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

/// A write in flight: marks the pairs that it may change when the call leaves, and invalidates them when it has ended,
/// however it ended.
pub(super) struct WriteFence {
    relations: Arc<Relations>,
    keys: ScopeKeys,
}

impl WriteFence {
    pub(super) fn new(relations: &Arc<Relations>, scope: &Scope) -> Self {
        let keys = relations.keys(scope);
        relations.mark(&keys);
        Self { relations: Arc::clone(relations), keys }
    }
}

impl Drop for WriteFence {
    fn drop(&mut self) {
        self.relations.invalidate(&self.keys);
    }
}
