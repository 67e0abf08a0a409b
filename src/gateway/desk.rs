//! Sends what is pending, in as many calls as quota and room allow, and tells who waits.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::attempts::{First, Hindered, Journey};
use super::state::{App, Desk, Follow};
use super::{Asker, Refusal, Worker};
use crate::clock;
use crate::domain::caller::CallerId;
use crate::domain::command::{CommandKind, FOLLOW_CHECK};
use crate::domain::error_code::{self, ErrorClass};
use crate::domain::follow::answer::{CALL_ACCOUNTS_MAX, Items, write_question};
use crate::domain::follow::pair::Pair;
use crate::domain::follow::pending::{Call, CallId, Outcome, Settled, Settlement};
use crate::domain::outcome::is_trouble;
use crate::domain::tick::Tick;
use crate::error::GatewayError;
use crate::quota::{NoPermit, Turn, Wait};
use crate::upstream::{self, Answer};

/// Most carriers of one app: as many as can get ready for one command.
const CARRIERS_MAX: usize = 8;
/// How long a carrier may wait: longer than any line. Were it turned away at once because the line is
/// long, the next one would set out at once.
const CARRIER_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

impl Follow {
    /// The desk. A panic while it was held left whole operations behind, so it goes on.
    pub(super) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Sees to it that what is queued goes out: as long as something is, a carrier is on its way to
    /// fetch it. One more is sent for, unless there are as many as there are pairs.
    pub(super) fn pump(self: &Arc<Self>, app: usize) {
        // A runtime that is being shut down drops what is spawned on it at once.
        if self.gateway.stopped.load(Ordering::Acquire) {
            return;
        }
        let carrier = {
            let mut desk = self.app(app).follow.desk();
            if desk.carriers >= desk.pending.queued().min(CARRIERS_MAX) {
                return;
            }
            desk.carriers += 1;
            Carrier { worker: Arc::clone(self), app }
        };
        // With the desk let go: dropping a carrier takes it.
        self.gateway.tasks.spawn(carrier.run());
    }

    /// One lookup under way. It belongs to nobody: callers come and go.
    async fn fly(self: &Arc<Self>, app: usize, call: Call, first: First) {
        let landing = Landing { worker: self, app, call: Some(call.id) };
        let body = Bytes::from(write_question(&call.from, call.to.iter().map(|to| &**to)));
        let request = upstream::Call { name: FOLLOW_CHECK, body, traceparent: None };
        let deadline = clock::now() + self.gateway.config.upstream.timeout;
        let trace = self.cause_of(app, call.id);
        let asker = Asker { caller: CallerId::SELF, listed: None, deadline, trace };
        let (change, notes, lookup) = (None, None, Some(call.id));
        let journey = Journey { app, kind: CommandKind::Read, asker, change, notes, lookup };
        landing.land(self.travel(journey, request, Some(first)).await);
    }
}

/// A call that is not yet filled: it gets its connection, waits for its permit, and only then takes
/// what is queued, so that whatever gathers meanwhile travels with it.
struct Carrier {
    worker: Arc<Worker>,
    app: usize,
}

impl Carrier {
    async fn run(self) {
        let (worker, app) = (Arc::clone(&self.worker), self.app);
        let state = worker.app(app);
        // Those it serves have their own deadlines; it goes home when nobody is left.
        let deadline = clock::now() + CARRIER_PATIENCE;
        let parked = || state.parking().check(FOLLOW_CHECK, clock::tick()).err();
        let wanted = || state.follow.desk().pending.has_queued() && parked().is_none();
        let connect = worker.upstreams[app].connect();
        let begun = clock::now();
        let wait = Wait { caller: CallerId::SELF, room: &state.room, begun, deadline };
        let waited = match parked() {
            None => state.follow.quota.wait(wait, connect, wanted).await,
            Some(_) => Err(NoPermit::Stuck),
        };
        if !matches!(waited, Ok(Turn::Unwanted(_))) {
            worker.waited(app, begun);
        }
        let first = match waited {
            Ok(Turn::Go(permit)) => Some(Ok(permit)),
            Ok(Turn::Unwanted(lease)) => {
                worker.upstreams[app].give_back(lease);
                parked().map(|parked| Err(Hindered::Parked(parked)))
            }
            Err(NoPermit::NotReady(fault)) => Some(Err(Hindered::NotSent(fault))),
            Err(NoPermit::Late(_) | NoPermit::Full | NoPermit::Stuck) => {
                parked().map(|parked| Err(Hindered::Parked(parked)))
            }
        };
        let call = if first.is_some() { state.follow.desk().next_call() } else { None };
        // From here on it is no carrier; if more is queued, the next one sets out.
        drop(self);
        match (call, first) {
            (Some(call), Some(first)) => worker.fly(app, call, first).await,
            // Another carrier was quicker; the permit is lost.
            (None, Some(Ok(permit))) => worker.upstreams[app].give_back(permit.ready),
            _ => {}
        }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.worker.app(self.app).follow.desk().carriers -= 1;
        self.worker.pump(self.app);
    }
}

