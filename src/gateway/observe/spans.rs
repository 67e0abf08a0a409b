//! What traces tell: a span for each request, and one for each call to Chat below it.
//!
//! Names and attributes are those of OpenTelemetry's HTTP conventions where they have one, and `chatgate.*` else.
//! Every text is of a closed set: what the configuration names, what the built-in tables hold, slugs. Two attributes
//! that the conventions ask for are left out where they would hold more: `url.path` of a command that is in no table,
//! since a caller may write anything there, and `url.full` of a call, since it holds the signature. Nor is anything
//! taken from or put into `tracestate`.
//!
//! A lookup may be made for several requests. It stands below the first of those that are recorded, and is linked
//! with up to [`LINKS_MAX`] others, those that joined while it was under way included.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, Version};
use opentelemetry::KeyValue;

use super::access_log::RequestContext;
use crate::clock;
use crate::domain::chat::command::CommandName;
use crate::domain::pairs::lookups::BatchId;
use crate::domain::policy::failover::Side;
use crate::gateway::Worker;
use crate::gateway::app::LookupState;
use crate::gateway::route;
use crate::http::peer::{ConnectionInfo, Peer};
use crate::telemetry::metrics::labels::{CallResult, CommandLabel, Outcome};
use crate::telemetry::metrics::{PairCounts, SOURCES};
use crate::telemetry::trace::{Context, SpanEnd, SpanHandle};
use crate::upstream::{AttemptError, ChatResponse};

/// Most requests that a lookup is linked with.
const LINKS_MAX: usize = 32;
/// Paths as chatgate takes them; the first is Chat's own too.
const TEMPLATES: [&str; 2] = ["/v4/{service}/{command}", "/apps/{app}/v4/{service}/{command}"];

/// Of [`SOURCES`], in their order.
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
    /// The request that it stands below.
    pub above: Context,
    /// The lookup, if it is one.
    pub lookup: Option<BatchId>,
    /// Attempts before it.
    pub tried: u32,
}

/// A call under way.
#[derive(Debug)]
pub(crate) struct CallSpan {
    open: SpanHandle,
    cause: CallParent,
    side: Side,
    status: Option<u16>,
    version: Option<Version>,
}

impl CallSpan {
    /// What Chat's end of the call reads.
    pub(crate) fn header(&self) -> HeaderValue {
        self.open.context.header()
    }

    /// What has come back.
    pub(crate) fn record_result(&mut self, result: &Result<ChatResponse, AttemptError>) {
        match result {
            Ok(answer) => {
                self.status = Some(answer.status.as_u16());
                self.version = Some(answer.version);
            }
            Err(AttemptError::Invalid(_, status)) => self.status = Some(*status).filter(|status| *status > 0),
            Err(_) => {}
        }
    }
}

/// How a request has ended, as its span tells it.
pub(crate) struct RequestEnd {
    pub outcome: Outcome,
    pub took: Duration,
    /// `None` if nobody was there to be answered.
    pub status: Option<StatusCode>,
    /// 0 unless Chat said no.
    pub error_code: i64,
    pub pairs: Option<PairCounts>,
}

impl Worker {
    /// A request begins, if traces are taken.
    pub(crate) fn begin_request_span(&self, head: &Parts) -> Option<Box<SpanHandle>> {
        let tracing = self.gateway.tracing.as_ref()?;
        Some(Box::new(tracing.begin_request(Context::of_caller(&head.headers))))
    }

    /// A request has ended.
    pub(crate) fn end_request_span(
        &self,
        head: &Parts,
        downstream: ConnectionInfo,
        trail: &RequestContext,
        end: &RequestEnd,
    ) {
        let (Some(tracing), Some(open)) = (&self.gateway.tracing, &trail.span) else { return };
        tracing.end(open, || self.request_span_end(head, downstream, trail, end));
    }

