//! Spans: one for each request, and one below it for each call to Chat.
//!
//! Names and attributes are those of OpenTelemetry's HTTP conventions where they have one, and `chatgate.*` otherwise.
//! Every text is from a closed set: names of the configuration, the built-in tables, and slugs. Two attributes that
//! the conventions ask for are left out where they would hold more: `url.path` of a command that is not in the table,
//! since a caller may write anything there, and `url.full` of a call, since it contains the signature. `tracestate` is
//! neither read nor written.
//!
//! A lookup may be made for several requests. Its span is below the first of them that is recorded, and is linked with
//! up to [`LINKS_MAX`] others, including requests that joined while it was in flight.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, Version};

use crate::clock;
use crate::domain::chat::command::CommandName;
use crate::domain::pairs::lookups::BatchId;
use crate::domain::policy::failover::Side;
use crate::gateway::pairs::{LookupId, LookupState};
use crate::gateway::request::RequestRecord;
use crate::gateway::route;
use crate::gateway::worker::{AppWorker, Worker};
use crate::http::peer::Peer;
use crate::telemetry::metrics::labels::{CallLabel, CommandLabel, Outcome};
use crate::telemetry::metrics::{PairCounts, ReadSource, SOURCES};
use crate::telemetry::trace::{Attribute, Context, SpanEnd, SpanHandle, Value};
use crate::upstream::{AttemptError, ChatResponse};

/// Maximum number of requests that a lookup is linked with.
const LINKS_MAX: usize = 32;
/// Paths of requests. The first one is Chat's own path too.
const TEMPLATES: [&str; 2] = ["/v4/{service}/{command}", "/apps/{app}/v4/{service}/{command}"];

/// Attributes of [`SOURCES`], in their order.
const PAIRS: [&str; SOURCES.len()] = [
    "chatgate.pairs.hit",
    "chatgate.pairs.joined",
    "chatgate.pairs.fetched",
    "chatgate.pairs.flipped",
    "chatgate.pairs.stale",
];

/// What a call is made for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallParent {
    /// The span above.
    pub(crate) above: Context,
    /// The pairs that are looked up, if the call is a lookup.
    pub(crate) lookup: Option<LookupId>,
    /// The number of attempts before this one.
    pub(crate) attempts: u32,
}

/// The span of a call in flight.
#[derive(Debug)]
pub(crate) struct CallSpan {
    handle: SpanHandle,
    parent: CallParent,
    side: Side,
    status: Option<u16>,
    version: Option<Version>,
}

impl CallSpan {
    /// Returns the `traceparent` of the call.
    pub(crate) fn header(&self) -> HeaderValue {
        self.handle.context.header()
    }

    /// Records the HTTP status and version of the response.
    pub(crate) fn record_result(&mut self, result: &Result<ChatResponse, AttemptError>) {
        match result {
            Ok(response) => {
                self.status = Some(response.status.as_u16());
                self.version = Some(response.version);
            }
            Err(AttemptError::Invalid(_, status)) => self.status = Some(*status).filter(|status| *status > 0),
            Err(_) => {}
        }
    }
}

/// How a request ended.
pub(crate) struct RequestEnd {
    pub(crate) outcome: Outcome,
    pub(crate) took: Duration,
    /// `None` if the caller had disconnected.
    pub(crate) status: Option<StatusCode>,
    /// 0 unless Chat returned an error.
    pub(crate) error_code: i64,
    pub(crate) pairs: Option<PairCounts>,
    /// Where the response came from, if it is a cached read.
    pub(crate) read: Option<ReadSource>,
}

/// Attributes of a span.
#[derive(Default)]
struct Attributes(Vec<Attribute>);

impl Attributes {
    fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push(Attribute::new(name, value));
    }
}

impl Worker {
    /// Starts the span of a request, if traces are taken.
    pub(crate) fn start_request_span(&self, head: &Parts) -> Option<Box<SpanHandle>> {
        let tracing = self.gateway.tracing.as_ref()?;
        Some(Box::new(tracing.begin_request(Context::of_caller(&head.headers))))
    }

    /// Ends the span of a request.
    pub(crate) fn end_request_span(&self, request: &RequestRecord<'_>, end: &RequestEnd) {
        let (Some(tracing), Some(span)) = (&self.gateway.tracing, &request.context.span) else { return };
        tracing.end(span, || self.request_span_end(request, end));
    }

