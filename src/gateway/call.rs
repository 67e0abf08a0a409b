//! One call with all its attempts: permit, signature, socket, and what the table of outcomes makes of
//! what comes back.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::app::App;
use super::invalidation::WriteFence;
use super::observe::access_log::{AttemptContext, CallStats};
use super::observe::spans::CallParent;
use super::{CallContext, Worker};
use crate::clock;
use crate::domain::chat::command::{CommandKind, CommandName};
use crate::domain::chat::envelope::Envelope;
use crate::domain::pairs::lookups::BatchId;
use crate::domain::pairs::scope::Scope;
use crate::domain::policy::outcome::{AttemptOutcome, Effect, classify};
use crate::domain::policy::parking;
use crate::domain::policy::parking::{Observation, Parked};
use crate::domain::policy::retry::{RetryDecision, RetryState};
use crate::error::GatewayError;
use crate::limits::{Admission, AdmitError, AdmitRequest, Permit};
use crate::upstream::{AttemptError, Call, ChatResponse, LeasedConnection};

/// A call and what it is allowed.
pub(super) struct CallSpec<'a> {
    pub app: usize,
    pub kind: CommandKind,
    /// All attempts and waits end by this deadline, and take this caller's turns.
    pub asker: CallContext,
    /// What the call may change: marked when it goes out, and once more when it is over.
    pub change: Option<&'a PendingWrite>,
    /// Of the request that it is made for, if it is made for one.
    pub notes: Option<&'a CallStats>,
    /// The lookup, if it is one.
    pub lookup: Option<BatchId>,
}

/// What a call may change, and whether it may have: it has gone out.
pub(super) struct PendingWrite {
    pub scope: Scope,
    pub begun: AtomicBool,
}

/// The way to a first attempt, for who has gone it already.
pub(super) type Acquired = Result<Permit<LeasedConnection>, AcquireError>;

/// Why an attempt could not be made.
#[derive(Debug)]
pub(super) enum AcquireError {
    /// No connection.
    NotSent(AttemptError),
    /// What it would ask is parked.
    Parked(Parked),
    /// No permit before the deadline; after so long there may be one.
    DeadlineTooShort(Duration),
    /// No room among the calls in flight before the deadline.
    InFlightFull,
    /// Other calls took too long to connect.
    QueueStalled,
}