/// Makes sure that a lookup lands: whatever happens to it, those who wait are told.
struct Landing<'a> {
    worker: &'a Arc<Worker>,
    app: usize,
    call: Option<CallId>,
}

impl Landing<'_> {
    fn land(mut self, result: Result<Answer, GatewayError>) {
        let Some(call) = self.call.take() else { return };
        self.finish(call, result);
    }

    fn finish(&self, call: CallId, result: Result<Answer, GatewayError>) {
        let state = self.worker.app(self.app);
        let is_trouble = match &result {
            Ok(answer) => is_trouble(answer.error_code),
            Err(error) => error.is_trouble(),
        };
        state.follow.sickness.note(is_trouble, clock::tick());
        match result {
            Ok(answer) if answer.error_code == 0 => match Items::read(&answer.body) {
                Some(items) => state.settle(call, &Outcome::Answered(&items), None),
                None => {
                    let error = GatewayError::UpstreamInvalid("its items cannot be read");
                    state.settle(call, &Outcome::Failed, Some(Refusal::Gateway(error)));
                }
            },
            Ok(answer) if is_about_arguments(answer.error_code) => {
                state.settle(call, &Outcome::RefusedArguments, Some(Refusal::Chat(answer)));
            }
            Ok(answer) => state.settle(call, &Outcome::Failed, Some(Refusal::Chat(answer))),
            Err(error) => state.settle(call, &Outcome::Failed, Some(Refusal::Gateway(error))),
        }
        self.worker.pump(self.app);
    }
}

impl Drop for Landing<'_> {
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
    fn settle(&self, call: CallId, outcome: &Outcome<'_>, refusal: Option<Refusal>) {
        let Follow { facts, fence, .. } = &*self.follow;
        let mark = |pair: Pair| fence.last_mark(pair);
        let mut desk = self.follow.desk();
        let (settlements, kept) = desk.pending.finish(call, outcome, mark);
        let mut settled = Vec::new();
        for kept in &kept {
            // Soon after a write Chat's own replicas may not agree yet.
            let last_mark = mark(kept.pair);
            if last_mark == Tick::NEVER || kept.fact.sent > last_mark.after(self.write_settle) {
                facts.insert(kept.pair.key(), kept.fact);
                settled.push(kept);
            }
        }
        desk.tell(settlements, refusal.map(Arc::new));
        drop(desk);
        self.share(&settled);
    }
}

impl Desk {
    fn next_call(&mut self) -> Option<Call> {
        self.pending.next_call(CALL_ACCOUNTS_MAX, clock::tick())
    }

    /// Hands out what became of pairs. A failure ends the wait of a request at once.
    fn tell(&mut self, settlements: Vec<Settlement>, refusal: Option<Arc<Refusal>>) {
        for Settlement { ticket, slot, settled } in settlements {
            let failure = match settled {
                Settled::Failed => refusal.clone(),
                Settled::Unfit => {
                    let what = "it leaves out an account that was asked for, or contradicts itself";
                    Some(Arc::new(Refusal::Gateway(GatewayError::UpstreamInvalid(what))))
                }
                Settled::Fact { .. } | Settled::Verbatim(..) => None,
            };
            if let Some(failure) = failure {
                if let Some(waiter) = self.waiters.remove(&ticket) {
                    // Nobody listens if its caller has left meanwhile.
                    let _ = waiter.tell.send(Err(failure));
                }
                continue;
            }
            let Some(waiter) = self.waiters.get_mut(&ticket) else { continue };
            waiter.got.push((slot, settled));
            waiter.left -= 1;
            if waiter.left == 0
                && let Some(waiter) = self.waiters.remove(&ticket)
            {
                let _ = waiter.tell.send(Ok(waiter.got));
            }
        }
    }
}
