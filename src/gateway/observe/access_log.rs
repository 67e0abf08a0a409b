//! The end of a request: its counters, and its line in the log if it gets one.

use std::time::Duration;

use http::StatusCode;
use http::request::Parts;
use tracing::Level;

use super::spans::RequestEnd;
use crate::clock;
use crate::domain::pairs::directives::PairSources;
use crate::domain::relation::RelationKind;
use crate::error::GatewayError;
use crate::gateway::Gateway;
use crate::gateway::request::{RequestContext, RequestCost, RequestRecord};
use crate::gateway::response::{CheckedPairs, Reply};
use crate::gateway::worker::Worker;
use crate::http::headers::RequestHeaders;
use crate::http::peer::ConnectionInfo;
use crate::http::request_id::RequestId;
use crate::http::traceparent::traceparent;
use crate::telemetry::metrics::callers::CallerRequest;
use crate::telemetry::metrics::labels::{CommandLabel, Outcome};
use crate::telemetry::metrics::{PairCounts, ReadSource};

/// How a request ended.
struct RequestSummary {
    outcome: Outcome,
    took: Duration,
    pairs: Option<PairCounts>,
    read: Option<ReadSource>,
    /// The failure is not the caller's.
    is_failure: bool,
}

/// The pairs of an answered check.
struct RelationCounts {
    kind: &'static RelationKind,
    counts: PairCounts,
}

/// A request until it has its response. If its caller disconnects before that, the guard is dropped with the future
/// that works on the request, and the request is counted as abandoned; a panic drops it likewise, and the request is
/// counted as an internal error. Calls that it caused are counted by themselves.
pub(crate) struct RequestGuard<'a> {
    worker: &'a Worker,
    pub(crate) request: RequestRecord<'a>,
    answered: bool,
}

impl<'a> RequestGuard<'a> {
    pub(crate) fn new(worker: &'a Worker, head: &'a Parts, id: RequestId, connection: &'a ConnectionInfo) -> Self {
        let request = RequestRecord::new(head, id, connection, worker.start_request_span(head));
        Self { worker, request, answered: false }
    }
}

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let outcome = match std::thread::panicking() {
            // The panic is turned into a response further up.
            true => Outcome::rejected(&GatewayError::Internal),
            false => Outcome::ABANDONED,
        };
        let took = clock::now() - self.request.context.started;
        self.worker.count_request(&self.request.context, outcome, took, None);
        let end = RequestEnd { outcome, took, status: None, error_code: 0, pairs: None, read: None };
        self.worker.end_request_span(&self.request, &end);
    }
}

impl Worker {
    /// Counts a request that was rejected before it could be read: it names nothing and took no time.
    pub(crate) fn record_rejected(&self, outcome: Outcome) {
        self.recorder.request(CommandLabel::other(), outcome, Duration::ZERO);
    }

    fn count_request(
        &self,
        context: &RequestContext<'_>,
        outcome: Outcome,
        took: Duration,
        pairs: Option<&RelationCounts>,
    ) {
        let recorder = context.app.map_or(&self.recorder, |app| &app.recorder);
        recorder.request(context.command, outcome, took);
        if let Some(RelationCounts { kind, counts }) = pairs {
            recorder.pairs(kind, counts);
        }
        if let Some(caller) = self.gateway.access.queue_key(context.caller) {
            let waited_micros = context.cost().waited_us;
            let pairs = pairs.map(|pairs| &pairs.counts);
            recorder.callers.request(caller, CallerRequest { outcome, pairs, waited_micros });
        }
    }

    /// Records a request that has its response.
    pub(crate) fn record(&self, mut guard: RequestGuard<'_>, result: &Result<Reply, GatewayError>) {
        guard.answered = true;
        let request = &guard.request;
        let context = &request.context;
        let now = clock::now();
        let took = now - context.started;
        let outcome = match result {
            Ok(reply) if reply.error_code == 0 => Outcome::OK,
            Ok(_) => Outcome::FAILED,
            Err(error) => Outcome::rejected(error),
        };
        let pairs = result.as_ref().ok().and_then(|reply| reply.pairs).map(|CheckedPairs { kind, sources }| {
            let PairSources { hit, joined, fetched, flipped, stale, .. } = sources;
            RelationCounts { kind, counts: [hit, joined, fetched, flipped, stale].map(|count| count as u64) }
        });
        let read = result.as_ref().ok().and_then(|reply| reply.read);
        self.count_request(context, outcome, took, pairs.as_ref());
        let pairs = pairs.map(|pairs| pairs.counts);
        if let (Some(app), Some(read)) = (context.app, read) {
            app.recorder.read(context.command, read);
        }
        if context.span.is_some() {
            let error_code = result.as_ref().map_or(0, |reply| reply.error_code);
            let end = RequestEnd { outcome, took, status: Some(status_of(result)), error_code, pairs, read };
            self.end_request_span(request, &end);
        }
        let is_failure = result.as_ref().is_err_and(|error| error.wire().level == Level::WARN);
        let succeeded = outcome == Outcome::OK;
        let requests = self.gateway.config.log.requests;
        if is_failure || self.gateway.samples.takes(requests, succeeded, clock::tick_at(now)) {
            self.log(request, result, &RequestSummary { outcome, took, pairs, read, is_failure });
        }
    }

