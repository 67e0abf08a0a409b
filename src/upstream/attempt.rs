//! What goes into one attempt of a call, and what comes out of it.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, Version};

use crate::capacity::CapacityGuard;
use crate::domain::chat::command::CommandName;
use crate::domain::policy::outcome::AttemptOutcome;
use crate::domain::policy::proxy::{ConnectFailure, ProxyFailure};
use crate::error::{GatewayError, display_chain};

const NOT_SENT: &str = "DNS lookup, connection, or TLS handshake failed; no data was sent";
const BROKEN: &str = "connection closed before the complete response arrived";

/// A call to send.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    /// The command, which becomes the path.
    pub(crate) name: CommandName<'a>,
    /// The body, sent byte for byte.
    pub(crate) body: Bytes,
    /// The `traceparent` header, if the call belongs to a trace.
    pub(crate) traceparent: Option<HeaderValue>,
}

/// The time that an attempt may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttemptTime {
    /// When it began. `upstream.attempt_timeout` counts from here.
    pub(crate) begun: Instant,
    /// The deadline of the request that it belongs to.
    pub(crate) deadline: Instant,
}

/// A complete response of Chat: a JSON object with an integer ErrorCode.
#[derive(Debug)]
pub(crate) struct ChatResponse {
    /// The HTTP status. Chat always sends 200; an intermediary may not.
    pub(crate) status: StatusCode,
    /// The HTTP version.
    pub(crate) version: Version,
    /// The `Content-Type` header.
    pub(crate) content_type: Option<HeaderValue>,
    /// The body, with our UserSig redacted.
    pub(crate) body: Bytes,
    /// The ErrorCode; 0 means success.
    pub(crate) error_code: i64,
    /// Counts the bytes of the body while it lives.
    pub(crate) held: CapacityGuard,
}

/// Why an attempt brought no response of Chat.
#[derive(Debug, Clone)]
pub(crate) enum AttemptError {
    /// No byte of the call was sent. With the cause.
    NotSent(String),
    /// The proxy opened no tunnel. No byte of the call was sent, and Chat was not tried. With the cause.
    Proxy(ProxyFailure, String),
    /// The connection broke, so the call may have been executed. With the cause.
    Broken(String),
    /// No complete response arrived in time.
    TimedOut,
    /// The response is not from Chat. With the reason and the HTTP status, 0 if there is none.
    Invalid(&'static str, u16),
    /// The response exceeds the limit of buffered bytes.
    OverCapacity,
}

impl AttemptError {
    /// Wraps an error from before the call was sent.
    pub(super) fn not_sent(error: &(dyn std::error::Error + 'static)) -> Self {
        AttemptError::NotSent(display_chain(error))
    }

    /// Wraps an error from after the call was sent, at least in part.
    pub(super) fn broken(error: &hyper::Error) -> Self {
        match error.is_parse() {
            // No status line could be read.
            true => AttemptError::Invalid("it is not HTTP", 0),
            false => AttemptError::Broken(display_chain(error)),
        }
    }

    /// Returns what the error says about domain and proxy, if it is from before the call was sent.
    pub(crate) fn connect_failure(&self) -> ConnectFailure {
        match self {
            AttemptError::Proxy(failure, _) => ConnectFailure::Proxy(*failure),
            _ => ConnectFailure::Domain,
        }
    }

    /// Returns the outcome for [`classify`](crate::domain::policy::outcome::classify).
    pub(crate) fn outcome(&self) -> AttemptOutcome {
        match self {
            AttemptError::NotSent(_) | AttemptError::Proxy(ProxyFailure::Unreachable, _) => AttemptOutcome::NotSent,
            AttemptError::Proxy(..) => AttemptOutcome::ProxyRejected,
            AttemptError::Broken(_) => AttemptOutcome::Broken,
            AttemptError::TimedOut => AttemptOutcome::TimedOut,
            AttemptError::Invalid(_, status) => AttemptOutcome::Invalid(*status),
            AttemptError::OverCapacity => AttemptOutcome::OverCapacity,
        }
    }
}

impl From<AttemptError> for GatewayError {
    /// Returns the error for the caller. The cause goes to the log only. Neither contains the request's target, which
    /// holds the signature.
    fn from(error: AttemptError) -> Self {
        match error {
            AttemptError::NotSent(cause) => GatewayError::UpstreamUnreachable { what: NOT_SENT, cause },
            AttemptError::Proxy(failure, cause) => GatewayError::ProxyFailed { failure, cause },
            AttemptError::Broken(cause) => GatewayError::UpstreamUnreachable { what: BROKEN, cause },
            AttemptError::TimedOut => GatewayError::UpstreamTimeout,
            AttemptError::Invalid(what, _) => GatewayError::UpstreamInvalid(what),
            AttemptError::OverCapacity => GatewayError::Overloaded("buffered bytes (server.max_buffered)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreachable_proxy_is_retried_and_other_proxy_failures_are_not() {
        for failure in ProxyFailure::ALL {
            let error = AttemptError::Proxy(failure, "a cause".to_owned());
            let expected = match failure {
                ProxyFailure::Unreachable => AttemptOutcome::NotSent,
                _ => AttemptOutcome::ProxyRejected,
            };
            assert_eq!(error.outcome(), expected, "{failure:?}");
            assert_eq!(error.connect_failure(), ConnectFailure::Proxy(failure));
            let text = GatewayError::from(error).to_string();
            assert!(text.contains(failure.text()) && !text.contains("a cause") && text.len() <= 120, "{text}");
        }
        assert_eq!(AttemptError::NotSent(String::new()).connect_failure(), ConnectFailure::Domain);
    }
}