    fn request_span_end(&self, request: &RequestRecord<'_>, end: &RequestEnd) -> SpanEnd {
        let method = known_method(&request.head.method);
        let path = route::path(request.head.uri.path()).ok();
        let template = path.as_ref().map(|path| TEMPLATES[usize::from(path.app.is_some())]);
        let mut attributes = Attributes::default();
        add_http(&mut attributes, request, method, template);
        if let Some(status) = end.status {
            attributes.add("http.response.status_code", i64::from(status.as_u16()));
        }
        if !matches!(end.outcome, Outcome::OK | Outcome::FAILED) {
            attributes.add("error.type", end.outcome.text());
        }
        let context = &request.context;
        if let Some(app) = context.app {
            attributes.add("chatgate.app", app.app.name.to_string());
        }
        if let Some(caller) = context.caller {
            attributes.add("chatgate.caller", self.gateway.access.name_of(caller).to_string());
        }
        attributes.add("chatgate.command", context.command.text());
        attributes.add("chatgate.outcome", end.outcome.text());
        if end.error_code != 0 {
            attributes.add("chatgate.error_code", CallLabel::answered(end.error_code).text());
        }
        let cost = context.cost();
        attributes.add("chatgate.waited_us", count(cost.waited_us));
        if let Some(attempts) = cost.attempts {
            attributes.add("chatgate.attempts", i64::from(attempts));
        }
        for (name, pairs) in PAIRS.into_iter().zip(end.pairs.iter().flatten()) {
            attributes.add(name, count(*pairs));
        }
        if let Some(read) = end.read {
            attributes.add("chatgate.cache", read.text());
        }
        SpanEnd {
            name: name(method, template),
            took: end.took,
            attributes: attributes.0,
            links: Vec::new(),
            // A caller's error is not an error of the server, say the conventions.
            is_error: end.status.is_some_and(|status| status.is_server_error()),
        }
    }
}

/// Adds what the conventions say of an HTTP request.
fn add_http(
    attributes: &mut Attributes,
    request: &RequestRecord<'_>,
    method: Option<&'static str>,
    template: Option<&'static str>,
) {
    let RequestRecord { head, connection, context, .. } = request;
    attributes.add("http.request.method", method.unwrap_or("_OTHER"));
    attributes.add("url.scheme", if connection.tls { "https" } else { "http" });
    if let Some(template) = template {
        attributes.add("http.route", template);
    }
    // With both known, app and command are from closed sets, and a path has nothing else.
    if template.is_some() && context.app.is_some() && context.command.name().is_some() {
        attributes.add("url.path", head.uri.path().to_owned());
    }
    if let Some(version) = version(head.version) {
        attributes.add("network.protocol.version", version);
    }
    match connection.peer {
        Peer::Tcp { local } => {
            attributes.add("server.address", local.to_string());
            attributes.add("server.port", i64::from(connection.port));
        }
        Peer::Unix { .. } => attributes.add("network.transport", "unix"),
    }
}

impl AppWorker {
    /// Starts the span of a call, if its request has one.
    pub(crate) fn start_call_span(&self, parent: Option<CallParent>, side: Side) -> Option<Box<CallSpan>> {
        let (tracing, parent) = (self.gateway.tracing.as_ref()?, parent?);
        let handle = tracing.begin_call(parent.above);
        Some(Box::new(CallSpan { handle, parent, side, status: None, version: None }))
    }

    /// Ends the span of a call.
    pub(crate) fn end_call_span(&self, span: &CallSpan, command: CommandLabel, result: CallLabel, took: Duration) {
        let Some(tracing) = &self.gateway.tracing else { return };
        tracing.end(&span.handle, || self.call_span_end(span, command, result, took));
    }

    /// Records a call that could not be sent, because connecting failed.
    pub(crate) fn record_unsent_call(
        &self,
        parent: Option<CallParent>,
        name: CommandName<'_>,
        started: Instant,
        error: &AttemptError,
    ) {
        let Some(span) = self.start_call_span(parent, Side::Primary) else { return };
        let result = CallLabel::unanswered(&error.clone().into());
        self.end_call_span(&span, CommandLabel::of(name), result, clock::now() - started);
    }

