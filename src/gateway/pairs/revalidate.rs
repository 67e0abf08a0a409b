//! Refreshes of pairs that were answered past their ttl (`cache.stale_while_revalidate`, RFC 5861 section 3).
//!
//! The response does not wait for the refresh. The pairs are queued in the class that is served last, so they travel with
//! calls that leave anyway, or with a permit that nothing else wants. The fence judges their results like all others.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::worker::AppWorker;
use super::PairService;
use super::dispatcher::end_refreshes;
use crate::clock;
use crate::domain::caller::QueueKey;
use crate::domain::pairs::check::CheckSession;
use crate::domain::pairs::lookups::{Refresh, Wanted};
use crate::domain::pairs::pair::Pair;
use crate::domain::relation::request::CheckRequest;

/// Maximum number of refreshes of one app that ask the fleet's cache at the same time. Further ones ask Chat.
pub(super) const FLEET_READS_MAX: usize = 64;

impl AppWorker {
    /// Queues the pairs of a session that are due. `caller` is the one whose request it is.
    pub(super) fn revalidate(
        self: &Arc<Self>,
        pairs: &Arc<PairService>,
        request: &CheckRequest<'_>,
        session: &mut CheckSession,
        caller: QueueKey,
    ) {
        // While Chat fails, only a probe asks it, as for a request that stale pairs can answer.
        if self.is_draining() || pairs.stale_gate.should_serve_stale(clock::tick()) {
            return;
        }
        let due = session.take_due(&pairs.cache, &request.from, |account| &request.to[account]);
        if due.is_empty() || self.gateway.stopped.load(Ordering::Acquire) {
            return;
        }
        let read = self.app.fleet.as_ref().and_then(|_| pairs.refreshes.try_acquire(1));
        let Some(read) = read else { return self.queue_refresh(pairs, &due, caller) };
        // Another replica may have refreshed them. The response does not wait for Redis either.
        let from = request.from.to_string();
        let due: Vec<(Pair, String)> = due.iter().map(|one| (one.pair, one.to.to_owned())).collect();
        let (worker, pairs) = (Arc::clone(self), Arc::clone(pairs));
        self.gateway.tasks.spawn(async move {
            let _read = read;
            let wanted: Vec<(Pair, &str)> = due.iter().map(|(pair, to)| (*pair, to.as_str())).collect();
            worker.read_pairs_from_fleet(&pairs, &from, &wanted).await;
            let (now, ttl) = (clock::tick(), worker.gateway.config.cache.ttl);
            let is_due = |pair: Pair| pairs.cache.get(pair.key()).is_none_or(|cached| now.since(cached.sent) >= ttl);
            let due = wanted.iter().filter(|(pair, _)| is_due(*pair));
            let due: Vec<_> = due.map(|(pair, to)| Wanted { pair: *pair, from: &from, to, slot: 0 }).collect();
            worker.queue_refresh(&pairs, &due, caller);
        });
    }

    fn queue_refresh(self: &Arc<Self>, pairs: &Arc<PairService>, due: &[Wanted<'_>], caused_by: QueueKey) {
        let until = clock::tick().after(self.gateway.config.cache.stale_while_revalidate);
        let refresh = Refresh { until, caused_by };
        let mut lookups = pairs.lookups();
        lookups.scheduler.refresh(due, refresh, |pair| pairs.fence.last_mark(pair));
        end_refreshes(&mut lookups.scheduler, &pairs.cache);
        drop(lookups);
        self.ensure_dispatcher(pairs);
    }
}
