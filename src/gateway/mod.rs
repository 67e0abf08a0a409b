//! The life of a request, from its headers to its response.
//!
//! [`Worker::handle`] takes a request through these phases:
//!
//! 1. *screen* ([`route`]): Host, Origin, framing, and the user of a Unix socket.
//! 2. *identify* (`authentication`): the caller, by its token, UserSig, client certificate, or Unix user.
//! 3. *route* ([`route`], [`query`], `directory`): path and method, and the app that the request names.
//! 4. *authorize* ([`access`]): what the caller may call.
//! 5. *read the body*: whole, in time, within bounds.
//! 6. *admit*: a slot among the requests in flight, and a deadline.
//! 7. *answer*: a check of pairs from the cache alone, or in steps from the cache and from lookups (`pairs`), a read of `[cache.commands]` from a cache of
//!    responses and from shared calls (`reads`), every other command by a call (`relay`).
//! 8. *respond* (`response`), and record what happened (`observe`).
//!
//! Relayed calls and lookups both end in `call`, which signs and sends them. A relayed call takes its permit there. A
//! lookup brings one for its first attempt: `pairs::dispatcher` takes it before it fills the call.
//!
//! The rest is wiring: `state` and `app` are shared by all threads, `worker` is what each thread adds, [`generation`]
//! replaces them on a reload, `invalidation` and `replication` connect them to writes and to other replicas, and
//! [`webhooks`] is what the webhook listener keeps of an app.

pub(crate) mod access;
mod app;
mod authentication;
pub mod cache_control;
mod call;
mod deadline;
mod detach;
mod directory;
pub(crate) mod generation;
mod invalidation;
pub(crate) mod observe;
mod pairs;
pub mod query;
mod reads;
mod relay;
mod replication;
mod request;
mod response;
pub mod route;
#[cfg(test)]
#[path = "../../tests/model/calls/mod.rs"]
mod simulation;
pub(crate) mod stack;
mod state;
mod stats;
pub(crate) mod webhooks;
mod worker;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::Full;

use self::deadline::Deadline;
use self::directory::AppReference;
use self::observe::access_log::RequestGuard;
use self::pairs::PairService;
use self::pairs::check::LookupOptions;
use self::query::Query;
use self::relay::RelayRequest;
use self::request::{CallContext, RequestContext};
use self::response::{BUFFERED, Reply};
use self::route::Route;
use self::worker::AppWorker;
use crate::capacity::CapacityGuard;
use crate::clock;
use crate::domain::json::object::{DEPTH_MAX, describe, describe_beginning, describe_bytes, is_too_deep};
use crate::domain::json::scan;
use crate::domain::pairs::directives::CacheDirectives;
use crate::domain::relation::request::{Parsed, RequestError};
use crate::error::GatewayError;
use crate::http::body::{BAD_TRAILER, BODY_BROKEN, BodyError, read_whole};
use crate::http::headers::RequestHeaders;
use crate::http::peer::ConnectionInfo;
use crate::http::request_id::RequestId;
use crate::http::traceparent::traceparent;
use crate::http::wakeups::FilteredBody;
use crate::telemetry::metrics::labels::CommandLabel;

pub(crate) use self::app::App;
pub(crate) use self::replication::InvalidationSubscriber;
pub(crate) use self::response::counted;
pub(crate) use self::state::{Gateway, GatewayBuildError};
pub(crate) use self::stats::{AppStats, CallerStats};
pub(crate) use self::worker::Worker;

/// A body that has been read, and what counts its bytes.
struct WholeBody {
    bytes: Bytes,
    buffered: CapacityGuard,
}

/// A request to check a relation.
struct CheckBody<'a> {
    head: &'a Parts,
    headers: &'a RequestHeaders<'a>,
    body: WholeBody,
}

/// A request that may be worked on now.
struct Admitted {
    context: CallContext,
    slots: Slots,
}

/// Slots of the caller and of the gateway among the requests in flight, released on drop.
struct Slots {
    _of_caller: Option<access::CallerSlot>,
    _of_gateway: CapacityGuard,
}

impl Worker {
    /// Answers a request. Never fails: an error becomes a response.
    pub(crate) async fn handle<B>(
        self: Arc<Self>,
        request: Request<B>,
        id: RequestId,
        connection: ConnectionInfo,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let (head, body) = request.into_parts();
        let mut guard = RequestGuard::new(&self, &head, id, &connection);
        // Pinned where it is made, here and below: an `await` would move the whole future first.
        let result = pin!(self.respond(&head, body, &connection, &mut guard.request.context)).await;
        self.record(guard, &result);
        result.map_or_else(GatewayError::into_response, Reply::into_response)
    }