    fn call_span_end(&self, span: &CallSpan, command: CommandLabel, result: CallLabel, took: Duration) -> SpanEnd {
        let app = &self.app;
        let endpoint = match (span.side, &app.standby) {
            (Side::Standby, Some(standby)) => standby,
            _ => &app.endpoint,
        };
        let mut attributes = Attributes::default();
        attributes.add("http.request.method", "POST");
        attributes.add("url.template", TEMPLATES[0]);
        attributes.add("url.scheme", if endpoint.tls { "https" } else { "http" });
        attributes.add("server.address", endpoint.host.trim_matches(['[', ']']).to_owned());
        attributes.add("server.port", i64::from(endpoint.port));
        attributes.add("chatgate.app", app.name.to_string());
        attributes.add("chatgate.command", command.text());
        if let Some(status) = span.status {
            attributes.add("http.response.status_code", i64::from(status));
        }
        if let Some(version) = span.version.and_then(version) {
            attributes.add("network.protocol.version", version);
        }
        if span.parent.attempts > 0 {
            attributes.add("http.request.resend_count", i64::from(span.parent.attempts));
        }
        attributes.add("chatgate.error_code", result.text());
        if result != CallLabel::OK {
            attributes.add("error.type", result.text());
        }
        let above = span.parent.above;
        let waiting = span.parent.lookup.map(|lookup| self.traces_of(lookup));
        let links = waiting.into_iter().flatten().filter(|context| context.is_sampled() && *context != above);
        SpanEnd {
            name: name(Some("POST"), Some(TEMPLATES[0])),
            took,
            attributes: attributes.0,
            links: links.take(LINKS_MAX).collect(),
            is_error: result != CallLabel::OK,
        }
    }

    /// Returns the span above a lookup: that of the first waiting request that is recorded, or else of the first one.
    pub(crate) fn lookup_parent(&self, lookup: LookupId) -> Option<Context> {
        self.gateway.tracing.as_ref()?;
        let waiting = self.traces_of(lookup);
        waiting.iter().find(|context| context.is_sampled()).or(waiting.first()).copied()
    }

    /// Returns the spans of requests that wait for a lookup.
    fn traces_of(&self, lookup: LookupId) -> Vec<Context> {
        let service = self.app.relations.of(lookup.kind.check);
        service.map_or_else(Vec::new, |service| service.lookups().traces_of(lookup.batch))
    }
}

impl LookupState {
    /// Returns the spans of requests that wait for a batch, in order of arrival, and not all if they are many.
    fn traces_of(&self, batch: BatchId) -> Vec<Context> {
        let mut tickets = BTreeSet::new();
        for ticket in self.scheduler.waiting_for(batch) {
            tickets.insert(ticket);
            if tickets.len() > 2 * LINKS_MAX {
                break;
            }
        }
        tickets.iter().filter_map(|ticket| self.waiters.handle(*ticket)?.trace).collect()
    }
}

/// Returns the method if the conventions know it.
fn known_method(method: &Method) -> Option<&'static str> {
    const KNOWN: [&str; 10] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"];
    KNOWN.into_iter().find(|known| *known == method.as_str())
}

fn name(method: Option<&'static str>, template: Option<&'static str>) -> Cow<'static, str> {
    match (method, template) {
        (method, None) => Cow::Borrowed(method.unwrap_or("HTTP")),
        (method, Some(template)) => Cow::Owned(format!("{} {template}", method.unwrap_or("HTTP"))),
    }
}

fn version(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_10 => Some("1.0"),
        Version::HTTP_11 => Some("1.1"),
        Version::HTTP_2 => Some("2"),
        _ => None,
    }
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pair_attributes_are_named_by_source() {
        assert_eq!(PAIRS.map(str::to_owned), SOURCES.map(|source| format!("chatgate.pairs.{source}")));
    }

    #[test]
    fn unknown_methods_have_no_name() {
        assert_eq!(known_method(&Method::POST), Some("POST"));
        assert_eq!(known_method(&Method::from_bytes(b"PosT").expect("a method")), None);
        assert_eq!((name(None, None).as_ref(), name(None, Some("/x")).as_ref()), ("HTTP", "HTTP /x"));
    }
}
