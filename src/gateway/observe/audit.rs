//! The audit log of relayed writes: one line for each, whatever `log.level` and `log.requests` say.
//!
//! A line contains names, numbers, and a result, never a body. A command outside the built-in table is shown too, unless
//! it could be a key.

use crate::domain::chat::command::CommandName;
use crate::gateway::request::CallContext;
use crate::gateway::response::CallResult;
use crate::gateway::worker::AppWorker;
use crate::http::request_id::RequestId;
use crate::telemetry::log::AUDIT;

/// A relayed write until it has ended. Its line is written however it ends: a write that is cut off by a panic or by the
/// end of the program has no `error_code`.
pub(crate) struct WriteAudit<'a> {
    app: &'a AppWorker,
    name: CommandName<'a>,
    id: RequestId,
    context: CallContext,
    error_code: Option<i64>,
}

impl<'a> WriteAudit<'a> {
    pub(crate) fn new(app: &'a AppWorker, name: CommandName<'a>, id: RequestId, context: CallContext) -> Self {
        Self { app, name, id, context, error_code: None }
    }

    /// Sets the result: the ErrorCode that the caller gets.
    pub(crate) fn finish(mut self, result: &CallResult) {
        self.error_code = Some(match result {
            Ok(response) => response.error_code,
            Err(error) => error.wire().code,
        });
    }
}

impl Drop for WriteAudit<'_> {
    fn drop(&mut self) {
        let Self { app, name, id, context, error_code } = self;
        let caller = match context.caller {
            Some(caller) => app.gateway.access.name_of(caller).to_string(),
            // As in the lines of requests: the number of the connection or process.
            None => context.queue.caller.0.to_string(),
        };
        let (app, request_id) = (&app.app.name, &*id.text());
        tracing::info!(target: AUDIT, caller, %app, command = name.shown(), error_code, request_id, "write");
    }
}