impl Worker {
    /// Makes attempts until one is good enough, or nothing more may be tried. What it gives is the last
    /// answer that there was: if there is no time for one more attempt, the caller learns why the one
    /// before failed.
    pub(super) async fn call_with_retries(
        &self,
        journey: CallSpec<'_>,
        call: Call<'_>,
        mut first: Option<Acquired>,
    ) -> Result<ChatResponse, GatewayError> {
        let CallSpec { app, kind, asker, change, notes, lookup } = journey;
        let (state, upstream, name) = (self.app(app), &self.upstreams[app], call.name);
        let mut course = RetryState::begin(kind, self.gateway.config.upstream.attempts, &state.retries);
        let (mut marks, mut last) = (None, None);
        loop {
            let cause = asker.trace.map(|above| CallParent { above, lookup, tried: course.retries() });
            let begun = clock::now();
            let way = match first.take() {
                Some(way) => way,
                None => pin!(self.acquire(app, name, asker, notes, begun)).await,
            };
            let now = clock::now();
            let (result, ended, signature) = match way {
                Ok(Permit { slot: _slot, ready: lease }) => {
                    if let Err(parked) = state.parking().admit(name, clock::tick_at(now)) {
                        upstream.release(lease);
                        return last.unwrap_or(Err(GatewayError::Parked(parked)));
                    }
                    marks = marks.or_else(|| change.map(|change| WriteFence::new(&state.follow, &change.scope)));
                    if let Some(change) = change {
                        change.begun.store(true, Ordering::Relaxed);
                    }
                    let signer = state.signer.load_full();
                    let signature = signer.current(clock::unix_now());
                    let attempt = AttemptContext { app, begun: now, deadline: asker.deadline, notes, cause };
                    let (result, ended) = pin!(self.send(attempt, lease, (&signer, &signature), call.clone())).await;
                    if let Ok(answer) = &result {
                        state.on_response(name, answer, kind, (now, ended));
                    }
                    (result, ended, Some(signature))
                }
                Err(AcquireError::NotSent(fault)) => {
                    self.unsent_call_span(cause, app, name, begun, &fault);
                    (Err(fault), now, None)
                }
                Err(hindered) => return last.unwrap_or_else(|| Err(hindered.into_error(name))),
            };
            let seen = match &result {
                Ok(answer) => AttemptOutcome::Answer(answer.error_code),
                Err(fault) => fault.outcome(),
            };
            let result = result.map_err(GatewayError::from);
            let left = self.latest_permit(asker.deadline).saturating_duration_since(ended);
            let pause = match course.on_outcome(seen, left, clock::random_u32(), &state.retries) {
                RetryDecision::Return => return result,
                RetryDecision::RetryWithFreshSignature => {
                    let fresh =
                        signature.and_then(|refused| state.signer.load().after_rejection(&refused, clock::unix_now()));
                    if fresh.is_none() {
                        return result;
                    }
                    Duration::ZERO
                }
                RetryDecision::RetryAfter(pause) => {
                    // It is one more call that this caller causes.
                    let Ok(reserved) = self.gateway.access.reserve(asker.listed, || 1, || left) else { return result };
                    pause.max(reserved.wait)
                }
            };
            tracing::debug!(command = %name, tried = course.retries(), ?seen, ?pause, "one more attempt");
            last = Some(result);
            if pause > Duration::ZERO {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// A connection, then room and permit.
    async fn acquire(
        &self,
        app: usize,
        name: CommandName<'_>,
        asker: CallContext,
        notes: Option<&CallStats>,
        begun: Instant,
    ) -> Acquired {
        let (state, upstream) = (self.app(app), &self.upstreams[app]);
        if let Err(parked) = state.parking().check(name, clock::tick_at(begun)) {
            return Err(AcquireError::Parked(parked));
        }
        let parked = || state.parking().check(name, clock::tick()).err();
        let deadline = self.latest_permit(asker.deadline);
        let wait = AdmitRequest { caller: asker.caller, room: &state.room, begun, deadline };
        let quota = state.quotas.of(name);
        let waited = pin!(quota.admit(wait, upstream.connect(), || parked().is_none())).await;
        let span = self.waited(app, begun);
        if let Some(notes) = notes {
            notes.waited(span);
        }
        match waited {
            Ok(Admission::Granted(permit)) => Ok(permit),
            Ok(Admission::Cancelled(lease)) => {
                upstream.release(lease);
                Err(parked().map_or(AcquireError::QueueStalled, AcquireError::Parked))
            }
            Err(AdmitError::DeadlineTooShort(retry_after)) => Err(AcquireError::DeadlineTooShort(retry_after)),
            Err(AdmitError::InFlightFull) => Err(AcquireError::InFlightFull),
            Err(AdmitError::QueueStalled) => Err(AcquireError::QueueStalled),
            Err(AdmitError::Connect(fault)) => Err(AcquireError::NotSent(fault)),
        }
    }
}

impl AcquireError {
    fn into_error(self, name: CommandName<'_>) -> GatewayError {
        match self {
            AcquireError::NotSent(fault) => fault.into(),
            AcquireError::Parked(parked) => GatewayError::Parked(parked),
            AcquireError::DeadlineTooShort(retry_after) => {
                GatewayError::RateLimited { command: name.to_string(), retry_after }
            }
            AcquireError::InFlightFull => GatewayError::InFlightFull,
            AcquireError::QueueStalled => {
                let what = "connecting takes too long, nothing was sent";
                let cause = "other calls are still waiting for a connection".to_owned();
                GatewayError::UpstreamUnreachable { what, cause }
            }
        }
    }
}

impl App {
    /// What an answer means for the calls that follow.
    fn on_response(
        &self,
        name: CommandName<'_>,
        answer: &ChatResponse,
        kind: CommandKind,
        (sent, now): (Instant, Instant),
    ) {
        let effect = classify(AttemptOutcome::Answer(answer.error_code), kind).effect;
        if effect == Effect::SlowDown {
            self.quotas.of(name).on_throttled();
            tracing::warn!(command = %name, code = answer.error_code, limit = self.quotas.of(name).limit(), "Chat wants fewer calls");
        }
        let info = match effect {
            Effect::None | Effect::SlowDown => None,
            _ => Envelope::parse(&answer.body).ok().and_then(|envelope| envelope.error_info),
        };
        let info = info.unwrap_or_default();
        let told = Observation { command: name, code: answer.error_code, info: &info, sent: clock::tick_at(sent) };
        let change = self.parking().on_response(told, effect, clock::tick_at(now));
        match change {
            parking::ParkingChange::None => {}
            parking::ParkingChange::App(why) => {
                tracing::warn!(code = why.code, info = why.info, "Chat refuses the app; {}", why.hint);
            }
            parking::ParkingChange::Command(why) => {
                tracing::warn!(command = %name, code = why.code, info = why.info, "Chat refuses the command; {}", why.hint);
            }
            parking::ParkingChange::Lifted => tracing::info!(command = %name, "Chat takes calls again"),
        }
    }
}