    /// Writes the line. It names no user, and contains nothing of body, query, or signature.
    #[cold]
    fn log(&self, request: &RequestRecord<'_>, result: &Result<Reply, GatewayError>, summary: &RequestSummary) {
        let RequestRecord { head, connection, context } = request;
        let error = result.as_ref().err();
        let cause = match error {
            Some(GatewayError::UpstreamUnreachable { cause, .. } | GatewayError::ProxyFailed { cause, .. }) => {
                Some(cause.as_str())
            }
            _ => None,
        };
        let app = context.app.map(|app| tracing::field::display(&app.app.name));
        let caller = match context.caller {
            Some(caller) => self.gateway.access.name_of(caller).to_string(),
            None => connection.caller.0.to_string(),
        };
        let request_id = &*context.id.text();
        let traceparent = traceparent(&RequestHeaders::of(&head.headers));
        let of_caller = || traceparent.as_ref().and_then(|value| value.to_str().ok()?.split('-').nth(1));
        let own = context.trace().map(|context| context.trace_id());
        let trace_id = own.as_deref().or_else(of_caller);
        let RequestCost { waited_us, attempts, upstream_us } = context.cost();
        let source = |at: usize| summary.pairs.map(|pairs| pairs[at]);
        let error_code = result.as_ref().ok().map(|reply| reply.error_code).filter(|code| *code != 0);
        let text = error.map_or_else(|| "request".to_owned(), ToString::to_string);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    app,
                    caller,
                    command = &*context.command.text(),
                    outcome = summary.outcome.text(),
                    status = status_of(result).as_u16(),
                    error_code,
                    took_us = summary.took.as_micros() as u64,
                    waited_us,
                    attempts,
                    upstream_us,
                    hit = source(0),
                    joined = source(1),
                    fetched = source(2),
                    flipped = source(3),
                    stale = source(4),
                    cache = summary.read.map(ReadSource::text),
                    request_id,
                    trace_id,
                    cause,
                    "{text}"
                )
            };
        }
        if summary.is_failure { line!(warn) } else { line!(info) }
    }
}

impl Gateway {
    /// Writes the line of a request that was rejected before it could be read, on any listener, or of a webhook.
    pub(crate) fn log_rejected(&self, error: &GatewayError, id: &RequestId) {
        if !self.samples_rejection() {
            return;
        }
        let wire = error.wire();
        let (outcome, status, request_id) = (wire.slug.text(), wire.status.as_u16(), &*id.text());
        tracing::info!(outcome, status, request_id, "{error}");
    }

    /// Returns whether the next rejection gets a line, by `log.requests`.
    pub(crate) fn samples_rejection(&self) -> bool {
        self.samples.takes(self.config.log.requests, false, clock::tick())
    }
}

fn status_of(result: &Result<Reply, GatewayError>) -> StatusCode {
    result.as_ref().map_or_else(|error| error.wire().status, |reply| reply.status)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;
    use crate::domain::caller::QueueKey;
    use crate::http::peer::Peer;

    #[test]
    fn dropped_requests_are_abandoned_and_panics_are_internal_errors() {
        let text =
            "[[app]]\nname = \"main\"\nsdkappid = 1400000001\nregion = \"singapore\"\nsecret_key_env = \"KEY\"\n";
        let env = [("KEY", "a key")].into_iter().collect();
        let config =
            config::load_text(Path::new("chatgate.toml"), text.to_owned(), &env).expect("a valid configuration");
        let worker = Worker::new(Gateway::new(config).expect("no network is needed")).expect("a worker");
        let (head, ()) = http::Request::new(()).into_parts();
        let connection = ConnectionInfo::plain(Peer::Unix { uid: None }, QueueKey::SELF, 0);
        drop(RequestGuard::new(&worker, &head, RequestId::Generated(0), &connection));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _guard = RequestGuard::new(&worker, &head, RequestId::Generated(0), &connection);
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        let totals = worker.gateway.metrics.totals();
        let requests = &totals.last().expect("requests without an app").commands[0].1.requests;
        let internal = Outcome::rejected(&GatewayError::Internal);
        assert_eq!((requests[Outcome::ABANDONED.index()], requests[internal.index()]), (1, 1));
    }
}
