//! Traces: spans of requests and calls, handed to a collector in OTLP over gRPC.
//!
//! A span is put together once, when what it tells of is over; until then a request carries no more than its place
//! in the trace. So a request that is not recorded costs two random numbers, and without `[trace]` nothing.
//!
//! ```text
//! worker threads ──> queue (bounded; full: dropped, counted) ──> one task: batches ──> collector
//! ```
//!
//! Whatever the collector does, requests do not notice: nothing of theirs waits for the queue. Spans hold what
//! [`crate::gateway`] puts in, which is names of closed sets, numbers and times: no query, body, user or signature.

mod context;
mod export;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Link, SpanId, SpanKind, Status};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

pub use self::context::Context;
pub use self::export::{Drops, ExportStats, QUEUE_MAX, TraceError};
use self::export::{Exporter, Queue};
use crate::clock;
use crate::config;

/// Who begins spans and takes them when they are over.
#[derive(Debug)]
pub struct Tracing {
    /// Of new traces those are recorded whose lot is below: 0 none, 2^63 all.
    below: u64,
    queue: Queue,
}

/// A span that has begun.
#[derive(Debug, Clone, Copy)]
pub struct SpanHandle {
    /// Its own place.
    pub context: Context,
    /// The span above, which is the caller's if it is a request.
    above: Option<SpanId>,
    kind: Kind,
}

/// Whose work a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Work on a caller's request.
    Request,
    /// A call of ours to Chat.
    Call,
}

/// What there is to tell of a span that is over.
#[derive(Debug)]
pub struct SpanEnd {
    /// Few different ones: a method and a template.
    pub name: Cow<'static, str>,
    /// How long it took. It ends now.
    pub took: Duration,
    /// Closed sets and numbers only.
    pub attributes: Vec<KeyValue>,
    /// Further spans that it was for.
    pub links: Vec<Context>,
    /// Whether it counts as an error.
    pub is_error: bool,
}

impl Tracing {
    /// Spans gather in the queue; [`Tracing::run`] sends them.
    ///
    /// # Errors
    /// If no connection to the collector could ever be made with this.
    pub fn new(trace: &config::Trace) -> Result<Arc<Self>, TraceError> {
        // `as` takes what is too large to the largest number there is.
        let below = (trace.sample * (1_u64 << 63) as f64) as u64;
        Ok(Arc::new(Self { below, queue: Queue::new(Exporter::new(trace)?) }))
    }

    /// Sends spans as long as the program lives. Only the first call does anything.
    pub async fn run(self: Arc<Self>) {
        self.queue.run().await;
    }

    /// Sends what there is now, or gives up after so long.
    pub async fn flush(&self, patience: Duration) {
        self.queue.flush(patience).await;
    }

    /// What was sent and dropped so far.
    pub fn figures(&self) -> ExportStats {
        self.queue.figures()
    }

    /// A request begins. It goes on with its caller's trace and does as that says; without one it begins a trace, and
    /// chance decides whether that is recorded.
    pub fn begin_request(&self, caller: Option<Context>) -> SpanHandle {
        let kind = Kind::Request;
        match caller {
            Some(above) => SpanHandle { context: above.with_span(number()), above: Some(above.span_id()), kind },
            None => {
                let root = Context::root(clock::request_number().max(1), number());
                SpanHandle { context: root.sampled(root.sample_key() < self.below), above: None, kind }
            }
        }
    }

    /// A call begins, for the request at this place.
    pub fn begin_call(&self, above: Context) -> SpanHandle {
        SpanHandle { context: above.with_span(number()), above: Some(above.span_id()), kind: Kind::Call }
    }

    /// A span is over. `told` is asked only if it is recorded.
    pub fn end(&self, open: &SpanHandle, told: impl FnOnce() -> SpanEnd) {
        if !open.context.is_sampled() {
            return;
        }
        let SpanEnd { name, took, attributes, links, is_error } = told();
        let end_time = SystemTime::UNIX_EPOCH + clock::unix_now();
        let mut span_links = SpanLinks::default();
        span_links.links = links.iter().map(|link| Link::new(link.exported(), Vec::new(), 0)).collect();
        self.queue.put(SpanData {
            span_context: open.context.exported(),
            parent_span_id: open.above.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: open.above.is_some() && open.kind == Kind::Request,
            span_kind: if open.kind == Kind::Request { SpanKind::Server } else { SpanKind::Client },
            name,
            start_time: end_time.checked_sub(took).unwrap_or(end_time),
            end_time,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: span_links,
            // The kind of error is an attribute; a text of its own would only say it again.
            status: if is_error { Status::error("") } else { Status::Unset },
            instrumentation_scope: scope(),
        });
    }
}

/// A span's number, never 0.
fn number() -> u64 {
    clock::span_number().max(1)
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("chatgate").with_version(env!("CARGO_PKG_VERSION")).build()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;
    use crate::http::traceparent::TRACEPARENT;

    fn tracing(sample: f64) -> Arc<Tracing> {
        let otlp = "http://127.0.0.1:1".parse().expect("an endpoint");
        let trace = config::Trace { otlp, extra_roots: Vec::new(), sample, resource: Default::default() };
        Tracing::new(&trace).expect("no certificates")
    }

    fn caller(flags: &str) -> Option<Context> {
        let text = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
        let headers = HeaderMap::from_iter([(TRACEPARENT, HeaderValue::try_from(text).expect("a value"))]);
        Context::of_caller(&headers)
    }

    fn told() -> SpanEnd {
        let took = Duration::from_millis(5);
        SpanEnd { name: "x".into(), took, attributes: Vec::new(), links: Vec::new(), is_error: false }
    }

    #[test]
    fn chance_decides_about_new_traces_only() {
        for (sample, bounds) in [(0.0, 0..=0), (0.25, 150..=350), (1.0, 1000..=1000)] {
            let tracing = tracing(sample);
            let sampled = (0..1000).filter(|_| tracing.begin_request(None).context.is_sampled()).count();
            assert!(bounds.contains(&sampled), "{sample}: {sampled}");
            assert!(tracing.begin_request(caller("01")).context.is_sampled());
            assert!(!tracing.begin_request(caller("00")).context.is_sampled());
        }
    }

    #[test]
    fn what_is_recorded_is_queued_and_what_finds_no_room_is_counted() {
        let tracing = tracing(1.0);
        let unsampled = tracing.begin_request(caller("00"));
        tracing.end(&unsampled, || panic!("nobody wants to know"));
        let request = tracing.begin_request(caller("01"));
        let call = tracing.begin_call(request.context);
        assert_eq!(call.above, Some(request.context.span_id()));
        assert_eq!(call.context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_ne!(call.context, request.context);
        for _ in 0..QUEUE_MAX {
            tracing.end(&call, told);
        }
        let ExportStats { queued, dropped, .. } = tracing.figures();
        assert_eq!((queued, dropped), (QUEUE_MAX, [0, 0]));
        tracing.end(&call, told);
        let ExportStats { queued, dropped, .. } = tracing.figures();
        assert_eq!((queued, dropped), (QUEUE_MAX, [1, 0]));
    }
}
