//! Counters of calls to Chat.

use std::pin::pin;
use std::time::{Duration, Instant};

use super::spans::{CallParent, CallSpan};
use crate::clock;
use crate::domain::caller::QueueKey;
use crate::gateway::request::CallStats;
use crate::gateway::worker::AppWorker;
use crate::telemetry::metrics::labels::{CallLabel, CommandLabel};
use crate::upstream::signer::{Signature, Signer};
use crate::upstream::{AttemptError, AttemptTime, Call, ChatResponse, LeasedConnection};

/// An attempt, and what it is made for.
pub(crate) struct AttemptContext<'a> {
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    pub(crate) caused_by: QueueKey,
    pub(crate) stats: Option<&'a CallStats>,
    /// `None` if no traces are taken.
    pub(crate) parent: Option<CallParent>,
}

impl AppWorker {
    /// Sends a call and counts it, even if it is cut off. Also returns when it ended.
    ///
    /// # Errors
    /// See [`Upstream::send`](crate::upstream::Upstream::send).
    pub(crate) async fn send_recorded(
        &self,
        AttemptContext { started, deadline, caused_by, stats, parent }: AttemptContext<'_>,
        connection: LeasedConnection,
        signer: &Signer,
        signature: &Signature,
        mut call: Call<'_>,
    ) -> (Result<ChatResponse, AttemptError>, Instant) {
        let command = CommandLabel::of(call.name);
        let span = self.start_call_span(parent, connection.side());
        if let Some(span) = &span {
            call.traceparent = Some(span.header());
        }
        let mut guard = CallGuard {
            app: self,
            command,
            caused_by,
            stats,
            started,
            ended: None,
            result: CallLabel::abandoned(),
            span,
        };
        let sent =
            pin!(self.upstream.send(connection, signer, signature, call, AttemptTime { begun: started, deadline }))
                .await;
        let ended = *guard.ended.insert(clock::now());
        if let Some(span) = &mut guard.span {
            span.record_result(&sent);
        }
        guard.result = match &sent {
            Ok(response) => CallLabel::answered(response.error_code),
            Err(error) => CallLabel::unanswered(&error.clone().into()),
        };
        (sent, ended)
    }

    /// Records how long a call has waited for its permit since `started`, and returns it.
    pub(crate) fn record_quota_wait(&self, started: Instant) -> Duration {
        let waited = clock::now() - started;
        self.recorder.waited(waited);
        waited
    }
}

/// Counts a call when it has ended, however it ends.
struct CallGuard<'a> {
    app: &'a AppWorker,
    command: CommandLabel,
    caused_by: QueueKey,
    stats: Option<&'a CallStats>,
    started: Instant,
    /// `None` if the call is cut off.
    ended: Option<Instant>,
    result: CallLabel,
    span: Option<Box<CallSpan>>,
}

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        let took = self.ended.unwrap_or_else(clock::now) - self.started;
        self.app.recorder.call(self.command, self.result, took);
        self.app.recorder.callers.call(self.caused_by);
        if let Some(span) = &self.span {
            self.app.end_call_span(span, self.command, self.result, took);
        }
        if let Some(stats) = self.stats {
            stats.add_attempt(took);
        }
    }
}
