//! One call to Chat with all its attempts.
//!
//! [`CallSession`] decides; this file waits, signs, and sends. An attempt gets its connection first, then its permit,
//! and its signature last: connecting takes time that must not fall between permit and socket, and a signature must
//! not expire while the call is queued.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::app::App;
use super::invalidation::{Change, WriteFence};
use super::observe::calls::AttemptContext;
use super::observe::spans::CallParent;
use super::pairs::LookupId;
use super::request::{CallContext, CallStats};
use super::response::CallResult;
use super::worker::AppWorker;
use crate::clock;
use crate::domain::caller::{Class, QueueKey};
use crate::domain::chat::command::{CommandKind, CommandName};
use crate::domain::chat::envelope::Envelope;
use crate::domain::policy::call::{CallSession, ResponseSeen, RetryDecision};
use crate::domain::policy::outcome::{AttemptOutcome, Effect};
use crate::domain::policy::parking::ParkingChange;
use crate::domain::reads::calls::Progress;
use crate::domain::tick::Tick;
use crate::error::GatewayError;
use crate::limits::{Admission, AdmitError, AdmitRequest, LimitChange, Permit};
use crate::upstream::signer::Signature;
use crate::upstream::{AttemptError, Call, ChatResponse, LeasedConnection};

/// What a call is made for, and what it may do.
pub(super) struct CallSpec<'a> {
    pub kind: CommandKind,
    /// All attempts and waits end by its deadline.
    pub context: CallContext,
    /// The caller that the call is counted for.
    pub caused_by: QueueKey,
    /// What the call may change: the fence is marked when the call leaves, and again when it has ended.
    pub write: Option<&'a PendingWrite>,
    /// Of a call that requests share.
    pub shared: Option<&'a Progress>,
    /// Of the request that makes the call, if one request does.
    pub stats: Option<&'a CallStats>,
    /// The pairs that the call looks up, if it is a lookup.
    pub lookup: Option<LookupId>,
}

/// What a call may change, and whether the call has left.
pub(super) struct PendingWrite {
    pub change: Change,
    pub sent: AtomicBool,
}

impl PendingWrite {
    /// It has not left.
    pub(super) fn new(change: Change) -> Self {
        Self { change, sent: AtomicBool::new(false) }
    }
}

/// How acquiring a connection and a permit ended.
pub(super) enum Acquired {
    /// The call may be sent.
    Ready(Permit<LeasedConnection>),
    /// Connecting failed. This counts as an attempt.
    NotConnected(AttemptError),
    /// The call must not be sent.
    Rejected(GatewayError),
}

/// An attempt that has ended.
struct Attempt {
    result: Result<ChatResponse, AttemptError>,
    ended: Instant,
    /// `None` if nothing was signed.
    signature: Option<Arc<Signature>>,
}

