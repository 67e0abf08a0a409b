//! Invalidations sent to the other replicas.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::link::Link;
use super::{Fleet, FleetApp};
use crate::clock;
use crate::domain::fleet::message::{self, Message};
use crate::domain::pairs::scope::{Scope, UserPairs};
use crate::domain::reads::scope::ReadScope;
use crate::domain::relation::KINDS;

/// Marks outlive cached pairs by this time, so that no late store outlives the mark that rejects it.
const MARKS_OUTLIVE_PAIRS: Duration = Duration::from_secs(60);
/// The longest `cache.ttl` is shorter than this.
const LONGER_THAN_ANY_TTL: Duration = Duration::from_secs(24 * 60 * 60);

impl Fleet {
    /// Invalidates a scope in Redis and on all other replicas.
    ///
    /// Returns when Redis has accepted it, or when it is clear that it does not. In the first case the other replicas
    /// receive it within 350 ms even if this replica ends now, and usually at once; those that are already connected to
    /// another primary receive it once this replica is. In the second case the whole app is invalidated once the
    /// replica is connected again.
    pub async fn invalidate(self: &Arc<Self>, shared: &FleetApp, scope: &Scope) {
        let scope = message::bounded(scope);
        let marks: Vec<Vec<u8>> = match &scope {
            Scope::All => vec![self.app_mark(shared).into_bytes()],
            Scope::Users(users) => users.iter().map(|user| self.user_mark(shared, user)).collect(),
            // Marks for every relation: another replica may have entries of one that is not enabled here.
            Scope::Pairs(pairs) => {
                let named = pairs.iter().flat_map(|UserPairs { from, to }| to.iter().map(move |to| (from, to)));
                let keys = named.map(|(from, to)| shared.keys.pair(from, to).key());
                keys.flat_map(|pair| KINDS.iter().map(move |kind| self.pair_key(shared, kind, pair))).collect()
            }
        };
        self.publish(shared, &marks, &Message::Pairs(scope)).await;
    }

    /// Invalidates cached reads on all other replicas, as [`Fleet::invalidate`] does pairs. Redis has none of them.
    pub async fn invalidate_reads(self: &Arc<Self>, shared: &FleetApp, scope: &ReadScope) {
        self.publish(shared, &[], &Message::Reads(scope.clone())).await;
    }

    async fn publish(self: &Arc<Self>, shared: &FleetApp, marks: &[Vec<u8>], message: &Message) {
        if !self.try_publish(shared, marks, message).await {
            // If the replica has connected again meanwhile, its next heartbeat sends it.
            self.undelivered.lock().failed(shared.app, &shared.keys);
        }
    }

    async fn try_publish(self: &Arc<Self>, shared: &FleetApp, marks: &[Vec<u8>], message: &Message) -> bool {
        let (Some(link), Ok(random)) = (self.link.load_full(), clock::os_random()) else { return false };
        let mut nonce = [0; 12];
        nonce.copy_from_slice(&random[..12]);
        let app = shared.app.get().to_be_bytes();
        let sealed = message::seal(&shared.keys, message, nonce);
        let len = (self.sender_id.len() + app.len() + sealed.len()) as u32;
        let message = [&len.to_be_bytes()[..], &self.sender_id, &app, &sealed].concat();
        let mut command = redis::pipe();
        command.cmd("EVALSHA").arg(&link.scripts.invalidate).arg(2 + marks.len()).arg(&self.batch_keys());
        marks.iter().for_each(|mark| {
            command.arg(mark);
        });
        let marks_ttl = shared.ttl + MARKS_OUTLIVE_PAIRS;
        command.arg(marks_ttl.as_millis() as u64).arg(self.publish_command()).arg(self.channel());
        command.arg(message);
        let Some(((due_micros,), _)) = self.query::<(u64,)>(&link, &command).await else { return false };
        self.undelivered.lock().accepted(&link.run_id, shared.app, &shared.keys);
        self.counters.invalidations_sent.fetch_add(1, Ordering::Relaxed);
        self.plan_flush(link, Duration::from_micros(due_micros));
        true
    }

    /// Has Redis publish the waiting invalidations when they are due. Without this, the next heartbeat of any replica
    /// after that does it.
    fn plan_flush(self: &Arc<Self>, link: Arc<Link>, mut due: Duration) {
        if due.is_zero() || self.flush_planned.swap(true, Ordering::AcqRel) {
            return;
        }
        let fleet = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(due).await;
                // From here on, a new invalidation plans for itself.
                fleet.flush_planned.store(false, Ordering::Release);
                match fleet.beat(&link).await {
                    // Another replica had Redis publish meanwhile, and later ones wait.
                    Some(left) if !left.is_zero() && !fleet.flush_planned.swap(true, Ordering::AcqRel) => due = left,
                    _ => return,
                }
            }
        });
    }

    /// Invalidates all apps that have an unsent invalidation.
    pub(super) async fn flush_unsent(self: &Arc<Self>) {
        let unsent = self.undelivered.lock().take_unsent();
        for (app, keys) in unsent {
            let shared = FleetApp { app, keys, ttl: LONGER_THAN_ANY_TTL };
            self.invalidate(&shared, &Scope::All).await;
        }
    }
}
