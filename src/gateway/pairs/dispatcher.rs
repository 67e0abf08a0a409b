//! Sends what is pending, in as many calls as quota and room allow, and tells who waits.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::clock;
use crate::domain::caller::QueueKey;
use crate::domain::chat::command::{CommandKind, FOLLOW_CHECK};
use crate::domain::chat::error_code;
use crate::domain::chat::error_code::ErrorClass;
use crate::domain::follow::response::{encode_call, parse_items};
use crate::domain::pairs::item::CALL_ACCOUNTS_MAX;
use crate::domain::pairs::lookups::{Batch, BatchId, BatchOutcome, PairResult, WaiterResult};
use crate::domain::pairs::pair::Pair;
use crate::domain::policy::outcome::allows_stale;
use crate::domain::tick::Tick;
use crate::error::GatewayError;
use crate::gateway::app::{App, Follow, LookupState};
use crate::gateway::call::{AcquireError, Acquired, CallSpec};
use crate::gateway::{CallContext, CallFailure, Worker};
use crate::limits::{Admission, AdmitError, AdmitRequest};
use crate::upstream::{self, ChatResponse};

/// Most carriers of one app: as many as can get ready for one command.
const DISPATCHERS_MAX: usize = 8;
/// How long a carrier may wait: longer than any line. Were it turned away at once because the line is
/// long, the next one would set out at once.
const DISPATCHER_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

impl Follow {
    /// The desk. A panic while it was held left whole operations behind, so it goes on.
    pub(crate) fn lookups(&self) -> MutexGuard<'_, LookupState> {
        self.lookups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Sees to it that what is queued goes out: as long as something is, a carrier is on its way to
    /// fetch it. One more is sent for, unless there are as many as there are pairs.
    pub(crate) fn ensure_dispatcher(self: &Arc<Self>, app: usize) {
        // A runtime that is being shut down drops what is spawned on it at once.
        if self.gateway.stopped.load(Ordering::Acquire) {
            return;
        }
        let carrier = {
            let mut desk = self.app(app).follow.lookups();
            if desk.dispatchers >= desk.pending.queued().min(DISPATCHERS_MAX) {
                return;
            }
            desk.dispatchers += 1;
            Dispatcher { worker: Arc::clone(self), app }
        };
        // With the desk let go: dropping a carrier takes it.
        self.gateway.tasks.spawn(carrier.run());
    }

    /// One lookup under way. It belongs to nobody: callers come and go.
    async fn run_lookup(self: &Arc<Self>, app: usize, call: Batch, first: Acquired) {
        let landing = CompletionGuard { worker: self, app, call: Some(call.id) };
        let body = Bytes::from(encode_call(&call.from, call.to.iter().map(|to| &**to)));
        let request = upstream::Call { name: FOLLOW_CHECK, body, traceparent: None };
        let deadline = clock::now() + self.gateway.config.upstream.timeout;
        let trace = self.lookup_parent(app, call.id);
        let asker = CallContext { caller: QueueKey::SELF, listed: None, deadline, trace };
        let (change, notes, lookup) = (None, None, Some(call.id));
        let journey = CallSpec { app, kind: CommandKind::Read, asker, change, notes, lookup };
        landing.complete(self.call_with_retries(journey, request, Some(first)).await);
    }
}

/// A call that is not yet filled: it gets its connection, waits for its permit, and only then takes
/// what is queued, so that whatever gathers meanwhile travels with it.
struct Dispatcher {
    worker: Arc<Worker>,
    app: usize,
}

impl Dispatcher {
    async fn run(self) {
        let (worker, app) = (Arc::clone(&self.worker), self.app);
        let state = worker.app(app);
        // Those it serves have their own deadlines; it goes home when nobody is left.
        let deadline = clock::now() + DISPATCHER_PATIENCE;
        let parked = || state.parking().check(FOLLOW_CHECK, clock::tick()).err();
        let wanted = || state.follow.lookups().pending.has_queued() && parked().is_none();
        let connect = worker.upstreams[app].connect();
        let begun = clock::now();
        let wait = AdmitRequest { caller: QueueKey::SELF, room: &state.room, begun, deadline };
        let waited = match parked() {
            None => state.follow.quota.admit(wait, connect, wanted).await,
            Some(_) => Err(AdmitError::QueueStalled),
        };
        if !matches!(waited, Ok(Admission::Cancelled(_))) {
            worker.waited(app, begun);
        }
        let first = match waited {
            Ok(Admission::Granted(permit)) => Some(Ok(permit)),
            Ok(Admission::Cancelled(lease)) => {
                worker.upstreams[app].release(lease);
                parked().map(|parked| Err(AcquireError::Parked(parked)))
            }
            Err(AdmitError::Connect(fault)) => Some(Err(AcquireError::NotSent(fault))),
            Err(AdmitError::DeadlineTooShort(_) | AdmitError::InFlightFull | AdmitError::QueueStalled) => {
                parked().map(|parked| Err(AcquireError::Parked(parked)))
            }
        };
        let call = if first.is_some() { state.follow.lookups().next_call() } else { None };
        // From here on it is no carrier; if more is queued, the next one sets out.
        drop(self);
        match (call, first) {
            (Some(call), Some(first)) => worker.run_lookup(app, call, first).await,
            // Another carrier was quicker; the permit is lost.
            (None, Some(Ok(permit))) => worker.upstreams[app].release(permit.ready),
            _ => {}
        }
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.worker.app(self.app).follow.lookups().dispatchers -= 1;
        self.worker.ensure_dispatcher(self.app);
    }
}

