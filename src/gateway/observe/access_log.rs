//! What is left of a request: its counters, and its line in the log if it gets one.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use http::request::Parts;

use super::spans::{CallParent, CallSpan, RequestEnd};
use crate::clock;
use crate::config::LogRequests;
use crate::domain::caller::QueueKey;
use crate::domain::tick::Tick;
use crate::error::GatewayError;
use crate::gateway::access::CallerIndex;
use crate::gateway::{ConnectionInfo, Reply, Worker, traceparent};
use crate::http::headers::RequestHeaders;
use crate::http::request_id::RequestId;
use crate::telemetry::metrics::PairCounts;
use crate::telemetry::metrics::labels::{CallResult, CommandLabel, Outcome};
use crate::telemetry::trace::{Context, SpanHandle};
use crate::upstream::signer::{Signature, Signer};
use crate::upstream::{AttemptError, AttemptTime, Call, ChatResponse, LeasedConnection};

/// Lines a second of requests that went well, and as many of those that did not, when they are sampled.
const SAMPLES_PER_SECOND: u32 = 10;

/// What becomes known of a request on its way.
pub(crate) struct RequestContext {
    /// Whose turns it takes: a number that tells apart those who have no name.
    caller: QueueKey,
    /// `None` if there are no callers, or it is of none of them.
    pub listed: Option<CallerIndex>,
    /// `None` until one is chosen.
    pub app: Option<usize>,
    pub command: CommandLabel,
    pub begun: Instant,
    /// How long it has waited for lookups, its own and others'.
    waited: Duration,
    /// Of its own call, if it is relayed.
    notes: Option<Arc<CallStats>>,
    /// Its part in a trace, if traces are taken; in a box, since all others carry it too.
    pub span: Option<Box<SpanHandle>>,
}

/// What a request has cost so far.
pub(crate) struct RequestCost {
    pub waited_us: u64,
    /// Of its own call, if it is relayed.
    pub attempts: Option<u32>,
    pub upstream_us: Option<u64>,
}

impl RequestContext {
    pub(crate) fn begin(caller: QueueKey, span: Option<Box<SpanHandle>>) -> Self {
        let (app, command, waited, notes) = (None, CommandLabel::other(), Duration::ZERO, None);
        Self { caller, listed: None, app, command, begun: clock::now(), waited, notes, span }
    }

    /// Where it stands in a trace, if traces are taken.
    pub(crate) fn context(&self) -> Option<Context> {
        self.span.as_ref().map(|span| span.context)
    }

    pub(crate) fn cost(&self) -> RequestCost {
        match self.notes.as_deref() {
            None => RequestCost { waited_us: self.waited.as_micros() as u64, attempts: None, upstream_us: None },
            Some(notes) => RequestCost {
                waited_us: notes.waited_micros.load(Ordering::Relaxed),
                attempts: Some(notes.attempts.load(Ordering::Relaxed)),
                upstream_us: Some(notes.upstream_micros.load(Ordering::Relaxed)),
            },
        }
    }

    /// It has waited for so long more.
    pub(crate) fn waited(&mut self, more: Duration) {
        self.waited += more;
    }

    /// A call of its own begins.
    pub(crate) fn start_call(&mut self) -> Arc<CallStats> {
        let notes = Arc::new(CallStats::default());
        self.notes = Some(Arc::clone(&notes));
        notes
    }
}

/// A request until it has its answer. Its caller may leave before that: then it is dropped with the future
/// that works on it, and counted as abandoned; a panic drops it likewise, and it is counted as a fault of ours. Calls
/// that it caused may go on and are counted by themselves.
pub(crate) struct RequestGuard<'a> {
    worker: &'a Worker,
    head: &'a Parts,
    id: RequestId,
    downstream: ConnectionInfo,
    pub trail: RequestContext,
    answered: bool,
}

impl<'a> RequestGuard<'a> {
    pub(crate) fn begin(worker: &'a Worker, head: &'a Parts, id: RequestId, downstream: ConnectionInfo) -> Self {
        let trail = RequestContext::begin(downstream.caller, worker.begin_request_span(head));
        Self { worker, head, id, downstream, trail, answered: false }
    }
}

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let Self { worker, head, downstream, trail, .. } = self;
            // A panic is answered further up.
            let outcome = match std::thread::panicking() {
                true => Outcome::refused(&GatewayError::Internal),
                false => Outcome::ABANDONED,
            };
            let took = clock::now() - trail.begun;
            worker.recorder.request(trail.app, trail.command, outcome, took);
            let end = RequestEnd { outcome, took, status: None, error_code: 0, pairs: None };
            worker.end_request_span(head, *downstream, trail, &end);
        }
    }
}

/// What a call of one request does, which may outlive its request if it is a write.
#[derive(Debug, Default)]
pub(crate) struct CallStats {
    attempts: AtomicU32,
    waited_micros: AtomicU64,
    upstream_micros: AtomicU64,
}

impl CallStats {
    pub(crate) fn waited(&self, more: Duration) {
        self.waited_micros.fetch_add(more.as_micros() as u64, Ordering::Relaxed);
    }

