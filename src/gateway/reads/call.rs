//! A shared call: it belongs to no request, since requests come and go while it is in flight.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::super::call::CallSpec;
use super::super::deadline::Deadline;
use super::super::relay::RelayRequest;
use super::super::request::{CallContext, CallStats};
use super::super::response::{CallResult, counted};
use super::super::worker::AppWorker;
use super::{ReadService, ResultSender, SharedResponse};
use crate::capacity::CapacityGuard;
use crate::clock;
use crate::domain::chat::command::{CommandKind, CommandName};
use crate::domain::reads::cache::{KeptResponse, ReadKey};
use crate::domain::reads::calls::{CallId, Progress};
use crate::domain::reads::found::may_keep;
use crate::domain::reads::rules::CachedRead;
use crate::domain::tick::Tick;
use crate::error::GatewayError;
use crate::upstream::Call;

/// A call on its way. When it is dropped, for whatever reason, no further request joins it, and requests that still wait
/// learn that it has ended.
pub(super) struct SharedCall {
    pub reads: Arc<ReadService>,
    pub read: CachedRead,
    pub key: ReadKey,
    pub id: CallId,
    pub progress: Arc<Progress>,
    pub result: Arc<ResultSender>,
    /// `cache.write_settle`
    pub write_settle: Duration,
    ended: bool,
}

/// What a shared call takes over from the request that starts it.
pub(super) struct CallParts {
    traceparent: Option<HeaderValue>,
    context: CallContext,
    stats: Arc<CallStats>,
    /// Counts the bytes of the request.
    _buffered: CapacityGuard,
}

impl CallParts {
    /// Splits a request. Its slots stay with it: they are released when it has its response.
    pub(super) fn of(request: RelayRequest) -> (Self, impl Sized) {
        let RelayRequest { body: _, buffered, traceparent, context, slots, id: _, stats } = request;
        (Self { traceparent, context, stats, _buffered: buffered }, slots)
    }
}

impl SharedCall {
    pub(super) fn new(
        reads: &Arc<ReadService>,
        read: &CachedRead,
        key: ReadKey,
        started: Started,
        settle: Duration,
    ) -> Self {
        let Started { id, progress, result } = started;
        let (reads, read) = (Arc::clone(reads), read.clone());
        Self { reads, read, key, id, progress, result, write_settle: settle, ended: false }
    }

    /// Makes the call, and ends early if no request waits for it before it is sent.
    pub(super) async fn run(mut self, worker: Arc<AppWorker>, parts: CallParts) {
        let CallParts { traceparent, context, stats, _buffered } = parts;
        let (key, progress) = (self.key.clone(), Arc::clone(&self.progress));
        let name = CommandName::parse(&key.command).expect("it was parsed before");
        let call = Call { name, body: key.request.clone(), traceparent };
        let spec = CallSpec {
            kind: CommandKind::Read,
            // Retries are not charged to the caller that happens to be the first.
            context: CallContext {
                caller: None,
                deadline: Deadline::new(clock::now(), None, worker.gateway.config.upstream.timeout),
                ..context
            },
            caused_by: context.queue.caller,
            write: None,
            shared: Some(&progress),
            stats: Some(&*stats),
            lookup: None,
        };
        let result = {
            let mut calling = pin!(worker.call(spec, call, None));
            tokio::select! {
                biased;
                result = &mut calling => Some(result),
                () = self.abandoned() => None,
            }
        };
        if let Some(result) = result {
            self.complete(result);
        }
    }

    /// Waits until no request waits for the call, and it is not sent yet. From then on, none joins it.
    async fn abandoned(&mut self) {
        loop {
            self.result.closed().await;
            if self.progress.sent().is_some() {
                // It runs to its end: its response will be of use.
                std::future::pending::<()>().await;
            }
            let mut calls = self.reads.calls.lock();
            // A request joins under the lock.
            if self.result.receiver_count() == 0 {
                calls.end(&self.key, self.id);
                self.ended = true;
                return;
            }
        }
    }

    /// Keeps the response if it may be kept, and passes the result on.
    fn complete(mut self, result: CallResult) {
        let sent = self.progress.sent().unwrap_or(Tick::NEVER);
        let result = result.map(|response| {
            let body = counted(response.body, Some(response.held));
            let (status, content_type, error_code) = (response.status, response.content_type, response.error_code);
            Arc::new(SharedResponse { status, content_type, body, error_code, sent })
        });
        // Reading the whole response takes time, so it happens without the lock.
        let keepable = result.as_ref().ok().filter(|response| self.is_keepable(response)).map(|response| {
            let content_type = response.content_type.as_ref().map(|value| Bytes::copy_from_slice(value.as_bytes()));
            KeptResponse { content_type, body: response.body.clone(), sent }
        });
        {
            let ReadService { cache, fence, calls, .. } = &*self.reads;
            let mut calls = calls.lock();
            let last_mark = fence.last_mark(&self.read.services);
            if let Some(response) = keepable.filter(|_| may_keep(sent, last_mark, self.write_settle)) {
                cache.insert(&self.key, &response);
            }
            calls.end(&self.key, self.id);
            self.ended = true;
        }
        self.result.send_replace(Some(result));
    }

    fn is_keepable(&self, response: &SharedResponse) -> bool {
        response.status == StatusCode::OK && response.error_code == 0 && self.read.may_cache_response(&response.body)
    }
}

impl Drop for SharedCall {
    fn drop(&mut self) {
        if !self.ended {
            // Only a panic, or the end of the program, leaves it here.
            self.reads.calls.lock().end(&self.key, self.id);
            self.result.send_replace(Some(Err(GatewayError::Internal)));
        }
    }
}

/// A call that has been registered.
pub(super) struct Started {
    pub id: CallId,
    pub progress: Arc<Progress>,
    pub result: Arc<ResultSender>,
}