/// Makes sure that a lookup lands: whatever happens to it, those who wait are told.
struct CompletionGuard<'a> {
    worker: &'a Arc<Worker>,
    app: usize,
    call: Option<BatchId>,
}

impl CompletionGuard<'_> {
    fn complete(mut self, result: Result<ChatResponse, GatewayError>) {
        let Some(call) = self.call.take() else { return };
        self.finish(call, result);
    }

    fn finish(&self, call: BatchId, result: Result<ChatResponse, GatewayError>) {
        let state = self.worker.app(self.app);
        let is_trouble = match &result {
            Ok(answer) => allows_stale(answer.error_code),
            Err(error) => error.allows_stale(),
        };
        state.follow.stale_gate.record(is_trouble, clock::tick());
        match result {
            Ok(answer) if answer.error_code == 0 => match parse_items(&answer.body) {
                Some(items) => state.apply_response(call, &BatchOutcome::Answered(&items), None),
                None => {
                    let error = GatewayError::UpstreamInvalid("its items cannot be read");
                    state.apply_response(call, &BatchOutcome::Failed, Some(CallFailure::Gateway(error)));
                }
            },
            Ok(answer) if is_about_arguments(answer.error_code) => {
                state.apply_response(call, &BatchOutcome::RefusedArguments, Some(CallFailure::Chat(answer)));
            }
            Ok(answer) => state.apply_response(call, &BatchOutcome::Failed, Some(CallFailure::Chat(answer))),
            Err(error) => state.apply_response(call, &BatchOutcome::Failed, Some(CallFailure::Gateway(error))),
        }
        self.worker.ensure_dispatcher(self.app);
    }
}

impl Drop for CompletionGuard<'_> {
    fn drop(&mut self) {
        // Only a panic, or the end of the program, leaves it here.
        if let Some(call) = self.call.take() {
            self.finish(call, Err(GatewayError::Internal));
        }
    }
}

/// Whether another question might have fared better. What is not known is taken to be so: asking
/// each question by itself is what the caller would have done.
fn is_about_arguments(code: i64) -> bool {
    error_code::lookup(code)
        .is_none_or(|row| matches!(row.class, ErrorClass::Client | ErrorClass::NotFound | ErrorClass::Blocked))
}

impl App {
    /// A call is over: keeps what may be kept, tells who waited.
    fn apply_response(&self, call: BatchId, outcome: &BatchOutcome<'_>, refusal: Option<CallFailure>) {
        let Follow { cache: facts, fence, .. } = &*self.follow;
        let mark = |pair: Pair| fence.last_mark(pair);
        let mut desk = self.follow.lookups();
        let (settlements, kept) = desk.pending.complete(call, outcome, mark);
        let mut settled = Vec::new();
        for kept in &kept {
            // Soon after a write Chat's own replicas may not agree yet.
            let last_mark = mark(kept.pair);
            if last_mark == Tick::NEVER || kept.fact.sent > last_mark.after(self.write_settle) {
                facts.insert(kept.pair.key(), kept.fact);
                settled.push(kept);
            }
        }
        desk.notify(settlements, refusal.map(Arc::new));
        drop(desk);
        self.publish_pairs(&settled);
    }
}

impl LookupState {
    fn next_call(&mut self) -> Option<Batch> {
        self.pending.next_batch(CALL_ACCOUNTS_MAX, clock::tick())
    }

    /// Hands out what became of pairs. A failure ends the wait of a request at once.
    fn notify(&mut self, settlements: Vec<WaiterResult>, refusal: Option<Arc<CallFailure>>) {
        for WaiterResult { ticket, slot, settled } in settlements {
            let failure = match settled {
                PairResult::Failed => refusal.clone(),
                PairResult::Malformed => {
                    let what = "it leaves out an account that was asked for, or contradicts itself";
                    Some(Arc::new(CallFailure::Gateway(GatewayError::UpstreamInvalid(what))))
                }
                PairResult::Known { .. } | PairResult::Verbatim(..) => None,
            };
            if let Some(failure) = failure {
                if let Some(waiter) = self.waiters.remove(&ticket) {
                    // Nobody listens if its caller has left meanwhile.
                    let _ = waiter.tx.send(Err(failure));
                }
                continue;
            }
            let Some(waiter) = self.waiters.get_mut(&ticket) else { continue };
            waiter.results.push((slot, settled));
            waiter.left -= 1;
            if waiter.left == 0
                && let Some(waiter) = self.waiters.remove(&ticket)
            {
                let _ = waiter.tx.send(Ok(waiter.results));
            }
        }
    }
}
