//! Sends queued lookups, in as many calls as quota and room in flight allow, and notifies the waiting requests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::super::app::App;
use super::super::call::{Acquired, CallSpec};
use super::super::deadline::Deadline;
use super::super::request::CallContext;
use super::super::response::{CallResult, allows_stale};
use super::super::worker::AppWorker;
use super::{LookupId, LookupState, PairService};
use crate::clock;
use crate::domain::caller::{CallerQueue, Class};
use crate::domain::chat::command::CommandKind;
use crate::domain::pairs::cache::PairCache;
use crate::domain::pairs::lookups::{
    Batch, BatchId, BatchOutcome, CacheablePair, Completion, Delivery, EndedRefresh, LookupScheduler, Ticket,
};
use crate::domain::pairs::pair::Sides;
use crate::domain::policy::outcome;
use crate::error::GatewayError;
use crate::limits::{Admission, AdmitError, AdmitRequest};
use crate::upstream::Call;

/// Maximum number of dispatchers of one app and class: as many as can have a connection ready for one command.
const DISPATCHERS_MAX: usize = 8;
/// How long a dispatcher may wait: longer than any queue. If it were rejected because the queue is long, the next
/// one would start at once.
const DISPATCHER_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

impl AppWorker {
    /// Makes sure that queued pairs are sent: while pairs of a class are queued, a dispatcher of the class is on its way
    /// to take them. Starts one more, unless there are as many dispatchers as pairs.
    pub(super) fn ensure_dispatcher(self: &Arc<Self>, pairs: &Arc<PairService>) {
        // A runtime that is shutting down drops what is spawned on it at once.
        if self.gateway.stopped.load(Ordering::Acquire) {
            return;
        }
        let last = if self.is_draining() { Class::LAST_OF_CALLERS } else { Class::Refresh };
        for class in last.and_earlier() {
            let dispatcher = {
                let mut lookups = pairs.lookups();
                if lookups.dispatchers[class] >= lookups.scheduler.queued_in(class).min(DISPATCHERS_MAX) {
                    continue;
                }
                lookups.dispatchers[class] += 1;
                Dispatcher { worker: Arc::clone(self), pairs: Arc::clone(pairs), class }
            };
            // Without the lock: dropping a dispatcher takes it.
            self.gateway.tasks.spawn(dispatcher.run());
        }
    }

    /// Returns whether the program ends when all tasks have ended. Then nothing is refreshed any more: no request would
    /// see it.
    pub(super) fn is_draining(&self) -> bool {
        self.gateway.tasks.is_closed()
    }

    /// Returns the most urgent class of the requests that wait for a lookup; `None` if no request waits for it.
    pub(in crate::gateway) fn awaited_in(&self, lookup: LookupId) -> Option<Class> {
        let pairs = self.app.relations.of(lookup.kind.check)?;
        pairs.lookups().scheduler.awaited_in(lookup.batch)
    }

    /// Makes the call of a batch. It belongs to no request: requests come and go while it is in flight.
    async fn run_lookup(self: &Arc<Self>, pairs: &Arc<PairService>, batch: Batch, acquired: Acquired) {
        let kind = pairs.kind;
        let guard = CompletionGuard { worker: self, pairs, batch: Some((batch.id, batch.sides)) };
        let body = Bytes::from(kind.encode_call(batch.sides, &batch.from, batch.to.iter().map(|to| &**to)));
        let call = Call { name: kind.check, body, traceparent: None };
        let lookup = LookupId { kind, batch: batch.id };
        let context = CallContext {
            queue: CallerQueue::of_chatgate(batch.queue.class),
            caller: None,
            deadline: Deadline::new(clock::now(), None, self.gateway.config.upstream.timeout),
            trace: self.lookup_parent(lookup),
        };
        let (kind, caused_by) = (CommandKind::Read, batch.caused_by);
        let spec = CallSpec { kind, context, caused_by, write: None, shared: None, stats: None, lookup: Some(lookup) };
        guard.complete(self.call(spec, call, Some(acquired)).await);
    }
}

/// A call that is not filled yet. It gets its connection, waits for its permit, and takes queued pairs only then: pairs
/// that are queued meanwhile travel with it.
struct Dispatcher {
    worker: Arc<AppWorker>,
    pairs: Arc<PairService>,
    /// Whose permit it waits for.
    class: Class,
}

impl Dispatcher {
    async fn run(self) {
        let (worker, pairs, class) = (Arc::clone(&self.worker), Arc::clone(&self.pairs), self.class);
        let acquired = worker.acquire_for_lookups(&pairs, class).await;
        let batch = acquired.as_ref().and_then(|_| pairs.lookups().scheduler.next_batch(class, clock::tick()));
        // From here on it is not a dispatcher. If pairs are still queued, the next one starts.
        drop(self);
        match (batch, acquired) {
            (Some(batch), Some(acquired)) => worker.run_lookup(&pairs, batch, acquired).await,
            // Another dispatcher was faster. The permit is lost.
            (None, Some(Acquired::Ready(permit))) => worker.upstream.release(permit.ready),
            _ => {}
        }
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.pairs.lookups().dispatchers[self.class] -= 1;
        self.worker.ensure_dispatcher(&self.pairs);
    }
}