    async fn respond<'w, B>(
        &'w self,
        head: &Parts,
        body: B,
        connection: &ConnectionInfo,
        context: &mut RequestContext<'w>,
    ) -> Result<Reply, GatewayError>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let (gateway, headers) = (&self.gateway, RequestHeaders::of(&head.headers));
        route::check_origin_and_host(head, &headers, &gateway.hosts, connection.peer)?;
        // Before anything is answered on a connection it must be certain where the request ends.
        route::check_shape(head, &headers)?;
        access::check_uid(&gateway.config.server.unix_uids, connection.peer)?;
        let query = Query::read(head.uri.query().unwrap_or_default());
        context.caller = gateway.access.identify(&head.headers, &query, connection)?;
        let route = route::read(head, &headers, connection.tls)?;
        context.command = CommandLabel::of(route.name);
        access::check_header(&gateway.config.access, &headers)?;
        let app = self.choose_app(&route, head, &headers, &query)?;
        context.app = Some(app);
        gateway.access.authorize(context.caller, &app.app.name, route.name)?;
        check_encoding(&headers)?;
        let timeout = deadline::caller_timeout(&headers)?;
        let body = pin!(self.read_body(head, body, context.started)).await?;
        let admitted = self.admit(connection, timeout, context)?;
        if let Some(pairs) = app.app.relations.of(route.name) {
            let request = CheckBody { head, headers: &headers, body };
            return pin!(app.answer_check(pairs, request, admitted, context)).await;
        }
        check_object(&body.bytes)?;
        let request = relay_request(&headers, body, admitted, context);
        if let Some(read) = app.app.cached_reads.get(route.name) {
            return Box::pin(app.read(read, directives(head, &headers), request)).await;
        }
        pin!(app.relay(route.name, request)).await
    }

    fn choose_app(
        &self,
        route: &Route<'_>,
        head: &Parts,
        headers: &RequestHeaders<'_>,
        query: &Query<'_>,
    ) -> Result<&Arc<AppWorker>, GatewayError> {
        query.check()?;
        let mut named = Vec::new();
        if headers.app.is_present() {
            let all = head.headers.get_all(route::APP_HEADER).into_iter();
            named.extend(all.map(|value| value.to_str().unwrap_or_default()));
        }
        self.apps.choose(AppReference { prefix: route.app, headers: &named, sdkappids: &query.sdkappid })
    }

    async fn read_body<B>(&self, head: &Parts, body: B, started: Instant) -> Result<WholeBody, GatewayError>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let server = &self.gateway.config.server;
        let body = FilteredBody::new(body, head.version);
        let reading = pin!(read_whole(body, server.max_body, &self.gateway.buffered));
        let read = clock::timeout_at_lazy(started + server.body_timeout, reading).await;
        let read = read.ok_or(GatewayError::BodyTimeout(server.body_timeout))?;
        let (bytes, buffered) = read.map_err(|error| match error {
            BodyError::TooLarge => GatewayError::BodyTooLarge(server.max_body, " (server.max_body)"),
            BodyError::NoRoom => GatewayError::Overloaded(BUFFERED),
            BodyError::Broken(_) => GatewayError::BadRequest(BODY_BROKEN),
            BodyError::Trailer => GatewayError::BadRequest(BAD_TRAILER),
        })?;
        Ok(WholeBody { bytes, buffered })
    }

    /// Takes slots for a request. From here on its time is chatgate's own.
    fn admit(
        &self,
        connection: &ConnectionInfo,
        timeout: Option<Duration>,
        context: &RequestContext<'_>,
    ) -> Result<Admitted, GatewayError> {
        let Gateway { access, requests, config, .. } = &*self.gateway;
        let of_caller = access.acquire_slot(context.caller)?;
        let of_gateway = requests.try_acquire(1).ok_or(GatewayError::Overloaded("requests (server.max_requests)"))?;
        let context = CallContext {
            queue: access.queue(context.caller, connection),
            caller: context.caller,
            deadline: Deadline::new(clock::now(), timeout, config.upstream.timeout),
            trace: context.trace(),
        };
        Ok(Admitted { context, slots: Slots { _of_caller: of_caller, _of_gateway: of_gateway } })
    }
}

