//! Everything but an answerable `follow_check`: handed on as it is, and what comes back handed back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;

use super::evict::Marks;
use super::record::Notes;
use super::{Asker, Reply, Worker, counted};
use crate::bounds::Held;
use crate::clock;
use crate::domain::command::{CommandKind, CommandName};
use crate::domain::follow::writes;
use crate::error::GatewayError;
use crate::quota::{NoPermit, Permit, Turn, Wait};
use crate::upstream::{Answer, Call};

/// What is kept of a deadline for the call itself: a tenth of `upstream.timeout`, up to this much.
const RESERVE_MAX: Duration = Duration::from_millis(250);

/// By when Chat has carried out or given up a call that it has not answered: its own timeout is 3 s
/// (vendor page "RESTful API Overview", 1047/34620), and one more.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(4);

/// What is to be handed on.
pub(super) struct Order {
    pub body: Bytes,
    /// Counts the body's bytes until the order is done.
    #[allow(dead_code, reason = "it is there to be dropped")]
    pub held: Held,
    pub traceparent: Option<HeaderValue>,
    pub asker: Asker,
    /// Told what the call does.
    pub notes: Arc<Notes>,
}

impl Worker {
    /// Hands a call on. A write runs in a task of its own: its caller may leave, the write may not.
    pub(super) async fn relay(
        self: &Arc<Self>,
        app: usize,
        name: CommandName<'_>,
        order: Order,
    ) -> Result<Reply, GatewayError> {
        let answer = match name.kind() {
            CommandKind::Read => self.call(app, name, order).await?,
            CommandKind::Write => {
                let (worker, owned) = (Arc::clone(self), name.to_string());
                let task = self.gateway.tasks.spawn(async move {
                    let name = CommandName::parse(&owned).expect("it was one");
                    worker.call(app, name, order).await
                });
                task.await.map_err(|_| GatewayError::Internal)??
            }
        };
        let body = counted(answer.body, Some(answer.held));
        Ok(Reply::from_chat(answer.status, answer.content_type, body, answer.error_code))
    }

    /// Until when a call may get its permit. In the last moment it would be lost: the call is broken
    /// off, and if it is a write nobody knows whether it was carried out.
    pub(super) fn latest_permit(&self, deadline: Instant) -> Instant {
        let reserve = (self.gateway.config.upstream.timeout / 10).min(RESERVE_MAX);
        deadline.checked_sub(reserve).unwrap_or(deadline)
    }

    async fn call(&self, app: usize, name: CommandName<'_>, order: Order) -> Result<Answer, GatewayError> {
        let (state, upstream) = (self.app(app), &self.upstreams[app]);
        let Asker { caller, deadline } = order.asker;
        let wait = Wait { caller, room: &state.room, deadline: self.latest_permit(deadline) };
        let begun = clock::now();
        let waited = state.quotas.of(name).wait(wait, upstream.connect(), || true).await;
        order.notes.waited(self.waited(app, begun));
        let permit = waited.map_err(|no_permit| match no_permit {
            NoPermit::Late(retry_after) => GatewayError::RateLimited { command: name.to_string(), retry_after },
            NoPermit::Stuck => stuck(),
            NoPermit::NotReady(error) => error,
        })?;
        let Turn::Go(Permit { slot: _slot, ready: lease }) = permit else { return Err(GatewayError::Internal) };
        // Marks its pairs now and when it goes out of scope, which is before the answer goes out.
        let scope = writes::scope(name, &order.body);
        let _marks = scope.as_ref().map(|scope| Marks::new(&state.follow, scope));
        let call = Call { name, body: order.body, traceparent: order.traceparent };
        let result = self.send(app, lease, call, deadline, Some(&order.notes)).await;
        if result.is_err()
            && let Some(scope) = scope
        {
            // Chat may still be at it. What is asked until it has given up may be from before.
            let gateway = Arc::clone(&self.gateway);
            tokio::spawn(async move {
                tokio::time::sleep(GIVEN_UP_AFTER).await;
                gateway.evict(app, &scope);
            });
        }
        result
    }
}

/// Those before this call took so long to connect that its deadline came.
pub(super) fn stuck() -> GatewayError {
    let what = "connecting takes too long, nothing was sent";
    GatewayError::UpstreamUnreachable { what, cause: "other calls are still waiting for a connection".to_owned() }
}
