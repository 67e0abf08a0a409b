//! Traces: spans of requests and calls, sent to a collector in OTLP over gRPC.
//!
//! A span is built when its request or call has ended. Until then a request carries only its trace context. A request
//! that is not sampled therefore costs two random numbers, and without `[trace]` there is no cost.
//!
//! ```text
//! worker threads ──> queue (bounded; full: dropped, counted) ──> one task: batches ──> collector
//! ```
//!
//! The collector never delays a request, because no request waits for the queue. [`crate::gateway`] puts only names
//! of closed sets, numbers, and times into spans: no query, body, user, or signature.

mod context;
mod export;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Link, SpanId, SpanKind, Status};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

pub(crate) use self::context::Context;
pub(crate) use self::export::TraceError;
pub(crate) use self::export::{DropCause, ExportStats};
use self::export::{Exporter, SpanQueue};
use crate::clock;
use crate::config;

/// Begins spans, and exports them when they have ended.
#[derive(Debug)]
pub(crate) struct Tracing {
    /// A new trace is sampled if its sampling key is less than this: 0 is none, 2^63 is all.
    sample_threshold: u64,
    queue: SpanQueue,
}

/// A span that has begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpanHandle {
    /// Context of this span.
    pub context: Context,
    /// The parent span. The parent of a request's span belongs to the caller.
    parent: Option<SpanId>,
    role: SpanRole,
}

/// The kind of work that a span covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SpanRole {
    Request,
    Call,
}

/// The data of a span that has ended.
#[derive(Debug)]
pub(crate) struct SpanEnd {
    /// A name of low cardinality: a method and a path template.
    pub name: Cow<'static, str>,
    /// Duration of the span. It ends now.
    pub took: Duration,
    /// Attributes, with values from closed sets and numbers only.
    pub attributes: Vec<KeyValue>,
    /// Other spans that this one worked for.
    pub links: Vec<Context>,
    /// Whether the span counts as an error.
    pub is_error: bool,
}

impl Tracing {
    /// Creates the queue. [`Tracing::run`] exports its spans.
    ///
    /// # Errors
    /// If this configuration cannot lead to a connection with the collector.
    pub(crate) fn new(trace: &config::Trace) -> Result<Arc<Self>, TraceError> {
        // `as` saturates a value that is too large.
        let sample_threshold = (trace.sample * (1_u64 << 63) as f64) as u64;
        Ok(Arc::new(Self { sample_threshold, queue: SpanQueue::new(Exporter::new(trace)?) }))
    }

    /// Exports spans until the program ends. Only the first call does anything.
    pub(crate) async fn run(self: Arc<Self>) {
        self.queue.run().await;
    }

    /// Exports the queued spans, for at most `timeout`.
    pub(crate) async fn flush(&self, timeout: Duration) {
        self.queue.flush(timeout).await;
    }

    /// Returns counts of the spans so far.
    pub(crate) fn stats(&self) -> ExportStats {
        self.queue.stats()
    }

    /// Begins the span of a request. It continues the caller's trace and its sampling decision. Without one it begins a
    /// new trace, which is sampled at random.
    pub(crate) fn begin_request(&self, caller: Option<Context>) -> SpanHandle {
        let role = SpanRole::Request;
        match caller {
            Some(parent) => {
                SpanHandle { context: parent.with_span(new_span_id()), parent: Some(parent.span_id()), role }
            }
            None => {
                let root = Context::root(clock::request_number().max(1), new_span_id());
                SpanHandle { context: root.sampled(root.sample_key() < self.sample_threshold), parent: None, role }
            }
        }
    }

    /// Begins the span of a call for the request with the context `parent`.
    pub(crate) fn begin_call(&self, parent: Context) -> SpanHandle {
        let context = parent.with_span(new_span_id());
        SpanHandle { context, parent: Some(parent.span_id()), role: SpanRole::Call }
    }

    /// Ends a span. `describe` is called only if the span is sampled.
    pub(crate) fn end(&self, span: &SpanHandle, describe: impl FnOnce() -> SpanEnd) {
        if !span.context.is_sampled() {
            return;
        }
        let SpanEnd { name, took, attributes, links, is_error } = describe();
        let end_time = SystemTime::UNIX_EPOCH + clock::unix_now();
        let mut span_links = SpanLinks::default();
        span_links.links = links.iter().map(|link| Link::new(link.exported(), Vec::new(), 0)).collect();
        self.queue.put(SpanData {
            span_context: span.context.exported(),
            parent_span_id: span.parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: span.parent.is_some() && span.role == SpanRole::Request,
            span_kind: if span.role == SpanRole::Request { SpanKind::Server } else { SpanKind::Client },
            name,
            start_time: end_time.checked_sub(took).unwrap_or(end_time),
            end_time,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: span_links,
            // The kind of error is an attribute, so a description would only repeat it.
            status: if is_error { Status::error("") } else { Status::Unset },
            instrumentation_scope: scope(),
        });
    }
}

/// Returns a random span ID, never 0.
fn new_span_id() -> u64 {
    clock::span_number().max(1)
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("chatgate").with_version(env!("CARGO_PKG_VERSION")).build()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::export::QUEUE_MAX;
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

    fn span_end() -> SpanEnd {
        let took = Duration::from_millis(5);
        SpanEnd { name: "x".into(), took, attributes: Vec::new(), links: Vec::new(), is_error: false }
    }

    #[test]
    fn sampling_rate_applies_to_new_traces_only() {
        for (sample, bounds) in [(0.0, 0..=0), (0.25, 150..=350), (1.0, 1000..=1000)] {
            let tracing = tracing(sample);
            let sampled = (0..1000).filter(|_| tracing.begin_request(None).context.is_sampled()).count();
            assert!(bounds.contains(&sampled), "{sample}: {sampled}");
            assert!(tracing.begin_request(caller("01")).context.is_sampled());
            assert!(!tracing.begin_request(caller("00")).context.is_sampled());
        }
    }

    #[test]
    fn sampled_spans_are_queued_and_dropped_when_full() {
        let tracing = tracing(1.0);
        let unsampled = tracing.begin_request(caller("00"));
        tracing.end(&unsampled, || panic!("a span that is not sampled was described"));
        let request = tracing.begin_request(caller("01"));
        let call = tracing.begin_call(request.context);
        assert_eq!(call.parent, Some(request.context.span_id()));
        assert_eq!(call.context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_ne!(call.context, request.context);
        for _ in 0..QUEUE_MAX {
            tracing.end(&call, span_end);
        }
        let ExportStats { queued, dropped, .. } = tracing.stats();
        assert_eq!((queued, dropped), (QUEUE_MAX, [0, 0]));
        tracing.end(&call, span_end);
        let ExportStats { queued, dropped, .. } = tracing.stats();
        assert_eq!((queued, dropped), (QUEUE_MAX, [1, 0]));
    }
}
