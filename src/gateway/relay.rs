//! Everything but an answerable `follow_check`: handed on as it is, and what comes back handed back.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;

use super::call::{CallSpec, PendingWrite};
use super::detach::DetachOnDrop;
use super::observe::access_log::CallStats;
use super::{CallContext, Reply, Worker, counted};
use crate::capacity::CapacityGuard;
use crate::clock;
use crate::domain::chat::command::{CommandKind, CommandName};
use crate::domain::follow::writes;
use crate::error::GatewayError;
use crate::upstream::{Call, ChatResponse};

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
    pub held: CapacityGuard,
    pub traceparent: Option<HeaderValue>,
    pub asker: CallContext,
    /// Told what the call does.
    pub notes: Arc<CallStats>,
}

impl Worker {
    /// Hands a call on. Its caller may leave, and then a read is broken off and a write is not.
    pub(super) async fn relay(
        self: &Arc<Self>,
        app: usize,
        name: CommandName<'_>,
        order: Order,
    ) -> Result<Reply, GatewayError> {
        // Boxed either way: what a hit does not need must not be part of every request's future, which is moved
        // several times.
        let known = name.known();
        let answer = match CommandKind::of(known) {
            kind @ CommandKind::Read => Box::pin(self.call(app, name, kind, order)).await?,
            kind @ CommandKind::Write => {
                let (worker, known) = (Arc::clone(self), known.map(|known| known.name));
                let owned = if known.is_none() { name.to_string() } else { String::new() };
                let write = async move {
                    let name = known.or_else(|| CommandName::parse(&owned).ok()).expect("it was one");
                    worker.call(app, name, kind, order).await
                };
                DetachOnDrop::new(write, &self.gateway.tasks).await?
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

    async fn call(
        &self,
        app: usize,
        name: CommandName<'_>,
        kind: CommandKind,
        order: Order,
    ) -> Result<ChatResponse, GatewayError> {
        let CallContext { listed, deadline, .. } = order.asker;
        // Before it joins the line: who waits for its own share keeps nobody else waiting.
        let patience = || self.latest_permit(deadline).saturating_duration_since(clock::now());
        let reserved = self.gateway.access.reserve(listed, || 1, patience)?;
        if !reserved.wait.is_zero() {
            tokio::time::sleep(reserved.wait).await;
        }
        let change =
            writes::scope(name, &order.body).map(|scope| PendingWrite { scope, begun: AtomicBool::new(false) });
        let call = Call { name, body: order.body, traceparent: order.traceparent };
        let (asker, notes) = (order.asker, Some(&*order.notes));
        let journey = CallSpec { app, kind, asker, change: change.as_ref(), notes, lookup: None };
        let result = pin!(self.call_with_retries(journey, call, None)).await;
        // These say that there was no call, not even one that failed.
        if let Err(GatewayError::RateLimited { .. } | GatewayError::InFlightFull | GatewayError::Parked(_)) = &result {
            self.gateway.access.cancel(listed, reserved);
        }
        let change = change.filter(|change| change.begun.load(Ordering::Relaxed));
        if let Some(change) = &change {
            // Before its caller hears of it, so do the other replicas.
            Box::pin(self.gateway.publish_invalidation(app, &change.scope)).await;
        }
        if result.is_err()
            && let Some(PendingWrite { scope, .. }) = change
        {
            // Chat may still be at it. What is asked until it has given up may be from before.
            let gateway = Arc::clone(&self.gateway);
            tokio::spawn(async move {
                tokio::time::sleep(GIVEN_UP_AFTER).await;
                gateway.evict_everywhere(app, &scope).await;
            });
        }
        result
    }
}
