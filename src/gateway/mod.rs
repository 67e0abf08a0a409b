//! One request, from its head to its answer.
//!
//! 1. [`route`] and [`access`]: Host and Origin, who asks, path, method, query, app.
//! 2. [`access`] again: what this caller may call.
//! 3. body: whole, in time, within bounds.
//! 4. `follow` for a `follow_check` that facts can answer, `relay` for all else.
//!
//! Both end in quota, then signature, then [`crate::upstream`].

pub mod access;
mod app;
mod call;
mod detach;
pub mod generation;
mod invalidation;
pub mod observe;
pub mod pairs;
mod relay;
mod replication;
pub mod route;
#[cfg(test)]
mod simulation;
pub mod stack;
mod stats;

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{AGE, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;

use self::access::CallerIndex;
use self::observe::access_log::{RequestContext, RequestGuard};
use self::pairs::freshness::{CacheDirectives, PairSources};
use crate::capacity::CapacityGuard;
use crate::clock;
use crate::domain::caller::QueueKey;
use crate::domain::chat::command::FOLLOW_CHECK;
use crate::domain::follow::request;
use crate::domain::follow::request::{Parsed, RequestError};
use crate::domain::json::object::{DEPTH_MAX, is_too_deep};
use crate::domain::json::scan;
use crate::error::GatewayError;
use crate::http::body::{BodyError, read_whole};
use crate::http::headers::RequestHeaders;
use crate::http::peer::ConnectionInfo;
use crate::http::request_id::RequestId;
use crate::http::traceparent::traceparent;
use crate::http::wakeups::FilteredBody;
use crate::telemetry::metrics::labels::CommandLabel;
use crate::telemetry::trace::Context;
use crate::upstream;

pub use self::app::{Gateway, GatewayBuildError, Worker};
pub use self::replication::InvalidationSubscriber;
pub use self::stats::AppStats;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const EXPLAIN: HeaderName = HeaderName::from_static("chatgate-explain");

/// Why a call brought no answer that can be used, shared by all who waited for it.
#[derive(Debug)]
pub(crate) enum CallFailure {
    /// Chat said no; its answer goes to the caller untouched.
    Chat(upstream::ChatResponse),
    /// There is no answer of Chat.
    Gateway(GatewayError),
}

/// Who waits, and until when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallContext {
    /// Whose turn it takes.
    caller: QueueKey,
    /// Which of the configured callers it is; `None` if there are none.
    listed: Option<CallerIndex>,
    deadline: Instant,
    /// Where it stands in a trace, if traces are taken.
    trace: Option<Context>,
}

/// An answer before it is put on the wire.
#[derive(Debug)]
pub(crate) struct Reply {
    status: StatusCode,
    content_type: Option<HeaderValue>,
    body: Bytes,
    cache_status: Option<String>,
    age: Option<u64>,
    explain: Option<String>,
    /// 0 unless Chat said no.
    error_code: i64,
    /// Where the pairs of the answer came from.
    pairs: Option<PairSources>,
}

impl Worker {
    /// Answers a request. Never fails: what goes wrong becomes an answer.
    pub async fn handle<B>(
        self: Arc<Self>,
        request: Request<B>,
        id: RequestId,
        downstream: ConnectionInfo,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let (head, body) = request.into_parts();
        let mut asked = RequestGuard::begin(&self, &head, id, downstream);
        // Pinned where it is made, here and below: made for an `await` it would be moved there, all of it.
        let answered = pin!(self.respond(&head, body, downstream, &mut asked.trail)).await;
        self.record(asked, &answered);
        answered.map_or_else(GatewayError::into_response, Reply::into_response)
    }

