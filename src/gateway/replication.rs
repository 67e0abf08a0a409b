//! What this replica exchanges with the others through Redis: cached pairs and invalidations.
//!
//! The fence judges what comes from other replicas like everything else: a pair from Redis carries the moment of its
//! lookup, and an invalidation from another replica marks the fence when it arrives.

use std::sync::Arc;

use super::app::{App, FleetHandle};
use super::generation::Generations;
use super::pairs::PairService;
use super::worker::AppWorker;
use crate::clock;
use crate::domain::chat::app::SdkAppId;
use crate::domain::fleet::message::{self, Message};
use crate::domain::pairs::cache::CachedPair;
use crate::domain::pairs::check::CheckSession;
use crate::domain::pairs::lookups::CacheablePair;
use crate::domain::pairs::pair::Pair;
use crate::domain::pairs::scope::Scope;
use crate::domain::relation::RelationKind;
use crate::domain::relation::request::CheckRequest;
use crate::fleet::{FetchedPairs, Mode, OnInvalidation};

impl AppWorker {
    /// Reads the pairs that are missing here from the cache of the fleet, and caches them.
    pub(super) async fn read_from_fleet(
        &self,
        pairs: &PairService,
        request: &CheckRequest<'_>,
        session: &CheckSession,
    ) {
        let missing = session.missing_accounts().map(|(account, pair)| (pair, &*request.to[account]));
        let missing: Vec<(Pair, &str)> = missing.collect();
        self.read_pairs_from_fleet(pairs, &request.from, &missing).await;
    }

    /// Reads these pairs of `from` from the cache of the fleet, and caches them.
    pub(super) async fn read_pairs_from_fleet(&self, pairs: &PairService, from: &str, wanted: &[(Pair, &str)]) {
        let Some(FleetHandle { fleet, shared }) = &self.app.fleet else { return };
        if fleet.mode() == Mode::Disconnected || shared.ttl.is_zero() {
            return;
        }
        let to: Vec<&str> = wanted.iter().map(|(_, to)| *to).collect();
        let found = fleet.read(shared, pairs.kind, from, &to).await;
        let now = clock::tick();
        for ((pair, _), found) in wanted.iter().zip(found) {
            let Some((seen, sent)) = found else { continue };
            // An old entry must not replace one that may be newer here.
            if now.since(sent) < shared.ttl {
                pairs.cache.insert(pair.key(), CachedPair { stored: pair.stored_as(seen), sent });
            }
        }
    }
}

impl App {
    /// Writes the pairs of one response to the cache of the fleet.
    pub(super) fn publish_pairs(&self, kind: &'static RelationKind, cached: &[&CacheablePair]) {
        let (Some(FleetHandle { fleet, shared }), Some(first)) = (&self.fleet, cached.first()) else { return };
        if shared.ttl.is_zero() {
            return;
        }
        let seen = |one: &&CacheablePair| one.pair.seen_from(one.cached.stored);
        let learned: Vec<_> = cached.iter().map(|cached| (&*cached.from, &*cached.to, seen(cached))).collect();
        // All of them came with one response.
        fleet.store(shared, &FetchedPairs { kind, pairs: &learned, sent: first.cached.sent });
    }
}

/// Applies invalidations of other replicas to the current generation.
pub(crate) struct InvalidationSubscriber(pub Arc<Generations>);

impl OnInvalidation for InvalidationSubscriber {
    fn invalidated(&self, app: SdkAppId, sealed: &[u8]) {
        let gateway = self.0.gateway();
        // Nothing is cached of an app that is not configured here.
        let Some(app) = gateway.apps.numbered(app) else { return };
        let Some(handle) = &app.fleet else { return };
        // A message that cannot be opened was sealed with another key, as happens during a key rotation.
        let message = message::open(&handle.shared.keys, sealed).unwrap_or(Message::Pairs(Scope::All));
        app.invalidate(&match message {
            Message::Pairs(scope) => scope.into(),
            Message::Reads(scope) => scope.into(),
        });
    }

    fn missed(&self, app: Option<SdkAppId>) {
        let gateway = self.0.gateway();
        match app {
            Some(app) => gateway.apps.numbered(app).iter().for_each(|app| app.invalidate(&Scope::All.into())),
            None => gateway.apps.iter().for_each(|app| app.invalidate(&Scope::All.into())),
        }
    }
}
