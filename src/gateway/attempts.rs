//! One call with all its attempts: permit, signature, socket, and what the table of outcomes makes of
//! what comes back.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::course::{Course, Step};
use super::evict::Marks;
use super::record::{Attempt, Notes};
use super::spans::Cause;
use super::state::App;
use super::{Asker, Worker};
use crate::clock;
use crate::domain::command::{CommandKind, CommandName};
use crate::domain::envelope::Envelope;
use crate::domain::follow::pending::CallId;
use crate::domain::follow::writes::Scope;
use crate::domain::outcome::{Effect, Seen, judge};
use crate::domain::parking::{self, Parked, Told};
use crate::error::GatewayError;
use crate::quota::{NoPermit, Permit, Turn, Wait};
use crate::upstream::{Answer, Call, Fault, Lease};

/// A call and what it is allowed.
pub(super) struct Journey<'a> {
    pub app: usize,
    pub kind: CommandKind,
    /// All attempts and waits end by this deadline, and take this caller's turns.
    pub asker: Asker,
    /// What the call may change: marked when it goes out, and once more when it is over.
    pub change: Option<&'a Change>,
    /// Of the request that it is made for, if it is made for one.
    pub notes: Option<&'a Notes>,
    /// The lookup, if it is one.
    pub lookup: Option<CallId>,
}

/// What a call may change, and whether it may have: it has gone out.
pub(super) struct Change {
    pub scope: Scope,
    pub begun: AtomicBool,
}

/// The way to a first attempt, for who has gone it already.
pub(super) type First = Result<Permit<Lease>, Hindered>;

/// Why an attempt could not be made.
#[derive(Debug)]
pub(super) enum Hindered {
    /// No connection.
    NotSent(Fault),
    /// What it would ask is parked.
    Parked(Parked),
    /// No permit before the deadline; after so long there may be one.
    Late(Duration),
    /// No room among the calls in flight before the deadline.
    Full,
    /// Other calls took too long to connect.
    Stuck,
}