impl AppWorker {
    /// Makes attempts until one succeeds or nothing more may be tried, and returns the result of the last attempt that
    /// was made: if there is no time for another one, the caller learns why the one before it failed.
    pub(super) async fn call(&self, spec: CallSpec<'_>, call: Call<'_>, mut acquired: Option<Acquired>) -> CallResult {
        let (chat, name) = (&self.app.chat, call.name);
        let mut session = CallSession::new(name, spec.kind, self.gateway.config.upstream.attempts, &chat.retries);
        // Dropped on every way out of this function, before the caller gets the result: it then marks a second time.
        let mut fence = None;
        let mut last = None;
        loop {
            let lookup = spec.lookup;
            let parent = spec.context.trace.map(|above| CallParent { above, lookup, attempts: session.attempts() });
            let started = clock::now();
            let acquired = match acquired.take() {
                Some(acquired) => acquired,
                None => pin!(self.acquire(&session, name, &spec, started)).await,
            };
            let now = clock::now();
            let attempt = match acquired {
                Acquired::Ready(permit) => {
                    if let Err(parked) = session.admit(&mut chat.parking(), clock::tick_at(now)) {
                        self.upstream.release(permit.ready);
                        return last.unwrap_or(Err(GatewayError::Parked(parked)));
                    }
                    if let Some(write) = spec.write {
                        fence.get_or_insert_with(|| WriteFence::new(&self.app, &write.change));
                        write.sent.store(true, Ordering::Relaxed);
                    }
                    if let Some(shared) = spec.shared {
                        shared.record_sent(clock::tick_at(now));
                    }
                    let deadline = spec.context.deadline.of_call(spec.kind);
                    let attempt =
                        AttemptContext { started: now, deadline, caused_by: spec.caused_by, stats: spec.stats, parent };
                    pin!(self.attempt(&session, attempt, permit, &call)).await
                }
                Acquired::NotConnected(error) => {
                    self.record_unsent_call(parent, name, started, &error);
                    Attempt { result: Err(error), ended: now, signature: None }
                }
                Acquired::Rejected(error) => return last.unwrap_or(Err(error)),
            };
            let outcome = match &attempt.result {
                Ok(response) => AttemptOutcome::Answer(response.error_code),
                Err(error) => error.outcome(),
            };
            let result = attempt.result.map_err(GatewayError::from);
            let left = spec.context.deadline.permit.saturating_duration_since(attempt.ended);
            let pause = match session.on_outcome(outcome, left, clock::random_u32(), &chat.retries) {
                RetryDecision::Return => return result,
                // Only the result of a refresh is missed, and the next request begins another one.
                RetryDecision::RetryAfter(_) if spec.lookup.is_some_and(|lookup| self.awaited_in(lookup).is_none()) => {
                    return result;
                }
                RetryDecision::RetryWithFreshSignature if !self.app.renew_signature(attempt.signature) => {
                    return result;
                }
                RetryDecision::RetryWithFreshSignature => Duration::ZERO,
                RetryDecision::RetryAfter(pause) => {
                    // The retry is one more call that this caller causes.
                    let reserved = self.gateway.access.reserve(spec.context.caller, || 1, || left);
                    let Ok(reserved) = reserved else { return result };
                    pause.max(reserved.wait)
                }
            };
            tracing::debug!(command = name.shown(), attempts = session.attempts(), ?outcome, ?pause, "retrying a call");
            last = Some(result);
            if pause > Duration::ZERO {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Waits for a connection, then for room in flight and a permit.
    async fn acquire(
        &self,
        session: &CallSession<'_>,
        name: CommandName<'_>,
        spec: &CallSpec<'_>,
        started: Instant,
    ) -> Acquired {
        let chat = &self.app.chat;
        if let Err(parked) = session.check(&chat.parking(), clock::tick_at(started)) {
            return Acquired::Rejected(GatewayError::Parked(parked));
        }
        let parked = || session.check(&chat.parking(), clock::tick()).err();
        let CallContext { mut queue, deadline, .. } = spec.context;
        if let Some(shared) = spec.shared {
            queue.class = shared.wait_for_permit();
        }
        // A request may have joined a call that was made for a less urgent one.
        queue.class = spec.lookup.and_then(|lookup| self.awaited_in(lookup)).unwrap_or(queue.class);
        let request = AdmitRequest { queue, room: &chat.in_flight, begun: started, deadline: deadline.permit };
        let quota = chat.quotas.of(name);
        let admitted = pin!(quota.admit(request, self.upstream.connect(), || parked().is_none())).await;
        let waited = self.record_quota_wait(started);
        if let Some(stats) = spec.stats {
            stats.add_wait(waited);
        }
        match admitted {
            Ok(Admission::Granted(permit)) => Acquired::Ready(permit),
            Ok(Admission::Cancelled(connection)) => {
                self.upstream.release(connection);
                Acquired::Rejected(parked().map_or_else(queue_stalled, GatewayError::Parked))
            }
            Err(error) => Acquired::not_admitted(error, name),
        }
    }

    /// Signs and sends one attempt, and applies what its response means for later calls.
    async fn attempt(
        &self,
        session: &CallSession<'_>,
        context: AttemptContext<'_>,
        permit: Permit<LeasedConnection>,
        call: &Call<'_>,
    ) -> Attempt {
        // Held until the response is in.
        let Permit { slot: _slot, ready: connection } = permit;
        let started = context.started;
        let signer = self.app.chat.signer.load_full();
        let signature = signer.current(clock::unix_now());
        let (result, ended) = pin!(self.send_recorded(context, connection, &signer, &signature, call.clone())).await;
        if let Ok(response) = &result {
            self.app.on_response(session, call.name, response, started, ended);
        }
        Attempt { result, ended, signature: Some(signature) }
    }
}

impl Acquired {
    pub(super) fn not_admitted(error: AdmitError<AttemptError>, name: CommandName<'_>) -> Self {
        Acquired::Rejected(match error {
            AdmitError::Connect(error) => return Acquired::NotConnected(error),
            AdmitError::DeadlineTooShort(retry_after) => {
                GatewayError::RateLimited { command: name.shown(), retry_after }
            }
            AdmitError::InFlightFull => GatewayError::InFlightFull,
            AdmitError::QueueStalled => queue_stalled(),
        })
    }
}

fn queue_stalled() -> GatewayError {
    let what = "connecting takes too long; no data was sent";
    let cause = "other calls are still waiting for a connection".to_owned();
    GatewayError::UpstreamUnreachable { what, cause }
}

impl App {
    /// Returns what was missing for a call that has waited for its permit since `begun`, when it is too late.
    pub(super) fn no_permit(&self, name: CommandName<'_>, class: Class, begun: Tick) -> GatewayError {
        let quota = self.chat.quotas.of(name);
        if self.chat.in_flight.is_full() {
            GatewayError::InFlightFull
        } else if quota.next_at_for(class) >= begun {
            GatewayError::RateLimited { command: name.shown(), retry_after: quota.interval(class) }
        } else {
            // There was quota. Connecting took too long.
            GatewayError::UpstreamTimeout
        }
    }

    /// Makes sure that the next attempt has a signature newer than `rejected`. Returns false if there is none.
    fn renew_signature(&self, rejected: Option<Arc<Signature>>) -> bool {
        let signer = self.chat.signer.load();
        rejected.and_then(|rejected| signer.after_rejection(&rejected, clock::unix_now())).is_some()
    }

    /// Applies a response to the command's rate limit and to what is parked.
    fn on_response(
        &self,
        session: &CallSession<'_>,
        name: CommandName<'_>,
        response: &ChatResponse,
        sent: Instant,
        received: Instant,
    ) {
        let code = response.error_code;
        let effect = session.effect(code);
        if effect == Effect::SlowDown {
            self.on_throttled(name, code);
        }
        let info = match effect {
            Effect::None | Effect::SlowDown => None,
            _ => Envelope::parse(&response.body).ok().and_then(|envelope| envelope.error_info),
        };
        let info = info.unwrap_or_default();
        let (sent, received) = (clock::tick_at(sent), clock::tick_at(received));
        let seen = ResponseSeen { code, info: &info, sent, received };
        let app = &self.name;
        // Bound first: the lock must not be held while a line is logged.
        let change = session.on_response(seen, &mut self.chat.parking());
        match change {
            ParkingChange::None => {}
            ParkingChange::App(reason) => {
                let (error_code, error_info, hint) = (reason.code, &*reason.info, reason.hint);
                tracing::warn!(%app, error_code, error_info, hint, "app parked: Chat rejects its calls");
            }
            ParkingChange::Command(reason) => {
                let (error_code, error_info, hint) = (reason.code, &*reason.info, reason.hint);
                tracing::warn!(%app, command = name.shown(), error_code, error_info, hint, "command parked: Chat rejects its calls");
            }
            ParkingChange::Lifted => {
                tracing::info!(%app, command = name.shown(), "no longer parked: Chat accepts calls again")
            }
        }
    }

    fn on_throttled(&self, name: CommandName<'_>, error_code: i64) {
        let Some(LimitChange { old: old_limit, new: new_limit, is_first }) = self.chat.quotas.of(name).on_throttled()
        else {
            return;
        };
        let app = &self.name;
        // One warning until the limit has recovered. /status shows the limit, and the metrics count throttled calls.
        if is_first {
            tracing::warn!(%app, command = name.shown(), error_code, old_limit, new_limit, "throttled by Chat; lowering the command's rate limit");
        } else {
            tracing::debug!(%app, command = name.shown(), error_code, old_limit, new_limit, "throttled again; lowering the command's rate limit");
        }
    }
}
