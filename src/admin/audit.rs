//! The audit log of admin actions: one line for each, also for rejected ones.

use bytes::Bytes;
use http::request::Parts;
use http::{Response, StatusCode};
use http_body_util::Full;
use subtle::ConstantTimeEq as _;

use super::{Admin, AdminAction};
use crate::domain::caller::TokenDigest;
use crate::error::ERROR_CODE;
use crate::http::bearer::bearer_token;
use crate::http::peer::Peer;
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

impl Admin {
    /// Writes the line of a request that was rejected and is no action: those have their audit line.
    pub(super) fn log_rejected(&self, response: &Response<Full<Bytes>>, id: &RequestId) {
        let status = response.status();
        if status.is_client_error() && self.state.current.gateway().samples_rejection() {
            tracing::info!(
                status = status.as_u16(),
                request_id = &*id.text(),
                "rejected a request to the admin listener"
            );
        }
    }

    /// Describes the operator for the audit log.
    pub(super) fn caller(&self, head: &Parts, peer: Peer) -> String {
        match peer {
            _ if self.has_token(head) == Some(true) => "token".to_owned(),
            Peer::Unix { uid: Some(uid) } => format!("uid:{uid}"),
            peer if !peer.is_remote() => "local".to_owned(),
            _ => "remote".to_owned(),
        }
    }

    /// Returns whether a request has the admin token; `None` if there is no token.
    pub(super) fn has_token(&self, head: &Parts) -> Option<bool> {
        let gateway = self.state.current.gateway();
        let token = gateway.config.server.admin_token.as_ref()?;
        let given = bearer_token(&head.headers).ok().flatten().map(TokenDigest::of);
        Some(given.is_some_and(|given| given.ct_eq(&token.digest()).into()))
    }
}

impl AdminAction {
    /// Returns its path without the first slash, for the audit log.
    fn name(self) -> &'static str {
        match self {
            AdminAction::Evict => "cache/evict",
            AdminAction::SetLogLevel => "log",
            AdminAction::Reload => "reload",
            AdminAction::Quit => "quit",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use http::Request;
    use tokio_util::sync::CancellationToken;

    use super::super::tests::{LOOPBACK, admin_with};
    use super::*;
    use crate::gateway::stack::tests::ADMIN_TOKEN;

    #[test]
    fn audit_names_the_operator_by_token_user_or_place() {
        let remote = Peer::Tcp { local: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)) };
        let (user, unknown) = (Peer::Unix { uid: Some(1000) }, Peer::Unix { uid: None });
        let token = format!("Bearer {ADMIN_TOKEN}");
        let with_token = admin_with("admin_token_env = 'TOKEN'", CancellationToken::new());
        let without = admin_with("", CancellationToken::new());
        let caller = |admin: &Admin, authorization: &str, peer: Peer| {
            let request = Request::post("/reload").header("authorization", authorization).body(()).expect("a request");
            admin.caller(&request.into_parts().0, peer)
        };
        for (peer, name) in [(LOOPBACK, "local"), (remote, "remote"), (user, "uid:1000"), (unknown, "local")] {
            assert_eq!(caller(&without, &token, peer), name, "a token that is not configured proves nothing");
            assert_eq!(caller(&with_token, "Bearer another", peer), name);
            assert_eq!(caller(&with_token, &token, peer), "token");
        }
    }
}
