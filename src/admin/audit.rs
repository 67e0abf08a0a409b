//! The audit log of admin actions: one line for each, also for rejected ones.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::AdminAction;
use crate::error::ERROR_CODE;
use crate::http::request_id::RequestId;
use crate::telemetry::log::AUDIT;

/// An admin action until it has its response. Its line is written however it ends.
pub(super) struct AdminAudit {
    action: AdminAction,
    caller: String,
    id: RequestId,
    /// The app that the action names, once it is known.
    pub(super) app: Option<String>,
    /// HTTP status and ErrorCode of the response, once there is one. A plain text has no ErrorCode.
    result: Option<(StatusCode, Option<i64>)>,
}

impl AdminAudit {
    /// Without [`AdminAudit::finish`], the line has no result: the operator has disconnected.
    pub(super) fn new(action: AdminAction, caller: String, id: RequestId) -> Self {
        Self { action, caller, id, app: None, result: None }
    }

    /// Sets the result.
    pub(super) fn finish(&mut self, response: &Response<Full<Bytes>>) {
        let code = response.headers().get(ERROR_CODE).and_then(|code| code.to_str().ok()?.parse().ok());
        let success = (response.status() == StatusCode::OK).then_some(0);
        self.result = Some((response.status(), success.or(code)));
    }
}

impl Drop for AdminAudit {
    fn drop(&mut self) {
        let (status, error_code) = self.result.map_or((None, None), |(status, code)| (Some(status.as_u16()), code));
        let Self { action, caller, id, app, .. } = self;
        let (app, command, request_id) = (app.as_deref(), action.name(), &*id.text());
        tracing::info!(target: AUDIT, caller, app, command, status, error_code, request_id, "admin action");
    }
}
