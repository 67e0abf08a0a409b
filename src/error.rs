//! What chatgate answers when it answers itself: one table from error to the wire.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;

use crate::domain::chat::envelope;
use crate::domain::policy::parking::Parked;

/// An answer of chatgate's own. Display is the sentence that the caller reads: what is wrong and what
/// to do about it, in words that hold no secret and nothing of another caller.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GatewayError {
    /// The body is no JSON object, or names a member twice that chatgate reads.
    #[error("{0}")]
    BadJson(String),
    /// A query parameter or a member of `follow_check` that is not as the vendor wants it.
    #[error("{0}")]
    BadParameter(String),
    /// Nobody who is known sent it: no token or a wrong one, or a webhook that was not signed just now.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// Not allowed: by the access list, or because it looks like a browser's request.
    #[error("{0}")]
    Forbidden(String),
    /// Not a `/v4/` path.
    #[error(
        "no such path; post to /v4/SERVICE/COMMAND or /apps/NAME/v4/SERVICE/COMMAND, each of letters, digits and '_'"
    )]
    NotFound,
    /// No app, or no single one, is named by the request.
    #[error("{0}")]
    UnknownApp(String),
    /// Chat takes POST only, and so do its webhooks and orders.
    #[error("this is called with POST")]
    MethodNotAllowed,
    /// The caller's body took longer than `server.body_timeout`.
    #[error("the body did not arrive within {}", humantime::format_duration(*.0))]
    BodyTimeout(Duration),
    /// Over the bound: so many bytes, and the key that sets it if one does, in brackets.
    #[error("the body is larger than {0} bytes{1}")]
    BodyTooLarge(usize, &'static str),
    /// Target over [`TARGET_LEN_MAX`](crate::gateway::route::TARGET_LEN_MAX).
    #[error("the request target is longer than 8 KiB")]
    UriTooLong,
    /// Head over 64 KiB or 100 lines.
    #[error("the request's head is larger than 64 KiB or has more than 100 lines")]
    HeadTooLarge,
    /// What came is not HTTP.
    #[error("the request is not well-formed HTTP")]
    BadRequest,
    /// The body is compressed.
    #[error("the body has a Content-Encoding; send it as it is")]
    UnsupportedEncoding,
    /// No quota before the deadline.
    #[error("the quota of {command} is used up and a turn would come after the deadline; try again after {} s or lower the rate", whole_seconds(*.retry_after))]
    RateLimited {
        /// The command whose quota it is.
        command: String,
        /// When trying again may succeed.
        retry_after: Duration,
    },
    /// Chat refuses the app or the command for a reason that asking again cannot mend.
    #[error("{} (Chat said: {}; it is asked again now and then)", .0.reason.hint, .0.reason.info)]
    Parked(Parked),
    /// Nothing of the caller's own share before the deadline.
    #[error("caller {caller} has used up its share and a turn would come after the deadline; try again after {} s, lower the rate, or raise the caller's quota", whole_seconds(*.retry_after))]
    ShareUsedUp {
        /// Whose share it is.
        caller: String,
        /// When trying again may succeed.
        retry_after: Duration,
    },
    /// The request needs more calls than the caller's own share gives within any deadline.
    #[error(
        "this takes {calls} calls, more than the share of caller {caller} gives within upstream.timeout; ask for fewer accounts at a time, or raise the caller's quota"
    )]
    ShareTooSmall {
        /// Whose share it is.
        caller: String,
        /// How many it takes.
        calls: u32,
        /// When a smaller request may succeed.
        retry_after: Duration,
    },
    /// Nothing was sent, or the connection broke before an answer.
    #[error("Chat cannot be reached: {what}")]
    UpstreamUnreachable {
        /// In words for the caller.
        what: &'static str,
        /// In detail, for the log.
        cause: String,
    },
    /// What came back is not a Chat answer, or does not fit the question.
    #[error("Chat's answer cannot be used: {0}")]
    UpstreamInvalid(&'static str),
    /// One of chatgate's bounds is reached.
    #[error("chatgate is at its limit of {0}; try again")]
    Overloaded(&'static str),
    /// Chat has as many calls of this app as it may have at one time, and none has ended before the deadline.
    #[error("chatgate is at its limit of calls in flight (upstream.max_in_flight); try again")]
    InFlightFull,
    /// `only-if-cached`, and something is missing.
    #[error("not everything asked for is in the cache, and Cache-Control says only-if-cached")]
    NotCached,
    /// The deadline passed.
    #[error("Chat did not answer in time; if the call was a write it may have been carried out")]
    UpstreamTimeout,
    /// A fault of chatgate itself.
    #[error("chatgate failed while it worked on this request; if the call was a write it may have been carried out")]
    Internal,
}

/// How an error goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireError {
    /// Value of `Chatgate-Error` and of the metric label.
    pub slug: &'static str,
    /// HTTP status.
    pub status: StatusCode,
    /// `ErrorCode` of the envelope: the vendor's where one says the same, else from the range that
    /// the vendor leaves to the app (120001 to 130000, vendor page "Error Codes", 1047/34348).
    pub code: i64,
}