    async fn respond<B>(
        self: &Arc<Self>,
        head: &Parts,
        body: B,
        downstream: ConnectionInfo,
        trail: &mut RequestContext,
    ) -> Result<Reply, GatewayError>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let (gateway, heeded) = (&self.gateway, RequestHeaders::of(&head.headers));
        route::check_caller(head, &heeded, &gateway.hosts, downstream.peer)?;
        // Before anything is answered on a connection it must be sure where the request ends.
        route::check_shape(head, &heeded)?;
        access::check_uid(&gateway.config.server.unix_uids, downstream.peer)?;
        let listed = gateway.access.identify(&head.headers)?;
        trail.listed = listed;
        let path = route::read(head)?;
        trail.command = CommandLabel::of(path.name);
        if gateway.config.access.require_header && heeded.proof.single().is_none_or(|value| value != "1") {
            return Err(GatewayError::Forbidden(
                "the header \"Chatgate: 1\" is required (access.require_header)".to_owned(),
            ));
        }
        let sdkappids = route::query(head.uri.query().unwrap_or_default())?;
        let mut headers = Vec::new();
        if heeded.app.is_present() {
            let all = head.headers.get_all(route::APP_HEADER).into_iter();
            headers.extend(all.map(|value| value.to_str().unwrap_or_default()));
        }
        let app = gateway.choose(path.app, &headers, &sdkappids)?;
        trail.app = Some(app);
        gateway.access.authorize(listed, app, path.name)?;
        let is_plain = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"identity");
        if heeded.content_encoding.is_present() && !heeded.content_encoding.single().is_some_and(is_plain) {
            return Err(GatewayError::UnsupportedEncoding);
        }
        let (body, held) = pin!(self.read_body(head, body, trail.begun)).await?;
        // From here on it is chatgate's time that passes, and a place that is used.
        let _own = gateway.access.acquire_slot(listed)?;
        let _working =
            gateway.requests.try_acquire(1).ok_or(GatewayError::Overloaded("requests (server.max_requests)"))?;
        let caller = gateway.access.queue_key(listed).unwrap_or(downstream.caller);
        let deadline = clock::now() + gateway.config.upstream.timeout;
        let asker = CallContext { caller, listed, deadline, trace: trail.context() };

        if path.name == FOLLOW_CHECK {
            let wishes = if heeded.cache_control.is_present() {
                CacheDirectives::read(&head.headers)
            } else {
                CacheDirectives::default()
            };
            let explain = gateway.config.server.explain && heeded.explain.single().is_some_and(|value| value == "1");
            let manner = pairs::check::LookupOptions { wishes, explain, asker };
            return pin!(self.follow_check(app, &heeded, body, held, manner, trail)).await;
        }
        check_object(&body)?;
        let traceparent = traceparent(&heeded);
        let order = relay::Order { body, held, traceparent, asker, notes: trail.start_call() };
        pin!(self.relay(app, path.name, order)).await
    }

    async fn read_body<B>(&self, head: &Parts, body: B, begun: Instant) -> Result<(Bytes, CapacityGuard), GatewayError>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let server = &self.gateway.config.server;
        let body = FilteredBody::new(body, head.version);
        let reading = pin!(read_whole(body, server.max_body, &self.gateway.buffered));
        let read = clock::timeout_at_lazy(begun + server.body_timeout, reading).await;
        read.ok_or(GatewayError::BodyTimeout(server.body_timeout))?.map_err(|error| match error {
            BodyError::TooLarge => GatewayError::BodyTooLarge(server.max_body, " (server.max_body)"),
            BodyError::NoRoom => GatewayError::Overloaded(BUFFERED),
            BodyError::Broken(_) => GatewayError::BadRequest,
        })
    }

    async fn follow_check(
        self: &Arc<Self>,
        app: usize,
        heeded: &RequestHeaders<'_>,
        body: Bytes,
        held: CapacityGuard,
        manner: pairs::check::LookupOptions,
        trail: &mut RequestContext,
    ) -> Result<Reply, GatewayError> {
        let question = match request::parse(&body, self.gateway.config.follow_check.max_to) {
            Ok(Parsed::Known(question)) => question,
            Ok(Parsed::Extended) => {
                check_depth(&body)?;
                if manner.wishes.only_if_cached {
                    return Err(GatewayError::NotCached);
                }
                let (traceparent, asker) = (traceparent(heeded), manner.asker);
                let order = relay::Order { body: body.clone(), held, traceparent, asker, notes: trail.start_call() };
                let mut reply = pin!(self.relay(app, FOLLOW_CHECK, order)).await?;
                reply.cache_status = Some("chatgate; fwd=bypass".to_owned());
                return Ok(reply);
            }
            Err(error @ (RequestError::NotJson(_) | RequestError::Repeated(_))) => {
                return Err(GatewayError::BadJson(error.to_string()));
            }
            Err(error) => return Err(GatewayError::BadParameter(error.to_string())),
        };
        pin!(self.check_pairs(app, &question, manner, trail)).await
    }
}

impl Reply {
    fn from_chat(status: StatusCode, content_type: Option<HeaderValue>, body: Bytes, error_code: i64) -> Self {
        Self { status, content_type, body, cache_status: None, age: None, explain: None, error_code, pairs: None }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
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

const BUFFERED: &str = "buffered bytes (server.max_buffered)";
/// Shorter answers are not counted among the buffered bytes while they wait for their reader: those of
/// all requests that there may be at once come to as much as one of the largest.
const UNCOUNTED_MAX: usize = 4 * 1024;

/// A body that counts among the buffered bytes until it is sent or dropped.
fn counted(body: Bytes, held: Option<CapacityGuard>) -> Bytes {
    struct Counted(Bytes, #[allow(dead_code, reason = "it is there to be dropped")] CapacityGuard);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    match held {
        Some(held) if body.len() > UNCOUNTED_MAX => Bytes::from_owner(Counted(body, held)),
        _ => body,
    }
}

/// Whether a body is a JSON object in UTF-8, as Chat requires; its members are Chat's business.
fn check_object(body: &[u8]) -> Result<(), GatewayError> {
    if scan::is_object(body) {
        return Ok(());
    }
    // It is not, or unusual; whoever sent it is to read why.
    let bad = |what: String| GatewayError::BadJson(format!("the body is not a JSON object in UTF-8: {what}"));
    let text = std::str::from_utf8(body).map_err(|error| bad(error.to_string()))?;
    if !text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{') {
        return Err(bad("it does not start with '{'".to_owned()));
    }
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| bad(error.to_string()))?;
    check_depth(body)
}

fn check_depth(body: &[u8]) -> Result<(), GatewayError> {
    if is_too_deep(body) {
        return Err(GatewayError::BadJson(format!("the body nests deeper than {DEPTH_MAX} objects and arrays")));
    }
    Ok(())
}
