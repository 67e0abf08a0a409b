//! Invalidation: after a write, a webhook, or an admin action, no answer comes from before it.

use std::sync::Arc;

use super::app::{App, FleetHandle};
use super::pairs::Relations;
use super::reads::ReadService;
use crate::clock;
use crate::domain::chat::command::CommandName;
use crate::domain::chat::webhook::Event;
use crate::domain::pairs::scope::{Scope, ScopeKeys};
use crate::domain::reads::rules::CachedReads;
use crate::domain::reads::scope::ReadScope;
use crate::domain::relation::changes;

/// What a write, a webhook, or an admin action may have changed.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    /// Pairs; [`Scope::All`] also covers all cached reads.
    pairs: Option<Scope>,
    /// Cached reads.
    reads: Option<ReadScope>,
}

impl Change {
    /// Returns `None` if neither pairs nor any read in `cached` may have changed.
    fn new(pairs: Option<Scope>, reads: Option<ReadScope>, cached: &CachedReads) -> Option<Self> {
        let reads = reads.filter(|scope| cached.is_affected_by(scope));
        (pairs.is_some() || reads.is_some()).then_some(Self { pairs, reads })
    }

    /// Returns the cached reads that it covers.
    fn covered_reads(&self) -> Option<&ReadScope> {
        match self.pairs {
            Some(Scope::All) => Some(&ReadScope::All),
            _ => self.reads.as_ref(),
        }
    }
}

impl From<Scope> for Change {
    fn from(pairs: Scope) -> Self {
        Self { pairs: Some(pairs), reads: None }
    }
}

impl From<ReadScope> for Change {
    fn from(reads: ReadScope) -> Self {
        Self { pairs: None, reads: Some(reads) }
    }
}

impl App {
    /// Returns what a call may change; `None` if it changes no relation that is checked here or in the fleet, and no
    /// cached read.
    pub(super) fn change_of_write(&self, name: CommandName<'_>, body: &[u8]) -> Option<Change> {
        let pairs = changes::of_write(self.relations.fenced(), name, body);
        let reads = (!self.cached_reads.is_empty()).then(|| ReadScope::of_write(name));
        Change::new(pairs, reads, &self.cached_reads)
    }

    /// Reads the event that a webhook reports.
    pub(crate) fn read_event(&self, command: &str, body: &[u8]) -> Event {
        Event::read(self.relations.fenced(), command, body)
    }

    /// Invalidates what has changed. Once this returns, no answer comes from a lookup that was sent before, neither from
    /// the cache nor from a lookup in flight. For `cache.write_settle` results about it are not cached, as after a write.
    pub(crate) fn invalidate(&self, change: &Change) {
        if let Some(pairs) = &change.pairs {
            self.relations.invalidate(&self.relations.keys(pairs));
        }
        self.reads.invalidate(change.covered_reads());
    }

    /// Invalidates what has changed here and in the other replicas. Once this returns, Redis has passed it on, or is
    /// unreachable.
    pub(crate) async fn invalidate_everywhere(&self, change: &Change) {
        self.invalidate(change);
        self.publish_invalidation(change).await;
    }

    /// Invalidates what an event of Chat may have changed, here and in the other replicas. `pairs` are the pairs that it
    /// names.
    pub(crate) async fn invalidate_by_event(&self, command: &str, pairs: Option<Scope>) {
        if let Some(change) = Change::new(pairs, ReadScope::of_event(command), &self.cached_reads) {
            self.invalidate_everywhere(&change).await;
        }
    }

    /// Notifies the other replicas. This runs in a task of its own: the request that waits for it may be dropped.
    pub(super) async fn publish_invalidation(&self, change: &Change) {
        if let Some(FleetHandle { fleet, shared }) = self.fleet.clone() {
            let Change { pairs, reads } = change.clone();
            let publish = self.tasks.spawn(async move {
                if let Some(pairs) = pairs {
                    fleet.invalidate(&shared, &pairs).await;
                }
                if let Some(reads) = reads {
                    fleet.invalidate_reads(&shared, &reads).await;
                }
            });
            // The task does not panic, and there is nothing to do if it did.
            let _ = publish.await;
        }
    }
}

impl ReadService {
    fn invalidate(&self, scope: Option<&ReadScope>) {
        if let Some(scope) = scope {
            self.fence.mark(scope, clock::tick());
        }
    }
}

/// A write in flight: marks what it may change when the call leaves, and invalidates it when it has ended, however it
/// ended.
pub(super) struct WriteFence<'a> {
    relations: Arc<Relations>,
    /// `None` if it changes no pairs.
    keys: Option<ScopeKeys>,
    reads: Arc<ReadService>,
    change: &'a Change,
}

impl<'a> WriteFence<'a> {
    pub(super) fn new(app: &App, change: &'a Change) -> Self {
        let (relations, reads) = (Arc::clone(&app.relations), Arc::clone(&app.reads));
        let keys = change.pairs.as_ref().map(|scope| relations.keys(scope));
        if let Some(keys) = &keys {
            relations.mark(keys);
        }
        reads.invalidate(change.covered_reads());
        Self { relations, keys, reads, change }
    }
}

impl Drop for WriteFence<'_> {
    fn drop(&mut self) {
        if let Some(keys) = &self.keys {
            self.relations.invalidate(keys);
        }
        self.reads.invalidate(self.change.covered_reads());
    }
}