    fn called(&self, took: Duration) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.upstream_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }
}

impl Worker {
    /// Sends a call and counts it, also if it is broken off. Says when it was over, too.
    ///
    /// # Errors
    /// As [`Upstream::send`](crate::upstream::Upstream::send).
    pub(crate) async fn send(
        &self,
        AttemptContext { app, begun, deadline, notes, cause }: AttemptContext<'_>,
        lease: LeasedConnection,
        (signer, signature): (&Signer, &Signature),
        mut call: Call<'_>,
    ) -> (Result<ChatResponse, AttemptError>, Instant) {
        let (worker, command) = (self, CommandLabel::of(call.name));
        let span = self.begin_call_span(cause, lease.side());
        if let Some(span) = &span {
            call.traceparent = Some(span.header());
        }
        let end = CallResult::abandoned();
        let mut underway = CallGuard { worker, app, command, notes, begun, ended: None, end, span };
        let sending = pin!(self.upstreams[app].send(lease, signer, signature, call, AttemptTime { begun, deadline }));
        let result = sending.await;
        let ended = *underway.ended.insert(clock::now());
        if let Some(span) = &mut underway.span {
            span.record_result(&result);
        }
        underway.end = match &result {
            Ok(answer) => CallResult::answered(answer.error_code),
            Err(fault) => CallResult::unanswered(&fault.clone().into()),
        };
        (result, ended)
    }

    /// A call has waited for its turn since `begun`; says how long.
    pub(crate) fn waited(&self, app: usize, begun: Instant) -> Duration {
        let waited = clock::now() - begun;
        self.recorder.waited(app, waited);
        waited
    }

    /// What was to be a request was refused before it became one: it names nothing and took no time.
    pub(crate) fn record_rejected(&self, outcome: Outcome) {
        self.recorder.request(None, CommandLabel::other(), outcome, Duration::ZERO);
    }

    /// A request has its answer.
    pub(crate) fn record(&self, mut asked: RequestGuard<'_>, answered: &Result<Reply, GatewayError>) {
        asked.answered = true;
        let RequestGuard { head, id, downstream, trail, .. } = &asked;
        let now = clock::now();
        let took = now - trail.begun;
        let outcome = match answered {
            Ok(reply) if reply.error_code == 0 => Outcome::OK,
            Ok(_) => Outcome::FAILED,
            Err(error) => Outcome::refused(error),
        };
        self.recorder.request(trail.app, trail.command, outcome, took);
        let pairs = answered.as_ref().ok().and_then(|reply| reply.pairs).map(|tally| {
            [tally.hit, tally.joined, tally.fetched, tally.flipped, tally.stale].map(|count| count as u64)
        });
        if let (Some(app), Some(pairs)) = (trail.app, &pairs) {
            self.recorder.pairs(app, pairs);
        }
        if trail.span.is_some() {
            let error_code = answered.as_ref().map_or(0, |reply| reply.error_code);
            let end = RequestEnd { outcome, took, status: Some(status_of(answered)), error_code, pairs };
            self.end_request_span(head, *downstream, trail, &end);
        }
        let is_fault =
            answered.as_ref().is_err_and(|error| error.is_server_error() && !matches!(error, GatewayError::NotCached));
        let went_well = outcome == Outcome::OK;
        if is_fault || self.gateway.samples.takes(self.gateway.config.log.requests, went_well, clock::tick_at(now)) {
            self.log((head, id), trail, answered, &RequestSummary { outcome, took, pairs, is_fault });
        }
    }

    /// Writes the line. It names no user and holds nothing of body, query or signature.
    #[cold]
    fn log(
        &self,
        (head, id): (&Parts, &RequestId),
        trail: &RequestContext,
        answered: &Result<Reply, GatewayError>,
        ended: &RequestSummary,
    ) {
        let error = answered.as_ref().err();
        let cause = match error {
            Some(GatewayError::UpstreamUnreachable { cause, .. }) => Some(cause.as_str()),
            _ => None,
        };
        let app = trail.app.map(|app| tracing::field::display(&self.gateway.config.apps[app].name));
        let caller = match trail.listed {
            Some(listed) => self.gateway.access.name_of(listed).to_string(),
            None => trail.caller.0.to_string(),
        };
        let request_id = &*id.text();
        let traceparent = traceparent(&RequestHeaders::of(&head.headers));
        let of_caller = || traceparent.as_ref().and_then(|value| value.to_str().ok()?.split('-').nth(1));
        let own = trail.context().map(|context| context.trace_id());
        let trace_id = own.as_deref().or_else(of_caller);
        let RequestCost { waited_us, attempts, upstream_us } = trail.cost();
        let source = |at: usize| ended.pairs.map(|pairs| pairs[at]);
        let error_code = answered.as_ref().ok().map(|reply| reply.error_code).filter(|code| *code != 0);
        let text = error.map_or_else(|| "request".to_owned(), ToString::to_string);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    app,
                    caller,
                    command = &*trail.command.text(),
                    outcome = ended.outcome.text(),
                    status = status_of(answered).as_u16(),
                    error_code,
                    took_us = ended.took.as_micros() as u64,
                    waited_us,
                    attempts,
                    upstream_us,
                    hit = source(0),
                    joined = source(1),
                    fetched = source(2),
                    flipped = source(3),
                    stale = source(4),
                    request_id,
                    trace_id,
                    cause,
                    "{text}"
                )
            };
        }
        if ended.is_fault { line!(warn) } else { line!(info) }
    }
}

