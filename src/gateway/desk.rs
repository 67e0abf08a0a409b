//! Sends what is pending: as many calls as quota and room allow, and tells who waits.

use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::state::{App, Desk, Follow};
use super::{Refusal, Worker};
use crate::clock;
use crate::domain::command::FOLLOW_CHECK;
use crate::domain::error_code::{self, ErrorClass};
use crate::domain::follow::answer::{CALL_ACCOUNTS_MAX, Items, write_question};
use crate::domain::follow::pair::Pair;
use crate::domain::follow::pending::{Call, CallId, Outcome, Settled, Settlement};
use crate::domain::tick::Tick;
use crate::error::GatewayError;
use crate::upstream::{self, Answer};

impl Follow {
    /// The desk. A panic while it was held left whole operations behind, so it goes on.
    pub(super) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// Sends every call that may go now. If some must wait, one watcher will call again: at any time
    /// something is queued, somebody is going to look.
    pub(super) fn pump(self: &Arc<Self>, app: usize) {
        self.pump_with(app, None);
    }

    fn pump_with(self: &Arc<Self>, app: usize, mut slot: Option<OwnedSemaphorePermit>) {
        let state = self.app(app);
        loop {
            let mut desk = state.follow.desk();
            if !desk.pending.has_queued() {
                return;
            }
            let Some(held) = slot.take().or_else(|| Arc::clone(&state.room).try_acquire_owned().ok()) else {
                if !std::mem::replace(&mut desk.watched, true) {
                    self.watch_room(app);
                }
                return;
            };
            if let Err(wait) = state.follow.quota.take() {
                if !std::mem::replace(&mut desk.watched, true) {
                    self.watch_quota(app, wait);
                }
                return;
            }
            let Some(call) = desk.pending.next_call(CALL_ACCOUNTS_MAX, clock::tick()) else { return };
            drop(desk);
            let worker = Arc::clone(self);
            self.gateway.tasks.spawn(async move { worker.fly(app, call, held).await });
        }
    }

    fn watch_room(self: &Arc<Self>, app: usize) {
        let worker = Arc::clone(self);
        let room = Arc::clone(&self.app(app).room);
        self.gateway.tasks.spawn(async move {
            // In line with everybody else who waits for room.
            let slot = room.acquire_owned().await.ok();
            worker.app(app).follow.desk().watched = false;
            worker.pump_with(app, slot);
        });
    }

    fn watch_quota(self: &Arc<Self>, app: usize, wait: std::time::Duration) {
        let worker = Arc::clone(self);
        self.gateway.tasks.spawn(async move {
            tokio::time::sleep(wait).await;
            worker.app(app).follow.desk().watched = false;
            worker.pump(app);
        });
    }

    /// One lookup under way. It belongs to nobody: callers come and go.
    async fn fly(self: Arc<Self>, app: usize, call: Call, slot: OwnedSemaphorePermit) {
        let landing = Landing { worker: &self, app, call: Some(call.id) };
        let body = Bytes::from(write_question(&call.from, call.to.iter().map(|to| &**to)));
        let request = upstream::Call { name: FOLLOW_CHECK, body, traceparent: None };
        let deadline = clock::now() + self.gateway.config.upstream.attempt_timeout;
        let result = self.upstreams[app].send(&self.app(app).signer, request, deadline).await;
        drop(slot);
        landing.land(result);
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
        let Follow { facts, fence, .. } = &self.follow;
        let mark = |pair: Pair| fence.last_mark(pair);
        let mut desk = self.follow.desk();
        let (settlements, kept) = desk.pending.finish(call, outcome, mark);
        for (pair, fact) in kept {
            // Soon after a write Chat's own replicas may not agree yet.
            let last_mark = mark(pair);
            if last_mark == Tick::NEVER || fact.sent > last_mark.after(self.follow.write_settle) {
                facts.insert(pair.key(), fact);
            }
        }
        desk.tell(settlements, refusal.map(Arc::new));
    }
}

impl Desk {
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