    fn request_span_end(
        &self,
        head: &Parts,
        downstream: ConnectionInfo,
        trail: &RequestContext,
        end: &RequestEnd,
    ) -> SpanEnd {
        let method = known_method(&head.method);
        let path = route::path(head.uri.path()).ok();
        let template = path.as_ref().map(|path| TEMPLATES[usize::from(path.app.is_some())]);
        let mut attributes = vec![
            KeyValue::new("http.request.method", method.unwrap_or("_OTHER")),
            KeyValue::new("url.scheme", if downstream.tls { "https" } else { "http" }),
        ];
        let mut tell = |attribute| attributes.push(attribute);
        if let Some(template) = template {
            tell(KeyValue::new("http.route", template));
        }
        // Then app and command are of closed sets, and there is nothing else in a path.
        if template.is_some() && trail.app.is_some() && trail.command.name().is_some() {
            tell(KeyValue::new("url.path", head.uri.path().to_owned()));
        }
        if let Some(version) = version(head.version) {
            tell(KeyValue::new("network.protocol.version", version));
        }
        match downstream.peer {
            Peer::Tcp { local } => {
                tell(KeyValue::new("server.address", local.to_string()));
                tell(KeyValue::new("server.port", i64::from(downstream.port)));
            }
            Peer::Unix { .. } => tell(KeyValue::new("network.transport", "unix")),
        }
        if let Some(status) = end.status {
            tell(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        }
        if !matches!(end.outcome, Outcome::OK | Outcome::FAILED) {
            tell(KeyValue::new("error.type", end.outcome.text()));
        }
        if let Some(app) = trail.app {
            tell(KeyValue::new("chatgate.app", self.app_name(app)));
        }
        if let Some(listed) = trail.listed {
            tell(KeyValue::new("chatgate.caller", self.gateway.access.name_of(listed).to_string()));
        }
        tell(KeyValue::new("chatgate.command", trail.command.text()));
        tell(KeyValue::new("chatgate.outcome", end.outcome.text()));
        if end.error_code != 0 {
            tell(KeyValue::new("chatgate.error_code", CallResult::answered(end.error_code).text()));
        }
        let spent = trail.cost();
        tell(KeyValue::new("chatgate.waited_us", count(spent.waited_us)));
        if let Some(attempts) = spent.attempts {
            tell(KeyValue::new("chatgate.attempts", i64::from(attempts)));
        }
        for (name, pairs) in PAIRS.into_iter().zip(end.pairs.iter().flatten()) {
            tell(KeyValue::new(name, count(*pairs)));
        }
        SpanEnd {
            name: name(method, template),
            took: end.took,
            attributes,
            links: Vec::new(),
            // What is the caller's fault is no error of a server, say the conventions.
            is_error: end.status.is_some_and(|status| status.is_server_error()),
        }
    }

    /// A call begins, if its request has a place in a trace.
    pub(crate) fn begin_call_span(&self, cause: Option<CallParent>, side: Side) -> Option<Box<CallSpan>> {
        let (tracing, cause) = (self.gateway.tracing.as_ref()?, cause?);
        let open = tracing.begin_call(cause.above);
        Some(Box::new(CallSpan { open, cause, side, status: None, version: None }))
    }

    /// A call has ended, whatever ended it.
    pub(crate) fn end_call_span(
        &self,
        span: &CallSpan,
        app: usize,
        command: CommandLabel,
        (end, took): (CallResult, Duration),
    ) {
        let Some(tracing) = &self.gateway.tracing else { return };
        tracing.end(&span.open, || self.call_span_end(span, app, command, (end, took)));
    }

    /// A call that could not be sent, for want of a connection.
    pub(crate) fn unsent_call_span(
        &self,
        cause: Option<CallParent>,
        app: usize,
        name: CommandName<'_>,
        begun: Instant,
        fault: &AttemptError,
    ) {
        let Some(span) = self.begin_call_span(cause, Side::Primary) else { return };
        let end = CallResult::unanswered(&fault.clone().into());
        self.end_call_span(&span, app, CommandLabel::of(name), (end, clock::now() - begun));
    }

    fn call_span_end(
        &self,
        span: &CallSpan,
        app: usize,
        command: CommandLabel,
        (end, took): (CallResult, Duration),
    ) -> SpanEnd {
        let config = &self.gateway.config.apps[app];
        let endpoint = match (span.side, &config.standby) {
            (Side::Standby, Some(standby)) => standby,
            _ => &config.endpoint,
        };
        let mut attributes = vec![
            KeyValue::new("http.request.method", "POST"),
            KeyValue::new("url.template", TEMPLATES[0]),
            KeyValue::new("url.scheme", if endpoint.tls { "https" } else { "http" }),
            KeyValue::new("server.address", endpoint.host.trim_matches(['[', ']']).to_owned()),
            KeyValue::new("server.port", i64::from(endpoint.port)),
            KeyValue::new("chatgate.app", self.app_name(app)),
            KeyValue::new("chatgate.command", command.text()),
        ];
        let mut tell = |attribute| attributes.push(attribute);
        if let Some(status) = span.status {
            tell(KeyValue::new("http.response.status_code", i64::from(status)));
        }
        if let Some(version) = span.version.and_then(version) {
            tell(KeyValue::new("network.protocol.version", version));
        }
        if span.cause.tried > 0 {
            tell(KeyValue::new("http.request.resend_count", i64::from(span.cause.tried)));
        }
        tell(KeyValue::new("chatgate.error_code", end.text()));
        if end != CallResult::OK {
            tell(KeyValue::new("error.type", end.text()));
        }
        let above = span.cause.above;
        let waiting = span.cause.lookup.map(|call| self.app(app).follow.lookups().traces_of(call));
        let links = waiting.into_iter().flatten().filter(|context| context.is_sampled() && *context != above);
        SpanEnd {
            name: name(Some("POST"), Some(TEMPLATES[0])),
            took,
            attributes,
            links: links.take(LINKS_MAX).collect(),
            is_error: end != CallResult::OK,
        }
    }

    fn app_name(&self, app: usize) -> String {
        self.gateway.config.apps[app].name.to_string()
    }

    /// What a lookup stands below: the first request that waits for it and is recorded, else the first.
    pub(crate) fn lookup_parent(&self, app: usize, call: BatchId) -> Option<Context> {
        self.gateway.tracing.as_ref()?;
        let waiting = self.app(app).follow.lookups().traces_of(call);
        waiting.iter().find(|context| context.is_sampled()).or(waiting.first()).copied()
    }
}

impl LookupState {
    /// Where requests stand that wait for a call, in the order in which they came: not all, if there are many.
    fn traces_of(&self, call: BatchId) -> Vec<Context> {
        let mut tickets = BTreeSet::new();
        for ticket in self.pending.waiting_for(call) {
            tickets.insert(ticket);
            if tickets.len() > 2 * LINKS_MAX {
                break;
            }
        }
        tickets.iter().filter_map(|ticket| self.waiters.get(ticket)?.trace).collect()
    }
}

/// The methods that the conventions know.
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
    fn pairs_are_named_by_their_sources() {
        assert_eq!(PAIRS.map(str::to_owned), SOURCES.map(|source| format!("chatgate.pairs.{source}")));
    }

    #[test]
    fn methods_that_nobody_knows_have_no_name() {
        assert_eq!(known_method(&Method::POST), Some("POST"));
        assert_eq!(known_method(&Method::from_bytes(b"PosT").expect("a method")), None);
        assert_eq!((name(None, None).as_ref(), name(None, Some("/x")).as_ref()), ("HTTP", "HTTP /x"));
    }
}