impl GatewayError {
    /// The one table.
    pub fn wire(&self) -> WireError {
        let (slug, status, code) = match self {
            GatewayError::BadJson(_) => ("bad_json", StatusCode::BAD_REQUEST, 60003),
            GatewayError::BadParameter(_) => ("bad_parameter", StatusCode::BAD_REQUEST, 30001),
            GatewayError::Unauthenticated(_) => ("unauthenticated", StatusCode::UNAUTHORIZED, 129_401),
            GatewayError::Forbidden(_) => ("forbidden", StatusCode::FORBIDDEN, 129_403),
            GatewayError::NotFound => ("not_found", StatusCode::NOT_FOUND, 60009),
            GatewayError::UnknownApp(_) => ("unknown_app", StatusCode::NOT_FOUND, 129_404),
            GatewayError::MethodNotAllowed => ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED, 60002),
            GatewayError::BodyTimeout(_) => ("timeout", StatusCode::REQUEST_TIMEOUT, 129_408),
            GatewayError::BodyTooLarge(..) => ("body_too_large", StatusCode::PAYLOAD_TOO_LARGE, 129_413),
            GatewayError::UriTooLong => ("uri_too_long", StatusCode::URI_TOO_LONG, 129_414),
            GatewayError::HeadTooLarge => ("head_too_large", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, 129_431),
            GatewayError::BadRequest => ("bad_request", StatusCode::BAD_REQUEST, 60002),
            GatewayError::UnsupportedEncoding => ("unsupported_encoding", StatusCode::UNSUPPORTED_MEDIA_TYPE, 129_415),
            GatewayError::RateLimited { .. }
            | GatewayError::ShareUsedUp { .. }
            | GatewayError::ShareTooSmall { .. } => ("rate_limited", StatusCode::TOO_MANY_REQUESTS, 60007),
            GatewayError::Parked(parked) => ("parked", StatusCode::SERVICE_UNAVAILABLE, parked.reason.code),
            GatewayError::UpstreamUnreachable { .. } => ("upstream_unreachable", StatusCode::BAD_GATEWAY, 129_502),
            GatewayError::UpstreamInvalid(_) => ("upstream_invalid", StatusCode::BAD_GATEWAY, 60013),
            GatewayError::Overloaded(_) | GatewayError::InFlightFull => {
                ("overloaded", StatusCode::SERVICE_UNAVAILABLE, 129_503)
            }
            GatewayError::NotCached => ("not_cached", StatusCode::GATEWAY_TIMEOUT, 129_504),
            GatewayError::UpstreamTimeout => ("upstream_timeout", StatusCode::GATEWAY_TIMEOUT, 60008),
            GatewayError::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, 129_500),
        };
        WireError { slug, status, code }
    }

    /// Whether the fault lies with chatgate or what is behind it, and not with the caller.
    pub fn is_server_error(&self) -> bool {
        self.wire().status.is_server_error()
    }

    /// Whether Chat, the way there or the quota failed, so that an older answer is better than none.
    pub fn allows_stale(&self) -> bool {
        matches!(
            self,
            GatewayError::RateLimited { .. }
                | GatewayError::ShareUsedUp { .. }
                | GatewayError::ShareTooSmall { .. }
                | GatewayError::InFlightFull
                | GatewayError::Parked(_)
                | GatewayError::UpstreamUnreachable { .. }
                | GatewayError::UpstreamInvalid(_)
                | GatewayError::UpstreamTimeout
        )
    }

    /// Returns whether there was no call, not even one that failed.
    pub fn made_no_call(&self) -> bool {
        matches!(self, GatewayError::RateLimited { .. } | GatewayError::InFlightFull | GatewayError::Parked(_))
    }

    /// The body of the answer: the vendor's envelope.
    pub fn envelope(&self) -> Vec<u8> {
        envelope::write(self.wire().code, &format!("chatgate: {self}"))
    }

    /// The answer as it goes out.
    pub fn into_response(self) -> Response<Full<Bytes>> {
        let wire = self.wire();
        let mut response = Response::new(Full::new(Bytes::from(self.envelope())));
        *response.status_mut() = wire.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("chatgate-error", HeaderValue::from_static(wire.slug));
        match self {
            // RFC 9110 section 15.5.2 wants one in every 401, RFC 6750 section 3 has this one.
            GatewayError::Unauthenticated(_) => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            GatewayError::MethodNotAllowed => {
                headers.insert(ALLOW, HeaderValue::from_static("POST"));
            }
            GatewayError::RateLimited { retry_after, .. }
            | GatewayError::ShareUsedUp { retry_after, .. }
            | GatewayError::ShareTooSmall { retry_after, .. } => {
                headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(retry_after)));
            }
            GatewayError::Parked(parked) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(parked.retry_after)));
            }
            GatewayError::Overloaded(_) | GatewayError::InFlightFull => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            // What is left of the body is not worth reading, or nobody knows where it ends.
            GatewayError::BodyTimeout(_) | GatewayError::BodyTooLarge(..) | GatewayError::BadRequest => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

/// An error and what caused it, on one line.
pub fn display_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// `Retry-After` counts whole seconds (RFC 9110 section 10.2.3), and 0 would say "now".
fn whole_seconds(span: Duration) -> u64 {
    (span.as_secs() + u64::from(span.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_our_own_has_status_slug_and_the_vendor_s_envelope() {
        let error = GatewayError::RateLimited {
            command: "follow/follow_check".into(),
            retry_after: Duration::from_millis(1200),
        };
        let response = error.into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["chatgate-error"], "rate_limited");
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["content-type"], "application/json");
    }

    #[test]
    fn waiting_is_told_in_whole_seconds_and_never_as_now() {
        for (millis, seconds) in [(0, 1), (1, 1), (999, 1), (1000, 1), (1001, 2), (2500, 3)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
    }

    #[test]
    fn codes_of_our_own_lie_in_the_range_the_vendor_leaves_to_apps() {
        let own = [GatewayError::NotCached, GatewayError::Internal, GatewayError::Forbidden(String::new())];
        for error in own {
            assert!((120_001..=130_000).contains(&error.wire().code));
        }
    }
}