fn status_of(answered: &Result<Reply, GatewayError>) -> StatusCode {
    answered.as_ref().map_or_else(|error| error.wire().status, |reply| reply.status)
}

/// An attempt, and what it is made for.
pub(crate) struct AttemptContext<'a> {
    pub app: usize,
    pub begun: Instant,
    pub deadline: Instant,
    pub notes: Option<&'a CallStats>,
    /// `None` if no traces are taken.
    pub cause: Option<CallParent>,
}

/// How a request has ended.
struct RequestSummary {
    outcome: Outcome,
    took: Duration,
    pairs: Option<PairCounts>,
    /// Not the caller's doing, nor Chat's own refusal.
    is_fault: bool,
}

/// Counts a call when it is over, whatever ends it.
struct CallGuard<'a> {
    worker: &'a Worker,
    app: usize,
    command: CommandLabel,
    notes: Option<&'a CallStats>,
    begun: Instant,
    /// `None` if it is broken off.
    ended: Option<Instant>,
    end: CallResult,
    span: Option<Box<CallSpan>>,
}

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        let took = self.ended.unwrap_or_else(clock::now) - self.begun;
        self.worker.recorder.call(self.app, self.command, self.end, took);
        if let Some(span) = &self.span {
            self.worker.end_call_span(span, self.app, self.command, (self.end, took));
        }
        if let Some(notes) = self.notes {
            notes.called(took);
        }
    }
}

/// Which requests are logged.
#[derive(Debug, Default)]
pub(crate) struct LogSampler {
    well: SampleWindow,
    ill: SampleWindow,
}

impl LogSampler {
    fn takes(&self, requests: LogRequests, went_well: bool, now: Tick) -> bool {
        match requests {
            LogRequests::All => true,
            LogRequests::Off => false,
            LogRequests::Sampled => {
                let sample = if went_well { &self.well } else { &self.ill };
                sample.takes(now)
            }
        }
    }
}

/// The first few of each second. Two threads that meet at the turn of a second may take a few more.
#[derive(Debug, Default)]
struct SampleWindow {
    second: AtomicU64,
    taken: AtomicU32,
}

impl SampleWindow {
    fn takes(&self, now: Tick) -> bool {
        let second = now.micros() / 1_000_000;
        if self.second.load(Ordering::Relaxed) != second {
            self.second.store(second, Ordering::Relaxed);
            self.taken.store(0, Ordering::Relaxed);
        }
        // Once it is full it is only read, so that threads do not fight for it.
        self.taken.load(Ordering::Relaxed) < SAMPLES_PER_SECOND
            && self.taken.fetch_add(1, Ordering::Relaxed) < SAMPLES_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;
    use crate::gateway::Gateway;
    use crate::gateway::route::Peer;

    #[test]
    fn the_first_of_each_second_are_taken() {
        let sample = SampleWindow::default();
        let taken = |second: u64| (0..1000).filter(|n| sample.takes(Tick::from_micros(second * 1_000_000 + n))).count();
        assert_eq!((taken(5), taken(5), taken(6)), (10, 0, 10));
    }

    #[test]
    fn who_leaves_has_abandoned_a_request_and_a_panic_is_a_fault_of_ours() {
        let text =
            "[[app]]\nname = \"main\"\nsdkappid = 1400000001\nregion = \"singapore\"\nsecret_key_env = \"KEY\"\n";
        let env = [("KEY", "a key")].into_iter().collect();
        let config = config::load_text(Path::new("chatgate.toml"), text.to_owned(), &env).expect("sound");
        let worker = Worker::new(Gateway::new(config).expect("no network is needed")).expect("a thread's own");
        let (head, ()) = http::Request::new(()).into_parts();
        let downstream = ConnectionInfo { peer: Peer::Unix { uid: None }, caller: QueueKey::SELF, tls: false, port: 0 };
        drop(RequestGuard::begin(&worker, &head, RequestId::Ours(0), downstream));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _asked = RequestGuard::begin(&worker, &head, RequestId::Ours(0), downstream);
            panic!("as told");
        }));
        assert!(panicked.is_err());
        let totals = worker.gateway.metrics.totals();
        let requests = &totals.last().expect("of no app").commands[0].1.requests;
        let internal = Outcome::refused(&GatewayError::Internal);
        assert_eq!((requests[Outcome::ABANDONED.index()], requests[internal.index()]), (1, 1));
    }

    #[test]
    fn failures_have_a_sample_of_their_own() {
        let (samples, now) = (LogSampler::default(), Tick::from_micros(7));
        while samples.takes(LogRequests::Sampled, true, now) {}
        assert!(samples.takes(LogRequests::Sampled, false, now));
        assert!(samples.takes(LogRequests::All, true, now));
        assert!(!samples.takes(LogRequests::Off, false, now));
    }
}
