//! Traces: spans of requests and calls, sent to a collector in OTLP over HTTP.
//!
//! The messages are few and small, and hyper is here already, so this module has an encoder and a client of its own. The
//! crates of OpenTelemetry would add 25 crates to the program for the same bytes.
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

mod collector;
mod context;
mod export;
mod otlp;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use self::collector::Collector;
pub(crate) use self::collector::TraceError;
pub(crate) use self::context::Context;
use self::context::SpanId;
use self::export::SpanQueue;
pub(crate) use self::export::{DropCause, ExportStats};
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

/// An attribute of a span.
#[derive(Debug)]
pub(crate) struct Attribute {
    name: &'static str,
    value: Value,
}

/// The value of an attribute.
#[derive(Debug)]
pub(crate) enum Value {
    Text(Cow<'static, str>),
    Number(i64),
}

impl Attribute {
    pub(crate) fn new(name: &'static str, value: impl Into<Value>) -> Self {
        Self { name, value: value.into() }
    }
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Value::Text(Cow::Borrowed(text))
    }
}

impl From<Cow<'static, str>> for Value {
    fn from(text: Cow<'static, str>) -> Self {
        Value::Text(text)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(Cow::Owned(text))
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Value::Number(number)
    }
}

/// The data of a span that has ended.
#[derive(Debug)]
pub(crate) struct SpanEnd {
    /// A name of low cardinality: a method and a path template.
    pub name: Cow<'static, str>,
    /// Duration of the span. It ends now.
    pub took: Duration,
    /// Attributes, with values from closed sets and numbers only.
    pub attributes: Vec<Attribute>,
    /// Other spans that this one worked for.
    pub links: Vec<Context>,
    /// Whether the span counts as an error.
    pub is_error: bool,
}

/// A sampled span that has ended.
#[derive(Debug)]
struct Span {
    handle: SpanHandle,
    /// End, since the Unix epoch.
    ended_at: Duration,
    end: SpanEnd,
}

impl Tracing {
    /// Creates the queue. [`Tracing::run`] exports its spans.
    ///
    /// # Errors
    /// If this configuration cannot lead to a connection with the collector.
    pub(crate) fn new(trace: &config::Trace) -> Result<Arc<Self>, TraceError> {
        // `as` saturates a value that is too large.
        let sample_threshold = (trace.sample * (1_u64 << 63) as f64) as u64;
        Ok(Arc::new(Self { sample_threshold, queue: SpanQueue::new(Collector::new(trace)?) }))
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
            Some(parent) => SpanHandle { context: parent.with_span(new_span_id()), parent: Some(parent.span), role },
            None => {
                let root = Context::root(clock::request_number().max(1), new_span_id());
                SpanHandle { context: root.sampled(root.sample_key() < self.sample_threshold), parent: None, role }
            }
        }
    }

    /// Begins the span of a call for the request with the context `parent`.
    pub(crate) fn begin_call(&self, parent: Context) -> SpanHandle {
        let context = parent.with_span(new_span_id());
        SpanHandle { context, parent: Some(parent.span), role: SpanRole::Call }
    }

    /// Ends a span. `describe` is called only if the span is sampled.
    pub(crate) fn end(&self, span: &SpanHandle, describe: impl FnOnce() -> SpanEnd) {
        if !span.context.is_sampled() {
            return;
        }
        self.queue.put(Span { handle: *span, ended_at: clock::unix_now(), end: describe() });
    }
}

/// Returns a random span ID, never 0.
fn new_span_id() -> u64 {
    clock::span_number().max(1)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::export::QUEUE_MAX;
    use super::*;
    use crate::http::traceparent::TRACEPARENT;

    fn tracing(sample: f64) -> Arc<Tracing> {
        let endpoint = "http://127.0.0.1:1".parse().expect("an endpoint");
        let otlp = config::OtlpUrl { endpoint, path: config::TRACES_PATH.to_owned() };
        let (resource, headers) = Default::default();
        let trace = config::Trace { otlp, extra_roots: Vec::new(), sample, resource, headers };
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
        assert_eq!(call.parent, Some(request.context.span));
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
