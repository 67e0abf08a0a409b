//! chatgate's own error responses: one table from the case to slug, HTTP status, ErrorCode, log level, and text.
//!
//! Three error types lead here. `upstream::AttemptError` says what a socket did,
//! `limits::AdmitError` why a call was not made, and [`GatewayError`] what the caller gets.
//! The first becomes a `GatewayError` in `upstream::attempt`, the second in `gateway::call`. Queued pairs that time out get
//! theirs in `gateway::pairs::check`.

mod describe;
mod forward;

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use tracing::Level;

pub(crate) use self::describe::describe_certificate;
pub use self::describe::display_chain;
pub use self::forward::ForwardError;
use crate::domain::chat::envelope;
use crate::domain::identity::SignatureError;
use crate::domain::pairs::item::MissingReason;
use crate::domain::policy::parking::Parked;
use crate::domain::policy::proxy::ProxyFailure;
use crate::domain::quote::shorten;

/// The header with the ErrorCode of a response, so that proxies see it without reading bodies.
pub(crate) const ERROR_CODE: HeaderName = HeaderName::from_static("chatgate-error-code");

/// An error response of chatgate. Its text is what the caller reads: what is wrong, and what to do about it. It contains
/// no secret and nothing of another caller.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GatewayError {
    /// The body is not a JSON object, or repeats a member that chatgate reads.
    #[error("{0}")]
    BadJson(String),
    /// A query parameter or a member of `follow_check` is outside the vendor's limits.
    #[error("{0}")]
    BadParameter(String),
    /// The request shows no caller, or the webhook has no valid signature.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// A caller's own SDK signed the request, and the UserSig is wrong. The code is that of Chat.
    #[error("{0}")]
    InvalidUserSig(SignatureError),
    /// The access list does not allow the request, or it looks like a browser's.
    #[error("{0}")]
    Forbidden(String),
    /// The path is not a `/v4/` path.
    #[error(
        "no such path; post to /v4/SERVICE/COMMAND or /apps/NAME/v4/SERVICE/COMMAND, where SERVICE and COMMAND are letters, \
         digits, and '_'; probes and metrics are on the admin listener"
    )]
    NotFound,
    /// The target is in absolute form, and not chatgate's own address.
    #[error("{NO_FORWARD_PROXY}")]
    NotOwnAddress,
    /// The request names no app, or several.
    #[error("{0}")]
    UnknownApp(String),
    /// The method is not POST.
    #[error("method not allowed; use POST")]
    MethodNotAllowed,
    /// The method is CONNECT.
    #[error("{NO_FORWARD_PROXY}")]
    ConnectMethod,
    /// The body took longer than `server.body_timeout`.
    #[error("the body did not arrive within {}", humantime::format_duration(*.0))]
    BodyTimeout(Duration),
    /// The body exceeds this number of bytes. The text in parentheses names the key that sets the limit, if there is one.
    #[error("the body is larger than {0} bytes{1}")]
    BodyTooLarge(usize, &'static str),
    /// The target exceeds [`TARGET_LEN_MAX`](crate::gateway::route::TARGET_LEN_MAX).
    #[error("the request target is longer than 8 KiB")]
    UriTooLong,
    /// The headers exceed 64 KiB or 100 lines.
    #[error("the request headers are larger than 64 KiB or have more than 100 lines")]
    HeadTooLarge,
    /// The request is not well-formed HTTP, or ambiguous. The text says what is wrong with it.
    #[error("malformed or ambiguous HTTP request: {0}; check the client and any proxy in front of chatgate")]
    BadRequest(&'static str),
    /// The body is compressed.
    #[error("the body has a Content-Encoding; send it uncompressed")]
    UnsupportedEncoding,
    /// The quota of the command grants no permit before the deadline.
    #[error("quota for {command} is exhausted until after the request deadline; retry after {} s or send fewer requests", whole_seconds(*.retry_after))]
    RateLimited {
        /// The command.
        command: String,
        /// When a retry may succeed.
        retry_after: Duration,
    },
    /// Chat rejects the app or the command for a reason that a retry cannot fix.
    #[error("parked: Chat rejects these calls with {} \"{}\"; {}; chatgate probes again every 30 s", .0.reason.code, .0.reason.info, .0.reason.hint)]
    Parked(Parked),
    /// The caller's own quota grants no call before the deadline.
    #[error("quota of caller {caller} is exhausted until after the request deadline; retry after {} s, send fewer requests, or raise caller.quota", whole_seconds(*.retry_after))]
    CallerQuotaExhausted {
        /// The caller's name.
        caller: String,
        /// When a retry may succeed.
        retry_after: Duration,
    },
    /// The request needs more calls than the caller's own quota grants within any deadline.
    #[error(
        "this request needs {calls} calls to Chat, more than the quota of caller {caller} allows within upstream.timeout; send fewer accounts per request, or raise caller.quota"
    )]
    CallerQuotaTooSmall {
        /// The caller's name.
        caller: String,
        /// The number of calls.
        calls: u32,
        /// When a smaller request may succeed.
        retry_after: Duration,
    },
    /// Nothing was sent, or the connection closed before a response.
    #[error("cannot reach Chat: {what}")]
    UpstreamUnreachable {
        /// For the caller.
        what: &'static str,
        /// For the log.
        cause: String,
    },
    /// The proxy opened no tunnel, so nothing was sent.
    #[error("cannot reach Chat: {}; no data was sent", .failure.text())]
    ProxyFailed {
        /// For the caller.
        failure: ProxyFailure,
        /// For the log.
        cause: String,
    },
    /// The response is not one of Chat, or does not fit the request.
    #[error("unusable response from Chat: {0}")]
    UpstreamInvalid(&'static str),
    /// One of chatgate's limits is reached.
    #[error("overloaded: limit of {0} reached; retry after 1 s")]
    Overloaded(&'static str),
    /// The app has the maximum number of calls in flight, and none ended before the deadline.
    #[error("overloaded: limit of calls in flight (upstream.max_in_flight) reached; retry after 1 s")]
    InFlightFull,
    /// `only-if-cached`, and a pair is not cached.
    #[error("not every pair is cached, and Cache-Control says only-if-cached")]
    NotCached,
    /// The deadline passed.
    #[error("Chat did not answer in time; {MAY_HAVE_BEEN_APPLIED}")]
    UpstreamTimeout,
    /// The app of `webhook.forward` did not answer a webhook.
    #[error("webhook not answered: {0}")]
    NotForwarded(ForwardError),
    /// A bug of chatgate.
    #[error("internal error in chatgate; {MAY_HAVE_BEEN_APPLIED}")]
    Internal,
}

/// For clients that have chatgate as their forward proxy.
pub(crate) const NO_FORWARD_PROXY: &str = "chatgate is a gateway, not a forward proxy; post to \
     http://ADDRESS/v4/SERVICE/COMMAND at its own address, and take that address out of the client's proxy settings \
     (unset HTTP_PROXY and HTTPS_PROXY, or add its host to NO_PROXY)";

const MAY_HAVE_BEEN_APPLIED: &str = "if this was a write, it may have been applied";

/// Declares [`Slug`] with the text of each value.
macro_rules! slugs {
    ($($name:ident = $text:literal),+ $(,)?) => {
        /// The stable name of an error: the value of `Chatgate-Error` and of the metric label `outcome`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the text of each says what it is")]
        pub enum Slug {
            $($name),+
        }

        impl Slug {
            /// Every slug, in the order of the declaration.
            pub const ALL: &[Slug] = &[$(Slug::$name),+];

            /// Returns its text.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Slug::$name => $text),+
                }
            }
        }
    };
}

