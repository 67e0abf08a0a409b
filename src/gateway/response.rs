//! Responses: how a call to Chat ended, and what the caller gets.

use bytes::Bytes;
use http::header::{AGE, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;

use crate::capacity::CapacityGuard;
use crate::domain::pairs::check::LookupFailure;
use crate::domain::pairs::directives::PairSources;
use crate::domain::policy::outcome;
use crate::domain::relation::RelationKind;
use crate::error::{ERROR_CODE, GatewayError};
use crate::telemetry::metrics::ReadSource;
use crate::upstream::ChatResponse;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const EXPLAIN: HeaderName = HeaderName::from_static("chatgate-explain");

/// What `overloaded` says when bodies take too much memory.
pub(super) const BUFFERED: &str = "buffered bytes (server.max_buffered)";

/// Shorter responses are not counted among the buffered bytes while they wait for their reader: those of all requests
/// together are no more than one of the largest.
pub(super) const UNCOUNTED_MAX: usize = 4 * 1024;

/// How a call ended: a response of Chat, which may be an error response, or the reason why there is none.
pub(super) type CallResult = Result<ChatResponse, GatewayError>;

/// Returns whether Chat, the connection, or the quota failed, so that a stale answer is better than none.
pub(super) fn allows_stale(result: &CallResult) -> bool {
    match result {
        Ok(response) => outcome::allows_stale(response.error_code),
        Err(error) => error.allows_stale(),
    }
}

impl LookupFailure {
    /// Describes a lookup that failed.
    pub(super) fn of(result: &CallResult) -> Self {
        let missing = result.as_ref().err().and_then(GatewayError::missing_reason);
        Self { allows_stale: allows_stale(result), missing }
    }
}

/// A response of the gateway.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) body: Bytes,
    pub(crate) cache_status: Option<String>,
    pub(crate) age: Option<u64>,
    pub(crate) explain: Option<String>,
    /// 0 unless Chat returned an error.
    pub(crate) error_code: i64,
    /// Where the answers came from, if pairs were checked.
    pub(crate) pairs: Option<CheckedPairs>,
    /// Where the response came from, if it is a cached read.
    pub(crate) read: Option<ReadSource>,
}

/// The pairs of an answered check.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckedPairs {
    pub(crate) kind: &'static RelationKind,
    pub(crate) sources: PairSources,
}

impl Reply {
    pub(super) fn from_chat(
        status: StatusCode,
        content_type: Option<HeaderValue>,
        body: Bytes,
        error_code: i64,
    ) -> Self {
        Self {
            status,
            content_type,
            body,
            cache_status: None,
            age: None,
            explain: None,
            error_code,
            pairs: None,
            read: None,
        }
    }

    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        let error_code = match self.error_code {
            // Nearly every response has this one.
            0 => HeaderValue::from_static("0"),
            code => HeaderValue::from(code),
        };
        headers.insert(ERROR_CODE, error_code);
        let text = |text: String| HeaderValue::try_from(text).ok();
        let values = [
            (CONTENT_TYPE, self.content_type),
            (CACHE_STATUS, self.cache_status.and_then(text)),
            (AGE, self.age.map(HeaderValue::from)),
            (EXPLAIN, self.explain.and_then(text)),
        ];
        for (name, value) in values {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
        response
    }
}

/// Makes a body that counts among the buffered bytes until it is sent or dropped.
pub(crate) fn counted(body: Bytes, reserved: Option<CapacityGuard>) -> Bytes {
    struct Counted(Bytes, #[allow(dead_code, reason = "it is released on drop")] CapacityGuard);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    match reserved {
        Some(reserved) if body.len() > UNCOUNTED_MAX => Bytes::from_owner(Counted(body, reserved)),
        _ => body,
    }
}