impl AppWorker {
    /// Answers a check from its pairs, or relays it if only Chat understands its body.
    async fn answer_check(
        self: &Arc<Self>,
        pairs: &Arc<PairService>,
        CheckBody { head, headers, body }: CheckBody<'_>,
        admitted: Admitted,
        context: &mut RequestContext<'_>,
    ) -> Result<Reply, GatewayError> {
        let config = &self.gateway.config;
        let directives = directives(head, headers);
        let request = match pairs.kind.parse_request(&body.bytes, config.relation.max_to) {
            Ok(Parsed::Known(request)) => request,
            Ok(Parsed::Extended) => {
                check_depth(&body.bytes)?;
                if directives.only_if_cached {
                    return Err(GatewayError::NotCached);
                }
                // A second handle on the bytes: the parser's result still borrows the first one.
                let body = WholeBody { bytes: body.bytes.clone(), buffered: body.buffered };
                let request = relay_request(headers, body, admitted, context);
                let mut reply = pin!(self.relay(pairs.kind.check, request)).await?;
                reply.cache_status = Some("chatgate; fwd=bypass".to_owned());
                return Ok(reply);
            }
            Err(error @ (RequestError::NotJson(_) | RequestError::Repeated(_))) => {
                return Err(GatewayError::BadJson(error.to_string()));
            }
            Err(error) => return Err(GatewayError::BadParameter(error.to_string())),
        };
        let explain = config.server.explain && headers.explain.single().is_some_and(|value| value == "1");
        let partial = headers.partial.single().is_some_and(|value| value == "1");
        let options = LookupOptions { directives, explain, partial, context: admitted.context };
        pin!(self.check(pairs, &request, options, context)).await
    }
}

fn directives(head: &Parts, headers: &RequestHeaders<'_>) -> CacheDirectives {
    if headers.cache_control.is_present() { cache_control::read(&head.headers) } else { CacheDirectives::default() }
}

fn relay_request(
    headers: &RequestHeaders<'_>,
    body: WholeBody,
    Admitted { context: call, slots }: Admitted,
    context: &mut RequestContext<'_>,
) -> RelayRequest {
    RelayRequest {
        body: body.bytes,
        buffered: body.buffered,
        traceparent: traceparent(headers),
        context: call,
        slots,
        id: context.id.clone(),
        stats: context.start_call(),
    }
}

fn check_encoding(headers: &RequestHeaders<'_>) -> Result<(), GatewayError> {
    let is_identity = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"identity");
    let encoding = &headers.content_encoding;
    let is_plain = !encoding.is_present() || encoding.single().is_some_and(is_identity);
    if is_plain { Ok(()) } else { Err(GatewayError::UnsupportedEncoding) }
}

/// Checks that a body is a JSON object in UTF-8, as Chat requires. Its members are Chat's business.
fn check_object(body: &[u8]) -> Result<(), GatewayError> {
    if scan::is_object(body) {
        return Ok(());
    }
    // It is not an object, or an unusual one. The general reader says what is wrong.
    let bad = |what: String| GatewayError::BadJson(format!("the body is not a JSON object in UTF-8: {what}"));
    let text = std::str::from_utf8(body).map_err(|error| bad(describe_bytes(body, error)))?;
    if let Some(problem) = describe_beginning(text) {
        return Err(bad(problem.to_owned()));
    }
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| bad(describe(&error)))?;
    check_depth(body)
}

fn check_depth(body: &[u8]) -> Result<(), GatewayError> {
    if is_too_deep(body) {
        return Err(GatewayError::BadJson(format!("the body nests deeper than {DEPTH_MAX} objects and arrays")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::config;
    use crate::domain::caller::QueueKey;
    use crate::http::peer::Peer;

    /// The most bytes of the future of a request, which the layers and hyper move. What a cached answer does not need is
    /// boxed where it is made.
    const FUTURE_LEN_MAX: usize = 4 * 1024;

    #[test]
    fn future_of_a_request_is_small() {
        let text = "[[app]]\nname = \"main\"\nsdkappid = 1400000001\nregion = \"tokyo\"\nsecret_key_env = \"KEY\"\n";
        let env = [("KEY", "a key")].into_iter().collect();
        let config = config::load_text(Path::new("chatgate.toml"), text.to_owned(), &env).expect("it is valid");
        let worker = Worker::new(Gateway::new(config).expect("no network is needed")).expect("a worker");
        let body = Full::new(Bytes::new()).map_err(|never| match never {});
        let connection = ConnectionInfo::plain(Peer::Unix { uid: None }, QueueKey::SELF, 0);
        let len = size_of_val(&worker.handle(Request::new(body), RequestId::Generated(0), connection));
        assert!(len <= FUTURE_LEN_MAX, "{len} bytes");
    }
}
