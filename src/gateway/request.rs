//! A request in progress: what becomes known of it, and what its call to Chat does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::request::Parts;

use super::deadline::Deadline;
use super::worker::AppWorker;
use crate::clock;
use crate::domain::caller::CallerQueue;
use crate::domain::identity::CallerIndex;
use crate::http::peer::ConnectionInfo;
use crate::http::request_id::RequestId;
use crate::telemetry::metrics::labels::CommandLabel;
use crate::telemetry::trace::{Context, SpanHandle};

/// The caller that waits for a call, and its deadline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallContext {
    /// Its queue in fair queues.
    pub(crate) queue: CallerQueue,
    /// The configured caller; `None` if no callers are configured.
    pub(crate) caller: Option<CallerIndex>,
    pub(crate) deadline: Deadline,
    /// Its span, if traces are taken.
    pub(crate) trace: Option<Context>,
}

/// What becomes known of a request on its way.
pub(crate) struct RequestContext<'a> {
    pub(crate) id: RequestId,
    /// `None` if no callers are configured, or the request is not authenticated.
    pub(crate) caller: Option<CallerIndex>,
    /// `None` until an app is chosen.
    pub(crate) app: Option<&'a Arc<AppWorker>>,
    pub(crate) command: CommandLabel,
    pub(crate) started: Instant,
    /// Its span, if traces are taken. Boxed, since all other requests carry the field too.
    pub(crate) span: Option<Box<SpanHandle>>,
    /// Time spent waiting for lookups.
    waited: Duration,
    /// Of its own call, if it is relayed.
    call: Option<Arc<CallStats>>,
}

/// What a request has cost so far.
pub(crate) struct RequestCost {
    pub waited_us: u64,
    /// Of its own call, if it is relayed.
    pub attempts: Option<u32>,
    pub upstream_us: Option<u64>,
}

impl RequestContext<'_> {
    /// Returns its span, if traces are taken.
    pub(super) fn trace(&self) -> Option<Context> {
        self.span.as_ref().map(|span| span.context)
    }

    pub(super) fn cost(&self) -> RequestCost {
        match self.call.as_deref() {
            None => RequestCost { waited_us: self.waited.as_micros() as u64, attempts: None, upstream_us: None },
            Some(call) => RequestCost {
                waited_us: call.waited_micros.load(Ordering::Relaxed),
                attempts: Some(call.attempts.load(Ordering::Relaxed)),
                upstream_us: Some(call.upstream_micros.load(Ordering::Relaxed)),
            },
        }
    }

    pub(super) fn add_wait(&mut self, more: Duration) {
        self.waited += more;
    }

    /// Starts a call of its own, and returns the counters for it.
    pub(super) fn start_call(&mut self) -> Arc<CallStats> {
        let call = Arc::new(CallStats::default());
        self.call = Some(Arc::clone(&call));
        call
    }
}

/// What the call of one request does. A write may outlive its request.
#[derive(Debug, Default)]
pub(crate) struct CallStats {
    attempts: AtomicU32,
    waited_micros: AtomicU64,
    upstream_micros: AtomicU64,
}

impl CallStats {
    pub(super) fn add_wait(&self, more: Duration) {
        self.waited_micros.fetch_add(more.as_micros() as u64, Ordering::Relaxed);
    }

    pub(super) fn add_attempt(&self, took: Duration) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.upstream_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }
}

/// A request as its log line and its span show it.
pub(crate) struct RequestRecord<'a> {
    pub(super) head: &'a Parts,
    pub(super) connection: &'a ConnectionInfo,
    pub(super) context: RequestContext<'a>,
}

impl<'a> RequestRecord<'a> {
    /// Starts now. `span` is its span, if traces are taken.
    pub(super) fn new(
        head: &'a Parts,
        id: RequestId,
        connection: &'a ConnectionInfo,
        span: Option<Box<SpanHandle>>,
    ) -> Self {
        let context = RequestContext {
            id,
            caller: None,
            app: None,
            command: CommandLabel::other(),
            started: clock::now(),
            span,
            waited: Duration::ZERO,
            call: None,
        };
        Self { head, connection, context }
    }
}