slugs! {
    BadJson = "bad_json",
    BadParameter = "bad_parameter",
    BadRequest = "bad_request",
    BodyTooLarge = "body_too_large",
    Forbidden = "forbidden",
    HeadTooLarge = "head_too_large",
    Internal = "internal",
    MethodNotAllowed = "method_not_allowed",
    NotCached = "not_cached",
    NotFound = "not_found",
    Overloaded = "overloaded",
    Parked = "parked",
    RateLimited = "rate_limited",
    Timeout = "timeout",
    Unauthenticated = "unauthenticated",
    UnknownApp = "unknown_app",
    UnsupportedEncoding = "unsupported_encoding",
    UpstreamInvalid = "upstream_invalid",
    UpstreamTimeout = "upstream_timeout",
    UpstreamUnreachable = "upstream_unreachable",
    UriTooLong = "uri_too_long",
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireError {
    /// Its stable name.
    pub slug: Slug,
    /// HTTP status.
    pub status: StatusCode,
    /// `ErrorCode` of the envelope: the vendor's where one says the same, otherwise from the range that the vendor leaves
    /// to apps (120001 to 130000, vendor page "Error Codes", 1047/34348).
    pub code: i64,
    /// Level of its line in the access log: WARN if the failure is not the caller's.
    pub level: Level,
}

impl GatewayError {
    /// Returns its row of the table.
    pub fn wire(&self) -> WireError {
        const INFO: Level = Level::INFO;
        const WARN: Level = Level::WARN;
        let (slug, status, code, level) = match self {
            GatewayError::BadJson(_) => (Slug::BadJson, StatusCode::BAD_REQUEST, 60003, INFO),
            GatewayError::BadParameter(_) => (Slug::BadParameter, StatusCode::BAD_REQUEST, 30001, INFO),
            GatewayError::Unauthenticated(_) => (Slug::Unauthenticated, StatusCode::UNAUTHORIZED, 129_401, INFO),
            GatewayError::InvalidUserSig(error) => {
                (Slug::Unauthenticated, StatusCode::UNAUTHORIZED, error.code(), INFO)
            }
            GatewayError::Forbidden(_) => (Slug::Forbidden, StatusCode::FORBIDDEN, 129_403, INFO),
            GatewayError::NotFound | GatewayError::NotOwnAddress => {
                (Slug::NotFound, StatusCode::NOT_FOUND, 60009, INFO)
            }
            GatewayError::UnknownApp(_) => (Slug::UnknownApp, StatusCode::NOT_FOUND, 129_404, INFO),
            GatewayError::MethodNotAllowed | GatewayError::ConnectMethod => {
                (Slug::MethodNotAllowed, StatusCode::METHOD_NOT_ALLOWED, 60002, INFO)
            }
            GatewayError::BodyTimeout(_) => (Slug::Timeout, StatusCode::REQUEST_TIMEOUT, 129_408, INFO),
            GatewayError::BodyTooLarge(..) => (Slug::BodyTooLarge, StatusCode::PAYLOAD_TOO_LARGE, 129_413, INFO),
            GatewayError::UriTooLong => (Slug::UriTooLong, StatusCode::URI_TOO_LONG, 129_414, INFO),
            GatewayError::HeadTooLarge => {
                (Slug::HeadTooLarge, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, 129_431, INFO)
            }
            GatewayError::BadRequest(_) => (Slug::BadRequest, StatusCode::BAD_REQUEST, 60002, INFO),
            GatewayError::UnsupportedEncoding => {
                (Slug::UnsupportedEncoding, StatusCode::UNSUPPORTED_MEDIA_TYPE, 129_415, INFO)
            }
            GatewayError::RateLimited { .. }
            | GatewayError::CallerQuotaExhausted { .. }
            | GatewayError::CallerQuotaTooSmall { .. } => {
                (Slug::RateLimited, StatusCode::TOO_MANY_REQUESTS, 60007, INFO)
            }
            GatewayError::Parked(parked) => (Slug::Parked, StatusCode::SERVICE_UNAVAILABLE, parked.reason.code, WARN),
            GatewayError::UpstreamUnreachable { .. } | GatewayError::ProxyFailed { .. } => {
                (Slug::UpstreamUnreachable, StatusCode::BAD_GATEWAY, 129_502, WARN)
            }
            GatewayError::UpstreamInvalid(_) => (Slug::UpstreamInvalid, StatusCode::BAD_GATEWAY, 60013, WARN),
            GatewayError::Overloaded(_) | GatewayError::InFlightFull => {
                (Slug::Overloaded, StatusCode::SERVICE_UNAVAILABLE, 129_503, WARN)
            }
            GatewayError::NotCached => (Slug::NotCached, StatusCode::GATEWAY_TIMEOUT, 129_504, INFO),
            GatewayError::UpstreamTimeout => (Slug::UpstreamTimeout, StatusCode::GATEWAY_TIMEOUT, 60008, WARN),
            GatewayError::NotForwarded(error) => {
                let (slug, status, code) = error.slug_and_code();
                (slug, status, code, WARN)
            }
            GatewayError::Internal => (Slug::Internal, StatusCode::INTERNAL_SERVER_ERROR, 129_500, WARN),
        };
        WireError { slug, status, code, level }
    }

    /// Returns whether Chat, the connection, or the quota failed, so that a stale answer is better than none.
    pub fn allows_stale(&self) -> bool {
        match self.wire().slug {
            Slug::RateLimited
            | Slug::Parked
            | Slug::UpstreamUnreachable
            | Slug::UpstreamInvalid
            | Slug::UpstreamTimeout => true,
            Slug::Overloaded => matches!(self, GatewayError::InFlightFull),
            Slug::BadJson
            | Slug::BadParameter
            | Slug::BadRequest
            | Slug::BodyTooLarge
            | Slug::Forbidden
            | Slug::HeadTooLarge
            | Slug::Internal
            | Slug::MethodNotAllowed
            | Slug::NotCached
            | Slug::NotFound
            | Slug::Timeout
            | Slug::Unauthenticated
            | Slug::UnknownApp
            | Slug::UnsupportedEncoding
            | Slug::UriTooLong => false,
        }
    }

    /// Returns why pairs are missing, if only time or quota has run out.
    pub(crate) fn missing_reason(&self) -> Option<MissingReason> {
        match self.wire().slug {
            Slug::RateLimited => Some(MissingReason::NoQuota),
            Slug::UpstreamTimeout => Some(MissingReason::NoTime),
            _ if matches!(self, GatewayError::InFlightFull) => Some(MissingReason::NoTime),
            _ => None,
        }
    }

    /// Returns whether there was no call, not even one that failed.
    pub fn made_no_call(&self) -> bool {
        matches!(self, GatewayError::RateLimited { .. } | GatewayError::InFlightFull | GatewayError::Parked(_))
    }

    /// Returns the body of the response: the vendor's envelope, with a text of at most
    /// [`MESSAGE_LEN_MAX`](crate::domain::quote::MESSAGE_LEN_MAX) bytes.
    pub fn envelope(&self) -> Vec<u8> {
        envelope::write(self.wire().code, &shorten(&format!("chatgate: {self}")))
    }

    /// Returns the response.
    pub fn into_response(self) -> Response<Full<Bytes>> {
        let wire = self.wire();
        let mut response = Response::new(Full::new(Bytes::from(self.envelope())));
        *response.status_mut() = wire.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("chatgate-error", HeaderValue::from_static(wire.slug.text()));
        headers.insert(ERROR_CODE, HeaderValue::from(wire.code));
        match self {
            // RFC 9110 section 15.5.2 requires one in every 401; this is RFC 6750's (section 3).
            GatewayError::Unauthenticated(_) | GatewayError::InvalidUserSig(_) => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            GatewayError::MethodNotAllowed | GatewayError::ConnectMethod => {
                headers.insert(ALLOW, HeaderValue::from_static("POST"));
            }
            GatewayError::RateLimited { retry_after, .. }
            | GatewayError::CallerQuotaExhausted { retry_after, .. }
            | GatewayError::CallerQuotaTooSmall { retry_after, .. }
            | GatewayError::Parked(Parked { retry_after, .. }) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(retry_after)));
            }
            GatewayError::Overloaded(_) | GatewayError::InFlightFull => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            // The rest of the body is not worth reading, or its end is unknown.
            GatewayError::BodyTimeout(_) | GatewayError::BodyTooLarge(..) | GatewayError::BadRequest(_) => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            GatewayError::BadJson(_)
            | GatewayError::BadParameter(_)
            | GatewayError::Forbidden(_)
            | GatewayError::NotFound
            | GatewayError::NotOwnAddress
            | GatewayError::UnknownApp(_)
            | GatewayError::UriTooLong
            | GatewayError::HeadTooLarge
            | GatewayError::UnsupportedEncoding
            | GatewayError::UpstreamUnreachable { .. }
            | GatewayError::ProxyFailed { .. }
            | GatewayError::UpstreamInvalid(_)
            | GatewayError::NotCached
            | GatewayError::UpstreamTimeout
            | GatewayError::NotForwarded(_)
            | GatewayError::Internal => {}
        }
        response
    }
}