impl AppWorker {
    /// Waits for a connection and a permit of a class. `None` if no pairs are queued for it any more.
    async fn acquire_for_lookups(&self, pairs: &PairService, class: Class) -> Option<Acquired> {
        let chat = &self.app.chat;
        let parked = || chat.parking().check(pairs.kind.check, clock::tick()).err().map(GatewayError::Parked);
        if let Some(error) = parked() {
            return Some(Acquired::Rejected(error));
        }
        let wanted = || {
            let class = if self.is_draining() { class.min(Class::LAST_OF_CALLERS) } else { class };
            pairs.lookups().scheduler.has_queued_at(class, clock::tick()) && parked().is_none()
        };
        let begun = clock::now();
        // The waiting requests have their own deadlines. The dispatcher gives up when none is left.
        let deadline = begun + DISPATCHER_PATIENCE;
        let request = AdmitRequest { queue: CallerQueue::of_chatgate(class), room: &chat.in_flight, begun, deadline };
        let admitted = pairs.quota.admit(request, self.upstream.connect(), wanted).await;
        // No request waits for a refresh.
        if class != Class::Refresh && !matches!(admitted, Ok(Admission::Cancelled(_))) {
            self.record_quota_wait(begun);
        }
        match admitted {
            Ok(Admission::Granted(permit)) => Some(Acquired::Ready(permit)),
            Ok(Admission::Cancelled(connection)) => {
                self.upstream.release(connection);
                parked().map(Acquired::Rejected)
            }
            Err(AdmitError::Connect(error)) => Some(Acquired::NotConnected(error)),
            // Not expected within DISPATCHER_PATIENCE. The waiting requests time out by themselves.
            Err(AdmitError::DeadlineTooShort(_) | AdmitError::InFlightFull | AdmitError::QueueStalled) => {
                parked().map(Acquired::Rejected)
            }
        }
    }
}

/// Completes a batch whatever happens to its call, so that no request waits forever.
struct CompletionGuard<'a> {
    worker: &'a Arc<AppWorker>,
    pairs: &'a Arc<PairService>,
    /// The batch, and what its call asks.
    batch: Option<(BatchId, Sides)>,
}

impl CompletionGuard<'_> {
    fn complete(mut self, result: CallResult) {
        if let Some((batch, sides)) = self.batch.take() {
            self.apply(batch, sides, result);
        }
    }

    fn apply(&self, batch: BatchId, sides: Sides, result: CallResult) {
        self.pairs.stale_gate.record(allows_stale(&result), clock::tick());
        self.worker.app.apply_response(self.pairs, batch, sides, result);
        self.worker.ensure_dispatcher(self.pairs);
    }
}

impl Drop for CompletionGuard<'_> {
    fn drop(&mut self) {
        // Only a panic, or the end of the program, leaves it here.
        if let Some((batch, sides)) = self.batch.take() {
            self.apply(batch, sides, Err(GatewayError::Internal));
        }
    }
}

impl App {
    /// Applies the result of a batch: caches what may be cached, and notifies the requests whose wait has ended.
    fn apply_response(&self, pairs: &PairService, batch: BatchId, sides: Sides, result: CallResult) {
        let PairService { kind, cache, fence, .. } = pairs;
        let items = match &result {
            Ok(response) if response.error_code == 0 => Some(kind.parse_items(sides, &response.body)),
            _ => None,
        };
        let outcome = match (&items, &result) {
            (Some(Some(items)), _) => BatchOutcome::Answered(items),
            (None, Ok(response)) if outcome::is_about_arguments(kind.check, response.error_code) => {
                BatchOutcome::RejectedArguments
            }
            _ => BatchOutcome::Failed,
        };
        let mut lookups = pairs.lookups();
        let completion = lookups.scheduler.complete(batch, &outcome, |pair| fence.last_mark(pair));
        let Completion { results, cacheable, repeated } = completion;
        end_refreshes(&mut lookups.scheduler, cache);
        let stored: Vec<&CacheablePair> =
            cacheable.iter().filter(|pair| pair.store(cache, fence, self.write_settle)).collect();
        let unreadable = matches!(items, Some(None));
        let failure = Arc::new(if unreadable { Err(GatewayError::UpstreamInvalid(UNREADABLE)) } else { result });
        for (handle, delivery) in lookups.waiters.deliver(results) {
            let delivered = match delivery {
                Delivery::Results(results) => Ok(results),
                Delivery::Failed => Err(Arc::clone(&failure)),
                Delivery::Malformed => Err(Arc::new(Err(GatewayError::UpstreamInvalid(MALFORMED)))),
            };
            // The receiver is gone if the caller has disconnected.
            let _ = handle.tx.send(delivered);
        }
        lookups.charge_repeated(&repeated);
        drop(lookups);
        self.publish_pairs(kind, &stored);
    }
}

impl LookupState {
    /// Charges the calls of repeated lookups to the callers whose requests need them, as if each request were alone. The
    /// lookups are queued already, so it is the next calls of these callers that wait.
    fn charge_repeated(&self, repeated: &[Ticket]) {
        let mut pairs: BTreeMap<Ticket, usize> = BTreeMap::new();
        repeated.iter().for_each(|ticket| *pairs.entry(*ticket).or_default() += 1);
        for (ticket, pairs) in pairs {
            let handle = self.waiters.handle(ticket);
            if let Some(quota) = handle.and_then(|handle| handle.quota.as_ref()) {
                let calls = pairs.div_ceil(self.scheduler.call_max());
                let calls = u32::try_from(calls).unwrap_or(u32::MAX);
                let _ = quota.reserve(calls, clock::tick(), Duration::MAX);
            }
        }
    }
}

/// Lets the cache ask again for refreshes that have ended without a result.
pub(super) fn end_refreshes(scheduler: &mut LookupScheduler, cache: &PairCache) {
    for EndedRefresh { pair, is_void } in scheduler.take_ended_refreshes() {
        if is_void {
            cache.remove(pair);
        } else {
            cache.end_refresh(pair);
        }
    }
}

const UNREADABLE: &str = "its items cannot be read";
const MALFORMED: &str = "it leaves out an account that was asked for, or contradicts itself";
