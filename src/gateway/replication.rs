//! What this replica tells the others and hears from them.
//!
//! The fence judges everything that comes from elsewhere as it judges what is our own: a fact from Redis has
//! the moment of its lookup, and an eviction that another replica tells marks the fence when it is heard.

use std::sync::Arc;

use super::Worker;
use super::app::{App, Gateway};
use super::generation::Generations;
use super::pairs::check::PairSlot;
use crate::clock;
use crate::config::{self, Config};
use crate::domain::chat::app::SdkAppId;
use crate::domain::fleet::keys::FleetKeys;
use crate::domain::fleet::message;
use crate::domain::follow::request::CheckRequest;
use crate::domain::follow::writes::Scope;
use crate::domain::pairs::cache::CachedPair;
use crate::domain::pairs::lookups::CacheablePair;
use crate::fleet::{Fleet, FleetApp, Mode, OnInvalidation};

/// An app's part in the fleet.
#[derive(Clone)]
pub(super) struct FleetHandle {
    pub fleet: Arc<Fleet>,
    pub shared: Arc<FleetApp>,
}

impl FleetHandle {
    pub(super) fn new(fleet: &Arc<Fleet>, app: &config::App, config: &Config) -> Self {
        let keys = Arc::new(FleetKeys::new(&app.secret_key, app.sdkappid, &app.endpoint.to_string()));
        let shared = FleetApp { app: app.sdkappid, keys, ttl: config.cache.ttl };
        Self { fleet: Arc::clone(fleet), shared: Arc::new(shared) }
    }
}

impl Gateway {
    /// Forgets what `scope` names of an app, as [`Gateway::evict`], and sees to it that the other replicas do.
    /// Once it returns Redis has told them, or it is away.
    pub async fn evict_everywhere(&self, app: usize, scope: &Scope) {
        self.evict(app, scope);
        self.publish_invalidation(app, scope).await;
    }

    /// Has the other replicas forget, in a task of its own: who waits for it may leave, it may not.
    pub(super) async fn publish_invalidation(&self, app: usize, scope: &Scope) {
        if let Some(FleetHandle { fleet, shared }) = self.apps[app].member.clone() {
            let scope = scope.clone();
            let telling = self.tasks.spawn(async move { fleet.invalidate(&shared, &scope).await });
            // It does not panic, and what could be done about it?
            let _ = telling.await;
        }
    }
}

impl Worker {
    /// Fetches what other replicas have learned of the pairs that are missing here, and keeps it.
    pub(super) async fn read_from_fleet(&self, app: usize, question: &CheckRequest<'_>, slots: &[PairSlot]) {
        let App { member, follow, .. } = self.app(app);
        let Some(FleetHandle { fleet, shared }) = member else { return };
        if fleet.mode() == Mode::Disconnected || shared.ttl.is_zero() {
            return;
        }
        let missing: Vec<&PairSlot> = slots.iter().filter(|slot| slot.known.is_none()).collect();
        let to: Vec<&str> = missing.iter().map(|slot| &*question.to[slot.first]).collect();
        let found = fleet.read(shared, &question.from, &to).await;
        let now = clock::tick();
        for (slot, found) in missing.iter().zip(found) {
            let Some((seen, sent)) = found else { continue };
            // An old one must not take the place of what may be newer here.
            if now.since(sent) < shared.ttl {
                follow.cache.insert(slot.pair.key(), CachedPair { stored: slot.pair.oriented(seen), sent });
            }
        }
    }
}

impl App {
    /// Gives the other replicas what a lookup has brought.
    pub(super) fn publish_pairs(&self, kept: &[&CacheablePair]) {
        let (Some(FleetHandle { fleet, shared }), Some(first)) = (&self.member, kept.first()) else { return };
        if shared.ttl.is_zero() {
            return;
        }
        let learned: Vec<_> =
            kept.iter().map(|kept| (&*kept.from, &*kept.to, kept.pair.oriented(kept.fact.stored))).collect();
        // They came with one answer.
        fleet.store(shared, &learned, first.fact.sent);
    }
}

/// Hears what other replicas evict, for the gateway of now.
pub struct InvalidationSubscriber(pub Arc<Generations>);

impl OnInvalidation for InvalidationSubscriber {
    fn invalidated(&self, app: SdkAppId, sealed: &[u8]) {
        let gateway = self.0.gateway();
        // Of an app that is not ours nothing is known.
        let Some(index) = gateway.app_numbered(app) else { return };
        let Some(member) = &gateway.apps[index].member else { return };
        // What cannot be read was said by one whose key is another, as while a new one is given out.
        let scope = message::open(&member.shared.keys, sealed).unwrap_or(Scope::All);
        gateway.evict(index, &scope);
    }

    fn missed(&self) {
        let gateway = self.0.gateway();
        for app in 0..gateway.apps.len() {
            gateway.evict(app, &Scope::All);
        }
    }
}
