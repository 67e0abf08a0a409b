//! Everything but an answerable `follow_check`: handed on as it is, and what comes back handed back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;

use super::state::Follow;
use super::{Asker, Reply, Worker};
use crate::bounds::Held;
use crate::clock;
use crate::domain::command::{CommandKind, CommandName};
use crate::domain::follow::pair::{Pair, PairKey, UserKey};
use crate::domain::follow::writes::{self, Scope};
use crate::error::GatewayError;
use crate::quota::{NoPermit, Permit, Turn, Wait};
use crate::upstream::{Answer, Call};

/// What is kept of a deadline for the call itself: a tenth of `upstream.timeout`, up to this much.
const RESERVE_MAX: Duration = Duration::from_millis(250);

/// What is to be handed on.
pub(super) struct Order {
    pub body: Bytes,
    /// Counts the body's bytes until the order is done.
    #[allow(dead_code, reason = "it is there to be dropped")]
    pub held: Held,
    pub traceparent: Option<HeaderValue>,
    pub asker: Asker,
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
        Ok(Reply::from_chat(answer.status, answer.content_type, answer.body))
    }

    async fn call(&self, app: usize, name: CommandName<'_>, order: Order) -> Result<Answer, GatewayError> {
        let (state, upstream) = (self.app(app), &self.upstreams[app]);
        let Asker { caller, deadline } = order.asker;
        // A permit in the last moment would be lost: the call is broken off, and if it is a write
        // nobody knows whether it was carried out.
        let timeout = self.gateway.config.upstream.timeout;
        let latest = deadline.checked_sub((timeout / 10).min(RESERVE_MAX)).unwrap_or(deadline);
        let wait = Wait { caller, room: &state.room, deadline: latest };
        let waited = state.quotas.of(name).wait(wait, upstream.connect(), || true).await;
        let permit = waited.map_err(|no_permit| match no_permit {
            NoPermit::Late(retry_after) => GatewayError::RateLimited { command: name.to_string(), retry_after },
            NoPermit::Stuck => stuck(),
            NoPermit::NotReady(error) => error,
        })?;
        let Turn::Go(Permit { slot: _slot, ready: lease }) = permit else { return Err(GatewayError::Internal) };
        // Marks its pairs now and when it goes out of scope, which is before the answer goes out.
        let _marks = writes::scope(name, &order.body).map(|scope| Marks::new(&state.follow, &scope));
        let call = Call { name, body: order.body, traceparent: order.traceparent };
        upstream.send(lease, &state.signer, call, deadline).await
    }
}

/// Those before this call took so long to connect that its deadline came.
pub(super) fn stuck() -> GatewayError {
    let what = "connecting takes too long, nothing was sent";
    GatewayError::UpstreamUnreachable { what, cause: "other calls are still waiting for a connection".to_owned() }
}

/// A write under way, for the fence: marks what it may change when it begins and when it ends,
/// however it ends.
struct Marks<'a> {
    follow: &'a Follow,
    pairs: Vec<PairKey>,
    users: Vec<UserKey>,
    all: bool,
}

impl<'a> Marks<'a> {
    fn new(follow: &'a Follow, scope: &Scope) -> Self {
        let user = |name: &String| follow.hasher.user(name);
        let mut marks = Self { follow, pairs: Vec::new(), users: Vec::new(), all: false };
        match scope {
            Scope::Pairs { from, to } => {
                let from = user(from);
                marks.pairs = to.iter().map(|to| Pair { from, to: user(to) }.key()).collect();
            }
            Scope::Users(names) => marks.users = names.iter().map(user).collect(),
            Scope::All => marks.all = true,
        }
        marks.mark();
        marks
    }

    fn mark(&self) {
        let (fence, now) = (&self.follow.fence, clock::tick());
        self.pairs.iter().for_each(|pair| fence.mark_pair(*pair, now));
        self.users.iter().for_each(|user| fence.mark_user(*user, now));
        if self.all {
            fence.mark_all(now);
        }
    }
}

impl Drop for Marks<'_> {
    fn drop(&mut self) {
        self.mark();
        // The fence alone keeps the promise; this only frees what can never be read again.
        self.pairs.iter().for_each(|pair| self.follow.facts.remove(*pair));
    }
}