/// `Retry-After` counts whole seconds (RFC 9110 section 10.2.3), and 0 would mean "now".
fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_responses_have_status_slug_and_envelope() {
        let error = GatewayError::RateLimited {
            command: "follow/follow_check".into(),
            retry_after: Duration::from_millis(1200),
        };
        let response = error.into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["chatgate-error"], "rate_limited");
        assert_eq!(response.headers()["chatgate-error-code"], "60007");
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["content-type"], "application/json");
    }

    #[test]
    fn retry_after_counts_whole_seconds_and_is_never_0() {
        for (millis, seconds) in [(0, 1), (1, 1), (999, 1), (1000, 1), (1001, 2), (2500, 3)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
    }

    #[test]
    fn text_of_an_error_has_at_most_a_kibibyte() {
        let error = GatewayError::BadParameter("ä".repeat(5000));
        let body = error.envelope();
        let envelope = envelope::Envelope::parse(&body).expect("an envelope");
        let text = envelope.error_info.expect("a text");
        assert!(text.len() <= 1024 && text.starts_with("chatgate: ä") && text.ends_with("..."), "{}", text.len());
    }

    #[test]
    fn own_error_codes_are_in_the_range_left_to_apps() {
        let own = [GatewayError::NotCached, GatewayError::Internal, GatewayError::Forbidden(String::new())];
        for error in own {
            assert!((120_001..=130_000).contains(&error.wire().code));
        }
    }
}