impl Worker {
    /// Makes attempts until one is good enough, or nothing more may be tried. What it gives is the last
    /// answer that there was: if there is no time for one more attempt, the caller learns why the one
    /// before failed.
    pub(super) async fn travel(
        &self,
        journey: Journey<'_>,
        call: Call<'_>,
        mut first: Option<First>,
    ) -> Result<Answer, GatewayError> {
        let Journey { app, kind, asker, change, notes, lookup } = journey;
        let (state, upstream, name) = (self.app(app), &self.upstreams[app], call.name);
        let mut course = Course::begin(kind, self.gateway.config.upstream.attempts, &state.retries);
        let (mut marks, mut last) = (None, None);
        loop {
            let cause = asker.trace.map(|above| Cause { above, lookup, tried: course.tried() });
            let begun = clock::now();
            let way = match first.take() {
                Some(way) => way,
                None => pin!(self.way(app, name, asker, notes, begun)).await,
            };
            let now = clock::now();
            let (result, ended, signature) = match way {
                Ok(Permit { slot: _slot, ready: lease }) => {
                    if let Err(parked) = state.parking().admit(name, clock::tick_at(now)) {
                        upstream.give_back(lease);
                        return last.unwrap_or(Err(GatewayError::Parked(parked)));
                    }
                    marks = marks.or_else(|| change.map(|change| Marks::new(&state.follow, &change.scope)));
                    if let Some(change) = change {
                        change.begun.store(true, Ordering::Relaxed);
                    }
                    let signer = state.signer.load_full();
                    let signature = signer.current(clock::unix_now());
                    let attempt = Attempt { app, begun: now, deadline: asker.deadline, notes, cause };
                    let (result, ended) = pin!(self.send(attempt, lease, (&signer, &signature), call.clone())).await;
                    if let Ok(answer) = &result {
                        state.heed(name, answer, kind, (now, ended));
                    }
                    (result, ended, Some(signature))
                }
                Err(Hindered::NotSent(fault)) => {
                    self.unsent_call_span(cause, app, name, begun, &fault);
                    (Err(fault), now, None)
                }
                Err(hindered) => return last.unwrap_or_else(|| Err(hindered.into_error(name))),
            };
            let seen = match &result {
                Ok(answer) => Seen::Answer(answer.error_code),
                Err(fault) => fault.seen(),
            };
            let result = result.map_err(GatewayError::from);
            let left = self.latest_permit(asker.deadline).saturating_duration_since(ended);
            let pause = match course.after(seen, left, clock::call_number(), &state.retries) {
                Step::HandOn => return result,
                Step::SignAgain => {
                    let fresh =
                        signature.and_then(|refused| state.signer.load().after_refusal(&refused, clock::unix_now()));
                    if fresh.is_none() {
                        return result;
                    }
                    Duration::ZERO
                }
                Step::TryAgain(pause) => {
                    // It is one more call that this caller causes.
                    let Ok(reserved) = self.gateway.access.charge(asker.listed, || 1, || left) else { return result };
                    pause.max(reserved.wait)
                }
            };
            tracing::debug!(command = %name, tried = course.tried(), ?seen, ?pause, "one more attempt");
            last = Some(result);
            if pause > Duration::ZERO {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// A connection, then room and permit.
    async fn way(
        &self,
        app: usize,
        name: CommandName<'_>,
        asker: Asker,
        notes: Option<&Notes>,
        begun: Instant,
    ) -> First {
        let (state, upstream) = (self.app(app), &self.upstreams[app]);
        if let Err(parked) = state.parking().check(name, clock::tick_at(begun)) {
            return Err(Hindered::Parked(parked));
        }
        let parked = || state.parking().check(name, clock::tick()).err();
        let deadline = self.latest_permit(asker.deadline);
        let wait = Wait { caller: asker.caller, room: &state.room, begun, deadline };
        let quota = state.quotas.of(name);
        let waited = pin!(quota.wait(wait, upstream.connect(), || parked().is_none())).await;
        let span = self.waited(app, begun);
        if let Some(notes) = notes {
            notes.waited(span);
        }
        match waited {
            Ok(Turn::Go(permit)) => Ok(permit),
            Ok(Turn::Unwanted(lease)) => {
                upstream.give_back(lease);
                Err(parked().map_or(Hindered::Stuck, Hindered::Parked))
            }
            Err(NoPermit::Late(retry_after)) => Err(Hindered::Late(retry_after)),
            Err(NoPermit::Full) => Err(Hindered::Full),
            Err(NoPermit::Stuck) => Err(Hindered::Stuck),
            Err(NoPermit::NotReady(fault)) => Err(Hindered::NotSent(fault)),
        }
    }
}

impl Hindered {
    fn into_error(self, name: CommandName<'_>) -> GatewayError {
        match self {
            Hindered::NotSent(fault) => fault.into(),
            Hindered::Parked(parked) => GatewayError::Parked(parked),
            Hindered::Late(retry_after) => GatewayError::RateLimited { command: name.to_string(), retry_after },
            Hindered::Full => GatewayError::NoRoomInFlight,
            Hindered::Stuck => {
                let what = "connecting takes too long, nothing was sent";
                let cause = "other calls are still waiting for a connection".to_owned();
                GatewayError::UpstreamUnreachable { what, cause }
            }
        }
    }
}

impl App {
    /// What an answer means for the calls that follow.
    fn heed(&self, name: CommandName<'_>, answer: &Answer, kind: CommandKind, (sent, now): (Instant, Instant)) {
        let effect = judge(Seen::Answer(answer.error_code), kind).effect;
        if effect == Effect::SlowDown {
            self.quotas.of(name).refused();
            tracing::warn!(command = %name, code = answer.error_code, limit = self.quotas.of(name).limit(), "Chat wants fewer calls");
        }
        let info = match effect {
            Effect::None | Effect::SlowDown => None,
            _ => Envelope::parse(&answer.body).ok().and_then(|envelope| envelope.error_info),
        };
        let info = info.unwrap_or_default();
        let told = Told { command: name, code: answer.error_code, info: &info, sent: clock::tick_at(sent) };
        let change = self.parking().heed(told, effect, clock::tick_at(now));
        match change {
            parking::Change::None => {}
            parking::Change::App(why) => {
                tracing::warn!(code = why.code, info = why.info, "Chat refuses the app; {}", why.hint);
            }
            parking::Change::Command(why) => {
                tracing::warn!(command = %name, code = why.code, info = why.info, "Chat refuses the command; {}", why.hint);
            }
            parking::Change::Lifted => tracing::info!(command = %name, "Chat takes calls again"),
        }
    }
}
