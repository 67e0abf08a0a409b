//! Relayed calls: every command but a check that chatgate can answer. Bodies pass unchanged in both
//! directions.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;

use super::Slots;
use super::call::{CallSpec, PendingWrite};
use super::detach::DetachOnDrop;
use super::invalidation::Change;
use super::observe::audit::WriteAudit;
use super::request::{CallContext, CallStats};
use super::response::{CallResult, Reply, counted};
use super::worker::AppWorker;
use crate::capacity::CapacityGuard;
use crate::clock;
use crate::domain::chat::command::{CommandKind, CommandName};
use crate::error::GatewayError;
use crate::http::request_id::RequestId;
use crate::upstream::Call;

/// After this time Chat is certainly done with a call that it did not answer: its own timeout of 3 s (vendor page
/// "RESTful API Overview", 1047/34620), and one second more.
pub(super) const CHAT_DONE_AFTER: Duration = Duration::from_secs(4);

/// A call to relay.
pub(super) struct RelayRequest {
    pub body: Bytes,
    /// Counts the body's bytes until the call has ended.
    #[allow(dead_code, reason = "it is released on drop")]
    pub buffered: CapacityGuard,
    pub traceparent: Option<HeaderValue>,
    pub context: CallContext,
    /// Slots of the request, which its call keeps to its end.
    #[allow(dead_code, reason = "they are released on drop")]
    pub slots: Slots,
    /// Of the request, for the audit log.
    pub id: RequestId,
    /// Filled in by the call.
    pub stats: Arc<CallStats>,
}

impl AppWorker {
    /// Relays a call. If its caller disconnects, a read is cancelled and a write runs to its end.
    pub(super) async fn relay(
        self: &Arc<Self>,
        name: CommandName<'_>,
        request: RelayRequest,
    ) -> Result<Reply, GatewayError> {
        // Boxed in both cases: what a cache hit does not need must not be part of every request's future, which is
        // moved several times.
        let (known, deadline) = (name.known(), request.context.deadline);
        let response = match self.app.declared_reads.kind(name, known) {
            kind @ CommandKind::Read => Box::pin(self.relay_once(name, kind, request, None)).await?,
            kind @ CommandKind::Write => {
                let (app, known) = (Arc::clone(self), known.map(|known| known.name));
                let owned = if known.is_none() { name.to_string() } else { String::new() };
                let pending = self.app.change_of_write(name, &request.body).map(PendingWrite::new).map(Arc::new);
                let shared = pending.clone();
                let write = async move {
                    let name = known.or_else(|| CommandName::parse(&owned).ok()).expect("it was parsed before");
                    let audit = WriteAudit::new(&app, name, request.id.clone(), request.context);
                    let result = app.relay_once(name, kind, request, shared.as_deref()).await;
                    audit.finish(&result);
                    result
                };
                let write = DetachOnDrop::new(write, &self.gateway.tasks);
                if deadline.may_outlive_its_caller() {
                    // Dropped at the caller's deadline, a write that has left continues.
                    match clock::timeout_at_lazy(deadline.response, pin!(write)).await {
                        Some(result) => result?,
                        None => return Err(self.end_before_the_write(pending.as_deref()).await),
                    }
                } else {
                    write.await?
                }
            }
        };
        let body = counted(response.body, Some(response.held));
        Ok(Reply::from_chat(response.status, response.content_type, body, response.error_code))
    }

    /// Answers the caller of a write that has not ended at the caller's deadline. What was looked up before this answer
    /// must not be returned after it, here or elsewhere; the end of the write invalidates once more.
    async fn end_before_the_write(&self, pending: Option<&PendingWrite>) -> GatewayError {
        if let Some(pending) = pending.filter(|pending| pending.sent.load(Ordering::Relaxed)) {
            Box::pin(self.app.invalidate_everywhere(&pending.change)).await;
        }
        GatewayError::UpstreamTimeout
    }

    /// `write` is what the call may change.
    pub(super) async fn relay_once(
        &self,
        name: CommandName<'_>,
        kind: CommandKind,
        request: RelayRequest,
        write: Option<&PendingWrite>,
    ) -> CallResult {
        let RelayRequest { body, traceparent, context, stats, buffered: _buffered, slots: _slots, .. } = request;
        let CallContext { caller, queue, deadline, .. } = context;
        // Before the call is queued: a caller that waits for its own quota keeps no other caller waiting.
        let patience = || deadline.permit.saturating_duration_since(clock::now());
        let reserved = self.gateway.access.reserve(caller, || 1, patience)?;
        if !reserved.wait.is_zero() {
            tokio::time::sleep(reserved.wait).await;
            stats.add_wait(reserved.wait);
        }
        let spec = CallSpec {
            kind,
            context,
            caused_by: queue.caller,
            write,
            stats: Some(&*stats),
            lookup: None,
            shared: None,
        };
        let result = pin!(self.call(spec, Call { name, body, traceparent }, None)).await;
        if result.as_ref().is_err_and(GatewayError::made_no_call) {
            self.gateway.access.cancel(caller, reserved);
        }
        if let Some(PendingWrite { change, .. }) = write.filter(|write| write.sent.load(Ordering::Relaxed)) {
            // The other replicas learn of the write before its caller does.
            Box::pin(self.app.publish_invalidation(change)).await;
            if result.is_err() {
                self.invalidate_when_chat_is_done(change.clone());
            }
        }
        result
    }

    /// Invalidates once more after a write that Chat did not answer: Chat may apply the write later than it answers
    /// lookups that are sent now.
    fn invalidate_when_chat_is_done(&self, change: Change) {
        let app = Arc::clone(&self.app);
        tokio::spawn(async move {
            tokio::time::sleep(CHAT_DONE_AFTER).await;
            app.invalidate_everywhere(&change).await;
        });
    }
}
